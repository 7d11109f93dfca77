"""What a model predicts, as plain arrays. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


def version_of(version: str, members: int, held: int) -> str:
    """Return what a model is called of which only the first members predict: another version.

    Args:
        version: Of the whole checkpoint, or of a part of it.
        members: That predict.
        held: That the checkpoint holds.
    """
    whole, _, _ = version.partition("-")
    return whole if members == held else f"{whole}-{members}of{held}"


def _ordinary(numbers: int) -> Array:
    return np.empty(numbers, np.float32)


@dataclass(slots=True)  # not frozen: making one would take three times as long
class Prediction:
    """What a model predicts for B rows over H steps.

    Attributes:
        states: [B, H+1, S], the start included, physical units.
        rewards: [B, H].
        dones: [B, H], P(ends at that step | alive before it).
        uncertainty: [B], disagreement of the members that computed it; 0, which means nothing, of
            one.
        is_finite: Whether all numbers are; see `mark_finite`.
        block: All four in this order, one after the other, if they lie so; else None.
    """

    states: Array
    rewards: Array
    dones: Array
    uncertainty: Array
    is_finite: bool = True
    block: Array | None = None

    @classmethod
    def blank(
        cls,
        rows: int,
        horizon: int,
        state_dim: int,
        memory: Callable[[int], Array] = _ordinary,
    ) -> Prediction:
        """Return one to be written, in one block.

        Args:
            rows: B.
            horizon: H.
            state_dim: S.
            memory: Returns an array of that many numbers, of any value.
        """
        steps = rows * horizon
        rewards = (steps + rows) * state_dim
        dones, uncertainty = rewards + steps, rewards + 2 * steps
        block = memory(uncertainty + rows)
        return cls(
            block[:rewards].reshape(rows, horizon + 1, state_dim),
            block[rewards:dones].reshape(rows, horizon),
            block[dones:uncertainty].reshape(rows, horizon),
            block[uncertainty:],
            True,
            block,
        )

    def part(self, first: int, last: int) -> Prediction:
        """Return the rows from `first` to before `last`, as views."""
        if last - first == len(self.uncertainty):
            return self
        rows = slice(first, last)
        part = Prediction(
            self.states[rows], self.rewards[rows], self.dones[rows], self.uncertainty[rows]
        )
        if not self.is_finite:
            part.mark_finite()
        return part

    def mark_finite(self) -> None:
        """Set `is_finite` to what all of its numbers are."""
        parts = [self.states, self.rewards, self.dones, self.uncertainty]
        if self.block is not None:
            parts = [self.block]
        # A sum of squares is one pass; if it is not finite, some number may only have been big.
        self.is_finite = all(
            math.isfinite(np.vdot(x, x)) or bool(np.isfinite(x).all()) for x in parts
        )
