"""Rows on their way through an engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np

from models.rollouts import Rollout
from service.interface import Array, Prediction
from service.shapes import ROW_TILE


class Launcher(Protocol):
    """What an engine does for those whose rows it takes."""

    def launch(self, states: Array, actions: Array) -> Rollout:
        """Lay out as many rows as fit the biggest shape."""

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
        self._launcher = launcher
        self._parts = deque(
            (states[start : start + part_rows], actions[start : start + part_rows])
            for start in range(0, len(states), part_rows)
        )
        self._rollout: Rollout | None = None
        self._predicted: list[Prediction] = []
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
        states, actions = self._parts[0]
        if self._rollout is None:
            self._rollout = self._launcher.launch(states, actions)
        self._last_taken = self._rollout.advance(steps, watched)
        if self._rollout.is_complete:
            self._predicted.append(_prediction(states, self._rollout.summaries()))
            self._parts.popleft()
            self._rollout = None

    def _halve(self) -> None:
        """Begin the present part anew, in halves."""
        self._rollout = None
        states, actions = self._parts[0]
        self._launcher.free_memory(len(states))
        half = -(-len(states) // (2 * ROW_TILE)) * ROW_TILE
        self._parts[0] = states[half:], actions[half:]
        self._parts.appendleft((states[:half], actions[:half]))

    def result(self) -> Prediction:
        """Return all rows, once they are complete."""
        parts = self._predicted
        if len(parts) == 1:
            return parts[0]
        return Prediction(
            np.concatenate([part.states for part in parts]),
            np.concatenate([part.rewards for part in parts]),
            np.concatenate([part.dones for part in parts]),
            np.concatenate([part.uncertainty for part in parts]),
        )


def _prediction(start: Array, summaries: Array) -> Prediction:
    """Cut the padding off, and return rows first; `models.ensemble.split_summary` in NumPy.

    Args:
        start: [B, S].
        summaries: [H, B or more, S + 4].
    """
    rows, dim = start.shape
    states = np.empty((rows, len(summaries) + 1, dim), np.float32)
    states[:, 0] = start
    states[:, 1:] = summaries[:, :rows, :dim].swapaxes(0, 1)
    extras = summaries[:, :rows, dim:].T  # reward, done, and squares of two spreads: [4, B, H]
    return Prediction(states, extras[0], extras[1], np.sqrt(np.maximum.reduce(extras[3], axis=1)))
