"""From nothing to a servable checkpoint, in miniature: real simulator, real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.checkpoint import load_checkpoint
from models.training.evaluate import evaluate, write_metrics
from models.training.examples import export_held_out
from models.training.options import Stage, TrainOptions
from models.training.train import train

COMMAND = str(Path(sys.executable).parent / "world-model")
TINY = TrainOptions(
    members=2,
    hidden_dims=(32,),
    stages=(Stage(1, 60, 64), Stage(16, 40, 32)),
    validate_every=20,
    workers=2,
    device="cpu",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    subprocess.run(
        [COMMAND, "collect", folder, "--transitions", "9000", "--seed", "3"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return folder


@pytest.mark.slow
def test_collected_episodes_become_an_evaluated_checkpoint(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"

    version = train(data, out, tmp_path / "run", TINY)
    metrics = evaluate(out, data, out / "report", bootstrap=5)
    write_metrics(out, metrics)
    examples = export_held_out(out, data, out / "episodes")

    loaded = load_checkpoint(out)
    assert loaded.version == version == metrics["model_version"]
    assert (loaded.member_count, loaded.spec.state_dim) == (2, 34)
    assert loaded.calibration.horizon == 16
    assert loaded.training["dataset"]["seed"] == 3
    assert loaded.metrics == json.loads((out / "report" / "report.json").read_text())
    assert {"persistence", "constant velocity"} <= {
        name.replace("_", " ") for name in metrics["methods"]
    }
    assert (out / "report" / "report.md").read_text()
    assert list((out / "report").glob("*.png"))
    assert examples


@pytest.mark.slow
def test_an_interrupted_training_says_so_and_can_go_on(data: Path, tmp_path: Path) -> None:
    arguments = [data, "--out", tmp_path / "out", "--run", tmp_path / "run", "--members", "2"]
    process = subprocess.Popen(
        [COMMAND, "train", *(str(x) for x in arguments)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    state = tmp_path / "run" / "member-0" / "state.pt"
    deadline = time.monotonic() + 90
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.1)

    os.killpg(process.pid, signal.SIGINT)  # what a terminal's Ctrl-C does
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "Error: interrupted; the same command goes on from here" in errors
    assert "Traceback" not in errors
    assert state.exists()
    assert not (tmp_path / "out").exists()
