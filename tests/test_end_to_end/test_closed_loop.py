"""The closed loop in miniature: real simulators, the real service in a process of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from models.checkpoint import Architecture, Calibration, Checkpoint, save_checkpoint
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from models.road_users import road_users_spec
from models.spec import Spec
from service.cli import main
from tests.test_training.driving import drive, mixed_episodes, save_store
from training.closed_loop import comparison, drives
from training.closed_loop import served as closed_loop
from training.closed_loop.comparison import FIRST_SEED
from training.closed_loop.results import MODEL, NO_MONITOR, PHYSICS, VELOCITY
from training.closed_loop.served import Traffic, traffic_of
from training.simulation.sumo import process

THRESHOLDS = {PHYSICS: -0.2, VELOCITY: -0.2}
KINDS = ("brake", "fallbacks", "shield")


@pytest.fixture
def short_drives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drives of a few steps, and one threshold for each shield."""
    monkeypatch.setattr(drives, "MAX_STEPS", 4)
    few = {name: thresholds[-1:] for name, thresholds in comparison.SHIELD_THRESHOLDS.items()}
    monkeypatch.setattr(comparison, "SHIELD_THRESHOLDS", few)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    save_store(folder, mixed_episodes(6))
    return folder


def fresh_checkpoint(folder: Path, spec: Spec) -> Path:
    """Fresh weights on the analytic step: it knows how cars move, and that nothing ends."""
    torch.manual_seed(0)
    architecture = Architecture((32, 32), kinematics=True)
    members = [architecture.build(spec) for _ in range(2)]
    for member in members:
        member.set_normalisers(
            state_mean=torch.zeros(spec.state_dim),
            state_scale=torch.full((spec.state_dim,), 30.0),
            delta_scale=torch.full((spec.state_dim,), 1e-3),
            reward_mean=0.0,
            reward_scale=1.0,
        )
        torch.nn.init.constant_(member.done_head[-1].get_parameter("bias"), -100.0)
        member.set_calibration(done_scale=0.2, done_shift=0.0)
    ensemble = WorldModelEnsemble.from_members(members).eval().requires_grad_(False)
    calibration = Calibration(
        crash_threshold=0.5,
        uncertainty_limit=100.0,
        state_low=tuple(feature.low for feature in spec.state),
        state_high=tuple(feature.high for feature in spec.state),
        horizon=16,
        notes={"allow_unguaranteed": True},
    )
    save_checkpoint(Checkpoint(ensemble, spec, architecture, calibration, name="fresh"), folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint", highway_spec())


@pytest.mark.slow
@pytest.mark.usefixtures("short_drives")
def test_every_step_of_a_drive_is_judged_by_the_service(checkpoint: Path, data: Path) -> None:
    results = closed_loop.run_closed_loop(
        checkpoint, data, physics_thresholds=THRESHOLDS, episodes=1
    )

    json.dumps(results, allow_nan=False)
    arms = results["results"]["highway-env"]["trained"]
    judges = (MODEL, PHYSICS, VELOCITY)
    assert set(arms) == {NO_MONITOR, *(f"{k}, {j}" for k in KINDS for j in judges)}
    for kind in KINDS:
        asked = arms[f"{kind}, {MODEL}"]
        assert asked["requests"] >= 1
        assert asked["p99_ms"] >= asked["p50_ms"] > 0
        # A model that expects nothing never interferes: the drive is the unmonitored one.
        assert asked["unknown"] == asked["overridden"] == 0
        assert asked["mean_speed_mps"] == arms[NO_MONITOR]["mean_speed_mps"]
        assert arms[f"{kind}, {PHYSICS}"]["requests"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("short_drives")
@pytest.mark.skipif(not process.is_installed(), reason="needs SUMO")
def test_mixed_fleets_of_both_simulators_are_judged_through_a_tracker(
    data: Path, tmp_path: Path
) -> None:
    spec = road_users_spec()
    model = fresh_checkpoint(tmp_path / "checkpoint", spec)
    traffic = Traffic("mixed", ("highway-env", "sumo"), "reference")

    def run() -> dict[str, Any]:
        return closed_loop.run_closed_loop(
            model,
            data,
            physics_thresholds=THRESHOLDS,
            episodes=1,
            traffic=traffic,
            folder=tmp_path / "drives",
        )

    results = run()
    assert (results["fleet"], results["tracks"]) == ("mixed", "reference")
    for source in traffic.sources:
        arms = results["results"][source]["trained"]
        for kind in KINDS:
            asked = arms[f"{kind}, {MODEL}"]
            assert asked["requests"] >= 1
            assert arms[f"{kind}, {VELOCITY}"]["unknown"] == 0
            assert {"above_physics", "above_velocity"} < set(asked)
    # All drives are on disk: nobody is asked again.
    again = run()
    assert again == results


def test_a_model_that_physics_cannot_read_is_refused(data: Path, tmp_path: Path) -> None:
    other = replace(highway_spec(), name="other", dt_s=0.1)
    model = fresh_checkpoint(tmp_path / "checkpoint", other)
    with pytest.raises(ValueError, match="physics cannot read the state of the spec 'other'"):
        closed_loop.run_closed_loop(model, data, physics_thresholds=THRESHOLDS, episodes=1)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, Traffic("cars", ("highway-env",), None)),
        ({"fleet": "mixed"}, Traffic("mixed", ("highway-env",), "drawn")),
        ({"source": "sumo", "tracks": "ngsim"}, Traffic("mixed", ("sumo",), "ngsim")),
        ({"source": "all", "tracks": "true"}, Traffic("mixed", ("highway-env", "sumo"), None)),
        ({"tracks": "reference"}, Traffic("cars", ("highway-env",), "reference")),
    ],
    ids=["as recorded", "fleet", "source", "true tracks", "tracks"],
)
def test_traffic_is_that_of_the_data_but_for_what_is_asked_for(
    data: Path, asked: dict[str, str], found: Traffic
) -> None:
    assert traffic_of(data, **asked) == found


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"source": "sumo", "fleet": "cars"}, "the fleet in SUMO is 'mixed', got 'cars'"),
        ({"source": "carla"}, "unknown source 'carla'"),
        ({"fleet": "trains"}, "unknown fleet 'trains'"),
        ({"tracks": "sonar"}, "unknown tracker 'sonar'"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_traffic_that_there_is_not_is_refused(
    data: Path, asked: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        traffic_of(data, **asked)


def test_a_data_set_with_one_of_the_drives_stops_before_any_is_driven(
    checkpoint: Path, tmp_path: Path
) -> None:
    save_store(tmp_path, [drive(FIRST_SEED)])
    with pytest.raises(ValueError, match=str(FIRST_SEED)):
        closed_loop.run_closed_loop(checkpoint, tmp_path, physics_thresholds=THRESHOLDS, episodes=1)


def test_a_service_that_does_not_start_is_one_sentence(
    checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_MODEL_DEVICE", "abacus")
    with pytest.raises(ChildProcessError, match="did not start"):
        closed_loop.run_closed_loop(checkpoint, data, physics_thresholds=THRESHOLDS, episodes=1)


def test_the_option_is_part_of_evaluate() -> None:
    shown = CliRunner().invoke(main, ["evaluate", "--help"]).output
    assert "--closed-loop" in shown
    assert "--drives" in shown
