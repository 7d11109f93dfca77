"""How the service is: starting, ready, draining or down, and why. The only place that knows.

Whoever takes connections, answers probes or accepts jobs reads it here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum

import structlog

from service.scheduling.jobs import Bounds, Observer
from service.scheduling.launches import Ran

log = structlog.get_logger()

CANARY_ATTEMPTS = 3
STARTING = "the service is starting"
SHUTTING_DOWN = "the service is shutting down"
ENGINE_DOWN = "the engine is down"
CANARY_FAILED = f"{ENGINE_DOWN}: its canary failed repeatedly"
_SMOOTHING = 0.1
_SLOWEST_PACE = 10.0
"""One slice that was interrupted for long must not make the service refuse work."""


class State(StrEnum):
    """What the service is."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    DOWN = "down"


class Health:
    """State of the service, and the canary: a small forward pass that shows if the engine works.

    Changed on the event loop's thread, read on any.

    Args:
        bounds: How often the engine is tried, and how long a success counts.
        observer: Counts canaries that failed.
        clock: Present time in seconds.

    Attributes:
        pace: How much longer computing takes now than it did undisturbed.
        is_draining: Whether the service was asked to end: no connection is kept any more.
        is_canary_due: Whether the engine should be tried as soon as it is free.
        on_lost: Called when only another process can use the device.
    """

    def __init__(self, bounds: Bounds, observer: Observer, clock: Callable[[], float]) -> None:
        self._bounds = bounds
        self._observer = observer
        self._clock = clock
        self.pace = 1.0
        self.is_draining = False
        self.is_canary_due = False
        self.on_lost: Callable[[], None] = lambda: None
        self._not_open: str | None = STARTING
        self._fault: str | None = None
        self._last_success_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def refusal(self) -> tuple[str, str] | None:
        """Why jobs are refused: label of the rejection counter, message; None: they are not."""
        if self._not_open is not None:
            return "draining", self._not_open
        return None if self._fault is None else ("engine_down", ENGINE_DOWN)

    @property
    def status(self) -> tuple[State, str | None]:
        """What the service is, and why it is not ready."""
        if self.is_draining:
            return State.DRAINING, SHUTTING_DOWN
        if self._fault is not None:
            return State.DOWN, self._fault
        age_s = self.age_s
        if age_s is None:
            return State.STARTING, "no forward pass has succeeded yet"
        if age_s > self._bounds.readiness_max_age_s:
            return State.DOWN, f"no forward pass has succeeded for {age_s:.1f} s"
        return State.READY, None

    @property
    def state(self) -> State:
        """What the service is."""
        return self.status[0]

    @property
    def is_ready(self) -> bool:
        """Whether requests should be sent to this process."""
        return self.state is State.READY

    @property
    def age_s(self) -> float | None:
        """Seconds since the engine's last success; None before the first."""
        return None if self._last_success_s is None else self._clock() - self._last_success_s

    def accept_jobs(self) -> None:
        """Accept jobs from now on, while the engine is not down."""
        self._not_open = None

    def start_draining(self) -> None:
        """Be not ready from now on; jobs are still accepted, for callers that do not know yet."""
        self.is_draining = True

    def refuse_jobs(self) -> None:
        """Drain, and refuse jobs from now on."""
        self.is_draining = True
        self._not_open = SHUTTING_DOWN

    def set_down(self, fault: str) -> None:
        """Note that the engine cannot be used, and why; until a canary succeeds."""
        self._fault = fault

    def succeeded(self, expected_s: float = 0.0, seconds: float = 0.0) -> None:
        """Note a success; how long a slice took beside what it should have makes the pace."""
        self._last_success_s = self._clock()
        if expected_s and seconds:
            self.pace += _SMOOTHING * (min(seconds / expected_s, _SLOWEST_PACE) - self.pace)

    async def try_engine(self, canary: Callable[[], Awaitable[Ran[None]]]) -> bool:
        """Try the engine, several times if need be; return whether it can be used.

        Args:
            canary: Makes one small forward pass.
        """
        self.is_canary_due = False
        for _ in range(CANARY_ATTEMPTS):
            ran = await canary()
            if ran.error is None:
                self.succeeded()
                self._fault = None
                return True
            self._observer.engine_failed("canary")
            log.error("canary failed", kind="canary", error=repr(ran.error))
        self.set_down(CANARY_FAILED)
        return False

    def watch(self, wake: Callable[[], None]) -> None:
        """Have the engine tried whenever it has not succeeded for long, until `stop_watching`.

        Args:
            wake: Called when a canary has become due.
        """
        interval_s = self._bounds.canary_interval_s
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._on_time, wake)

    def stop_watching(self) -> None:
        """Let no more canaries become due."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_time(self, wake: Callable[[], None]) -> None:
        age_s = self.age_s
        # A tenth of slack: a timer may fire a clock tick early.
        is_stale = age_s is None or age_s >= 0.9 * self._bounds.canary_interval_s
        if is_stale or self._fault is not None:
            self.is_canary_due = True
            wake()
        self.watch(wake)
