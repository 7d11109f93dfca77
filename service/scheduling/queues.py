"""What waits, and what is computed next. No tasks, no clocks: the scheduler owns both.

A launch holds whole jobs of one class, one horizon and one number of members, as many rows as the
engine may be occupied with at once. It is computed in slices; between two of them another class may
get its turn.

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

from service.interface import Costs
from service.scheduling.jobs import Bounds, Group, Job, JobClass
from service.scheduling.launches import Launch


class Lane:
    """Waiting jobs of one class: by horizon and members, in order of arrival.

    Args:
        job_class: Of all its jobs.
        capacity: Most rows that may wait; whoever adds jobs looks at it.

    Attributes:
        jobs: How many wait.
        rows: Their rows.
        by_group: Those of each horizon and number of members.
        rows_by_group: Their rows.
        seconds: Cached seconds of each group, dropped when its jobs change.
        open: The launch that was begun and is not finished.
        passes: Slices in a row that other lanes got while this one waited.
    """

    __slots__ = (
        "by_group",
        "capacity",
        "job_class",
        "jobs",
        "open",
        "passes",
        "rows",
        "rows_by_group",
        "seconds",
    )

    def __init__(self, job_class: JobClass, capacity: int) -> None:
        self.job_class = job_class
        self.capacity = capacity
        # Ordered dicts, for a job that leaves from the middle must not cost a search.
        self.by_group: dict[Group, OrderedDict[int, Job]] = {}
        self.jobs = 0
        self.rows = 0
        self.rows_by_group: dict[Group, int] = {}
        self.seconds: dict[Group, float] = {}
        self.open: Launch | None = None
        self.passes = 0


class Queues:
    """Bounded lanes, one per class. Used on the event loop's thread only.

    Args:
        bounds: Limits.

    Attributes:
        lanes: By class, most urgent first.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.lanes = {c: Lane(c, bounds.queue_rows[c]) for c in JobClass}
        self._bounds = bounds
        self._in_order = list(self.lanes.values())
        self._last: Lane | None = None
        self._costs: Costs | None = None
        self._most_rows: dict[Group, int] = {}  # with those costs

    def depth(self, job_class: JobClass) -> int:
        """Return how many jobs wait."""
        return self.lanes[job_class].jobs

    def rows(self, job_class: JobClass) -> int:
        """Return how many rows wait."""
        return self.lanes[job_class].rows

    def seconds_before(self, job_class: JobClass, costs: Costs) -> float:
        """Return how long what waits or is begun takes, of this class and more urgent ones.

        In launches as they will be made, undisturbed: on a GPU one row takes about as long as 256.

        Args:
            job_class: Least urgent one that counts.
            costs: Say how many rows may take their steps together, and how long those take.
        """
        seconds = 0.0
        for lane in self._in_order:
            seconds += self._lane_s(lane, costs)
            if lane.job_class is job_class:
                break
        return seconds

    def seconds(self, job_class: JobClass, costs: Costs) -> float:
        """Return how long what waits or is begun of one class takes: see `seconds_before`."""
        return self._lane_s(self.lanes[job_class], costs)

    def add(self, job: Job) -> None:
        """Append a job to its lane; the caller has checked the bounds."""
        lane, group = self.lanes[job.job_class], job.group
        jobs = lane.by_group.get(group)
        if jobs is None:
            jobs = lane.by_group[group] = OrderedDict()
        jobs[job.seq] = job
        job.is_waiting = True
        lane.jobs += 1
        lane.rows += job.rows
        lane.rows_by_group[group] = lane.rows_by_group.get(group, 0) + job.rows
        lane.seconds.pop(group, None)

    def remove(self, job: Job) -> None:
        """Take a job out that waits."""
        lane, group = self.lanes[job.job_class], job.group
        same_group = lane.by_group[group]
        del same_group[job.seq]
        lane.rows_by_group[group] -= job.rows
        lane.seconds.pop(group, None)
        if not same_group:
            del lane.by_group[group]
            del lane.rows_by_group[group]
        job.is_waiting = False
        lane.jobs -= 1
        lane.rows -= job.rows

    def put_back(self, jobs: list[Job]) -> None:
        """Return the jobs of a failed launch to the front, each to be launched alone."""
        for job in reversed(jobs):
            if not job.is_done:
                job.is_alone = True
                self.add(job)
                same_group = self.lanes[job.job_class].by_group[job.group]
                same_group.move_to_end(job.seq, last=False)

    def next_launch(self, costs: Costs) -> Launch | None:
        """Return the launch that gets the next slice; None if nothing waits.

        It stays the open one of its class until `close`.

        Args:
            costs: Say how many rows may take their steps together.
        """
        waiting = self._waiting()
        if not waiting:
            return None
        lane = self._chosen(waiting)
        for other in self._in_order:
            other.passes = other.passes + 1 if other is not lane and other in waiting else 0
        self._last = lane
        launch = lane.open
        if launch is None:
            launch = lane.open = self._begun(lane, costs)
        launch.is_overtaken = lane is not waiting[0]
        return launch

    def close(self, launch: Launch) -> None:
        """Note that a launch is finished, or has failed."""
        self.lanes[launch.job_class].open = None

    def _waiting(self) -> list[Lane]:
        """Return the lanes that want the engine, most urgent first."""
        waiting = []
        for lane in self._in_order:
            if lane.open is not None and lane.open.is_abandoned:
                lane.open = None
            if lane.jobs or lane.open is not None:
                waiting.append(lane)
        return waiting

    def _chosen(self, waiting: list[Lane]) -> Lane:
        """Return the lane that gets the next slice."""
        first = waiting[0]
        owed = [lane for lane in waiting if lane.passes >= self._bounds.max_passes]
        is_safety_first = first.job_class is JobClass.SAFETY and self._last is not first
        if not owed or is_safety_first:
            return first
        return max(owed, key=lambda lane: lane.passes)

    def _begun(self, lane: Lane, costs: Costs) -> Launch:
        """Return a launch of the lane's first jobs, which do not wait any more."""
        # Those of the group of the one waiting longest.
        group, same_group = min(lane.by_group.items(), key=lambda entry: next(iter(entry[1])))
        most = self._most(costs, group)
        jobs: list[Job] = []
        rows = 0
        for job in same_group.values():
            if jobs and (job.is_alone or rows + job.rows > most):
                break
            jobs.append(job)
            rows += job.rows
            if job.is_alone:
                break
        for job in jobs:
            self.remove(job)
        parts = -(-rows // most)
        horizon, members = group
        return Launch(lane.job_class, jobs, rows, horizon, -(-rows // parts), members)

    def _lane_s(self, lane: Lane, costs: Costs) -> float:
        """Return what the waiting jobs of a lane and its open launch take."""
        seconds = 0.0
        if lane.jobs:
            seconds += self._waiting_s(lane, costs)
        if lane.open is not None:
            seconds += lane.open.seconds_left(costs)
        return seconds

    def _waiting_s(self, lane: Lane, costs: Costs) -> float:
        """Return what the waiting jobs of a lane take; every request asks, so it is remembered."""
        if costs is not self._costs:
            self._renew(costs)
        seconds = lane.seconds
        if len(seconds) != len(lane.rows_by_group):
            for group, rows in lane.rows_by_group.items():
                if group not in seconds:
                    (horizon, members), most = group, self._most(costs, group)
                    seconds[group] = costs.of(members).launch_s(rows, horizon, most)
        return sum(seconds.values())

    def _renew(self, costs: Costs) -> None:
        """Forget what was known by other costs."""
        self._costs, self._most_rows = costs, {}
        for lane in self._in_order:
            lane.seconds.clear()

    def _most(self, costs: Costs, group: Group) -> int:
        """Return how many rows of a group may take their steps together."""
        if costs is not self._costs:
            self._renew(costs)
        most = self._most_rows.get(group)
        if most is None:
            horizon, members = group
            most = costs.of(members).most_rows(self._bounds.preempt_after_s, horizon)
            self._most_rows[group] = most
        return most
