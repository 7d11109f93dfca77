"""What httpx cannot send: callers that leave, answers that break off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Message

from service.errors import EngineError, OverloadedError
from service.scheduling.jobs import JobClass
from service.telemetry.metrics import Registry
from tests.fakes.engine import FakeEngine, serving, until

BODY = orjson.dumps({"state": [1.0, 2.0, 3.0], "actions": [[0.5, 0.5]]})


class Connection:
    """One HTTP request at the level of ASGI."""

    def __init__(self, *messages: Message, path: str = "/rollout", method: str = "POST") -> None:
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        for message in messages:
            self.incoming.put_nowait(message)
        self.sent: list[Message] = []
        self.scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "state": {},
        }

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def run(self, app: Any) -> None:
        await app(self.scope, self.incoming.get, self.send)


def whole(body: bytes = BODY) -> Message:
    return {"type": "http.request", "body": body, "more_body": False}


GONE: Message = {"type": "http.disconnect"}


async def test_a_caller_that_leaves_frees_its_place_and_disturbs_nobody(
    engine: FakeEngine,
) -> None:
    registry = Registry()
    async with serving(engine, registry) as (app, client):
        engine.gate.clear()
        busy = asyncio.create_task(client.post("/rollout", content=BODY))
        await engine.entered()
        leaver, sibling = Connection(whole()), Connection(whole())
        tasks = [asyncio.create_task(c.run(app)) for c in (leaver, sibling)]
        await until(lambda: app.scheduler.queues.depth(JobClass.ROLLOUT) == 2)

        leaver.incoming.put_nowait(GONE)
        await tasks[0]

        assert app.scheduler.queues.depth(JobClass.ROLLOUT) == 1
        engine.gate.set()
        await asyncio.gather(busy, tasks[1])
    assert leaver.sent == []
    assert sibling.sent[0]["status"] == 200
    assert engine.launches == [(1, 1), (1, 1)]
    value = registry.get_sample_value
    left = {"endpoint": "/rollout", "code": "499"}
    assert value("world_model_requests_total", left) == 1
    assert value("world_model_rejected_total", {"reason": "cancelled"}) == 1


async def test_a_caller_that_leaves_while_sending_is_forgotten(engine: FakeEngine) -> None:
    part: Message = {"type": "http.request", "body": BODY[:9], "more_body": True}
    async with serving(engine) as (app, _):
        for connection in (Connection(part, GONE), Connection(GONE)):
            await connection.run(app)
            assert connection.sent == []


async def test_a_cancelled_request_cancels_its_job(engine: FakeEngine) -> None:
    async with serving(engine) as (app, _):
        engine.gate.clear()
        task = asyncio.create_task(Connection(whole()).run(app))
        await engine.entered()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_answer_that_was_begun_is_cut_off(engine: FakeEngine) -> None:
    async with serving(engine) as (app, _):

        async def broken(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            raise ValueError("a bug")

        app.mount("/broken", broken)
        connection = Connection(whole(), path="/broken/", method="GET")
        with pytest.raises(EngineError):
            await connection.run(app)

    assert [message["type"] for message in connection.sent] == ["http.response.start"]


async def test_bodies_of_other_routes_are_bounded_too(engine: FakeEngine) -> None:
    async with serving(engine, max_body_bytes=1024) as (app, client):

        async def reader(scope: Any, receive: Any, send: Any) -> None:
            while (await receive()).get("more_body"):
                pass
            await JSONResponse({})(scope, receive, send)

        app.mount("/reader", reader)

        async def parts(count: int) -> AsyncIterator[bytes]:
            for _ in range(count):
                yield b" " * 500

        answers = [await client.post("/reader/", content=parts(count)) for count in (2, 3)]

    assert [answer.status_code for answer in answers] == [200, 413]


async def test_other_errors_of_the_framework_get_our_body(engine: FakeEngine) -> None:
    async with serving(engine) as (app, client):

        @app.get("/odd/{status}")
        async def odd(status: int) -> None:
            raise HTTPException(status, "a reason")

        answers = [await client.get(f"/odd/{status}") for status in (401, 403, 400)]

    assert [answer.status_code for answer in answers] == [401, 403, 422]
    assert [answer.json()["error"]["message"] for answer in answers] == ["a reason"] * 3


def test_retry_after_is_in_whole_seconds_and_never_zero() -> None:
    for wait_s, header in ((0.001, "1"), (1.2, "2"), (7.0, "7")):
        assert OverloadedError("full", retry_after_s=wait_s).headers == {"Retry-After": header}
