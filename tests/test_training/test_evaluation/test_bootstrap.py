from __future__ import annotations

import numpy as np
import pytest

from training.evaluation.bootstrap import (
    draw_counts,
    percentile_interval,
    ratio_draws,
    share_interval,
)


def test_resamples_hold_as_many_episodes_as_there_are_and_can_be_drawn_again() -> None:
    counts = draw_counts(7, 50)
    assert (counts.sum(1) == 7).all()
    assert (counts == draw_counts(7, 50)).all()
    assert (counts != draw_counts(7, 50, seed=1)).any()


def test_percentile_interval_is_the_middle_of_what_exists() -> None:
    values = np.append(np.arange(1001.0), np.nan)
    assert percentile_interval(values) == pytest.approx((25, 975))
    assert percentile_interval(np.array([np.nan])) == (None, None)


def test_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    mean, drawn = ratio_draws(values, np.ones(400), draw_counts(400, 2000))
    low, high = percentile_interval(drawn)
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(values.mean() - 1.96 * 2 / 20, abs=0.03)
    assert high == pytest.approx(values.mean() + 1.96 * 2 / 20, abs=0.03)


def test_ratio_of_nothing_is_none() -> None:
    assert ratio_draws(np.zeros(3), np.zeros(3), draw_counts(3, 2))[0] is None


@pytest.mark.parametrize(
    ("hits", "count", "interval"),
    [
        # Brown, Cai, DasGupta 2001, "Interval estimation for a binomial proportion".
        pytest.param(0, 20, (0.0, 0.161), id="none"),
        pytest.param(20, 20, (0.839, 1.0), id="all"),
        pytest.param(10, 20, (0.299, 0.701), id="half"),
    ],
)
def test_share_interval_matches_known_values(
    hits: int, count: int, interval: tuple[float, float]
) -> None:
    assert share_interval(hits, count) == pytest.approx(interval, abs=5e-4)


def test_share_of_nothing_has_no_interval() -> None:
    assert share_interval(0, 0) == (None, None)
