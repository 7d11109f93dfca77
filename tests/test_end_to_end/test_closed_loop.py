"""The closed loop in miniature: real simulator, the real service in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from models.checkpoint import Architecture, Calibration, Checkpoint, save_checkpoint
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from service.cli import main
from tests.test_training.driving import drive, mixed_episodes, save_store
from training.closed_loop import served as closed_loop
from training.closed_loop.comparison import FIRST_SEED
from training.closed_loop.results import MODEL, NO_MONITOR, PHYSICS

PHYSICS_THRESHOLD = -0.2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    save_store(folder, mixed_episodes(6))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh weights on the analytic step: it knows how cars move, and that nothing ends."""
    torch.manual_seed(0)
    spec, architecture = highway_spec(), Architecture((32, 32), kinematics=True)
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
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    save_checkpoint(Checkpoint(ensemble, spec, architecture, calibration, name="fresh"), folder)
    return folder


@pytest.mark.slow
def test_every_step_of_a_drive_is_judged_by_the_service(checkpoint: Path, data: Path) -> None:
    results = closed_loop.run_closed_loop(
        checkpoint, data, physics_threshold=PHYSICS_THRESHOLD, episodes=1
    )

    json.dumps(results, allow_nan=False)
    arms = results["results"]["trained"]
    kinds = ("brake", "fallbacks", "shield")
    assert set(arms) == {NO_MONITOR, *(f"{k}, {j}" for k in kinds for j in (MODEL, PHYSICS))}
    for kind in kinds:
        asked = arms[f"{kind}, {MODEL}"]
        assert asked["requests"] >= 1
        assert asked["p99_ms"] >= asked["p50_ms"] > 0
        # A model that expects nothing never interferes: the drive is the unmonitored one.
        assert asked["unknown"] == asked["overridden"] == 0
        assert asked["mean_speed_mps"] == arms[NO_MONITOR]["mean_speed_mps"]
        assert arms[f"{kind}, {PHYSICS}"]["requests"] == 0


def test_a_data_set_with_one_of_the_drives_stops_before_any_is_driven(
    checkpoint: Path, tmp_path: Path
) -> None:
    save_store(tmp_path, [drive(FIRST_SEED)])
    with pytest.raises(ValueError, match=str(FIRST_SEED)):
        closed_loop.run_closed_loop(
            checkpoint, tmp_path, physics_threshold=PHYSICS_THRESHOLD, episodes=1
        )


def test_a_service_that_does_not_start_is_one_sentence(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ChildProcessError, match="did not start"):
        closed_loop.run_closed_loop(tmp_path, data, physics_threshold=PHYSICS_THRESHOLD, episodes=1)


def test_the_option_is_part_of_evaluate() -> None:
    shown = CliRunner().invoke(main, ["evaluate", "--help"]).output
    assert "--closed-loop" in shown
    assert "--drives" in shown
