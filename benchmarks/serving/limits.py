"""The limit of the model: our engine in process, without HTTP, at a workload's batch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.serving.workloads import Question, Workload, asked_rows
from service.engine import Engine
from service.server import loaded_engine
from service.settings import Settings

_WARM_UP = 3


@contextmanager
def started_engine(checkpoint: Path) -> Iterator[Engine]:
    """Load and warm the engine as the service does, with one thread."""
    settings = Settings(checkpoint=checkpoint, device="cpu", threads=1)
    engine = loaded_engine(settings)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def this_thread_on(core: int | None) -> Iterator[None]:
    """Keep the calling thread on one core; None: where it is."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def engine_rate(
    engine: Engine, workload: Workload, connections: int, questions: list[Question], seconds: float
) -> float:
    """Return requests a second if all connections' requests were always computed together."""
    batches = [
        _batch(workload, [questions[(i + k) % len(questions)] for k in range(connections)])
        for i in range(min(8, len(questions)))
    ]
    for states, actions in batches[:_WARM_UP]:
        engine.rollout(states, actions)
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        engine.rollout(*batches[calls % len(batches)])
        calls += 1
    return calls * connections / elapsed


def _batch(workload: Workload, questions: list[Question]) -> tuple[np.ndarray, np.ndarray]:
    parts = [asked_rows(workload.kind, question) for question in questions]
    states, actions = zip(*parts, strict=True)
    return np.concatenate(states), np.concatenate(actions)
