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

    @property
    def shapes(self) -> tuple[int, ...]:
        """Row counts of launches, ascending."""

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
    """

    def __init__(self, launcher: Launcher, states: Array, actions: Array) -> None:
        self._launcher = launcher
        most = launcher.shapes[-1]
        self._parts = deque(
            (states[start : start + most], actions[start : start + most])
            for start in range(0, len(states), most)
        )
        self._rollout: Rollout | None = None
        self._predicted: list[Prediction] = []

    def advance(self, steps: int) -> bool:
        """Compute up to so many more steps; tell whether that was all.

        Raises:
            RuntimeError: The device failed, or not even the smallest launch fits its memory.
        """
        if self._launcher.fits(partial(self._compute, steps)):
            return not self._parts
        self._rollout = None
        states, actions = self._parts[0]
        self._launcher.free_memory(len(states))
        half = -(-len(states) // (2 * ROW_TILE)) * ROW_TILE
        self._parts[0] = states[half:], actions[half:]
        self._parts.appendleft((states[:half], actions[:half]))
        return False

    def _compute(self, steps: int) -> None:
        states, actions = self._parts[0]
        if self._rollout is None:
            self._rollout = self._launcher.launch(states, actions)
        self._rollout.advance(steps)
        if self._rollout.is_complete:
            self._predicted.append(_prediction(states, self._rollout.summaries()))
            self._parts.popleft()
            self._rollout = None

    def result(self) -> Prediction:
        """Return all rows, once `advance` has said that they are complete."""
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
