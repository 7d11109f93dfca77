"""Whether the engine lives, when it last answered, and how disturbed it is."""

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
