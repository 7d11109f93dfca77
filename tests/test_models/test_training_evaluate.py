from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.checkpoint import (
    Architecture,
    Calibration,
    Checkpoint,
    checkpoint_version,
    load_checkpoint,
    save_checkpoint,
)
from models.ensemble import WorldModelEnsemble
from models.spec import highway_spec
from models.training.baselines import BASELINES
from models.training.evaluate import evaluate, model_card_table, write_metrics
from models.training.report import (
    PLOTS,
    RESULTS_END,
    RESULTS_START,
    number,
    table,
    update_model_card,
)
from tests.driving import drive, mixed_episodes, save_store

HORIZON = 6


def save_untrained(folder: Path, calibration: Calibration) -> Path:
    torch.manual_seed(0)
    spec, architecture = highway_spec(), Architecture((16, 32))
    ensemble = WorldModelEnsemble.from_members([architecture.build(spec) for _ in range(2)])
    checkpoint = Checkpoint(ensemble, spec, architecture, calibration)
    save_checkpoint(replace(checkpoint, training={"split_seed": 3}), folder)
    return folder


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, a checkpoint, and its report."""
    folder = tmp_path_factory.mktemp("room")
    save_store(folder / "store", mixed_episodes(60))
    limits = Calibration(crash_threshold=0.5, uncertainty_limit=1e6, horizon=HORIZON)
    save_untrained(folder / "checkpoint", limits)
    return folder


@pytest.fixture(scope="module")
def metrics(room: Path) -> dict[str, Any]:
    return evaluate(room / "checkpoint", room / "store", room / "report", bootstrap=5)


def test_evaluate_compares_the_model_with_every_baseline(metrics: dict[str, Any]) -> None:
    assert list(metrics["methods"]) == ["model", *BASELINES]
    for method in metrics["methods"].values():
        assert 0 <= method["termination"]["auroc"] <= 1
        assert set(method["intervals"]) == {"auroc", "average_precision", "recall"}


def test_evaluate_finds_the_exact_physics_right(metrics: dict[str, Any]) -> None:
    physics = metrics["methods"]["bicycle + constant velocity"]
    assert physics["termination"]["auroc"] == 1
    assert physics["termination"]["recall"] == 1
    assert physics["rollout"]["steps"]["4"]["neighbour"]["position_worst_m"] < 1e-3


def test_evaluate_reports_no_states_for_a_method_without(metrics: dict[str, Any]) -> None:
    assert metrics["methods"]["time to collision"]["rollout"] is None


def test_evaluate_describes_the_data(room: Path, metrics: dict[str, Any]) -> None:
    manifest = json.loads((room / "store" / "dataset.json").read_text())
    assert metrics["dataset"]["fingerprint"] == manifest["fingerprint"]
    assert metrics["dataset"]["split_seed"] == 3
    assert metrics["dataset"]["horizon"] == HORIZON
    assert metrics["dataset"]["test_episodes"] == 12


def test_evaluate_splits_by_environment_behaviour_and_cause(metrics: dict[str, Any]) -> None:
    assert set(metrics["environments"]) == {"highway", "merge"}
    assert set(metrics["verdicts"]["behaviours"]) == {"careful", "aggressive", "bursts"}
    assert set(metrics["verdicts"]["causes"]) == {"crash", "off_road"}
    assert metrics["verdicts"]["crash_threshold"] == 0.5


def test_evaluate_says_unknown_where_the_service_would(room: Path) -> None:
    folder = save_untrained(room / "uncalibrated", Calibration())
    result = evaluate(folder, room / "store", room / "uncalibrated_report", bootstrap=0)
    rates = result["verdicts"]["behaviours"]["careful"]
    assert (rates["unknown"], rates["unsafe_of_harmless"]) == (1.0, 0.0)
    assert result["dataset"]["horizon"] == 16
    assert result["methods"]["model"]["intervals"] == {}


def test_report_folder_holds_numbers_text_and_plots(room: Path, metrics: dict[str, Any]) -> None:
    report = room / "report"
    assert json.loads((report / "report.json").read_text()) == metrics
    assert {path.name for path in report.iterdir()} == {"report.json", "report.md", *PLOTS}
    for name in PLOTS:
        assert (report / name).read_bytes().startswith(b"\x89PNG")


def test_report_text_names_version_methods_and_plots(room: Path, metrics: dict[str, Any]) -> None:
    text = (room / "report" / "report.md").read_text()
    for part in (metrics["model_version"], *BASELINES, "aggressive", "off_road", *PLOTS):
        assert part in text


def test_model_card_table_holds_the_model_s_figures(metrics: dict[str, Any]) -> None:
    text = model_card_table(metrics)
    assert number(metrics["methods"]["model"]["termination"]["auroc"]) in text
    assert f"ECE {number(metrics['model']['calibration']['ece'], 4)}" in text


def test_model_card_table_works_without_intervals(metrics: dict[str, Any]) -> None:
    methods = {name: {**m, "intervals": {}} for name, m in metrics["methods"].items()}
    assert "[" not in model_card_table({**metrics, "methods": methods}).split("Brackets")[1]


def test_metrics_travel_with_the_checkpoint_without_changing_its_version(
    room: Path, metrics: dict[str, Any]
) -> None:
    before = checkpoint_version(room / "checkpoint")
    write_metrics(room / "checkpoint", metrics)
    assert load_checkpoint(room / "checkpoint").metrics == metrics
    assert checkpoint_version(room / "checkpoint") == before == metrics["model_version"]


def test_evaluate_refuses_a_checkpoint_of_another_spec(room: Path) -> None:
    spec = replace(highway_spec(), name="other")
    architecture = Architecture((16, 32))
    ensemble = WorldModelEnsemble.from_members([architecture.build(spec)])
    save_checkpoint(Checkpoint(ensemble, spec, architecture), room / "other")
    with pytest.raises(ValueError, match="'other' is not the dataset's 'highway'"):
        evaluate(room / "other", room / "store", room / "nowhere")


@pytest.mark.parametrize("ahead_m", [pytest.param(130.0, id="nothing_terminates")])
def test_evaluate_refuses_a_dataset_without_both_outcomes(
    room: Path, tmp_path: Path, ahead_m: float
) -> None:
    save_store(tmp_path / "store", [drive(i, ahead_m=ahead_m) for i in range(20)])
    with pytest.raises(ValueError, match="0 of which terminate; collect more episodes"):
        evaluate(room / "checkpoint", tmp_path / "store", tmp_path / "report")


def test_report_numbers_show_nothing_as_a_dash() -> None:
    assert number(None) == "-"
    assert number(0.12345, 2) == "0.12"


def test_report_tables_are_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_a_model_cards_results_are_replaced_and_the_rest_is_kept(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    card = tmp_path / "card.md"
    card.write_text(f"before\n{RESULTS_START}\nstale figures\n{RESULTS_END}\nafter\n")

    update_model_card(card, metrics)
    once = card.read_text()
    update_model_card(card, metrics)

    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "stale figures" not in once
    assert model_card_table(metrics) in once
    assert card.read_text() == once


def test_a_model_card_without_markers_is_refused(metrics: dict[str, Any], tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("nothing")

    with pytest.raises(ValueError, match="lacks the markers"):
        update_model_card(card, metrics)
