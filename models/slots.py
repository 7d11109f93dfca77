"""Neighbour slots that hold nobody. NumPy only."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import Spec

States = NDArray[np.float32]


class EmptySlots:
    """Zeroes what is left in slots without a neighbour.

    Recorded states hold zeros there, so a model has never learned to ignore anything else: numbers
    of a car that has gone would change its predictions.

    Args:
        spec: Names the slots; without a geometry there are none.
    """

    def __init__(self, spec: Spec) -> None:
        slots = spec.geometry.slots if spec.geometry else ()
        self._presences = np.array([spec.state_index(x.presence) for x in slots], np.intp)
        self._columns = [
            np.array([spec.state_index(name) for name in (slot.presence, *slot.features)])
            for slot in slots
        ]
        # One state comes most often; NumPy takes five times as long to pick a few numbers of it.
        form, end = "=", 0
        for column in sorted(self._presences.tolist()):
            form += f"{4 * (column - end)}xf"
            end = column + 1
        self._presences_of_one: Callable[[Any], tuple[float, ...]] = struct.Struct(form).unpack_from

    def cleared(self, states: States) -> States:
        """Return states with zeros in all features of slots whose presence is 0 (or -0).

        A presence that is neither 0 nor 1 stays, for `models.plausible` to see.

        Args:
            states: [K, S], rows without gaps; not changed.

        Returns:
            The same array if there is nothing to clear, else a copy.
        """
        if len(states) == 1:
            if 0.0 not in self._presences_of_one(states):
                return states
        elif states.take(self._presences, axis=1).all():
            return states
        cleared = states.copy()
        for presence, columns in zip(self._presences, self._columns, strict=True):
            rows = np.flatnonzero(states[:, presence] == 0)
            if len(rows):
                cleared[rows[:, None], columns] = 0
        return cleared
