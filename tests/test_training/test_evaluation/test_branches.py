from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.road_users import road_users_spec
from tests.test_training.outcomes import outcome_windows
from training.dataset.windows import Windows
from training.evaluation import branches
from training.evaluation.baselines import slots_of
from training.evaluation.branches import (
    FIRST_SEED,
    NEAR_END_S,
    SEQUENCES,
    Moment,
    branch,
    choice_scores,
    draw_moment,
    draw_sequences,
    make_branches,
    write_branches,
)
from training.evaluation.metrics import Risk
from training.simulation.bicycle import DT_S
from training.simulation.simulator import draw_episode, run_episode

SHARES = {"highway": 0.5, "racetrack": 0.5}


@pytest.fixture(scope="module")
def moment() -> Moment:
    """A moment shortly before the end of a drive."""
    for seed in range(FIRST_SEED, FIRST_SEED + 50):
        found = draw_moment(seed, SHARES, near_end=True)
        if found is not None:
            return found
    raise AssertionError("one drive in three ends")


def test_a_moment_near_the_end_lies_on_the_drive_of_its_seed(moment: Moment) -> None:
    episode = run_episode(moment.seed, moment.environment, moment.behaviour)
    steps = len(moment.actions)
    assert (moment.environment, moment.behaviour) == draw_episode(moment.seed, SHARES)
    assert episode.cause > 0
    assert 0 < (episode.steps - steps) * DT_S <= NEAR_END_S + 1e-9
    assert (moment.actions == episode.action[:steps]).all()


def test_a_drive_that_goes_on_has_no_moment_near_its_end() -> None:
    for seed in range(FIRST_SEED, FIRST_SEED + 50):
        if draw_episode(seed, SHARES)[1] == "careful":
            assert draw_moment(seed, SHARES, near_end=True) is None
            assert draw_moment(seed, SHARES, near_end=False) is not None
            return


def test_sequences_are_actions_of_many_kinds() -> None:
    sequences = draw_sequences(np.random.default_rng(0), 16)
    assert sequences.shape == (SEQUENCES, 16, 3)
    assert (sequences >= [-1, 0, 0]).all()
    assert (sequences <= [1, 1, 1]).all()
    assert len(np.unique(sequences.reshape(SEQUENCES, -1), axis=0)) == SEQUENCES


def test_branches_share_the_state_and_are_what_the_simulator_does(moment: Moment) -> None:
    windows = branch(moment, 7, 6)
    assert (windows.states[:, 0] == moment.simulate().state()).all()
    assert set(windows.episode) == {7}
    for row in (0, 5, SEQUENCES - 1):
        world = moment.simulate()
        for k, action in enumerate(windows.actions[row]):
            reward, cause = world.step(action)
            assert windows.valid[row, k]
            assert windows.rewards[row, k] == np.float32(reward)
            assert windows.terminated[row, k] == (cause > 0)
            np.testing.assert_array_equal(windows.states[row, k + 1, :6], world.state()[:6])
            if cause:
                assert not windows.valid[row, k + 1 :].any()
                assert (windows.states[row, k + 1 :] == windows.states[row, k + 1]).all()
                break


def test_a_slot_holds_one_vehicle_throughout_a_branch(moment: Moment) -> None:
    slots = slots_of(branch(moment, 0, 6).states)
    there = slots[..., 0] > 0.5
    assert (there == there[:, :1]).all()
    # Nobody moves further than at 50 m/s relative to the ego's own 40 m/s.
    assert np.abs(np.diff(slots[..., 1:3], axis=1)).max() < 90 * DT_S


@pytest.mark.slow
def test_branches_depend_on_the_arguments_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branches, "_STATES_PER_TASK", 2)
    one, two = (make_branches(tmp_path / str(n), 4, 4, SHARES, workers=n) for n in (1, 2))
    assert len(one) == 4 * SEQUENCES
    assert (one.states == two.states).all()
    assert (one.terminated == two.terminated).all()
    assert len(np.unique(one.episode)) == 4
    assert one.is_known.all()


def test_a_task_writes_the_branches_of_its_states(tmp_path: Path) -> None:
    write_branches(tmp_path / "out", 3, 2, 4, SHARES)
    windows = Windows.open(tmp_path / "out")
    assert len(windows) == 2 * SEQUENCES
    assert np.unique(windows.episode).tolist() == [180, 181]  # task 3 of 60 states each


def test_choice_counts_states_with_a_choice_and_averages_ties() -> None:
    # State 0: no choice. State 1: one of two survives. State 2: one of three ends.
    windows = outcome_windows([1, 2, 0, 3, 0, 4, 0], [0, 0, 1, 1, 2, 2, 2])
    windows = replace(windows, start_step=np.zeros(7, np.int64))
    right = windows.ends.astype(float)
    risks = {
        "right": Risk(right, right),
        "wrong": Risk(-right, 1 - right),
        "blind": Risk(np.zeros(7), np.zeros(7)),
    }
    result = choice_scores(risks, windows, 30)
    assert (result["states"], result["states_with_a_choice"]) == (3, 2)
    survives = {name: scores["survives"] for name, scores in result["methods"].items()}
    assert survives["right"] == 1
    assert survives["wrong"] == 0
    assert survives["blind"] == survives["random"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_choice_without_any_choice_has_no_share() -> None:
    windows = outcome_windows([1, 1], [0, 0])
    result = choice_scores({"any": Risk(np.ones(2), np.ones(2))}, windows, 5)
    assert result["states_with_a_choice"] == 0
    assert result["methods"]["any"]["survives"] is None


def test_branches_of_a_mixed_fleet_are_of_the_spec_asked_for(tmp_path: Path) -> None:
    spec = road_users_spec()
    windows = make_branches(tmp_path, 2, 4, SHARES, spec=spec, fleet="mixed", workers=1)
    seed = FIRST_SEED
    moment = None
    while moment is None:
        moment = draw_moment(seed, SHARES, near_end=True, fleet="mixed")
        seed += 1
    world = moment.simulate()
    np.testing.assert_array_equal(windows.states[0, 0], world.state(spec))
    lengths = windows.states[..., spec.state_index("neighbour_1_length")]
    assert (lengths == lengths[:, :1]).all()
    assert np.isclose(lengths[0, 0], world.sizes[:, 0]).any()
