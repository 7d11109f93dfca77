from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.test_training.outcomes import outcome_windows
from training.dataset.windows import Windows
from training.evaluation.metrics import (
    ECE_BINS,
    FALSE_ALARM_RATES,
    SCORES,
    Risk,
    Scorecard,
    alarm_threshold,
    compare,
    lead_times,
    reliability,
    steps_to_end,
)

LEVELS = {"1": 0.5, "01": 0.8}
assert LEVELS.keys() == FALSE_ALARM_RATES.keys()


def sure(probability: np.ndarray) -> Risk:
    """A risk whose score is its probability."""
    return Risk(probability, probability)


def scores_of(risk: Risk, ends: np.ndarray, counts: np.ndarray | None = None) -> dict[str, float]:
    card = Scorecard(risk, ends, np.arange(len(ends)), LEVELS)
    return dict(zip(SCORES, card.scores(counts), strict=True))


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Honest probabilities, with ties, and outcomes."""
    rng = np.random.default_rng(seed)
    probability = np.round(rng.random(count) ** 2, 2)
    return probability, rng.random(count) < probability


def test_alarm_threshold_leaves_the_asked_share_of_harmless_windows_alarmed() -> None:
    score = np.concatenate([np.arange(1000.0), np.full(50, 2000.0)])
    ends = np.arange(1050) >= 1000
    threshold = alarm_threshold(score, ends, 0.01)
    assert np.mean(score[~ends] >= threshold) == pytest.approx(0.01)


def test_ranking_agrees_with_scikit_learn_ties_included() -> None:
    probability, ends = drawn(500)
    scores = scores_of(sure(probability), ends)
    assert scores["auroc"] == pytest.approx(roc_auc_score(ends, probability))
    assert scores["average_precision"] == pytest.approx(average_precision_score(ends, probability))


def test_ranking_of_resampled_episodes_agrees_with_scikit_learn() -> None:
    probability, ends = drawn(300)
    counts = np.random.default_rng(1).integers(0, 3, 300).astype(float)
    scores = scores_of(sure(probability), ends, counts)
    assert scores["auroc"] == pytest.approx(roc_auc_score(ends, probability, sample_weight=counts))
    assert scores["average_precision"] == pytest.approx(
        average_precision_score(ends, probability, sample_weight=counts)
    )


def test_resampled_scores_are_those_of_the_repeated_windows() -> None:
    probability, ends = drawn(60)
    counts = np.random.default_rng(1).integers(0, 4, 60)
    resampled = scores_of(sure(probability), ends, counts.astype(float))
    repeated = scores_of(sure(np.repeat(probability, counts)), np.repeat(ends, counts))
    for name in ("auroc", "average_precision", "recall_1", "false_alarms_01", "brier", "ece_width"):
        assert resampled[name] == pytest.approx(repeated[name]), name


def test_scores_match_hand_computation() -> None:
    ends = np.array([False, False, False, True, True])
    scores = scores_of(sure(np.array([0.1, 0.2, 0.6, 0.7, 0.9])), ends)
    assert scores["auroc"] == 1.0
    assert scores["recall_1"] == 1.0
    assert scores["recall_01"] == 0.5
    assert scores["false_alarms_1"] == pytest.approx(1 / 3)
    assert scores["false_alarms_01"] == 0.0
    assert scores["brier"] == pytest.approx((0.01 + 0.04 + 0.36 + 0.09 + 0.01) / 5)
    # Five windows in bins of their own.
    assert scores["ece"] == pytest.approx((0.1 + 0.2 + 0.6 + 0.3 + 0.1) / 5)


def test_a_score_may_rank_what_a_probability_does_not() -> None:
    ends = np.array([False, True])
    scores = scores_of(Risk(np.array([-9.0, 4.0]), np.array([0.5, 0.5])), ends)
    assert scores["auroc"] == 1.0
    assert scores["brier"] == 0.25


def test_honest_probabilities_have_little_calibration_error_boastful_ones_much() -> None:
    probability, ends = drawn(30_000)
    honest, boastful = scores_of(sure(probability), ends), scores_of(sure(probability**0.3), ends)
    for name in ("ece", "ece_width"):
        assert honest[name] < 0.02 < 0.1 < boastful[name]


def test_calibration_error_in_bins_of_equal_width_matches_hand_computation() -> None:
    width = 1 / ECE_BINS
    probability = np.array([0.2 * width, 0.4 * width, 1.0, 1.0])
    ends = np.array([False, False, True, False])
    expected = (0.6 * width + 1.0) / 4
    assert scores_of(sure(probability), ends)["ece_width"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ends", "missing"),
    [
        pytest.param([False, False], {"auroc", "average_precision", "recall_1", "recall_01"},
                     id="none_end"),
        pytest.param([True, True],
                     {"auroc", "average_precision", "false_alarms_1", "false_alarms_01"},
                     id="all_end"),
    ],
)  # fmt: skip
def test_scores_of_one_outcome_do_not_exist(ends: list[bool], missing: set[str]) -> None:
    scores = scores_of(sure(np.array([0.1, 0.9])), np.array(ends))
    assert {name for name, value in scores.items() if np.isnan(value)} == missing


def two_methods(windows: Windows, draws: int) -> dict[str, object]:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, len(windows)))
    risks = {
        "good": sure(1 / (1 + np.exp(-noise[0] - 4 * windows.ends + 2))),
        "bad": sure(1 / (1 + np.exp(-noise[1] - windows.ends))),
    }
    levels = dict.fromkeys(risks, LEVELS)
    return compare(risks, windows, levels, draws, reference="good")


def test_comparison_holds_estimates_in_intervals_and_the_lead_of_the_reference() -> None:
    ends = [int(x) for x in np.random.default_rng(2).random(400) < 0.3]
    result = two_methods(outcome_windows(ends), 100)
    assert (result["windows"], result["windows_that_end"]) == (400, sum(ends))
    methods = result["methods"]
    assert isinstance(methods, dict)
    for method in methods.values():
        low, high = method["intervals"]["auroc"]
        assert low < method["scores"]["auroc"] < high
    lead = methods["bad"]["lead"]
    difference = methods["good"]["scores"]["auroc"] - methods["bad"]["scores"]["auroc"]
    assert lead["scores"]["auroc"] == pytest.approx(difference)
    assert lead["intervals"]["auroc"][0] > 0


def test_differences_are_paired() -> None:
    """Two methods that err on the same episodes differ by nothing, however few episodes."""
    windows = outcome_windows([1, 0, 1, 0, 1, 0, 0, 1])
    probability = np.random.default_rng(0).random(8)
    risks = {"one": sure(probability), "same": Risk(probability * 7, probability)}
    levels = {"one": LEVELS, "same": {name: 7 * x for name, x in LEVELS.items()}}
    same = compare(risks, windows, levels, 50, reference="one")["methods"]["same"]
    assert same["intervals"]["auroc"][0] < same["intervals"]["auroc"][1]
    assert same["lead"]["intervals"]["auroc"] == [0, 0]


def test_intervals_come_from_episodes_not_windows() -> None:
    """Windows of an episode that all say the same give no narrower interval than one does."""
    rng = np.random.default_rng(1)
    ends = (rng.random(60) < 0.4).astype(int)
    probability = 1 / (1 + np.exp(-rng.normal(size=60) - ends))

    def interval(times: int) -> list[float | None]:
        windows = outcome_windows(
            list(np.repeat(ends, times)), list(np.repeat(np.arange(60), times))
        )
        risk = sure(np.repeat(probability, times))
        result = compare({"a": risk}, windows, {"a": LEVELS}, 80, reference="a")
        found: list[float | None] = result["methods"]["a"]["intervals"]["auroc"]
        return found

    assert interval(5) == pytest.approx(interval(1))


def test_comparison_without_draws_has_no_intervals() -> None:
    methods = two_methods(outcome_windows([1, 0, 0, 1]), 0)["methods"]
    assert isinstance(methods, dict)
    assert methods["good"]["intervals"] == methods["bad"]["lead"]["intervals"] == {}


def test_scores_that_do_not_exist_are_none_in_a_comparison() -> None:
    methods = two_methods(outcome_windows([0, 0]), 3)["methods"]
    assert isinstance(methods, dict)
    assert methods["good"]["scores"]["auroc"] is None
    assert methods["good"]["intervals"]["auroc"] == [None, None]


def test_reliability_bins_hold_all_windows() -> None:
    probability, ends = drawn(5000)
    curve = reliability(probability, ends, np.arange(len(ends)) // 2, 20)
    assert sum(curve["windows"]) == 5000
    assert curve["predicted"] == sorted(curve["predicted"])
    total = np.dot(curve["windows"], curve["observed"])
    assert total == pytest.approx(ends.sum())
    for share, (low, high) in zip(curve["observed"], curve["interval"], strict=True):
        assert low <= share <= high
        assert low < high


def test_a_bin_in_which_nothing_ends_is_as_sure_as_it_has_episodes() -> None:
    ends = np.zeros(1000, bool)
    few, many = (
        reliability(np.full(1000, 0.01), ends, np.arange(1000) % count, 20) for count in (5, 500)
    )
    assert (few["episodes"], many["episodes"]) == ([5], [500])
    assert few["interval"][0][1] > 0.3
    assert many["interval"][0][1] < 0.01


def test_steps_to_end_counts_from_one() -> None:
    assert steps_to_end(outcome_windows([0, 1, 4])).tolist() == [0, 1, 4]


def test_lead_time_is_that_of_the_first_alarm_before_the_event() -> None:
    # One episode seen by three windows 3, 2 and 1 steps before it ends; another is missed.
    windows = outcome_windows([3, 2, 1, 4, 0], [7, 7, 7, 9, 9])
    leads = lead_times(np.array([False, True, True, False, True]), windows, 0.05)
    assert leads.tolist() == [0.1, 0.0]
