"""What waits, and what is computed next. No tasks, no clocks: the scheduler owns both.

A launch holds whole jobs of one class and one horizon, as many rows as the engine may be occupied
with at once. It is computed in slices; between two of them another class may get its turn.

- Safety goes before predict, predict before rollout. No launch mixes classes, so a launch made
  for a safety check is never filled up with planner rows.
- A class has one open launch at a time: begun, not finished. It goes on with it before it begins
  another.
- A class that was passed over `max_passes` times in a row gets a slice. While a safety check
  waits, such a slice may only follow one of safety checks. Hence, between the arrival of a
  safety check and the start of the safety checks then waiting, at most one slice of another
  class is computed: the one in progress at its arrival, or one that was owed.
- A job bigger than a launch may be is one all the same: it is computed part by part.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from service.scheduling.jobs import Bounds, Job, JobClass, Lane, Launch


class Queues:
    """Bounded lanes, one a class. Used on the event loop's thread only.

    Args:
        bounds: Limits.
        most_rows: Horizon -> most rows that take their steps together.
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
        return self._lanes[job_class].rows + rows <= self.capacity[job_class]

    def add(self, job: Job) -> None:
        """Append a job to its lane; bounds are the caller's business."""
        lane = job.lane = self._lanes[job.job_class]
        jobs = lane.by_horizon.get(job.horizon)
        if jobs is None:
            jobs = lane.by_horizon[job.horizon] = OrderedDict()
        jobs[job.seq] = job
        lane.jobs += 1
        lane.rows += job.rows
        lane.work += job.rows * job.horizon

    def remove(self, job: Job) -> None:
        """Take a job out; nothing happens if it does not wait."""
        lane = job.lane
        if lane is None:
            return
        same_horizon = lane.by_horizon[job.horizon]
        del same_horizon[job.seq]
        if not same_horizon:
            del lane.by_horizon[job.horizon]
        job.lane = None
        lane.jobs -= 1
        lane.rows -= job.rows
        lane.work -= job.rows * job.horizon

    def put_back(self, jobs: list[Job]) -> None:
        """Return the jobs of a failed launch to the front, each to be launched alone."""
        for job in reversed(jobs):
            if not job.is_done:
                job.is_alone = True
                self.add(job)
                lane = self._lanes[job.job_class]
                lane.by_horizon[job.horizon].move_to_end(job.seq, last=False)

    def next_launch(self) -> Launch | None:
        """Return the launch that gets the next slice; None if nothing waits.

        It stays the open one of its class until `close`.
        """
        for lane in self._lanes.values():
            if lane.open is not None and lane.open.is_abandoned:
                lane.open = None
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

    def is_overtaken(self, launch: Launch) -> bool:
        """Tell whether a class more urgent than a launch's waits."""
        for job_class, lane in self._lanes.items():
            if job_class is launch.job_class:
                return False
            if lane.is_waiting:
                return True
        return False

    def close(self, launch: Launch) -> None:
        """Note that a launch is finished, or has failed."""
        self._lanes[launch.job_class].open = None

    def _begun(self, job_class: JobClass, lane: Lane) -> Launch:
        same_horizon = lane.head()
        horizon = next(iter(same_horizon.values())).horizon
        most = self._most_rows(horizon)
        jobs: list[Job] = []
        rows = 0
        for job in same_horizon.values():
            if jobs and (job.is_alone or rows + job.rows > most):
                break
            jobs.append(job)
            rows += job.rows
            if job.is_alone:
                break
        for job in jobs:
            self.remove(job)
        parts = -(-rows // most)
        return Launch(job_class, jobs, rows, horizon, -(-rows // parts))

    def _choose(self) -> JobClass | None:
        waiting = [job_class for job_class, lane in self._lanes.items() if lane.is_waiting]
        if not waiting:
            return None
        owed = [c for c in waiting if self._lanes[c].passes >= self.max_passes]
        is_safety_first = waiting[0] is JobClass.SAFETY and self._last is not JobClass.SAFETY
        if not owed or is_safety_first:
            return waiting[0]
        return max(owed, key=lambda c: self._lanes[c].passes)
