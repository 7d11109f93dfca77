"""One process, and replicas on Ray Serve, on this machine: `python -m benchmarks.ray_cluster`.

The bundled model, one thread for the engine, safety checks of one sequence of 32 steps from eight
callers, each with a connection of its own. Whoever asks takes part of the same CPUs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import orjson

from tests.test_end_to_end.conftest import launch
from tests.test_ray.running import Clients, ray_cluster

_CALLERS = 8
_WARM_S = 2.0
_SECONDS = 8.0
_ROUNDS = 3


def main() -> None:
    """Measure and print a table: medians of the rounds."""
    print("| served by | requests/s | p50, ms | p99, ms |\n|---|---|---|---|")
    with _one_process() as url:
        _print_row("one process", url)
    with ray_cluster() as cluster:
        for count in (1, 3):
            cluster.deploy(
                {"num_cpus": 1, "min_replicas": count, "max_replicas": count},
                WORLD_MODEL_LOG_LEVEL="warning",
            )
            cluster.wait_until_running()
            _print_row(f"Ray Serve, replicas: {count}", cluster.url)


@contextmanager
def _one_process() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        server = launch(Path(folder) / "log", WORLD_MODEL_THREADS="1")
        try:
            server.wait_until_ready()
            yield server.url
        finally:
            server.stop()


def _print_row(name: str, url: str) -> None:
    rounds = [_measure(url) for _ in range(_ROUNDS)]
    rate, p50_s, p99_s = (statistics.median(values) for values in zip(*rounds, strict=True))
    print(f"| {name} | {rate:.0f} | {p50_s * 1e3:.1f} | {p99_s * 1e3:.1f} |", flush=True)


def _measure(url: str) -> tuple[float, float, float]:
    """Return requests a second and two quantiles of their time, in seconds."""
    example = httpx.get(f"{url}/model").json()["example"]
    body = orjson.dumps({"state": example["state"], "actions": [example["action"]] * 32})
    with Clients(url, "/safety-check", body, _CALLERS):
        time.sleep(_WARM_S)
    with Clients(url, "/safety-check", body, _CALLERS) as clients:
        time.sleep(_SECONDS)
    if {status for status, _ in clients.answers} != {200}:
        raise RuntimeError("a request failed")
    p50_s, p99_s = np.quantile(clients.seconds, (0.5, 0.99))
    return len(clients.seconds) / _SECONDS, float(p50_s), float(p99_s)


if __name__ == "__main__":
    main()
