"""Two instances behind HAProxy are replaced one after the other while they are asked.

    python -m benchmarks.rolling [--times 3]

Undisturbed for as long as an upgrade takes; then the service is upgraded (each instance ends and
starts again), then the model (each starts with another checkpoint); at last one instance is killed.
Prints failed requests, and the latencies of safety checks in each phase. Needs Debian's haproxy.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import torch

from benchmarks.machine import describe_machine
from benchmarks.serving.figures import percentile
from models.checkpoint import load_checkpoint, save_checkpoint
from service.settings import PRETRAINED
from tests.proxy import Proxy, launch_proxy
from tests.test_end_to_end.conftest import Server, launch_at

EXAMPLES = Path(__file__).parents[1] / "examples"
PHASES = ("undisturbed", "service upgraded", "model upgraded", "instance killed")
_PORTS = range(20_000, 32_000)
"""The system gives none of these to others, so that an instance finds its own again."""


class Kind(NamedTuple):
    """One kind of request.

    Attributes:
        path: Where it goes.
        body: Always the same: so is its answer, by one model.
        callers: How many send it.
        pause_s: Between an answer and the next request.
    """

    path: str
    body: bytes
    callers: int
    pause_s: float


def kinds() -> dict[str, Kind]:
    """Return a few cars, a planner, and one whose requests are too long to be sent again."""
    check = (EXAMPLES / "safety-check.json").read_bytes()
    example = json.loads((EXAMPLES / "rollout.json").read_text())

    def plan(sequences: int) -> bytes:
        actions = (example["actions"] * sequences)[:sequences]
        exact = [[[x / 3 + 1 / 30 for x in step] for step in one] for one in actions]
        body = {"state": example["state"], "actions": exact, "outputs": ["returns"]}
        return json.dumps(body).encode()

    return {
        "check": Kind("/safety-check", check, 3, 0.02),
        "plan": Kind("/rollout", plan(64), 1, 0.1),
        "long plan": Kind("/rollout", plan(640), 1, 2.0),
    }


KINDS = kinds()
TIMEOUT_S = 55
"""Long, as a machine that does much else is slow: what is lost is looked for, not what is late."""

Asked = tuple[str, int, bytes]
"""Kind, status (0: no answer) and text."""


def ask(connection: http.client.HTTPConnection, kind: Kind, name: str) -> tuple[int, bytes]:
    """Return status and text; OSError or HTTPException if there is no answer to this request."""
    headers = {"X-Request-Id": name, "X-Request-Timeout-Seconds": str(TIMEOUT_S)}
    connection.request("POST", kind.path, kind.body, headers)
    response = connection.getresponse()
    text = response.read()
    if response.status == 200 and response.headers["X-Request-Id"] != name:
        raise http.client.HTTPException("this is another request's answer")
    return response.status, text


def connected(url: str) -> http.client.HTTPConnection:
    """Return a connection that is made by its first request."""
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S + 5)


@dataclass
class Phase:
    """What came of requests that were answered in it.

    Attributes:
        asked: How often what was answered.
        latencies_s: Of safety checks.
        errors: Of requests without an answer.
    """

    asked: Counter[Asked] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def failed(self) -> list[str]:
        """Return what was not answered 200."""
        wrong = [(kind, status, text) for kind, status, text in self.asked if status != 200]
        return [f"{kind}: {status} {text[:200]!r}" for kind, status, text in wrong] + self.errors

    def texts(self) -> set[tuple[str, bytes]]:
        """Return all different answers."""
        return {(kind, text) for kind, _, text in self.asked}


class Load:
    """Callers that ask until told to stop; none of them tries again.

    Args:
        url: Whom they ask.

    Attributes:
        phases: What came, by the name of each phase.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self.phases = {name: Phase() for name in PHASES}
        self._now = self.phases[PHASES[0]]
        self._is_over = threading.Event()
        self._are_long_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(name, caller))
            for name, kind in KINDS.items()
            for caller in range(kind.callers)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._are_long_over.set()
        for thread in self._threads:
            thread.join()

    def enter(self, phase: str) -> None:
        """Begin a phase; in the last one nobody sends what cannot be sent again."""
        if phase == PHASES[-1]:
            self._are_long_over.set()
            self._threads[-1].join()
        self._now = self.phases[phase]

    def _call(self, name: str, caller: int) -> None:
        kind, connection = KINDS[name], connected(self._url)
        is_over = self._are_long_over if name == "long plan" else self._is_over
        for number in count():
            if is_over.wait(kind.pause_s):
                break
            started = time.perf_counter()
            try:
                status, text = ask(connection, kind, f"{name.replace(' ', '-')}-{caller}-{number}")
            except (OSError, http.client.HTTPException) as exc:
                self._now.errors.append(f"{name}: {exc!r}")
                connection.close()
                continue
            self._now.asked[name, status, text] += 1
            if name == "check":
                self._now.latencies_s.append(time.perf_counter() - started)
        connection.close()


class Instance:
    """One of the two, on a port of its own.

    Args:
        name: As HAProxy calls it.
        port: To listen on.
        folder: For its logs.
    """

    def __init__(self, name: str, port: int, folder: Path) -> None:
        self.name = name
        self.port = port
        self._folder = folder
        self._starts = count()

    def start(self, *options: str) -> None:
        """Start it; it may not be ready yet."""
        log = self._folder / f"{self.name}-{next(self._starts)}.log"
        self.server: Server = launch_at(self.port, log, *options)

    def replace(self, proxy: Proxy, *options: str) -> int:
        """End it, start it anew, and return its exit status once the proxy sends to it."""
        status = self.server.stop()
        self.start(*options)
        self.server.wait_until_ready()
        proxy.wait_until(self.name, "UP")
        return status

    def kill(self) -> None:
        """Kill it with requests that it has not answered."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            os.kill(self.server.process.pid, number)
            time.sleep(0.2)
        self.server.process.wait()

    def answers(self) -> set[tuple[str, bytes]]:
        """Return what it answers itself to each kind, asked past the proxy."""
        with contextlib.closing(connected(self.server.url)) as connection:
            return {(name, ask(connection, kind, "own")[1]) for name, kind in KINDS.items()}


def own_ports() -> list[int]:
    """Return two ports that nobody else will be given while their owner is away."""
    with contextlib.ExitStack() as probes:
        found: list[int] = []
        for port in random.sample(_PORTS, 100):
            probe = probes.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found[:2]


def other_model(folder: Path) -> Path:
    """Return a checkpoint like the bundled one, with other weights."""
    checkpoint = load_checkpoint(PRETRAINED)
    with torch.no_grad():
        for weights in checkpoint.ensemble.parameters():
            weights.mul_(1.001)
    save_checkpoint(checkpoint, folder)
    return folder


@dataclass
class Played:
    """What was seen.

    Attributes:
        phases: What came of the requests.
        old: What the bundled model answers.
        new: What the other one answers.
        exits: Exit statuses of the instances that were replaced.
        statistics: Of HAProxy at the end: see `Proxy.rows`.
    """

    phases: dict[str, Phase]
    old: set[tuple[str, bytes]]
    new: set[tuple[str, bytes]]
    exits: list[int]
    statistics: dict[tuple[str, str], dict[str, str]]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[tuple[Proxy, list[Instance]]]:
    """Run two instances of the bundled model behind HAProxy."""
    instances = [Instance(name, port, folder) for name, port in zip("ab", own_ports(), strict=True)]
    for instance in instances:
        instance.start()
    proxy = launch_proxy(folder, *(f"127.0.0.1:{instance.port}" for instance in instances))
    try:
        for instance in instances:
            instance.server.wait_until_ready()
            proxy.wait_until(instance.name, "UP")
        yield proxy, instances
    finally:
        proxy.stop()
        for instance in instances:
            instance.server.process.kill()
            instance.server.process.wait()


def play(folder: Path, undisturbed_s: float) -> Played:
    """Play all phases.

    Args:
        folder: For logs and a checkpoint.
        undisturbed_s: How long the first phase is.
    """
    new = ("--checkpoint", str(other_model(folder / "checkpoint")))
    with running(folder) as (proxy, instances):
        old_answers = instances[0].answers()
        with Load(proxy.url) as load:
            time.sleep(undisturbed_s)
            load.enter("service upgraded")
            exits = [instance.replace(proxy) for instance in instances]
            load.enter("model upgraded")
            exits += [instance.replace(proxy, *new) for instance in instances]
            load.enter("instance killed")
            instances[0].kill()
            proxy.wait_until("a", "DOWN")
            time.sleep(0.5)
        new_answers = instances[1].answers()
        return Played(load.phases, old_answers, new_answers, exits, proxy.rows())


def main() -> None:
    """Play, and print what came of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--undisturbed", type=float, default=15.0, metavar="SECONDS")
    options = parser.parse_args()
    print(f"{describe_machine()}. Safety checks, ms:")
    for _ in range(options.times):
        with tempfile.TemporaryDirectory() as folder:
            played = play(Path(folder), options.undisturbed)
        for name, phase in played.phases.items():
            p50, p99 = (1e3 * percentile(phase.latencies_s, share) for share in (0.5, 0.99))
            print(
                f"  {name:16} {len(phase.latencies_s):5} checks, {phase.asked.total():5} requests, "
                f"{len(phase.failed())} failed, p50 {p50:.2f}, p99 {p99:.2f}"
            )


if __name__ == "__main__":
    main()
