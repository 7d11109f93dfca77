from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from service.interface import Costs
from service.scheduling.jobs import Bounds, Job, JobClass
from service.scheduling.launches import Launch
from service.scheduling.queues import Queues

SAFETY, PREDICT, ROLLOUT = JobClass


class Line:
    """Queues with jobs that need nothing but their size."""

    def __init__(self, launch_work: int = 1024, max_passes: int = 8) -> None:
        self.queues = Queues(Bounds(max_passes=max_passes, preempt_after_s=launch_work))
        row_counts = tuple(range(1, launch_work + 1))
        # A second per row and step, in launches that cannot be left: as much work as there is time.
        self._costs = Costs(row_counts, row_counts, is_divisible=False)
        self._seq = 0

    def add(
        self, job_class: JobClass, rows: int = 1, horizon: int = 4, members: int | None = None
    ) -> Job:
        self._seq += 1
        states = np.full((rows, 3), self._seq, np.float32)
        actions = np.zeros((rows, horizon, 2), np.float32)
        job = Job(
            self._seq, job_class, states, actions, rows, horizon, lambda outcome: None, members
        )
        self.queues.add(job)
        return job

    def next_launch(self) -> Launch | None:
        """Return the launch that gets the next slice."""
        return self.queues.next_launch(self._costs)

    def seconds_before(self, job_class: JobClass) -> float:
        return self.queues.seconds_before(job_class, self._costs)

    def next(self) -> Launch:
        """Return the next launch, as if it took one slice."""
        launch = self.next_launch()
        assert launch is not None
        self.queues.close(launch)
        return launch

    def end(self, job: Job) -> None:
        """Resolve a job, as the scheduler does."""
        job.is_done = True
        if job.is_waiting:
            self.queues.remove(job)

    def next_jobs(self) -> list[int]:
        return [job.seq for job in self.next().jobs]


def test_nothing_waits_nothing_is_launched() -> None:
    assert Line().next_launch() is None


def test_classes_go_in_order_of_urgency() -> None:
    line = Line()
    for job_class in (ROLLOUT, PREDICT, SAFETY):
        line.add(job_class)

    assert [line.next().job_class for _ in range(3)] == [SAFETY, PREDICT, ROLLOUT]


def test_a_safety_launch_is_not_filled_with_planner_rows() -> None:
    line = Line()
    line.add(ROLLOUT)
    safety = line.add(SAFETY)

    assert line.next().jobs == [safety]


def test_jobs_of_one_horizon_share_a_launch_up_to_the_budget() -> None:
    line = Line(launch_work=40)
    for rows, horizon in ((4, 4), (1, 8), (4, 4), (4, 4), (2, 4)):
        line.add(ROLLOUT, rows, horizon)

    assert [line.next_jobs() for _ in range(3)] == [[1, 3], [2], [4, 5]]


def test_jobs_by_different_members_share_no_launch() -> None:
    line = Line()
    for members in (1, None, 2, 1, None):
        line.add(ROLLOUT, members=members)

    launches = [line.next() for _ in range(3)]

    seen = [(launch.members, [job.seq for job in launch.jobs]) for launch in launches]
    assert seen == [(1, [1, 4]), (None, [2, 5]), (2, [3])]


def test_a_launch_by_fewer_members_may_have_more_rows_and_counts_for_less() -> None:
    queues, by_all = Queues(Bounds(preempt_after_s=16.0)), Costs((2, 4, 8, 16), (4, 8, 16, 32))
    costs = replace(by_all, fewer=(Costs((2, 4, 8, 16), (1, 2, 4, 8)),))
    states, actions = np.zeros((8, 3), np.float32), np.zeros((8, 2, 2), np.float32)
    for seq, members in enumerate((None, None, 1, 1)):
        queues.add(Job(seq, ROLLOUT, states, actions, 8, 2, lambda outcome: None, members))

    waiting_s = queues.seconds_before(ROLLOUT, costs)
    begun = []
    while (launch := queues.next_launch(costs)) is not None:
        queues.close(launch)
        begun.append((launch.members, launch.rows, launch.seconds_left(costs)))

    assert begun == [(None, 8, 32.0), (None, 8, 32.0), (1, 16, 16.0)]
    assert waiting_s == 80.0


def test_a_big_job_is_one_launch_of_equal_parts_and_others_get_in_between() -> None:
    line = Line(launch_work=16)
    big = line.add(ROLLOUT, rows=6, horizon=4)
    line.add(ROLLOUT, rows=2)

    begun = line.next_launch()
    assert begun is not None
    assert (begun.jobs, begun.rows, begun.part_rows, begun.steps_left) == ([big], 6, 3, 8)
    line.add(SAFETY)
    assert line.next().job_class is SAFETY
    assert line.next() is begun
    assert line.next_jobs() == [2]


def test_a_job_that_just_fits_shares_a_launch() -> None:
    line = Line(launch_work=40)
    for rows in (4, 4, 2, 1):
        line.add(ROLLOUT, rows, horizon=4)

    assert [line.next_jobs() for _ in range(2)] == [[1, 2, 3], [4]]


def test_the_horizon_of_whoever_waits_longest_goes_first() -> None:
    line = Line()
    for horizon in (8, 4, 8, 2):
        line.add(ROLLOUT, horizon=horizon)

    assert [line.next_jobs() for _ in range(3)] == [[1, 3], [2], [4]]


def test_capacity_is_that_of_each_class() -> None:
    bounds = Bounds(queue_rows={SAFETY: 3, PREDICT: 2, ROLLOUT: 1})

    capacities = [(c, lane.capacity) for c, lane in Queues(bounds).lanes.items()]

    assert capacities == [(SAFETY, 3), (PREDICT, 2), (ROLLOUT, 1)]


def test_a_launch_is_overtaken_by_what_is_more_urgent_only() -> None:
    line = Line(max_passes=1)
    for job_class in (PREDICT, ROLLOUT, PREDICT, SAFETY):
        line.add(job_class, horizon=1 + line.queues.depth(job_class))

    seen = []
    for _ in range(4):
        launch = line.next()
        seen.append((launch.job_class, launch.is_overtaken))
    assert seen == [(SAFETY, False), (PREDICT, False), (ROLLOUT, True), (PREDICT, False)]


def test_a_launch_that_was_begun_overtakes_as_one_that_waits() -> None:
    line = Line(max_passes=1)
    for job_class in (SAFETY, ROLLOUT):
        line.add(job_class)

    launches = [line.next_launch(), line.next_launch()]

    seen = [(launch.job_class, launch.is_overtaken) for launch in launches if launch is not None]
    assert seen == [(SAFETY, False), (ROLLOUT, True)]


def test_a_launch_is_overtaken_for_as_long_as_more_urgent_work_waits() -> None:
    line = Line(max_passes=1)
    line.add(PREDICT)
    launch = line.next_launch()
    assert launch is not None
    seen = [launch.is_overtaken]
    check = line.add(SAFETY)
    line.next()
    line.add(SAFETY)
    assert line.next_launch() is launch
    seen.append(launch.is_overtaken)
    line.next()
    assert line.next_launch() is launch
    seen.append(launch.is_overtaken)

    assert check.is_waiting is False
    assert seen == [False, True, False]


def test_a_launch_has_the_rows_that_the_present_costs_allow() -> None:
    """Costs may have been measured anew since the last launch of that horizon."""
    line, seen = Line(), []
    for step_s in (1.0, 2.0, 1.0):
        for _ in range(4):
            line.add(ROLLOUT, horizon=256)
        launch = line.queues.next_launch(Costs((1, 2, 4), (step_s, 2 * step_s, 4 * step_s), False))
        assert launch is not None
        seen.append(launch.rows)
        line.queues.close(launch)
        while line.next_launch() is not None:
            line.next()

    assert seen == [4, 2, 4]


def test_a_row_longer_than_the_budget_is_a_part_of_its_own() -> None:
    line = Line(launch_work=8)
    line.add(ROLLOUT, rows=2, horizon=20)

    launch = line.next()

    assert (launch.rows, launch.part_rows, launch.steps_left) == (2, 1, 40)


def test_depth_rows_and_seconds_follow_what_waits() -> None:
    line = Line(launch_work=16)
    big, small = line.add(ROLLOUT, rows=6, horizon=4), line.add(SAFETY, rows=2, horizon=3)

    def seen() -> list[float]:
        queues = line.queues
        return [queues.depth(ROLLOUT), queues.rows(ROLLOUT), line.seconds_before(ROLLOUT)]

    assert seen() == [1, 6, 30]
    line.queues.remove(small)
    assert seen() == [1, 6, 24]
    line.queues.remove(big)
    assert seen() == [0, 0, 0]


def test_a_lower_class_gets_a_launch_after_so_many_passes_each_time() -> None:
    line = Line(launch_work=4, max_passes=3)
    for _ in range(2):
        line.add(ROLLOUT)
    for _ in range(7):
        line.add(SAFETY)

    order = [line.next().job_class for _ in range(9)]

    assert order == [SAFETY] * 3 + [ROLLOUT] + [SAFETY] * 3 + [ROLLOUT] + [SAFETY]


def test_of_two_owed_classes_the_one_passed_over_more_often_goes_first() -> None:
    line = Line(launch_work=4, max_passes=1)
    for _ in range(4):
        for job_class in JobClass:
            line.add(job_class)

    order = [line.next().job_class for _ in range(8)]

    assert order == [SAFETY, PREDICT, SAFETY, ROLLOUT] * 2


def test_what_is_owed_to_predict_is_not_given_to_rollouts() -> None:
    """Safety checks leave a gap just when both others have been passed over often enough."""
    line = Line(launch_work=4, max_passes=3)
    line.add(PREDICT)
    line.add(ROLLOUT)
    for _ in range(3):
        line.add(SAFETY)

    assert [line.next().job_class for _ in range(5)] == [SAFETY] * 3 + [PREDICT, ROLLOUT]


def test_owed_classes_do_not_hold_a_safety_check_twice() -> None:
    line = Line(launch_work=4, max_passes=1)
    for _ in range(20):
        line.add(SAFETY)
        line.add(PREDICT)
        line.add(ROLLOUT)

    order = [line.next().job_class for _ in range(40)]

    others = [a is not SAFETY and b is not SAFETY for a, b in itertools.pairwise(order)]
    assert not any(others)
    assert {PREDICT, ROLLOUT} <= set(order[:6])


def test_no_class_starves_when_safety_and_predict_alternate() -> None:
    line = Line(launch_work=4, max_passes=3)
    line.add(ROLLOUT)
    order = []
    for turn in range(8):
        line.add((SAFETY, PREDICT)[turn % 2])
        order.append(line.next().job_class)

    assert ROLLOUT in order


def test_a_job_leaves_from_wherever_it_waits() -> None:
    line = Line()
    jobs = [line.add(ROLLOUT) for _ in range(5)]
    line.end(jobs[0])
    line.end(jobs[2])

    assert line.next_jobs() == [2, 4, 5]
    assert line.next_launch() is None


def test_jobs_of_a_failed_launch_come_back_first_and_alone() -> None:
    line = Line()
    for _ in range(3):
        line.add(ROLLOUT)
    failed = line.next()
    line.add(ROLLOUT)
    line.end(failed.jobs[1])

    line.queues.put_back(failed.jobs)

    assert [line.next_jobs() for _ in range(3)] == [[1], [3], [4]]


def test_a_launch_stays_open_and_goes_on_until_it_is_closed() -> None:
    line = Line(launch_work=4)
    line.add(ROLLOUT)
    line.add(ROLLOUT)
    first = line.next_launch()
    assert first is not None
    first.taken = 1

    check = line.add(SAFETY)
    urgent = line.next_launch()

    assert urgent is not None
    assert urgent.jobs == [check]
    line.queues.close(urgent)
    assert line.next_launch() is first
    assert line.seconds_before(ROLLOUT) == 3 + 4
    line.queues.close(first)
    second = line.next_launch()
    assert second is not None
    assert second is not first


def test_an_open_launch_that_nobody_waits_for_is_dropped() -> None:
    line = Line()
    left, stays = line.add(ROLLOUT), line.add(PREDICT)
    assert line.next().jobs == [stays]
    begun = line.next_launch()
    assert begun is not None
    assert begun.jobs == [left]
    line.end(left)

    assert line.next_launch() is None


def test_a_launch_goes_on_while_anybody_waits_for_it() -> None:
    line = Line()
    left, stays = line.add(ROLLOUT), line.add(ROLLOUT)
    begun = line.next_launch()
    line.end(left)

    assert line.next_launch() is begun
    line.end(stays)
    assert line.next_launch() is None


def test_jobs_that_came_back_alone_are_not_joined_by_others() -> None:
    line = Line()
    line.add(ROLLOUT)
    failed = line.next()
    line.queues.put_back(failed.jobs)
    line.add(ROLLOUT)

    assert [line.next_jobs() for _ in range(2)] == [[1], [2]]


@pytest.mark.parametrize("job_class", JobClass)
def test_alone_a_class_gets_every_slice(job_class: JobClass) -> None:
    line = Line(launch_work=4, max_passes=1)
    for _ in range(5):
        line.add(job_class)

    assert [line.next_jobs() for _ in range(5)] == [[1], [2], [3], [4], [5]]
