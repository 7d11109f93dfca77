"""A launch by itself: what is computed next, from which arrays, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.interface import Costs
from service.scheduling.jobs import Bounds, Job, JobClass
from service.scheduling.launches import BadOutputError, Launch, Slice
from tests.fakes.engine import FakeEngine, expected, rows, same_bits, slow_costs

ROLLOUT = JobClass.ROLLOUT


def launch_of(*counts: int, horizon: int = 4, part_rows: int | None = None) -> Launch:
    jobs = []
    for seq, count in enumerate(counts):
        states, actions = rows(count, horizon, seed=seq)
        jobs.append(Job(seq, ROLLOUT, states, actions, count, horizon, lambda outcome: None))
    return Launch(ROLLOUT, jobs, sum(counts), horizon, part_rows or sum(counts))


def test_what_a_launch_takes_shrinks_with_its_steps() -> None:
    launch = launch_of(6, part_rows=4)
    costs = slow_costs(0.25)  # a second a step of four rows
    seen = []
    for taken in range(9):
        launch.taken = taken
        seen.append(launch.steps_left)
        assert launch.seconds_left(costs) == launch.steps_left

    assert seen == [8, 7, 6, 5, 4, 3, 2, 1, 1]


@pytest.mark.parametrize(
    ("change", "quick", "expected"),
    [
        ({}, (False, False), Slice(3, 0.006, is_inline=False)),
        ({"part_rows": 1}, (False, False), Slice(7, 0.007, is_inline=False)),
        ({"taken": 18}, (False, False), Slice(2, 0.004, is_inline=False)),
        ({}, (True, False), Slice(3, 0.006, is_inline=True)),
        ({}, (True, True), Slice(6, 0.012, is_inline=True)),
        ({"is_overtaken": True}, (True, True), Slice(3, 0.006, is_inline=True)),
    ],
    ids=["worker", "rows", "last", "cannot stop", "stops for input", "overtaken"],
)
def test_a_slice_is_as_long_as_it_may_be(
    change: dict[str, Any], quick: tuple[bool, bool], expected: Slice
) -> None:
    """Up to 7 ms where others must wait for it, up to 24 ms at twice the time where it stops."""
    launch = replace(launch_of(2, horizon=20), **change)
    bounds = Bounds(preempt_after_s=0.007, inline_s=0.025)

    found = launch.next_slice(
        slow_costs(0.001), bounds, 2.0, is_quick=quick[0], may_be_long=quick[1]
    )

    assert tuple(found) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(
    ("due_in_s", "steps"),
    [(1.0, 6), (0.025, 6), (0.020, 5), (0.012, 3), (0.001, 3), (-1.0, 3)],
    ids=str,
)
def test_a_slice_on_the_loop_does_not_outlast_the_next_deadline(
    due_in_s: float, steps: int
) -> None:
    """Each step takes 4 ms at present; 7 ms of them, undisturbed, are always allowed."""
    bounds = Bounds(preempt_after_s=0.007, inline_s=0.025)

    found = launch_of(2, horizon=20).next_slice(
        slow_costs(0.001),
        bounds,
        2.0,
        is_quick=True,
        may_be_long=True,
        due_in_s=lambda: due_in_s,
    )

    assert found.steps == steps


def test_a_slice_longer_than_the_loop_may_wait_is_left_to_the_worker() -> None:
    launch, bounds = launch_of(2, horizon=20), Bounds(preempt_after_s=0.007, inline_s=0.011)

    found = launch.next_slice(slow_costs(0.001), bounds, 2.0, is_quick=True, may_be_long=False)

    assert tuple(found) == pytest.approx((3, 0.006, False))


@pytest.mark.parametrize(
    ("rows", "longest_s", "steps"),
    [(8, 0.0035, 3), (9, 0.001, 1), (16, 0.0031, 2), (32, 1.0, 16)],
    ids=str,
)
def test_a_slice_has_the_steps_that_fit_and_at_least_one(
    rows: int, longest_s: float, steps: int
) -> None:
    costs = Costs((8, 16, 32), (0.001, 0.0015, 0.0025))

    found = launch_of(rows, horizon=16).next_slice(
        costs, Bounds(preempt_after_s=longest_s), 1.0, is_quick=False, may_be_long=False
    )

    assert found.steps == steps


@pytest.mark.parametrize(("longest_s", "steps"), [(0.001, 16), (0.04, 32), (0.1, 48)])
def test_what_cannot_be_left_between_steps_takes_whole_horizons(
    longest_s: float, steps: int
) -> None:
    launch = launch_of(24, horizon=16, part_rows=8)
    costs = replace(slow_costs(0.000125), is_divisible=False)

    found = launch.next_slice(
        costs, Bounds(preempt_after_s=longest_s), 1.0, is_quick=False, may_be_long=False
    )

    assert found.steps == steps


def test_a_slice_whose_cost_is_unknown_is_all_that_is_left() -> None:
    launch = launch_of(3, horizon=20, part_rows=2)

    found = launch.next_slice(
        Costs((64,), (0.0,)), Bounds(), 1.0, is_quick=False, may_be_long=False
    )

    assert found == Slice(40, 0.0, is_inline=False)


def test_jobs_are_computed_in_their_order_slice_by_slice() -> None:
    launch, engine = launch_of(2, 1, 3), FakeEngine()

    ran = [launch.run(engine, steps) for steps in (1, 2, 5)]

    assert [taken for taken, _ in ran] == [1, 2, 1]
    assert [prediction is None for _, prediction in ran] == [True, True, False]
    states, actions = (
        np.concatenate([getattr(job, name) for job in launch.jobs])
        for name in ("states", "actions")
    )
    assert ran[-1][1] is not None
    assert same_bits(ran[-1][1], expected(states, actions))
    assert engine.launches == [(6, 4)]


@pytest.mark.parametrize("file", [None, 7])
def test_a_slice_stops_only_for_a_file(file: int | None) -> None:
    launch, engine = launch_of(1), FakeEngine()

    launch.run(engine, 4, file)

    assert engine.watched == [file is not None]


def test_output_of_other_rows_is_refused() -> None:
    launch, engine = launch_of(2), FakeEngine()
    engine.change = lambda prediction: prediction.part(0, 1)

    with pytest.raises(BadOutputError, match=r"\(1, 5, 3\).* expected \(\(2, 5, 3\)"):
        launch.run(engine, 4)
