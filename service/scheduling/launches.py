"""A launch: jobs that are computed together, slice by slice. From their arrays to a prediction."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from service.interface import Array, Costs, EngineLike, Prediction, Running
from service.scheduling.jobs import Bounds, Job, JobClass

T = TypeVar("T")


class BadOutputError(Exception):
    """The engine returned arrays of the wrong shape."""


class Slice(NamedTuple):
    """What is computed of a launch before others get their turn.

    Attributes:
        steps: Most steps.
        expected_s: How long they take, undisturbed.
        is_inline: Whether they are computed on the event loop.
    """

    steps: int
    expected_s: float
    is_inline: bool


@dataclass(eq=False, slots=True)
class Launch:
    """Jobs of one class, horizon and number of members, computed together in slices.

    Changed on the event loop's thread only, but for `running`: the first slice sets it, on the
    thread that computes it.

    Attributes:
        part_rows: Rows that take their steps together; a launch of more goes part by part.
        members: How many compute it, the first ones; None: all.
        running: What the engine has begun; None before the first slice.
        taken: Steps computed, of all parts.
        seconds: Time in slices.
        is_overtaken: Whether more urgent work waits.
    """

    job_class: JobClass
    jobs: list[Job]
    rows: int
    horizon: int
    part_rows: int
    members: int | None = None
    running: Running | None = None
    taken: int = 0
    seconds: float = 0.0
    is_overtaken: bool = False

    @property
    def steps_left(self) -> int:
        """Steps of all parts that are left; at least one, for parts may have to be halved."""
        return max(1, self.horizon * -(-self.rows // self.part_rows) - self.taken)

    def seconds_left(self, costs: Costs) -> float:
        """Return how long the steps that are left take, undisturbed."""
        return self.steps_left * costs.of(self.members).step_s_of[self.part_rows]

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(job.is_done for job in self.jobs)

    def next_slice(
        self,
        costs: Costs,
        bounds: Bounds,
        pace: float,
        *,
        is_quick: bool,
        may_be_long: bool,
        due_in_s: Callable[[], float] = lambda: math.inf,
    ) -> Slice:
        """Return what is computed next.

        Args:
            costs: What steps cost, undisturbed.
            bounds: How long a slice may be.
            pace: How much longer than undisturbed computing takes now.
            is_quick: Whether the engine may be called on the event loop.
            may_be_long: Whether a call made there may last `inline_s`: it stops for input, or
                nothing that comes in can be more urgent.
            due_in_s: Returns the time until the next deadline, which is kept on the event loop.
        """
        longest_s = bounds.preempt_after_s
        steps, step_s = self.steps_left, costs.of(self.members).step_s_of[self.part_rows]
        is_long = steps * step_s > longest_s
        # A slice that stops for what comes in need not be short to look for it. But a deadline
        # does not come in.
        if is_long and is_quick and may_be_long and not self.is_overtaken:
            longest_s = max(longest_s, min(bounds.inline_s, due_in_s()) / pace)
        if step_s:
            # Where launches cannot be left between steps, only whole horizons can be computed.
            least = 1 if costs.is_divisible else self.horizon
            steps = min(steps, least * max(1, int(longest_s / (least * step_s))))
        expected_s = steps * step_s
        return Slice(steps, expected_s, is_quick and pace * expected_s <= bounds.inline_s)

    def run(
        self, engine: EngineLike, steps: int, stop_when_readable: int | None = None
    ) -> tuple[int, Prediction | None]:
        """Compute a slice; any thread.

        Args:
            engine: Computes.
            steps: At most.
            stop_when_readable: File descriptor; when it is readable, a CPU stops early.

        Returns:
            How many steps were taken, and the prediction once it is complete.

        Raises:
            BadOutputError: The engine returned arrays of the wrong shape.
        """
        if self.running is None:
            self.running = engine.begin(*self._arrays(), self.part_rows, self.members)
        taken = self.running.advance(steps, stop_when_readable)
        if not self.running.is_complete:
            return taken, None
        return taken, self._checked(self.running.result())

    def _arrays(self) -> tuple[Array, Array]:
        """Return states [B, S] and actions [B, H, A] of all jobs, in their order."""
        jobs = self.jobs
        if len(jobs) == 1:
            return jobs[0].states, jobs[0].actions
        return np.concatenate([j.states for j in jobs]), np.concatenate([j.actions for j in jobs])

    def _checked(self, prediction: Prediction) -> Prediction:
        """Return the prediction, knowing whether it is finite.

        Raises:
            BadOutputError: Its arrays do not belong to the launch's rows.
        """
        rows, horizon = self.rows, self.horizon
        path = rows, horizon + 1, self.jobs[0].states.shape[1]
        expected = path, (rows, horizon), (rows, horizon), (rows,)
        p = prediction
        seen = p.states.shape, p.rewards.shape, p.dones.shape, p.uncertainty.shape
        if seen != expected:
            raise BadOutputError(
                f"states, rewards, dones and uncertainty have shapes {seen}, expected {expected}"
            )
        prediction.mark_finite()
        return prediction


@dataclass(frozen=True, slots=True)
class Ran(Generic[T]):
    """How a call ended: with a value or with an error, and after how many seconds."""

    value: T | None
    error: Exception | None
    seconds: float


def timed(call: Callable[[], T]) -> Ran[T]:
    """Make a call of the engine, whatever comes of it."""
    started = time.perf_counter()
    try:
        value = call()
    except Exception as exc:  # noqa: BLE001 (whatever the engine raises is reported)
        return Ran(None, exc, time.perf_counter() - started)
    return Ran(value, None, time.perf_counter() - started)
