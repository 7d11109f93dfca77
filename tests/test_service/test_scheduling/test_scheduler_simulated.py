"""The scheduler over an hour of traffic, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from service.errors import (
    DeadlineExceededError,
    EngineError,
    OverloadedError,
    UnavailableError,
)
from service.scheduling.jobs import JobClass
from tests.fakes.bench import THOUSAND_A_SECOND, Bench, outcome_of, simulate
from tests.fakes.engine import (
    VirtualLoop,
    expected,
    flat_costs,
    rows,
    same_bits,
    slow_costs,
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
        assert (await bench.ask()).launch_rows == 1

    simulate(play, canary_interval_s=5.0)


def test_retry_after_is_backlog_over_throughput() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        bench.ask(count=500)
        bench.ask(count=500)
        with pytest.raises(OverloadedError) as caught:
            bench.ask(count=500)
        assert caught.value.retry_after_s == pytest.approx(4.0)
        assert caught.value.headers == {"Retry-After": "4"}

    simulate(play, queue_rows=dict.fromkeys(JobClass, 1000))


def test_an_expired_flood_does_not_delay_a_safety_check() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        # Refused on arrival if its cost were known; the engine is slower than it was at warm-up.
        bench.engine.costs = slow_costs(0.00001)
        flood = [bench.ask(count=16, timeout_s=0.2) for _ in range(100)]
        await asyncio.sleep(0.3)
        before = loop.now
        await bench.ask(job_class=SAFETY)
        slowest_slice_s = max(rows * steps for rows, steps in bench.engine.slices) / 1000
        assert loop.now - before <= slowest_slice_s + 4 / 1000 + 1e-9
        results = await asyncio.gather(*flood, return_exceptions=True)
        assert sum(isinstance(r, DeadlineExceededError) for r in results) > 90

    simulate(play, preempt_after_s=0.00064)


def test_the_canary_runs_only_when_idle() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        for _ in range(100):
            await bench.ask(count=50)
        assert bench.engine.canaries == 1
        await asyncio.sleep(20)
        assert bench.engine.canaries == pytest.approx(5, abs=1)
        assert (bench.scheduler.health.age_s or 0) <= 5.5

    simulate(play, canary_interval_s=5.0, preempt_after_s=1.0)


def test_on_a_gpu_planners_take_few_launches_and_checks_wait_no_longer_than_one() -> None:
    """Planners of 4,096 x 64 without end, beside a check every 20 ms."""
    costs, horizon, check_s = flat_costs(), 64, 16e-4
    bound_s = max(0.001, 1.5 * horizon * costs.step_s[0])
    waits: list[float] = []
    plans_s: list[float] = []
    states, actions = rows(4096, horizon)

    async def plan(bench: Bench, loop: VirtualLoop) -> None:
        while loop.now < 2:
            started = loop.now
            await outcome_of(bench.scheduler, states, actions)
            plans_s.append(loop.now - started)

    async def check(bench: Bench, loop: VirtualLoop) -> None:
        started = loop.now
        await bench.ask(horizon=16, job_class=SAFETY, timeout_s=bound_s + check_s + 1e-6)
        waits.append(loop.now - started)

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        planners = [asyncio.create_task(plan(bench, loop)) for _ in range(2)]
        checks = []
        for _ in range(100):
            await asyncio.sleep(0.02)
            checks.append(asyncio.create_task(check(bench, loop)))
        await asyncio.gather(*checks, *planners)

    bench = simulate(play, costs, preempt_after_s=0.001, queue_rows=dict.fromkeys(JobClass, 16384))

    # Of 1,024 rows: those take half as long again as the smallest launch, 4,096 five times as long.
    slices = Counter(bench.engine.slices)
    assert set(slices) == {(1024, horizon), (1, 16)}
    assert slices[1024, horizon] == 4 * len(plans_s)
    assert len(waits) == 100
    assert 0.75 * bound_s < max(waits) <= bound_s + check_s + 1e-9
    assert max(plans_s) <= 2 * 4 * bound_s + 5 * check_s + 1e-9
    assert not bench.tally.rejections


def test_an_hour_of_mixed_traffic_keeps_every_promise() -> None:
    """No starvation, a bounded wait of safety checks, no job lost, doubled, or by other members."""
    rng = np.random.default_rng(1)
    costs = replace(THOUSAND_A_SECOND, fewer=tuple(slow_costs(2e-4 * k) for k in range(1, 5)))
    waits: dict[JobClass, list[float]] = {job_class: [] for job_class in JobClass}
    ended: Counter[str] = Counter()
    asked = 0
    slice_s = 0.064

    async def ask(bench: Bench, loop: VirtualLoop, job_class: JobClass) -> None:
        count = 1 if job_class is SAFETY else int(rng.integers(1, 200))
        states, actions = rows(count, 1 if job_class is PREDICT else 8, seed=count)
        members = None if job_class is PREDICT else (None, None, 1, 1, 2, 3, 4)[rng.integers(7)]
        started = loop.now
        try:
            future = outcome_of(bench.scheduler, states, actions, job_class, members=members)
            if rng.random() < 0.02:
                loop.call_later(rng.exponential(0.5), future.cancel)
            result = await future
        except OverloadedError:
            ended["refused"] += 1
        except DeadlineExceededError:
            ended["expired"] += 1
        except asyncio.CancelledError:
            ended["cancelled"] += 1
        else:
            assert same_bits(result.prediction, expected(states, actions, members))
            waits[job_class].append(loop.now - started)
            ended["answered"] += 1

    async def caller(bench: Bench, loop: VirtualLoop, job_class: JobClass, every_s: float) -> None:
        nonlocal asked
        while loop.now < 3600:
            await asyncio.sleep(rng.exponential(every_s))
            asked += 1
            await ask(bench, loop, job_class)

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        crowd = [(SAFETY, 1.0)] * 2 + [(PREDICT, 1.0)] * 4 + [(ROLLOUT, 0.5)] * 6
        await asyncio.gather(*(caller(bench, loop, c, s) for c, s in crowd))
        assert not any(bench.scheduler.queues.depth(c) for c in JobClass)

    bench = simulate(play, costs, preempt_after_s=slice_s, max_passes=8)

    # Two monitors: the other's check may be in progress, or share the launch.
    assert max(waits[SAFETY]) <= slice_s + 2 * 8 / 1000 + slice_s + 1e-9
    assert np.percentile(waits[SAFETY], 99) <= slice_s + 2 * 8 / 1000
    assert len(waits[ROLLOUT]) > 2000
    assert max(waits[ROLLOUT]) <= 20.0
    assert sum(ended.values()) == asked > 10_000
    rejected = bench.tally.rejections
    assert rejected["expired"] == ended["expired"]
    assert rejected["too_late"] + rejected["queue_full"] == ended["refused"]
    assert rejected["cancelled"] == ended["cancelled"]
    assert sum(requests for _, requests in bench.tally.launches) >= ended["answered"]
