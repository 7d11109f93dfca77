"""The service as users start it, from a checkout, asked over HTTP on the GPU and on the CPU.

python -m tools.gpu_check.over_http
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import load
from benchmarks.serving.dialects import OURS
from benchmarks.serving.workloads import W1, W2, W3, make_questions, read_episodes
from tools.gpu_check.flood import Figures
from tools.gpu_check.report import (
    OUT,
    ROWS,
    bundled,
    compare_answers,
    compare_with_smi,
    exit_code,
    has_gpu,
    passed,
    rows_of,
    service_command,
)

_PATIENCE = float(os.environ.get("PATIENCE", "1"))
_START_S = 40.0 * _PATIENCE
_TIMEOUT_S = 30.0 * _PATIENCE
_SECONDS, _POLL_S, _POLL_HZ = (1.5, 4.0, 50.0) if has_gpu() else (0.2, 0.5, 4.0)
_LONGEST_FLOOD_S = 300.0
_LOADS = (*((W1, n) for n in (1, 64)), (W2, 1), (W2, 16), (W3, 1), (W3, 4))

Answers = dict[str, dict[str, Any]]


@contextmanager
def served(name: str) -> Iterator[str]:
    """Serve the bundled model on a device; yield the address, and check how it ends."""
    # A port that is free, lest another service answers.
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    base, command = f"http://127.0.0.1:{port}", [*service_command(name), "--port", str(port)]
    path, started = OUT / f"service-{name}.log", time.perf_counter()
    with path.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while not (is_ready := _is_ready(base)) and process.poll() is None:
            if time.perf_counter() - started > _START_S:
                break
            time.sleep(0.1)
        seconds = round(time.perf_counter() - started, 1)
        is_ready = is_ready and process.poll() is None
        if not passed(f"service on {name} is ready", is_good=is_ready, seconds=seconds):
            print(path.read_text()[-1500:])
            raise SystemExit(1)
        yield base
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(20 * _PATIENCE)
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
    headers = {"X-Request-Timeout-Seconds": f"{min(_TIMEOUT_S, 60.0):.0f}"}
    request = urllib.request.Request(base + path, data, headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S + 10) as response:
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
    device = json.loads(asked(base, "/model"))["device"]
    is_there = (device == "cpu") == (name == "cpu") and "(" not in device
    passed(f"service on {name} computes there by code of its own", is_good=is_there, device=device)
    return found


def loads(base: str, name: str) -> None:
    """Print the rates of W1 to W3 and the latencies of W4; any answer that is not good fails."""
    questions = make_questions(read_episodes())
    kinds = {workload.kind for workload, _ in _LOADS} | {"safety-check"}
    bodies = {
        kind: load.write_bodies([OURS.body(kind, q) for q in questions], OUT / f"{kind}.bodies")
        for kind in kinds
    }
    urls = {kind: base + OURS.path(kind) for kind in kinds}
    for workload, connections in _LOADS:
        asked_for = urls[workload.kind], bodies[workload.kind]
        seen = _ended(_flood(*asked_for, connections, _SECONDS))
        _tell(name, workload.measure(connections), seen)
    safety, plan = (urls["safety-check"], bodies["safety-check"]), (urls["plan"], bodies["plan"])
    try:
        alone = load.poll(*safety, _POLL_S, _POLL_HZ, None)
        flooding = _flood(*plan, 4, _LONGEST_FLOOD_S)
        try:
            beside = load.poll(*safety, _POLL_S, _POLL_HZ, None)
        finally:
            flooding.send_signal(signal.SIGINT)
            flood = _ended(flooding)
    except load.LoadError as exc:
        passed(f"{name}: W4", is_good=False, error=exc)
        return
    _tell(name, "W3 @ 4 beside W4", flood)
    for what, polled in (("W4 alone", alone), ("W4 beside W3 @ 4", beside)):
        print(f"| {name} | {what} | p50 {polled.p50:.2f}, p99 {polled.p99:.2f} ms |", flush=True)
    for path in OUT.glob("*.bodies"):
        path.unlink()


def _flood(url: str, bodies: Path, connections: int, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tools.gpu_check.flood", url, str(bodies)]
    command += [str(connections), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _ended(flooding: subprocess.Popen[str]) -> Figures:
    """Return what a load has seen; none that has ended otherwise has seen anything."""
    output, _ = flooding.communicate()
    if flooding.returncode:
        return Figures(0.0, 0.0, 0.0, {f"code {flooding.returncode}": 1})
    return Figures(**json.loads(output))


def _tell(name: str, what: str, seen: Figures) -> None:
    latencies = f"p50 {seen.p50:.2f}, p99 {seen.p99:.2f} ms"
    print(f"| {name} | {what} | {seen.rate:.0f}/s, {latencies} |", flush=True)
    is_good = seen.rate > 0 and not seen.failures
    passed(f"{name}: {what} is answered", is_good=is_good, failures=seen.failures)


def check_memory(metrics: str) -> None:
    """Check what /metrics says of the device's memory, and compare it with nvidia-smi."""
    found: dict[str, float] = {}
    for line in metrics.splitlines():
        if line.startswith("world_model_vram_bytes{"):
            print(f"  {line}")
            labels, _, number = line.rpartition(" ")
            found[labels.split('kind="')[1].split('"')[0]] = float(number)
    in_order = [("allocated", "peak"), ("allocated", "reserved"), ("reserved", "budget")]
    in_order += [("budget", "device_total"), ("device_used", "device_total")]
    wrong = [
        f"{low}, {high}"
        for low, high in in_order
        if not 0 < found.get(low, 0.0) <= found.get(high, 0.0)
    ]
    passed("/metrics tells the device's memory", is_good=not wrong, wrong=wrong)
    compare_with_smi("memory by /metrics is nvidia-smi's", found.get("device_used", 0.0))


def compare(by_device: Mapping[str, Answers]) -> None:
    """Compare the two devices' answers."""
    for what, theirs in by_device["cpu"].items():
        ours = by_device["cuda"].get(what, {})
        names = [name for name, value in theirs.items() if _is_numbers(value)]
        seen, truth = (
            {name: np.array(answer[name], float) for name in names if name in answer}
            for answer in (ours, theirs)
        )
        compare_answers(f"both devices' answers, {what}", seen, truth)
        if "verdict" in theirs:
            same = ours.get("verdict") == theirs["verdict"]
            passed("both devices' verdicts", is_good=same, cuda=ours.get("verdict"))


def _is_numbers(value: Any) -> bool:
    try:
        return isinstance(value, list) and np.array(value, float).ndim > 0
    except (TypeError, ValueError):
        return False


def main() -> None:
    """Ask the service on each device."""
    OUT.mkdir(parents=True, exist_ok=True)
    found: dict[str, Answers] = {}
    for name in ("cuda", "cpu"):
        with served(name) as base:
            found[name] = answers(base, name)
            if name == "cuda":
                loads(base, name)
                metrics = asked(base, "/metrics").decode()
                (OUT / "metrics-cuda.txt").write_text(metrics)
                check_memory(metrics)
    compare(found)
    sys.exit(exit_code())


if __name__ == "__main__":
    main()
