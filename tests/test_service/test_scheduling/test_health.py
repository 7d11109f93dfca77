"""Whether the service can answer, and why not."""

from __future__ import annotations

from service.scheduling.health import Readiness, Vitals


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_readiness_needs_a_recent_success() -> None:
    clock = Clock()
    vitals = Vitals(clock)
    readiness = Readiness(vitals, max_age_s=5.0)
    assert readiness.problem() == "no forward pass has succeeded yet"

    vitals.succeeded()
    assert readiness.is_ready
    clock.now += 5.5

    assert readiness.problem() == "no forward pass has succeeded for 5.5 s"
    assert not readiness.is_ready
