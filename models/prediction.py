"""What a model predicts, as plain arrays. NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(slots=True)  # not frozen: that makes it thrice as dear to make
class Prediction:
    """What a model predicts for B rows over H steps.

    Attributes:
        states: [B, H+1, S], the start included, physical units.
        rewards: [B, H].
        dones: [B, H], P(ends at that step | alive before it).
        uncertainty: [B], disagreement of the ensemble; 0 with one member.
        is_finite: Whether all numbers are; see `mark_finite`.
    """

    states: Array
    rewards: Array
    dones: Array
    uncertainty: Array
    is_finite: bool = True

    @classmethod
    def blank(cls, rows: int, horizon: int, state_dim: int) -> Prediction:
        """Return one to be written."""
        return cls(
            np.empty((rows, horizon + 1, state_dim), np.float32),
            np.empty((rows, horizon), np.float32),
            np.empty((rows, horizon), np.float32),
            np.empty(rows, np.float32),
        )

    def part(self, first: int, last: int) -> Prediction:
        """Return the rows from `first` to before `last`, as views."""
        rows = slice(first, last)
        part = Prediction(
            self.states[rows], self.rewards[rows], self.dones[rows], self.uncertainty[rows]
        )
        if not self.is_finite:
            part.mark_finite()
        return part

    def mark_finite(self) -> None:
        """Set `is_finite` to what the numbers are."""
        # A sum of squares is one pass; if it is not finite, some number may only have been big.
        parts = (self.states, self.rewards, self.dones)
        self.is_finite = all(
            math.isfinite(np.vdot(x, x)) or bool(np.isfinite(x).all()) for x in parts
        )
