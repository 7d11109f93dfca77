from __future__ import annotations

import numpy as np
import pytest

from models.spec import highway_spec
from models.training.dataset import Windows
from models.training.metrics import (
    DIVERGED_SD,
    alarm_threshold,
    bootstrap_intervals,
    lead_times,
    neighbour_error,
    ranking,
    reliability,
    reward_scores,
    rollout_scores,
    state_scores,
    steps_to_end,
    summarise_leads,
    termination_scores,
    uncertainty_scores,
)

SPEC = highway_spec()
HORIZON = 4


def outcome_windows(end_steps: list[int], episodes: list[int] | None = None) -> Windows:
    """Windows of 4 steps; a number is the step at which one terminates, 0 if it does not."""
    ends = np.array(end_steps)
    count = len(ends)
    terminated = (np.arange(1, HORIZON + 1) == ends[:, None]) & (ends[:, None] > 0)
    return Windows(
        states=np.zeros((count, HORIZON + 1, SPEC.state_dim), np.float32),
        actions=np.zeros((count, HORIZON, 3), np.float32),
        rewards=np.zeros((count, HORIZON), np.float32),
        terminated=terminated,
        valid=np.ones((count, HORIZON), bool),
        episode=np.array(episodes if episodes is not None else range(count)),
        environment=np.zeros(count, np.uint8),
        behaviour=np.zeros(count, np.uint8),
        start_step=np.zeros(count, np.int64),
    )


def test_alarm_threshold_leaves_the_asked_share_of_harmless_windows_alarmed() -> None:
    score = np.concatenate([np.arange(1000.0), np.full(50, 2000.0)])
    ends = np.arange(1050) >= 1000
    threshold = alarm_threshold(score, ends, 0.01)
    assert np.mean(score[~ends] >= threshold) == pytest.approx(0.01)


def test_ranking_of_a_perfect_and_a_reversed_score() -> None:
    ends = np.array([False, False, True, True])
    assert ranking(np.array([0.1, 0.2, 0.8, 0.9]), ends) == (1.0, 1.0)
    assert ranking(np.array([0.9, 0.8, 0.2, 0.1]), ends)[0] == 0.0


def test_steps_to_end_counts_from_one() -> None:
    assert steps_to_end(outcome_windows([0, 1, 4])).tolist() == [0, 1, 4]


def test_termination_scores_match_hand_computation() -> None:
    windows = outcome_windows([0, 0, 0, 0, 1, 2, 3, 4])
    score = np.array([0.1, 0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.2])
    scores = termination_scores(score, windows, 0.5)
    assert scores["recall"] == 0.75
    assert scores["recall_near"] == 1.0
    assert scores["recall_far"] == 0.5
    assert scores["false_alarm_rate"] == 0.25
    assert scores["lead_time"] == {"episodes": 4, "median_s": pytest.approx(0.075), "missed": 0.25}


def test_termination_scores_of_one_outcome_have_no_ranking() -> None:
    scores = termination_scores(np.array([0.1, 0.2]), outcome_windows([0, 0]), 0.5)
    assert scores["auroc"] is None
    assert scores["average_precision"] is None
    assert scores["recall"] is None
    assert scores["lead_time"]["episodes"] == 0


def test_lead_time_is_that_of_the_first_alarm_before_the_event() -> None:
    # One episode seen by three windows 3, 2 and 1 steps before it ends; another is missed.
    windows = outcome_windows([3, 2, 1, 4, 0], [7, 7, 7, 9, 9])
    leads = lead_times(np.array([False, True, True, False, True]), windows)
    assert leads.tolist() == [0.1, 0.0]


def test_summary_of_no_leads_has_no_median() -> None:
    assert summarise_leads(np.array([])) == {"episodes": 0, "median_s": None, "missed": None}


def test_bootstrap_intervals_hold_the_estimate_and_narrow_with_episodes() -> None:
    rng = np.random.default_rng(0)

    def width(count: int) -> float:
        ends = rng.random(count) < 0.3
        score = rng.normal(size=count) + 1.5 * ends
        windows = outcome_windows([int(end) for end in ends])
        low, high = bootstrap_intervals(score, windows, 1.0, 100)["auroc"]
        assert low < ranking(score, ends)[0] < high
        return high - low

    assert width(2000) < width(100)


def test_bootstrap_draws_whole_episodes() -> None:
    # All windows of an episode say the same, so the interval is as wide as for single windows.
    rng = np.random.default_rng(1)
    ends = (rng.random(60) < 0.4).astype(int)
    score = rng.normal(size=60) + ends
    single = bootstrap_intervals(score, outcome_windows(list(ends)), 0.5, 80)
    repeated = bootstrap_intervals(
        np.repeat(score, 5),
        outcome_windows(list(np.repeat(ends, 5)), list(np.repeat(np.arange(60), 5))),
        0.5,
        80,
    )
    np.testing.assert_allclose(repeated["auroc"], single["auroc"])


def test_bootstrap_without_draws_or_outcomes_gives_nothing() -> None:
    score = np.array([0.1, 0.9])
    assert bootstrap_intervals(score, outcome_windows([0, 1]), 0.5, 0) == {}
    assert bootstrap_intervals(score, outcome_windows([0, 0]), 0.5, 5) == {}


def test_reliability_of_honest_probabilities_is_near_zero() -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(20000)
    honest = reliability(probability, rng.random(20000) < probability)
    boastful = reliability(probability**0.25, rng.random(20000) < probability)
    assert honest["ece"] < 0.02 < 0.1 < boastful["ece"]
    assert honest["brier"] == pytest.approx(1 / 6, abs=0.01)


def test_reliability_matches_hand_computation() -> None:
    scores = reliability(np.array([0.0, 0.2, 0.6, 1.0]), np.array([False, True, True, True]), 2)
    assert scores["predicted"] == pytest.approx([0.1, 0.8])
    assert scores["observed"] == [0.5, 1.0]
    assert scores["ece"] == pytest.approx(0.3)
    assert scores["brier"] == pytest.approx((0.64 + 0.16) / 4)


def test_reliability_of_few_windows_has_fewer_bins() -> None:
    assert len(reliability(np.array([0.2, 0.7]), np.array([False, True]))["predicted"]) == 2


def two_states() -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true states [2, S] that differ in known ways; only slot 1 is present."""
    true = np.zeros((2, SPEC.state_dim), np.float32)
    true[:, SPEC.state_index("neighbour_1_presence")] = 1
    predicted = true.copy()
    changes = {
        "speed": 0.5,
        "sin_heading_error": np.sin(0.1),
        "left_edge": 0.2,
        "neighbour_1_dx": 3.0,
        "neighbour_1_dy": 4.0,
        "neighbour_1_dvx": 2.0,
        "neighbour_2_dx": 99.0,  # absent: must not count
    }
    for name, change in changes.items():
        predicted[0, SPEC.state_index(name)] = change
    return predicted, true


def test_state_scores_match_hand_computation() -> None:
    predicted, true = two_states()
    scores = state_scores(predicted, true, np.ones(SPEC.state_dim))
    assert scores["ego"]["speed_mps"] == pytest.approx(0.25)
    assert scores["ego"]["heading_rad"] == pytest.approx(0.05)
    assert scores["ego"]["edge_m"] == pytest.approx(0.05)
    assert scores["neighbour"]["position_mean_m"] == pytest.approx(2.5)
    assert scores["neighbour"]["position_median_m"] == pytest.approx(2.5)
    assert scores["neighbour"]["position_p95_m"] == pytest.approx(4.75)
    assert scores["neighbour"]["position_worst_m"] == pytest.approx(5.0)
    assert scores["neighbour"]["velocity_mps"] == pytest.approx(1.0)
    squares = 0.25 + np.sin(0.1) ** 2 + 0.04 + 9 + 16 + 4
    assert scores["all"]["nrmse"] == pytest.approx(np.sqrt(squares / 26), rel=1e-5)


def test_state_scores_without_neighbours_have_none() -> None:
    empty = np.zeros((3, SPEC.state_dim))
    scores = state_scores(empty, empty, np.ones(SPEC.state_dim))
    assert set(scores["neighbour"].values()) == {None}
    assert scores["all"]["nrmse"] == 0


def test_neighbour_error_knows_who_is_there() -> None:
    position, velocity, there = neighbour_error(*two_states())
    assert position[0, 0] == 5
    assert velocity[0, 0] == 2
    assert there.tolist() == [[True, False, False, False]] * 2


@pytest.mark.parametrize(
    ("value", "diverged"),
    [
        pytest.param(np.nan, 0.5, id="nan"),
        pytest.param(np.inf, 0.5, id="infinite"),
        pytest.param(DIVERGED_SD + 1, 0.5, id="far"),
        pytest.param(DIVERGED_SD - 1, 0.0, id="not_so_far"),
    ],
)
def test_rollout_scores_count_diverged_rollouts(value: float, diverged: float) -> None:
    true = np.zeros((2, 17, SPEC.state_dim))
    true[0, 0], true[1, 0] = 1.0, -1.0  # mean 0, standard deviation 1
    predicted = true.copy()
    predicted[0, 9, 0] = value
    assert rollout_scores(predicted, true)["diverged"] == diverged


def test_rollout_scores_take_presence_and_constants_in_their_own_unit() -> None:
    true = np.zeros((2, 17, SPEC.state_dim))
    true[..., SPEC.state_index("neighbour_1_presence")] = 1.0
    predicted = true.copy()
    predicted[..., SPEC.state_index("neighbour_1_presence")] = 0.99
    predicted[..., SPEC.state_index("curvature")] = 0.01
    scores = rollout_scores(predicted, true)
    assert scores["diverged"] == 0
    assert scores["steps"]["1"]["all"]["nrmse"] < 0.01


def test_rollout_scores_report_the_steps_within_the_horizon() -> None:
    states = np.random.default_rng(0).normal(size=(5, 5, SPEC.state_dim))
    assert list(rollout_scores(states, states)["steps"]) == ["1", "2", "4"]


def test_reward_scores_match_hand_computation() -> None:
    scores = reward_scores(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 1.0]]))
    assert scores == {"first_step_mae": 0.5, "sum_mae": 0.5}


def test_uncertainty_scores_tell_a_good_announcer_from_a_bad_one() -> None:
    error = np.arange(10.0)
    good, bad = uncertainty_scores(error**2, error), uncertainty_scores(-error, error)
    assert good["spearman"] == pytest.approx(1.0)
    assert bad["spearman"] == pytest.approx(-1.0)
    assert good["error_by_fifth_m"] == [0.5, 2.5, 4.5, 6.5, 8.5]
