from __future__ import annotations

import numpy as np
import pytest
import torch

from models.checkpoint import Architecture, Calibration, Checkpoint
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from models.safety import verdicts
from tests.test_training.driving import mixed_episodes, save_store
from training.dataset.sources import Simulated
from training.dataset.store import EpisodeStore
from training.dataset.windows import Windows, make_windows
from training.evaluation.corruptions import CORRUPTIONS
from training.evaluation.verdicts import corruption_scores, one_an_episode, verdict_scores
from training.fitting.calibrate import predict_windows, trained_ranges

HORIZON = 6
ASKED = {"allow_unguaranteed": True}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    return save_store(tmp_path_factory.mktemp("store"), mixed_episodes(24))


@pytest.fixture(scope="module")
def windows(store: EpisodeStore) -> Windows:
    cut = make_windows(store, np.arange(24), HORIZON, 2)
    return cut.take(cut.is_known)


def checkpoint_with(calibration: Calibration) -> Checkpoint:
    torch.manual_seed(0)
    spec, architecture = highway_spec(), Architecture((16, 32))
    ensemble = WorldModelEnsemble.from_members([architecture.build(spec) for _ in range(2)])
    return Checkpoint(ensemble.eval().requires_grad_(False), spec, architecture, calibration)


@pytest.mark.parametrize(
    ("threshold", "unsafe", "missed"),
    [pytest.param(1e-9, 1.0, 0.0, id="always"), pytest.param(1 - 1e-9, 0.0, 1.0, id="never")],
)
def test_verdict_scores_count_alarms_by_behaviour_and_cause(
    monkeypatch: pytest.MonkeyPatch,
    store: EpisodeStore,
    windows: Windows,
    threshold: float,
    unsafe: float,
    missed: float,
) -> None:
    # An untrained model sees contact everywhere.
    monkeypatch.setattr(verdicts, "contact_reasons", lambda *_: {})
    wide = (1e6,) * highway_spec().state_dim
    low = tuple(-x for x in wide)
    checkpoint = checkpoint_with(Calibration(threshold, 1e9, low, wide, HORIZON, ASKED))
    prediction = predict_windows(checkpoint.ensemble, windows)
    scores = verdict_scores(checkpoint, prediction, Simulated(store).labels, windows, 2, 5)
    assert set(scores["behaviours"]) == {"careful", "aggressive", "white"}
    assert set(scores["causes"]) == {"crash", "off_road"}
    assert scores["crash_threshold"] == threshold
    assert scores["behaviours"]["careful"]["unsafe_of_harmless"] == unsafe
    assert scores["behaviours"]["careful"]["unknown"] == 0
    assert scores["causes"]["crash"]["warned"]["missed"] == missed
    # An alarm that never stops is one an episode: 24 episodes, half of them careful.
    assert scores["careful_alarms"]["alarms"] == 12 * unsafe
    assert scores["careful_alarms"]["minutes"] > 0


def test_an_uncalibrated_model_always_answers_unknown(
    store: EpisodeStore, windows: Windows
) -> None:
    checkpoint = checkpoint_with(Calibration())
    prediction = predict_windows(checkpoint.ensemble, windows)
    scores = verdict_scores(checkpoint, prediction, Simulated(store).labels, windows, 2, 0)
    assert scores["behaviours"]["careful"]["unknown"] == 1
    assert scores["behaviours"]["careful"]["unsafe_of_harmless"] == 0


def test_one_window_an_episode_at_most_as_many_as_asked(windows: Windows) -> None:
    some = one_an_episode(windows, 10)
    assert len(some) == len(np.unique(some.episode)) == 10
    assert len(one_an_episode(windows, 1000)) == len(np.unique(windows.episode))


@pytest.fixture(scope="module")
def scores(windows: Windows) -> dict[str, object]:
    low, high = trained_ranges(windows)
    known = tuple(map(float, low)), tuple(map(float, high))
    checkpoint = checkpoint_with(Calibration(0.9999, 1e9, *known, HORIZON, ASKED))
    return corruption_scores(checkpoint, one_an_episode(windows, 100), 10)


def test_corrupted_states_are_answered_with_reasons(scores: dict[str, object]) -> None:
    table, clean = scores["corruptions"], scores["clean"]
    assert isinstance(table, dict)
    assert isinstance(clean, dict)
    # An untrained model sees contact everywhere, and nothing else that would make it doubt.
    assert clean["unknown"] == clean["reasons"]["predicted_contact"] < 1
    fast = table["the ego at 60 to 80 m/s"]
    assert fast["unknown"] == fast["reasons"]["input_out_of_range"] == 1
    for entry in table.values():
        assert entry["safe"] + entry["unsafe"] + entry["unknown"] == pytest.approx(1)
        assert 0 <= entry["interval"][0] <= entry["auroc"] <= entry["interval"][1] <= 1


def test_corruptions_that_change_nothing_are_left_out(scores: dict[str, object]) -> None:
    table = scores["corruptions"]
    assert isinstance(table, dict)
    names = {corruption.name for corruption in CORRUPTIONS}
    # The road is straight, and the car ahead keeps its speed.
    # This layout has no sizes.
    assert names - set(table) == {
        "curvature with the wrong sign",
        "accelerations in g",
        "lengths and widths swapped",
    }


def test_states_that_physics_can_tell_are_scored_apart(scores: dict[str, object]) -> None:
    table = scores["corruptions"]
    assert isinstance(table, dict)
    inside = table["a neighbour inside the ego"]
    found = inside["detectable"]
    assert 0 < found["windows"] <= inside["windows"]
    assert found["interval"][0] <= found["auroc"] <= found["interval"][1]
    assert 0 <= found["refused"] <= 1
    # On this road, nobody gets beside it by that, or into another.
    hidden = table["road edges swapped"]["detectable"]
    assert hidden == {"windows": 0, "auroc": None, "interval": [None, None], "refused": None}


def test_impossible_and_plausible_corruptions_are_summed_up_apart(
    scores: dict[str, object],
) -> None:
    table = scores["corruptions"]
    assert isinstance(table, dict)
    for kind, is_plausible in (("impossible", False), ("plausible", True)):
        summary = scores[kind]
        assert isinstance(summary, dict)
        among = [entry["auroc"] for entry in table.values() if entry["plausible"] is is_plausible]
        assert summary["corruptions"] == len(among)
        assert summary["lowest_auroc"] == min(among)
        assert min(among) <= summary["auroc"] <= max(among)
