"""Whether the engine lives, when it last answered, and how fast it is."""

from __future__ import annotations

from collections.abc import Callable

_SMOOTHING = 0.2


class Vitals:
    """Signs of life of one engine. Changed on the event loop's thread, read on any.

    Args:
        clock: Present time in seconds.

    Attributes:
        is_alive: Whether the engine passed its last check.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_success_s: float | None = None
        self._work_per_s = 0.0
        self.is_alive = True

    def succeeded(self, work: int = 0, seconds: float = 0.0) -> None:
        """Note a success; a launch's work (rows x steps) and seconds make the throughput."""
        self._last_success_s = self._clock()
        if work and seconds:
            weight = _SMOOTHING if self._work_per_s else 1.0
            self._work_per_s += weight * (work / seconds - self._work_per_s)

    @property
    def age_s(self) -> float | None:
        """Seconds since the last success; None before the first."""
        return None if self._last_success_s is None else self._clock() - self._last_success_s

    def duration_s(self, work: int) -> float:
        """Return how long so much work takes; 1 s as long as nothing is known."""
        return work / self._work_per_s if self._work_per_s else 1.0
