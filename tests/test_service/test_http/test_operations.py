"""What operators see over HTTP: readiness, shutdown, logs."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest
import structlog

from service.http.operations import _Scrape
from service.scheduling.health import State
from tests.fakes.engine import ACTIONS, STATE, FakeEngine, error_of, serving, until


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
        await until(lambda: app.health.state is State.DOWN)
        ready, refused = await client.get("/readyz"), await client.post("/rollout", json=body)

    assert (ready.status_code, error_of(ready)["code"]) == (503, "unavailable")
    assert "canary" in error_of(ready)["message"]
    assert refused.status_code == 503


async def test_draining_turns_readiness_off_but_still_serves(engine: FakeEngine) -> None:
    async with serving(engine) as (app, client):
        app.health.start_draining()
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
    async with serving(engine) as (_, client):
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
        app.scheduler.queues.lanes = {}
        with structlog.testing.capture_logs() as lines:
            response = await client.post("/rollout", json={"state": STATE, "actions": ACTIONS})

    assert (response.status_code, error_of(response)["code"]) == (500, "engine_error")
    assert "KeyError" not in response.text
    assert lines[0]["event"] == "unexpected error"


async def test_scrapes_at_once_share_one_text_and_leave_time_to_others() -> None:
    times: list[float] = []

    def render() -> bytes:
        times.append(time.perf_counter())
        time.sleep(0.02)
        return b"%d" % len(times)

    scrape = _Scrape(lambda: None, render)
    first = await asyncio.gather(*(scrape.text() for _ in range(20)))
    second = await scrape.text()

    assert set(first) == {b"1"}
    assert second == b"2"
    assert times[1] - times[0] >= 0.2  # ten times as long as the first took


async def test_a_scrape_that_fails_is_answered_and_the_next_one_tried() -> None:
    texts: list[Any] = [ValueError("a bug"), b"text"]

    def render() -> bytes:
        text = texts.pop(0)
        if isinstance(text, Exception):
            raise text
        return bytes(text)

    scrape = _Scrape(lambda: None, render)
    with pytest.raises(ValueError, match="a bug"):
        await scrape.text()

    assert await scrape.text() == b"text"


async def test_what_belongs_to_the_event_loop_is_read_there_just_before_each_text() -> None:
    seen: list[tuple[str, bool]] = []

    def note(name: str) -> None:
        seen.append((name, threading.current_thread() is threading.main_thread()))

    def render() -> bytes:
        note("render")
        return b"text"

    scrape = _Scrape(lambda: note("sample"), render)
    await scrape.text()
    await asyncio.gather(scrape.text(), scrape.text())

    assert seen == [("sample", True), ("render", False)] * 2
