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
        (rows, dim), horizon = states.shape, actions.shape[1]
        self._launcher = launcher
        self._given = states, actions
        self._parts = deque(
            (first, min(first + part_rows, rows)) for first in range(0, rows, part_rows)
        )
        self._rollout: Rollout | None = None
        self._states = np.empty((rows, horizon + 1, dim), np.float32)
        self._rewards = np.empty((rows, horizon), np.float32)
        self._dones = np.empty((rows, horizon), np.float32)
        self._spread = np.empty(rows, np.float32)
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
        first, last = self._parts[0]
        if self._rollout is None:
            states, actions = self._given
            self._rollout = self._launcher.launch(states[first:last], actions[first:last])
        self._last_taken = self._rollout.advance(steps, watched)
        if self._rollout.is_complete:
            self._keep(first, last, self._rollout.summaries())
            self._parts.popleft()
            self._rollout = None

    def _keep(self, first: int, last: int, summaries: Array) -> None:
        """Cut a part's padding off, and put rows first.

        Args:
            first: The part's first row.
            last: The row after its last one.
            summaries: [H, rows of the part or more, S + 4]; see `models.ensemble.split_summary`.
        """
        rows, dim = last - first, self._states.shape[2]
        self._states[first:last, 0] = self._given[0][first:last]
        self._states[first:last, 1:] = summaries[:, :rows, :dim].swapaxes(0, 1)
        reward, done, _, squares = summaries[:, :rows, dim:].T  # squares of two spreads
        self._rewards[first:last] = reward
        self._dones[first:last] = done
        np.sqrt(squares.max(axis=1), out=self._spread[first:last])

    def _halve(self) -> None:
        """Begin the present part anew, in halves."""
        self._rollout = None
        first, last = self._parts[0]
        self._launcher.free_memory(last - first)
        half = first + -(-(last - first) // (2 * ROW_TILE)) * ROW_TILE
        self._parts[0] = half, last
        self._parts.appendleft((first, half))

    def result(self) -> Prediction:
        """Return all rows, once they are complete."""
        return Prediction(self._states, self._rewards, self._dones, self._spread)
