"""The whole service on a GPU that a CPU plays, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from service.server import DEVICE_LOST_CODE
from tests.fakes import played_gpu

ROOT = Path(__file__).parents[2]
START_S = 600.0


@pytest.fixture
def served(compiler: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    pytest.importorskip("cuda.bindings.driver")
    if torch.cuda.is_available():
        pytest.skip("NVIDIA's own driver is loaded")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.fakes.played_gpu", "serve", "--device", "cuda"]
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--members", "1"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=output,
            stderr=output,
        )
    base, until = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while process.poll() is None and not is_ready(base) and time.monotonic() < until:
            time.sleep(0.1)
        assert is_ready(base), log.read_text()
        yield process, base
    finally:
        process.kill()
        process.wait()


def is_ready(base: str) -> bool:
    try:
        return httpx.get(f"{base}/readyz", timeout=60).is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_a_service_whose_context_dies_says_so_and_ends_with_code_75(
    served: tuple[subprocess.Popen[bytes], str],
) -> None:
    process, base = served
    body = json.loads((ROOT / "examples" / "safety-check.json").read_text())
    with httpx.Client(base_url=base, timeout=60) as client:
        assert client.get("/model").json()["device"] == played_gpu.NAME  # by the fused kernels
        assert client.post("/safety-check", json=body).is_success

        process.send_signal(signal.SIGUSR1)

        assert client.post("/safety-check", json=body).status_code in (500, 503)
    assert process.wait(300) == DEVICE_LOST_CODE
