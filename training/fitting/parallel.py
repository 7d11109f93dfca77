"""Run tasks in processes of their own, a few at a time; stopping lets each save its state."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

from training.running.stopping import begin_worker, starting_workers
from training.running.workers import describe_end

_TICK_S = 0.5
_INTERRUPTED = 130


class MemberFailedError(ValueError):
    """A member's process ended without finishing its work."""


def run_in_processes(
    target: Callable[..., None],
    tasks: Sequence[tuple[Any, ...]],
    workers: int,
    tick: Callable[[], object] = lambda: None,
) -> None:
    """Call `target(*task)` for every task, each in a fresh process, `workers` at a time.

    Processes rather than a pool: a pool starts the next task while an interrupted one saves. They
    end with this process, however it does.

    Args:
        target: Picklable function; a KeyboardInterrupt in it must leave its work resumable.
        tasks: Arguments.
        workers: Processes at once.
        tick: Called a few times a second.

    Raises:
        MemberFailedError: A process ended by an error, which it printed, or was killed.
        KeyboardInterrupt: Interrupted; the processes were interrupted too and have ended.
    """
    # Spawned, not forked: forking a process that has threads (torch, BLAS) can deadlock.
    context = multiprocessing.get_context("spawn")
    waiting = [context.Process(target=_run, args=(target, task)) for task in tasks]
    running: list[SpawnProcess] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                with starting_workers():
                    running.append(waiting.pop(0))
                    running[-1].start()
            wait([process.sentinel for process in running], _TICK_S)
            tick()
            for process in [process for process in running if not process.is_alive()]:
                running.remove(process)
                _check_end(process)
    finally:
        _stop(running)


def _check_end(process: SpawnProcess) -> None:
    code = process.exitcode
    if code == _INTERRUPTED:
        raise MemberFailedError(
            "a worker process was stopped by a signal that this one did not get"
        )
    if code:
        raise MemberFailedError(describe_end(code))


def _run(target: Callable[..., None], task: tuple[Any, ...]) -> None:
    try:
        begin_worker()
        target(*task)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _stop(running: Sequence[SpawnProcess]) -> None:
    """Interrupt what still runs, and wait until it has saved."""
    for process in running:
        process.terminate()
    for process in running:
        process.join()
