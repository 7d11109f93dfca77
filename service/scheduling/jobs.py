"""Jobs, how they end, and who counts that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from service.errors import ServiceError
from service.interface import Array, Prediction

REJECTIONS = ("queue_full", "too_late", "expired", "cancelled", "draining", "engine_down")
"""Why a job got no answer: label values of the rejection counter."""

ENGINE_FAULTS = ("exception", "bad_output", "non_finite", "out_of_memory", "canary")
"""Kinds of engine faults: label values of the error counter."""


class JobClass(StrEnum):
    """Classes of jobs, most urgent first."""

    SAFETY = "safety"
    PREDICT = "predict"
    ROLLOUT = "rollout"


@dataclass(frozen=True)
class Bounds:
    """Limits of queues, launches and canaries.

    Attributes:
        queue_rows: Most waiting rows per class.
        preempt_after_s: Longest time that the engine computes without looking for urgent work, if
            a launch can be so short: see `Costs.most_rows`.
        inline_s: Longest slice that is computed on the event loop.
        max_passes: Slices that may pass over a waiting class in a row.
        canary_interval_s: Time without a success after which the engine is tried.
        readiness_max_age_s: Time for which a success means that the service is ready.
    """

    queue_rows: Mapping[JobClass, int] = field(
        default_factory=lambda: dict.fromkeys(JobClass, 4096)
    )
    preempt_after_s: float = 0.002
    inline_s: float = 0.0
    max_passes: int = 8
    canary_interval_s: float = 5.0
    readiness_max_age_s: float = 15.0


class JobResult(NamedTuple):
    """A job's rows in the prediction of its launch, and what it took.

    Attributes:
        launched: Prediction of the whole launch.
        first: The job's first row in it.
        rows: How many are the job's.
        queue_s: From submission to the start of its launch.
        compute_s: Time in its launch.
    """

    launched: Prediction
    first: int
    rows: int
    queue_s: float
    compute_s: float

    @property
    def launch_rows(self) -> int:
        """Rows of the launch, those of other jobs included."""
        return len(self.launched.uncertainty)

    @property
    def prediction(self) -> Prediction:
        """The job's rows alone, in its order, as views."""
        return self.launched.part(self.first, self.first + self.rows)


Outcome = JobResult | ServiceError | None
"""How a job ended; None if it was cancelled."""

Group = tuple[int, int | None]
"""Horizon and members (None: all): what jobs of one class must have in common to share a launch."""


@dataclass(eq=False, slots=True)
class Job:
    """One submitted call. Changed on the event loop's thread only.

    Attributes:
        seq: Order of arrival.
        states: [B, S].
        actions: [B, H, A].
        rows: B.
        horizon: H.
        respond: Gets the outcome, exactly once, whatever happens.
        members: How many compute it, the first ones; None: all.
        submitted_s: When it came, on the clock for durations.
        deadline_s: When it must be answered, on the loop's clock.
        timeout_s: How long that was from submission.
        is_waiting: Whether it is in the queues.
        started_s: When its launch began, on the clock for durations; None before.
        is_alone: Whether it was in a launch that failed and must be launched by itself.
        is_done: Whether it has its outcome.
    """

    seq: int
    job_class: JobClass
    states: Array
    actions: Array
    rows: int
    horizon: int
    respond: Callable[[Outcome], None]
    members: int | None = None
    submitted_s: float = 0.0
    deadline_s: float = 0.0
    timeout_s: float = 0.0
    is_waiting: bool = False
    started_s: float | None = None
    is_alone: bool = False
    is_done: bool = False

    @property
    def group(self) -> Group:
        """What the jobs of its launch have in common with it."""
        return self.horizon, self.members


class Observer(Protocol):
    """Counts what happens; called on the event loop's thread. The scheduler knows no metrics."""

    def launched(self, rows: int, requests: int, seconds: float) -> None:
        """Note a launch that succeeded: its rows, the jobs that shared it, its time computing."""

    def waited(self, job_class: JobClass, row_seconds: float) -> None:
        """Note that jobs wait no more: the sum of their rows, each by how long it waited, in s."""

    def rejected(self, reason: str) -> None:
        """Note a job without an answer, for one of `REJECTIONS`."""

    def engine_failed(self, kind: str) -> None:
        """Note an engine fault, one of `ENGINE_FAULTS`."""
