"""What /metrics says when jobs get no answer, the engine fails, or the device does not reply."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.app import WorldModelApp
from service.scheduling.health import State
from service.scheduling.jobs import JobClass
from service.telemetry.metrics import Registry
from tests.fakes.engine import (
    ACTIONS,
    DIVERGE,
    PATIENCE_S,
    POISON,
    STATE,
    VERSION,
    FakeEngine,
    serving,
    slow_costs,
    until,
)
from tests.fakes.registry import BODIES, counted, value
from tests.fakes.sockets import listening, request


async def refuse_for_room(app: WorldModelApp, client: httpx.AsyncClient, engine: FakeEngine) -> int:
    engine.gate.clear()
    running = asyncio.create_task(client.post("/rollout", json=BODIES["/rollout"]))
    await engine.entered()
    full = {"state": STATE, "actions": [ACTIONS] * 64}
    waiting = asyncio.create_task(client.post("/rollout", json=full))
    await until(lambda: app.scheduler.queues.rows(JobClass.ROLLOUT) == 64)
    refused = await client.post("/rollout", json=BODIES["/rollout"])
    engine.gate.set()
    await asyncio.gather(running, waiting)
    return refused.status_code


async def refuse_for_time(app: WorldModelApp, client: httpx.AsyncClient, engine: FakeEngine) -> int:
    engine.costs = slow_costs(1.0)
    engine.gate.clear()
    running = asyncio.create_task(client.post("/rollout", json=BODIES["/rollout"]))
    await engine.entered()
    hasty = {"X-Request-Timeout-Seconds": "0.5"}
    refused = await client.post("/rollout", json=BODIES["/rollout"], headers=hasty)
    engine.gate.set()
    await running
    return refused.status_code


async def expire(app: WorldModelApp, client: httpx.AsyncClient, engine: FakeEngine) -> int:
    engine.gate.clear()
    hasty = {"X-Request-Timeout-Seconds": "0.01"}
    late = await client.post("/rollout", json=BODIES["/rollout"], headers=hasty)
    engine.gate.set()
    return late.status_code


async def break_down(app: WorldModelApp, client: httpx.AsyncClient, engine: FakeEngine) -> int:
    engine.is_broken = True
    assert (await client.post("/rollout", json=BODIES["/rollout"])).status_code == 500
    await until(lambda: app.health.state is State.DOWN)
    return (await client.post("/rollout", json=BODIES["/rollout"])).status_code


@pytest.mark.parametrize(
    ("reason", "status", "play"),
    [
        ("queue_full", 429, refuse_for_room),
        ("too_late", 429, refuse_for_time),
        ("expired", 504, expire),
        ("engine_down", 503, break_down),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
async def test_a_job_without_an_answer_is_counted_by_its_reason(
    engine: FakeEngine, reason: str, status: int, play: Any
) -> None:
    registry = Registry()
    async with serving(engine, registry, queue_rows_rollout=64) as (app, client):
        assert await play(app, client, engine) == status
        assert counted(registry, "rejected_total") == {(reason,): 1}


async def test_jobs_that_come_or_wait_while_the_service_ends_are_counted(
    engine: FakeEngine,
) -> None:
    registry = Registry()
    async with serving(engine, registry) as (app, client):
        engine.gate.clear()
        held = asyncio.create_task(client.post("/rollout", json=BODIES["/rollout"]))
        await engine.entered()
        app.scheduler.give_up()
        late = await client.post("/rollout", json=BODIES["/rollout"])
        assert [(await held).status_code, late.status_code] == [503, 503]
        engine.gate.set()

    assert counted(registry, "rejected_total") == {("draining",): 2}
    assert counted(registry, "requests_total") == {("/rollout", "503"): 2}


async def test_a_caller_that_leaves_is_counted(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        engine.gate.clear()
        caller = await served.caller()
        caller.send(request())
        await engine.entered()
        await caller.leave()
        await until(lambda: served.count("499") == 1)
        assert counted(served.registry, "rejected_total") == {("cancelled",): 1}
        engine.gate.set()


async def test_faults_of_the_engine_are_counted_by_kind(engine: FakeEngine) -> None:
    registry = Registry()
    async with serving(engine, registry) as (_, client):

        async def ask(path: str, first: float = 1.0) -> int:
            body = {**BODIES[path], "state": [first, 0.0, 0.0]}
            return (await client.post(path, json=body)).status_code

        assert [await ask("/rollout", POISON), await ask("/predict", POISON)] == [500, 500]
        assert counted(registry, "engine_errors_total") == {("exception",): 2}

        assert [await ask(path, DIVERGE) for path in BODIES] == [500, 500, 200]
        engine.change = lambda prediction: prediction.__class__(
            prediction.states[:-1], prediction.rewards, prediction.dones, prediction.uncertainty
        )  # a row too few
        assert await ask("/rollout") == 500
        engine.count_error("out_of_memory")

    assert counted(registry, "engine_errors_total") == {
        ("exception",): 2,
        ("non_finite",): 3,
        ("bad_output",): 1,
        ("out_of_memory",): 1,
    }


async def test_canaries_that_fail_are_counted(engine: FakeEngine) -> None:
    registry = Registry()
    async with serving(engine, registry) as (app, client):
        await break_down(app, client, engine)

        assert counted(registry, "engine_errors_total") == {("exception",): 1, ("canary",): 3}


async def test_the_readiness_gauge_says_what_readyz_says(engine: FakeEngine) -> None:
    registry = Registry()
    async with serving(engine, registry) as (app, client):
        seen = [((await client.get("/readyz")).status_code, value(registry, "ready"))]
        app.health.start_draining()
        seen.append(((await client.get("/readyz")).status_code, value(registry, "ready")))

    assert seen == [(200, 1), (503, 0)]


async def test_the_scrape_tells_model_and_memory(engine: FakeEngine) -> None:
    async with serving(engine) as (_, client):
        response = await client.get("/metrics")

    samples = {
        s.name.removeprefix("world_model_"): s
        for family in text_string_to_metric_families(response.text)
        for s in family.samples
    }
    assert response.headers["content-type"].startswith("text/plain; version=")
    info = {"version": VERSION, "device": "cpu", "checkpoint": "fake-model"}
    assert samples["info"].labels == info
    assert samples["load_seconds"].value == engine.load_s
    resident = psutil.Process().memory_info().rss
    assert samples["process_resident_bytes"].value == pytest.approx(resident, rel=0.2)


class StuckDriver(FakeEngine):
    """An engine whose device does not tell its memory before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = threading.Event()
        self.may_tell = threading.Event()

    def vram(self) -> Mapping[str, int] | None:
        self.is_asked.set()
        assert self.may_tell.wait(PATIENCE_S)
        return {"budget": 4, "reserved": 1}


async def test_a_scrape_that_waits_for_the_device_holds_nobody_up() -> None:
    engine = StuckDriver()
    async with serving(engine) as (_, client):
        scrape = asyncio.create_task(client.get("/metrics"))
        await until(engine.is_asked.is_set)
        answers = [await client.post(path, json=body) for path, body in BODIES.items()]
        was_done = scrape.done()
        engine.may_tell.set()
        text = (await scrape).text

    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert not was_done
    assert 'world_model_vram_headroom_bytes{component="world_model"} 3.0' in text
