from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.checkpoint import Architecture, Checkpoint
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from tests.test_training.driving import mixed_episodes, save_store
from training.dataset.windows import Windows, make_windows
from training.evaluation.baselines import BASELINES
from training.evaluation.methods import MODEL, Lineup, fit_rivals, model_risk
from training.evaluation.metrics import FALSE_ALARM_RATES
from training.fitting.calibrate import predict_windows


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    store = save_store(tmp_path_factory.mktemp("store"), mixed_episodes(24))
    cut = make_windows(store, np.arange(24), 6, 2)
    return cut.take(cut.is_known)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    spec, architecture = highway_spec(), Architecture((16, 32), kinematics=True)
    members = [architecture.build(spec) for _ in range(2)]
    ensemble = WorldModelEnsemble.from_members(members).eval().requires_grad_(False)
    return Checkpoint(ensemble, spec, architecture)


def test_a_rival_s_probabilities_rise_with_its_score_and_fit_its_outcomes(
    windows: Windows,
) -> None:
    for name, rival in fit_rivals(windows).items():
        _, risk = rival.forecast(windows)
        order = np.argsort(risk.score)
        assert (np.diff(risk.probability[order]) >= 0).all(), name
        assert risk.probability.mean() == pytest.approx(windows.ends.mean(), abs=1e-6), name


def test_thresholds_give_the_asked_false_alarms_on_calibration_windows(
    windows: Windows, checkpoint: Checkpoint
) -> None:
    lineup = Lineup.fit(checkpoint, windows, windows)
    for name, risk in lineup.risks(windows).items():
        for key, rate in FALSE_ALARM_RATES.items():
            threshold = lineup.thresholds[name][key]
            harmless = risk.score[~windows.ends]
            assert (harmless > threshold).mean() <= rate
            assert threshold in harmless


def test_forecasts_are_the_model_s_and_every_baseline_s(
    windows: Windows, checkpoint: Checkpoint
) -> None:
    lineup = Lineup(checkpoint, fit_rivals(windows), {})
    some = windows.take(slice(0, 5))
    prediction = predict_windows(checkpoint.ensemble, some)
    found = {name: (states, risk) for name, states, risk in lineup.forecasts(some, prediction)}
    assert list(found) == [MODEL, *BASELINES]
    assert found[MODEL][0] is prediction.states
    for name, predict in BASELINES.items():
        direct = predict(some)
        assert (found[name][1].score == direct.score).all()
        assert (found[name][0] is None) == (direct.states is None)


def test_a_prediction_that_is_not_finite_counts_as_certain_to_end(
    windows: Windows, checkpoint: Checkpoint
) -> None:
    prediction = predict_windows(checkpoint.ensemble, windows.take(slice(0, 3)))
    dones = prediction.dones.copy()
    dones[1, 2] = np.nan
    risk = model_risk(replace(prediction, dones=dones))
    assert risk.score[1] == risk.probability[1] == 1
    assert (risk.score[[0, 2]] == model_risk(prediction).score[[0, 2]]).all()


def test_a_lineup_takes_a_prediction_that_is_there_already(
    windows: Windows, checkpoint: Checkpoint
) -> None:
    lineup = Lineup(checkpoint, {}, {})
    prediction = predict_windows(checkpoint.ensemble, windows)
    other = replace(prediction, dones=np.zeros_like(prediction.dones))
    assert (lineup.risks(windows, other)[MODEL].score == 0).all()
    assert (lineup.risks(windows)[MODEL].score == model_risk(prediction).score).all()
