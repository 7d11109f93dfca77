"""The service as users start it, from a checkout, asked over HTTP on the GPU and on the CPU.

python -m tools.gpu_check.over_http
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import load
from benchmarks.serving.dialects import OURS
from benchmarks.serving.workloads import W1, W2, W3, make_questions, read_episodes
from tools.gpu_check.report import OUT, ROWS, bundled, has_gpu, passed, rows_of

_PORT = 8123
_START_S = 60.0
_SECONDS = 2.0
_POLL_S, _POLL_HZ = 4.0, 50.0
_LOADS = (*((W1, n) for n in (1, 64)), (W2, 1), (W2, 16), (W3, 1), (W3, 4))

Answers = dict[str, dict[str, Any]]


@contextmanager
def served(name: str) -> Iterator[str]:
    """Serve the bundled model on a device; yield the address, and check how it ends."""
    base = f"http://127.0.0.1:{_PORT}"
    command = [sys.executable, "-m", "service", "serve", "--device", name, "--port", str(_PORT)]
    path, started = OUT / f"service-{name}.log", time.perf_counter()
    with path.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while not (is_ready := _is_ready(base)) and process.poll() is None:
            if time.perf_counter() - started > _START_S:
                break
            time.sleep(0.1)
        seconds = round(time.perf_counter() - started, 1)
        if not passed(f"service on {name} is ready", is_good=is_ready, seconds=seconds):
            print(path.read_text()[-1500:])
            raise SystemExit(1)
        yield base
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            code = -9
        passed(f"service on {name} ends by SIGTERM", is_good=code == 0, code=code)


def _is_ready(base: str) -> bool:
    try:
        asked(base, "/readyz")
    except OSError:
        return False
    return True


def asked(base: str, path: str, body: Any = None) -> bytes:
    """Return the body of an answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"X-Request-Timeout-Seconds": "30"}
    request = urllib.request.Request(base + path, data, headers)
    with urllib.request.urlopen(request, timeout=40) as response:
        answer: bytes = response.read()
    return answer


def answers(base: str, name: str) -> Answers:
    """Ask rollouts of several sizes and a safety check; return the answers by what was asked."""
    checkpoint, found = bundled(), {}
    states, actions = rows_of(checkpoint, 4096)
    for rows in ROWS if has_gpu() else ROWS[:2]:
        body = {"state": states[:rows].tolist(), "actions": np.round(actions[:rows], 4).tolist()}
        found[f"{rows} rows"] = json.loads(asked(base, "/rollout", body))
    body = json.loads(Path("examples/safety-check.json").read_text())
    found["safety-check"] = json.loads(asked(base, "/safety-check", body))
    model = json.loads(asked(base, "/model"))["device"]
    is_compiled = "(" not in model
    passed(
        f"service on {name} computes by code of its own", is_good=is_compiled, device=repr(model)
    )
    return found


def loads(base: str, name: str) -> None:
    """Print the rates of W1 to W3 and the latencies of W4."""
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        print("  no wrk or taskset: W1 to W4 are not measured")
        return
    questions = make_questions(read_episodes())
    kinds = {workload.kind for workload, _ in _LOADS} | {"safety-check"}
    bodies = {
        kind: load.write_bodies([OURS.body(kind, q) for q in questions], OUT / f"{kind}.bodies")
        for kind in kinds
    }
    urls = {kind: base + OURS.path(kind) for kind in kinds}
    for workload, connections in _LOADS:
        asked_for = urls[workload.kind], bodies[workload.kind]
        load.warm_up(*asked_for, connections, None)
        rate = load.rate(*asked_for, connections, _SECONDS, None)
        print(f"| {name} | {workload.measure(connections)} | {rate:.0f}/s |", flush=True)
    safety, plan = (
        (urls["safety-check"], bodies["safety-check"]),
        (urls["plan"], bodies["plan"]),
    )
    alone = load.poll(*safety, _POLL_S, _POLL_HZ, None)
    beside, rate = load.poll_under_flood(safety, plan, 4, _POLL_S, _POLL_HZ, None)
    for what, seen in (("W4 alone", alone), (f"W4 beside W3 @ 4 ({rate:.0f}/s)", beside)):
        print(f"| {name} | {what} | p50 {seen.p50:.2f}, p99 {seen.p99:.2f} ms |", flush=True)
    for path in OUT.glob("*.bodies"):
        path.unlink()


def check_memory(base: str) -> None:
    """Compare what /metrics says of the device's memory with nvidia-smi."""
    text = asked(base, "/metrics").decode()
    (OUT / "metrics-cuda.txt").write_text(text)
    lines = [x for x in text.splitlines() if x.startswith("world_model_vram_bytes")]
    print("\n".join(f"  {line}" for line in lines))
    kinds = ("allocated", "reserved", "peak", "budget", "device_used", "device_total")
    is_good = all(any(f'kind="{kind}"' in line for line in lines) for kind in kinds)
    passed("/metrics tells the device's memory", is_good=is_good)
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    print("  by process:", subprocess.run(query, capture_output=True, text=True).stdout.split())


def compare(by_device: dict[str, Answers]) -> None:
    """Compare the two devices' answers."""
    for what, ours in by_device["cuda"].items():
        theirs = by_device["cpu"][what]
        if what == "safety-check":
            same = ours["verdict"] == theirs["verdict"]
            passed("both devices' verdicts", is_good=same, cuda=ours["verdict"])
            continue
        gaps = {
            name: float(np.abs(np.array(ours[name]) - np.array(theirs[name])).max())
            for name, value in theirs.items()
            if isinstance(value, list)
        }
        shown = {name: f"{gap:.1e}" for name, gap in gaps.items()}
        passed(
            f"both devices' answers, {what}", is_good=all(map(np.isfinite, gaps.values())), **shown
        )


def main() -> None:
    """Ask the service on each device."""
    OUT.mkdir(parents=True, exist_ok=True)
    found: dict[str, Answers] = {}
    for name in ("cuda", "cpu") if has_gpu() else ("cpu",):
        with served(name) as base:
            found[name] = answers(base, name)
            if name == "cuda":
                loads(base, name)
                check_memory(base)
    if has_gpu():
        compare(found)


if __name__ == "__main__":
    main()
