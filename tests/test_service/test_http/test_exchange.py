"""What is let in over HTTP, and how it is answered: ids, limits, keys, docs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from fastapi import FastAPI

from models.road_users import ROAD_USERS, road_users_spec
from service import __version__
from service.errors import SERVICE_ERRORS
from service.http.operations import model_router
from service.http.policy import TIMEOUT_HEADER
from service.interface import ModelInfo
from service.scheduling.jobs import JobClass
from tests.fakes.engine import (
    ACTIONS,
    STATE,
    VERSION,
    FakeEngine,
    bits,
    error_of,
    expected,
    fake_info,
    fake_spec,
    rows,
    serving,
    until,
)


@pytest.mark.parametrize("path", ["/predict", "/healthz", "/nowhere"])
async def test_a_sane_request_id_is_echoed(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"X-Request-Id": "car-7/check.42"})

    assert response.headers["x-request-id"] == "car-7/check.42"


@pytest.mark.parametrize("given", ["", "a" * 129, "new\tline", "ümlaut"])
async def test_another_request_id_is_replaced(client: httpx.AsyncClient, given: str) -> None:
    response = await client.get("/healthz", headers={b"X-Request-Id": given.encode()})

    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


async def test_unknown_paths_and_methods_have_the_one_error_body(
    client: httpx.AsyncClient,
) -> None:
    lost = await client.get("/nowhere")
    hot = await client.get("/predict")
    plain = await client.post("/model")

    assert (lost.status_code, error_of(lost)["code"]) == (404, "not_found")
    assert (hot.status_code, error_of(hot)["code"]) == (405, "method_not_allowed")
    assert (plain.status_code, error_of(plain)["code"]) == (405, "method_not_allowed")
    assert (hot.headers["allow"], plain.headers["allow"]) == ("POST", "GET, HEAD")


async def test_an_invalid_body_names_the_field(client: httpx.AsyncClient) -> None:
    response = await client.post("/rollout", json={"state": STATE, "actions": [[0.5, 1.5]]})

    assert response.status_code == 422
    assert error_of(response)["details"] == [
        {"field": "actions[0][1]", "problem": "lift is 1.5", "allowed": "0 to 1"}
    ]


@pytest.mark.parametrize("given", ["0", "-1", "nan", "inf", "soon", ""])
async def test_a_bad_timeout_is_refused(client: httpx.AsyncClient, given: str) -> None:
    response = await client.post("/predict", headers={"X-Request-Timeout-Seconds": given})

    assert response.status_code == 422
    assert error_of(response)["details"][0]["field"] == "X-Request-Timeout-Seconds"


@pytest.mark.parametrize(
    ("limits", "asked_s"),
    [({}, "0.01"), ({"default_timeout_s": 0.01, "max_timeout_s": 0.01}, "50")],
    ids=["asked for", "cut to the longest allowed"],
)
async def test_a_deadline_is_answered_while_the_engine_is_busy(
    engine: FakeEngine, limits: dict[str, Any], asked_s: str
) -> None:
    async with serving(engine, **limits) as (_, client):
        engine.gate.clear()
        body, headers = {"state": STATE, "actions": ACTIONS}, {TIMEOUT_HEADER: asked_s}
        response = await client.post("/rollout", json=body, headers=headers)
        engine.gate.set()

    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")


async def test_a_full_queue_answers_429_with_retry_after(engine: FakeEngine) -> None:
    async with serving(engine, max_rows=1, queue_rows_rollout=1) as (app, client):
        body = {"state": STATE, "actions": ACTIONS}
        engine.gate.clear()
        running = asyncio.create_task(client.post("/rollout", json=body))
        await engine.entered()
        waiting = asyncio.create_task(client.post("/rollout", json=body))
        await until(lambda: app.scheduler.queues.rows(JobClass.ROLLOUT) == 1)
        refused = await client.post("/rollout", json=body)
        engine.gate.set()
        answers = await asyncio.gather(running, waiting)

    assert (refused.status_code, error_of(refused)["code"]) == (429, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_sixty_four_clients_get_their_own_answers_from_few_launches(
    engine: FakeEngine,
) -> None:
    async with serving(engine) as (_, client):
        engine.gate.clear()
        states, actions = rows(64)
        calls = [
            client.post("/rollout", json={"state": s.tolist(), "actions": a.tolist()})
            for s, a in zip(states, actions, strict=True)
        ]
        everyone = asyncio.gather(*calls)
        await engine.entered()
        engine.gate.set()
        answers = [response.json() for response in await everyone]

    truth = expected(states, actions)
    for k, answer in enumerate(answers):
        assert bits(answer["states"]) == truth.states[k].tobytes()
    assert len(engine.launches) <= 4


async def test_one_invalid_request_leaves_its_siblings_alone(engine: FakeEngine) -> None:
    async with serving(engine) as (_, client):
        states, actions = rows(8)
        calls = [
            client.post(
                "/rollout",
                content=orjson.dumps({"state": s.tolist(), "actions": a.tolist()}).replace(
                    b"[", b"[NaN," if k == 3 else b"[", 1
                ),
            )
            for k, (s, a) in enumerate(zip(states, actions, strict=True))
        ]
        answers = await asyncio.gather(*calls)

    assert [answer.status_code for answer in answers] == [200] * 3 + [422] + [200] * 4
    truth = expected(states, actions)
    assert bits(answers[7].json()["states"]) == truth.states[7].tobytes()


@pytest.mark.parametrize("path", ["/predict", "/model"])
async def test_long_bodies_are_refused(engine: FakeEngine, path: str) -> None:
    async with serving(engine, max_body_bytes=1024) as (_, client):
        response = await client.request("POST", path, content=b" " * 1025)

    assert (response.status_code, error_of(response)["code"]) == (413, "payload_too_large")
    assert "1024" in error_of(response)["message"]


async def chunks(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b" " * size


@pytest.mark.parametrize(("count", "size"), [(1, 1025), (2, 600), (100, 100)])
async def test_long_chunked_bodies_are_refused(engine: FakeEngine, count: int, size: int) -> None:
    async with serving(engine, max_body_bytes=1024) as (_, client):
        response = await client.post("/predict", content=chunks(count, size))

    assert response.status_code == 413


async def test_chunked_bodies_are_put_together(client: httpx.AsyncClient) -> None:
    body = orjson.dumps({"state": STATE, "actions": ACTIONS})

    async def parts() -> AsyncIterator[bytes]:
        for k in range(0, len(body), 7):
            yield body[k : k + 7]

    assert (await client.post("/rollout", content=parts())).status_code == 200


async def test_keys_are_asked_for_where_they_matter(engine: FakeEngine) -> None:
    async with serving(engine, api_keys="alpha, beta") as (_, client):
        body = {"state": STATE, "actions": ACTIONS}
        for given in ({}, {"Authorization": "Bearer gamma"}, {"Authorization": "Basic alpha"}):
            response = await client.post("/rollout", json=body, headers=given)
            assert (response.status_code, error_of(response)["code"]) == (401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/model")).status_code == 401
        for key in ("alpha", "beta"):
            headers = {"Authorization": f"Bearer {key}"}
            assert (await client.post("/rollout", json=body, headers=headers)).status_code == 200
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200


async def test_model_tells_all_of_the_contract(client: httpx.AsyncClient) -> None:
    model = (await client.get("/model")).json()

    assert model["dims"] == {"state": 3, "action": 2}
    assert model["spec"] == fake_spec().signature
    assert (model["name"], model["version"], model["device"]) == ("fake-model", VERSION, "cpu")
    assert model["service_version"] == __version__
    assert (model["dt_s"], model["max_horizon"], model["max_rows"]) == (0.1, 32, 64)
    assert model["thresholds"] == {
        "crash_probability": 0.5,
        "safe_below": None,
        "uncertainty": 1.0,
        "expected_error_m": None,
        "evaluated_horizon": 16,
        "guarantee": {
            "miss_rate": 0.01,
            "lead_s": 0.2,
            "episodes": 120,
            "episodes_needed": 99,
            "holds": True,
        },
    }
    assert model["metrics"] == {"auroc": 0.99}
    assert (model["saturations"], model["road_users"]) == ([], [])
    assert [f["name"] for f in model["features"]["action"]] == ["push", "lift"]
    assert model["features"]["state"][2] == {
        "name": "z",
        "unit": "m",
        "low": -100.0,
        "high": 100.0,
        "meaning": "position z",
        "trained_low": -50.0,
        "trained_high": None,
    }


async def test_model_tells_what_saturates_and_which_road_users_it_knows() -> None:
    info = replace(fake_info(), spec=road_users_spec())
    info = replace(info, limits=replace(info.limits, **wide(34)))

    model = await model_of(info)

    assert model["saturations"][0] == {
        "feature": "left_edge",
        "low": None,
        "high": 16.0,
        "reason": "an edge that far away decides nothing within the evaluated horizon",
        "unit": "m",
    }
    assert [each["kind"] for each in model["road_users"]] == [each.kind for each in ROAD_USERS]
    assert model["road_users"][0] == {
        "kind": "pedestrian",
        "length_m": [0.3, 0.8],
        "width_m": [0.3, 0.8],
    }


def wide(dim: int) -> dict[str, Any]:
    """Limits of states of any numbers."""
    names = tuple(f"state_{i}" for i in range(dim))
    return {
        "feature_names": names,
        "state_low": np.full(dim, -np.inf),
        "state_high": np.full(dim, np.inf),
    }


async def model_of(info: ModelInfo) -> Any:
    app = FastAPI()
    app.include_router(model_router(info, max_horizon=32, max_rows=64))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://test"
    ) as client:
        return (await client.get("/model")).json()


async def test_model_says_that_no_guarantee_holds_for_a_threshold_that_is_refused() -> None:
    info = replace(fake_info(), refused={"crash_threshold": 0.5})
    info = replace(info, limits=replace(info.limits, crash_threshold=None))

    thresholds = (await model_of(info))["thresholds"]

    assert thresholds["crash_probability"] is None
    assert thresholds["guarantee"]["holds"] is False


async def test_model_tells_from_which_probability_on_nothing_is_safe() -> None:
    info = fake_info()
    info = replace(info, limits=replace(info.limits, safe_below=0.25))

    thresholds = (await model_of(info))["thresholds"]

    assert (thresholds["safe_below"], thresholds["crash_probability"]) == (0.25, 0.5)


async def test_openapi_declares_every_route_with_the_models_dims(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()

    assert document["info"]["version"] == __version__
    posts = {path for path, item in document["paths"].items() if "post" in item}
    assert posts == {"/predict", "/rollout", "/safety-check"}
    assert {"/model", "/healthz", "/readyz", "/metrics"} <= set(document["paths"])
    schemas = document["components"]["schemas"]
    state = schemas["SafetyCheckRequest"]["properties"]["state"]
    assert (state["minItems"], state["maxItems"]) == (3, 3)
    assert state["examples"][0] == [0.0] * fake_spec().state_dim
    used = set(re.findall("#/components/schemas/([A-Za-z_]+)", orjson.dumps(document).decode()))
    assert used <= set(schemas)
    failures = document["paths"]["/predict"]["post"]["responses"].keys() - {"200"}
    assert failures == {str(e.status) for e in SERVICE_ERRORS} - {"403", "404", "405", "414"}
    page = await client.get("/docs")
    assert page.status_code == 200
    assert "//cdn" not in page.text
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert (await client.get(asset)).status_code == 200, asset
    assert (await client.get("/openapi.json")).json() == document
