from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.test_training.outcomes import labels_of, outcome_windows
from training.evaluation.alarms import (
    false_alarms,
    guarantee_scores,
    summarise_leads,
    warning_scores,
)
from training.simulation.bicycle import DT_S
from training.simulation.simulator import CAUSES

CRASH, OFF_ROAD = CAUSES.index("crash"), CAUSES.index("off_road")


def test_warnings_are_told_by_cause_and_by_how_far_ahead() -> None:
    windows = outcome_windows([4, 1, 2, 3, 0], [0, 0, 1, 2, 3])
    alarm = np.array([True, True, False, True, False])
    labels = labels_of([CRASH, OFF_ROAD, CRASH, 0])
    scores = warning_scores(alarm, windows, labels, 20, DT_S)
    assert scores["recall_near"] == 0.5
    assert scores["recall_far"] == 1.0
    assert scores["all"]["episodes"] == 3
    assert scores["all"]["missed"] == pytest.approx(1 / 3)
    assert scores["all"]["median_s"] == pytest.approx(0.15)
    assert (scores["crash"]["episodes"], scores["crash"]["missed"]) == (2, 0.0)
    assert (scores["off_road"]["episodes"], scores["off_road"]["missed"]) == (1, 1.0)


def test_no_missed_episode_still_leaves_room_for_some() -> None:
    summary = summarise_leads(np.full(100, 0.75), 50)
    assert summary["missed"] == 0
    assert summary["missed_interval"][0] == 0
    assert summary["missed_interval"][1] == pytest.approx(0.037, abs=1e-3)
    assert summary["median_interval"] == [0.75, 0.75]


def test_leads_of_no_episode_have_no_median() -> None:
    summary = summarise_leads(np.array([]), 50)
    assert summary["episodes"] == 0
    assert summary["median_s"] is summary["missed"] is None


def test_unsafe_windows_in_a_row_are_one_false_alarm() -> None:
    windows = outcome_windows([0] * 8, [0] * 6 + [1, 1])
    alarm = np.array([True, True, False, True, True, True, True, False])
    result = false_alarms(alarm, windows, np.ones(8, bool), stride=1, draws=20, dt_s=DT_S)
    # Two in the first episode, one in the second: it does not go on across episodes.
    assert result["alarms"] == 3
    assert result["minutes"] == pytest.approx(8 * 0.05 / 60)
    assert result["per_minute"] == pytest.approx(3 / (8 * 0.05 / 60))


def test_false_alarms_on_both_sides_of_a_left_out_window_are_two() -> None:
    windows = outcome_windows([0] * 3, [0] * 3)
    rows = np.array([True, False, True])
    assert (
        false_alarms(np.ones(3, bool), windows, rows, stride=1, draws=0, dt_s=DT_S)["alarms"] == 2
    )


def test_no_false_alarm_in_little_driving_is_not_sure_to_be_the_rate() -> None:
    windows = outcome_windows([0] * 8, [0] * 8)
    rows = np.ones(8, bool)
    result = false_alarms(~rows, windows, rows, stride=1, draws=20, dt_s=DT_S)
    assert result["per_minute"] == 0
    assert result["interval"] == [0, pytest.approx(3.689 / (8 * 0.05 / 60), rel=1e-3)]


def test_false_alarms_of_no_driving_have_no_rate() -> None:
    windows = outcome_windows([0])
    result = false_alarms(
        np.ones(1, bool), windows, np.zeros(1, bool), stride=1, draws=5, dt_s=DT_S
    )
    assert result["per_minute"] is None
    assert result["interval"] == [None, None]


def guarantee(threshold: float | None, lead_s: float = 0.1) -> dict[str, Any]:
    return {"conformal": {"alpha": 0.01, "lead_s": lead_s, "episodes": 321, "threshold": threshold}}


def test_guarantee_counts_episodes_without_an_alarm_in_time() -> None:
    # Episode 0 is warned 3 steps ahead, 1 only one step ahead, 2 has no window two steps ahead.
    windows = outcome_windows([3, 1, 3, 1, 1], [0, 0, 1, 1, 2])
    probability = np.array([0.9, 0.9, 0.3, 0.9, 0.9])
    scores = guarantee_scores(probability, windows, guarantee(0.5), crash_threshold=0.2, dt_s=DT_S)
    assert scores is not None
    assert scores["episodes"] == 2
    assert scores["guaranteed"]["missed"] == 0.5
    assert scores["served"] == {
        "threshold": 0.2,
        "missed": 0.0,
        "interval": [0.0, pytest.approx(0.658, abs=1e-3)],
    }
    assert (scores["alpha"], scores["calibration_episodes"]) == (0.01, 321)


@pytest.mark.parametrize(
    ("notes", "served"),
    [
        pytest.param({}, 0.5, id="no_note"),
        pytest.param(guarantee(None), 0.5, id="too_few_episodes"),
        pytest.param(guarantee(0.5), None, id="uncalibrated"),
    ],
)
def test_without_a_guarantee_there_is_nothing_to_check(
    notes: dict[str, Any], served: float | None
) -> None:
    assert guarantee_scores(np.array([0.5]), outcome_windows([1]), notes, served, dt_s=DT_S) is None
