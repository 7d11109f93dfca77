"""What every way to compute an ensemble's rollouts offers: the protocols `Backend` and `Rollout`.

A device has two backends. `native` (CPU) and `fused` (GPU) are code of our own, which must be
compiled; `eager` and `graphs` are PyTorch's, slower and always there. The two of a device agree to
a few units in the last place, not in bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from models.prediction import Array, Prediction


class NotCompiledError(Exception):
    """A backend's machine code cannot be had; the message says why."""


class Rollout(Protocol):
    """A rollout under way; its prediction is written once all steps are taken."""

    @property
    def is_complete(self) -> bool:
        """Whether all steps are taken."""

    def advance(self, steps: int, stop_when_readable: int | None = None) -> int:
        """Take up to `steps` more steps, at least one; return how many.

        Args:
            steps: At most.
            stop_when_readable: File descriptor; when it is readable, no further step is begun by
                backends that can stop early. None, or below 0: there is none.
        """


class Backend(Protocol):
    """One way to compute rollouts.

    Attributes:
        label: Shown to clients beside the device's name; empty for compiled backends.
        is_padded: Whether rows are filled up to `launch_rows`.
    """

    label: str
    is_padded: bool

    def blank(self, rows: int, horizon: int, state_dim: int) -> Prediction:
        """Return a prediction of B rows over H steps, in memory that this backend writes best."""

    def start(
        self,
        states: Array,
        actions: Array,
        launch_rows: int,
        prediction: Prediction,
        members: int | None = None,
    ) -> Rollout:
        """Return a rollout of which no step is taken yet.

        Args:
            states: [B, S].
            actions: [B, H, A].
            launch_rows: Number of rows that B is filled up to, if this backend pads.
            prediction: Written; its rows are views of one from `blank`.
            members: How many of the ensemble compute, the first ones; None: all.
        """


class WholeRollout:
    """A rollout computed in one go, however few steps are asked for: on a GPU it is short.

    Args:
        compute: Takes states [B, S], actions [B, H, A] and the prediction, which it writes.
        states: [B, S].
        actions: [B, H, A].
        prediction: Written.
    """

    def __init__(
        self,
        compute: Callable[[Array, Array, Prediction], None],
        states: Array,
        actions: Array,
        prediction: Prediction,
    ) -> None:
        self._compute = compute
        self._inputs = states, actions
        self._prediction = prediction
        self.is_complete = False

    def advance(self, steps: int, stop_when_readable: int | None = None) -> int:
        """Take all steps."""
        self._compute(*self._inputs, self._prediction)
        self.is_complete = True
        return int(self._inputs[1].shape[1])
