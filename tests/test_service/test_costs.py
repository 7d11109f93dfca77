from __future__ import annotations

import pytest

from service.interface import Costs

COSTS = Costs((8, 16, 32), (0.001, 0.0015, 0.0025))


@pytest.mark.parametrize(
    ("rows", "steps", "seconds"),
    [(1, 1, 0.001), (8, 4, 0.004), (9, 1, 0.0015), (32, 2, 0.005), (70, 1, 0.006), (96, 1, 0.0075)],
    ids=str,
)
def test_a_launch_costs_its_shape_times_its_steps(rows: int, steps: int, seconds: float) -> None:
    assert COSTS.launch_s(rows, steps) == pytest.approx(seconds)


def test_waiting_work_is_counted_at_the_best_shape() -> None:
    assert COSTS.work_s(320) == pytest.approx(10 * 0.0025)


@pytest.mark.parametrize(
    ("seconds", "is_divisible", "rows"),
    [(0.0026, True, 32), (0.002, True, 16), (0.0001, True, 8), (0.0026, False, 8), (1, False, 32)],
    ids=str,
)
def test_a_launch_is_as_big_as_may_be_computed_at_once(
    seconds: float, is_divisible: bool, rows: int
) -> None:
    costs = Costs(COSTS.launch_rows, COSTS.step_s, is_divisible)

    assert costs.most_rows(seconds, horizon=16) == rows


def test_a_step_costs_what_the_next_bigger_launch_does() -> None:
    assert COSTS.step_s_of == [0.001] * 9 + [0.0015] * 8 + [0.0025] * 16
