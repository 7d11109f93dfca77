"""Recorded traffic in which nobody crashes, judged by models of either layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from models.checkpoint import Architecture, Calibration, Checkpoint, save_checkpoint
from models.network.ensemble import WorldModelEnsemble
from models.road_users import road_users_spec
from tests.test_training.traffic import road, rows, write_csv, write_roads
from training.dataset.sources import open_dataset
from training.dataset.windows import Windows
from training.evaluation.evaluate import evaluate
from training.evaluation.physics import CONSTANT_RATES, CONSTANT_VELOCITY
from training.evaluation.report import summary_text
from training.recordings.importing import import_tracks

PRETRAINED = Path(models.__file__).parent / "pretrained"
HORIZON = 16


def untrained(folder: Path) -> Path:
    """Write a checkpoint of the layout with sizes, whose step is that of physics and a little."""
    torch.manual_seed(0)
    spec, architecture = road_users_spec(), Architecture((16, 32))
    members = [architecture.build(spec) for _ in range(2)]
    for member in members:
        member.delta_scale.fill_(1e-3)
    limits = Calibration(
        crash_threshold=0.3,
        uncertainty_limit=1e6,
        state_low=tuple(feature.low for feature in spec.state),
        state_high=tuple(feature.high for feature in spec.state),
        horizon=HORIZON,
        notes={"allow_unguaranteed": True},
    )
    ensemble = WorldModelEnsemble.from_members(members)
    save_checkpoint(Checkpoint(ensemble, spec, architecture, limits, name="sizes"), folder)
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


@pytest.mark.parametrize("name", ["bundled", "with sizes"])
def test_what_needs_no_crash_is_reported(
    traffic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    checkpoint = PRETRAINED if name == "bundled" else untrained(tmp_path / "checkpoint")
    made, _ = import_tracks([traffic], tmp_path / "data", spec=str(checkpoint), progress=False)
    assert (made.episodes, made.endings.total()) == (6, 0)

    found = evaluate(checkpoint, tmp_path / "data", tmp_path / "report", bootstrap=20)

    assert "0 of which terminate: episodes that end are needed, too" in found["lacking"]
    assert found["judged_episodes"] == 6
    assert found["windows"] == 6 * 33  # a window every two steps, of 80
    shares = {x: found["verdicts"]["all"][x]["share"] for x in ("safe", "unsafe", "unknown")}
    assert sum(shares.values()) == pytest.approx(1)
    for rate in ("careful_alarms", "unknowns"):
        assert found["verdicts"][rate]["minutes"] == pytest.approx(6 * 33 * 0.1 / 60, rel=0.01)
        assert found["verdicts"][rate]["per_minute"] >= 0
    assert {*found["neighbours"]} == {"model", CONSTANT_VELOCITY, CONSTANT_RATES}
    errors = {method: x["mean"] for method, x in found["neighbours"].items()}
    assert (
        0 < errors[CONSTANT_VELOCITY] < errors[CONSTANT_RATES] < 1.5
    )  # nobody turns, all is noise
    for error in ("neighbour_m", "all_sd"):
        assert -1 <= found["uncertainty"]["end"][error]["spearman"] <= 1
    said = capsys.readouterr().err
    assert ("nobody knows" in said) == (name == "with sizes")  # that checkpoint does not say
    text = (tmp_path / "report" / "report.md").read_text()
    for part in ("constant turn rate and acceleration", "False alarms in 0.3 minutes", "Spearman"):
        assert part in text
    for part in ("constant velocity", "Spearman", "`unknown`, counted likewise"):
        assert part in summary_text(found)


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
