from __future__ import annotations

import json
import signal
import sys
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
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from tests.test_training.driving import drive, mixed_episodes, save_store
from tests.test_training.interrupted import Running
from tests.test_training.toy import toy_spec
from training.dataset import collect
from training.evaluation import driving, judgements
from training.evaluation.baselines import BASELINES, FULL_PHYSICS
from training.evaluation.branches import SEQUENCES
from training.evaluation.evaluate import evaluate, model_card_table, write_metrics
from training.evaluation.judgements import Trial
from training.evaluation.metrics import SCORES
from training.evaluation.parts import FOLDER, Parts, remove_parts
from training.evaluation.physics import CONSTANT_RATES, CONSTANT_VELOCITY
from training.evaluation.report import (
    PHYSICS_PLOTS,
    PLOTS,
    RESULTS_END,
    RESULTS_START,
    rounded,
    update_model_card,
)
from training.evaluation.tables import ahead_table, number, ranged, table
from training.running.locks import LOCK, locked
from training.running.stopping import Stopped, stoppable
from training.simulation.behaviours import SEQUENCE_KINDS
from training.simulation.roads import ENVIRONMENTS

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
    driven = mixed_episodes(108)
    # Every sixth on unseen roads, some of them ending.
    unseen = ENVIRONMENTS.index("roundabout")
    episodes = [
        replace(episode, environment=unseen if i // 6 % 6 == 5 else episode.environment)
        for i, episode in enumerate(driven)
    ]
    save_store(folder / "store", episodes)
    guarantee = {"alpha": 0.01, "lead_s": 0.1, "episodes": 99, "threshold": 0.4}
    dim = highway_spec().state_dim
    limits = Calibration(
        crash_threshold=0.5,
        uncertainty_limit=1e6,
        state_low=(-1e6,) * dim,
        state_high=(1e6,) * dim,
        horizon=HORIZON,
        notes={"conformal": guarantee, "allow_unguaranteed": True},
    )
    save_untrained(folder / "checkpoint", limits)
    return folder


@pytest.fixture(scope="module")
def metrics(room: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "EPISODES_PER_SHARD", 8)
        return evaluate(
            room / "checkpoint",
            room / "store",
            room / "report",
            bootstrap=5,
            branch_states=10,
            provoked_transitions=1,
        )


def evaluate_again(room: str) -> None:
    """Evaluate as the fixture `metrics` does, into another folder."""
    folder = Path(room)
    collect.EPISODES_PER_SHARD = 8
    try:
        with stoppable():
            evaluate(
                folder / "checkpoint",
                folder / "store",
                folder / "again",
                bootstrap=5,
                branch_states=10,
                provoked_transitions=1,
            )
    except Stopped as exc:
        print(exc, *exc.__notes__)
        sys.exit(exc.exit_code)


@pytest.mark.slow
def test_evaluate_goes_on_after_signals_to_the_same_report(
    room: Path, metrics: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from tests.test_training.test_evaluation.test_evaluate import evaluate_again; "
        f"evaluate_again({str(room)!r})"
    )
    parts = room / "again" / FOLDER
    running = Running(code, tmp_path)
    running.until((parts / "methods.json").exists)
    running.signal(signal.SIGKILL, to_group=True)
    running = Running(code, tmp_path)
    running.until((parts / "unseen.json").exists)
    assert running.signal(signal.SIGINT, to_group=True) == 130
    assert "Stopped by SIGINT" in running.output
    assert "parts of the evaluation done" in running.output
    assert "Traceback" not in running.output

    def done_before(trial: Trial) -> None:
        raise AssertionError("it begins again")

    for room_of, name in ((judgements, "methods"), (driving, "corruptions")):
        monkeypatch.setattr(room_of, name, done_before)
    evaluate_again(str(room))

    for name in ("report.json", "report.md"):
        whole, again = ((room / at / name).read_text() for at in ("report", "again"))
        assert whole == again
    assert {p.name for p in (room / "report").iterdir()} == {
        p.name for p in (room / "again").iterdir()
    }
    assert not parts.exists()


def test_parts_of_another_evaluation_are_not_taken(tmp_path: Path) -> None:
    parts = Parts(tmp_path / FOLDER, {"model": "a"})
    assert parts.kept("scores", lambda: {"x": 0.1}) == {"x": 0.1}

    same = Parts(tmp_path / FOLDER, {"model": "a"})
    assert same.kept("scores", lambda: {"x": 0.2}) == {"x": 0.1}
    other = Parts(tmp_path / FOLDER, {"model": "b"})
    assert other.kept("scores", lambda: {"x": 0.2}) == {"x": 0.2}


def test_parts_of_an_evaluation_that_runs_are_left(tmp_path: Path) -> None:
    Parts(tmp_path / FOLDER, {"model": "a"}).kept("scores", lambda: {})
    with locked(tmp_path, "evaluating"):  # the next command, while the first drove
        remove_parts(tmp_path)
        assert Parts(tmp_path / FOLDER, {"model": "a"}).has("scores")

    remove_parts(tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_evaluate_says_that_nobody_knows_what_the_model_was_trained_on(
    room: Path, metrics: dict[str, Any]
) -> None:
    assert metrics["dataset"]["held_out"]["origin"] == "unknown"
    assert (
        "**Nobody knows which episodes the model was trained on"
        in (room / "report" / "report.md").read_text()
    )


def test_evaluate_compares_the_model_with_every_baseline(metrics: dict[str, Any]) -> None:
    assert list(metrics["methods"]) == ["model", *BASELINES]
    for part in metrics["termination"].values():
        assert list(part["methods"]) == ["model", *BASELINES]
        for method in part["methods"].values():
            assert 0 <= method["scores"]["auroc"] <= 1
            assert set(method["intervals"]) == set(SCORES)
            assert len(method["lead"]["intervals"]["auroc"]) == 2


def test_evaluate_finds_the_exact_physics_right(metrics: dict[str, Any]) -> None:
    for name in ("bicycle + constant velocity", FULL_PHYSICS):
        scores = metrics["termination"]["all"]["methods"][name]["scores"]
        physics = metrics["methods"][name]
        assert scores["auroc"] == scores["recall_1"] == 1
        assert scores["ece"] < 0.03
        assert physics["states"]["4"]["neighbour"]["position_worst_m"] < 1e-3
        assert physics["final_errors"]["speed_mps"]["mean"] < 1e-5
        assert physics["final_errors"]["speed_mps"]["lead"] > 0.1  # the model is untrained
        assert physics["warnings"]["1"]["all"]["missed"] == 0
        assert physics["careful_alarms"]["1"]["alarms"] == 0


def test_evaluate_reports_no_states_for_a_method_without(metrics: dict[str, Any]) -> None:
    assert metrics["methods"]["time to collision"]["states"] is None
    assert metrics["methods"]["time to collision"]["final_errors"] is None


def test_evaluate_describes_the_data(room: Path, metrics: dict[str, Any]) -> None:
    manifest = json.loads((room / "store" / "dataset.json").read_text())
    assert metrics["dataset"]["fingerprint"] == manifest["fingerprint"]
    assert metrics["dataset"]["split_seed"] == 3
    assert metrics["dataset"]["horizon"] == HORIZON
    assert metrics["dataset"]["episodes"]["unseen"] == 18
    assert sum(metrics["dataset"]["episodes"].values()) == 108


def test_evaluate_splits_by_environment_and_hard_case(metrics: dict[str, Any]) -> None:
    parts = metrics["termination"]
    assert set(parts) == {
        "all",
        "highway",
        "merge",
        "unprovoked",
        "provoked",
        "unseen",
        "branches",
    }
    assert parts["highway"]["windows"] + parts["merge"]["windows"] == parts["all"]["windows"]
    # A crash ends at most as many windows as start within its horizon, every other step.
    assert 0 < parts["provoked"]["windows_that_end"] <= 2 * 8 * HORIZON // 2
    assert parts["provoked"]["windows_that_end"] < parts["provoked"]["windows"]
    assert parts["branches"]["windows"] == 10 * SEQUENCES
    assert metrics["branches"]["states"] == 10


def test_evaluate_judges_unseen_roads_with_everyone_s_thresholds(
    metrics: dict[str, Any],
) -> None:
    unseen = metrics["unseen"]
    assert unseen["environment"] == "roundabout"
    for name, method in unseen["methods"].items():
        assert method["thresholds"] == metrics["methods"][name]["thresholds"]
    assert unseen["verdicts"]["crash_threshold"] == 0.5


def test_evaluate_gives_verdicts_by_behaviour_and_cause(metrics: dict[str, Any]) -> None:
    assert set(metrics["verdicts"]["behaviours"]) == {"careful", "aggressive", "white"}
    assert set(metrics["verdicts"]["causes"]) == {"crash", "off_road"}


def test_cars_of_one_size_are_judged_by_source_only_if_asked_for(
    room: Path, metrics: dict[str, Any], tmp_path: Path
) -> None:
    assert metrics["sources"] is None
    assert "By source" not in (room / "report" / "report.md").read_text()
    asked = evaluate(
        room / "checkpoint", room / "store", tmp_path, tracks=("ngsim",), quick=True, bootstrap=2
    )
    assert [*asked["sources"]["found"]["ngsim"]] == [
        "highway-env",
        "highway-env, roundabout (never trained on)",
    ]


def test_evaluate_checks_the_guarantee(metrics: dict[str, Any]) -> None:
    guarantee = metrics["guarantee"]
    assert guarantee["calibration_episodes"] == 99
    assert guarantee["served"]["threshold"] == 0.5
    assert guarantee["guaranteed"]["threshold"] == 0.4
    assert guarantee["guaranteed"]["missed"] <= guarantee["served"]["missed"]


def test_evaluate_rolls_out_actions_that_nobody_recorded(metrics: dict[str, Any]) -> None:
    divergence = metrics["divergence"]
    assert set(divergence) == {"recorded", *SEQUENCE_KINDS, "adversarial"}
    windows = divergence["recorded"]["windows"]
    assert windows > metrics["termination"]["all"]["windows"]  # the unknown outcomes, too
    assert sum(divergence[kind]["windows"] for kind in SEQUENCE_KINDS) == windows


def test_evaluate_says_unknown_where_the_service_would(room: Path) -> None:
    folder = save_untrained(room / "uncalibrated", Calibration())
    result = evaluate(
        folder,
        room / "store",
        room / "uncalibrated_report",
        bootstrap=0,
        branch_states=0,
        provoked_transitions=0,
    )
    rates = result["verdicts"]["behaviours"]["careful"]
    assert (rates["unknown"], rates["unsafe_of_harmless"]) == (1.0, 0.0)
    assert result["dataset"]["horizon"] == 16
    assert result["termination"]["all"]["methods"]["model"]["intervals"] == {}
    assert result["guarantee"] is None
    assert result["branches"] is None
    assert "Guarantee" not in (room / "uncalibrated_report" / "report.md").read_text()


@pytest.mark.parametrize("moved", [None, 1], ids=["no_unseen_roads", "unseen_roads_always_safe"])
def test_evaluate_works_where_unseen_roads_tell_nothing(
    room: Path, tmp_path: Path, moved: int | None
) -> None:
    unseen = ENVIRONMENTS.index("roundabout")
    episodes = [
        replace(episode, environment=unseen) if i % 6 == moved else episode
        for i, episode in enumerate(mixed_episodes(60))
    ]
    save_store(tmp_path / "store", episodes)
    result = evaluate(
        room / "checkpoint",
        tmp_path / "store",
        tmp_path / "r",
        bootstrap=0,
        branch_states=0,
        provoked_transitions=0,
    )
    assert result["dataset"]["episodes"]["unseen"] == (0 if moved is None else 10)
    assert result["unseen"] is None
    assert "unseen" not in result["termination"]


def test_report_folder_holds_numbers_text_and_small_plots(
    room: Path, metrics: dict[str, Any]
) -> None:
    report = room / "report"
    assert json.loads((report / "report.json").read_text()) == metrics
    names = {path.name for path in report.iterdir()}
    assert names == {"report.json", "report.md", LOCK, *PLOTS, *PHYSICS_PLOTS}
    for name in (*PLOTS, *PHYSICS_PLOTS):
        picture = (report / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < 150_000


def test_report_text_names_version_methods_and_plots(room: Path, metrics: dict[str, Any]) -> None:
    text = (room / "report" / "report.md").read_text()
    parts = ("white", "off_road", "provoked", "branches", "unseen", "adversarial", "Guarantee")
    for part in (metrics["model_version"], *BASELINES, *parts, *PLOTS):
        assert part in text
    for name in metrics["corruptions"]["corruptions"]:
        assert name in text


def test_model_card_table_holds_the_model_s_figures(metrics: dict[str, Any]) -> None:
    text = model_card_table(metrics)
    model = metrics["termination"]["all"]["methods"]["model"]
    for key in ("auroc", "recall_01", "brier", "ece"):
        assert ranged(model["scores"][key], model["intervals"][key]) in text
    assert f"model - {FULL_PHYSICS}" in text


def test_a_model_better_in_a_score_that_should_be_low_is_shown_ahead() -> None:
    def method(brier: float, lead: float, low: float, high: float) -> dict[str, Any]:
        scores, leads = dict.fromkeys(SCORES, 0.5), dict.fromkeys(SCORES, 0.0)
        return {
            "scores": {**scores, "brier": brier},
            "lead": {"scores": {**leads, "brier": lead}, "intervals": {"brier": [low, high]}},
        }

    methods = {"model": method(0.1, 0, 0, 0), "a": method(0.3, -0.2, -0.3, -0.1)}
    methods["b"] = method(0.2, -0.1, -0.15, -0.05)
    assert "0.1000 [0.0500, 0.1500]" in ahead_table({"all": {"methods": methods}})


def test_rounding_keeps_structure_and_six_digits() -> None:
    assert rounded({"a": [0.123456789, 3, None, True], "b": (1e-9,)}) == {
        "a": [0.123457, 3, None, True],
        "b": [1e-9],
    }


def test_ranged_numbers_show_an_interval_where_there_is_one() -> None:
    assert ranged(0.5, [0.25, 0.75], 2) == "0.50 [0.25, 0.75]"
    assert ranged(0.5, [None, None], 2) == ranged(0.5, None, 2) == "0.50"
    assert ranged(None, [0.25, 0.75]) == "-"


def test_a_summary_travels_with_the_checkpoint_without_changing_its_version(
    room: Path, metrics: dict[str, Any]
) -> None:
    before = checkpoint_version(room / "checkpoint")
    write_metrics(room / "checkpoint", metrics)
    summary = load_checkpoint(room / "checkpoint").metrics
    scores = metrics["termination"]["all"]["methods"]["model"]["scores"]
    assert summary["termination"] == scores
    assert summary["verdicts"] == metrics["verdicts"]
    assert summary["final_errors"].keys() == {"speed_mps", "edge_m", "neighbour_m"}
    assert checkpoint_version(room / "checkpoint") == before == metrics["model_version"]


def test_evaluate_refuses_a_checkpoint_of_another_spec(room: Path) -> None:
    spec, architecture = toy_spec(), Architecture((16, 32))
    ensemble = WorldModelEnsemble.from_members([architecture.build(spec)])
    save_checkpoint(Checkpoint(ensemble, spec, architecture), room / "other")
    with pytest.raises(ValueError, match=r"has other features than .*4 state features against 34"):
        evaluate(room / "other", room / "store", room / "nowhere")


@pytest.mark.parametrize("ahead_m", [90.0, 130.0], ids=["in sight", "nobody in sight"])
def test_without_ends_neighbours_are_compared_with_physics(
    room: Path, tmp_path: Path, ahead_m: float
) -> None:
    save_store(tmp_path / "store", [drive(i, ahead_m=ahead_m) for i in range(20)])

    found = evaluate(room / "checkpoint", tmp_path / "store", tmp_path / "report", bootstrap=5)

    assert "0 of which terminate: episodes that end are needed, too" in found["lacking"]
    assert "### Neighbours beside physics" in (tmp_path / "report" / "report.md").read_text()
    assert set(found["uncertainty"]["end"]) == {"neighbour_m", "all_sd"}
    errors = found["neighbours"]
    assert list(errors) == ["model", CONSTANT_VELOCITY, CONSTANT_RATES]
    assert len(errors["model"]["by_step"]) == HORIZON + 1
    if ahead_m > 100:
        assert errors["model"]["mean"] is None
        return
    assert errors["model"]["lead"] == 0
    # In this drive everybody goes straight on: physics is right, and an untrained model is not.
    for name in (CONSTANT_VELOCITY, CONSTANT_RATES):
        assert errors[name]["mean"] < errors["model"]["mean"]
        assert errors[name]["lead"] > 0


def test_report_numbers_show_nothing_as_a_dash() -> None:
    assert number(None) == "-"
    assert number(0.12345, 2) == "0.12"


def test_report_tables_are_markdown() -> None:
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_a_model_cards_results_are_replaced_and_the_rest_is_kept(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    card, report = tmp_path / "docs" / "card.md", tmp_path / "report"
    card.parent.mkdir()
    card.write_text(f"before\n{RESULTS_START}\nstale figures\n{RESULTS_END}\nafter\n")

    update_model_card(card, metrics, report)
    once = card.read_text()
    update_model_card(card, metrics, report)

    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "stale figures" not in once
    assert model_card_table(metrics) in once
    assert "### Guarantee" in once
    assert "### Errors of states" not in once
    assert "[report](../report/report.md)" in once
    assert card.read_text() == once


def test_a_model_card_without_markers_is_refused(metrics: dict[str, Any], tmp_path: Path) -> None:
    card = tmp_path / "card.md"
    card.write_text("nothing")

    with pytest.raises(ValueError, match="lacks the markers"):
        update_model_card(card, metrics, tmp_path)
