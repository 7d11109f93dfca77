"""What is queued and computed: jobs, pieces of them, launches, and the lanes they wait in."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

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
    """A job's own rows of the predictions, and what it took.

    Attributes:
        prediction: The job's rows, in its order.
        queue_s: From submission to the start of its first launch.
        compute_s: Time in launches.
        launches: How many launches it took part in.
        launch_rows: Rows of the largest of them, those of other jobs included.
    """

    prediction: Prediction
    queue_s: float
    compute_s: float
    launches: int
    launch_rows: int


@dataclass(eq=False, slots=True)
class Job:
    """One submitted call. Changed on the event loop's thread only.

    Attributes:
        seq: Order of arrival.
        states: [B, S].
        actions: [B, H, A].
        rows: B, of the whole job.
        horizon: H.
        future: Resolved exactly once, whatever happens.
        submitted_s: When it came, on the timer for durations.
        timer: Answers it when its deadline passes.
        taken: Rows handed to launches so far.
        lane: Where its rows wait; None if none do.
        is_alone: Whether it was in a launch that failed and must be launched by itself.
    """

    seq: int
    job_class: JobClass
    states: Array
    actions: Array
    rows: int
    horizon: int
    future: asyncio.Future[JobResult]
    submitted_s: float
    timer: asyncio.TimerHandle | None = None
    taken: int = 0
    lane: Lane | None = None
    is_alone: bool = False
    started_s: float | None = None
    compute_s: float = 0.0
    launch_rows: int = 0
    parts: list[Prediction] = field(default_factory=list)

    @property
    def waiting_rows(self) -> int:
        """Rows not yet handed to a launch."""
        return self.rows - self.taken


class Piece(NamedTuple):
    """Rows `start` to `stop` of a job."""

    job: Job
    start: int
    stop: int


@dataclass(eq=False, slots=True)
class Launch:
    """Pieces of jobs of one class and horizon, computed together in slices.

    Attributes:
        running: What the engine has begun; None before the first slice.
        taken: Steps computed.
        seconds: Time in slices.
    """

    job_class: JobClass
    pieces: list[Piece]
    rows: int
    horizon: int
    running: Running | None = None
    taken: int = 0
    seconds: float = 0.0

    @property
    def work(self) -> int:
        """Rows x steps that are left."""
        return self.rows * max(0, self.horizon - self.taken)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for it any more."""
        return all(piece.job.future.done() for piece in self.pieces)


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
