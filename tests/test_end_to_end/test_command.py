"""`world-model serve` as an operator meets it: starts, refuses to start, stops."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import httpx
import pytest
import torch

from models.checkpoint import Architecture, Checkpoint, save_checkpoint
from models.ensemble import WorldModelEnsemble
from tests.test_end_to_end.conftest import COMMAND, Start, free_port
from tests.toy import toy_spec


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of other dims: S = 4, A = 2."""
    torch.manual_seed(0)
    architecture = Architecture(hidden_dims=(32,))
    members = [architecture.build(toy_spec()) for _ in range(2)]
    folder = tmp_path_factory.mktemp("toy") / "checkpoint"
    ensemble = WorldModelEnsemble.from_members(members)
    save_checkpoint(Checkpoint(ensemble, toy_spec(), architecture), folder)
    return folder


def test_a_checkpoint_of_other_dims_is_served(start: Start, toy_checkpoint: Path) -> None:
    server = start("--checkpoint", str(toy_checkpoint))

    model = httpx.get(f"{server.url}/model").json()
    answer = httpx.post(
        f"{server.url}/rollout", json={"state": [0, 0, 1, 0], "actions": [[0.5, 0], [0, 0.5]]}
    ).json()

    assert [feature["name"] for feature in model["features"]["state"]] == ["x", "y", "vx", "vy"]
    assert len(answer["states"]) == 3
    assert all(len(state) == 4 for state in answer["states"])
    verdict = httpx.post(
        f"{server.url}/safety-check", json={"state": [0, 0, 1, 0], "actions": [[0.5, 0]]}
    ).json()
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
