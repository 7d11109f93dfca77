from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.highway import highway_spec
from tests.test_training.outcomes import HORIZON, outcome_windows
from tests.test_training.toy import toy_spec, toy_windows
from training.evaluation.feature_errors import feature_errors

SPEC = highway_spec()


def test_errors_are_means_over_windows_and_shares_of_what_changed() -> None:
    windows = toy_windows(50, 6, seed=0)
    predicted = windows.states + np.array([0.0, 0.5, 0.0, 0.0], np.float32)

    errors = feature_errors(predicted, windows, toy_spec(), draws=30)

    assert (errors["windows"], errors["episodes"]) == (50, 50)
    moved = np.abs(windows.states[:, [1, 2, 4, 6], 1] - windows.states[:, :1, 1]).mean(0)
    y = errors["features"]["y"]
    assert y["mean"] == pytest.approx([0.5] * 4, rel=1e-5)
    assert y["relative"] == pytest.approx((0.5 / moved).tolist(), rel=1e-5)
    assert errors["features"]["x"]["mean"] == [0, 0, 0, 0]
    for low, high in y["relative_interval"]:
        assert low < high


def test_who_predicts_that_nothing_changes_is_as_good_as_that() -> None:
    windows = toy_windows(30, 6, seed=0)
    still = np.broadcast_to(windows.states[:, :1], windows.states.shape)
    errors = feature_errors(still, windows, toy_spec(), draws=5)
    for feature in errors["features"].values():
        assert feature["relative"] == pytest.approx([1.0] * 4)
        assert feature["relative_interval"][0] == pytest.approx([1.0, 1.0])


def test_windows_of_an_episode_are_drawn_together() -> None:
    windows = replace(toy_windows(40, 6, seed=0), episode=np.arange(40) // 20)
    predicted = windows.states.copy()
    predicted[:20, :, 0] += 1.0  # all of the first episode, nothing of the second
    x = feature_errors(predicted, windows, toy_spec(), draws=50)["features"]["x"]
    assert x["mean"][0] == pytest.approx(0.5)
    assert x["interval"][0] == pytest.approx([0.0, 1.0])


def test_features_of_absent_neighbours_do_not_count() -> None:
    windows = outcome_windows([0, 0])
    windows.states[0, :, SPEC.state_index("neighbour_1_presence")] = 1
    predicted = windows.states.copy()
    predicted[:, HORIZON, SPEC.state_index("neighbour_1_dx")] = [3.0, 100.0]

    features = feature_errors(predicted, windows, SPEC, draws=0)["features"]

    assert features["neighbour_1_dx"]["mean"][-1] == 3.0
    assert features["neighbour_2_dx"]["mean"][-1] is None
    assert features["speed"]["relative"][-1] is None  # nothing changed
    assert features["speed"]["interval"][-1] == [None, None]
