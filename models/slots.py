"""Neighbour slots that are empty: whatever is left in them is taken away."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import Slot, Spec, States

_LEAST = np.finfo(np.float32).tiny
"""Smallest float32 that no processor takes for 0."""


SLOT_KINDS = (
    "gate",
    "dx",
    "dy",
    "heading",
    "speed",
    "acceleration",
    "yaw_rate",
    "length",
    "width",
)
"""Attributes of `Slot` that name features, or nothing; where a length is the gate, it is named
twice."""


def is_filled(states: NDArray[np.floating[Any]], slot: Slot, spec: Spec) -> NDArray[np.bool_]:
    """Return whether somebody is in a slot.

    Args:
        states: [..., S].
        slot: One of the spec's geometry.
        spec: Of the states.

    Returns:
        [...].
    """
    gate = states[..., spec.state_index(slot.gate)]
    return np.asarray(gate > (0.5 if slot.has_presence else 0))


class EmptySlots:
    """Zeroes what is left in slots without a neighbour.

    Recorded states hold zeros there, so a model has never learned to ignore anything else: numbers
    of a car that has gone would change its predictions.

    Args:
        spec: Names the slots; without a geometry there are none.
    """

    def __init__(self, spec: Spec) -> None:
        slots = spec.geometry.slots if spec.geometry else ()
        columns = [
            [spec.state_index(name) for name in (slot.gate, *slot.features)] for slot in slots
        ]
        self._columns = [np.array(x) for x in sorted(columns)]
        self._gates = np.array([x[0] for x in self._columns], np.intp)
        # One state comes most often; NumPy takes five times as long to pick a few numbers of it.
        self._gates_of_one = self._picker("f")
        self._exact_of_one = self._picker("d")

    def _picker(self, kind: str) -> Callable[[Any], tuple[float, ...]]:
        """Return what picks the gates of one state of floats ("f") or doubles ("d")."""
        form, end = "=", 0
        for column in self._gates.tolist():
            form += f"{struct.calcsize(kind) * (column - end)}x{kind}"
            end = column + 1
        return struct.Struct(form).unpack_from

    def cleared(self, states: States, exact: NDArray[np.float64] | None = None) -> States:
        """Return states with zeros in all features of slots whose gate is 0 (or -0).

        The gate is a presence, or in a slot without one a length. One that is not quite 0 stays,
        for `models.safety` to see; one that is 0 by rounding alone becomes a number that is not.

        Args:
            states: [K, S], rows without gaps; not changed.
            exact: [K, S], the same before they were rounded to 32 bits, if they were.

        Returns:
            The same array if there is nothing to clear, else a copy.
        """
        if len(states) == 1:
            gates = self._gates_of_one(states)
            if 0.0 not in gates:
                return states
            given = gates if exact is None else self._exact_of_one(exact)
            return self._one_cleared(states, gates, given)
        gates_of_all = states.take(self._gates, axis=1)
        if gates_of_all.all():
            return states
        cleared = states.copy()
        if exact is not None:
            given_of_all = exact.take(self._gates, axis=1)
            rows, slots = np.nonzero((gates_of_all == 0) & (given_of_all != 0))
            cleared[rows, self._gates[slots]] = np.copysign(_LEAST, given_of_all[rows, slots])
        for gate, columns in zip(self._gates, self._columns, strict=True):
            rows = np.flatnonzero(cleared[:, gate] == 0)
            if len(rows):
                cleared[rows[:, None], columns] = 0
        return cleared

    def _one_cleared(
        self, states: States, gates: Sequence[float], given: Sequence[float]
    ) -> States:
        """Return a copy of one state [1, S], cleared; `given` are its gates as they came."""
        cleared = states.copy()
        row = cleared[0]
        for columns, rounded, sent in zip(self._columns, gates, given, strict=True):
            if sent == 0:
                row[columns] = 0
            elif rounded == 0:
                row[columns[0]] = math.copysign(_LEAST, sent)
        return cleared
