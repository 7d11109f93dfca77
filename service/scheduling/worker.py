"""The engine's thread, which makes calls one after the other, and what interrupts a call.

A daemon thread rather than an executor: executors are joined when the interpreter exits, and a
device that hangs would keep the process alive for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from service.scheduling.launches import Ran, timed

T = TypeVar("T")


class WorkerLike(Protocol):
    """Where the scheduler has its launches run; tests and simulations bring their own."""

    def start(self) -> None:
        """Begin to accept calls."""

    def run(self, call: Callable[[], T]) -> asyncio.Future[Ran[T]]:
        """Queue a call; the future never holds an exception of the call."""

    async def close(self, timeout_s: float) -> None:
        """End after the call in progress, or leave it behind after `timeout_s`."""


class Worker:
    """A thread that runs calls in order."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], T]) -> asyncio.Future[Ran[T]]:
        """Queue a call; its end is reported on the running loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ran[T]] = loop.create_future()

        def report() -> None:
            ran = timed(call)
            # The loop may be gone if the call outlived the service: nobody waits for it then.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_resolve, future, ran)

        self._calls.put(report)
        return future

    async def close(self, timeout_s: float) -> None:
        """Let the thread end; wait for it at most `timeout_s`."""
        if self._thread is not None:
            self._calls.put(None)
            await asyncio.to_thread(self._thread.join, timeout_s)

    def _serve(self) -> None:
        while (report := self._calls.get()) is not None:
            report()
            del report  # or the launch's arrays, and all its callers, stay until the next call


def _resolve(future: asyncio.Future[Any], ran: Ran[Any]) -> None:
    if not future.done():
        future.set_result(ran)


def input_file(loop: asyncio.AbstractEventLoop) -> int | None:
    """Return the file descriptor that is readable while input waits for a loop; None: it has none.

    A call made on the loop can look at it, and stop for what has come in. Neither kind of loop
    promises that descriptor; without it the engine is asked for work in small slices instead.
    """
    any_loop: Any = loop
    try:
        if hasattr(loop, "_get_backend_id"):  # uvloop: libuv's epoll
            return int(any_loop._get_backend_id())
        return int(any_loop._selector.fileno())  # asyncio
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None
