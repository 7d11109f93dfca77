from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.conformal import Guarantee, conformal_threshold, has_values_beyond


def test_a_conformal_threshold_keeps_its_guarantee_on_new_episodes() -> None:
    """Over many draws the share of new scores below the threshold is at most alpha."""
    rng = np.random.default_rng(0)
    missed = []
    for _ in range(300):
        threshold = conformal_threshold(rng.beta(5, 1, 300), 0.05)
        assert threshold is not None
        missed.append(rng.beta(5, 1, 2000) < threshold)
    assert np.mean(missed) == pytest.approx(0.05, abs=0.004)
    assert np.mean(missed) <= 0.052


def test_too_few_episodes_carry_no_guarantee() -> None:
    assert conformal_threshold(np.linspace(0, 1, 98), 0.01) is None
    assert conformal_threshold(np.linspace(0.2, 1, 99), 0.01) == pytest.approx(0.2)


def guarantee(alpha: float, episodes: int, threshold: float | None = None) -> Guarantee:
    return Guarantee(alpha=alpha, lead_s=0.2, episodes=episodes, threshold=threshold)


@settings(deadline=None)
@given(st.floats(0.001, 0.999) | st.integers(2, 500).map(lambda n: 1 / n))
def test_the_needed_episodes_are_the_fewest_that_carry_a_guarantee(alpha: float) -> None:
    needed = guarantee(alpha, 0).episodes_needed

    assert conformal_threshold(np.full(needed, 0.5), alpha) == 0.5
    assert conformal_threshold(np.full(needed - 1, 0.5), alpha) is None


@pytest.mark.parametrize(("alpha", "needed"), [(0.01, 99), (0.05, 19), (0.5, 1), (0.001, 999)])
def test_the_needed_episodes_of_usual_rates(alpha: float, needed: int) -> None:
    assert guarantee(alpha, 0).episodes_needed == needed


@pytest.mark.parametrize(
    ("threshold", "served", "holds"),
    [
        (0.6, 0.6, True),
        (0.6, 0.1, True),
        (0.6, 0.61, False),
        (0.6, None, False),
        (None, 0.1, False),
        (None, None, False),
    ],
)
def test_a_guarantee_holds_for_thresholds_up_to_its_own(
    threshold: float | None, served: float | None, holds: bool
) -> None:
    assert guarantee(0.01, 99, threshold).holds_for(served) is holds


@pytest.mark.parametrize(("alpha", "episodes"), [(0.01, 98), (0.01, 0), (0.5, 0), (1e-320, 1)])
def test_a_guarantee_of_too_few_episodes_cannot_be_made(alpha: float, episodes: int) -> None:
    with pytest.raises(ValueError, match=r"threshold is 0\.6, but must be null: episodes is"):
        guarantee(alpha, episodes, 0.6)


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1000, 0.999, True), (999, 0.999, False), (20, 0.95, True), (0, 0.0, False), (9, 1.0, False)],
)
def test_a_quantile_needs_a_value_beyond_it(count: int, share: float, expected: bool) -> None:
    assert has_values_beyond(count, share) is expected
