"""Connections begin and end: too many, idle, left by their callers, at shutdown."""

from __future__ import annotations

import asyncio
import socket

import orjson
import pytest

from service.http.protocol import Protocol
from service.scheduling.jobs import JobClass
from service.server import _start_draining
from tests.fakes.engine import STATE, FakeEngine, until
from tests.fakes.sockets import BOTH_PATHS, listening, request

PROBE = request(b"", method="GET", path="/healthz")


async def test_too_many_connections_are_refused_and_idle_ones_replaced(engine: FakeEngine) -> None:
    async with listening(engine, max_connections=8) as served:
        others = [await served.caller() for _ in range(8)]
        await until(lambda: len(served.connections) == 8)
        late = await served.caller()
        refused = await late.rest()
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert orjson.loads(refused.partition(b"\r\n\r\n")[2])["error"]["code"] == "unavailable"
        assert served.count("503", "other") == 1
        for connection in served.connections:
            assert connection.idle_since_s is not None
            connection.idle_since_s -= 60.0
        served.app.connections._next_look_s = 0.0
        assert await served.is_serving()
        others[0].send(PROBE)  # it or another one was closed
        alive = [caller for caller in others[1:] if not caller._reader.at_eof()]
        assert len(alive) >= 6


async def test_of_very_many_connections_most_are_only_closed(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that is answered 503 takes a connection, too."""
    monkeypatch.setattr("service.http.lifetime._MOST_REFUSED", 3)
    monkeypatch.setattr("service.http.lifetime._LINGER_S", 60.0)
    async with listening(engine, max_connections=8) as served:
        for _ in range(8):
            await served.caller()
        await until(lambda: len(served.connections) == 8)
        refused = [await served.caller() for _ in range(5)]
        answers = await asyncio.gather(*(c.rest() for c in refused), return_exceptions=True)
        assert [bool(x) and not isinstance(x, OSError) for x in answers] == [True] * 3 + [False] * 2
        assert len(served.app.connections.refused) == 3
        assert served.count("503", "other") == 5


async def test_busy_connections_are_never_replaced(engine: FakeEngine) -> None:
    async with listening(engine, max_connections=8) as served:
        engine.gate.clear()
        busy = [await served.caller() for _ in range(8)]
        for caller in busy:
            caller.send(request())
        await until(lambda: served.busy == 8)
        late = await served.caller()
        assert (await late.rest()).startswith(b"HTTP/1.1 503 ")
        engine.gate.set()

        assert [(await caller.answer())[0] for caller in busy] == [200] * 8


async def test_a_caller_that_leaves_frees_its_place(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        await served.hold(engine)
        leaver, sibling = await served.caller(), await served.caller()
        leaver.send(request())
        sibling.send(request())
        await until(lambda: served.app.scheduler.queues.depth(JobClass.ROLLOUT) == 2)
        await leaver.leave()  # or only sends no more: TCP cannot tell, so it has a moment
        await until(lambda: served.app.scheduler.queues.depth(JobClass.ROLLOUT) == 1)
        engine.gate.set()

        assert (await sibling.answer())[0] == 200
        assert served.count("499") == 1
        assert len(engine.launches) == 2


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_caller_that_ends_within_a_request_is_refused(
    engine: FakeEngine, is_known: bool
) -> None:
    async with listening(engine) as served:
        if is_known:
            other = await served.caller()
            await other.ask(request())
            await other.leave()
            await until(lambda: not served.connections)
        caller = await served.caller()
        caller.send(request()[:-5])
        await until(lambda: served.busy == 1)
        (connection,) = served.connections
        await caller.leave()
        await until(lambda: served.count("400") == 1)

    assert connection._body == b""
    assert len(engine.launches) == is_known


async def test_only_idle_connections_are_closed(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        caller = await served.caller()
        await caller.ask(request())
        (connection,) = served.connections
        connection.timeout_keep_alive_handler()  # early: it waits for the rest of the time
        engine.gate.clear()
        caller.send(request())
        await engine.entered()
        connection.timeout_keep_alive = 0
        connection.timeout_keep_alive_handler()  # busy: it waits for the reply
        engine.gate.set()
        status, _, _ = await caller.answer()

        assert status == 200
        assert await caller.rest() == b""


async def test_a_request_under_way_is_finished_at_shutdown(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        busy, idle = await served.caller(), await served.caller()
        engine.gate.clear()
        busy.send(request())
        await engine.entered()
        served.server.should_exit = True
        assert await idle.rest() == b""
        engine.gate.set()
        status, headers, body = await busy.answer()

        assert (status, headers["connection"]) == (200, "close")
        assert orjson.loads(body)["states"][0] == STATE
        assert await busy.rest() == b""


@BOTH_PATHS
async def test_a_service_that_ends_closes_connections_by_its_answers(
    engine: FakeEngine, protocol: type[Protocol]
) -> None:
    """A kept connection is closed by an answer, never before a request that may be on its way."""
    async with listening(engine, protocol) as served:
        busy, kept = await served.caller(), await served.caller()
        await kept.ask(request())
        engine.gate.clear()
        busy.send(request())
        await engine.entered()
        engine.gate.set()
        _start_draining(served.server, served.app)
        new = await served.caller()
        for caller, raw in ((busy, b""), (kept, request()), (new, request())):
            status, headers, _ = await caller.ask(raw)
            assert (status, headers["connection"]) == (200, "close")
            assert await caller.rest() == b""


@BOTH_PATHS
async def test_a_service_that_ends_loses_no_connection(
    engine: FakeEngine, protocol: type[Protocol]
) -> None:
    """Requests are answered that wait in an idle connection, or in one that nobody accepted."""
    async with listening(engine, protocol) as served:
        kept = await served.caller()
        await kept.ask(request())
        _start_draining(served.server, served.app)
        new = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(8)]
        for connection in new:
            connection.sendall(request())
        kept.send(request())
        await served.server.shutdown(served.sockets)
        for connection in new:
            with connection, connection.makefile("rb") as answer:
                assert answer.readline() == b"HTTP/1.1 200 OK\r\n"
                assert b"connection: close\r\n" in answer.read()
        status, headers, _ = await kept.answer()
        assert (status, headers["connection"]) == (200, "close")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", served.port))


async def test_a_service_that_ends_closes_idle_connections(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        idle = await served.caller()
        await until(lambda: len(served.connections) == 1)
        await served.server.shutdown(served.sockets)
        assert await idle.rest() == b""
