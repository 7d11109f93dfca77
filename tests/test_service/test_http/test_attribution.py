"""What a safety check's crash probability comes from, over HTTP, against the fake engine."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.http.answers import Reply
from service.http.exchange import Exchange
from service.interface import Costs
from service.scheduling.explanations import MOST_QUESTIONS
from tests.fakes.engine import (
    ACTIONS,
    DIVERGE,
    PATIENCE_S,
    STATE,
    FakeEngine,
    error_of,
    serving,
    until,
)
from tests.fakes.sockets import listening, request

BODY: dict[str, Any] = {"state": STATE, "actions": ACTIONS, "include": ["attribution"]}


async def test_the_answer_is_that_of_the_check_and_the_attribution(
    client: httpx.AsyncClient,
) -> None:
    plain = (await client.post("/safety-check", json={**BODY, "include": ["trajectory"]})).json()
    response = await client.post(
        "/safety-check", json={**BODY, "include": ["attribution", "trajectory"]}
    )

    answer = response.json()
    attribution = answer.pop("attribution")
    assert (response.status_code, answer) == (200, plain)
    assert attribution["baseline"] == "training_mean"
    assert attribution["groups"] == [
        {"name": "others", "contribution": 6.0, "crash_probability_without": 0.25},
        {"name": "actions", "contribution": 0.0, "crash_probability_without": 0.5},
    ]
    assert attribution["state"][1] == {
        "name": "y",
        "unit": "m",
        "baseline": 0.0,
        "contribution": 2.0,
        "gradient": 4.0,
        "spread": 1.0,
        "lower": {"value": 1.0, "crash_probability": None},
        "higher": {"value": 3.0, "crash_probability": None},
    }
    assert attribution["action"][1] == {
        "name": "lift",
        "unit": "1",
        "baseline": 0.0,
        "contribution": 1.25,
        "contribution_by_step": [0.25, 1.0],
        "gradient_by_step": [0.5, 2.0],
        "spread": 0.5,
        "lower": {"crash_probability": 0.0},
        "higher": {"crash_probability": 0.0},
    }
    assert attribution["contribution_by_step"] == [0.75, 1.5]
    assert attribution["residual"] == pytest.approx(0.0)


async def test_members_are_those_that_answer(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/safety-check", json={**BODY, "members": 1})).json()

    assert answer["attribution"]["baseline_crash_probability"] == 1.0


async def test_a_list_of_sequences_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await client.post("/safety-check", json={**BODY, "actions": [ACTIONS]})

    error = error_of(response)
    assert (response.status_code, error["details"][0]["field"]) == (422, "include")
    assert "one sequence" in error["details"][0]["allowed"]
    assert not engine.computed.count("piece")


async def test_without_being_asked_nothing_is_attributed(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    answer = (await client.post("/safety-check", json={"state": STATE, "actions": ACTIONS})).json()

    assert "attribution" not in answer
    assert not engine.computed.count("piece")


async def test_a_fault_of_the_attribution_is_an_error_of_the_engine(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    def fail() -> None:
        raise ArithmeticError("told to fail")

    engine.on_piece = fail
    response = await client.post("/safety-check", json=BODY)

    assert (response.status_code, error_of(response)["code"]) == (500, "engine_error")


async def test_the_deadline_holds_for_both(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    may_go_on = threading.Event()
    engine.on_piece = lambda: may_go_on.wait(PATIENCE_S)
    headers = {"X-Request-Timeout-Seconds": "0.05"}

    response = await client.post("/safety-check", json=BODY, headers=headers)

    may_go_on.set()
    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")


async def test_a_deadline_that_passes_is_the_callers_fault_only_if_it_could_not_be_kept(
    engine: FakeEngine,
) -> None:
    engine.costs = Costs((4096,), (0.0001,))
    may_go_on = threading.Event()

    def outcomes(text: str) -> dict[str, float]:
        return {
            sample.labels["outcome"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "world_model_outcomes_total"
            and sample.labels["endpoint"] == "attribution"
        }

    async with serving(engine) as (app, client):
        metrics = app.connections.exchanges.metrics

        def counted() -> dict[str, float]:
            return outcomes(metrics.render().decode())

        async def failed(seconds: str) -> str:
            before = counted()
            headers = {"X-Request-Timeout-Seconds": seconds}
            response = await client.post("/safety-check", json=BODY, headers=headers)
            assert response.status_code == 504
            await until(lambda: counted() != before)
            (found,) = {name for name, count in counted().items() if count > before[name]}
            return found

        engine.on_piece = lambda: may_go_on.wait(PATIENCE_S)
        assert await failed("0.05") == "late"
        may_go_on.set()
        engine.on_piece = lambda: time.sleep(0.05)  # what one takes is measured
        before = counted()
        assert (await client.post("/safety-check", json=BODY)).status_code == 200
        await until(lambda: counted() != before)
        assert await failed("0.05") == "impossible_deadline"


async def test_too_many_at_once_are_refused(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    may_go_on = threading.Event()
    engine.on_piece = lambda: may_go_on.wait(PATIENCE_S)
    calls = [
        asyncio.create_task(
            client.post("/safety-check", json=BODY, headers={"X-Forwarded-For": f"10.0.0.{k}"})
        )
        for k in range(MOST_QUESTIONS + 1)
    ]
    await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    may_go_on.set()
    answers = await asyncio.gather(*calls)

    assert sorted(answer.status_code for answer in answers) == [200] * MOST_QUESTIONS + [429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert error_of(refused)["code"] == "overloaded"


async def test_where_there_is_no_place_the_sequence_is_not_computed(engine: FakeEngine) -> None:
    may_go_on = threading.Event()
    engine.on_piece = lambda: may_go_on.wait(PATIENCE_S)
    async with serving(engine) as (app, client):
        own = app.scheduler._explanations
        calls = [asyncio.create_task(client.post("/safety-check", json=BODY)) for _ in range(4)]
        await until(lambda: len(own._waiting) == MOST_QUESTIONS // 2)
        computed = engine.computed.count("launch")
        refused = await client.post("/safety-check", json=BODY)
        assert engine.computed.count("launch") == computed
        may_go_on.set()
        assert [(await call).status_code for call in calls] == [200] * 4

    assert (refused.status_code, error_of(refused)["code"]) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1


async def test_in_the_metrics_it_is_no_safety_check(engine: FakeEngine) -> None:
    body = orjson.dumps(BODY)
    async with listening(engine) as served:
        caller = await served.caller()
        caller.send(request(body, path="/safety-check"))
        await until(lambda: served.count("200", "attribution") == 1)
        assert served.count("200", "/safety-check") == 0


async def asked_at_once(client: httpx.AsyncClient, *callers: dict[str, str]) -> list[int]:
    """Return the statuses of what these callers, by their headers, ask for at the same time."""
    calls = [client.post("/safety-check", json=BODY, headers=headers) for headers in callers]
    return [answer.status_code for answer in await asyncio.gather(*calls)]


async def test_one_caller_leaves_places_to_others(engine: FakeEngine) -> None:
    async with serving(engine, api_keys=f"one:{'a' * 16},two:{'b' * 16}") as (_, client):
        may_go_on = threading.Event()
        engine.on_piece = lambda: may_go_on.wait(PATIENCE_S)
        one, two = ({"Authorization": f"Bearer {x * 16}"} for x in "ab")
        greedy = asyncio.create_task(asked_at_once(client, *[one] * 12))
        await until(lambda: engine.computed.count("piece") == 1)
        other = asyncio.create_task(asked_at_once(client, two))
        may_go_on.set()

        assert await other == [200]
        assert sorted(await greedy) == [200] * 4 + [429] * 8


async def test_a_caller_that_sends_no_more_gives_up_its_place(engine: FakeEngine) -> None:
    """TCP cannot tell whether it has left; a short answer is waited for, an attribution is not."""
    may_go_on = threading.Event()
    engine.on_piece = lambda: may_go_on.wait(PATIENCE_S)
    body = orjson.dumps({"state": STATE, "actions": ACTIONS, "include": ["attribution"]})
    async with listening(engine) as served:
        caller = await served.caller()
        caller.send(request(body, path="/safety-check"))
        await until(lambda: engine.computed.count("piece") == 1)
        caller.half_close()
        assert await caller.rest() == b""
        await until(lambda: served.count("499", "attribution") == 1)
        assert served.app.scheduler._explanations.first is None
        may_go_on.set()
        caller = await served.caller()
        caller.send(request(body, path="/safety-check"))
        caller.half_close()  # at once
        assert await caller.rest() == b""


async def test_nothing_is_computed_for_a_caller_that_has_left(engine: FakeEngine) -> None:
    may_go_on = threading.Event()
    engine.on_piece = lambda: may_go_on.wait(PATIENCE_S)
    replies: list[Reply | None] = []
    async with serving(engine) as (app, client):
        shared = app.connections.exchanges
        exchange = Exchange(shared, "POST", "/safety-check", {}, "/safety-check")
        exchange.start(shared.head("/safety-check", {}, ""), orjson.dumps(BODY), replies.append)
        await until(lambda: engine.computed.count("piece") == 1)
        exchange.cancel()
        exchange.cancel()
        may_go_on.set()
        plain = await client.post("/safety-check", json={"state": STATE, "actions": ACTIONS})

    assert (replies, plain.status_code) == ([None], 200)
    assert engine.computed.count("piece") == 1


async def test_where_the_prediction_is_not_finite_nothing_is_attributed(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    response = await client.post("/safety-check", json={**BODY, "state": [DIVERGE, 0.0, 0.0]})

    answer = response.json()
    assert (response.status_code, answer["verdict"]) == (200, "unknown")
    assert answer["attribution"] is None
    assert not engine.computed.count("piece")
