"""One timer for many deadlines."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush

from service.scheduling.jobs import Job

_TICK_S = 1e-3
"""Loops round their timers to this."""

_MOST_ENDED = 1024
"""Deadlines of jobs that have ended which may be kept, beyond as many as are live."""


class Deadlines:
    """Calls when the deadline of a live job passes. A timer per job costs more.

    The time that the timer is set to is kept here and never asked of the loop: what a loop returns
    from `call_at` need not have it (uvloop's has not if the delay rounds to nothing).

    Args:
        live: Jobs that wait for their outcome, by `Job.seq`.
        expire: Called with each whose deadline has passed; takes it out of `live`.
    """

    def __init__(self, live: Mapping[int, Job], expire: Callable[[Job], None]) -> None:
        self._live = live
        self._expire = expire
        self._deadlines: list[tuple[float, int]] = []  # a heap of deadline_s and seq
        self._timer: asyncio.Handle | None = None
        self._timer_s = math.inf

    def watch(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        """Watch a job as well, which becomes live; the timer stays if it is due before."""
        if job.deadline_s < self._timer_s:
            self._set(job.deadline_s, loop)
        if len(self._deadlines) > 2 * len(self._live) + _MOST_ENDED:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._live]
            heapify(self._deadlines)
        heappush(self._deadlines, (job.deadline_s, job.seq))

    def due_in_s(self) -> float:
        """Return the time until the next deadline, maybe one of a job that has ended."""
        return self._timer_s - asyncio.get_running_loop().time()

    def close(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_s = None, math.inf

    def _set(self, when_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.close()
        self._timer = loop.call_at(when_s, self._on_time, loop)
        self._timer_s = when_s

    def _on_time(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._timer_s = None, math.inf
        now = loop.time() + _TICK_S
        while self._deadlines:
            deadline_s, seq = self._deadlines[0]
            job = self._live.get(seq)
            if job is not None and deadline_s > now:
                self._set(deadline_s, loop)
                return
            heappop(self._deadlines)
            if job is not None:
                self._expire(job)
