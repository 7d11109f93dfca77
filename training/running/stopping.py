"""Stopping a command and its worker processes: by Ctrl-C, `kill`, a closed terminal, or a crash.

The parent alone decides. A terminal sends its signals to the workers, too, so they begin with these
signals blocked, until `begin_worker` has said what to do about them. A worker whose parent is gone,
even by SIGKILL, ends at once: the pipe by which `multiprocessing` lets it know has no other end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_REPEAT_S = 1.0
"""A signal may come twice, from a terminal and from the program that started this one."""


class Stopped(KeyboardInterrupt):
    """A signal asked the command to stop; its notes say what was done by then.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"Stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` in the block at one of `STOP_SIGNALS`; a later one ends the process at once.

    For the main thread. A signal that is ignored, as `nohup` arranges, stays so.
    """
    first: float | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
            raise Stopped(number)
        if now - first > _REPEAT_S:
            with suppress(OSError):
                os.write(2, b"Stopped at once, by a second signal.\n")
            os._exit(128 + number)  # workers end with this process

    with _handled(stop):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals that stop wait until the block is over; other threads are not concerned."""
    caught: list[int] = []
    try:
        with _handled(lambda number, frame: caught.append(number)):
            yield
    finally:
        if caught:
            signal.raise_signal(caught[0])


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle those of `STOP_SIGNALS` that are neither ignored nor left to the system."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        found = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        before = {n: old for n, old in found.items() if old not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start processes in the block that call `begin_worker` first; signals wait until then."""
    with uninterrupted():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        # Started before the others are blocked, for it unblocks them.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(*, is_stoppable: bool = True) -> None:
    """Tie this process to its parent: it ends with it, and stops only when the parent says so.

    Args:
        is_stoppable: Whether the first of `STOP_SIGNALS` raises KeyboardInterrupt, so that work is
            saved; else none does, and the parent waits for the end of the task.
    """
    is_interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal is_interrupted
        if not is_interrupted:  # nothing interrupts the saving
            is_interrupted = True
            raise KeyboardInterrupt

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.join,), daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, interrupt if is_stoppable else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def end_with_stdin() -> None:
    """Have this process end when its standard input does: when its parent closes it, or ends."""
    threading.Thread(target=_end_after, args=(lambda: os.read(0, 1),), daemon=True).start()


def _end_after(wait: Callable[[], object]) -> None:
    wait()
    os._exit(1)
