"""The scheduler over minutes of traffic, in virtual time."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from service.errors import (
    DeadlineExceededError,
    EngineError,
    OverloadedError,
    UnavailableError,
)
from service.queues import JobClass
from tests.test_service.bench import Bench, simulate
from tests.test_service.fakes import (
    VirtualLoop,
    expected,
    rows,
    same_bits,
)

SAFETY, PREDICT, ROLLOUT = JobClass


def test_a_dead_engine_that_recovers_is_used_again() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        bench.engine.is_broken = True
        with pytest.raises(EngineError):
            await bench.ask()
        await asyncio.sleep(1)
        with pytest.raises(UnavailableError):
            bench.ask()
        bench.engine.is_broken = False
        await asyncio.sleep(5)
        assert (await bench.ask()).launches == 1

    simulate(play, canary_interval_s=5.0)


def test_retry_after_is_backlog_over_throughput() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        await bench.ask(count=10)
        bench.ask(count=500)
        bench.ask(count=500)
        with pytest.raises(OverloadedError) as caught:
            bench.ask(count=500)
        assert caught.value.retry_after_s == pytest.approx(4.0)
        assert caught.value.headers == {"Retry-After": "4"}

    simulate(play, queue_rows=dict.fromkeys(JobClass, 1000))


def test_an_expired_flood_does_not_delay_a_safety_check() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        flood = [bench.ask(count=16, timeout_s=0.2) for _ in range(100)]
        await asyncio.sleep(0.3)
        before = loop.now
        await bench.ask(job_class=SAFETY)
        assert loop.now - before <= (64 + 4) / 1000
        results = await asyncio.gather(*flood, return_exceptions=True)
        assert sum(isinstance(r, DeadlineExceededError) for r in results) > 90

    simulate(play, launch_work=64)


def test_the_canary_runs_only_when_idle() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        for _ in range(100):
            await bench.ask(count=50)
        assert bench.engine.canaries == 1
        await asyncio.sleep(20)
        assert bench.engine.canaries == pytest.approx(5, abs=1)
        assert (bench.scheduler.vitals.age_s or 0) <= 5.5

    simulate(play, canary_interval_s=5.0, launch_work=1000)


def test_ten_minutes_of_mixed_traffic_keep_every_promise() -> None:
    """No starvation, a bounded wait of safety checks, no job lost or doubled."""
    rng = np.random.default_rng(1)
    waits: dict[JobClass, list[float]] = {job_class: [] for job_class in JobClass}
    ended = {"answered": 0, "expired": 0, "refused": 0, "cancelled": 0}

    async def caller(bench: Bench, loop: VirtualLoop, job_class: JobClass, every_s: float) -> None:
        while loop.now < 600:
            await asyncio.sleep(rng.exponential(every_s))
            count = 1 if job_class is SAFETY else int(rng.integers(1, 40))
            states, actions = rows(count, 1 if job_class is PREDICT else 8, seed=count)
            started = loop.now
            try:
                future = bench.scheduler.enqueue(
                    states, actions, job_class=job_class, timeout_s=3.0
                )
                if rng.random() < 0.02:
                    future.cancel()
                result = await future
                assert same_bits(result.prediction, expected(states, actions))
                waits[job_class].append(loop.now - started)
                ended["answered"] += 1
            except OverloadedError:
                ended["refused"] += 1
            except DeadlineExceededError:
                ended["expired"] += 1
            except asyncio.CancelledError:
                ended["cancelled"] += 1

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        crowd = [(SAFETY, 0.2)] * 2 + [(PREDICT, 0.1)] * 4 + [(ROLLOUT, 0.05)] * 6
        await asyncio.gather(*(caller(bench, loop, c, s) for c, s in crowd))
        assert not any(bench.scheduler.queues.depth(c) for c in JobClass)

    bench = simulate(play, launch_work=128, max_passes=8)

    launch_s, check_s = 128 / 1000, 8 / 1000
    assert max(waits[SAFETY]) <= launch_s + 3 * check_s + 1e-9
    assert len(waits[ROLLOUT]) > 1000
    assert ended["answered"] > 5000
    assert bench.tally.rejections["expired"] == ended["expired"]
    assert bench.tally.rejections["cancelled"] == ended["cancelled"]
