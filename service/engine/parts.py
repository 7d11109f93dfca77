"""Rows on their way through an engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from models.backends.graphs import Rollout
from service.engine.launch_rows import ROW_TILE
from service.interface import Array, Prediction


class Launcher(Protocol):
    """What an engine does for those whose rows it takes."""

    def blank(self, rows: int, horizon: int, state_dim: int) -> Prediction:
        """Return a prediction to be written."""

    def launch(self, states: Array, actions: Array, prediction: Prediction) -> Rollout:
        """Begin a rollout of as many rows as fit the biggest shape; the prediction is written."""

    def fits(self, compute: Callable[[], None]) -> bool:
        """Compute something; tell whether the device's memory sufficed."""

    def free_memory(self, rows: int) -> None:
        """Make room after a launch of so many rows did not fit; raise RuntimeError if it cannot."""


class Progress:
    """Rows on their way through an engine: part by part if they are many, step by step.

    Args:
        launcher: Computes them.
        states: [B, S].
        actions: [B, H, A].
        part_rows: Rows of a part.
    """

    def __init__(self, launcher: Launcher, states: Array, actions: Array, part_rows: int) -> None:
        (rows, dim), horizon = states.shape, actions.shape[1]
        self._launcher = launcher
        self._given = states, actions
        # The next part is the last one in the list.
        self._parts = [(first, min(first + part_rows, rows)) for first in range(0, rows, part_rows)]
        self._parts.reverse()
        self._rollout: Rollout | None = None
        self._prediction = launcher.blank(rows, horizon, dim)
        self._last_taken = 0

    @property
    def is_complete(self) -> bool:
        """Whether all rows have taken all their steps."""
        return not self._parts

    def advance(self, steps: int, watched: int = -1) -> int:
        """Compute up to so many more steps, of one part after the other; return how many.

        Args:
            steps: At most.
            watched: File descriptor; when it is readable, a CPU stops early. None if -1.

        Raises:
            RuntimeError: The device failed, or not even the smallest launch fits its memory.
        """
        taken = 0
        while taken < steps and self._parts:
            asked = steps - taken
            if self._launcher.fits(partial(self._compute, asked, watched)):
                taken += self._last_taken
                if self._rollout is not None:
                    break
            else:
                self._halve()
        return taken

    def _compute(self, steps: int, watched: int) -> None:
        if self._rollout is None:
            first, last = self._parts[-1]
            states, actions = self._given
            self._rollout = self._launcher.launch(
                states[first:last], actions[first:last], self._prediction.part(first, last)
            )
        self._last_taken = self._rollout.advance(steps, watched)
        if self._rollout.is_complete:
            self._parts.pop()
            self._rollout = None

    def _halve(self) -> None:
        """Begin the present part anew, in halves."""
        self._rollout = None
        first, last = self._parts.pop()
        self._launcher.free_memory(last - first)
        half = first + -(-(last - first) // (2 * ROW_TILE)) * ROW_TILE
        self._parts += [(half, last), (first, half)]

    def result(self) -> Prediction:
        """Return all rows, once they are complete."""
        return self._prediction
