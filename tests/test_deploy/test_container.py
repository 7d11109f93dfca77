"""The image, built and run by a real Docker engine; see docs/deployment.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.test_end_to_end.conftest import free_port

ROOT = Path(__file__).parents[2]
BASE = re.search(r"^ARG BASE=(\S+)", (ROOT / "Dockerfile").read_text(), re.M)
AS_COMPOSED = (
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges:true",
    "--memory=2g",
    "--restart=unless-stopped",
)
PATIENCE_S = 120.0


def docker(*arguments: str, check: bool = True) -> str:
    result = subprocess.run(["docker", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert not check or result.returncode == 0, result.stderr + result.stdout[-2000:]
    return result.stdout.strip()


def base_is_here() -> bool:
    """Whether an engine has the base image: without it, a build could wait for a registry."""
    return (
        shutil.which("docker") is not None
        and BASE is not None
        and docker("image", "inspect", "--format", "here", BASE.group(1), check=False) == "here"
    )


pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.skipif(not base_is_here(), reason="needs a Docker engine with the base image"),
]


def wait_for(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not come true in {PATIENCE_S:.0f} s"
        time.sleep(0.1)


class Container:
    """The service as docker-compose.yml runs it, but on the host's network.

    Args:
        image: What is run.
    """

    def __init__(self, image: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        address = {"WORLD_MODEL_HOST": "127.0.0.1", "WORLD_MODEL_PORT": str(port)}
        variables = [f"--env={name}={value}" for name, value in address.items()]
        self.id = docker("run", "--detach", "--network=host", *AS_COMPOSED, *variables, image)

    def inspected(self, template: str) -> str:
        return docker("inspect", "--format", template, self.id)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def predicts(self) -> bool:
        body = json.loads((ROOT / "examples" / "predict.json").read_text())
        answer = httpx.post(f"{self.url}/predict", json=body)
        return answer.status_code == 200 and len(answer.json()["next_state"]) == 34


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    # Without a bridge there is no other network, and an image's parts are built in containers too.
    docker("build", "--network=host", "--build-arg=DEVICE=cpu", "--tag=world-model:tested", ".")
    container = Container("world-model:tested")
    yield container
    docker("rm", "--force", container.id)


def test_it_predicts_by_machine_code_from_a_root_that_cannot_be_written(
    container: Container,
) -> None:
    wait_for("readiness", container.is_ready)

    assert container.predicts()
    assert httpx.get(f"{container.url}/model").json()["device"] == "cpu"  # not "cpu (eager)"
    assert docker("exec", container.id, "id", "-u") == "10001"
    code = "import pathlib, shutil; print([shutil.which(x) for x in ('c++', 'g++', 'gcc', 'cc')])"
    assert docker("exec", container.id, "python", "-c", code) == str([None] * 4)
    written = docker("exec", container.id, "touch", "/opt/world-model/x", check=False)
    assert written == ""
    assert docker("exec", container.id, "ls", "/opt/world-model").split() == ["steps", "venv"]
    code = "from service.telemetry.tracing import exporting; exporting().close()"
    docker("exec", container.id, "python", "-c", code)  # all that tracing needs is there


def test_its_health_check_turns_healthy(container: Container) -> None:
    wait_for("health", lambda: container.inspected("{{.State.Health.Status}}") == "healthy")


def test_it_comes_back_when_it_is_killed(container: Container) -> None:
    """As by the kernel for memory; the engine takes its own `docker kill` for a wish."""
    wait_for("readiness", container.is_ready)
    before = container.inspected("{{.State.Pid}}")
    process = Path("/proc", before, "cmdline")
    if not (process.exists() and b"world-model" in process.read_bytes()):
        pytest.skip("the engine's processes are not this machine's")

    os.kill(int(before), signal.SIGKILL)

    wait_for("a new process", lambda: container.inspected("{{.State.Pid}}") not in (before, "0"))
    wait_for("readiness", container.is_ready)
    assert container.inspected("{{.RestartCount}}") == "1"
    assert container.predicts()


def test_it_drains_and_ends_before_it_would_be_killed(container: Container) -> None:
    wait_for("readiness", container.is_ready)
    started = time.monotonic()

    docker("stop", container.id)

    assert time.monotonic() - started < 10
    assert container.inspected("{{.State.ExitCode}}") == "0"
