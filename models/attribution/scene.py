"""One sequence, the baseline it is compared with, groups of features, and what is changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.attribution.shares import Floats
from models.saturation import Saturations
from models.slots import is_filled
from models.spec import Slot, Spec

ALONE = "alone"
"""Baseline of specs with a geometry: everybody who is there is far away and drives as the ego does,
the road is straight and wide, and the ego follows it at its own speed, with neutral actions."""

TRAINING_MEAN = "training_mean"
"""Baseline of other specs: the mean of the training states, with neutral actions."""

_LEAST_SIZE_M = 0.1
"""Nobody is made smaller than that: see `models.safety.plausibility`."""


@dataclass(frozen=True)
class Known:
    """What else is known about a model's features, beside its spec.

    Attributes:
        low: [S], smallest trained values; -inf where unknown.
        high: [S], largest trained values; inf where unknown.
        mean: [S], of the training states.
        spread: [S], standard deviations of the training states.
    """

    low: NDArray[np.floating[Any]]
    high: NDArray[np.floating[Any]]
    mean: NDArray[np.floating[Any]]
    spread: NDArray[np.floating[Any]]


class Scene:
    """One sequence, its baseline, and the rows that are asked about it.

    Args:
        state: [S].
        actions: [H, A].
        spec: Of both.
        known: What else is known about the features.

    Attributes:
        name: Of the baseline.
        baseline_state: [S].
        baseline_action: [A].
        action_spreads: [A].
    """

    def __init__(self, state: Floats, actions: Floats, spec: Spec, known: Known) -> None:
        self.state = np.asarray(state, np.float64)
        self.actions = np.asarray(actions, np.float64)
        self.spec = spec
        self.known = known
        self._saturated = Saturations(spec).applied
        ranges = np.array([(x.low, x.high) for x in spec.action])
        self._action_low, self._action_high = ranges.T
        self.action_spreads: Floats = (self._action_high - self._action_low) / 2
        self.baseline_action: Floats = np.clip(0.0, self._action_low, self._action_high)
        self._low = np.maximum([x.low for x in spec.state], known.low)
        self._high = np.minimum([x.high for x in spec.state], known.high)
        slots = spec.geometry.slots if spec.geometry is not None else ()
        self._there = [slot for slot in slots if bool(is_filled(self.state, slot, spec))]
        self._numbers = [i for i, slot in enumerate(slots, start=1) if slot in self._there]
        self.name = TRAINING_MEAN if spec.geometry is None else ALONE
        self.baseline_state = self._baseline()

    def path(self, shares: Floats) -> tuple[Floats, Floats]:
        """Return states [P, S] and actions [P, H, A] on the way from the baseline to the sequence.

        Args:
            shares: [P], how much of the way; 0 is the baseline.
        """
        state = self.baseline_state + shares[:, None] * (self.state - self.baseline_state)
        of_actions = shares[:, None, None] * (self.actions - self.baseline_action)
        return state, self.baseline_action + of_actions

    def groups(self) -> Iterator[tuple[str, list[int], Floats, Floats]]:
        """Yield each group's name and columns, and the sequence without it: [S] and [H, A].

        The columns are those of the state.
        """
        left = set(range(self.spec.state_dim))
        for number, slot in zip(self._numbers, self._there, strict=True):
            columns = self._columns([slot.gate, *slot.features])
            left -= set(columns)
            state = self.state.copy()
            state[columns] = 0
            yield f"neighbour_{number}", columns, state, self.actions
        for name, columns in (("road", self._columns(self._road())), ("others", sorted(left))):
            columns = [column for column in columns if column in left]
            left -= set(columns)
            state = self.state.copy()
            state[columns] = self.baseline_state[columns]
            if columns and (name == "road" or (state != self.state).any()):
                yield name, columns, state, self.actions
        yield "actions", [], self.state, np.broadcast_to(self.baseline_action, self.actions.shape)

    def changed_states(self) -> Floats:
        """Return each feature one spread lower and one higher [S, 2]; NaN where that cannot be."""
        step = np.stack([-self.known.spread, self.known.spread], axis=1)
        low, high = self._low.copy(), self._high.copy()
        for slot in self._there:
            sizes = self._columns([x for x in (slot.length, slot.width) if x is not None])
            low[sizes] = np.maximum(low[sizes], _LEAST_SIZE_M)
        # A state that is already outside is not moved back to the border.
        low, high = np.minimum(low, self.state), np.maximum(high, self.state)
        values = np.clip(self.state[:, None] + step, low[:, None], high[:, None])
        values = self._saturated(np.ascontiguousarray(values.T, np.float32)).T.astype(np.float64)
        values[np.abs(values - self.state[:, None]) < 1e-6] = np.nan
        geometry = self.spec.geometry
        for slot in geometry.slots if geometry is not None else ():
            fixed = [slot.gate, *slot.features] if slot not in self._there else [slot.gate]
            if slot.has_presence or slot not in self._there:
                values[self._columns(fixed)] = np.nan
        return np.asarray(values)

    def changed_actions(self) -> Iterator[Floats]:
        """Yield the actions [H, A] with each feature one spread lower, then one higher."""
        for column in range(self.spec.action_dim):
            for sign in (-1, 1):
                actions = self.actions.copy()
                actions[:, column] += sign * self.action_spreads[column]
                yield np.clip(actions, self._action_low, self._action_high)

    def _columns(self, names: Sequence[str]) -> list[int]:
        return [self.spec.state_index(name) for name in names]

    def _road(self) -> list[str]:
        geometry, car = self.spec.geometry, self.spec.kinematics
        lane = () if car is None else (car.lane_offset, car.sin_heading_error, car.curvature)
        return [*(geometry.edges if geometry is not None else ()), *lane]

    def _baseline(self) -> Floats:
        if self.spec.geometry is None:
            return np.asarray(self.known.mean, np.float64).copy()
        baseline = self.state.copy()
        for slot in self._there:
            self._move_away(baseline, slot)
        lane = self._columns(self._road())
        edges = self._columns(self.spec.geometry.edges)
        baseline[lane] = np.clip(0.0, self._low[lane], self._high[lane])
        baseline[edges] = np.maximum(self._high[edges], self.state[edges])
        rounded = baseline.astype(np.float32)
        saturated = self._saturated(rounded)
        return np.where(saturated == rounded, baseline, saturated)

    def _move_away(self, baseline: Floats, slot: Slot) -> None:
        """Put somebody where the model's knowledge ends, in line with the ego, driving as it does.

        On the way there nobody comes closer to anybody. Sizes stay: a length of 0 says that nobody
        is there, and between somebody and nobody there is no state.
        """
        place = self._columns([slot.dx, slot.dy])
        dx, dy = self.state[place]
        if dx == 0 and dy == 0:
            dx = 1.0
        reaches = [
            (self._high[column] if x > 0 else -self._low[column]) / abs(x)
            for column, x in zip(place, (dx, dy), strict=True)
            if x
        ]
        farther = min(reaches)
        if math.isfinite(farther) and farther > 1:
            baseline[place] = farther * dx, farther * dy
        for name in (slot.heading, slot.acceleration, slot.yaw_rate):
            if name is not None:
                baseline[self.spec.state_index(name)] = 0.0
        if self.spec.kinematics is not None:
            own = self.state[self.spec.state_index(self.spec.kinematics.speed)]
            speed = self.spec.state_index(slot.speed)
            baseline[speed] = np.clip(own, self._low[speed], self._high[speed])
