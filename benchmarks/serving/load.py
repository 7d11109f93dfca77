"""Load on a running server: wrk for closed loops, the poller on schedule, and both at once."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.candidates import ROOT
from benchmarks.serving.figures import WrkFigures, parse_wrk, percentile
from benchmarks.serving.processes import on_core

_SCRIPT = Path(__file__).parent / "post.lua"
_TIMEOUT_S = 60
_WARM_UP_S = 1.0
_LONGEST_FLOOD_S = 300


class LoadError(Exception):
    """A load has failed; the message says how, in words fit for the report."""


class RefusedError(LoadError):
    """Not every answer was good: the load itself ran."""


@dataclass(frozen=True)
class Polled:
    """Latencies of polled requests in ms, counted from their scheduled moments."""

    p50: float
    p99: float


def need_wrk() -> str:
    """Return wrk's version.

    Raises:
        OSError: It is not installed.
    """
    if shutil.which("wrk") is None or shutil.which("taskset") is None:
        raise OSError("this benchmark needs wrk and taskset (apt-get install wrk util-linux)")
    # Its usage text has the version in the first line, and ends with code 1.
    shown = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    words = shown.split()
    return words[1].removeprefix("debian/") if len(words) > 1 else "unknown"


def rate(url: str, bodies: Path, connections: int, seconds: float, core: int | None) -> float:
    """Return answers a second to connections that always ask again.

    Raises:
        LoadError: Not every answer was good.
    """
    return _rate(_start_wrk(url, bodies, connections, seconds, core))


def warm_up(url: str, bodies: Path, connections: int, core: int | None) -> None:
    """Put load on a server for a moment; what it answers is not counted."""
    _start_wrk(url, bodies, connections, _WARM_UP_S, core).communicate()


def poll(
    url: str, bodies: Path, seconds: float, hz: float, core: int | None, at_once: int = 1
) -> Polled:
    """Return latencies of requests sent on schedule.

    Args:
        url: Where to send.
        bodies: File with one a line.
        seconds: How long to ask.
        hz: Moments a second.
        core: Where the client runs.
        at_once: Requests of each moment.

    Raises:
        LoadError: One of them failed.
    """
    arguments = [url, str(bodies), str(seconds), str(hz), str(at_once)]
    command = [sys.executable, "-m", "benchmarks.serving.poller", *arguments]
    done = subprocess.run(
        on_core(core, command), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LoadError(f"the poller ended with code {done.returncode}")
    result = json.loads(done.stdout)
    if result["failures"]:
        raise RefusedError(f"polled requests failed: {_listed(result['failures'])}")
    latencies = result["latencies_ms"]
    return Polled(percentile(latencies, 0.5), percentile(latencies, 0.99))


def poll_under_flood(
    polled: tuple[str, Path],
    flood: tuple[str, Path],
    connections: int,
    seconds: float,
    hz: float,
    core: int | None,
) -> tuple[Polled, float]:
    """Return latencies of polled requests beside a closed-loop flood, and the flood's rate.

    Args:
        polled: Address and bodies of the polled requests.
        flood: Address and bodies of the flood.
        connections: Of the flood.
        seconds: How long to poll.
        hz: Polled requests a second.
        core: Where both clients run.

    Raises:
        LoadError: One of either kind failed.
    """
    wrk = _start_wrk(*flood, connections, seconds + _LONGEST_FLOOD_S, core)
    try:
        # The poller's own start and warm-up give the flood time to rise.
        latencies = poll(*polled, seconds, hz, core)
    except BaseException:
        wrk.kill()
        wrk.communicate()
        raise
    wrk.send_signal(signal.SIGINT)  # ends the flood once the poller is done; wrk still reports
    return latencies, _rate(wrk)


def _start_wrk(
    url: str, bodies: Path, connections: int, seconds: float, core: int | None
) -> subprocess.Popen[str]:
    length, timeout = f"-d{math.ceil(seconds)}s", f"{_TIMEOUT_S}s"
    command = ["wrk", "-t1", f"-c{connections}", length, "--timeout", timeout, "-s", str(_SCRIPT)]
    return subprocess.Popen(
        on_core(core, [*command, url, "--", str(bodies)]),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _rate(wrk: subprocess.Popen[str]) -> float:
    output, _ = wrk.communicate()
    try:
        seen: WrkFigures = parse_wrk(output)
    except ValueError as exc:
        raise LoadError(str(exc)) from exc
    if seen.faults:
        raise RefusedError(f"answers were not all good: {_listed(seen.faults)}")
    return seen.rate


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts.items())


def write_bodies(bodies: Sequence[bytes], path: Path) -> Path:
    """Write bodies, one a line, for wrk and the poller."""
    path.write_bytes(b"\n".join(bodies) + b"\n")
    return path
