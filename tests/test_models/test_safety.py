from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.safety import RULES, SAFE, UNKNOWN, UNSAFE, SafetyLimits, Verdict, assess, safest

LIMITS = SafetyLimits(
    crash_threshold=0.1,
    uncertainty_limit=0.5,
    state_low=np.array([0.0, -1.0], np.float32),
    state_high=np.array([30.0, 1.0], np.float32),
    horizon=4,
    feature_names=("speed", "offset"),
    dt_s=0.05,
)


def judge(
    dones: list[float],
    *,
    start: tuple[float, float] = (10.0, 0.0),
    uncertainty: float = 0.1,
    limits: SafetyLimits = LIMITS,
    threshold: float | None = None,
) -> Verdict:
    states = np.tile(np.array(start, np.float32), (1, len(dones) + 1, 1))
    return assess(states, np.array([dones]), np.array([uncertainty]), limits, threshold=threshold)[
        0
    ]


def rules(verdict: Verdict) -> list[str]:
    return [reason.rule for reason in verdict.reasons]


def test_a_harmless_known_certain_sequence_is_safe_without_reasons() -> None:
    verdict = judge([0.01, 0.01])

    assert verdict.verdict == SAFE
    assert verdict.reasons == ()
    assert verdict.crash_probability == pytest.approx(1 - 0.99**2)
    assert verdict.time_to_crash_s is None
    assert verdict.horizon_s == pytest.approx(0.1)
    assert verdict.threshold == 0.1


def test_reaching_the_threshold_is_unsafe_and_says_when() -> None:
    verdict = judge([0.01, 0.02, 0.5, 0.5])

    assert verdict.verdict == UNSAFE
    assert rules(verdict) == ["crash_probability"]
    assert verdict.time_to_crash_s == pytest.approx(0.15)
    assert "first after 0.15 s" in verdict.reasons[0].message


def test_exactly_the_threshold_is_unsafe() -> None:
    probability = judge([0.01]).crash_probability

    assert judge([0.01], threshold=probability).verdict == UNSAFE


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"uncertainty": 0.6}, "uncertain"),
        ({"limits": replace(LIMITS, uncertainty_limit=None)}, "uncertainty_unavailable"),
        ({"limits": replace(LIMITS, horizon=1)}, "horizon_not_evaluated"),
        ({"limits": replace(LIMITS, crash_threshold=None)}, "not_calibrated"),
        ({"start": (31.0, 0.0)}, "input_out_of_range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_is_not_known_is_unknown(change: dict[str, object], rule: str) -> None:
    verdict = judge([0.0, 0.0], **change)  # type: ignore[arg-type]

    assert verdict.verdict == UNKNOWN
    assert rules(verdict) == [rule]
    assert rule in RULES


SLOTS = SafetyLimits(
    crash_threshold=0.1,
    uncertainty_limit=0.5,
    state_low=np.full(6, -100.0, np.float32),
    state_high=np.full(6, 100.0, np.float32),
    horizon=4,
    feature_names=("1_presence", "1_dx", "1_dy", "2_presence", "2_dx", "2_dy"),
    dt_s=0.05,
    slots=np.array([[0, 1, 2], [3, 4, 5]]),
    apart_m=2.0,
)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([1, 10, 0, 1, 10, 4], None),
        ([1, 10, 0, 1, 11.5, 1.5], None),
        ([1, 10, 0, 0, 10, 0], None),
        ([0, 0, 0, 0, 0, 0], None),
        ([1, 10, 0, 1, 11, 1], "neighbours 1 and 2 are in the same place"),
        ([0.5, 10, 0, 1, 30, 0], "1_presence = 0.5 is neither 0 nor 1"),
        ([1, 10, 0, -1, 30, 0], "2_presence = -1 is neither 0 nor 1"),
    ],
)
def test_a_state_that_cannot_be_is_unknown(start: list[float], message: str | None) -> None:
    states = np.tile(np.array(start, np.float32), (1, 3, 1))
    (verdict,) = assess(states, np.full((1, 2), 0.001), np.full(1, 0.1), SLOTS)

    if message is None:
        assert verdict.verdict == SAFE
    else:
        assert verdict.verdict == UNKNOWN
        assert [(reason.rule, reason.message) for reason in verdict.reasons] == [
            ("input_impossible", message)
        ]


@pytest.mark.parametrize("place", ["states", "dones", "uncertainty"])
def test_a_prediction_that_is_not_finite_is_unknown_and_leaves_siblings_alone(place: str) -> None:
    parts = {
        "states": np.full((2, 3, 2), 0.5),
        "dones": np.full((2, 2), 0.01),
        "uncertainty": np.full(2, 0.1),
    }
    parts[place][0, ...] = np.nan

    broken, sibling = assess(parts["states"], parts["dones"], parts["uncertainty"], LIMITS)

    assert broken.verdict == UNKNOWN
    assert "not_finite" in rules(broken)
    assert broken.crash_probability is None
    assert broken.crash_probability_by_step == [None, None]
    assert sibling.verdict == SAFE


def test_a_crash_foreseen_with_doubts_is_still_unsafe_and_lists_both() -> None:
    verdict = judge([0.9], uncertainty=9.0)

    assert verdict.verdict == UNSAFE
    assert rules(verdict) == ["crash_probability", "uncertain"]


def test_a_crash_foreseen_from_an_impossible_state_is_unknown() -> None:
    verdict = judge([0.9], start=(-99.0, 0.0))

    assert verdict.verdict == UNKNOWN
    assert rules(verdict) == ["input_out_of_range", "crash_probability"]
    assert "speed = -99 is outside [0, 30]" in verdict.reasons[0].message


def test_many_features_out_of_range_are_counted_not_listed() -> None:
    limits = replace(
        LIMITS,
        state_low=np.zeros(6, np.float32),
        state_high=np.ones(6, np.float32),
        feature_names=tuple("abcdef"),
    )
    verdict = assess(np.full((1, 2, 6), 7.0), np.zeros((1, 1)), np.zeros(1), limits)[0]

    assert "and 2 more features" in verdict.reasons[0].message
    assert "e =" not in verdict.reasons[0].message


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_lower_threshold_never_turns_anything_into_safe(
    dones: list[float], uncertainty: float, first: float, second: float
) -> None:
    low, high = sorted((first, second))
    strict = judge(dones, uncertainty=uncertainty, threshold=low)
    lenient = judge(dones, uncertainty=uncertainty, threshold=high)

    if lenient.verdict != SAFE:
        assert strict.verdict != SAFE


def test_safest_prefers_safe_then_low_probability_then_low_uncertainty() -> None:
    candidates = [
        judge([0.9]),
        judge([0.001], uncertainty=9.0),
        judge([0.02]),
        judge([0.01], uncertainty=0.2),
        judge([0.01], uncertainty=0.1),
    ]

    assert safest(candidates) == 4
    assert safest(candidates[:2]) == 1


def test_safest_takes_unknown_numbers_last() -> None:
    broken = judge([np.nan])

    assert safest([broken, judge([0.05], uncertainty=9.0)]) == 1
