"""What waits, and what is computed next. No tasks, no clocks: the scheduler owns both.

A launch holds jobs of one class and one horizon, as many rows as the engine may be occupied with
at once. It is computed in slices; between two of them another class may get its turn.

- Safety goes before predict, predict before rollout. No launch mixes classes, so a launch made
  for a safety check is never filled up with planner rows.
- A class has one open launch at a time: begun, not finished. It goes on with it before it begins
  another.
- A class that was passed over `max_passes` times in a row gets a slice. While a safety check
  waits, such a slice may only follow one of safety checks. Hence, between the arrival of a
  safety check and the start of the safety checks then waiting, at most one slice of another
  class is computed: the one in progress at its arrival, or one that was owed.
- A job bigger than a launch is split by rows and keeps its place at the front of its class.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from service.jobs import Bounds, Job, JobClass, Lane, Launch, Piece


class Queues:
    """Bounded lanes, one a class. Used on the event loop's thread only.

    Args:
        bounds: Limits.
        most_rows: Horizon -> most rows of a launch.
    """

    def __init__(self, bounds: Bounds, most_rows: Callable[[int], int]) -> None:
        self.capacity = dict(bounds.queue_rows)
        self.max_passes = bounds.max_passes
        self._most_rows = most_rows
        self._lanes = {job_class: Lane() for job_class in JobClass}
        self._last: JobClass | None = None

    def depth(self, job_class: JobClass) -> int:
        """Return how many jobs wait."""
        return self._lanes[job_class].jobs

    def rows(self, job_class: JobClass) -> int:
        """Return how many rows wait."""
        return self._lanes[job_class].rows

    def work_before(self, job_class: JobClass) -> int:
        """Return the rows x steps that wait or are begun, of this class and more urgent ones."""
        work = 0
        for other, lane in self._lanes.items():
            work += lane.work + (lane.open.work if lane.open is not None else 0)
            if other is job_class:
                break
        return work

    def has_room(self, job_class: JobClass, rows: int) -> bool:
        """Tell whether so many more rows may wait."""
        return self.rows(job_class) + rows <= self.capacity[job_class]

    def add(self, job: Job) -> None:
        """Append a job to its lane; bounds are the caller's business."""
        lane = job.lane = self._lanes[job.job_class]
        jobs = lane.by_horizon.get(job.horizon)
        if jobs is None:
            jobs = lane.by_horizon[job.horizon] = OrderedDict()
        jobs[job.seq] = job
        rows = job.rows - job.taken
        lane.jobs += 1
        lane.rows += rows
        lane.work += rows * job.horizon

    def remove(self, job: Job) -> None:
        """Take a job out; nothing happens if it does not wait."""
        lane = job.lane
        if lane is None:
            return
        same_horizon = lane.by_horizon[job.horizon]
        del same_horizon[job.seq]
        if not same_horizon:
            del lane.by_horizon[job.horizon]
        rows = job.rows - job.taken
        job.lane = None
        lane.jobs -= 1
        lane.rows -= rows
        lane.work -= rows * job.horizon

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
        """Return the launch that gets the next slice; None if nothing waits.

        It stays the open one of its class until `close`.
        """
        for lane in self._lanes.values():
            self._drop_done(lane)
        chosen = self._choose()
        if chosen is None:
            return None
        for job_class, lane in self._lanes.items():
            lane.passes = lane.passes + 1 if lane.is_waiting and job_class is not chosen else 0
        self._last = chosen
        lane = self._lanes[chosen]
        if lane.open is None:
            lane.open = self._begun(chosen, lane)
        return lane.open

    def close(self, launch: Launch) -> None:
        """Note that a launch is finished, or has failed."""
        self._lanes[launch.job_class].open = None

    def _begun(self, job_class: JobClass, lane: Lane) -> Launch:
        pieces = [self._take(job, rows) for job, rows in self._fill(lane)]
        rows = sum(piece.stop - piece.start for piece in pieces)
        return Launch(job_class, pieces, rows, pieces[0].job.horizon)

    def _drop_done(self, lane: Lane) -> None:
        """Take out what nobody waits for: resolved jobs whose callbacks have yet to do it."""
        if lane.open is not None and lane.open.is_abandoned:
            lane.open = None
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
        waiting = [job_class for job_class, lane in self._lanes.items() if lane.is_waiting]
        if not waiting:
            return None
        owed = [c for c in waiting[1:] if self._lanes[c].passes >= self.max_passes]
        is_safety_first = waiting[0] is JobClass.SAFETY and self._last is not JobClass.SAFETY
        if not owed or is_safety_first:
            return waiting[0]
        return max(owed, key=lambda c: self._lanes[c].passes)

    def _fill(self, lane: Lane) -> list[tuple[Job, int]]:
        """Choose jobs of one horizon, and how many rows of each, within the budget."""
        jobs = lane.head()
        room = self._most_rows(next(iter(jobs.values())).horizon)
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
        if piece.stop == job.rows:
            self.remove(job)
        elif job.lane is not None:
            job.lane.rows -= rows
            job.lane.work -= rows * job.horizon
        job.taken += rows
        return piece
