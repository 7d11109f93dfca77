"""`world-model serve` as an operator meets it: starts, refuses to start, stops."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from models.checkpoint import load_checkpoint, save_checkpoint
from models.importing import import_weights
from models.network.world_model import WorldModel
from tests.test_end_to_end.conftest import COMMAND, Start, free_port
from tests.test_training.toy import toy_spec, toy_windows
from training.fitting.options import Stage, TrainOptions
from training.fitting.train import fit


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of other dims, S = 4 and A = 2, from training to calibration."""
    folder = tmp_path_factory.mktemp("toy")
    options = TrainOptions(
        members=2,
        hidden_dims=(32,),
        stages=(Stage(6, 60, 64),),
        workers=1,
        device="cpu",
        allow_unguaranteed=True,
    )
    seeds = {"train": 1, "validation": 2, "calibration": 3}
    windows = {name: toy_windows(300, 6, seed=seed) for name, seed in seeds.items()}
    fit(windows, toy_spec(), folder / "checkpoint", folder / "run", options, {})
    return folder / "checkpoint"


def test_a_checkpoint_of_other_dims_is_trained_and_served(
    start: Start, toy_checkpoint: Path
) -> None:
    server = start("--checkpoint", str(toy_checkpoint))
    body = {"state": [0.1, 0.2, 1.0, 0.0], "actions": [[0.5, 0.0], [0.0, 0.5]]}

    model = httpx.get(f"{server.url}/model").json()
    answer = httpx.post(f"{server.url}/rollout", json=body).json()
    verdict = httpx.post(f"{server.url}/safety-check", json=body).json()

    assert [feature["name"] for feature in model["features"]["state"]] == ["x", "y", "vx", "vy"]
    direct = load_checkpoint(toy_checkpoint).ensemble.rollout(
        torch.tensor([body["state"]]), torch.tensor([body["actions"]])
    )
    assert np.array_equal(np.array(answer["states"], np.float32), direct.states[0].numpy())
    assert verdict["verdict"] in {"safe", "unsafe"}
    assert verdict["horizon_s"] == 0.2


def test_imported_weights_are_served_and_never_called_safe(start: Start, tmp_path: Path) -> None:
    model = WorldModel(hidden_dims=(256, 256), residual=False, check_latent=False)
    weights = {name: x for name, x in model.state_dict().items() if "." in name}
    torch.save(weights, tmp_path / "weights.pt")
    save_checkpoint(import_weights(tmp_path / "weights.pt"), tmp_path / "imported")
    server = start("--checkpoint", str(tmp_path / "imported"))
    body = {"state": [0.0] * 34, "actions": [[0.0, 0.5, 0.0]]}

    answer = httpx.post(f"{server.url}/rollout", json=body).json()
    verdict = httpx.post(f"{server.url}/safety-check", json=body).json()

    expected = model.rollout(torch.zeros(1, 34), torch.tensor([body["actions"]]))[0]
    assert np.allclose(answer["states"], expected[0].detach(), atol=1e-5)
    assert verdict["verdict"] == "unknown"
    assert "not_calibrated" in [reason["rule"] for reason in verdict["reasons"]]


def test_sigterm_turns_readiness_off_finishes_what_was_accepted_and_exits_0(
    start: Start, toy_checkpoint: Path
) -> None:
    server = start("--checkpoint", str(toy_checkpoint), "--drain-delay-s", "1")
    body = {"state": [0, 0, 1, 0], "actions": [[[0.5, 0]] * 16] * 512}
    statuses: list[int] = []
    asking = threading.Thread(
        target=lambda: statuses.append(
            httpx.post(f"{server.url}/rollout", json=body, timeout=30).status_code
        )
    )
    asking.start()

    server.process.terminate()
    seen = set()
    while server.process.poll() is None:
        try:
            seen.add(httpx.get(f"{server.url}/readyz").status_code)
        except httpx.TransportError:
            break

    asking.join()
    assert 503 in seen
    assert statuses == [200]
    assert server.process.wait(30) == 0


def test_a_port_in_use_is_one_sentence_and_no_traceback(toy_checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("--port", str(port), "--checkpoint", str(toy_checkpoint))

    assert result.returncode != 0
    assert f"{port}" in result.stderr
    assert "in use" in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert "Traceback" not in output
    errors = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, output
    return errors[0]


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    result = run("--port", str(free_port()), "--checkpoint", str(tmp_path / "nowhere"))

    assert "nowhere does not exist" in refusal(result)


def test_a_broken_checkpoint_is_one_sentence(toy_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for part in toy_checkpoint.iterdir():
        (broken / part.name).write_bytes(part.read_bytes()[:100])

    result = run("--port", str(free_port()), WORLD_MODEL_CHECKPOINT=str(broken))

    assert str(broken) in refusal(result)


@pytest.mark.parametrize(
    ("options", "environment", "named"),
    [
        (("--port", "99999999"), {}, "port"),
        ((), {"WORLD_MODEL_PORT": "eighty"}, "port"),
        (("--device", "toaster"), {}, "device"),
    ],
    ids=["option", "variable", "choice"],
)
def test_a_bad_setting_names_itself(
    options: tuple[str, ...], environment: dict[str, str], named: str
) -> None:
    assert named in refusal(run(*options, **environment)).lower()
