"""Whether requests should be sent to this process."""

from __future__ import annotations

from service.scheduling.vitals import Vitals


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
