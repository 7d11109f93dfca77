"""Ray's cluster as a process that leaves nothing behind, and callers of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import yaml

from tests.test_end_to_end.conftest import free_port

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "ray" / "serve.yaml"
_MARK = "RAY_TESTS_MARK"
_START_S = 120.0


class RayCluster:
    """Ray on three nodes: one with the proxy, two with room for two replicas each.

    Attributes:
        url: Of the proxy.
    """

    def __init__(self, folder: Path) -> None:
        self._mark = uuid4().hex
        self._log = folder / "log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WORLD_MODEL_")}
        environment |= {
            _MARK: self._mark,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "client")]),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # other tests are not nice, either
            "RAY_health_check_period_ms": "1000",  # of nodes
            "RAY_enable_worker_prestart": "0",
            "RAY_prestart_worker_first_driver": "0",
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.test_ray.cluster", str(folder)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        """Start Serve, with a proxy."""
        self.ask("start", port=int(self.url.rpartition(":")[2]))

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return the answer of `cluster.Commands`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([command, arguments]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"the cluster ended:\n{self._log.read_text()[-3000:]}"
        return json.loads(answer)

    def deploy(self, arguments: dict[str, Any], **variables: str) -> None:
        """Deploy the configuration of `deploy/ray/`, with other arguments and settings."""
        config = yaml.safe_load(CONFIG.read_text())
        (application,) = config["applications"]
        application["args"] |= arguments
        application["runtime_env"]["env_vars"] |= variables
        del config["http_options"]  # of this cluster
        config["proxy_location"] = "HeadOnly"
        self.ask("deploy", config=config)

    def running(self) -> list[dict[str, Any]]:
        """Return the replicas that serve."""
        return [x for x in self.ask("replicas") if x["state"] == "RUNNING"]

    def wait_for(self, what: Callable[[], Any], timeout_s: float = _START_S) -> Any:
        """Return the first true value."""
        deadline = time.monotonic() + timeout_s
        while not (value := what()):
            assert time.monotonic() < deadline, (self.ask("status"), self.ask("replicas"))
            time.sleep(0.2)
        return value

    def wait_until_running(self) -> None:
        """Wait for the last deployment to serve."""
        self.wait_for(lambda: self.ask("status")["status"] == "RUNNING")

    def close(self) -> None:
        """End all processes: gently, then those that are left, known by their environment."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        if self._process.stdout is not None:
            self._process.stdout.close()
        left = [process for process in psutil.process_iter() if self._is_ours(process)]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        psutil.wait_procs(left, timeout=10)

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get(_MARK) == self._mark)
        except (psutil.Error, OSError):
            return False


@contextlib.contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """Start Ray; the folder's path is short, as paths of sockets must be."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    cluster = RayCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


class Clients:
    """Callers who ask the same again and again, each on its connection, until the block ends.

    Attributes:
        answers: Status and body of each answer; status 0 for a connection that was lost.
        seconds: How long each took.
    """

    def __init__(self, url: str, path: str, body: bytes, count: int, pause_s: float = 0.0) -> None:
        self.answers: list[tuple[int, bytes]] = []
        self.seconds: list[float] = []
        self._ends = threading.Event()
        self._request = (f"{url}{path}", body)
        self._pause_s = pause_s
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def _ask(self) -> None:
        url, body = self._request
        with httpx.Client(timeout=60) as client:
            while not self._ends.wait(self._pause_s):
                started = time.perf_counter()
                try:
                    answer = client.post(url, content=body)
                    self.answers.append((answer.status_code, answer.content))
                except httpx.TransportError:
                    self.answers.append((0, b""))
                self.seconds.append(time.perf_counter() - started)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()
