"""From nothing to a servable checkpoint, in miniature: real simulator, real command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.checkpoint import load_checkpoint
from training.dataset.examples import export_held_out
from training.evaluation.evaluate import evaluate, write_metrics
from training.fitting.options import Stage, TrainOptions
from training.fitting.train import train

COMMAND = str(Path(sys.executable).parent / "world-model")
TINY = TrainOptions(
    members=2,
    hidden_dims=(32,),
    stages=(Stage(1, 60, 64), Stage(16, 40, 32)),
    validate_every=20,
    allow_unguaranteed=True,  # its few episodes guarantee nothing
    workers=2,
    device="cpu",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    subprocess.run(
        [
            *(COMMAND, "collect", folder, "--source", "highway-env"),
            *("--transitions", "4000", "--seed", "3"),
        ],
        check=True,
        capture_output=True,
        timeout=600,
    )
    return folder


@pytest.mark.slow
def test_collected_episodes_become_an_evaluated_checkpoint(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"

    version = train(data, out, tmp_path / "run", TINY)
    metrics = evaluate(
        out, data, out / "report", bootstrap=5, branch_states=4, provoked_transitions=500
    )
    write_metrics(out, metrics)
    examples = export_held_out(out, data, out / "episodes")

    loaded = load_checkpoint(out)
    assert loaded.version == version == metrics["model_version"]
    assert (loaded.member_count, loaded.spec.state_dim) == (2, 34)
    assert loaded.calibration.horizon == 16
    assert loaded.training["dataset"]["seed"] == 3
    report = json.loads((out / "report" / "report.json").read_text())
    assert report == metrics
    assert loaded.metrics["verdicts"] == report["verdicts"]
    assert len(json.dumps(loaded.metrics)) < 20_000  # the service sends it with the model
    assert {"persistence", "constant velocity"} <= {
        name.replace("_", " ") for name in metrics["methods"]
    }
    assert (out / "report" / "report.md").read_text()
    assert list((out / "report").glob("*.png"))
    assert examples


@pytest.mark.slow
def test_a_checkpoint_is_recalibrated_to_other_rates(data: Path, tmp_path: Path) -> None:
    quick = replace(TINY, stages=(Stage(16, 20, 32),))
    train(data, tmp_path / "old", tmp_path / "run", quick)
    old = load_checkpoint(tmp_path / "old")

    command: list[str | Path] = [
        COMMAND,
        "calibrate",
        tmp_path / "old",
        data,
        "--out",
        tmp_path / "new",
    ]
    command += ["--false-alarm-rate", "0.2", "--doubt-rate", "0.3", "--allow-unguaranteed-limits"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)

    new = load_checkpoint(tmp_path / "new")
    assert new.version != old.version
    assert new.calibration.notes["false_alarm_rate"] == 0.2
    assert new.calibration.notes["doubt_rate"] == 0.3
    assert new.calibration.crash_threshold != old.calibration.crash_threshold
    assert new.calibration.state_low == old.calibration.state_low
    weights = old.ensemble.state_dict()
    for name, value in new.ensemble.state_dict().items():
        if "done_s" not in name:  # the calibration itself
            assert torch.equal(value, weights[name]), name


@pytest.mark.slow
def test_an_interrupted_training_says_so_and_can_go_on(data: Path, tmp_path: Path) -> None:
    arguments = [data, "--out", tmp_path / "out", "--run", tmp_path / "run", "--members", "2"]
    process = subprocess.Popen(
        [COMMAND, "train", *(str(x) for x in arguments)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    while not re.search(r"training: [1-9]", process.stderr.readline()):
        assert process.poll() is None

    os.killpg(process.pid, signal.SIGINT)  # what a terminal's Ctrl-C does
    _, errors = process.communicate(timeout=300)

    assert process.returncode == 130
    message = errors.splitlines()[-1]
    counts = r"member 1: [\d,]+ of [\d,]+ updates done; member 2: [\d,]+ of [\d,]+ updates done"
    assert re.fullmatch(rf"Stopped by SIGINT: {counts}\. The same command goes on .*\.", message)
    assert errors.count("Stopped") == 1
    assert "Traceback" not in errors
    assert "\r" not in errors
    assert (tmp_path / "run" / "member-0" / "state.pt").exists()
    assert not (tmp_path / "out").exists()
