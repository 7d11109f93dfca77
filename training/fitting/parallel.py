"""Run members in processes of their own, a few at a time; Ctrl-C lets each save its state."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Any

_GRACE_S = 2.0


class MemberFailedError(ValueError):
    """A member's process ended without finishing its work."""


def run_in_processes(
    target: Callable[..., None], tasks: Sequence[tuple[Any, ...]], workers: int
) -> None:
    """Call `target(*task)` for every task, each in a fresh process, `workers` at a time.

    Processes rather than a pool: a pool starts the next task while an interrupted one saves.

    Args:
        target: Picklable function; a KeyboardInterrupt in it must leave its work resumable.
        tasks: Arguments.
        workers: Processes at once.

    Raises:
        MemberFailedError: A process ended by an error, which it printed.
        KeyboardInterrupt: Interrupted; the processes were interrupted too and have ended.
    """
    # Spawned, not forked: forking a process that has threads (torch, BLAS) can deadlock.
    context = multiprocessing.get_context("spawn")
    waiting = [context.Process(target=_run, args=(target, task)) for task in tasks]
    running: list[SpawnProcess] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running.append(waiting.pop(0))
                running[-1].start()
            wait([process.sentinel for process in running])
            for process in [process for process in running if not process.is_alive()]:
                running.remove(process)
                if process.exitcode:
                    raise MemberFailedError(
                        f"a training process ended with exit code {process.exitcode}; "
                        "its error stands above"
                    )
    finally:
        _interrupt(running)


def _run(target: Callable[..., None], task: tuple[Any, ...]) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        target(*task)


def _interrupt(running: Sequence[SpawnProcess]) -> None:
    """End what still runs; a terminal's Ctrl-C reaches the processes by itself, so wait first."""
    for process in running:
        process.join(_GRACE_S)
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGINT)
    for process in running:
        process.join()
