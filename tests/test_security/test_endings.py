"""The end of the service: connections close when their answers are read, and logs name no fault."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

import orjson
import pytest

from service.http.protocol import Protocol
from service.server import _cut_off, _start_draining
from service.telemetry.metrics import Metrics
from tests.fakes.engine import FakeEngine, rows, until
from tests.fakes.sockets import BOTH_PATHS, listening, request


async def test_a_connection_closes_when_a_long_answer_that_had_begun_is_read(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head was sent before the end, and did not say that the connection closes."""
    monkeypatch.setattr("service.http.answers._NUMBERS_AT_ONCE", 50)
    states, actions = rows(64, 32)
    body = orjson.dumps({"state": states.tolist(), "actions": actions.tolist()})
    async with listening(engine, max_body_bytes=2**20) as served:
        caller = await served.caller()
        engine.gate.clear()
        caller.send(request(body))
        await engine.entered()
        (taken,) = served.connections
        taken.pause_writing()  # as the transport does when its buffer is full
        engine.gate.set()
        await until(lambda: taken._request is not None and taken._request.parts is not None)
        idle = await served.caller()
        await until(lambda: len(served.connections) == 2)
        _start_draining(served.server, served.app)
        ending = asyncio.create_task(served.server.shutdown(served.sockets))
        assert await idle.rest() == b""
        taken.resume_writing()
        status, headers, _ = await caller.answer()
        assert (status, headers.get("connection")) == (200, None)
        async with asyncio.timeout(5):
            assert await caller.rest() == b""
            await ending


BODY_TO_COME = request(b"{", length=9)


def faults(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what uvicorn has logged as a fault."""
    return [x.getMessage() for x in caplog.records if x.levelno > logging.WARNING]


@BOTH_PATHS
async def test_a_body_that_is_cut_off_at_the_end_is_no_fault(
    engine: FakeEngine, protocol: type[Protocol], caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(engine, protocol) as served:
        caller = await served.caller()
        caller.send(BODY_TO_COME)
        await until(lambda: served.busy == 1)
        for _ in range(5):  # its task begins
            await asyncio.sleep(0)
        await _cut_off(served.server)
        with contextlib.suppress(ConnectionResetError):
            assert await caller.rest() == b""
        await until(lambda: not served.server.server_state.tasks)
        assert faults(caplog) == []
        assert served.count("499") == 1


async def test_an_answer_that_is_cut_off_at_the_end_is_no_fault(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that is made without looking whether its caller is still there."""
    gate = threading.Event()
    monkeypatch.setattr(Metrics, "render", lambda _: gate.wait(20))
    async with listening(engine) as served:
        caller = await served.caller()
        caller.send(request(b"", method="GET", path="/metrics"))
        await until(lambda: served.busy == 1)
        for _ in range(5):  # its task begins
            await asyncio.sleep(0)
        await _cut_off(served.server)
        await until(lambda: not served.server.server_state.tasks)
        gate.set()

    assert faults(caplog) == []
