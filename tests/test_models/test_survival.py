from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.survival import (
    crash_probability,
    crash_probability_by_step,
    expected_returns,
    log_step_survival,
    survival,
)

hazards = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20)


@settings(deadline=None)
@given(hazards)
def test_crash_probability_is_one_minus_the_product_of_survivals(dones: list[float]) -> None:
    expected = 1 - np.prod([1 - d for d in dones])

    assert float(crash_probability(np.array(dones))) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
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


@settings(deadline=None)
@given(hazards, st.data())
def test_returns_count_a_step_by_the_chance_to_be_alive_before_it(
    dones: list[float], data: st.DataObject
) -> None:
    rewards = data.draw(
        st.lists(st.floats(-10, 10, width=32), min_size=len(dones), max_size=len(dones))
    )
    expected, alive = 0.0, 1.0
    for reward, done in zip(rewards, dones, strict=True):
        expected += alive * reward
        alive *= 1 - done

    returns = float(expected_returns(np.array(rewards), np.array(dones)))
    assert returns == pytest.approx(expected, abs=1e-9)


def test_sequences_of_a_batch_are_counted_apart() -> None:
    dones = np.array([[0.5, 0.0], [0.25, 1.0]], np.float32)
    rewards = np.array([[1.0, 2.0], [4.0, 8.0]], np.float32)

    assert crash_probability(dones).shape == expected_returns(rewards, dones).shape == (2,)
    assert survival(dones) == pytest.approx(np.array([[0.5, 0.5], [0.75, 0.0]]))
    assert crash_probability_by_step(dones) == pytest.approx(np.array([[0.5, 0.5], [0.25, 1.0]]))
    assert crash_probability(dones) == pytest.approx([0.5, 1.0])
    assert expected_returns(rewards, dones) == pytest.approx([2.0, 10.0])


def test_one_step_returns_its_reward() -> None:
    assert expected_returns(np.array([[3.0]]), np.array([[0.75]])).tolist() == [3.0]


@pytest.mark.parametrize("hazard", [-1e-9, 1 + 1e-9, 1.5, -np.inf, np.inf, np.nan])
def test_what_is_no_hazard_has_no_log_survival_of_at_most_nothing(hazard: float) -> None:
    assert not log_step_survival(np.array([hazard]))[0] <= 0


@settings(deadline=None)
@given(st.floats(0, 1))
def test_a_hazard_has_a_log_survival_of_at_most_nothing(hazard: float) -> None:
    assert log_step_survival(np.array([hazard]))[0] <= 0


def test_hazards_of_32_bits_are_summed_in_64() -> None:
    dones = np.full(1000, 1e-4, np.float32)

    assert log_step_survival(dones).dtype == np.float64
    exact = -np.expm1(1000 * np.log1p(-float(dones[0])))
    assert float(crash_probability(dones)) == pytest.approx(exact, rel=1e-12)
