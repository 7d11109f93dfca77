from __future__ import annotations

import pytest

from service.interface import Costs
from tests.fakes.engine import flat_costs

COSTS = Costs((8, 16, 32), (0.001, 0.0015, 0.0025))


@pytest.mark.parametrize(
    ("rows", "steps", "seconds"),
    [(1, 1, 0.001), (8, 4, 0.004), (9, 1, 0.0015), (32, 2, 0.005), (70, 1, 0.006), (96, 1, 0.0075)],
    ids=str,
)
def test_a_launch_costs_its_shape_times_its_steps(rows: int, steps: int, seconds: float) -> None:
    assert COSTS.launch_s(rows, steps) == pytest.approx(seconds)


def test_smaller_launches_are_filled_before_there_is_another() -> None:
    assert COSTS.launch_s(70, 2, most_rows=16) == pytest.approx(2 * (4 * 0.0015 + 0.001))
    assert COSTS.launch_s(32, 2, most_rows=16) == pytest.approx(2 * 2 * 0.0015)


@pytest.mark.parametrize(
    ("seconds", "is_divisible", "rows"),
    [(0.0026, True, 32), (0.002, True, 16), (0.0001, True, 8), (0.0026, False, 16), (1, False, 32)],
    ids=str,
)
def test_a_launch_is_as_big_as_may_be_computed_at_once(
    seconds: float, is_divisible: bool, rows: int
) -> None:
    costs = Costs(COSTS.launch_rows, COSTS.step_s, is_divisible)

    assert costs.most_rows(seconds, horizon=16) == rows


FLAT = flat_costs()


@pytest.mark.parametrize(
    ("rows", "horizon", "launches"),
    [(256, 16, 1), (256, 32, 1), (256, 64, 1), (4096, 16, 4), (4096, 32, 4), (4096, 64, 4)],
    ids=str,
)
def test_on_a_gpu_a_long_horizon_is_not_cut_into_the_smallest_launches(
    rows: int, horizon: int, launches: int
) -> None:
    """Its smallest launch takes as long as one of 256 rows; halving it would help nobody."""
    most = FLAT.most_rows(0.001, horizon)

    assert -(-rows // most) == launches
    assert FLAT.launch_s(most, horizon) <= max(0.001, 1.5 * FLAT.launch_s(1, horizon)) + 1e-9


@pytest.mark.parametrize(
    ("step_s", "horizon", "launches"),
    [
        ((1e-4, 1e-4, 1.2e-4, 1.49e-4), 64, 1),
        ((1e-4, 1e-4, 1.2e-4, 1.51e-4), 64, 4),
        ((1e-4, 1e-4, 1.2e-4, 4e-4), 2, 1),
        ((5.3e-5, 5.6e-5, 1.29e-4, 3.76e-4), 64, 16),
    ],
    ids=["little longer", "more than a little", "short enough", "H200"],
)
def test_the_biggest_launch_is_whole_if_it_takes_little_longer_than_the_smallest(
    step_s: tuple[float, ...], horizon: int, launches: int
) -> None:
    """The H200's times are those of docs/benchmarks.md, by 16 steps."""
    costs = Costs(FLAT.launch_rows, step_s, is_divisible=False)

    most = costs.most_rows(0.001, horizon)

    assert 4096 / most == launches
    assert costs.job_s(4096, horizon, 0.001) == pytest.approx(
        launches * costs.launch_s(most, horizon)
    )


def test_a_job_costs_the_launches_that_it_is_divided_into() -> None:
    assert FLAT.job_s(4096, 64, 0.002) == pytest.approx(4 * 64 * 1.5e-4)
    assert COSTS.job_s(70, 1, 0.0026) == pytest.approx(3 * 0.0025)
    assert COSTS.job_s(8, 4, 0.0026) == pytest.approx(0.004)


def test_a_step_costs_what_the_next_bigger_launch_does() -> None:
    assert COSTS.step_s_of == [0.001] * 9 + [0.0015] * 8 + [0.0025] * 16
