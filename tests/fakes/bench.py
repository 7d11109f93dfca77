"""A scheduler on the bench: with its engine, its observer, and simulated time if wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from service.errors import ServiceError
from service.interface import Array, Costs
from service.scheduling.jobs import Bounds, JobClass, JobResult, Outcome
from service.scheduling.scheduler import Scheduler
from tests.fakes.engine import FakeEngine, Tally, VirtualLoop, VirtualWorker, rows, slow_costs

SAFETY, PREDICT, ROLLOUT = JobClass

THOUSAND_A_SECOND = slow_costs(0.001)


def outcome_of(
    scheduler: Scheduler,
    states: Array,
    actions: Array,
    job_class: JobClass = ROLLOUT,
    timeout_s: float = 20.0,
    members: int | None = None,
) -> asyncio.Future[JobResult]:
    """Return a job's outcome as a future; cancelling it cancels the job."""
    future: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()

    def respond(outcome: Outcome) -> None:
        if outcome is None:
            future.cancel()
        elif isinstance(outcome, ServiceError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    job = scheduler.enqueue(
        states,
        actions,
        job_class=job_class,
        timeout_s=timeout_s,
        respond=respond,
        members=members,
    )
    future.add_done_callback(lambda _: scheduler.cancel(job))
    return future


class Bench:
    """A started scheduler with its engine and its observer."""

    def __init__(self, engine: FakeEngine, **options: Any) -> None:
        self.engine = engine
        self.tally = Tally()
        parts = {name: options.pop(name) for name in ("worker", "timer") if name in options}
        self.scheduler = Scheduler(engine, Bounds(**options), self.tally, **parts)

    def ask(
        self,
        count: int = 1,
        horizon: int = 4,
        seed: int = 0,
        job_class: JobClass = ROLLOUT,
        timeout_s: float = 20.0,
        first: float | None = None,
        members: int | None = None,
    ) -> asyncio.Future[JobResult]:
        states, actions = rows(count, horizon, seed)
        if first is not None:
            states[0, 0] = first
        return outcome_of(self.scheduler, states, actions, job_class, timeout_s, members)

    async def hold(self) -> asyncio.Future[JobResult]:
        """Close the gate behind a job of another horizon, and wait until it runs."""
        self.engine.gate.clear()
        held = self.ask(horizon=1, job_class=SAFETY)
        await self.engine.entered()
        return held


def simulate(
    play: Callable[[Bench, VirtualLoop], Awaitable[None]],
    costs: Costs = THOUSAND_A_SECOND,
    **options: Any,
) -> Bench:
    """Run a play against a scheduler whose engine has these costs: 1,000 row-steps a second."""
    loop = VirtualLoop()
    engine = FakeEngine()
    engine.costs = costs
    options = {"preempt_after_s": 0.064, **options}
    worker = VirtualWorker(engine, costs)
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
