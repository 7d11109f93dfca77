"""Which jobs are accepted: what has no room, or would be late, is refused at once."""

from __future__ import annotations

from service.errors import DeadlineExceededError, OverloadedError, UnavailableError
from service.interface import EngineLike
from service.scheduling.health import Health
from service.scheduling.jobs import Bounds, JobClass, Observer
from service.scheduling.queues import Queues

OVERHEAD_S = 0.002
"""What a request takes beside the model, and how exactly deadlines are kept: nobody can count on
an answer within less than this more than the model's own time."""


class Admission:
    """Decides when a job arrives, by what waits and by what that costs.

    Args:
        engine: Knows its costs.
        bounds: How long a launch may occupy the engine.
        queues: What waits.
        health: Says whether jobs are accepted at all, and the engine's pace.
        observer: Counts refusals.
    """

    def __init__(
        self,
        engine: EngineLike,
        bounds: Bounds,
        queues: Queues,
        health: Health,
        observer: Observer,
    ) -> None:
        self._engine = engine
        self._bounds = bounds
        self._queues = queues
        self._health = health
        self._observer = observer

    def check(
        self,
        rows: int,
        horizon: int,
        job_class: JobClass,
        timeout_s: float,
        members: int | None = None,
    ) -> None:
        """Return if a job is accepted.

        Args:
            rows: B.
            horizon: H.
            job_class: Decides its queue.
            timeout_s: Time until its deadline.
            members: How many compute it; None: all.

        Raises:
            OverloadedError: The queue of its class is full, or its answer would be late.
            UnavailableError: The service is starting or draining, or the engine is down.
            DeadlineExceededError: `timeout_s` is not positive.
        """
        refusal = self._health.refusal
        if refusal is not None:
            reason, message = refusal
            self._observer.rejected(reason)
            raise UnavailableError(message)
        if timeout_s <= 0:
            self._observer.rejected("expired")
            raise DeadlineExceededError("the deadline had passed on arrival")
        backlog_s = self.backlog_s(job_class)
        lane = self._queues.lanes[job_class]
        if lane.rows + rows > lane.capacity:
            self._observer.rejected("queue_full")
            raise OverloadedError(
                f"the queue for {job_class} holds {lane.rows} of {lane.capacity} rows and has no "
                f"room for {rows} more",
                retry_after_s=backlog_s,
            )
        if not backlog_s:
            return  # the first in line is always tried
        total_s = backlog_s + self._health.pace * self._job_s(rows, horizon, members)
        if total_s > timeout_s:
            self._observer.rejected("too_late")
            raise OverloadedError(
                f"an answer would take {total_s:.3g} s, of which {backlog_s:.3g} s for work "
                f"before it; the deadline is in {timeout_s:g} s",
                retry_after_s=min(backlog_s, total_s - timeout_s),
            )

    def least_s(self, rows: int, horizon: int, members: int | None = None) -> float:
        """Return the shortest deadline that is kept for a job if nothing else does anything."""
        return self._job_s(rows, horizon, members) + OVERHEAD_S

    def backlog_s(self, job_class: JobClass) -> float:
        """Return how long the work before a new job of this class takes, as far as known."""
        return self._health.pace * self._queues.seconds_before(job_class, self._engine.costs)

    def queue_s(self, job_class: JobClass) -> float:
        """Return how long what waits or is begun of this class takes, as far as known."""
        return self._health.pace * self._queues.seconds(job_class, self._engine.costs)

    def _job_s(self, rows: int, horizon: int, members: int | None) -> float:
        costs = self._engine.costs.of(members)
        return costs.job_s(rows, horizon, self._bounds.preempt_after_s)
