"""The real command on a free port."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

START_TIMEOUT_S = 240.0
COMMAND = (str(Path(sys.executable).parent / "world-model"), "serve")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    log: Path

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended: {self.process.returncode}"
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError("the server did not become ready")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


Start = Callable[..., Server]


def launch(log: Path, *options: str, **environment: str) -> Server:
    """Start a server that writes its log to a file; it may not be ready yet."""
    return launch_at(free_port(), log, *options, **environment)


def launch_at(port: int, log: Path, *options: str, **environment: str) -> Server:
    """Start a server on a port that is known; see `launch`."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [*COMMAND, "--port", str(port), *options],
            env={**os.environ, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return Server(process, f"http://127.0.0.1:{port}", log)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start servers with given options; whatever is still running at the end is stopped."""
    servers: list[Server] = []

    def start_one(*options: str, **environment: str) -> Server:
        # The bundled model is compiled once a machine; others would be for one test each.
        environment.setdefault("WORLD_MODEL_COMPILE", str("--checkpoint" not in options))
        server = launch(tmp_path_factory.mktemp("server") / "log", *options, **environment)
        servers.append(server)
        server.wait_until_ready()
        return server

    yield start_one
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
