"""Whether the engine lives, how disturbed it is, and whether requests should be sent here."""

from __future__ import annotations

from collections.abc import Callable

_SMOOTHING = 0.1
_SLOWEST_PACE = 10.0
"""One slice that was interrupted for long must not make the service refuse work."""


class Vitals:
    """Signs of life of one engine. Changed on the event loop's thread, read on any.

    Args:
        clock: Present time in seconds.

    Attributes:
        is_alive: Whether the engine passed its last check.
        pace: How much longer computing takes now than it did undisturbed.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_success_s: float | None = None
        self.pace = 1.0
        self.is_alive = True

    def succeeded(self, expected_s: float = 0.0, seconds: float = 0.0) -> None:
        """Note a success; how long a slice took beside what it should have makes the pace."""
        self._last_success_s = self._clock()
        if expected_s and seconds:
            self.pace += _SMOOTHING * (min(seconds / expected_s, _SLOWEST_PACE) - self.pace)

    @property
    def age_s(self) -> float | None:
        """Seconds since the last success; None before the first."""
        return None if self._last_success_s is None else self._clock() - self._last_success_s


class Readiness:
    """Ready while the model answers and nobody asked the service to end.

    Args:
        vitals: Gives the engine's signs of life.
        max_age_s: How long such an answer counts.
    """

    def __init__(self, vitals: Vitals, max_age_s: float) -> None:
        self._vitals = vitals
        self._max_age_s = max_age_s
        self._is_draining = False

    def start_draining(self) -> None:
        """Be not ready from now on."""
        self._is_draining = True

    @property
    def is_ready(self) -> bool:
        """Whether nothing speaks against sending requests here."""
        return self.problem() is None

    def problem(self) -> str | None:
        """Return why the service is not ready; None if it is."""
        if self._is_draining:
            return "the service is shutting down"
        if not self._vitals.is_alive:
            return "the engine is down: its canary failed repeatedly"
        age_s = self._vitals.age_s
        if age_s is None:
            return "no forward pass has succeeded yet"
        if age_s > self._max_age_s:
            return f"no forward pass has succeeded for {age_s:.1f} s"
        return None
