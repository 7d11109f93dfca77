"""An evaluation of features that nobody here has heard of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from models.checkpoint import (
    Architecture,
    Calibration,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from models.network.ensemble import WorldModelEnsemble
from tests.test_training.toy import DT_S, toy_spec, write_toy_episodes
from training.dataset.sources import Dataset, open_dataset
from training.evaluation import evaluate as evaluate_module
from training.evaluation import preparing
from training.evaluation.evaluate import evaluate, model_card_table, write_metrics
from training.evaluation.judgements import STRIDE
from training.evaluation.report import (
    PHYSICS_PLOTS,
    PLOTS,
    STATE_PLOTS,
    summary_text,
    update_model_card,
)
from training.fitting.calibrate import predict_windows
from training.running.locks import LOCK

HORIZON = 6
LIMITS = Calibration(
    crash_threshold=0.3,
    uncertainty_limit=1e6,
    state_low=(-10.0,) * 4,
    state_high=(10.0,) * 4,
    horizon=HORIZON,
    notes={"allow_unguaranteed": True},
)


def save_toy(folder: Path, *, members: int = 2) -> Path:
    torch.manual_seed(0)
    spec, architecture = toy_spec(), Architecture((16, 32))
    models = [architecture.build(spec) for _ in range(members)]
    for model in models:
        model.delta_scale.fill_(0.1)
    ensemble = WorldModelEnsemble.from_members(models)
    save_checkpoint(Checkpoint(ensemble, spec, architecture, LIMITS, name="toy"), folder)
    return folder


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any_spec")
    write_toy_episodes(folder / "data", 120)
    save_toy(folder / "checkpoint")
    return folder


@pytest.fixture(scope="module")
def metrics(room: Path) -> dict[str, Any]:
    return evaluate(room / "checkpoint", room / "data", room / "report", bootstrap=10)


def ranking(room: Path, data: Dataset, episodes: NDArray[np.int64]) -> float:
    """Return Spearman's rho of windows' uncertainties and last errors, by SciPy."""
    windows = data.windows(episodes, HORIZON, STRIDE)
    scale = windows.states[:, 0].std(0)
    windows = windows.take(windows.valid[:, -1] & ~windows.ends)
    found = predict_windows(load_checkpoint(room / "checkpoint").ensemble, windows)
    off = (found.states[:, -1] - windows.states[:, -1]) / scale
    return float(spearmanr(found.uncertainty, np.square(off).mean(1)).statistic)


def test_every_feature_is_judged_in_its_unit(metrics: dict[str, Any]) -> None:
    errors = metrics["features"]
    assert errors["steps"] == [1, 2, 4, 6]
    assert list(errors["features"]) == ["x", "y", "vx", "vy"]
    x = errors["features"]["x"]
    assert x["unit"] == "m"
    assert len(x["mean"]) == len(x["relative"]) == 4
    assert x["interval"][-1][0] <= x["mean"][-1] <= x["interval"][-1][1]
    assert x["relative_interval"][-1][0] <= x["relative"][-1] <= x["relative_interval"][-1][1]


def test_termination_is_judged_without_rivals(metrics: dict[str, Any]) -> None:
    part = metrics["termination"]["all"]
    assert list(metrics["termination"]) == ["all"]
    assert list(part["methods"]) == list(metrics["methods"]) == ["model"]
    assert 0 <= part["methods"]["model"]["scores"]["auroc"] <= 1
    assert 0 < part["windows_that_end"] < part["windows"]
    assert metrics["dataset"]["episodes"]["test"] == 22
    assert metrics["dataset"]["causes"] == ["end"]
    assert set(metrics["divergence"]) == {"recorded"}
    assert set(metrics["uncertainty"]["end"]) == {"all_sd"}
    assert metrics["corruptions"] is metrics["branches"] is metrics["unseen"] is None


def test_uncertainty_is_ranked_beside_the_errors_of_its_own_windows(
    room: Path, metrics: dict[str, Any]
) -> None:
    data = open_dataset(room / "data")

    rho = metrics["uncertainty"]["end"]["all_sd"]["spearman"]

    assert rho == pytest.approx(ranking(room, data, data.split(0)["test"]), abs=1e-3)


def test_verdicts_are_shared_out_at_the_served_threshold(metrics: dict[str, Any]) -> None:
    verdicts = metrics["verdicts"]
    overall = verdicts["all"]
    assert verdicts["crash_threshold"] == 0.3
    assert sum(overall[name]["share"] for name in ("safe", "unsafe", "unknown")) == pytest.approx(1)
    assert overall["safe"]["interval"][0] <= overall["safe"]["share"]
    assert overall["unknown"]["share"] == 0
    assert 0.05 < overall["unknown"]["interval"][1] < 0.2  # nobody knows, of 22 episodes
    assert overall["unsafe_of_ending"]["share"] == pytest.approx(
        1 - overall["safe_of_ending"]["share"], abs=1e-5
    )
    minutes = verdicts["careful_alarms"]["minutes"]
    assert 0 < minutes <= metrics["termination"]["all"]["windows"] * 2 * DT_S / 60


def test_the_report_speaks_of_the_features_and_not_of_driving(
    room: Path, metrics: dict[str, Any]
) -> None:
    report = room / "report"
    text = (report / "report.md").read_text()

    assert json.loads((report / "report.json").read_text()) == metrics
    assert {path.name for path in report.iterdir()} == {"report.json", "report.md", LOCK, *PLOTS}
    for line in (
        "| vx | m/s |",
        "after 0.6 s",
        "of those that end (recall)",
        "minutes of episodes",
    ):
        assert line in text
    for word in ("crash", "road", "physics", "neighbour", "careful", "quick", *PHYSICS_PLOTS):
        assert word not in text.replace("crash threshold", "").replace("crash_probability", "")
    assert "| model |" in model_card_table(metrics)


def test_the_summary_beside_the_weights_names_the_features(
    room: Path, metrics: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_toy(tmp_path / "checkpoint")
    write_metrics(folder, metrics)
    summary = json.loads((folder / "metrics.json").read_text())
    assert list(summary["final_errors"]) == ["x", "y", "vx", "vy"]


def test_a_summary_of_another_model_is_not_put_beside_the_weights(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_toy(tmp_path / "checkpoint")
    save_checkpoint(replace(load_checkpoint(folder), name="retrained since"), folder)

    with pytest.raises(ValueError, match=f"but {metrics['model_version']} was judged"):
        write_metrics(folder, metrics)
    assert not (folder / "metrics.json").exists()


def test_a_quick_evaluation_takes_some_whole_episodes_and_says_so(
    room: Path, metrics: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate_module, "_QUICK_WINDOWS", 60)
    monkeypatch.setattr(preparing, "_EPISODES_AT_ONCE", 2)

    quick = evaluate(room / "checkpoint", room / "data", tmp_path / "report", quick=True)

    assert (quick["is_quick"], metrics["is_quick"]) == (True, False)
    part, whole = quick["termination"]["all"], metrics["termination"]["all"]
    assert part["episodes"] < whole["episodes"] == 22
    assert part["windows"] < 60 + 2 * 25  # two episodes at a time until there are enough
    assert "**A quick evaluation**" in (tmp_path / "report" / "report.md").read_text()


def test_one_member_announces_nothing(room: Path, tmp_path: Path) -> None:
    folder = save_toy(tmp_path / "alone", members=1)
    found = evaluate(folder, room / "data", tmp_path / "report", bootstrap=2)
    assert found["uncertainty"]["steps"]["all_sd"]["spearman"] is None
    assert found["verdicts"]["all"]["safe"]["share"] == 0


def test_a_model_that_explodes_is_reported(room: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec, architecture = toy_spec(), Architecture((16, 32), residual=False)
    models = [architecture.build(spec) for _ in range(2)]
    with torch.no_grad():
        for model in models:
            model.decoder.weight.mul_(1e12)
    checkpoint = Checkpoint(
        WorldModelEnsemble.from_members(models), spec, architecture, replace(LIMITS, horizon=16)
    )
    save_checkpoint(checkpoint, tmp_path / "wild")

    found = evaluate(tmp_path / "wild", room / "data", tmp_path / "report", bootstrap=2)

    assert found["features"]["features"]["x"]["mean"][-1] is None
    assert found["divergence"]["recorded"]["not_finite"] > 0
    assert found["verdicts"]["all"]["safe"]["share"] == 0


def test_data_that_show_nothing_are_refused_with_what_is_needed(room: Path, tmp_path: Path) -> None:
    write_toy_episodes(tmp_path / "data", 60, reach_m=0.0)
    message = "of which terminate: episodes that go on for longer are needed, too"
    with pytest.raises(ValueError, match=message):
        evaluate(room / "checkpoint", tmp_path / "data", tmp_path / "report")
    assert not list((tmp_path / "report").glob("report.*"))


@pytest.mark.parametrize(
    ("count", "reach_m", "episodes", "message"),
    [
        (60, 9.0, 60, "0 of which terminate: episodes that end are needed, too"),
        (3, 1.2, 3, "holds 3 episodes, of which the split leaves none for validation: record 13"),
    ],
    ids=["none ends", "few"],
)
def test_without_ends_the_rest_is_reported_of_all_episodes(
    room: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    count: int,
    reach_m: float,
    episodes: int,
    message: str,
) -> None:
    write_toy_episodes(tmp_path / "data", count, reach_m=reach_m)
    folder = tmp_path / "report"

    found = evaluate(room / "checkpoint", tmp_path / "data", folder, bootstrap=5)

    assert message in found["lacking"]
    assert f"WARNING: terminations are not scored: {found['lacking']}" in capsys.readouterr().err
    assert found["termination"] is found["methods"] is found["neighbours"] is None
    assert found["judged_episodes"] == found["verdicts"]["all"]["episodes"] == episodes
    assert found["verdicts"]["unknowns"]["alarms"] == 0
    data = open_dataset(tmp_path / "data")
    rho = ranking(room, data, np.arange(episodes))
    assert found["uncertainty"]["end"]["all_sd"]["spearman"] == pytest.approx(rho, abs=1e-3)
    if not reach_m < 9:
        assert found["guarantee"] is None
        assert found["verdicts"]["all"]["safe_of_ending"]["share"] is None
    assert {path.name for path in folder.glob("*.png")} == {*STATE_PLOTS}
    text = (folder / "report.md").read_text()
    assert "Not scored (AUROC, average precision" in text
    assert message in text
    assert "`unknown`, counted likewise: " in text
    assert all(part in text for part in summary_text(found).split("\n\n"))


def test_what_is_not_scored_is_written_beside_no_weights(room: Path, tmp_path: Path) -> None:
    write_toy_episodes(tmp_path / "data", 20, reach_m=9.0)
    found = evaluate(room / "checkpoint", tmp_path / "data", tmp_path / "report", bootstrap=2)
    card = tmp_path / "card.md"
    card.write_text("as it was")
    message = "stays as it is: terminations are not scored, since"
    with pytest.raises(ValueError, match=message):
        write_metrics(room / "checkpoint", found)
    with pytest.raises(ValueError, match=message):
        update_model_card(card, found, tmp_path / "report")
    assert card.read_text() == "as it was"
    assert not (room / "checkpoint" / "metrics.json").exists()
