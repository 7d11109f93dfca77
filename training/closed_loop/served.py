"""The closed loop through the real service: starts it, and asks it about every step."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.closed_loop.comparison import check_unseen, compare_monitors, most_drives, seeds_of
from training.closed_loop.monitors import Judge, Opinion, PhysicsJudge
from training.closed_loop.results import MODEL, PHYSICS, plot_closed_loop
from training.evaluation.baselines import FULL_PHYSICS
from training.evaluation.evaluate import DEFAULT_HORIZON
from training.evaluation.report import CLOSED_LOOP_PLOT, rounded, write_report
from training.running.locks import locked
from training.running.progress import Progress
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
_DRIVE_S = 0.5
"""A drive takes about so long, in the unit of `training.evaluation.evaluate`; for the time left."""


class ServiceJudge:
    """Asks the service about each car in a request of its own, all at once.

    Args:
        client: Of a service that serves the highway spec.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def judge(self, states: Floats, sequences: Floats, threshold: float | None) -> Opinion:
        """Judge K sequences [N, K, H, 3] of each of N cars [N, 34].

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


def add_closed_loop(
    metrics: dict[str, Any],
    checkpoint: Path,
    data: Path,
    report: Path,
    episodes: int,
    *,
    api_key: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Drive with and without monitors, and add the results to an evaluation and its report.

    Args:
        metrics: What `training.evaluation.evaluate.evaluate` returned; receives `closed_loop`.
        checkpoint: What was evaluated.
        data: On which data set.
        report: The folder of the report.
        episodes: Drives per arm.
        api_key: One that the service accepts, if its environment sets any.
        progress: Of the whole command, which counts `closed_loop_cost` already; none by default.

    Raises:
        ValueError: The data set holds one of the drives.
        ServiceError: The service refuses or fails.
        UnreachableError: It does not answer.
        ChildProcessError: It does not start.
    """
    threshold = metrics["methods"][FULL_PHYSICS]["thresholds"]["1"]
    with locked(report, "driving the closed loop"):
        results = run_closed_loop(
            checkpoint,
            data,
            physics_threshold=threshold,
            episodes=episodes,
            api_key=api_key,
            progress=progress,
        )
        metrics["closed_loop"] = rounded(results)
        plot_closed_loop(metrics["closed_loop"], report / CLOSED_LOOP_PLOT)
        write_report(report, metrics)


def closed_loop_cost(episodes: int) -> float:
    """Return how long so many drives per arm take, roughly; see `_DRIVE_S`."""
    return _DRIVE_S * most_drives(episodes)


def run_closed_loop(
    checkpoint: Path,
    data: Path,
    *,
    physics_threshold: float,
    episodes: int,
    api_key: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Serve a checkpoint and drive with and without monitors.

    Args:
        checkpoint: What to serve, of the highway spec.
        data: The data set it was trained on; none of its episodes is driven.
        physics_threshold: Risk from which the physics baseline calls a sequence unsafe.
        episodes: Drives per arm.
        api_key: One that the service accepts, if its environment sets any.
        progress: Of the whole command, which counts `closed_loop_cost` already; none by default.

    Returns:
        What `training.closed_loop.comparison.compare_monitors` returns.

    Raises:
        ValueError: The data set holds one of the drives.
        ServiceError: The service refuses or fails.
        UnreachableError: It does not answer.
        ChildProcessError: It does not start.
    """
    check_unseen(data, seeds_of(episodes))
    shown = progress or Progress("driving", closed_loop_cost(episodes), is_shown=False)
    done = 0

    def on_drive(arm: str) -> None:
        nonlocal done
        done += 1
        shown.note(f"closed loop: {arm}")
        on_share(done / most_drives(episodes))

    try:
        with _served(checkpoint) as url, shown.stretch(closed_loop_cost(episodes)) as on_share:
            return asyncio.run(_compare(url, physics_threshold, episodes, api_key, on_drive))
    except KeyboardInterrupt as exc:
        exc.add_note(f"{done} of up to {most_drives(episodes)} drives done, which begin again")
        raise


async def _compare(
    url: str,
    physics_threshold: float,
    episodes: int,
    api_key: str | None,
    on_drive: Callable[[str], None],
) -> dict[str, Any]:
    async with AsyncClient(url, api_key=api_key, timeout_s=2 * _DEADLINE_S) as client:
        horizon = (await client.model())["thresholds"]["evaluated_horizon"] or DEFAULT_HORIZON
        judges: dict[str, Judge] = {
            MODEL: ServiceJudge(client),
            PHYSICS: PhysicsJudge(physics_threshold),
        }
        return await compare_monitors(judges, horizon, episodes, on_drive)


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
