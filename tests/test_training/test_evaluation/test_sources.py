from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.checkpoint import (
    Architecture,
    Calibration,
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from models.network.ensemble import WorldModelEnsemble
from models.road_users import road_users_spec
from models.safety import SAFE, UNKNOWN, UNSAFE
from tests.test_training.driving import mixed_episodes, save_store
from training.dataset.sources import Simulated
from training.dataset.store import load_store
from training.evaluation.evaluate import evaluate, write_metrics
from training.evaluation.kinds import parties_of
from training.evaluation.methods import MODEL
from training.evaluation.preparing import Cutter
from training.evaluation.report import RESULTS_END, RESULTS_START, update_model_card
from training.evaluation.seen import (
    EVERYTHING,
    JUDGED,
    PHYSICS,
    Calibrated,
    Seen,
    Sight,
    thresholds_of,
)
from training.evaluation.sources import ALL, Standards, part_scores, parts_of
from training.evaluation.tracks import seen_by
from training.simulation.fleets import KINDS, MIXED
from training.simulation.simulator import ROADS, SOURCES, Episode

HORIZON, COUNT = 6, 108
SPEC = road_users_spec()


def episodes_of_both_sources() -> list[Episode]:
    """A third of SUMO; every sixth of either on the road that is never trained on."""
    found = []
    for i, episode in enumerate(mixed_episodes(COUNT)):
        is_sumo, is_unseen = i // 6 % 3 == 2, i // 18 % 6 == 5
        roads = ("town", "harbour") if is_sumo else ("highway", "roundabout")
        found.append(
            replace(
                episode,
                source=SOURCES.index("sumo" if is_sumo else "highway-env"),
                environment=ROADS.index(roads[is_unseen]),
                ego_kind=KINDS.index("bus" if i % 4 == 0 else "car"),
            )
        )
    return found


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a mixed data set and an untrained checkpoint."""
    folder = tmp_path_factory.mktemp("room")
    save_store(folder / "data", episodes_of_both_sources(), fleet=MIXED)
    save_checkpoint(replace(untrained(), training={"split_seed": 3}), folder / "checkpoint")
    return folder


def untrained() -> Checkpoint:
    torch.manual_seed(0)
    architecture, wide = Architecture((16, 32)), (1e6,) * SPEC.state_dim
    members = [architecture.build(SPEC) for _ in range(2)]
    ensemble = WorldModelEnsemble.from_members(members).eval().requires_grad_(False)
    limits = Calibration(
        crash_threshold=0.5,
        uncertainty_limit=1e6,
        state_low=tuple(-x for x in wide),
        state_high=wide,
        horizon=HORIZON,
        notes={"allow_unguaranteed": True},
    )
    return Checkpoint(ensemble, SPEC, architecture, limits)


def evaluated(room: Path, report: str, tracks: tuple[str, ...] = ()) -> dict[str, Any]:
    return evaluate(
        room / "checkpoint",
        room / "data",
        room / report,
        bootstrap=5,
        branch_states=0,
        provoked_transitions=0,
        tracks=tracks,
    )


@pytest.fixture(scope="module")
def metrics(room: Path) -> dict[str, Any]:
    return evaluated(room, "report")


@pytest.fixture(scope="module")
def seen(room: Path) -> Seen:
    """What is made of all episodes on trained roads, as they are."""

    data = seen_by(Simulated(load_store(room / "data"), SPEC), "perfect")
    episodes = np.concatenate([part for name, part in data.split(3).items() if name != "unseen"])
    sight = Sight(data, untrained(), Cutter(data, HORIZON, None), np.sort(episodes))
    return sight.seen(np.sort(episodes), np.ones(SPEC.state_dim))


def standards_of(seen: Seen) -> Standards:
    equal = {name: {"1": 0.5, "01": 0.5} for name in JUDGED}
    own = dict.fromkeys((EVERYTHING, 0, 1), equal)
    limits: dict[str, float | None] = {"all_sd": 0.0, "neighbour_m": 1e9}
    return Standards(own, equal, limits, parties_of(seen.data.store), 5)


def scores_with(seen: Seen, verdicts: np.ndarray) -> dict[str, Any]:
    everything = np.ones(len(verdicts), bool)
    judged = replace(seen, verdicts=verdicts)
    return part_scores(judged, everything, EVERYTHING, standards_of(seen))


def test_mixed_fleets_are_judged_clean_and_through_the_tracker_of_the_reference(
    metrics: dict[str, Any],
) -> None:
    sources = metrics["sources"]
    assert sources["tracks"] == ["perfect", "reference"]
    for tracks in sources["tracks"]:
        found = sources["found"][tracks]
        assert list(found) == [
            ALL,
            "highway-env",
            "sumo",
            "highway-env, roundabout (never trained on)",
            "sumo, harbour (never trained on)",
        ]
        windows = [part["termination"]["windows"] for part in found.values()]
        assert windows[0] == windows[1] + windows[2]
        assert min(windows) > 0
        for part in found.values():
            assert list(part["termination"]["methods"]) == [*JUDGED]
            assert 0 < part["crashes"]["episodes"] < part["termination"]["episodes"]


def test_exact_physics_is_right_on_clean_tracks_and_not_on_noisy_ones(
    metrics: dict[str, Any],
) -> None:
    for name in PHYSICS:
        clean, noisy = (
            metrics["sources"]["found"][tracks][ALL] for tracks in ("perfect", "reference")
        )
        assert clean["neighbours"][name]["mean"] < 1e-3
        assert noisy["neighbours"][name]["mean"] > 0.05
        assert clean["termination"]["methods"][name]["scores"]["recall_1"] == 1
        assert clean["neighbours"][name]["lead"] == pytest.approx(
            clean["neighbours"][MODEL]["mean"] - clean["neighbours"][name]["mean"], rel=1e-4
        )


def test_what_is_lost_is_the_difference_to_the_first_tracks(metrics: dict[str, Any]) -> None:
    clean, noisy = (
        metrics["sources"]["found"][tracks]["sumo"] for tracks in ("perfect", "reference")
    )
    assert clean["lost"] is None
    scores = [part["termination"]["methods"][MODEL]["scores"] for part in (clean, noisy)]
    for name, lost in noisy["lost"].items():
        assert lost["value"] == pytest.approx(scores[0][name] - scores[1][name], abs=1e-5)
        assert len(lost["interval"]) == 2


def test_reports_and_cards_show_sources_first(
    room: Path, metrics: dict[str, Any], tmp_path: Path
) -> None:
    text = (room / "report" / "report.md").read_text()
    first = [text.index(title) for title in ("### By source", "### All sources together")]
    assert first == sorted(first)
    assert "car or van with car or van | perfect" in text
    card = tmp_path / "card.md"
    card.write_text(f"{RESULTS_START}\n{RESULTS_END}\n")
    update_model_card(card, metrics, room / "report")
    assert "| sumo, harbour (never trained on) | reference |" in card.read_text()


def test_what_decides_most_is_written_beside_the_weights(
    room: Path, metrics: dict[str, Any]
) -> None:
    write_metrics(room / "checkpoint", metrics)
    written = load_checkpoint(room / "checkpoint").metrics["sources"]["sumo"]["reference"]
    part = metrics["sources"]["found"]["reference"]["sumo"]
    assert written["auroc"] == part["termination"]["methods"][MODEL]["scores"]["auroc"]
    assert written["crash_safe"] == part["crashes"]["safe"]["share"]
    assert written["careful_unknown"] == part["careful"]["unknown"]["share"]
    assert written["neighbour_m"] == part["neighbours"][MODEL]["mean"]


def test_tracks_of_one_way_are_judged_alike_beside_others(
    room: Path, metrics: dict[str, Any]
) -> None:
    alone = evaluated(room, "alone", ("perfect",))["sources"]
    assert [*alone["found"]] == alone["tracks"] == ["perfect"]
    for name, part in metrics["sources"]["found"]["perfect"].items():
        for key in ("termination", "crashes", "careful", "neighbours", "doubt"):
            assert alone["found"]["perfect"][name][key] == part[key]


def test_shares_of_verdicts_are_those_given_before_crashes(seen: Seen) -> None:
    cause = seen.data.store.cause[seen.windows.episode]
    crash = seen.windows.ends & (cause == 1)
    bus = parties_of(seen.data.store).ego[seen.windows.episode] == 1
    verdicts = np.where(crash, np.where(bus, SAFE, UNSAFE), UNKNOWN)
    found = scores_with(seen, verdicts)["crashes"]
    assert found["windows"] == crash.sum()
    assert found["safe"]["share"] == pytest.approx((crash & bus).sum() / crash.sum())
    assert found["unknown"]["share"] == 0
    pairs = found["pairs"]
    assert {name: pair["safe"]["share"] for name, pair in pairs.items()} == {
        "car or van with car or van": 0,
        "truck or bus with car or van": 1,
    }
    assert sum(pair["windows"] for pair in pairs.values()) == crash.sum()
    assert found["no_slot"]["share"] == 0


def test_who_is_hit_in_no_slot_is_counted(seen: Seen) -> None:
    states = seen.windows.states.copy()
    assert SPEC.geometry is not None
    for slot in SPEC.geometry.slots:
        states[:, :, SPEC.state_index(slot.gate)] = 0
    emptied = replace(seen, windows=replace(seen.windows, states=states))
    verdicts = np.full(len(states), SAFE)
    assert scores_with(emptied, verdicts)["crashes"]["no_slot"]["share"] == 1


def test_careful_windows_are_those_of_careful_drivers_that_go_on(seen: Seen) -> None:
    calm = seen.data.labels.is_calm[seen.windows.episode] & ~seen.windows.ends
    assert calm.any()
    assert not calm.all()
    found = scores_with(seen, np.where(calm, UNKNOWN, UNSAFE))["careful"]
    assert found["windows"] == calm.sum()
    assert found["unknown"]["share"] == 1
    assert found["false_alarms"]["alarms"] == 0
    assert found["unknowns"]["alarms"] > 0


def test_doubt_counts_verdicts_that_are_not_safe(seen: Seen) -> None:
    found = scores_with(seen, np.full(len(seen.windows), UNSAFE))["doubt"]["beyond"]
    # Every error is beyond 0, none is beyond 1e9.
    assert found["all_sd"]["within"]["windows"] == 0
    assert found["all_sd"]["beyond"]["share"] == 1
    assert found["neighbour_m"]["beyond"]["windows"] == 0


def test_what_is_expected_is_ranked_against_the_error_at_the_end(seen: Seen) -> None:
    verdicts = np.full(len(seen.windows), SAFE)
    assert scores_with(seen, verdicts)["doubt"]["expected"] is None
    error = seen.errors["neighbour_m"][0][:, -1]
    for expected, rho in ((np.exp(error), 1.0), (-error, -1.0)):
        found = scores_with(replace(seen, expected=expected), verdicts)["doubt"]["expected"]
        assert found["spearman"] == pytest.approx(rho)


def test_parts_of_one_source_are_not_repeated_as_all(seen: Seen) -> None:
    rows = seen.data.store.source[seen.windows.episode] == 1
    alone = replace(seen, windows=seen.windows.take(rows))
    assert [name for name, *_ in parts_of(alone, are_unseen=False)] == ["sumo"]
    assert [name for name, *_ in parts_of(seen, are_unseen=False)] == [ALL, "highway-env", "sumo"]


def test_thresholds_are_those_of_the_source_or_else_of_all() -> None:
    scores = np.tile(np.array([0.1, 0.2, 0.9, 0.5, 0.6, 0.8]), (len(JUDGED), 1))
    found = Calibrated(
        scores=scores,
        ends=np.array([0, 0, 1, 0, 0, 1], bool),
        source=np.array([0, 0, 0, 1, 1, 2]),
        errors=np.array([[1.0, np.nan, 2.0], [np.nan] * 3]),
        scale=np.ones(1),
    )
    thresholds = [thresholds_of([found], source)[MODEL]["01"] for source in (0, 1, 2, EVERYTHING)]
    assert thresholds == [0.2, 0.6, 0.6, 0.6]
    assert thresholds_of([found, replace(found, scores=scores + 1)], 0)[MODEL]["01"] == 1.2
    assert found.limits() == {"all_sd": pytest.approx(1.99), "neighbour_m": None}
