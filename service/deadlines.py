"""One timer for many deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from service.jobs import Job

_TICK_S = 1e-3
"""Loops round their timers to this."""


class Deadlines:
    """Calls when the deadline of a live job passes. A timer of its own each job costs more.

    Args:
        live: Jobs that wait for their outcome.
        expire: Called with each whose deadline has passed; takes it out of `live`.
    """

    def __init__(self, live: Mapping[int, Job], expire: Callable[[Job], None]) -> None:
        self._live = live
        self._expire = expire
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        """Watch a live job as well; the timer stays where it is if it is due before."""
        if self._timer is None or job.deadline_s < self._timer.when():
            self._set(job.deadline_s, loop)

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, when_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        self._timer = loop.call_at(when_s, self._on_time, loop)

    def _on_time(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time() + _TICK_S
        for job in [job for job in self._live.values() if job.deadline_s <= now]:
            self._expire(job)
        if self._live:
            self._set(min(job.deadline_s for job in self._live.values()), loop)
