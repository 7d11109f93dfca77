"""How loaded a replica is: what Ray routes and scales by."""

from __future__ import annotations

import asyncio
import math
import time

from service.app import WorldModelApp
from service.ray.routing import BEFORE_ALL_S, BEFORE_SAFETY_S
from service.ray.scaling import BUSY, WAIT_S
from service.scheduling.jobs import JobClass

_LOOK_EVERY_S = 0.1
_SMOOTHING = 0.2
"""Half of the lateness is that of the last .3 s."""


class Load:
    """Measures one replica. Used on its event loop's thread only.

    Requests wait twice: for the event loop, which reads and answers them, and in the queues for the
    engine. Small requests fill the former, long ones the latter; both are counted.

    Args:
        app: Whose queues and metrics are looked at.
    """

    def __init__(self, app: WorldModelApp) -> None:
        self._scheduler = app.scheduler
        self._health = app.health
        self._metrics = app.metrics
        self._late_s = 0.0
        self._last = self._spent()

    async def watch(self) -> None:
        """Measure by how much the event loop is late, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _LOOK_EVERY_S
            await asyncio.sleep(_LOOK_EVERY_S)
            self._late_s += _SMOOTHING * (max(0.0, loop.time() - due_s) - self._late_s)

    def waits(self) -> dict[str, float]:
        """Return how long requests would wait here; infinitely while the service is not ready."""
        if not self._health.is_ready:
            return {BEFORE_SAFETY_S: math.inf, BEFORE_ALL_S: math.inf}
        # Rounded, as each change is sent to every proxy of the cluster.
        return {
            BEFORE_SAFETY_S: round(self._wait_s(JobClass.SAFETY), 3),
            BEFORE_ALL_S: round(self._wait_s(JobClass.ROLLOUT), 3),
        }

    def sample(self) -> dict[str, float]:
        """Return the wait now, and how busy the replica was since the last call."""
        before, self._last = self._last, self._spent()
        now_s, cpu_s, engine_s = (new - old for new, old in zip(self._last, before, strict=True))
        # On a CPU short slices are computed on the event loop: the two are not added.
        busy = min(1.0, max(cpu_s, engine_s) / now_s) if now_s > 0 else 0.0
        return {WAIT_S: self._wait_s(JobClass.ROLLOUT), BUSY: busy}

    def _wait_s(self, job_class: JobClass) -> float:
        return self._late_s + self._scheduler.backlog_s(job_class)

    def _spent(self) -> tuple[float, float, float]:
        """Return the time, this thread's CPU time, and the engine's time of work, in seconds."""
        return time.monotonic(), time.thread_time(), self._metrics.engine_busy_s()
