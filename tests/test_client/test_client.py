from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from service.errors import (
    SERVICE_ERRORS,
    EngineError,
    InvalidRequestError,
    OverloadedError,
    ServiceError,
    UnreachableError,
)
from tests.fakes.engine import FakeEngine, expected, rows, serving
from world_model_client import AsyncClient, Client


def answering(
    status: int,
    content: bytes,
    headers: dict[str, str] | None = None,
    base_url: Any = "http://car",
    **arguments: Any,
) -> tuple[Client, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, content=content, headers=headers)

    arguments = {"api_key": "hush", **arguments}
    return Client(base_url, transport=httpx.MockTransport(answer), **arguments), seen


CALLS: dict[str, tuple[str, Callable[[Client], Any], dict[str, Any]]] = {
    "predict": ("/predict", lambda c: c.predict([1.0], [2]), {"state": [1.0], "action": [2.0]}),
    "rollout": (
        "/rollout",
        lambda c: c.rollout([1.0], [[2]], outputs=["returns"], members=1),
        {"state": [1.0], "actions": [[2.0]], "outputs": ["returns"], "members": 1},
    ),
    "safety_check": (
        "/safety-check",
        lambda c: c.safety_check([1.0], [[2]], threshold=0.1, include=["trajectory"], members=2),
        {
            "state": [1.0],
            "actions": [[2.0]],
            "threshold": 0.1,
            "include": ["trajectory"],
            "members": 2,
        },
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_send_what_the_contract_says(call: str) -> None:
    path, make, body = CALLS[call]
    client, seen = answering(200, b'{"model_version": "v"}')
    with client:
        assert make(client) == {"model_version": "v"}

    assert (seen[0].method, seen[0].url.path) == ("POST", path)
    assert orjson.loads(seen[0].content) == body
    assert seen[0].headers["authorization"] == "Bearer hush"


def test_a_deadline_becomes_a_header() -> None:
    client, seen = answering(200, b"{}")
    client.predict([1.0], [2.0], timeout_s=0.5)

    assert seen[0].headers["x-request-timeout-seconds"] == "0.5"


@pytest.mark.parametrize("kind", SERVICE_ERRORS, ids=lambda kind: kind.code)
def test_each_code_is_raised_as_its_class(kind: type[ServiceError]) -> None:
    sent = kind("a sentence", [{"field": "state", "problem": "bad"}])
    client, _ = answering(kind.status, orjson.dumps(sent.body()), {"retry-after": "7"})

    with pytest.raises(kind, match="a sentence") as caught:
        client.model()

    assert caught.value.details == [{"field": "state", "problem": "bad"}]
    if isinstance(caught.value, OverloadedError):
        assert caught.value.retry_after_s == 7.0


def test_an_unknown_code_is_an_engine_error() -> None:
    body = b'{"error": {"code": "new", "message": "m", "details": []}}'
    with pytest.raises(EngineError, match="m"):
        answering(500, body)[0].model()


@pytest.mark.parametrize("content", [b"<html>", b'{"detail": 1}', b"[]"])
def test_something_else_that_answers_is_unreachable(content: bytes) -> None:
    with pytest.raises(UnreachableError, match="answered 502"):
        answering(502, content)[0].model()


def refusing(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused")


async def test_no_answer_is_unreachable() -> None:
    client = Client("http://car", transport=httpx.MockTransport(refusing))
    with pytest.raises(UnreachableError, match="no answer from http://car"):
        client.model()
    assert not client.ready()
    async with AsyncClient("http://car", transport=httpx.MockTransport(refusing)) as other:
        with pytest.raises(UnreachableError, match="no answer"):
            await other.model()
        assert not await other.ready()


def test_readiness_is_answered() -> None:
    assert answering(200, b'{"status": "ready"}')[0].ready()


async def test_the_async_client_talks_to_the_service(engine: FakeEngine) -> None:
    states, actions = rows(2)
    async with serving(engine) as (app, _):
        transport = httpx.ASGITransport(app)
        async with AsyncClient("http://car", transport=transport) as client:
            predicted = await client.predict(states[0], actions[0, 0])
            rolled = await client.rollout(states, actions, outputs=["states"], timeout_s=5)
            checked = await client.safety_check(states[0], actions)
            model = await client.model()
            is_ready = await client.ready()
            with pytest.raises(InvalidRequestError) as caught:
                await client.rollout(states[0], actions[:, :0])

    assert len(predicted["next_state"]) == 3
    seen = np.array(rolled["states"]).astype(np.float32)
    assert seen.tobytes() == expected(states, actions).states.tobytes()
    assert len(checked["candidates"]) == 2
    assert (model["name"], is_ready) == ("fake-model", True)
    assert caught.value.details[0]["field"] == "actions[0]"
