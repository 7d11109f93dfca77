"""One run: every candidate visited once a repetition, in turn, each time freshly started."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.serving import load
from benchmarks.serving.agreement import check
from benchmarks.serving.candidates import (
    ENGINE,
    OUR_SERVICE,
    TITLES,
    Candidate,
    Files,
    NotMeasuredError,
)
from benchmarks.serving.figures import Repetitions
from benchmarks.serving.limits import engine_rate, started_engine, this_thread_on
from benchmarks.serving.processes import Cores, Server, running, wait_until_ready
from benchmarks.serving.workloads import (
    CLOSED_LOOP,
    COMPARED,
    FLOOD_CONNECTIONS,
    POLL_HZ,
    W4,
    Question,
    Workload,
    answer_of,
    asked_rows,
)

ALONE_P50, ALONE_P99 = "alone p50", "alone p99"
FLOOD_P50, FLOOD_P99, FLOOD_RATE = "flood p50", "flood p99", "flood rate"

_POLL_FACTOR = 2
"""A poller sends few requests; it gets this many times as long."""

Values = dict[str, float]


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        workloads: "W1" and so on.
        repetitions: Visits to each candidate.
        seconds: Length of a measurement under closed-loop load.
        folder: For files that live as long as the run.
    """

    workloads: frozenset[str]
    repetitions: int
    seconds: float
    folder: Path


@dataclass(frozen=True)
class Subject:
    """Weights that are served, and what they answer.

    Attributes:
        files: What servers are started with.
        questions: Asked in turn.
        expected: Compared fields of the answers, by kind of request, one a question.
    """

    files: Files
    questions: list[Question]
    expected: Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass
class Results:
    """What was measured, and what could not be.

    Attributes:
        repetitions: Values by candidate and measure.
        refused: By candidate's title, why it is not measured (any more).
        faults: By candidate's title, why some of its measures lack a repetition.
    """

    repetitions: Repetitions = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, values: Values) -> None:
        """Add the values of one repetition."""
        measures = self.repetitions.setdefault(name, {})
        for measure, value in values.items():
            measures.setdefault(measure, []).append(value)


def make_subject(files: Files, questions: list[Question]) -> Subject:
    """Return a checkpoint with what its model answers to the questions."""
    with started_engine(files.checkpoint) as engine:
        expected = {
            kind: [answer_of(kind, engine.rollout(*asked_rows(kind, q))) for q in questions]
            for kind in COMPARED
        }
    return Subject(files, questions, expected)


def compare(
    servers: Sequence[Candidate], subject: Subject, cores: Cores, options: Options, *, engine: bool
) -> Results:
    """Visit all candidates in turn, as many times as there are repetitions.

    Args:
        servers: Started one at a time.
        subject: What they serve.
        cores: Who runs where.
        options: How much is measured.
        engine: Whether the engine in process is measured as well.
    """
    results = Results()
    for repetition in range(options.repetitions):
        for server in servers:
            if server.title in results.refused:
                continue
            _say(f"repetition {repetition + 1}: {server.title}")
            try:
                _visit(server, subject, cores, options, results)
            except NotMeasuredError as exc:
                results.refused[server.title] = str(exc)
                _say(f"{server.title}: not measured: {exc}")
        if engine:
            _say(f"repetition {repetition + 1}: {TITLES[ENGINE]}")
            results.add(ENGINE, _engine_values(subject, cores, options))
    return results


def idle_share(server: Server, connections: int, seconds: float) -> float:
    """Return the share of a core that a server uses while connections are open and idle.

    Raises:
        NotMeasuredError: It did not keep them open.
    """
    with ExitStack() as stack:
        opened = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            for _ in range(connections)
        ]
        time.sleep(1.0)
        before, started = server.cpu_s(), time.perf_counter()
        time.sleep(seconds)
        share = (server.cpu_s() - before) / (time.perf_counter() - started)
        for connection in opened:
            connection.setblocking(False)
            try:
                connection.recv(1)
            except BlockingIOError:
                continue  # open, and silent
            raise NotMeasuredError("the service has closed idle connections")
    return share


def our_answer_sizes(server: Server, bodies: Mapping[str, Sequence[bytes]]) -> dict[str, int]:
    """Return how many bytes our service answers, by kind of request."""
    return {kind: len(server.ask(kind, asked[0])) for kind, asked in bodies.items()}


def make_bodies(candidate: Candidate, questions: list[Question]) -> dict[str, list[bytes]]:
    """Return the bodies that ask all questions, by kind of request."""
    return {kind: [candidate.dialect.body(kind, q) for q in questions] for kind in COMPARED}


def look_at_ours(
    subject: Subject, cores: Cores, connections: int, seconds: float
) -> tuple[dict[str, int], float]:
    """Return the sizes of our service's answers, and its share of a core when idle."""
    bodies = make_bodies(OUR_SERVICE, subject.questions)
    with running(OUR_SERVICE, subject.files, cores) as server:
        wait_until_ready(server, {kind: asked[0] for kind, asked in bodies.items()})
        return our_answer_sizes(server, bodies), idle_share(server, connections, seconds)


def _visit(
    candidate: Candidate, subject: Subject, cores: Cores, options: Options, results: Results
) -> None:
    """Start a server, check it, measure it, and end it.

    Raises:
        NotMeasuredError: It does not start, or does not say what the model says.
    """
    bodies = make_bodies(candidate, subject.questions)
    files = {
        kind: load.write_bodies(asked, options.folder / f"{candidate.name}-{kind}.txt")
        for kind, asked in bodies.items()
    }
    with running(candidate, subject.files, cores) as server:
        wait_until_ready(server, {kind: asked[0] for kind, asked in bodies.items()})
        if candidate.is_checked:
            check(server, bodies, subject.expected)
        for measure in _measurements(server, files, cores, options):
            try:
                # What the last load left waiting is computed first: it belongs to nobody's time.
                server.ask("plan", bodies["plan"][0])
                values = measure()
            except (load.LoadError, OSError) as exc:
                results.faults[candidate.title] = str(exc)
                _say(f"{candidate.title}: {exc}")
            else:
                results.add(candidate.name, values)
                _say("  " + ", ".join(f"{name} {x:.1f}" for name, x in values.items()))


def _measurements(
    server: Server, files: Mapping[str, Path], cores: Cores, options: Options
) -> Iterator[Callable[[], Values]]:
    """Yield what to measure, one after the other."""
    for workload in CLOSED_LOOP:
        if workload.name in options.workloads:
            target = (server.url(workload.kind), files[workload.kind])
            load.warm_up(*target, max(workload.connections), cores.load)
            for connections in workload.connections:
                yield partial(_rate, target, workload, connections, cores, options)
    if W4 in options.workloads:
        polled = (server.url("safety-check"), files["safety-check"])
        yield partial(_alone, polled, cores, options)
        yield partial(_flooded, polled, (server.url("plan"), files["plan"]), cores, options)


def _rate(
    target: tuple[str, Path], workload: Workload, connections: int, cores: Cores, options: Options
) -> Values:
    rate = load.rate(*target, connections, options.seconds, cores.load)
    return {workload.measure(connections): rate}


def _alone(polled: tuple[str, Path], cores: Cores, options: Options) -> Values:
    seen = load.poll(*polled, _POLL_FACTOR * options.seconds, POLL_HZ, cores.load)
    return {ALONE_P50: seen.p50, ALONE_P99: seen.p99}


def _flooded(
    polled: tuple[str, Path], flood: tuple[str, Path], cores: Cores, options: Options
) -> Values:
    seconds = _POLL_FACTOR * options.seconds
    seen, rate = load.poll_under_flood(
        polled, flood, FLOOD_CONNECTIONS, seconds, POLL_HZ, cores.load
    )
    return {FLOOD_P50: seen.p50, FLOOD_P99: seen.p99, FLOOD_RATE: rate}


def _engine_values(subject: Subject, cores: Cores, options: Options) -> Values:
    with this_thread_on(cores.server), started_engine(subject.files.checkpoint) as engine:
        return {
            workload.measure(connections): engine_rate(
                engine, workload, connections, subject.questions, options.seconds
            )
            for workload in CLOSED_LOOP
            if workload.name in options.workloads
            for connections in workload.connections
        }


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)
