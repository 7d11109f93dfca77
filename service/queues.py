"""What waits, and what is launched next. No tasks, no clocks: the scheduler owns both.

A launch holds jobs of one class and one horizon, up to a budget of rows x steps.

- Safety goes before predict, predict before rollout. No launch mixes classes, so a launch made
  for a safety check is never filled up with planner rows.
- A class that was passed over `max_passes` times in a row gets a launch. While a safety check
  waits, such a launch may only follow a launch of safety checks. Hence, between the arrival of a
  safety check and the launch of the safety checks then waiting, at most one launch of another
  class runs: the one in progress at its arrival, or one that was owed.
- A job bigger than the budget is split by rows and keeps its place at the front of its class, so
  that the other classes get in between its pieces.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from service.interface import Array, Prediction


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
        launch_work: Most rows x steps of a launch.
        max_passes: Launches that may pass over a waiting class in a row.
        canary_interval_s: Time without a success after which the engine is tried.
    """

    queue_rows: Mapping[JobClass, int] = field(
        default_factory=lambda: dict.fromkeys(JobClass, 4096)
    )
    launch_work: int = 1024
    max_passes: int = 8
    canary_interval_s: float = 5.0


@dataclass(frozen=True, slots=True)
class JobResult:
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
        future: Resolved exactly once, whatever happens.
        submitted_s: When it came, on the timer for durations.
        timer: Answers it when its deadline passes.
        taken: Rows handed to launches so far.
        is_queued: Whether it has rows that wait.
        is_alone: Whether it was in a launch that failed and must be launched by itself.
    """

    seq: int
    job_class: JobClass
    states: Array
    actions: Array
    future: asyncio.Future[JobResult]
    submitted_s: float
    timer: asyncio.TimerHandle | None = None
    taken: int = 0
    is_queued: bool = False
    is_alone: bool = False
    started_s: float | None = None
    compute_s: float = 0.0
    launch_rows: int = 0
    parts: list[Prediction] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows of the whole job."""
        return len(self.states)

    @property
    def horizon(self) -> int:
        """Steps a row."""
        horizon: int = self.actions.shape[1]
        return horizon

    @property
    def waiting_rows(self) -> int:
        """Rows not yet handed to a launch."""
        return self.rows - self.taken


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` to `stop` of a job."""

    job: Job
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Launch:
    """What one engine call takes: pieces of jobs of one class and horizon."""

    job_class: JobClass
    pieces: list[Piece]

    @property
    def rows(self) -> int:
        """Rows of all pieces."""
        return sum(piece.stop - piece.start for piece in self.pieces)


class _Lane:
    """Waiting jobs of one class: by horizon, in order of arrival."""

    def __init__(self) -> None:
        # Ordered dicts, for a job that leaves from the middle must not cost a search.
        self.by_horizon: dict[int, OrderedDict[int, Job]] = {}
        self.jobs = 0
        self.rows = 0
        self.work = 0
        self.passes = 0

    def head(self) -> OrderedDict[int, Job]:
        """Return the jobs that share the horizon of the one waiting longest."""
        return min(self.by_horizon.values(), key=lambda jobs: next(iter(jobs)))


class Queues:
    """Bounded lanes, one a class. Used on the event loop's thread only.

    Args:
        bounds: Limits.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.capacity = dict(bounds.queue_rows)
        self.launch_work = bounds.launch_work
        self.max_passes = bounds.max_passes
        self._lanes = {job_class: _Lane() for job_class in JobClass}
        self._last: JobClass | None = None

    def depth(self, job_class: JobClass) -> int:
        """Return how many jobs wait."""
        return self._lanes[job_class].jobs

    def rows(self, job_class: JobClass) -> int:
        """Return how many rows wait."""
        return self._lanes[job_class].rows

    def work_before(self, job_class: JobClass) -> int:
        """Return the rows x steps that wait in this class and in more urgent ones."""
        urgent = list(JobClass)[: list(JobClass).index(job_class) + 1]
        return sum(self._lanes[other].work for other in urgent)

    def has_room(self, job_class: JobClass, rows: int) -> bool:
        """Tell whether so many more rows may wait."""
        return self.rows(job_class) + rows <= self.capacity[job_class]

    def add(self, job: Job) -> None:
        """Append a job to its lane; bounds are the caller's business."""
        lane = self._lanes[job.job_class]
        lane.by_horizon.setdefault(job.horizon, OrderedDict())[job.seq] = job
        job.is_queued = True
        lane.jobs += 1
        self._count(job, job.waiting_rows)

    def remove(self, job: Job) -> None:
        """Take a job out; nothing happens if it does not wait."""
        if not job.is_queued:
            return
        lane = self._lanes[job.job_class]
        same_horizon = lane.by_horizon[job.horizon]
        del same_horizon[job.seq]
        if not same_horizon:
            del lane.by_horizon[job.horizon]
        job.is_queued = False
        lane.jobs -= 1
        self._count(job, -job.waiting_rows)

    def put_back(self, pieces: list[Piece]) -> None:
        """Return the pieces of a failed launch to the front, each to be launched alone."""
        for piece in reversed(pieces):
            job = piece.job
            if job.future.done():
                continue
            self.remove(job)
            job.taken = piece.start
            job.is_alone = True
            self.add(job)
            self._lanes[job.job_class].by_horizon[job.horizon].move_to_end(job.seq, last=False)

    def next_launch(self) -> Launch | None:
        """Take the pieces that are to be launched now; None if nothing waits."""
        for lane in self._lanes.values():
            self._drop_done(lane)
        chosen = self._choose()
        if chosen is None:
            return None
        for job_class, lane in self._lanes.items():
            lane.passes = lane.passes + 1 if lane.jobs and job_class is not chosen else 0
        self._last = chosen
        pieces = [self._take(job, rows) for job, rows in self._fill(self._lanes[chosen])]
        return Launch(chosen, pieces)

    def _drop_done(self, lane: _Lane) -> None:
        """Take out resolved jobs at the heads, whose callbacks have yet to do it."""
        for jobs in list(lane.by_horizon.values()):
            for job in list(self._leading_done(jobs)):
                self.remove(job)

    @staticmethod
    def _leading_done(jobs: OrderedDict[int, Job]) -> Iterator[Job]:
        for job in jobs.values():
            if not job.future.done():
                return
            yield job

    def _choose(self) -> JobClass | None:
        waiting = [job_class for job_class in JobClass if self._lanes[job_class].jobs]
        if not waiting:
            return None
        owed = [c for c in waiting[1:] if self._lanes[c].passes >= self.max_passes]
        is_safety_first = waiting[0] is JobClass.SAFETY and self._last is not JobClass.SAFETY
        if not owed or is_safety_first:
            return waiting[0]
        return max(owed, key=lambda c: self._lanes[c].passes)

    def _fill(self, lane: _Lane) -> list[tuple[Job, int]]:
        """Choose jobs of one horizon, and how many rows of each, within the budget."""
        jobs = lane.head()
        room = max(1, self.launch_work // next(iter(jobs.values())).horizon)
        chosen: list[tuple[Job, int]] = []
        for job in jobs.values():
            if job.future.done():
                continue
            is_first = not chosen
            if not is_first and (job.is_alone or job.waiting_rows > room):
                break
            rows = min(job.waiting_rows, room)
            chosen.append((job, rows))
            room -= rows
            if job.is_alone or not room:
                break
        return chosen

    def _take(self, job: Job, rows: int) -> Piece:
        piece = Piece(job, job.taken, job.taken + rows)
        if rows == job.waiting_rows:
            self.remove(job)
        else:
            self._count(job, -rows)
        job.taken += rows
        return piece

    def _count(self, job: Job, rows: int) -> None:
        lane = self._lanes[job.job_class]
        lane.rows += rows
        lane.work += rows * job.horizon
