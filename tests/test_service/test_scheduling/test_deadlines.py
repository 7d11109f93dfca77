from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import DeadlineExceededError
from service.scheduling.deadlines import Deadlines
from service.scheduling.jobs import Job, JobClass, JobResult
from tests.fakes.bench import Bench
from tests.fakes.engine import FakeEngine, expected, rows, same_bits

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
LONG_S = 20.0
ROW = rows(1)
TIMEOUTS_S = st.one_of(
    st.sampled_from([5e-324, 1e-9, 1e-4, 4e-4, 6e-4, 1e-3, 0.002, 0.01, LONG_S, 60.0]),
    st.floats(0, 0.004, exclude_min=True),
    st.floats(LONG_S, 60),
)


async def mixed(timeouts_s: list[float]) -> None:
    """Hold the engine until the short deadlines have passed; everyone gets the outcome due."""
    bench = Bench(FakeEngine())
    await bench.scheduler.start()
    held = await bench.hold()
    futures = [
        bench.ask(seed=seed, timeout_s=timeout_s, job_class=(*JobClass,)[seed % 3])
        for seed, timeout_s in enumerate(timeouts_s)
    ]
    short = [f for f, t in zip(futures, timeouts_s, strict=True) if t < LONG_S]
    if short:
        await asyncio.wait(short)
    bench.engine.gate.set()
    outcomes = await asyncio.gather(held, *futures, return_exceptions=True)
    await bench.scheduler.close()

    assert isinstance(outcomes[0], JobResult)
    for seed, (outcome, timeout_s) in enumerate(zip(outcomes[1:], timeouts_s, strict=True)):
        if timeout_s < LONG_S:
            assert isinstance(outcome, DeadlineExceededError)
        else:
            assert isinstance(outcome, JobResult)
            assert same_bits(outcome.prediction, expected(*rows(1, seed=seed)))
    assert bench.tally.rejections == ({"expired": len(short)} if short else {})


@pytest.mark.parametrize("kind", LOOPS)
@settings(max_examples=25, deadline=None)
@given(timeouts_s=st.lists(TIMEOUTS_S, min_size=1, max_size=12))
def test_deadlines_of_some_never_fail_others(kind: str, timeouts_s: list[float]) -> None:
    with asyncio.Runner(loop_factory=LOOPS[kind]) as runner:
        runner.run(mixed(timeouts_s))


def job(seq: int, deadline_s: float) -> Job:
    states, actions = ROW
    job = Job(seq, JobClass.PREDICT, states, actions, 1, 4, lambda outcome: None)
    job.deadline_s = deadline_s
    return job


async def test_many_deadlines_pass_in_their_order() -> None:
    loop = asyncio.get_running_loop()
    live: dict[int, Job] = {}
    passed: list[int] = []
    done = asyncio.Event()

    def expire(job: Job) -> None:
        passed.append(job.seq)
        del live[job.seq]
        if not live:
            done.set()

    deadlines = Deadlines(live, expire)
    order = list(range(200))
    random.Random(1).shuffle(order)
    now = loop.time()
    for seq in order:
        new = job(seq, now + 0.02 + seq * 1e-4)
        deadlines.watch(new, loop)
        live[seq] = new
    await done.wait()

    assert passed == sorted(passed)
    assert len(passed) == 200


async def test_deadlines_of_jobs_that_have_ended_are_not_kept_for_good() -> None:
    loop = asyncio.get_running_loop()
    live: dict[int, Job] = {}
    deadlines = Deadlines(live, lambda job: None)
    last = job(100_000, loop.time() + 30)
    deadlines.watch(last, loop)
    live[last.seq] = last
    for seq in range(5000):
        deadlines.watch(job(seq, loop.time() + 60), loop)  # ended at once: it is never live

    assert len(deadlines._deadlines) < 2500
    assert min(deadlines._deadlines) == (last.deadline_s, last.seq)
    deadlines.close()
