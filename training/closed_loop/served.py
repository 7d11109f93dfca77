"""The closed loop through the real service: starts it, and asks it about every step."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.backends.cpus import usable_cpus
from models.checkpoint import load_checkpoint
from training.closed_loop.comparison import (
    DrivePool,
    check_unseen,
    compare_monitors,
    most_drives,
    seeds_of,
)
from training.closed_loop.drives import Setup
from training.closed_loop.monitors import Judge, JudgeSource, Opinion, PhysicsJudge
from training.closed_loop.results import MODEL, PHYSICS, VELOCITY, plot_closed_loop
from training.dataset.collect import fleet_in, simulators_of
from training.dataset.sources import fleet_of, tracks_of
from training.dataset.store import read_manifest
from training.dataset.tracker_models import DRAWN
from training.dataset.trackers import Tracking
from training.evaluation.baselines import FULL_PHYSICS, STRAIGHT_PHYSICS, baselines_of
from training.evaluation.evaluate import DEFAULT_HORIZON
from training.evaluation.parts import FOLDER, Parts, code_version
from training.evaluation.report import CLOSED_LOOP_PLOT, rounded, write_report
from training.running.locks import locked
from training.running.progress import Progress
from training.simulation.fleets import CARS
from training.simulation.simulator import SOURCES
from world_model_client import AsyncClient, Client

Floats = NDArray[np.floating[Any]]

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 30.0
_DEADLINE_S = 60.0
"""Simulated time stands still while the monitor waits, so a busy machine may take its time."""

_POLL_S = 0.1
_PREEMPT_AFTER_S = 0.1
"""Nobody but the monitors waits, so launches may be big enough for a whole fleet."""

_COMMAND = (
    sys.executable,
    "-c",
    "from training.running.stopping import end_with_stdin; end_with_stdin(); "
    "from service.cli import main; main()",
    "serve",
)
TRUE = "true"
"""In place of trackers: all that monitors see is true."""

_PHYSICS = {PHYSICS: (FULL_PHYSICS, True), VELOCITY: (STRAIGHT_PHYSICS, False)}
"""Judges by physics: their names in an evaluation, and whether neighbours turn."""

_JUDGES = (MODEL, *_PHYSICS)
_DRIVES = "closed-loop"
"""Folder of finished drives, beside the parts of an evaluation."""

_DRIVE_S = 1.4
"""A drive takes about so long, in the unit of `training.evaluation.evaluate`; for the time left."""


class ServiceJudge:
    """Asks the service about each car in a request of its own, all at once.

    Args:
        client: Of a service whose model has the states that are judged.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def judge(self, states: Floats, sequences: Floats, threshold: float | None) -> Opinion:
        """Judge K sequences [N, K, H, 3] of each of N cars [N, S].

        Raises:
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        calls = (self._ask(*car, threshold) for car in zip(states, sequences, strict=True))
        answers = await asyncio.gather(*calls)
        return Opinion(
            np.array([[v["verdict"] for v in verdicts] for verdicts, _ in answers]),
            np.array([[_risk(v) for v in verdicts] for verdicts, _ in answers]),
            np.array([seconds for _, seconds in answers]),
        )

    async def _ask(
        self, state: Floats, sequences: Floats, threshold: float | None
    ) -> tuple[list[dict[str, Any]], float]:
        started = time.perf_counter()
        answer = await self._client.safety_check(
            state.astype(np.float32),
            sequences.astype(np.float32),
            threshold=threshold,
            timeout_s=_DEADLINE_S,
        )
        return answer["candidates"], time.perf_counter() - started


def _risk(verdict: dict[str, Any]) -> float:
    probability = verdict["crash_probability"]
    return np.inf if probability is None else float(probability)


@dataclass(frozen=True)
class ServedJudge:
    """The service as a `JudgeSource`.

    Attributes:
        url: Where it listens.
        api_key: One that it accepts, if it asks for any.
    """

    url: str
    api_key: str | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Judge]:
        """See `JudgeSource`."""
        async with AsyncClient(self.url, api_key=self.api_key, timeout_s=2 * _DEADLINE_S) as client:
            yield ServiceJudge(client)


@dataclass(frozen=True)
class Traffic:
    """What is driven in, and how monitors see it.

    Attributes:
        fleet: One of `fleets.FLEETS`.
        sources: Some of `simulator.SOURCES`.
        tracks: A name that `Tracking` knows; None: all that is seen is true.
    """

    fleet: str = CARS
    sources: tuple[str, ...] = SOURCES[:1]
    tracks: str | None = None


def traffic_of(
    data: Path, fleet: str | None = None, source: str | None = None, tracks: str | None = None
) -> Traffic:
    """Return the traffic of a data set, but for what is asked for.

    Args:
        data: What `world-model collect` recorded.
        fleet: One of `fleets.FLEETS`.
        source: One of `simulator.SOURCES`, or "all".
        tracks: A name that `Tracking` knows, or `TRUE` for none.

    Raises:
        ValueError: There is no such traffic.
    """
    manifest = read_manifest(data)
    sources = simulators_of(source or str(manifest.get("source", SOURCES[0])))
    fleet = fleet_in(sources, fleet, fleet_of(manifest))
    if tracks != TRUE:
        tracks = tracks_of(fleet, tracks)
        Tracking(model=tracks or DRAWN)  # refuses a name that is none
    return Traffic(fleet, sources, None if tracks == TRUE else tracks)


def add_closed_loop(
    metrics: dict[str, Any],
    checkpoint: Path,
    data: Path,
    report: Path,
    episodes: int,
    *,
    traffic: Traffic | None = None,
    api_key: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Drive with and without monitors, and add the results to an evaluation and its report.

    Finished drives are kept beside the parts of the evaluation: another call goes on with them.

    Args:
        metrics: What `training.evaluation.evaluate.evaluate` returned; receives `closed_loop`.
        checkpoint: What was evaluated.
        data: On which data set.
        report: The folder of the report.
        episodes: Drives per arm and source.
        traffic: What `traffic_of` returned; that of the data set by default.
        api_key: One that the service accepts, if its environment sets any.
        progress: Of the whole command, which counts `closed_loop_cost` already; none by default.

    Raises:
        ValueError: The data set holds one of the drives, or physics cannot read the model's state.
        ServiceError: The service refuses or fails.
        UnreachableError: It does not answer.
        ChildProcessError: It does not start.
    """
    thresholds = {
        name: metrics["methods"][method]["thresholds"]["1"]
        for name, (method, _) in _PHYSICS.items()
    }
    with locked(report, "driving the closed loop"):
        results = run_closed_loop(
            checkpoint,
            data,
            physics_thresholds=thresholds,
            episodes=episodes,
            traffic=traffic or traffic_of(data),
            folder=report / FOLDER / _DRIVES,
            workers=usable_cpus(),
            api_key=api_key,
            progress=progress,
        )
        metrics["closed_loop"] = rounded(results)
        plot_closed_loop(metrics["closed_loop"], report / CLOSED_LOOP_PLOT)
        write_report(report, metrics)


def closed_loop_cost(episodes: int, sources: int = 1) -> float:
    """Return how long so many drives per arm and source take, roughly; see `_DRIVE_S`."""
    return _DRIVE_S * most_drives(episodes, sources, _JUDGES)


def run_closed_loop(
    checkpoint: Path,
    data: Path,
    *,
    physics_thresholds: Mapping[str, float],
    episodes: int,
    traffic: Traffic | None = None,
    folder: Path | None = None,
    workers: int = 1,
    api_key: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Serve a checkpoint and drive with and without monitors.

    Args:
        checkpoint: What to serve, of a spec that physics can read.
        data: The data set it was trained on; none of its episodes is driven.
        physics_thresholds: Risks from which physics calls a sequence unsafe, by judge.
        episodes: Drives per arm and source.
        traffic: What is driven in.
        folder: Where finished drives are kept, for another call with the same arguments to go on
            with; nowhere by default.
        workers: Processes that drive at once; 1 drives in this one.
        api_key: One that the service accepts, if its environment sets any.
        progress: Of the whole command, which counts `closed_loop_cost` already; none by default.

    Returns:
        What `training.closed_loop.comparison.compare_monitors` returns.

    Raises:
        ValueError: The data set holds one of the drives, or physics cannot read the model's state.
        ServiceError: The service refuses or fails.
        UnreachableError: It does not answer.
        ChildProcessError: It does not start.
    """
    check_unseen(data, seeds_of(episodes))
    traffic = traffic or Traffic()
    known = load_checkpoint(checkpoint)
    if not baselines_of(known.spec):
        raise ValueError(
            f"the closed loop cannot drive {checkpoint}: physics cannot read the state of the "
            f"spec {known.spec.name!r}"
        )
    tracking = Tracking(model=traffic.tracks) if traffic.tracks else None
    setup = Setup(known.spec, traffic.fleet, tracking)
    horizon = known.calibration.horizon or DEFAULT_HORIZON
    judges: dict[str, JudgeSource] = {
        name: PhysicsJudge(physics_thresholds[name], known.spec, turning)
        for name, (_, turning) in _PHYSICS.items()
    }
    cost = closed_loop_cost(episodes, len(traffic.sources))
    shown = progress or Progress("driving", cost, is_shown=False)
    most, done = most_drives(episodes, len(traffic.sources), _JUDGES), 0
    key = {
        "model": known.version,
        "episodes": episodes,
        "traffic": vars(traffic),
        "thresholds": physics_thresholds,
        "code": code_version(),
    }
    with ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kept = Parts(folder, key).folder("logs")
        kept.mkdir(exist_ok=True)
        shown.note("closed loop")
        url = stack.enter_context(_served(checkpoint))
        on_share = stack.enter_context(shown.stretch(cost))

        def on_drives(count: int) -> None:
            nonlocal done
            done = count
            on_share(min(1.0, count / most))

        pool = DrivePool(kept, workers, on_drives)
        judges = {MODEL: ServedJudge(url, api_key), **judges}
        try:
            return compare_monitors(judges, horizon, episodes, pool, setup, traffic.sources)
        except KeyboardInterrupt as exc:
            exc.add_note(f"{done} of up to {most} drives done")
            raise


@contextmanager
def _served(checkpoint: Path) -> Iterator[str]:
    """Serve a checkpoint on a free port of this machine while the block runs; give its address."""
    options = {
        "--checkpoint": str(checkpoint),
        "--host": "127.0.0.1",
        "--port": "0",
        "--preempt-after-s": str(_PREEMPT_AFTER_S),
        "--log-format": "json",
        "--log-level": "info",
        "--drain-delay-s": "0",
    }
    arguments = [text for option in options.items() for text in option]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as out:
            # Its standard input ends with this process. A terminal's signals do not reach it.
            process = subprocess.Popen(
                [*_COMMAND, *arguments],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield _address(process, log)
        finally:
            _stop(process)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the service is ready; return where it listens.

    Raises:
        ChildProcessError: It ended, or takes too long.
    """
    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        url = _announced(log.read_text())
        if url is not None:
            with Client(url) as client:
                if client.ready():
                    return url
        time.sleep(_POLL_S)
    raise ChildProcessError(
        f"the service for the closed loop did not start: {log.read_text()[-500:]}"
    )


def _announced(text: str) -> str | None:
    """Return the address in the line that announces the start, if it is there."""
    for line in text.splitlines():
        if '"event": "started"' in line and line.endswith("}"):
            return str(json.loads(line)["url"])
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        assert process.stdin is not None, "it was opened"
        process.stdin.close()
