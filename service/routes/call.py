"""What the door hands to a hot route, and how a route waits for a job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.types import Receive

from service.queues import JobResult

WATCH_AFTER_S = 0.005
"""A watcher is a task, as dear as parsing a small body; most answers are there before it pays."""


class ClientGoneError(Exception):
    """The caller closed the connection before the answer; nobody is left to tell."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose body has been read.

    Attributes:
        body: All of it.
        timeout_s: Time until its deadline.
        receive: Tells when the caller leaves.
    """

    body: bytes
    timeout_s: float
    receive: Receive


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON body and what it took."""

    body: bytes
    queue_s: float
    compute_s: float


HotRoute = Callable[[Call], Awaitable[Answer]]
"""A route that the door calls directly, past the framework's router."""


async def unless_gone(receive: Receive, future: asyncio.Future[JobResult]) -> JobResult:
    """Wait for a job, and cancel it as soon as its caller leaves.

    Raises:
        ClientGoneError: The caller left.
        ServiceError: The job failed.
    """
    watch = _Watch(receive, future)
    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, watch.start)
    try:
        return await future
    except asyncio.CancelledError:
        if watch.is_gone:
            raise ClientGoneError from None
        raise
    finally:
        timer.cancel()
        watch.stop()


class _Watch:
    """Listens for the end of a connection while its job waits."""

    def __init__(self, receive: Receive, future: asyncio.Future[JobResult]) -> None:
        self._receive = receive
        self._future = future
        self._task: asyncio.Task[None] | None = None
        self.is_gone = False

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._listen())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = not self._future.done()
        self._future.cancel()
