from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.outcomes import crash_probability, crash_probability_by_step, expected_returns, survival

hazards = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20)


@given(hazards)
def test_crash_probability_is_one_minus_the_product_of_survivals(dones: list[float]) -> None:
    expected = 1 - np.prod([1 - d for d in dones])

    assert crash_probability(np.array(dones)) == pytest.approx(expected, abs=1e-12)


@given(hazards)
def test_crash_probability_by_step_never_falls_and_complements_survival(dones: list[float]) -> None:
    by_step = crash_probability_by_step(np.array(dones))

    assert (np.diff(by_step) >= 0).all()
    assert by_step == pytest.approx(1 - survival(np.array(dones)), abs=1e-12)


def test_tiny_hazards_keep_their_digits() -> None:
    assert crash_probability(np.full(16, 1e-9)) == pytest.approx(1.6e-8, rel=1e-6)


def test_a_certain_end_is_probability_one() -> None:
    assert crash_probability_by_step(np.array([0.0, 1.0, 0.5])).tolist() == [0.0, 1.0, 1.0]


def test_returns_stop_counting_with_survival() -> None:
    rewards, dones = np.array([[1.0, 1.0, 1.0]]), np.array([[0.5, 1.0, 0.0]])

    # Step 1 counts fully, step 2 if alive (0.5), step 3 never.
    assert expected_returns(rewards, dones).tolist() == [1.5]
