"""What is queued and computed: jobs, launches, and the lanes that jobs wait in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from service.errors import ServiceError
from service.interface import Array, Prediction, Running


class JobClass(StrEnum):
    """Classes of jobs, most urgent first."""

    SAFETY = "safety"
    PREDICT = "predict"
    ROLLOUT = "rollout"


@dataclass(frozen=True)
class Bounds:
    """Limits of the queues.

    Attributes:
        queue_rows: Most waiting rows a class.
        preempt_after_s: Longest time that the engine computes without looking for urgent work.
        inline_s: Longest slice that is computed on the event loop.
        max_passes: Slices that may pass over a waiting class in a row.
        canary_interval_s: Time without a success after which the engine is tried.
    """

    queue_rows: Mapping[JobClass, int] = field(
        default_factory=lambda: dict.fromkeys(JobClass, 4096)
    )
    preempt_after_s: float = 0.002
    inline_s: float = 0.0
    max_passes: int = 8
    canary_interval_s: float = 5.0


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
        submitted_s: When it came, on the clock for durations.
        deadline_s: When it must be answered, on the loop's clock.
        timeout_s: How long that was from submission.
        lane: Where it waits; None if it does not.
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
    submitted_s: float = 0.0
    deadline_s: float = 0.0
    timeout_s: float = 0.0
    lane: Lane | None = None
    started_s: float | None = None
    is_alone: bool = False
    is_done: bool = False


@dataclass(eq=False, slots=True)
class Launch:
    """Jobs of one class and horizon, computed together in slices.

    Attributes:
        part_rows: Rows that take their steps together; a launch of more goes part by part.
        running: What the engine has begun; None before the first slice.
        taken: Steps computed, of all parts.
        seconds: Time in slices.
    """

    job_class: JobClass
    jobs: list[Job]
    rows: int
    horizon: int
    part_rows: int
    running: Running | None = None
    taken: int = 0
    seconds: float = 0.0

    @property
    def steps_left(self) -> int:
        """Steps of all parts that are left; at least one, for parts may have to be halved."""
        return max(1, self.horizon * -(-self.rows // self.part_rows) - self.taken)

    @property
    def work(self) -> int:
        """Rows x steps that are left."""
        return min(self.rows * self.horizon, self.steps_left * self.part_rows)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(job.is_done for job in self.jobs)


class Lane:
    """Waiting jobs of one class: by horizon, in order of arrival."""

    def __init__(self) -> None:
        # Ordered dicts, for a job that leaves from the middle must not cost a search.
        self.by_horizon: dict[int, OrderedDict[int, Job]] = {}
        self.jobs = 0
        self.rows = 0
        self.work = 0
        self.passes = 0
        self.open: Launch | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether it wants the engine."""
        return self.jobs > 0 or self.open is not None

    def head(self) -> OrderedDict[int, Job]:
        """Return the jobs that share the horizon of the one waiting longest."""
        return min(self.by_horizon.values(), key=lambda jobs: next(iter(jobs)))
