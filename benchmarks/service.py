"""The real service as its clients see it: planners, predictions, and a safety poller beside them.

    python -m benchmarks.service

Starts `world-model serve` with the bundled model on this machine's CPU and asks it over loopback.
Predictions are asked for by wrk (Debian's package `wrk`), which costs little itself. Load generator
and service share the cores, so read the ratios. The poller is open-loop: it sends
on schedule whatever is outstanding, and latencies count from the scheduled moment.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import describe_machine

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS = 8.0
POLL_HZ = 10.0
CANDIDATES, HORIZON, PLANNERS = 256, 16, 4


@contextmanager
def running_service() -> Iterator[str]:
    """Start the command on a free port; yield its URL once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "world-model"), "serve", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(url):
            if process.poll() is not None:
                raise RuntimeError(f"the service ended with code {process.returncode}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def is_ready(url: str) -> bool:
    """Tell whether /readyz answers 200."""
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def bodies() -> dict[str, bytes]:
    """Return request bodies by path, from held-out states."""
    read = {name: json.loads((EXAMPLES / f"{name}.json").read_text()) for name in (
        "predict", "rollout", "safety-check",
    )}  # fmt: skip
    sequence = read["rollout"]["actions"][0][:HORIZON]
    read["rollout"]["actions"] = [sequence] * CANDIDATES
    read["rollout"]["outputs"] = ["returns", "crash_probability"]
    return {f"/{name}": json.dumps(body).encode() for name, body in read.items()}


def wrk(url: str, body: bytes, connections: int) -> float:
    """Return answers a second of so many connections that always ask again.

    Raises:
        RuntimeError: wrk is not installed, or not every answer was a 200.
    """
    if shutil.which("wrk") is None:
        raise RuntimeError("this benchmark needs wrk (for example: apt-get install wrk)")
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'\nwrk.body = [[{body.decode()}]]\n")
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{SECONDS:.0f}s", "-s", script.name, url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output:
        raise RuntimeError(f"the service refused requests: {output}")
    return float(re.findall(r"Requests/sec:\s+([0-9.]+)", output)[0])


async def closed_loop(client: httpx.AsyncClient, path: str, body: bytes, connections: int) -> float:
    """Return answers a second of so many connections that always ask again."""
    done = 0
    end = time.perf_counter() + SECONDS

    async def ask() -> None:
        nonlocal done
        while time.perf_counter() < end:
            (await client.post(path, content=body)).raise_for_status()
            done += 1

    await asyncio.gather(*(ask() for _ in range(connections)))
    return done / SECONDS


async def poll(client: httpx.AsyncClient, body: bytes) -> list[float]:
    """Return the latencies in ms of safety checks sent on schedule."""
    started = time.perf_counter()

    async def check(due: float) -> float:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        (await client.post("/safety-check", content=body)).raise_for_status()
        return 1e3 * (time.perf_counter() - due)

    count = int(SECONDS * POLL_HZ)
    return list(await asyncio.gather(*(check(started + i / POLL_HZ) for i in range(count))))


async def measure(url: str, requests: dict[str, bytes]) -> dict[str, Any]:
    """Return the planners' throughput, and the poller's latencies alone and beside them."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        alone = await poll(client, requests["/safety-check"])
        planners = closed_loop(client, "/rollout", requests["/rollout"], PLANNERS)
        flooded, rate = await asyncio.gather(poll(client, requests["/safety-check"]), planners)
    return {"alone": alone, "flooded": flooded, "planner": rate}


def main() -> None:
    """Print Markdown."""
    requests = bodies()
    with running_service() as url:
        predict = {c: wrk(f"{url}/predict", requests["/predict"], c) for c in (1, 16, 64)}
        result = asyncio.run(measure(url, requests))
    print(f"Bundled ensemble over loopback HTTP. {describe_machine()}\n")
    print("| what | figure |\n|---|---|")
    for connections, rate in predict.items():
        print(f"| /predict, {connections} connections | {rate:.0f} requests/s |")
    print(
        f"| /rollout, {CANDIDATES} sequences x {HORIZON}, {PLANNERS} connections, polled beside "
        f"| {result['planner']:.1f} requests/s |"
    )
    for name, key in (("alone", "alone"), ("under that flood", "flooded")):
        latencies = sorted(result[key])
        p99 = latencies[int(0.99 * len(latencies))]
        print(
            f"| /safety-check at {POLL_HZ:.0f} Hz, {name} "
            f"| p50 {statistics.median(latencies):.0f} ms, p99 {p99:.0f} ms |"
        )


if __name__ == "__main__":
    main()
