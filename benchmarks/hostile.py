"""A safety check beside callers that flood the service, and what they make it grow by.

    python -m benchmarks.hostile [--seconds 10] [NAME ...]

The service runs on one core, the callers and the poller on another. A safety check is asked for 50
times a second, alone and beside each flood. Printed: its latencies in ms from the scheduled
moments, its p99 as a multiple of alone, and by how many MB the service's memory grew, at most
during the flood and still 3 s after it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.serving.processes import on_core, two_cores
from benchmarks.serving.workloads import POLL_HZ

ROOT = Path(__file__).parents[1]
_CONNECTIONS = 50
_SETTLE_S = 3.0

Send = Callable[[float, int], None]


def request(path: str, body: bytes, method: str = "POST") -> bytes:
    """Return the bytes of a request that may take its time."""
    lines = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
    lines.append("X-Request-Timeout-Seconds: 60")
    return "\r\n".join([*lines, "", ""]).encode() + body


def plan(rows: int, horizon: int, *, outputs: list[str] | None = None) -> bytes:
    """Return a body of so many random sequences from a recorded state."""
    example = json.loads((ROOT / "examples" / "rollout.json").read_text())
    rng = np.random.default_rng(1)
    actions = rng.uniform([-0.2, 0, 0], [0.2, 1, 0.2], (rows, horizon, 3)).round(4).tolist()
    body: dict[str, Any] = {"state": example["state"], "actions": actions}
    if outputs is not None:
        body["outputs"] = outputs
    return json.dumps(body).encode()


def connected(port: int) -> socket.socket:
    """Return a connection that does not wait for ever."""
    connection = socket.create_connection(("127.0.0.1", port), 5)
    connection.settimeout(0.5)
    return connection


def until(end: float, send: Callable[[], None]) -> None:
    """Send again and again; a caller that is thrown out comes again."""
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            send()


def endless(begin: bytes, piece: bytes) -> Send:
    """Return a flood that begins requests which never end."""
    big = piece * (2**16 // len(piece))

    def flood(end: float, port: int) -> None:
        def send() -> None:
            with connected(port) as connection:
                connection.sendall(begin)
                while time.monotonic() < end:
                    connection.sendall(big)

        until(end, send)

    return flood


def poured(raw: bytes, begin: bytes = b"", count: int = 8) -> Send:
    """Return a flood of bytes over many connections on which nobody reads an answer."""

    def opened(port: int) -> socket.socket:
        connection = connected(port)
        connection.sendall(begin)
        connection.setblocking(False)
        return connection

    def flood(end: float, port: int) -> None:
        big = raw * max(1, 2**16 // len(raw))
        open_ = [(opened(port), b"") for _ in range(count)]
        while time.monotonic() < end:
            for k, (connection, rest) in enumerate(open_):
                rest = rest or big
                try:
                    open_[k] = connection, rest[connection.send(rest) :]
                except BlockingIOError:
                    continue
                except OSError:
                    with contextlib.suppress(OSError):
                        open_[k] = opened(port), b""
            time.sleep(0.001)

    return flood


def left(raw: bytes, count: int) -> Send:
    """Return a flood of requests whose callers leave in the middle of them."""

    def flood(end: float, port: int) -> None:
        while time.monotonic() < end:
            with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
                open_ = [stack.enter_context(connected(port)) for _ in range(count)]
                for connection in open_:
                    connection.sendall(raw)

    return flood


def slow(begin: bytes, count: int) -> Send:
    """Return a flood of connections that send a byte now and then."""

    def flood(end: float, port: int) -> None:
        open_: list[socket.socket] = []
        while time.monotonic() < end:
            while len(open_) < count and time.monotonic() < end:
                with contextlib.suppress(OSError):
                    open_.append(connected(port))
                    open_[-1].sendall(begin)
            for connection in open_[:]:
                try:
                    connection.sendall(b"1")
                except OSError:
                    open_.remove(connection)
            time.sleep(0.5)

    return flood


def asked(*raws: bytes) -> Send:
    """Return a flood of requests that are answered, one after the other on each connection."""

    def flood(end: float, port: int) -> None:
        turn = 0

        def send() -> None:
            nonlocal turn
            with connected(port) as connection:
                connection.settimeout(20)
                while time.monotonic() < end:
                    connection.sendall(raws[turn % len(raws)])
                    turn += 1
                    head = b""
                    while b"\r\n\r\n" not in head:
                        if not (piece := connection.recv(2**20)):
                            raise ConnectionError
                        head += piece
                    if not read_rest(connection, head):
                        return

        until(end, send)

    return flood


def read_rest(connection: socket.socket, got: bytes) -> bool:
    """Read an answer to its end; tell whether the connection is kept."""
    head, _, body = got.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    lengths = [int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length:")]
    count, tail = len(body), body[-5:]
    while (count < lengths[0]) if lengths else (tail != b"0\r\n\r\n"):
        if not (piece := connection.recv(2**20)):
            return False
        count += len(piece)
        tail = (tail + piece)[-5:]
    return b"connection: close" not in lines


def opened(end: float, port: int) -> None:
    """Open connections as fast as can be, and keep many of them."""
    open_: list[socket.socket] = []
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            open_.append(connected(port))
        if len(open_) > 3000:
            for connection in open_[:1000]:
                connection.close()
            del open_[:1000]


_MOST = 8 * 2**20
_STATE = json.loads((ROOT / "examples" / "rollout.json").read_text())["state"]
_PART = request("/rollout", b"").replace(b"Length: 0", b"Length: 8000000")
_CHUNKED = request("/rollout", b"", "Transfer-Encoding: chunked").replace(
    b"Content-Length: 0\r\n", b""
)


def filled(text: str, piece: str, end: str) -> bytes:
    """Return a body of nearly the most bytes that the defaults allow."""
    count = (_MOST - 100 - len(text) - len(end)) // len(piece)
    return (text + piece * count + end).encode()


_START = json.dumps({"state": _STATE})[:-1]
BAD = (
    filled(_START + ', "actions": [', "{},", "{}]}"),
    filled(_START + ', "actions": [', "[],", "[]]}"),
    filled(_START + ', "actions": [', "null,", "null]}"),
    filled(_START + ', "actions": [', "[0,0,0],", "[0,0,NaN]]}"),
    filled(_START + ', "actions": [', "[", "]}"),
    filled(_START + ', "actions": [[[0,0,', "1", "]]]}"),
    filled(_START + ', "actions": [[[0,0,0]]], "outputs": [', '"q",', '"q"]}'),
    filled(_START + ', "x": "', "y", '"}'),
    filled(_START + ', "actions": [[[0,0,0]]]', " ", "}"),
    filled(_START + ', "actions": [[[0,0,0]]]', ', "k": 1', "}"),
    filled("", "x", ""),
)
FLOODS: dict[str, Send] = {
    "pipelined rollouts, unread": poured(request("/rollout", plan(16, 16))),
    "pipelined probes, unread": poured(request("/metrics", b"", method="GET")),
    "long answers, unread": poured(request("/rollout", plan(1024, 64))),
    "endless targets": endless(b"GET /", b"x"),
    "endless heads": endless(b"GET / HTTP/1.1\r\n", b"X: y\r\n"),
    "endless trailers": endless(_CHUNKED + b"0\r\n", b"X: y\r\n"),
    "endless chunk heads": endless(_CHUNKED + b"1;", b"x"),
    "tiny chunks": poured(b"1\r\n \r\n" * 10_000, begin=_CHUNKED, count=20),
    "bodies left unfinished": left(_PART + b" " * 4_000_000, count=10),
    "small bodies left unfinished": left(_PART + b" " * 100_000, count=100),
    "endless bodies": endless(_PART.replace(b"8000000", b"80000000"), b" "),
    "empty lines": endless(b"", b"\r\n"),
    "slow heads": slow(b"GET /", 900),
    "slow bodies": slow(_PART + b" " * 50_000, 500),
    "connections": opened,
    "largest bodies": asked(request("/rollout", plan(4096, 64, outputs=["returns"]))),
    "wide answers": asked(request("/rollout", plan(4096, 1))),
    "wide checks": asked(request("/safety-check", plan(4096, 1))),
    "long answers": asked(request("/rollout", plan(1024, 64))),
    "largest answers": asked(request("/rollout", plan(4096, 64))),
    "largest checks": asked(request("/safety-check", plan(4096, 64))),
    "bad bodies": asked(*(request("/rollout", body) for body in BAD)),
}


class Service:
    """The service on one core."""

    def __init__(self, core: int | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        command = on_core(core, [str(Path(sys.executable).with_name("world-model")), "serve"])
        self._process = subprocess.Popen(
            [*command, "--port", str(self.port), "--log-level", "error", "--drain-delay-s", "0"],
            cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self._info = psutil.Process(self._process.pid)

    def wait(self) -> None:
        """Wait until it answers."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with contextlib.suppress(OSError), connected(self.port) as connection:
                connection.sendall(request("/readyz", b"", method="GET"))
                if connection.recv(100).startswith(b"HTTP/1.1 200"):
                    return
            time.sleep(0.1)
        raise TimeoutError("the service did not start")

    def resident_mb(self) -> float:
        """Return its memory."""
        return float(self._info.memory_info().rss) / 1e6

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)


def polled(service: Service, core: int | None, seconds: float) -> list[float]:
    """Return the latencies of safety checks in ms; none may fail."""
    with tempfile.NamedTemporaryFile() as file:
        example = json.loads((ROOT / "examples" / "safety-check.json").read_text())
        file.write(json.dumps(example).encode() + b"\n")
        file.flush()
        url = f"http://127.0.0.1:{service.port}/safety-check"
        args = ["-m", "benchmarks.serving.poller", url, file.name, str(seconds), str(POLL_HZ)]
        done = subprocess.run(
            on_core(core, [sys.executable, *args]),
            check=True, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
    answer = json.loads(done.stdout)
    if answer["failures"]:
        print(f"  failed checks: {answer['failures']}")
    return list(answer["latencies_ms"])


@contextlib.contextmanager
def flooding(name: str, service: Service, core: int | None, seconds: float) -> Iterator[None]:
    """Flood from a process of low priority, so that the poller is on time."""
    args = ["nice", "-n", "19", sys.executable, "-m", "benchmarks.hostile"]
    process = subprocess.Popen(
        on_core(core, [*args, "--flood", name, "--port", str(service.port), "--seconds",
                       str(seconds)]),
        cwd=ROOT, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()  # it has begun
    try:
        yield
    finally:
        process.wait(seconds + 60)


def measure(names: list[str], seconds: float) -> None:
    """Print a line a flood."""
    cores = two_cores()
    print(f"{'flood':28} {'p50':>7} {'p99':>7} {'worst':>7} {'x alone':>8} {'+MB':>7} {'kept':>7}")
    for name in names:
        service = Service(cores.server)
        try:
            service.wait()
            polled(service, cores.load, 2)
            alone = np.percentile(polled(service, cores.load, seconds), 99)
            before = service.resident_mb()
            with flooding(name, service, cores.load, seconds + 2):
                time.sleep(1)
                times = polled(service, cores.load, seconds)
                grown = service.resident_mb() - before
            time.sleep(_SETTLE_S)
            kept = service.resident_mb() - before
        finally:
            service.close()
        p50, p99, worst = np.percentile(times, [50, 99, 100])
        figures = f"{p50:7.2f} {p99:7.2f} {worst:7.2f} {p99 / alone:8.2f} {grown:7.1f} {kept:7.1f}"
        print(f"{name:28} {figures}", flush=True)


def main() -> None:
    """Measure, or flood as a measurement asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*FLOODS])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--flood")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    if args.flood:
        print("begun", flush=True)
        FLOODS[args.flood](time.monotonic() + args.seconds, args.port)
    else:
        measure(args.names, args.seconds)


if __name__ == "__main__":
    main()
