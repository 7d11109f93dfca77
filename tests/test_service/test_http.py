"""The contract over HTTP, against the fake engine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import structlog

from models.outcomes import crash_probability, expected_returns
from service.errors import SERVICE_ERRORS
from service.metrics import Registry
from service.queues import JobClass
from tests.test_service.fakes import (
    DIVERGE,
    POISON,
    FakeEngine,
    expected,
    fake_spec,
    rows,
    serving,
    until,
)

STATE, ACTIONS = [1.0, 2.0, 3.0], [[0.5, 0.25], [0.5, 1.0]]
VERSION = "0123456789abcdef"


def bits(numbers: Any) -> bytes:
    return np.array(numbers, np.float64).astype(np.float32).tobytes()


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "details"}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    return dict(body["error"])


async def test_predict_answers_one_step_bit_for_bit(client: httpx.AsyncClient) -> None:
    states, actions = rows(1, 1, seed=7)
    body = {"state": states[0].tolist(), "action": actions[0, 0].tolist()}

    answer = (await client.post("/predict", json=body)).json()

    truth = expected(states, actions)
    assert bits(answer["next_state"]) == truth.states[0, 1].tobytes()
    assert bits(answer["reward"]) == truth.rewards[0, 0].tobytes()
    assert bits(answer["done"]) == truth.dones[0, 0].tobytes()
    assert bits(answer["uncertainty"]) == truth.uncertainty[0].tobytes()
    assert answer["model_version"] == VERSION
    assert set(answer) == {"next_state", "reward", "done", "uncertainty", "model_version"}


async def test_predict_answers_a_batch(client: httpx.AsyncClient) -> None:
    states, actions = rows(5, 1)
    body = {"state": states.tolist(), "action": actions[:, 0].tolist()}

    answer = (await client.post("/predict", json=body)).json()

    assert bits(answer["next_state"]) == expected(states, actions).states[:, 1].tobytes()
    assert [len(answer[name]) for name in ("reward", "done", "uncertainty")] == [5, 5, 5]


async def test_rollout_answers_states_rewards_and_dones(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/rollout", json={"state": STATE, "actions": ACTIONS})).json()

    truth = expected(np.array([STATE], np.float32), np.array([ACTIONS], np.float32))
    assert bits(answer["states"]) == truth.states[0].tobytes()
    assert bits(answer["rewards"]) == truth.rewards[0].tobytes()
    assert bits(answer["dones"]) == truth.dones[0].tobytes()
    assert set(answer) == {"states", "rewards", "dones", "model_version"}


async def test_rollout_answers_the_outputs_asked_for(client: httpx.AsyncClient) -> None:
    _, actions = rows(3, 4)
    outputs = ["returns", "crash_probability", "uncertainty", "final_state"]
    body = {"state": STATE, "actions": actions.tolist(), "outputs": outputs}

    answer = (await client.post("/rollout", json=body)).json()

    truth = expected(np.array([STATE] * 3, np.float32), actions)
    assert set(answer) == {*outputs, "model_version"}
    assert answer["returns"] == expected_returns(truth.rewards, truth.dones).tolist()
    assert answer["crash_probability"] == crash_probability(truth.dones).tolist()
    assert bits(answer["uncertainty"]) == truth.uncertainty.tobytes()
    assert bits(answer["final_state"]) == truth.states[:, -1].tobytes()


async def test_outputs_of_one_sequence_are_scalars(client: httpx.AsyncClient) -> None:
    body = {"state": STATE, "actions": ACTIONS, "outputs": ["returns", "uncertainty"]}

    answer = (await client.post("/rollout", json=body)).json()

    assert [type(answer["returns"]), type(answer["uncertainty"])] == [float, float]


@pytest.mark.parametrize(
    ("state", "threshold", "verdict", "rule"),
    [
        ([1.0, 2.0, 3.0], 0.9, "safe", None),
        ([1.0, 2.0, 3.0], 0.01, "unsafe", "crash_probability"),
        ([1.0, 40.0, 3.0], 0.9, "unknown", "uncertain"),
        ([99.0, 2.0, 3.0], 0.9, "unknown", "input_out_of_range"),
        ([DIVERGE, 2.0, 3.0], 0.9, "unknown", "not_finite"),
    ],
)
async def test_safety_check_judges(
    client: httpx.AsyncClient, state: list[float], threshold: float, verdict: str, rule: str | None
) -> None:
    body = {"state": state, "actions": ACTIONS, "threshold": threshold}

    answer = (await client.post("/safety-check", json=body)).json()

    assert (answer["verdict"], answer["threshold"]) == (verdict, threshold)
    assert rule in ([reason["rule"] for reason in answer["reasons"]] or [None])
    assert len(answer["crash_probability_by_step"]) == 2
    assert answer["horizon_s"] == pytest.approx(0.2)
    assert answer["model_version"] == VERSION
    assert "trajectory" not in answer


async def test_safety_check_uses_the_checkpoints_threshold(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/safety-check", json={"state": STATE, "actions": ACTIONS})).json()

    assert answer["threshold"] == 0.5


async def test_safety_check_includes_the_trajectory(client: httpx.AsyncClient) -> None:
    body = {"state": STATE, "actions": ACTIONS, "include": ["trajectory"]}

    answer = (await client.post("/safety-check", json=body)).json()

    assert np.shape(answer["trajectory"]) == (3, 3)


async def test_safety_check_of_candidates_names_the_best(client: httpx.AsyncClient) -> None:
    actions = [[[1.0, 0.0]] * 3, [[-1.0, 0.0]] * 3, [[0.0, 0.0]] * 3]
    body = {"state": [5.0, 0.0, 0.0], "actions": actions, "include": ["trajectory"]}

    answer = (await client.post("/safety-check", json=body)).json()

    probabilities = [entry["crash_probability"] for entry in answer["candidates"]]
    assert answer["best"] == probabilities.index(min(probabilities)) == 1
    assert set(answer) == {"candidates", "best", "model_version"}
    assert all("trajectory" in entry for entry in answer["candidates"])


async def test_a_diverged_prediction_is_an_engine_error(client: httpx.AsyncClient) -> None:
    body = {"state": [STATE, [DIVERGE, 2.0, 3.0]], "actions": ACTIONS}

    response = await client.post("/rollout", json=body)

    assert response.status_code == 500
    assert error_of(response)["message"].startswith("non-finite prediction in row 1")


async def test_an_engine_fault_is_an_engine_error(client: httpx.AsyncClient) -> None:
    response = await client.post("/rollout", json={"state": [POISON, 0, 0], "actions": ACTIONS})

    assert (response.status_code, error_of(response)["code"]) == (500, "engine_error")


async def test_answers_tell_what_they_took(client: httpx.AsyncClient) -> None:
    response = await client.post("/rollout", json={"state": STATE, "actions": ACTIONS})

    timing = response.headers["server-timing"]
    assert re.fullmatch(r"queue;dur=\d+\.\d{3}, compute;dur=\d+\.\d{3}", timing)


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
    assert (hot.headers["allow"], plain.headers["allow"]) == ("POST", "GET")


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


async def test_a_deadline_is_answered_while_the_engine_is_busy(engine: FakeEngine) -> None:
    async with serving(engine) as (_, client):
        engine.gate.clear()
        response = await client.post(
            "/rollout",
            json={"state": STATE, "actions": ACTIONS},
            headers={"X-Request-Timeout-Seconds": "0.01"},
        )
        engine.gate.set()

    assert (response.status_code, error_of(response)["code"]) == (504, "deadline_exceeded")


async def test_a_longer_timeout_than_allowed_is_cut(engine: FakeEngine) -> None:
    async with serving(engine, default_timeout_s=0.01, max_timeout_s=0.01) as (_, client):
        engine.gate.clear()
        response = await client.post(
            "/rollout",
            json={"state": STATE, "actions": ACTIONS},
            headers={"X-Request-Timeout-Seconds": "50"},
        )
        engine.gate.set()

    assert "within 0.01 s" in error_of(response)["message"]


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
    assert (model["name"], model["version"], model["device"]) == ("fake-model", VERSION, "cpu")
    assert (model["dt_s"], model["max_horizon"], model["max_rows"]) == (0.1, 32, 64)
    assert model["thresholds"] == {
        "crash_probability": 0.5,
        "uncertainty": 1.0,
        "evaluated_horizon": 16,
    }
    assert model["metrics"] == {"auroc": 0.99}
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


async def test_openapi_declares_every_route_with_the_models_dims(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()

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
    assert failures == {str(e.status) for e in SERVICE_ERRORS} - {"403", "404", "405"}
    assert (await client.get("/docs")).status_code == 200
    assert (await client.get("/openapi.json")).json() == document


async def test_docs_can_be_switched_off(engine: FakeEngine) -> None:
    async with serving(engine, docs=False) as (_, client):
        answers = [await client.get(path) for path in ("/docs", "/openapi.json")]

    assert [answer.status_code for answer in answers] == [404, 404]


async def test_alive_and_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "alive"}
    assert (await client.get("/readyz")).json() == {"status": "ready"}


async def test_a_dead_engine_turns_readiness_off(engine: FakeEngine) -> None:
    async with serving(engine) as (app, client):
        engine.is_broken = True
        body = {"state": STATE, "actions": ACTIONS}
        assert (await client.post("/rollout", json=body)).status_code == 500
        for _ in range(3):
            await engine.checked()
        await until(lambda: not app.scheduler.vitals.is_alive)
        ready, refused = await client.get("/readyz"), await client.post("/rollout", json=body)

    assert (ready.status_code, error_of(ready)["code"]) == (503, "unavailable")
    assert "canary" in error_of(ready)["message"]
    assert refused.status_code == 503


async def test_draining_turns_readiness_off_but_still_serves(engine: FakeEngine) -> None:
    async with serving(engine) as (app, client):
        app.readiness.start_draining()
        ready = await client.get("/readyz")
        alive = await client.get("/healthz")
        served = await client.post("/rollout", json={"state": STATE, "actions": ACTIONS})

    assert [r.status_code for r in (ready, alive, served)] == [503, 200, 200]
    assert "shutting down" in error_of(ready)["message"]


async def test_requests_after_the_end_are_unavailable(engine: FakeEngine) -> None:
    async with serving(engine) as (_, client):
        pass

    transport = client._transport
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as late:
        response = await late.post("/rollout", json={"state": STATE, "actions": ACTIONS})

    assert (response.status_code, error_of(response)["code"]) == (503, "unavailable")


async def test_work_that_outlasts_the_shutdown_is_answered(engine: FakeEngine) -> None:
    async with serving(engine, shutdown_timeout_s=0.05) as (_, client):
        engine.gate.clear()
        call = asyncio.create_task(
            client.post("/rollout", json={"state": STATE, "actions": ACTIONS})
        )
        await engine.entered()

    assert (await call).status_code == 503


async def test_a_failure_is_logged_once_with_id_and_code(engine: FakeEngine) -> None:
    async with serving(engine) as (_, client):
        with structlog.testing.capture_logs() as lines:
            await client.post("/rollout", json={"state": STATE, "actions": ACTIONS})
            assert lines == []
            await client.post("/rollout", content=b"{", headers={"X-Request-Id": "abc"})

    assert [(line["request_id"], line["code"], line["log_level"]) for line in lines] == [
        ("abc", "invalid_request", "info")
    ]


async def test_a_fault_of_ours_has_the_one_error_body(engine: FakeEngine) -> None:
    async with serving(engine) as (app, client):
        app.scheduler.queues.has_room = None  # type: ignore[method-assign, assignment]
        with structlog.testing.capture_logs() as lines:
            response = await client.post("/rollout", json={"state": STATE, "actions": ACTIONS})

    assert (response.status_code, error_of(response)["code"]) == (500, "engine_error")
    assert "TypeError" not in response.text
    assert lines[0]["event"] == "unexpected error"


async def test_metrics_tell_what_happened(engine: FakeEngine) -> None:
    registry = Registry()
    async with serving(engine, registry) as (_, client):
        body = {"state": STATE, "actions": [ACTIONS] * 3}
        await client.post("/safety-check", json=body)
        await client.post("/rollout", content=b"{")
        await client.get("/random/path")
        text = (await client.get("/metrics")).text
        assert registry.get_sample_value("world_model_ready") == 1

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"world_model_{name}", labels)

    assert value("requests_total", endpoint="/safety-check", code="200") == 1
    assert value("requests_total", endpoint="/rollout", code="422") == 1
    assert value("requests_total", endpoint="other", code="404") == 1
    assert value("request_seconds_count", endpoint="/safety-check") == 1
    assert [value("stage_seconds_count", stage=s) for s in ("parse", "queue", "compute")] == [1] * 3
    assert (value("batch_rows_sum"), value("batch_requests_sum")) == (3, 1)
    assert value("safety_verdicts_total", verdict="safe") == 3
    assert (value("crash_probability_count"), value("uncertainty_count")) == (3, 3)
    assert (value("ready"), value("queue_depth", **{"class": "safety"})) == (0, 0)
    assert "/random/path" not in text
