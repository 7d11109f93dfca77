from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from service.errors import (
    DeadlineExceededError,
    EngineError,
    OverloadedError,
    UnavailableError,
)
from service.interface import Costs, Prediction
from service.scheduling.health import CANARY_ATTEMPTS, State
from service.scheduling.jobs import JobClass, JobResult, Outcome
from tests.fakes.bench import Bench, outcome_of
from tests.fakes.engine import (
    POISON,
    FakeEngine,
    expected,
    rows,
    same_bits,
    slow_costs,
)

SAFETY, PREDICT, ROLLOUT = JobClass


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

    result = await outcome_of(bench.scheduler, states, actions)

    assert same_bits(result.prediction, expected(states, actions))
    assert (bench.engine.launches, result.launch_rows) == ([(3, 4)], 3)
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


async def test_a_big_job_is_rejoined_in_order(
    engine: FakeEngine, make: Callable[..., Awaitable[Bench]]
) -> None:
    engine.costs = slow_costs(0.001)
    bench = await make(preempt_after_s=0.016)
    states, actions = rows(50, horizon=4)

    result = await outcome_of(bench.scheduler, states, actions)

    assert same_bits(result.prediction, expected(states, actions))
    assert engine.launches == [(50, 4)]
    assert engine.slices == [(13, 1)] * 16


async def test_a_safety_check_gets_in_between_the_steps_of_a_big_job(
    engine: FakeEngine, make: Callable[..., Awaitable[Bench]]
) -> None:
    engine.costs = slow_costs(0.001)
    bench = await make(preempt_after_s=0.016)
    engine.gate.clear()
    big = bench.ask(count=20)
    await engine.entered()
    check = bench.ask(horizon=5, job_class=SAFETY)
    engine.gate.set()

    results = await asyncio.gather(big, check)

    assert engine.slices == [(10, 1), (1, 5)] + [(10, 1)] * 7
    assert same_bits(results[0].prediction, expected(*rows(20)))


async def test_an_engine_that_cannot_be_left_gets_launches_that_fit_whole(
    engine: FakeEngine, make: Callable[..., Awaitable[Bench]]
) -> None:
    engine.costs = replace(slow_costs(0.001), is_divisible=False)
    bench = await make(preempt_after_s=0.016)

    await bench.ask(count=10)

    assert engine.slices == [(4, 4)] * 3


@pytest.mark.parametrize(
    ("is_quick", "inline_s", "is_here"),
    [(True, 0.01, True), (True, 0.001, False), (False, 0.01, False)],
    ids=["short", "long", "an engine that waits"],
)
async def test_short_slices_are_computed_on_the_loop(
    engine: FakeEngine,
    make: Callable[..., Awaitable[Bench]],
    is_quick: bool,
    inline_s: float,
    is_here: bool,
) -> None:
    engine.costs, engine.is_quick_to_call = slow_costs(0.001), is_quick
    bench = await make(preempt_after_s=0.004, inline_s=inline_s)

    await bench.ask()

    assert engine.threads == {threading.current_thread().name if is_here else "engine"}


async def test_a_long_slice_on_the_loop_is_left_for_what_comes_in(
    engine: FakeEngine, make: Callable[..., Awaitable[Bench]]
) -> None:
    """Alone, a launch is one slice that watches for input; while a check waits, it is short."""
    engine.costs, engine.is_quick_to_call = slow_costs(0.001), True
    bench = await make(preempt_after_s=0.001, inline_s=0.1)
    await bench.ask(count=1, horizon=50)
    assert (engine.slices, engine.watched) == ([(1, 50)], [True])

    engine.leave_after = 3
    big = bench.ask(count=1, horizon=10)
    engine.on_leaving = lambda: bench.ask(horizon=2, job_class=SAFETY)
    await big

    assert engine.slices[1:] == [(1, 3), (1, 2), (1, 7)]


async def test_a_safety_check_on_the_loop_is_not_left(
    engine: FakeEngine, make: Callable[..., Awaitable[Bench]]
) -> None:
    """Nothing that comes in is more urgent, and somebody may send without end."""
    engine.costs, engine.is_quick_to_call = slow_costs(0.001), True
    bench = await make(preempt_after_s=0.001, inline_s=0.1)
    engine.leave_after = 3
    await bench.ask(count=1, horizon=50, job_class=SAFETY)

    assert (engine.slices, engine.watched) == ([(1, 50)], [False])


async def test_what_would_come_too_late_is_refused_at_once(
    engine: FakeEngine, make: Callable[..., Awaitable[Bench]]
) -> None:
    engine.costs = slow_costs(0.01)
    bench = await make(preempt_after_s=0.01)
    await bench.hold()
    bench.ask(count=50, horizon=4)

    with pytest.raises(OverloadedError, match=r"would take 2\.05 s, of which 2\.01 s") as caught:
        bench.ask(timeout_s=1)

    assert caught.value.retry_after_s == pytest.approx(1.05)
    assert bench.tally.rejections == {"too_late": 1}
    bench.ask(timeout_s=3)
    bench.ask(job_class=SAFETY, timeout_s=1)


async def test_a_job_too_long_for_its_deadline_is_tried_if_nothing_is_before_it(
    engine: FakeEngine, bench: Bench
) -> None:
    engine.costs = slow_costs(10.0)

    await bench.ask(timeout_s=5)

    assert bench.engine.launches == [(1, 4)]


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


async def test_a_caller_that_breaks_leaves_its_siblings_alone(bench: Bench) -> None:
    await bench.hold()
    states, actions = rows(1)

    def respond(outcome: Outcome) -> None:
        raise AssertionError("a bug of a caller")

    bench.scheduler.enqueue(states, actions, job_class=ROLLOUT, timeout_s=20, respond=respond)
    sibling = bench.ask(seed=3)
    bench.engine.gate.set()

    assert same_bits((await sibling).prediction, expected(*rows(1, seed=3)))
    assert bench.engine.launches[-1] == (2, 4)


async def test_each_deadline_is_kept_in_whatever_order_they_come(bench: Bench) -> None:
    await bench.hold()
    order: list[int] = []

    def ended(seed: int, future: asyncio.Future[JobResult]) -> None:
        order.append(seed)

    futures = [
        bench.ask(seed=seed, timeout_s=timeout_s)
        for seed, timeout_s in enumerate((0.09, 0.03, 20.0, 0.06))
    ]
    for seed, future in enumerate(futures):
        future.add_done_callback(partial(ended, seed))

    results = await asyncio.gather(*futures[:2], futures[3], return_exceptions=True)

    assert {type(result) for result in results} == {DeadlineExceededError}
    assert order == [1, 3, 0]
    bench.engine.gate.set()
    assert (await futures[2]).launch_rows == 1


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


async def test_a_result_that_comes_after_its_deadline_is_none(
    engine: FakeEngine, make: Callable[..., Awaitable[Bench]]
) -> None:
    """Computed on the loop, where no timer can tell that it takes too long."""

    def late(prediction: Prediction) -> Prediction:
        time.sleep(0.05)
        return prediction

    engine.is_quick_to_call, engine.change = True, late
    bench = await make(inline_s=1.0)
    late_job = bench.ask(job_class=SAFETY, timeout_s=0.02)
    sibling = bench.ask(job_class=SAFETY, seed=1)

    with pytest.raises(DeadlineExceededError, match="while it was computed"):
        await late_job

    assert same_bits((await sibling).prediction, expected(*rows(1, seed=1)))
    assert bench.tally.rejections == {"expired": 1}


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
    assert (await bench.ask(seed=9)).launch_rows == 1


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
    assert bench.scheduler.health.state is State.DOWN
    assert bench.tally.faults["canary"] == CANARY_ATTEMPTS
    with pytest.raises(UnavailableError, match="down"):
        bench.ask()


async def test_close_resolves_everything(bench: Bench) -> None:
    held = await bench.hold()
    waiting = [bench.ask(seed=seed) for seed in range(3)]
    closing = asyncio.create_task(bench.scheduler.close(timeout_s=0.01))

    results = await asyncio.gather(held, *waiting, return_exceptions=True)

    assert {type(result) for result in results} == {UnavailableError}
    await closing
    with pytest.raises(UnavailableError, match="shutting down"):
        bench.ask()


async def test_jobs_before_the_start_are_refused(engine: FakeEngine) -> None:
    with pytest.raises(UnavailableError, match="starting"):
        Bench(engine).ask()


async def test_a_fault_of_the_scheduler_itself_resolves_everything(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(costs: Costs) -> None:
        raise AssertionError("a bug")

    monkeypatch.setattr(bench.scheduler.queues, "next_launch", broken)

    with pytest.raises(UnavailableError, match="scheduler failed"):
        await bench.ask()

    assert bench.scheduler.health.state is State.DOWN


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
