from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.errors import (
    DeadlineExceededError,
    EngineError,
    OverloadedError,
    UnavailableError,
)
from service.queues import Bounds, JobClass, JobResult
from service.scheduler import CANARY_ATTEMPTS, Scheduler
from tests.test_service.fakes import (
    POISON,
    FakeEngine,
    Tally,
    VirtualLoop,
    VirtualWorker,
    expected,
    rows,
    same_bits,
)

SAFETY, PREDICT, ROLLOUT = JobClass


class Bench:
    """A started scheduler with its engine and its observer."""

    def __init__(self, engine: FakeEngine, **options: Any) -> None:
        self.engine = engine
        self.tally = Tally()
        parts = {name: options.pop(name) for name in ("worker", "timer") if name in options}
        self.scheduler = Scheduler(
            engine.rollout, engine.canary, Bounds(**options), self.tally, **parts
        )

    def ask(
        self,
        count: int = 1,
        horizon: int = 4,
        seed: int = 0,
        job_class: JobClass = ROLLOUT,
        timeout_s: float = 20.0,
        first: float | None = None,
    ) -> asyncio.Future[JobResult]:
        states, actions = rows(count, horizon, seed)
        if first is not None:
            states[0, 0] = first
        return self.scheduler.enqueue(states, actions, job_class=job_class, timeout_s=timeout_s)

    async def hold(self) -> asyncio.Future[JobResult]:
        """Close the gate behind a job of another horizon, and wait until it runs."""
        self.engine.gate.clear()
        held = self.ask(horizon=1, job_class=SAFETY)
        await self.engine.entered()
        return held


@pytest.fixture
async def bench(engine: FakeEngine) -> AsyncIterator[Bench]:
    bench = Bench(engine)
    await bench.scheduler.start()
    yield bench
    engine.gate.set()
    await bench.scheduler.close()


@pytest.fixture
async def make(engine: FakeEngine) -> AsyncIterator[Callable[..., Awaitable[Bench]]]:
    made: list[Bench] = []

    async def make(**options: Any) -> Bench:
        made.append(Bench(engine, **options))
        await made[-1].scheduler.start()
        return made[-1]

    yield make
    engine.gate.set()
    for bench in made:
        await bench.scheduler.close()


async def test_a_lone_job_gets_its_prediction(bench: Bench) -> None:
    states, actions = rows(3)

    result = await bench.scheduler.submit(states, actions, job_class=ROLLOUT, timeout_s=20)

    assert same_bits(result.prediction, expected(states, actions))
    assert (result.launches, result.launch_rows) == (1, 3)
    assert min(result.queue_s, result.compute_s) >= 0


async def test_concurrent_jobs_get_their_own_rows_of_one_launch(bench: Bench) -> None:
    held = await bench.hold()
    futures = [bench.ask(count=1 + seed % 3, seed=seed) for seed in range(32)]
    bench.engine.gate.set()

    results = await asyncio.gather(*futures)

    for seed, result in enumerate(results):
        assert same_bits(result.prediction, expected(*rows(1 + seed % 3, seed=seed)))
    await held
    assert bench.tally.launches == [(1, 1), (63, 32)]
    assert all(result.launch_rows == 63 for result in results)


async def test_a_big_job_is_rejoined_in_order(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make(launch_work=64)
    states, actions = rows(50, horizon=4)

    result = await bench.scheduler.submit(states, actions, job_class=ROLLOUT, timeout_s=20)

    assert same_bits(result.prediction, expected(states, actions))
    assert (result.launches, bench.engine.launches) == (4, [(16, 4)] * 3 + [(2, 4)])


async def test_a_safety_check_gets_in_between_the_pieces_of_a_big_job(
    make: Callable[..., Awaitable[Bench]],
) -> None:
    bench = await make(launch_work=64)
    bench.engine.gate.clear()
    big = bench.ask(count=48)
    await bench.engine.entered()
    check = bench.ask(horizon=5, job_class=SAFETY)
    bench.engine.gate.set()

    await asyncio.gather(big, check)

    assert bench.engine.launches == [(16, 4), (1, 5), (16, 4), (16, 4)]


async def test_a_cancelled_job_never_runs_and_leaves_its_siblings_alone(bench: Bench) -> None:
    await bench.hold()
    futures = [bench.ask(seed=seed) for seed in range(4)]
    futures[1].cancel()
    await asyncio.sleep(0)
    assert bench.scheduler.queues.rows(ROLLOUT) == 3
    bench.engine.gate.set()

    results = await asyncio.gather(*futures, return_exceptions=True)

    assert isinstance(results[1], asyncio.CancelledError)
    for seed in (0, 2, 3):
        result = results[seed]
        assert isinstance(result, JobResult)
        assert same_bits(result.prediction, expected(*rows(1, seed=seed)))
    assert bench.engine.launches[-1] == (3, 4)
    assert bench.tally.rejections == {"cancelled": 1}


async def test_a_job_cancelled_while_it_runs_leaves_its_siblings_alone(bench: Bench) -> None:
    await bench.hold()
    futures = [bench.ask(seed=seed) for seed in range(3)]
    bench.engine.gate.set()
    await bench.engine.entered()
    futures[0].cancel()

    results = await asyncio.gather(*futures[1:])

    assert [r.prediction.states.shape for r in results] == [(1, 5, 3)] * 2


async def test_the_awaiting_task_being_cancelled_frees_the_place(bench: Bench) -> None:
    await bench.hold()
    states, actions = rows(7)
    task = asyncio.create_task(
        bench.scheduler.submit(states, actions, job_class=ROLLOUT, timeout_s=20)
    )
    await asyncio.sleep(0)
    assert bench.scheduler.queues.rows(ROLLOUT) == 7

    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0)

    assert bench.scheduler.queues.rows(ROLLOUT) == 0


async def test_a_full_queue_refuses_at_once(make: Callable[..., Awaitable[Bench]]) -> None:
    bench = await make(queue_rows={SAFETY: 8, PREDICT: 4, ROLLOUT: 4})
    await bench.hold()
    bench.ask(count=3)

    with pytest.raises(OverloadedError, match="holds 3 of 4 rows and has no room for 2 more"):
        bench.ask(count=2)

    bench.ask(count=4, job_class=PREDICT)
    assert bench.tally.rejections == {"queue_full": 1}


async def test_an_expired_job_is_answered_on_time_and_never_runs(bench: Bench) -> None:
    await bench.hold()

    with pytest.raises(DeadlineExceededError, match="while it waited"):
        await bench.ask(seed=5, timeout_s=0.01)

    bench.engine.gate.set()
    await bench.ask(seed=6)
    assert bench.engine.launches == [(1, 1), (1, 4)]
    assert np.array_equal(bench.engine.seen[-1], rows(1, seed=6)[0])
    assert bench.tally.rejections == {"expired": 1}


async def test_a_running_job_is_answered_when_its_deadline_passes(bench: Bench) -> None:
    bench.engine.gate.clear()
    future = bench.ask(timeout_s=0.05)
    await bench.engine.entered()

    with pytest.raises(DeadlineExceededError, match="while it was computed"):
        await future


async def test_a_deadline_in_the_past_is_refused(bench: Bench) -> None:
    with pytest.raises(DeadlineExceededError, match="on arrival"):
        bench.ask(timeout_s=0)

    assert bench.engine.launches == []


async def test_an_engine_fault_fails_only_the_job_that_causes_it(bench: Bench) -> None:
    await bench.hold()
    futures = [bench.ask(seed=seed, first=POISON if seed == 2 else None) for seed in range(4)]
    bench.engine.gate.set()

    results = await asyncio.gather(*futures, return_exceptions=True)

    assert isinstance(results[2], EngineError)
    assert "ArithmeticError" in str(results[2])
    for seed in (0, 1, 3):
        result = results[seed]
        assert isinstance(result, JobResult)
        assert same_bits(result.prediction, expected(*rows(1, seed=seed)))
    assert bench.tally.faults == {"exception": 2}
    assert (await bench.ask(seed=9)).launches == 1


@pytest.mark.parametrize("part", ["states", "rewards", "dones", "uncertainty"])
async def test_output_of_the_wrong_shape_is_a_fault(bench: Bench, part: str) -> None:
    bench.engine.change = lambda p: replace(p, **{part: getattr(p, part)[:1]})

    with pytest.raises(EngineError, match="BadOutputError"):
        await bench.ask(count=2)

    assert bench.tally.faults == {"bad_output": 1}


async def test_a_dead_engine_is_noticed_and_everything_is_answered(bench: Bench) -> None:
    await bench.hold()
    futures = [bench.ask(horizon=2 + seed) for seed in range(5)]
    bench.engine.is_broken = True
    bench.engine.gate.set()

    results = await asyncio.gather(*futures, return_exceptions=True)

    assert {type(result) for result in results} <= {EngineError, UnavailableError}
    assert not bench.scheduler.vitals.is_alive
    assert bench.tally.faults["canary"] == CANARY_ATTEMPTS
    with pytest.raises(UnavailableError, match="down"):
        bench.ask()


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


async def test_close_resolves_everything(bench: Bench) -> None:
    held = await bench.hold()
    waiting = [bench.ask(seed=seed) for seed in range(3)]
    closing = asyncio.create_task(bench.scheduler.close(timeout_s=0.01))

    results = await asyncio.gather(held, *waiting, return_exceptions=True)

    assert {type(result) for result in results} == {UnavailableError}
    await closing
    with pytest.raises(UnavailableError, match="shutting down"):
        bench.ask()


async def test_drain_refuses_new_jobs_and_finishes_the_others(bench: Bench) -> None:
    held = await bench.hold()
    waiting = bench.ask()
    draining = asyncio.create_task(bench.scheduler.drain())
    await asyncio.sleep(0)

    with pytest.raises(UnavailableError, match="shutting down"):
        bench.ask()
    bench.engine.gate.set()
    await draining

    assert held.done()
    assert waiting.result().launches == 1


async def test_jobs_before_the_start_are_refused(engine: FakeEngine) -> None:
    with pytest.raises(UnavailableError, match="starting"):
        Bench(engine).ask()


async def test_a_fault_of_the_scheduler_itself_resolves_everything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(bench.scheduler.queues, "next_launch", broken)

    with pytest.raises(UnavailableError, match="scheduler failed"):
        await bench.ask()

    assert not bench.scheduler.vitals.is_alive


async def test_an_idle_scheduler_never_wakes(bench: Bench) -> None:
    task = asyncio.current_task()
    await bench.ask()
    await asyncio.sleep(0)
    others = [t for t in asyncio.all_tasks() if t is not task]

    assert [t.get_name() for t in others] == ["scheduler"]
    before = bench.engine.canaries
    for _ in range(100):
        await asyncio.sleep(0)
    assert bench.engine.canaries == before


def simulate(play: Callable[[Bench, VirtualLoop], Awaitable[None]], **options: Any) -> Bench:
    """Run a play against a scheduler whose engine does 1,000 row-steps a second."""
    loop = VirtualLoop()
    engine = FakeEngine()
    worker = VirtualWorker(engine, work_per_s=1000)
    bench = Bench(engine, worker=worker, timer=loop.time, **options)

    async def run() -> None:
        await bench.scheduler.start()
        await play(bench, loop)
        await bench.scheduler.close()

    try:
        loop.run_until_complete(run())
    finally:
        loop.close()
    return bench


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
