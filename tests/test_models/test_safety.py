from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.safety import (
    RULES,
    SAFE,
    UNKNOWN,
    UNSAFE,
    Reason,
    SafetyLimits,
    Verdict,
    assess,
    safest,
)

NAN, INF = float("nan"), float("inf")
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


def test_one_member_has_no_uncertainty_whatever_the_limit() -> None:
    verdict = judge([0.01, 0.01], limits=replace(LIMITS, has_disagreement=False))

    assert (verdict.verdict, rules(verdict)) == (UNKNOWN, ["uncertainty_unavailable"])
    assert verdict.uncertainty is None


def test_fewer_members_have_an_uncertainty_if_they_are_several() -> None:
    assert not LIMITS.for_fewer(1, 5).has_disagreement
    assert LIMITS.for_fewer(2, 5).has_disagreement


def test_reaching_the_threshold_is_unsafe_and_says_when() -> None:
    verdict = judge([0.01, 0.02, 0.5, 0.25])

    assert verdict.verdict == UNSAFE
    assert verdict.time_to_crash_s == pytest.approx(0.15)
    assert verdict.reasons == (
        Reason(
            "crash_probability",
            "crash probability 0.6362 reaches the threshold 0.1000, first after 0.15 s",
        ),
    )
    assert verdict.crash_probability_by_step == pytest.approx([0.01, 0.0298, 0.5149, 0.636175])


def test_exactly_the_threshold_is_unsafe() -> None:
    probability = judge([0.01]).crash_probability

    assert judge([0.01], threshold=probability).verdict == UNSAFE


def test_a_probability_just_below_the_threshold_is_safe() -> None:
    probability = judge([0.01]).crash_probability
    assert probability is not None

    assert judge([0.01], threshold=np.nextafter(probability, 1)).verdict == SAFE


DOUBTFUL = replace(LIMITS, safe_below=0.05)


@pytest.mark.parametrize(
    ("done", "threshold", "verdict"),
    [
        (0.04, None, SAFE),
        (0.06, None, UNKNOWN),
        (0.09, None, UNKNOWN),
        (0.11, None, UNSAFE),
        (0.02, 0.03, SAFE),
        (0.04, 0.03, UNSAFE),
        (0.055, 0.06, UNKNOWN),
        (0.07, 0.06, UNSAFE),
        (0.04, 0.3, SAFE),
        (0.2, 0.3, UNKNOWN),
        (0.2, 1.0, UNKNOWN),
    ],
    ids=str,
)
def test_a_probability_just_below_the_threshold_is_unknown(
    done: float, threshold: float | None, verdict: str
) -> None:
    judged = judge([done], limits=DOUBTFUL, threshold=threshold)
    due = {SAFE: [], UNKNOWN: ["crash_not_excluded"], UNSAFE: ["crash_probability"]}

    assert (judged.verdict, rules(judged)) == (verdict, due[verdict])
    assert judged.time_to_crash_s == (0.05 if verdict == UNSAFE else None)


def test_exactly_the_lower_bound_is_unknown_and_says_so() -> None:
    probability = judge([0.06]).crash_probability
    assert probability is not None
    verdict = judge([0.06], limits=replace(LIMITS, safe_below=probability))

    assert verdict.verdict == UNKNOWN
    assert verdict.reasons == (
        Reason(
            "crash_not_excluded",
            "crash probability 0.0600 reaches no threshold, but 0.0600, from which on no sequence "
            "is called safe",
        ),
    )
    above = replace(LIMITS, safe_below=math.nextafter(probability, 1))
    assert judge([0.06], limits=above).verdict == SAFE


@pytest.mark.parametrize(
    ("change", "rule", "message"),
    [
        (
            {"uncertainty": 0.6},
            "uncertain",
            "the members disagree by 0.6000, more than the limit 0.5000",
        ),
        (
            {"limits": replace(LIMITS, uncertainty_limit=None)},
            "uncertainty_unavailable",
            "disagreement needs a calibrated ensemble of at least two members",
        ),
        (
            {"limits": replace(LIMITS, horizon=1)},
            "horizon_not_evaluated",
            "2 steps are more than the 1 that were evaluated",
        ),
        (
            {"limits": replace(LIMITS, crash_threshold=None)},
            "not_calibrated",
            "the checkpoint has no calibrated crash threshold",
        ),
        ({"start": (31.0, 0.0)}, "input_out_of_range", "speed = 31 is outside [0, 30]"),
        ({"start": (10.0, -1.5)}, "input_out_of_range", "offset = -1.5 is outside [-1, 1]"),
        (
            {"uncertainty": -0.1},
            "not_finite",
            "the prediction holds values that are not finite, or are no probabilities",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_is_not_known_is_unknown(
    change: dict[str, object], rule: str, message: str
) -> None:
    verdict = judge([0.0, 0.0], **change)  # type: ignore[arg-type]

    assert verdict.verdict == UNKNOWN
    assert verdict.reasons == (Reason(rule, message),)
    assert rule in RULES


@pytest.mark.parametrize(
    "change",
    [
        {"start": (0.0, -1.0)},
        {"start": (30.0, 1.0)},
        {"uncertainty": 0.5},
        {"uncertainty": 0.0, "limits": replace(LIMITS, uncertainty_limit=0.0)},
        {"limits": replace(LIMITS, horizon=2)},
    ],
    ids=["lowest", "highest", "uncertainty", "none", "horizon"],
)
def test_limits_themselves_are_within(change: dict[str, object]) -> None:
    assert judge([0.0, 0.0], **change).verdict == SAFE  # type: ignore[arg-type]


def test_an_uncalibrated_model_can_be_judged_by_a_callers_threshold() -> None:
    uncalibrated = replace(LIMITS, crash_threshold=None)

    assert judge([0.01], limits=uncalibrated, threshold=0.1).verdict == SAFE
    assert judge([0.2], limits=uncalibrated, threshold=0.1).verdict == UNSAFE


def test_the_given_state_is_judged_not_a_predicted_one() -> None:
    inside, outside = [10.0, 0.0], [99.0, 0.0]
    paths = np.array([[inside, outside, outside], [outside, inside, inside]], np.float32)

    one, other = assess(paths, np.zeros((2, 2)), np.zeros(2), LIMITS)

    assert (one.verdict, other.verdict) == (SAFE, UNKNOWN)


def test_every_sequence_is_judged_by_its_own_numbers() -> None:
    """States that differ, and states that are all the same."""
    states = np.full((4, 2, 2), 0.5, np.float32)
    dones = np.array([[0.01], [0.9], [0.02], [0.03]])
    spread = np.array([0.1, 0.2, 0.9, 0.3])

    alike = assess(states, dones, spread, LIMITS)
    states[3] = 77.0
    apart = assess(states, dones, spread, LIMITS)

    assert [v.verdict for v in alike] == [SAFE, UNSAFE, UNKNOWN, SAFE]
    assert [v.verdict for v in apart] == [SAFE, UNSAFE, UNKNOWN, UNKNOWN]
    for verdicts in (alike, apart):
        assert [v.uncertainty for v in verdicts] == spread.tolist()
        assert [v.crash_probability for v in verdicts] == pytest.approx(dones[:, 0])


def test_no_sequences_have_no_verdicts() -> None:
    assert assess(np.zeros((0, 3, 2)), np.zeros((0, 2)), np.zeros(0), LIMITS) == []


def test_times_are_rounded_to_nanoseconds() -> None:
    limits = replace(LIMITS, dt_s=0.12345678949)

    assert judge([0.9], limits=limits).time_to_crash_s == 0.123456789
    assert judge([0.9], limits=limits).horizon_s == 0.123456789
    assert judge([0.0] * 12, limits=replace(LIMITS, horizon=16)).horizon_s == 0.6


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


@pytest.mark.parametrize("company", [0, 1, -1], ids=["alone", "before another", "after another"])
@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([1, 10, 0, 1, 10, 4], None),
        ([1, 10, 0, 1, 10, 2], None),
        ([1, 10, 0, 1, 12, 0], None),
        ([1, 10, 0, 1, 11.5, 1.5], None),
        ([1, 10, 0, 0, 10, 0], None),
        ([0, 10, 0, 1, 10, 0], None),
        ([0, 0, 0, 0, 0, 0], None),
        ([1, 10, 0, 1, 11, 1], "neighbours 1 and 2 are in the same place"),
        (
            [1, 10, 0, 1, -8, 0],
            "neighbour 2 is 8.0 m away, nearer than neighbour 1, 10.0 m, but slots are filled "
            "nearest first",
        ),
        ([1, 10, 9, 1, 10, 9], "neighbours 1 and 2 are in the same place"),
        ([1, 10, 0, 1, 11.99, 0], "neighbours 1 and 2 are in the same place"),
        ([0.5, 10, 0, 1, 30, 0], "1_presence = 0.5 is neither 0 nor 1"),
        ([1, 10, 0, -1, 30, 0], "2_presence = -1 is neither 0 nor 1"),
        ([2, 10, 0, 1, 30, 0], "1_presence = 2 is neither 0 nor 1"),
        ([1, 10, 0, -1, 10, 0], "2_presence = -1 is neither 0 nor 1"),
        (
            [0.5, 10, 0, 1, 10, 0],
            "1_presence = 0.5 is neither 0 nor 1; neighbours 1 and 2 are in the same place",
        ),
    ],
)
def test_a_state_that_cannot_be_is_unknown(
    start: list[float], message: str | None, company: int
) -> None:
    """Alone it may take a quicker look, in company it does not."""
    count = 1 + abs(company)
    states = np.zeros((count, 3, 6), np.float32)
    place = 1 if company < 0 else 0
    states[place] = start
    verdicts = assess(
        states=states,
        dones=np.full((count, 2), 0.001),
        uncertainty=np.full(count, 0.1),
        limits=SLOTS,
    )
    verdict = verdicts[place]

    assert all(v.verdict == SAFE for k, v in enumerate(verdicts) if k != place)
    if message is None:
        assert verdict.verdict == SAFE
    else:
        assert verdict.verdict == UNKNOWN
        assert verdict.reasons == (Reason("input_impossible", message),)


@pytest.mark.parametrize("place", [3e38, INF, NAN])
def test_a_neighbour_that_is_nowhere_makes_no_noise(place: float) -> None:
    """NumPy warns of sums of such numbers, and warnings are errors in tests."""
    states = np.zeros((2, 2, 6), np.float32)
    states[0] = [1, place, 0, 1, -place, 0]

    verdict, sibling = assess(states, np.zeros((2, 1)), np.zeros(2), SLOTS)

    assert verdict.verdict == UNKNOWN
    assert "input_out_of_range" in rules(verdict)
    assert sibling.verdict == SAFE


def test_at_most_four_things_that_cannot_be_are_named() -> None:
    columns = np.arange(12).reshape(4, 3)
    limits = replace(
        LIMITS,
        state_low=np.full(12, -9.0),
        state_high=np.full(12, 9.0),
        feature_names=tuple("abcdefghijkl"),
        slots=columns,
        apart_m=2.0,
    )
    (verdict,) = assess(np.ones((1, 2, 12)), np.zeros((1, 1)), np.zeros(1), limits)

    (reason,) = verdict.reasons
    pairs = [(1, 2), (1, 3), (1, 4), (2, 3)]
    assert reason.message == "; ".join(
        f"neighbours {i} and {j} are in the same place" for i, j in pairs
    )


def test_what_is_wrong_with_the_input_comes_before_what_is_wrong_with_the_prediction() -> None:
    states = np.full((1, 2, 6), 200.0)
    states[0, 0] = [0.5, 200, 0, 0, 0, 0]
    states[0, 1] = np.inf

    (verdict,) = assess(states, np.zeros((1, 1)), np.zeros(1), SLOTS)

    assert rules(verdict) == ["input_out_of_range", "input_impossible", "not_finite"]
    assert (verdict.uncertainty, verdict.time_to_crash_s) == (None, None)
    assert (verdict.threshold, verdict.horizon_s) == (0.1, 0.05)


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


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        *(({"crash_threshold": x}, "not_calibrated") for x in (NAN, INF, -INF, -0.5, 1.5, 75)),
        *(({"safe_below": x}, "crash_not_excluded") for x in (NAN, INF, -INF, -0.5, 0, 1.5, 75)),
        *(({"uncertainty_limit": x}, "uncertainty_unavailable") for x in (NAN, INF, -INF, -0.5)),
        *(({"horizon": x}, "horizon_not_evaluated") for x in (NAN, INF, -INF, -1, 0)),
        *(({"state_low": np.array([x, -1])}, "input_out_of_range") for x in (NAN, INF, 11)),
        *(({"state_high": np.array([x, 1])}, "input_out_of_range") for x in (NAN, -INF, 9)),
    ],
    ids=str,
)
def test_a_limit_that_is_none_makes_nothing_safe(change: dict[str, Any], rule: str) -> None:
    verdict = judge([0.0], limits=replace(LIMITS, **change))

    assert verdict.verdict == UNKNOWN
    assert rules(verdict) == [rule]


@pytest.mark.parametrize("threshold", [NAN, INF, -INF, -0.5, 1.5, 75])
def test_a_callers_threshold_that_is_none_makes_nothing_safe(threshold: float) -> None:
    verdict = judge([0.0], threshold=threshold)

    assert (verdict.verdict, verdict.threshold) == (UNKNOWN, None)
    assert rules(verdict) == ["not_calibrated"]


@pytest.mark.parametrize("apart_m", [NAN, INF])
def test_a_width_that_is_none_makes_no_two_neighbours_safe(apart_m: float) -> None:
    limits = replace(SLOTS, apart_m=apart_m)
    for presence, verdict in ((1, UNKNOWN), (0, SAFE)):
        states = np.tile(np.array([1, 10, 0, presence, 30, 0], np.float32), (1, 2, 1))
        (judged,) = assess(states, np.zeros((1, 1)), np.zeros(1), limits)
        assert judged.verdict == verdict


@pytest.mark.parametrize("spread", [NAN, INF, -INF, -0.5])
def test_a_spread_that_is_none_is_unknown(spread: float) -> None:
    assert rules(judge([0.0], uncertainty=spread)) == ["not_finite"]


@pytest.mark.parametrize("hazard", [-INF, -0.5, 1.5, INF, NAN])
def test_hazards_that_are_no_probabilities_are_unknown(hazard: float) -> None:
    """Even beside a certain end."""
    for dones in ([hazard, 1.0], [1.0, hazard], [0.0, hazard]):
        assert judge(dones).verdict == UNKNOWN
        assert rules(judge(dones)) == ["not_finite"]


def test_a_crash_foreseen_with_doubts_is_still_unsafe_and_lists_both() -> None:
    verdict = judge([0.9], uncertainty=9.0)

    assert verdict.verdict == UNSAFE
    assert rules(verdict) == ["crash_probability", "uncertain"]


def test_a_crash_foreseen_from_an_impossible_state_is_unknown() -> None:
    verdict = judge([0.9], start=(-99.0, 0.0))

    assert verdict.verdict == UNKNOWN
    assert rules(verdict) == ["input_out_of_range", "crash_probability"]
    assert "speed = -99 is outside [0, 30]" in verdict.reasons[0].message


@pytest.mark.parametrize(
    ("count", "end"),
    [(4, "d = 7 is outside [0, 1]"), (5, "and 1 more features"), (9, "and 5 more features")],
)
def test_many_features_out_of_range_are_counted_not_listed(count: int, end: str) -> None:
    names = "abcdefghi"[:count]
    limits = replace(
        LIMITS,
        state_low=np.zeros(count, np.float32),
        state_high=np.ones(count, np.float32),
        feature_names=tuple(names),
    )
    (verdict,) = assess(np.full((1, 2, count), 7.0), np.zeros((1, 1)), np.zeros(1), limits)

    listed = verdict.reasons[0].message.split("; ")
    assert listed[:4] == [f"{name} = 7 is outside [0, 1]" for name in "abcd"]
    assert listed[-1] == end
    assert len(listed) == min(count, 5)


@pytest.mark.parametrize(
    ("states", "dones", "uncertainty"),
    [
        ((1, 3, 1), (1, 2), (1,)),
        ((1, 3, 3), (1, 2), (1,)),
        ((1, 2, 2), (1, 2), (1,)),
        ((1, 3, 2), (2, 2), (2,)),
        ((2, 3, 2), (2, 2), (1,)),
        ((2, 3, 2), (2, 2), (3,)),
        ((3, 3, 2), (2, 2), (2,)),
        ((1, 4, 2), (1, 2), (1,)),
        ((1, 1, 2), (1, 0), (1,)),
    ],
    ids=[
        "one feature",
        "more features",
        "no start",
        "one state",
        "one spread",
        "more spreads",
        "more states",
        "more steps",
        "no steps",
    ],
)
def test_shapes_that_do_not_fit_are_refused_not_broadcast(
    states: tuple[int, ...], dones: tuple[int, ...], uncertainty: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="do not fit each other and 2 features"):
        assess(np.zeros(states), np.zeros(dones), np.zeros(uncertainty), LIMITS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_low": np.zeros(1)}, r"state_low has shape \(1,\), not \(6,\)"),
        ({"state_low": np.zeros(7)}, r"state_low has shape \(7,\), not \(6,\)"),
        ({"state_high": np.float32(1)}, r"state_high has shape \(\), not \(6,\)"),
        ({"slots": np.array([[0, 1]])}, "slots must be columns below 6"),
        ({"slots": np.array([[0, 1, 2, 3]])}, "slots must be columns below 6"),
        ({"slots": np.array([[0, 1, 6]])}, "slots must be columns below 6"),
        ({"slots": np.array([[0, 1, -1]])}, "slots must be columns below 6"),
    ],
    ids=[
        "one bound",
        "more bounds",
        "a scalar",
        "two columns",
        "four columns",
        "too high",
        "negative",
    ],
)
def test_limits_of_another_shape_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SLOTS, **change)


def test_limits_know_no_neighbours_by_default() -> None:
    assert LIMITS.slots.shape == (0, 3)
    assert LIMITS.apart_m == 0.0


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.floats(0, 1),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.floats(0, 1), st.floats(0, 1) | st.none()),
)
def test_a_lower_threshold_never_turns_anything_into_safe(
    dones: list[float],
    uncertainty: float,
    thresholds: tuple[float, float],
    bounds: tuple[float, float | None],
) -> None:
    """The one from which sequences are unsafe, and the one from which they are unknown."""

    def is_safe(threshold: float, bound: float | None) -> bool:
        limits = replace(LIMITS, safe_below=bound)
        verdict = judge(dones, uncertainty=uncertainty, limits=limits, threshold=threshold)
        return verdict.verdict == SAFE

    low, high = sorted(thresholds)
    lower, upper = sorted(bounds, key=lambda bound: INF if bound is None else bound)
    for bound in bounds:
        assert is_safe(high, bound) or not is_safe(low, bound)
    for threshold in thresholds:
        assert is_safe(threshold, upper) or not is_safe(threshold, lower)


BENIGN_START = [10.0, 0.0, 1.0, 20.0, 3.0, 1.0, 40.0, -3.0, 0.0, 0.0, 0.0]
PLACES = ((2, 3, 4), (5, 6, 7), (8, 9, 10))


@dataclass
class Case:
    """Everything that a verdict follows from, as plain numbers."""

    starts: list[list[float]]
    later: list[float]
    dones: list[list[float]]
    spreads: list[float]
    threshold: Any = 0.3
    override: Any = None
    safe_below: Any = None
    uncertainty_limit: Any = 0.5
    horizon: Any = 4
    low: list[float] = field(default_factory=lambda: [-50.0] * 11)
    high: list[float] = field(default_factory=lambda: [50.0] * 11)
    apart_m: float = 2.0

    def assessed(self) -> list[Verdict]:
        steps = len(self.dones[0])
        states = np.repeat(np.array(self.starts, np.float32)[:, None], steps + 1, axis=1)
        states[:, -1, 0] = self.later
        limits = SafetyLimits(
            crash_threshold=self.threshold,
            uncertainty_limit=self.uncertainty_limit,
            state_low=np.array(self.low, np.float32),
            state_high=np.array(self.high, np.float32),
            horizon=self.horizon,
            feature_names=tuple("abcdefghijk"),
            dt_s=0.05,
            slots=np.array(PLACES),
            apart_m=self.apart_m,
            safe_below=self.safe_below,
        )
        return assess(
            states,
            np.array(self.dones, np.float32),
            np.array(self.spreads, np.float32),
            limits,
            threshold=self.override,
        )

    def expected(self, k: int) -> tuple[str, set[str]]:
        """The rules in words, one number at a time: the verdict and what fires."""
        fired: set[str] = set()
        start, dones, spread = self.starts[k], self.dones[k], self.spreads[k]
        for x, low, high in zip(start, self.low, self.high, strict=True):
            if not (x >= low and x <= high):
                fired.add("input_out_of_range")
        cars = [tuple(start[column] for column in place) for place in PLACES]
        if any(presence not in (0, 1) for presence, _, _ in cars):
            fired.add("input_impossible")
        for one, other in combinations([car for car in cars if car[0] > 0], 2):
            if not math.hypot(one[1] - other[1], one[2] - other[2]) >= self.apart_m:
                fired.add("input_impossible")
            if math.hypot(*other[1:]) < math.hypot(*one[1:]) - self.apart_m / 2:
                fired.add("input_impossible")
        numbers = [*start, self.later[k], *dones, spread]
        if not all(map(math.isfinite, numbers)) or spread < 0 or min(dones) < 0 or max(dones) > 1:
            return UNKNOWN, {*fired, "not_finite"}
        threshold = self.override if self.override is not None else self.threshold
        is_blocked = bool(fired)
        if threshold is None or not (threshold >= 0 and threshold <= 1):
            fired.add("not_calibrated")
            is_blocked = True
        probability = 1 - math.prod(1 - done for done in dones)
        if "not_calibrated" not in fired and probability >= threshold:
            fired.add("crash_probability")
        elif self.safe_below is not None and not probability < self.safe_below <= 1:
            fired.add("crash_not_excluded")
        limit = self.uncertainty_limit
        if limit is None or not (limit >= 0 and math.isfinite(limit)):
            fired.add("uncertainty_unavailable")
        elif spread > limit:
            fired.add("uncertain")
        if not math.isfinite(self.horizon) or len(dones) > self.horizon:
            fired.add("horizon_not_evaluated")
        if is_blocked:
            return UNKNOWN, fired
        if "crash_probability" in fired:
            return UNSAFE, fired
        return (UNKNOWN if fired else SAFE), fired


HOSTILE = [NAN, INF, -INF, -0.25, 1.5, 75.0]
HARMFUL: dict[str, list[Any]] = {
    "threshold": [None, 0.0, 0.05, 1.0, *HOSTILE],
    "override": [0.0, 0.05, 0.5, 1.0, *HOSTILE],
    "safe_below": [0.0, 0.05, 0.2, *HOSTILE],
    "uncertainty_limit": [None, 0.0, 0.25, *HOSTILE],
    "horizon": [0, 1, 3, -1, NAN, INF, -INF],
    "apart_m": [0.0, 5.0, 8.0, 1000.0, *HOSTILE],
    "low": [0.0, 10.0, 11.0, -INF, INF, NAN],
    "high": [0.0, 10.0, 9.0, -INF, INF, NAN],
    "starts": [0.0, 1.0, 0.5, 3.0, 20.0, 40.0, 60.0, NAN, INF, -INF, 3e38],
    "later": [100.0, NAN, INF, -INF],
    "dones": [0.0, 0.25, 0.75, 1.0, *HOSTILE],
    "spreads": [0.0, 0.25, 0.75, *HOSTILE],
}
"""Numbers that floats of 32 bits hold exactly, so that nothing is decided by rounding."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A harmless case of one to three sequences, with up to four numbers replaced."""
    count, steps = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    case = Case(
        starts=[[*BENIGN_START] for _ in range(count)],
        later=[5.0] * count,
        dones=[[0.0625] * steps for _ in range(count)],
        spreads=[0.125] * count,
    )
    for name in draw(st.lists(st.sampled_from(sorted(HARMFUL)), max_size=4)):
        place, value = getattr(case, name), draw(st.sampled_from(HARMFUL[name]))
        if not isinstance(place, list):
            setattr(case, name, value)
            continue
        while isinstance(place[0], list):
            place = draw(st.sampled_from(place))
        place[draw(st.integers(0, len(place) - 1))] = value
    return case


@settings(max_examples=400, deadline=None)
@given(cases())
def test_a_verdict_follows_the_rules_whatever_the_numbers(case: Case) -> None:
    """NaN, infinities and nonsense in the prediction, the limits and the threshold."""
    for k, verdict in enumerate(case.assessed()):
        fired = {reason.rule for reason in verdict.reasons}
        decided, due = case.expected(k)
        if not all(map(math.isfinite, case.starts[k])):
            # It is unknown by then; where a car is that is nowhere is nobody's question.
            fired, due = fired - {"input_impossible"}, due - {"input_impossible"}
        assert (verdict.verdict, fired) == (decided, due)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_an_answer_never_holds_numbers_that_are_none(case: Case) -> None:
    verdicts = case.assessed()
    for verdict in verdicts:
        shown = [
            verdict.crash_probability,
            *verdict.crash_probability_by_step,
            verdict.threshold,
        ]
        assert all(x is None or 0 <= x <= 1 for x in shown)
        assert verdict.uncertainty is None or 0 <= verdict.uncertainty < INF
        assert len(verdict.crash_probability_by_step) == len(case.dones[0])
    assert verdicts[safest(verdicts)].verdict == min(
        (v.verdict for v in verdicts), key=[SAFE, UNKNOWN, UNSAFE].index
    )


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


def test_safest_takes_numbers_that_are_none_last() -> None:
    """Verdicts that `assess` does not make, but others may."""
    good = judge([0.05], uncertainty=0.4)
    for change in (
        {"crash_probability": NAN},
        {"crash_probability": None},
        {"crash_probability": -1.0},
        {"crash_probability": 0.05 + 1e-9, "uncertainty": NAN},
    ):
        wrong = replace(good, **change)
        assert safest([wrong, good]) == 1
        assert safest([good, wrong]) == 0
    for uncertainty in (NAN, None, -1.0):
        wrong = replace(good, uncertainty=uncertainty)
        assert safest([wrong, good]) == 1


def test_safest_counts_nothing_as_the_least() -> None:
    assert safest([judge([0.01], uncertainty=0.0), judge([0.0], uncertainty=0.3)]) == 1
    assert safest([judge([0.01], uncertainty=0.1), judge([0.01], uncertainty=0.0)]) == 1


@pytest.mark.parametrize(
    "judged", [LIMITS, Reason("uncertain", "because"), judge([0.0])], ids=lambda x: type(x).__name__
)
def test_what_a_verdict_is_made_of_cannot_be_changed(judged: Any) -> None:
    name = fields(judged)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(judged, name, getattr(judged, name))


def test_safest_takes_the_first_of_equals() -> None:
    assert safest([judge([0.05]), judge([0.05])]) == 0
    assert safest([judge([0.9]), judge([0.05]), judge([0.05])]) == 1


def test_safest_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        safest([])


def test_a_bound_holds_for_a_request_s_own_threshold_without_the_checkpoint_s() -> None:
    limits = replace(DOUBTFUL, crash_threshold=None)
    states = np.zeros((1, 3, len(limits.feature_names)))
    (verdict,) = assess(states, np.array([[0.04, 0.04]]), np.zeros(1), limits, threshold=0.5)
    assert verdict.verdict == UNKNOWN
    assert [reason.rule for reason in verdict.reasons] == ["crash_not_excluded"]
