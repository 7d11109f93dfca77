"""What the scheduler says of itself: why a job ended, how long it took, what is left to do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Any, TypeVarTuple

import pytest

from service.errors import DeadlineExceededError, EngineError, ServiceError, UnavailableError
from service.interface import Costs
from service.scheduling.health import State
from service.scheduling.jobs import JobClass, JobResult
from service.scheduling.scheduler import Scheduler
from tests.fakes.bench import Bench, simulate
from tests.fakes.engine import (
    POISON,
    FakeEngine,
    VirtualLoop,
    VirtualWorker,
    expected,
    rows,
    same_bits,
    slow_costs,
)

SAFETY, PREDICT, ROLLOUT = JobClass
Arguments = TypeVarTuple("Arguments")


async def failure_of(future: asyncio.Future[Any]) -> tuple[type[ServiceError], str]:
    with pytest.raises(ServiceError) as caught:
        await future
    return type(caught.value), caught.value.message


def test_a_missed_deadline_says_whether_the_job_had_begun() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        bench.engine.costs = slow_costs(1e-6)  # or they would be refused on arrival
        begun = bench.ask(count=50, timeout_s=0.1)
        waiting = bench.ask(horizon=1, timeout_s=0.15)

        assert await failure_of(begun) == (
            DeadlineExceededError,
            "the deadline passed while it was computed",
        )
        assert loop.now == pytest.approx(0.1, abs=0.002)
        assert await failure_of(waiting) == (
            DeadlineExceededError,
            "the deadline passed while it waited",
        )
        assert loop.now == pytest.approx(0.15, abs=0.002)

    bench = simulate(play, preempt_after_s=0.064)
    assert bench.tally.rejections == {"expired": 2}


def test_closing_says_so_to_each_and_counts_each() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        futures = [bench.ask(horizon=horizon) for horizon in (1, 2, 3)]
        await asyncio.sleep(0)
        await bench.scheduler.close()
        ended = {await failure_of(future) for future in futures}
        assert ended == {(UnavailableError, "the service is shutting down")}

    bench = simulate(play)
    assert bench.tally.rejections == {"draining": 3}


def test_a_dead_engine_says_so_to_each_and_counts_each() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        first = bench.ask(job_class=SAFETY)
        others = [bench.ask(horizon=horizon) for horizon in (1, 2, 3)]
        bench.engine.is_broken = True
        assert await failure_of(first) == (EngineError, "the engine failed: ArithmeticError")
        ended = {await failure_of(future) for future in others}
        assert ended == {(UnavailableError, "the engine is down")}
        assert bench.scheduler.health.state is State.DOWN

    bench = simulate(play)
    assert bench.tally.rejections == {"engine_down": 3}


def test_a_fault_of_ours_says_so_to_each_and_counts_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(costs: Costs) -> None:
        raise AssertionError("a bug")

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        monkeypatch.setattr(bench.scheduler.queues, "next_launch", broken)
        futures = [bench.ask(horizon=horizon) for horizon in (1, 2, 3)]
        ended = {await failure_of(future) for future in futures}
        assert ended == {(UnavailableError, "the scheduler failed")}
        assert bench.scheduler.health.state is State.DOWN

    bench = simulate(play)
    assert bench.tally.rejections == {"engine_down": 3}


def test_times_are_those_of_all_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[tuple[int, int, float]] = []

    async def play(bench: Bench, loop: VirtualLoop) -> None:
        monkeypatch.setattr(bench.tally, "launched", lambda *seen: launches.append(seen))
        await asyncio.sleep(1)
        first, second = bench.ask(count=50, horizon=4), bench.ask(count=10, horizon=2)

        results = await asyncio.gather(first, second)

        assert [result.compute_s for result in results] == pytest.approx([0.2, 0.02])
        assert [result.queue_s for result in results] == pytest.approx([0.0, 0.2])
        assert launches == [(50, 1, results[0].compute_s), (10, 1, results[1].compute_s)]

    simulate(play, preempt_after_s=0.064)


def test_rows_are_counted_by_how_long_they_waited_for_their_launch() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        await asyncio.sleep(1)
        await asyncio.gather(bench.ask(count=50, horizon=4), bench.ask(count=10, horizon=2))
        assert bench.tally.row_seconds == pytest.approx({SAFETY: 0, PREDICT: 0, ROLLOUT: 10 * 0.2})

        first = bench.ask(count=10, horizon=4)
        checks = [bench.ask(count=2, horizon=4, job_class=SAFETY) for _ in range(3)]
        await asyncio.gather(first, *checks)

    bench = simulate(play, preempt_after_s=0.064)
    waited = bench.tally.row_seconds
    # The checks share a launch at once; after 6 rows' 4 steps the planner has its turn.
    assert waited == pytest.approx({SAFETY: 0, PREDICT: 0, ROLLOUT: 2 + 10 * 6 * 0.004})


@pytest.mark.parametrize("end", ["expired", "cancelled", "draining"])
def test_rows_that_leave_without_a_launch_have_waited_until_then(end: str) -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        bench.engine.costs = slow_costs(1e-6)  # or they would be refused on arrival
        begun = bench.ask(count=50, horizon=50)
        timeout_s = 0.15 if end == "expired" else 20.0
        waiting = bench.ask(count=3, horizon=1, timeout_s=timeout_s)
        await asyncio.sleep(0.15)
        if end == "cancelled":
            waiting.cancel()
        elif end == "draining":
            bench.scheduler.give_up()
        await asyncio.gather(begun, waiting, return_exceptions=True)
        assert bench.tally.rejections[end] >= 1

    bench = simulate(play, preempt_after_s=0.064)
    assert bench.tally.row_seconds[ROLLOUT] == pytest.approx(3 * 0.15, abs=3 * 0.002)


def test_a_job_whose_launch_failed_has_waited_once() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        first = bench.ask(count=50, horizon=4)
        good, bad = bench.ask(horizon=2), bench.ask(horizon=2, first=POISON)
        await asyncio.gather(first, good)
        await failure_of(bad)
        assert bench.engine.launches[-3:] == [(2, 2), (1, 2), (1, 2)]

    bench = simulate(play, preempt_after_s=0.064)
    assert bench.tally.row_seconds[ROLLOUT] == pytest.approx(2 * 0.2)


def test_what_a_class_still_takes_shrinks_with_each_slice() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        future = bench.ask(count=50, horizon=4)
        await asyncio.sleep(0.101)
        assert bench.scheduler.queue_s(ROLLOUT) == pytest.approx(0.1)
        assert bench.scheduler.queue_s(PREDICT) == 0
        await future

    simulate(play, preempt_after_s=0.064)


def test_the_backlog_shrinks_with_each_slice_of_a_launch() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        future = bench.ask(count=50, horizon=4)
        seen = []
        for _ in range(5):
            await asyncio.sleep(0.05)
            await asyncio.sleep(0.001)
            seen.append(bench.scheduler.queues.seconds_before(ROLLOUT, bench.engine.costs))
        await future
        assert seen == pytest.approx([0.15, 0.1, 0.05, 0, 0])

    simulate(play, preempt_after_s=0.064)


def test_an_engine_slower_than_at_warm_up_is_noticed() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        bench.engine.costs = slow_costs(0.0005)  # in truth it takes twice as long
        for _ in range(3):
            await bench.ask(count=3, horizon=1)
        assert bench.scheduler.health.pace == pytest.approx(2 - 0.9**3)

    simulate(play)


def test_jobs_of_different_horizons_go_in_order_of_arrival() -> None:
    async def play(bench: Bench, loop: VirtualLoop) -> None:
        ended: list[int] = []

        def note(horizon: int, future: asyncio.Future[JobResult]) -> None:
            ended.append(horizon)

        futures = [bench.ask(horizon=horizon) for horizon in (4, 2, 3, 1)]
        for horizon, future in zip((4, 2, 3, 1), futures, strict=True):
            future.add_done_callback(partial(note, horizon))
        await asyncio.gather(*futures)
        assert ended == [4, 2, 3, 1]

    simulate(play)


async def test_of_two_jobs_in_a_launch_only_the_one_that_breaks_it_fails(
    engine: FakeEngine,
) -> None:
    bench = Bench(engine)
    await bench.scheduler.start()
    good, bad = bench.ask(seed=1), bench.ask(seed=2, first=POISON)

    assert await failure_of(bad) == (EngineError, "the engine failed: ArithmeticError")
    assert same_bits((await good).prediction, expected(*rows(1, seed=1)))
    assert bench.engine.launches[:3] == [(2, 4), (1, 4), (1, 4)]
    await bench.scheduler.close()


async def test_a_slice_that_was_owed_is_short_while_a_check_waits(engine: FakeEngine) -> None:
    """Nobody is in a hurry behind the last check: then the rest is one slice."""
    engine.costs, engine.is_quick_to_call = slow_costs(0.001), True
    bench = Bench(engine, preempt_after_s=0.001, inline_s=0.1, max_passes=1)
    await bench.scheduler.start()
    futures = [bench.ask(horizon=50)]
    futures += [bench.ask(horizon=2, job_class=SAFETY) for _ in range(3)]

    await asyncio.gather(*futures)

    assert engine.slices == [(1, 2), (1, 1), (1, 2), (1, 1), (1, 2), (1, 48)]
    await bench.scheduler.close()


class RecordingLoop(VirtualLoop):
    """Keeps all timers, and what went wrong where nobody could catch it."""

    def __init__(self) -> None:
        super().__init__()
        self.timers: list[asyncio.TimerHandle] = []
        self.troubles: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.troubles.append(context))

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.timers.append(super().call_at(when, callback, *args, context=context))
        return self.timers[-1]


async def with_work(scheduler: Scheduler, bench: Bench) -> None:
    await scheduler.start()
    await bench.ask()
    unanswered = bench.ask(timeout_s=1000.0)
    await asyncio.sleep(0)
    await scheduler.close()
    await failure_of(unanswered)


async def idle(scheduler: Scheduler, bench: Bench) -> None:
    await scheduler.start()
    await scheduler.close()


async def never_started(scheduler: Scheduler, bench: Bench) -> None:
    await scheduler.close()


async def closed_twice(scheduler: Scheduler, bench: Bench) -> None:
    await with_work(scheduler, bench)
    await scheduler.close()


@pytest.mark.parametrize("play", [with_work, idle, never_started, closed_twice])
def test_closing_leaves_no_task_no_timer_and_no_trouble(
    play: Callable[[Scheduler, Bench], Awaitable[None]],
) -> None:
    loop, engine = RecordingLoop(), FakeEngine()
    worker = VirtualWorker(engine, slow_costs(0.001))
    bench = Bench(engine, worker=worker, timer=loop.time)

    async def run() -> set[str]:
        await play(bench.scheduler, bench)
        await asyncio.sleep(1)  # until calls in progress have ended
        return {task.get_name() for task in asyncio.all_tasks()} & {"scheduler"}

    try:
        assert loop.run_until_complete(run()) == set()
    finally:
        loop.close()
    assert [t for t in loop.timers if not t.cancelled() and t.when() > loop.time()] == []
    assert loop.troubles == []


class PatientWorker(VirtualWorker):
    """Notes how long the scheduler waits for it."""

    waited_s: float | None = None

    async def close(self, timeout_s: float) -> None:
        self.waited_s = timeout_s


def test_closing_waits_for_the_engine_no_longer_than_it_is_asked_to() -> None:
    loop, engine = VirtualLoop(), FakeEngine()
    worker = PatientWorker(engine, slow_costs(0.001))
    bench = Bench(engine, worker=worker, timer=loop.time)

    try:
        loop.run_until_complete(bench.scheduler.close(timeout_s=0.25))
    finally:
        loop.close()

    assert worker.waited_s == 0.25
