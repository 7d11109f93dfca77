"""In any mix of requests each gets the bits it gets alone: scheduler and engine together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import Engine
from service.interface import Array, Prediction
from service.scheduling.jobs import Bounds, JobClass
from service.scheduling.scheduler import Scheduler
from tests.fakes.bench import outcome_of
from tests.fakes.engine import Tally, same_bits
from tests.test_service.test_engine.test_engine import checkpoint, inputs

REQUEST = st.tuples(
    st.sampled_from(JobClass),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(0, 3),
    st.sampled_from([None, 1, 2]),
)
"""Class, rows, horizon, turns of the loop before it, and members; None: all three."""


@pytest.fixture(
    scope="module",
    params=[
        "native",
        "eager",
        pytest.param("fused", marks=pytest.mark.gpu),
        pytest.param("graphs", marks=pytest.mark.gpu),
    ],
)
def engine(request: pytest.FixtureRequest, library: Path) -> Iterator[Engine]:
    is_gpu = request.param in ("fused", "graphs")
    if is_gpu and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    threads = torch.get_num_threads()
    engine = Engine(
        checkpoint(3),
        device="cuda" if is_gpu else "cpu",
        threads=1,
        library=(lambda: library) if request.param in ("native", "fused") else None,
    )
    engine.start()
    yield engine
    engine.close()
    torch.set_num_threads(threads)


async def answered(
    engine: Engine, bounds: Bounds, requests: list[tuple[JobClass, Array, Array, int, int | None]]
) -> list[Prediction]:
    """Submit requests one after the other, some turns of the loop apart."""
    scheduler = Scheduler(engine, bounds, Tally())
    await scheduler.start()
    futures = []
    for job_class, states, actions, turns, members in requests:
        for _ in range(turns):
            await asyncio.sleep(0)
        futures.append(outcome_of(scheduler, states, actions, job_class, 60, members))
    results = await asyncio.gather(*futures)
    await scheduler.close()
    return [result.prediction for result in results]


@settings(max_examples=40, deadline=None)
@given(
    mix=st.lists(REQUEST, min_size=1, max_size=12),
    steps_at_once=st.sampled_from([0.5, 1.0, 2.5, 100.0]),
    is_inline=st.booleans(),
    max_passes=st.sampled_from([1, 8]),
)
def test_a_request_has_the_same_bits_alone_and_in_any_mix(
    engine: Engine,
    mix: list[tuple[JobClass, int, int, int, int | None]],
    steps_at_once: float,
    is_inline: bool,
    max_passes: int,
) -> None:
    requests = [
        (job_class, *inputs(rows, horizon, seed), turns, members)
        for seed, (job_class, rows, horizon, turns, members) in enumerate(mix)
    ]
    bounds = Bounds(
        # From one tile and one step at a time to everything at once.
        preempt_after_s=steps_at_once * engine.costs.step_s[0],
        inline_s=1e9 if is_inline else 0.0,
        max_passes=max_passes,
    )

    together = asyncio.run(answered(engine, bounds, requests))

    for (_, states, actions, _, members), prediction in zip(requests, together, strict=True):
        assert same_bits(prediction, engine.rollout(states, actions, members))
