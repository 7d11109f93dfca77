"""What /metrics says of traffic, held against what was really asked, answered and computed."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import Counter
from time import perf_counter
from typing import Any

import pytest

from service.scheduling.jobs import JobClass
from service.telemetry.metrics import Registry
from service.telemetry.series import COUNTS, PROBABILITIES
from tests.fakes.engine import ACTIONS, POISON, STATE, FakeEngine, serving, slow_costs, until
from tests.fakes.registry import BODIES, Labels, bucketed, counted, value
from tests.fakes.sockets import BODY, LIMIT, listening, request


async def test_every_request_is_counted_once_by_route_and_status(engine: FakeEngine) -> None:
    registry, sent = Registry(), Counter[Labels]()
    async with serving(engine, registry, api_keys="alpha", max_body_bytes=LIMIT) as (_, client):

        async def ask(count: int, endpoint: str, code: int, path: str = "", **call: Any) -> None:
            call = {"headers": {"Authorization": "Bearer alpha"}, "method": "POST", **call}
            for _ in range(count):
                response = await client.request(url=path or endpoint, **call)
                assert response.status_code == code
                sent[endpoint, str(code)] += 1

        for count, (endpoint, body) in enumerate(BODIES.items(), 3):
            await ask(count, endpoint, 200, json=body)
            await ask(count + 1, endpoint, 422, content=b"{")
            await ask(count + 2, endpoint, 401, json=body, headers={})
            await ask(1, endpoint, 405, method="GET")
            await ask(2, endpoint, 413, content=b" " * (LIMIT + 1))
            await ask(1, endpoint, 500, json={**body, "state": [POISON, 0, 0]})
        for endpoint in ("/model", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
            await ask(2, endpoint, 200, method="GET")
        await ask(4, "other", 404, path="/wp-login.php", method="GET")
        await ask(1, "/model", 405)

    assert counted(registry, "requests_total") == sent
    by_endpoint = Counter[Labels]()
    for (endpoint, _), count in sent.items():
        by_endpoint[(endpoint,)] += count
    assert counted(registry, "request_seconds_count") == by_endpoint


async def test_requests_that_come_past_asgi_are_counted_alike(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        await served.ask(*[request()] * 7, request(b"{}"), request(b"", "Connection: close"))
        await served.ask(request(key="beta"), request(BODY, "Connection: close"))

        by_code = {code: served.count(code) for code in ("200", "401", "422")}

    assert by_code == {"200": 8, "401": 1, "422": 2}


async def test_a_request_is_timed_for_as_long_as_it_took(engine: FakeEngine) -> None:
    registry = Registry()
    async with serving(engine, registry) as (_, client):
        engine.gate.clear()
        started = perf_counter()
        late = {"X-Request-Timeout-Seconds": "0.03"}
        await client.post("/rollout", json=BODIES["/rollout"], headers=late)
        took_s = perf_counter() - started
        engine.gate.set()

    assert 0.03 <= value(registry, "request_seconds_sum", endpoint="/rollout") <= took_s
    upto = value(registry, "request_seconds_bucket", endpoint="/rollout", le="0.025")
    assert (upto, value(registry, "request_seconds_count", endpoint="/rollout")) == (0, 1)


async def test_stages_are_those_of_answered_predictions(engine: FakeEngine) -> None:
    registry, sent_s = Registry(), Counter[str]()
    async with serving(engine, registry) as (_, client):
        started = perf_counter()
        for endpoint, body in list(BODIES.items()) * 3:
            response = await client.post(endpoint, json=body)
            for part in response.headers["server-timing"].split(", "):
                stage, _, duration_ms = part.partition(";dur=")
                sent_s[stage] += float(duration_ms) / 1e3  # type: ignore[assignment]
        took_s = perf_counter() - started
        await client.post("/rollout", content=b"{")

    stages = ("parse", "queue", "compute", "respond")
    assert [value(registry, "stage_seconds_count", stage=stage) for stage in stages] == [9] * 4
    sums = {stage: value(registry, "stage_seconds_sum", stage=stage) for stage in stages}
    for stage in ("queue", "compute"):
        assert sums[stage] == pytest.approx(sent_s[stage], abs=9 * 0.5e-6)
    assert all(seconds > 0 for seconds in sums.values())
    assert sum(sums.values()) < took_s


async def test_launches_hold_every_row_that_was_sent_once(engine: FakeEngine) -> None:
    registry = Registry()
    counts = [1, 5, 64, 2, 31, 64]
    engine.costs = slow_costs(0.001, most_rows=16)
    started = perf_counter()
    async with serving(engine, registry, preempt_after_s=0.016) as (_, client):
        bodies = [{"state": STATE, "actions": [ACTIONS] * count} for count in counts]
        await asyncio.gather(*[client.post("/rollout", json=body) for body in bodies])

    launched = [rows for rows, _ in engine.launches]
    assert max(launched) == 64, "a job is one launch, in parts of 16 rows"
    assert value(registry, "batch_rows_sum") == sum(counts) == sum(launched)
    assert value(registry, "batch_rows_count") == len(launched)
    places = Counter(bisect_left(COUNTS, rows) for rows in launched)
    assert bucketed(registry, "batch_rows") == [places[k] for k in range(len(COUNTS) + 1)]
    assert 0 < value(registry, "engine_busy_seconds_total") < perf_counter() - started


async def test_requests_that_share_a_launch_are_counted_with_it(engine: FakeEngine) -> None:
    registry = Registry()
    async with serving(engine, registry) as (app, client):
        engine.gate.clear()
        first = asyncio.create_task(client.post("/predict", json=BODIES["/predict"]))
        await engine.entered()
        others = [client.post("/rollout", json=BODIES["/rollout"]) for _ in range(9)]
        everyone = asyncio.gather(first, *others)
        await until(lambda: app.scheduler.queues.depth(JobClass.ROLLOUT) == 9)
        engine.gate.set()
        await everyone

    assert value(registry, "batch_requests_sum") == 10
    assert value(registry, "batch_requests_count") == 2
    assert value(registry, "batch_requests_bucket", le="1.0") == 1
    assert value(registry, "batch_requests_bucket", le="16.0") == 2


async def test_queues_show_what_waits_while_the_engine_is_blocked(engine: FakeEngine) -> None:
    registry = Registry()
    async with serving(engine, registry) as (app, client):
        engine.gate.clear()
        running = asyncio.create_task(client.post("/predict", json=BODIES["/predict"]))
        await engine.entered()
        two = {"state": STATE, "actions": [ACTIONS] * 2}
        waiting = asyncio.gather(
            *[client.post("/rollout", json=two) for _ in range(3)],
            *[client.post("/safety-check", json=two) for _ in range(2)],
            client.post("/predict", json=BODIES["/predict"]),
        )
        await until(lambda: sum(app.scheduler.queues.depth(c) for c in JobClass) == 6)
        depth, rows = counted(registry, "queue_depth"), counted(registry, "queue_rows")
        engine.gate.set()
        await asyncio.gather(running, waiting)

        assert depth == {("safety",): 2, ("predict",): 1, ("rollout",): 3}
        assert rows == {("safety",): 4, ("predict",): 1, ("rollout",): 6}
        assert counted(registry, "queue_depth") == counted(registry, "queue_rows") == {}


async def test_a_scrape_shows_how_long_what_waits_takes(engine: FakeEngine) -> None:
    engine.costs = slow_costs(0.001, most_rows=16)
    async with serving(engine) as (app, client):

        async def scraped(name: str) -> list[float]:
            text = (await client.get("/metrics")).text
            lines = [line.split() for line in text.splitlines() if line.startswith(f"{name}{{")]
            return [float(number) for _, number in lines]

        engine.gate.clear()
        running = asyncio.create_task(client.post("/predict", json=BODIES["/predict"]))
        await engine.entered()
        two = {"state": STATE, "actions": [ACTIONS] * 2}
        waiting = asyncio.gather(*[client.post("/rollout", json=two) for _ in range(3)])
        await until(lambda: app.scheduler.queues.depth(JobClass.ROLLOUT) == 3)
        expected = [app.scheduler.queue_s(job_class) for job_class in JobClass]
        during = await scraped("world_model_queue_seconds")
        engine.gate.set()
        await asyncio.gather(running, waiting)

        assert during == expected
        assert (during[0], during[1] > 0, during[2] > during[1]) == (0, True, True)
        assert await scraped("world_model_queue_seconds") == [0, 0, 0]
        waited = await scraped("world_model_queue_row_seconds_total")
        assert (waited[0], waited[2] > 0) == (0, True)


VARIED = [[0.0, 0.0, 0.0], [48.0, 0.0, 0.0], [1.0, 20.0, 0.0], [2.0, 1.0, 0.0], [60.0, 0.0, 0.0]]
"""Safe; likely to crash; uncertain; safe; out of range."""


async def test_verdicts_and_probabilities_are_those_that_were_answered(engine: FakeEngine) -> None:
    registry = Registry()
    sequences: list[dict[str, Any]] = []
    async with serving(engine, registry) as (_, client):
        for count, state in enumerate(VARIED, 1):
            body = {"state": state, "actions": ACTIONS}
            sequences.append((await client.post("/safety-check", json=body)).json())
            body = {"state": state, "actions": [ACTIONS] * count}
            answer = await client.post("/safety-check", json=body)
            sequences += answer.json()["candidates"]
        await client.post("/safety-check", content=b"{")
        # Planners explore crashes on purpose: theirs are not judged.
        await client.post("/rollout", json={"state": VARIED[1], "actions": ACTIONS})

    answered = Counter((one["verdict"],) for one in sequences)
    assert len(answered) == 3
    assert counted(registry, "safety_verdicts_total") == answered
    risks = [one["crash_probability"] for one in sequences]
    places = Counter(bisect_left(PROBABILITIES, risk) for risk in risks)
    assert bucketed(registry, "crash_probability") == [
        places[k] for k in range(len(PROBABILITIES) + 1)
    ]
    assert value(registry, "crash_probability_sum") == pytest.approx(sum(risks))


async def test_uncertainty_is_that_of_every_answered_sequence(engine: FakeEngine) -> None:
    registry = Registry()
    answered: list[float] = []
    async with serving(engine, registry) as (_, client):
        for state in VARIED:
            for path, actions in (
                ("/predict", {"action": ACTIONS[0]}),
                ("/rollout", {"actions": ACTIONS, "outputs": ["uncertainty"]}),
                ("/safety-check", {"actions": ACTIONS}),
            ):
                answer = (await client.post(path, json={"state": state, **actions})).json()
                answered.append(answer["uncertainty"])

    assert value(registry, "uncertainty_count") == len(answered) == 15
    assert value(registry, "uncertainty_sum") == pytest.approx(sum(answered), rel=1e-5)
