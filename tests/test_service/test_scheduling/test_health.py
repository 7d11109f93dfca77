"""What the service is, and why: nobody else knows."""

from __future__ import annotations

import asyncio

import pytest

from service.scheduling.health import CANARY_ATTEMPTS, Health, State
from service.scheduling.jobs import Bounds
from service.scheduling.launches import Ran
from tests.fakes.engine import Tally, VirtualLoop

DRAINING = (State.DRAINING, "the service is shutting down")
DOWN = (State.DOWN, "the engine is down: its canary failed repeatedly")
READY = (State.READY, None)


class Patient:
    """A health with a clock and an engine that fails as often as it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.failures = 0
        self.tries = 0
        self.tally = Tally()
        bounds = Bounds(canary_interval_s=2.0, readiness_max_age_s=5.0)
        self.health = Health(bounds, self.tally, lambda: self.now)

    async def canary(self) -> Ran[None]:
        self.tries += 1
        self.failures -= 1
        return Ran(None, ArithmeticError("a fault") if self.failures >= 0 else None, 0.0)

    async def is_well(self, failures: int = 0) -> bool:
        self.failures, self.tries = failures, 0
        return await self.health.try_engine(self.canary)


def test_readiness_needs_a_recent_success() -> None:
    patient = Patient()
    health = patient.health
    seen = [(health.status, health.is_ready)]
    health.succeeded()
    seen.append((health.status, health.is_ready))
    patient.now += 5.0
    seen.append((health.status, health.is_ready))
    patient.now += 0.5
    seen.append((health.status, health.is_ready))

    assert seen == [
        ((State.STARTING, "no forward pass has succeeded yet"), False),
        (READY, True),
        (READY, True),
        ((State.DOWN, "no forward pass has succeeded for 5.5 s"), False),
    ]


def test_jobs_are_refused_before_the_start_and_after_the_end() -> None:
    health = Patient().health
    seen = [health.refusal]
    health.accept_jobs()
    seen.append(health.refusal)
    health.refuse_jobs()
    seen.append(health.refusal)

    assert seen == [
        ("draining", "the service is starting"),
        None,
        ("draining", "the service is shutting down"),
    ]
    assert health.status == DRAINING


def test_a_service_that_drains_is_not_ready_and_accepts_jobs() -> None:
    health = Patient().health
    health.accept_jobs()
    health.succeeded()
    health.start_draining()

    assert (health.status, health.refusal, health.is_draining) == (DRAINING, None, True)


async def test_an_engine_is_down_after_several_failures_until_it_succeeds() -> None:
    patient = Patient()
    health = patient.health
    health.accept_jobs()
    seen = []
    for failures in (0, CANARY_ATTEMPTS - 1, CANARY_ATTEMPTS, 0):
        is_well = await patient.is_well(failures)
        health.succeeded()  # a launch that was begun before does not count
        seen.append((is_well, patient.tries, health.status, health.refusal))

    assert seen == [
        (True, 1, READY, None),
        (True, CANARY_ATTEMPTS, READY, None),
        (False, CANARY_ATTEMPTS, DOWN, ("engine_down", "the engine is down")),
        (True, 1, READY, None),
    ]
    assert patient.tally.faults == {"canary": 2 * CANARY_ATTEMPTS - 1}


async def test_the_end_is_the_reason_whatever_the_engine_does() -> None:
    patient = Patient()
    patient.health.refuse_jobs()
    seen = []
    for failures in (CANARY_ATTEMPTS, 0):
        await patient.is_well(failures)
        seen.append((patient.health.status, patient.health.refusal))

    assert seen == [(DRAINING, ("draining", "the service is shutting down"))] * 2


def test_a_fault_is_the_reason_that_is_given() -> None:
    health = Patient().health
    health.accept_jobs()
    health.set_down("the scheduler failed")

    assert health.status == (State.DOWN, "the scheduler failed")
    assert health.refusal == ("engine_down", "the engine is down")


@pytest.mark.parametrize(
    ("expected_s", "seconds", "pace"),
    [(0.1, 0.2, 1.1), (0.1, 0.05, 0.95), (0.1, 1e9, 1.9), (0.0, 0.2, 1.0), (0.1, 0.0, 1.0)],
    ids=["slower", "faster", "interrupted for long", "cost unknown", "not measured"],
)
def test_pace_follows_what_slices_take(expected_s: float, seconds: float, pace: float) -> None:
    health = Patient().health

    health.succeeded(expected_s, seconds)

    assert health.pace == pytest.approx(pace)


def test_a_canary_is_due_when_nothing_has_succeeded_for_long() -> None:
    loop = VirtualLoop()
    health = Health(Bounds(canary_interval_s=2.0), Tally(), loop.time)
    due: list[float] = []

    async def play() -> None:
        health.succeeded()
        health.watch(lambda: due.append(loop.now))
        await asyncio.sleep(1.9)
        health.succeeded()
        assert not health.is_canary_due
        await asyncio.sleep(2.5)
        assert health.is_canary_due
        await health.try_engine(succeed)
        assert not health.is_canary_due
        health.set_down("a fault")
        await asyncio.sleep(2.0)
        health.stop_watching()
        await asyncio.sleep(10.0)

    async def succeed() -> Ran[None]:
        return Ran(None, None, 0.0)

    try:
        loop.run_until_complete(play())
    finally:
        loop.close()
    assert due == pytest.approx([4.0, 6.0])
