from __future__ import annotations

import numpy as np
import pytest

from models.highway import highway_spec
from models.road_users import road_users_spec
from tests.test_training.outcomes import HORIZON
from training.evaluation.state_errors import (
    DIVERGED_SD,
    compare_final_errors,
    deviation_sd,
    disagreement_scores,
    divergence,
    error_curves,
    errors_by_step,
    feature_scale,
    final_error_sums,
    nearest_error,
    neighbour_error,
    overall_error,
    reward_scores,
    state_scores,
    uncertainty_scores,
)

SPEC = highway_spec()


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
        "neighbour_1_speed": 2.0,
        "neighbour_2_dx": 99.0,  # absent: must not count
    }
    for name, change in changes.items():
        predicted[0, SPEC.state_index(name)] = change
    return predicted, true


def rollouts(predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Repeat states [N, S] as rollouts [N, H+1, S]."""
    return np.repeat(predicted[:, None], 17, axis=1), np.repeat(true[:, None], 17, axis=1)


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


def test_neighbour_error_counts_a_wrong_heading_as_wrong_velocity() -> None:
    predicted, true = two_states()
    for states, heading in ((predicted, np.pi / 2), (true, 0.0)):
        states[1, SPEC.state_index("neighbour_1_speed")] = 3.0
        states[1, SPEC.state_index("neighbour_1_heading")] = heading
    position, velocity, there = neighbour_error(predicted, true)
    assert (position[0, 0], velocity[0, 0]) == (5, 2)
    assert velocity[1, 0] == pytest.approx(3 * np.sqrt(2))
    assert there.tolist() == [[True, False, False, False]] * 2


def test_scale_keeps_the_unit_of_presence_and_constants() -> None:
    states = np.random.default_rng(0).normal(scale=3.0, size=(1000, SPEC.state_dim))
    states[:, SPEC.state_index("curvature")] = 0.01
    scale = feature_scale(states, SPEC)
    assert scale[SPEC.state_index("curvature")] == 1
    assert scale[SPEC.state_index("neighbour_2_presence")] == 1
    assert scale[SPEC.state_index("speed")] == pytest.approx(3.0, rel=0.1)


def test_errors_are_reported_at_steps_within_the_horizon() -> None:
    states = np.random.default_rng(0).normal(size=(5, 5, SPEC.state_dim))
    assert list(errors_by_step(states, states, np.ones(SPEC.state_dim))) == ["1", "2", "4"]


def test_error_curves_average_over_present_neighbours() -> None:
    curves = error_curves(*rollouts(*two_states()))
    np.testing.assert_allclose(curves["neighbour position error, m"], 2.5)
    np.testing.assert_allclose(curves["speed error, m/s"], 0.25)
    np.testing.assert_allclose(curves["edge distance error, m"], 0.05, rtol=1e-5)


def test_final_errors_are_compared_with_the_reference() -> None:
    predicted, true = two_states()
    episode = np.array([0, 1])
    sums = {
        "exact": final_error_sums(true, true, episode, 2),
        "off": final_error_sums(predicted, true, episode, 2),
    }
    result = compare_final_errors(sums, 50, reference="exact")
    assert result["off"]["neighbour_m"]["mean"] == pytest.approx(2.5)
    assert result["off"]["neighbour_m"]["interval"] == [0, 5]
    assert result["off"]["speed_mps"]["lead"] == pytest.approx(-0.25)
    assert result["off"]["edge_m"]["lead_interval"] == pytest.approx([-0.1, 0])
    assert result["exact"]["edge_m"]["lead"] == 0


@pytest.mark.parametrize(
    ("value", "diverged"),
    [
        pytest.param(np.nan, 1, id="nan"),
        pytest.param(np.inf, 1, id="infinite"),
        pytest.param(2 * DIVERGED_SD + 1, 1, id="far"),
        pytest.param(2 * DIVERGED_SD - 1, 0, id="not_so_far"),
    ],
)
def test_diverged_rollouts_are_counted(value: float, diverged: int) -> None:
    true = np.zeros((2, 17, SPEC.state_dim))
    predicted = true.copy()
    predicted[0, 9, 0] = value
    scale = np.full(SPEC.state_dim, 2.0)
    counts = divergence(deviation_sd(predicted, true, scale, np.ones((2, 16), bool)))
    assert (counts["windows"], counts["diverged"]) == (2, diverged)
    assert counts["not_finite"] == (not np.isfinite(value))


def test_steps_that_were_not_recorded_do_not_diverge() -> None:
    true = np.zeros((1, 17, SPEC.state_dim))
    predicted = true.copy()
    predicted[0, 10:, 0] = 1e3
    valid = (np.arange(16) < 9)[None]
    assert deviation_sd(predicted, true, np.ones(SPEC.state_dim), valid)[0] == 0


def test_reward_scores_match_hand_computation() -> None:
    scores = reward_scores(np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [0.0, 1.0]]))
    assert scores == {"first_step_mae": 0.5, "sum_mae": 0.5}


def test_errors_to_announce_are_those_after_each_step() -> None:
    true = np.zeros((2, HORIZON + 1, SPEC.state_dim), np.float32)
    true[0, :, SPEC.state_index("neighbour_1_presence")] = 1
    predicted = true.copy()
    predicted[0, 2, 0] = 6.0
    predicted[0, HORIZON, SPEC.state_index("neighbour_1_dx")] = 4.0
    near, seen = nearest_error(predicted, true, highway_spec())
    overall = overall_error(predicted, true, np.full(SPEC.state_dim, 2.0))
    assert near.shape == seen.shape == overall.shape == (2, HORIZON)
    assert near[0, -1] == 4.0
    assert not near[0, :-1].any()
    assert not near[1].any()
    assert seen[0].all()
    assert not seen[1].any()
    assert overall[0, 1] == pytest.approx(3 / np.sqrt(SPEC.state_dim))
    assert overall[0, -1] == pytest.approx(2 / np.sqrt(SPEC.state_dim))


def test_disagreement_is_held_against_errors_after_the_same_step() -> None:
    rng = np.random.default_rng(0)
    near, seen = rng.random((40, 4)), rng.random((40, 4)) < 0.9
    errors = {"neighbour_m": (near, seen), "all_sd": (-near, np.ones_like(seen))}
    scores = disagreement_scores(near**3, near.max(1), errors, np.arange(40), 10)
    assert scores["steps"]["neighbour_m"]["spearman"] == pytest.approx(1.0)
    assert scores["steps"]["all_sd"]["spearman"] == pytest.approx(-1.0)
    # The largest error of a window says less about its last step alone.
    assert 0.2 < scores["end"]["neighbour_m"]["spearman"] < 0.9


def test_uncertainty_scores_tell_a_good_announcer_from_a_bad_one() -> None:
    error = np.arange(10.0)
    episode = np.arange(10)
    good, bad = (
        uncertainty_scores(uncertainty, error, episode, 30) for uncertainty in (error**2, -error)
    )
    assert good["spearman"] == pytest.approx(1.0)
    assert bad["spearman"] == pytest.approx(-1.0)
    assert good["error_by_fifth"] == [0.5, 2.5, 4.5, 6.5, 8.5]


def test_spearman_interval_holds_the_estimate() -> None:
    rng = np.random.default_rng(0)
    error = rng.random(500)
    scores = uncertainty_scores(error + rng.random(500), error, np.arange(500) // 5, 100)
    assert scores["interval"][0] < scores["spearman"] < scores["interval"][1]
    assert 0.5 < scores["spearman"] < 0.9


def test_uncertainty_scores_of_one_window_do_not_exist() -> None:
    assert uncertainty_scores(np.ones(1), np.ones(1), np.zeros(1, int), 5)["spearman"] is None


def test_errors_of_road_users_are_those_of_the_same_things_in_their_layout() -> None:
    """One neighbour of two is there, by its length; columns are other ones than the bundled."""
    users = road_users_spec()
    at = users.state_index
    true = np.zeros((2, 5, users.state_dim), np.float32)
    true[..., [at("neighbour_1_length"), at("neighbour_1_width")]] = 12.0, 2.5
    predicted = true.copy()
    for name, change in {"neighbour_1_dx": 3.0, "neighbour_1_dy": 4.0, "left_edge": 0.2}.items():
        predicted[..., at(name)] += change
    predicted[..., at("neighbour_2_dx")] += 50.0  # nobody
    scores = state_scores(predicted[:, 1], true[:, 1], np.ones(users.state_dim), users)
    assert scores["neighbour"]["position_mean_m"] == pytest.approx(5.0)
    assert scores["ego"]["edge_m"] == pytest.approx(0.1)
    counted = users.state_dim - 3 * 6  # the ego's, and neighbour 1's
    error = np.sqrt((9 + 16 + 0.04) / (counted - 1))  # neighbour 2's acceleration
    assert scores["all"]["nrmse"] == pytest.approx(error)
    near, seen = nearest_error(predicted, true, users)
    assert seen.all()
    np.testing.assert_allclose(near, 5.0)
    assert error_curves(predicted, true, users)["neighbour position error, m"][1] == pytest.approx(
        5
    )
    sums = final_error_sums(predicted[:, -1], true[:, -1], np.array([0, 1]), 2, users)
    np.testing.assert_allclose(sums["edge_m"][0], 0.1, rtol=1e-5)
