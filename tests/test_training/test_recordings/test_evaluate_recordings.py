"""Recorded traffic in which nobody crashes, judged by models of either layout.

Beside the bundled model they are made up, so that their verdicts are known.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from models.checkpoint import Architecture, Calibration, Checkpoint, save_checkpoint
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from models.road_users import road_users_spec
from models.spec import Spec
from tests.test_training.traffic import road, rows, write_csv, write_roads
from training.dataset.sources import open_dataset
from training.dataset.windows import Windows
from training.evaluation.evaluate import evaluate
from training.evaluation.physics import CONSTANT_RATES, CONSTANT_VELOCITY
from training.evaluation.report import summary_text
from training.recordings.importing import import_tracks

PRETRAINED = Path(models.__file__).parent / "pretrained"
HORIZON = 16


def untrained(folder: Path, spec: Spec, hazard: float, uncertainty_limit: float) -> Path:
    """Write a checkpoint whose step is that of physics and a little.

    Args:
        folder: Where to.
        spec: Of its states.
        hazard: Logit of the probability that it predicts for each step.
        uncertainty_limit: Above it, nothing is `safe`.
    """
    torch.manual_seed(0)
    architecture = Architecture((16, 32))
    members = [architecture.build(spec) for _ in range(2)]
    for member in members:
        member.delta_scale.fill_(1e-3)
        last = member.done_head[-1]
        assert isinstance(last, torch.nn.Linear)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, hazard)
    limits = Calibration(
        crash_threshold=0.3,
        uncertainty_limit=uncertainty_limit,
        state_low=tuple(feature.low for feature in spec.state),
        state_high=tuple(feature.high for feature in spec.state),
        horizon=HORIZON,
        notes={"allow_unguaranteed": True},
    )
    ensemble = WorldModelEnsemble.from_members(members)
    save_checkpoint(Checkpoint(ensemble, spec, architecture, limits, name="made-up"), folder)
    return folder


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motorway with noise on all that a tracker says."""
    folder, rng = tmp_path_factory.mktemp("traffic"), np.random.default_rng(0)
    given = [
        row
        for k in range(6)
        for row in rows(f"c{k}", ahead_m=18.0 * k, left_m=3.5 * (k % 3), speed=20 + 0.5 * k)
    ]
    for row in given:
        row["x"] += rng.normal(0, 0.03)
        row["y"] += rng.normal(0, 0.03)
        row["heading"] += rng.normal(0, 0.005)
        row["speed"] += rng.normal(0, 0.2)
    write_roads(folder / "tracks.road.json", road())
    return write_csv(folder / "tracks.csv", given)


def judged(
    checkpoint: Path, traffic: Path, folder: Path
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return what is found of a checkpoint, and the shares of verdicts."""
    made, _ = import_tracks([traffic], folder / "data", spec=str(checkpoint), progress=False)
    assert (made.episodes, made.endings.total()) == (6, 0)
    found = evaluate(checkpoint, folder / "data", folder / "report", bootstrap=20)
    verdicts = found["verdicts"]["all"]
    return found, {name: verdicts[name]["share"] for name in ("safe", "unsafe", "unknown")}


def test_what_needs_no_crash_is_reported(
    traffic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, shares = judged(PRETRAINED, traffic, tmp_path)

    assert "0 of which terminate: episodes that end are needed, too" in found["lacking"]
    assert found["judged_episodes"] == 6
    assert found["windows"] == 6 * 33  # a window every two steps, of 80
    assert sum(shares.values()) == pytest.approx(1)
    assert {*found["neighbours"]} == {"model", CONSTANT_VELOCITY, CONSTANT_RATES}
    errors = {method: x["mean"] for method, x in found["neighbours"].items()}
    assert (
        0 < errors[CONSTANT_VELOCITY] < errors[CONSTANT_RATES] < 1.5
    )  # nobody turns, all is noise
    assert "nobody knows" not in capsys.readouterr().err
    text = (tmp_path / "report" / "report.md").read_text()
    for part in ("constant rates", "False alarms in 0.3 minutes", "Spearman"):
        assert part in text
    for part in ("constant velocity", "Spearman", "`unknown`, counted likewise"):
        assert part in summary_text(found)


@pytest.mark.parametrize(
    ("spec", "verdict", "hazard", "uncertainty_limit"),
    [
        pytest.param(highway_spec(), "unsafe", 2.0, 1e6, id="unsafe"),
        pytest.param(road_users_spec(), "unknown", -12.0, 1e-9, id="unknown"),
    ],
)
def test_verdicts_and_uncertainty_are_counted_as_the_model_gives_them(
    traffic: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spec: Spec,
    verdict: str,
    hazard: float,
    uncertainty_limit: float,
) -> None:
    checkpoint = untrained(tmp_path / "checkpoint", spec, hazard, uncertainty_limit)
    found, shares = judged(checkpoint, traffic, tmp_path)

    assert shares == {name: float(name == verdict) for name in shares}
    for rate, counted in (("careful_alarms", "unsafe"), ("unknowns", "unknown")):
        # From its begin to its end, each episode is one alarm.
        alarms = 6 if counted == verdict else 0
        minutes = 6 * 33 * 0.1 / 60
        assert found["verdicts"][rate]["alarms"] == alarms
        assert found["verdicts"][rate]["minutes"] == pytest.approx(minutes, rel=0.01)
        assert found["verdicts"][rate]["per_minute"] == pytest.approx(alarms / minutes, rel=0.01)
    # Both grow from step to step.
    steps, end = (found["uncertainty"][when] for when in ("steps", "end"))
    assert min(steps[error]["spearman"] for error in ("neighbour_m", "all_sd")) > 0.5
    # Fifths of all windows: their errors are, on average, those of all.
    fifths = end["neighbour_m"]["error_by_fifth"]
    assert np.mean(fifths) == pytest.approx(found["neighbours"]["model"]["mean"], rel=0.02)
    assert "nobody knows" in capsys.readouterr().err  # that checkpoint does not say


def test_windows_start_in_what_was_known_and_are_judged_by_the_truth(
    traffic: Path, tmp_path: Path
) -> None:
    import_tracks([traffic], tmp_path / "data", spec="highway", progress=False)
    data = open_dataset(tmp_path / "data")
    windows: Windows = data.windows(np.arange(6), HORIZON, 2)
    speed = windows.states[:, :, data.spec.state_index("speed")]
    first, rest = speed[:, 0] - speed[:, 1], np.diff(speed[:, 1:], axis=1)
    assert np.std(first) > 0.1
    assert np.abs(rest).max() < 0.1


def test_the_data_say_which_files_they_are_of(traffic: Path, tmp_path: Path) -> None:
    import_tracks([traffic], tmp_path / "data", spec="highway", progress=False)
    document: dict[str, Any] = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert list(document["recordings"]) == ["tracks.csv"]
    assert len(document["recordings"]["tracks.csv"]) == 64
