"""Rows under way through an engine: part by part if they are many, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog
import torch

from models.backends.backend import Backend, Rollout
from models.backends.memory import is_out_of_memory
from models.network.rows import ROW_TILE
from service.engine.context import context_works, keep
from service.interface import Array, Prediction

log = structlog.get_logger()


class DeviceFullError(RuntimeError):
    """Not even the smallest launch fits the device's memory, or an answer not the host's."""


class Parts:
    """Rows of one call, divided into parts that take their steps one after the other.

    Args:
        backend: Computes them.
        launch_rows: Row counts that it is started with, ascending.
        states: [B, S].
        actions: [B, H, A].
        part_rows: Rows of a part; at most the biggest of `launch_rows`.
        count_error: Counts errors that are survived, by kind.
        members: How many of the ensemble compute, the first ones; None: all.

    Raises:
        DeviceFullError: The prediction does not fit the host's memory.
    """

    def __init__(
        self,
        backend: Backend,
        launch_rows: Sequence[int],
        states: Array,
        actions: Array,
        part_rows: int,
        count_error: Callable[[str], None],
        members: int | None = None,
    ) -> None:
        (rows, dim), horizon = states.shape, actions.shape[1]
        self._backend = backend
        self._launch_rows = launch_rows
        self._count_error = count_error
        self._members = members
        self._inputs = states, actions
        # The next part is the last one in the list.
        self._parts = [(first, min(first + part_rows, rows)) for first in range(0, rows, part_rows)]
        self._parts.reverse()
        self._rollout: Rollout | None = None
        try:
            self._prediction = backend.blank(rows, horizon, dim)
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                raise
            raise DeviceFullError("the prediction does not fit the host's memory") from exc

    @property
    def is_complete(self) -> bool:
        """Whether all rows have taken all their steps."""
        return not self._parts

    def advance(self, steps: int, stop_when_readable: int | None = None) -> int:
        """Compute up to `steps` more steps, of one part after the other; return how many.

        Args:
            steps: At most.
            stop_when_readable: File descriptor; when it is readable, a CPU stops early.

        Raises:
            DeviceFullError: Not even the smallest launch fits the device's memory.
            RuntimeError: The device failed.
        """
        taken = 0
        while taken < steps and self._parts:
            part_steps = self._advance_part(steps - taken, stop_when_readable)
            if part_steps is None:
                # Not where the error is handled: its traceback keeps tensors alive.
                self._halve_part()
                continue
            taken += part_steps
            if self._rollout is not None:
                break
        return taken

    def run(self) -> Prediction:
        """Take all steps; return the prediction.

        Raises:
            RuntimeError: As for `advance`.
        """
        horizon = self._inputs[1].shape[1]
        while self._parts:
            self.advance(horizon)
        return self._prediction

    def result(self) -> Prediction:
        """Return the prediction of all rows, once they are complete."""
        return self._prediction

    def _advance_part(self, steps: int, stop_when_readable: int | None) -> int | None:
        """Compute the present part; return its steps, None if the device's memory is too small."""
        try:
            if self._rollout is None:
                self._rollout = self._start_part(*self._parts[-1])
            taken = self._rollout.advance(steps, stop_when_readable)
        except (RuntimeError, MemoryError) as exc:
            if not is_out_of_memory(exc):
                is_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
                if is_cuda and not context_works():
                    keep(self)
                raise
            self._rollout = None
            return None
        if self._rollout.is_complete:
            self._parts.pop()
            self._rollout = None
        return taken

    def _start_part(self, first: int, last: int) -> Rollout:
        states, actions = self._inputs
        launch_rows = next(count for count in self._launch_rows if count >= last - first)
        prediction = self._prediction.part(first, last)
        return self._backend.start(
            states[first:last], actions[first:last], launch_rows, prediction, self._members
        )

    def _halve_part(self) -> None:
        """Make room on the device, and take the present part anew in halves.

        Raises:
            DeviceFullError: It was the smallest launch.
        """
        first, last = self._parts.pop()
        self._count_error("out_of_memory")
        if last - first <= self._launch_rows[0]:
            raise DeviceFullError("not even the smallest launch fits the device's memory")
        torch.cuda.empty_cache()  # does nothing where there is no GPU
        log.warning("launch split", kind="out_of_memory", rows=last - first)
        half = first + -(-(last - first) // (2 * ROW_TILE)) * ROW_TILE
        self._parts += [(half, last), (first, half)]
