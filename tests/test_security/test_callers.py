"""Callers that send too much, too slowly, or do not read: each is bounded, and harms nobody."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
import weakref
from collections.abc import Generator
from typing import Any

import orjson
import pytest

from service.errors import EngineError
from service.http.protocol import Protocol
from service.http.reading.bodies import AT_ONCE_BYTES, BodyParser
from service.scheduling.jobs import JobClass
from service.server import _start_draining
from tests.fakes.engine import STATE, FakeEngine, bits, expected, rows, until
from tests.fakes.sockets import BODY, BOTH_PATHS, Caller, Listening, listening, request

PROBE = request(b"", method="GET", path="/healthz")
HEAD_LIMIT = 1024


async def status_of(caller: Caller) -> int:
    """Return the status of the one answer after which the server closes the connection."""
    answer = await caller.rest()
    (status,) = re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert b"connection: close" in answer
    return int(status)


ENDLESS: dict[str, tuple[bytes, bytes, int]] = {
    "target": (b"GET /", b"x" * 100, 414),
    "method": (b"", b"G" * 100, 414),
    "header": (b"GET / HTTP/1.1\r\nX: ", b"x" * 100, 431),
    "headers": (b"GET / HTTP/1.1\r\n", b"X: x\r\n" * 20, 431),
    "headers of a prediction": (request(b"")[:-2], b"X: x\r\n" * 20, 431),
    "trailers": (
        request(b"0\r\n", "Transfer-Encoding: chunked", length=-1), b"X: x\r\n" * 20, 431
    ),
    "trailers of a probe": (
        request(b"0\r\n", "Transfer-Encoding: chunked", method="GET", path="/healthz", length=-1),
        b"X: x\r\n" * 20,
        200,
    ),
    "chunk extension": (
        request(b"1;", "Transfer-Encoding: chunked", length=-1), b"x" * 100, 431
    ),
    "chunk size": (request(b"", "Transfer-Encoding: chunked", length=-1), b"0" * 100, 431),
    "body": (request(b"", "Transfer-Encoding: chunked", length=-1), b"a\r\n0123456789\r\n", 413),
    "target in a whole head": (b"GET /" + b"x" * HEAD_LIMIT + b" HTTP/1.1\r\n\r\n", b"x", 414),
    "header in a whole head": (
        b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_LIMIT + b"\r\n\r\n", b"x", 431
    ),
    "empty lines": (b"", b"\r\n", 400),
}  # fmt: skip


@BOTH_PATHS
@pytest.mark.parametrize("name", ENDLESS)
async def test_nothing_may_be_endless(
    engine: FakeEngine, protocol: type[Protocol], name: str
) -> None:
    begin, piece, expected_status = ENDLESS[name]
    async with listening(engine, protocol, max_head_bytes=HEAD_LIMIT, head_timeout_s=1.0) as served:
        caller = await served.caller()
        caller.send(begin)
        reading = asyncio.create_task(caller.answer())
        sent = len(begin)
        while not reading.done() and sent < 2**22:
            caller.send(piece)
            sent += len(piece)
            await asyncio.sleep(0)
            assert sum(len(x._input) for x in served.connections) <= HEAD_LIMIT + 2**18
        status, _, body = await reading
        assert await served.is_serving()

    codes = {
        200: None,  # a probe is answered whatever follows, and the connection closed then
        400: "bad_request",
        408: "request_timeout",
        413: "payload_too_large",
        414: "uri_too_long",
        431: "headers_too_large",
    }
    assert status == expected_status
    assert orjson.loads(body).get("error", {}).get("code") == codes[status]


SLOW = {
    "nothing of a head": (b"", None),
    "part of a head": (request()[:40], 408),
    "part of a body": (request()[:-30], 408),
    "part of a chunk": (
        request(b"5\r\n12", "Transfer-Encoding: chunked", length=-1), 408
    ),
    "part of a probe's body": (
        request(b"12", method="GET", path="/healthz", length=5), None
    ),
}  # fmt: skip


@BOTH_PATHS
@pytest.mark.parametrize("is_trickling", [False, True], ids=["silent", "trickling"])
@pytest.mark.parametrize("name", SLOW)
async def test_what_never_ends_is_ended(
    engine: FakeEngine, protocol: type[Protocol], name: str, is_trickling: bool
) -> None:
    begin, status = SLOW[name]
    limits: dict[str, Any] = {"head_timeout_s": 0.2, "body_timeout_s": 0.2, "idle_timeout_s": 1}
    async with listening(engine, protocol, **limits) as served:
        caller = await served.caller()
        caller.send(begin)
        reading = asyncio.create_task(caller.rest())
        while is_trickling and begin and not reading.done():
            caller.send(b"1")
            await asyncio.sleep(0.05)
            if status is None or name == "part of a chunk":
                break
        async with asyncio.timeout(10):
            answer = await reading
        await until(lambda: not served.connections)

    statuses = [int(s) for s in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
    if name == "part of a head" and is_trickling:
        assert statuses in ([400], [408])  # what trickles in need not be a head
    elif status is not None:
        assert statuses == [status]
    else:
        assert statuses in ([], [200])


async def test_known_heads_have_the_same_time(engine: FakeEngine) -> None:
    async with listening(engine, body_timeout_s=0.2) as served:
        caller = await served.caller()
        await caller.ask(request())
        caller.send(request()[:-5])

        assert await status_of(caller) == 408
        assert served.count("408") == 1


@BOTH_PATHS
async def test_a_caller_that_sends_ahead_is_left_waiting(
    engine: FakeEngine, protocol: type[Protocol]
) -> None:
    """What a caller sends before its first request is answered is not worked on."""
    async with listening(engine, protocol) as served:
        caller = await served.caller()
        engine.gate.clear()
        caller.send(request())
        await engine.entered()
        caller.send(PROBE * 4000)  # 0.4 MB
        (connection,) = served.connections
        await until(lambda: connection.flow.read_paused)
        for _ in range(50):
            await asyncio.sleep(0.001)
            assert len(connection._input) <= 2**18
        assert not connection.pipeline
        engine.gate.set()
        statuses = [(await caller.answer())[0] for _ in range(4001)]

    assert statuses == [200] * 4001


@BOTH_PATHS
async def test_others_get_their_turn_between_requests_sent_at_once(
    engine: FakeEngine, protocol: type[Protocol]
) -> None:
    """Refused requests are answered without a wait, and yet one each time round the loop."""
    async with listening(engine, protocol) as served:
        caller, other = await served.caller(), await served.caller()
        await caller.ask(request(b"{") * 500)
        assert (await other.ask(request()))[0] == 200
        refused = served.count("422")
        for _ in range(499):
            assert (await caller.answer())[0] == 422

    assert refused is not None
    assert refused < 450


@BOTH_PATHS
async def test_a_caller_that_does_not_read_is_not_worked_for(
    engine: FakeEngine, protocol: type[Protocol]
) -> None:
    async with listening(engine, protocol, max_body_bytes=2**20) as served:
        caller = await served.caller()
        caller._reader._transport.pause_reading()  # type: ignore[attr-defined]
        caller.send(request(long_body()) * 300)  # answers of 100 kB each
        (connection,) = served.connections
        await until(lambda: connection.flow.write_paused)
        written = connection.server_state.total_requests
        for _ in range(50):
            await asyncio.sleep(0.002)
        assert connection.server_state.total_requests <= written + 1
        assert connection.unread_bytes < 2**18
        assert await served.is_serving()
        caller.reset()


async def test_an_answer_that_nobody_reads_is_cut_off(engine: FakeEngine) -> None:
    states, actions = rows(64, 32)
    body = orjson.dumps({"state": states.tolist(), "actions": actions.tolist()})
    async with listening(engine, answer_timeout_s=0.3, max_body_bytes=2**20) as served:
        caller = await served.caller()
        caller._reader._transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(200):
            caller.send(request(body))
        async with asyncio.timeout(20):
            await until(lambda: not served.connections)
        assert await served.is_serving()


@BOTH_PATHS
async def test_a_long_answer_is_the_same_as_a_short_one(
    engine: FakeEngine, protocol: type[Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, actions = rows(37, 8)
    fields = {"actions": actions.tolist()}
    asked = {
        "/rollout": {"state": states.tolist(), **fields},
        "/safety-check": {"state": STATE, **fields, "include": ["trajectory"]},
        "/predict": {"state": states.tolist(), "action": actions[:, 0].tolist()},
    }
    outputs = ["states", "rewards", "dones", "returns", "crash_probability", "uncertainty"]
    asked["/rollout"]["outputs"] = [*outputs, "final_state", "states"]
    answers: list[dict[str, Any]] = []
    for numbers in (2**14, 50):
        monkeypatch.setattr("service.http.answers._NUMBERS_AT_ONCE", numbers)
        async with listening(engine, protocol, max_body_bytes=2**20) as served:
            caller = await served.caller()
            for path, body in asked.items():
                status, headers, text = await caller.ask(request(orjson.dumps(body), path=path))
                assert status == 200
                is_long = headers.get("transfer-encoding") == "chunked"
                assert is_long is (numbers == 50)
                answers.append({"path": path, "text": text})
            assert served.count("200") == 1

    assert answers[:3] == answers[3:]
    truth = expected(states, actions)
    assert bits(orjson.loads(answers[0]["text"])["states"]) == truth.states.tobytes()


async def test_an_old_caller_gets_a_long_answer_in_one_piece(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http.answers._NUMBERS_AT_ONCE", 50)
    states, actions = rows(37, 8)
    body = orjson.dumps({"state": states.tolist(), "actions": actions.tolist()})
    async with listening(engine, max_body_bytes=2**20) as served:
        caller = await served.caller()
        caller.send(request(body, version="1.0"))
        answer = await caller.rest()

    head, _, text = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert b"content-length: %d" % len(text) in head
    assert bits(orjson.loads(text)["states"]) == expected(states, actions).states.tobytes()


async def test_a_fault_within_a_long_answer_cuts_it_off(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        raise EngineError("a bug")

    monkeypatch.setattr("service.http.answers._NUMBERS_AT_ONCE", 50)
    monkeypatch.setattr("service.http.answers._entries", broken)
    body = orjson.dumps({"state": STATE, "actions": [[[0.5, 0.5]] * 4] * 60})
    async with listening(engine, max_body_bytes=2**20) as served:
        caller = await served.caller()
        caller.send(request(body, path="/safety-check"))
        answer = await caller.rest()
        assert await served.is_serving()

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert not answer.endswith(b"0\r\n\r\n")


async def test_a_caller_that_leaves_a_long_answer_frees_it(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http.answers._NUMBERS_AT_ONCE", 50)
    states, actions = rows(64, 32)
    body = orjson.dumps({"state": states.tolist(), "actions": actions.tolist()})
    async with listening(engine, max_body_bytes=2**20) as served:
        caller = await served.caller()
        caller.send(request(body))
        await until(lambda: any(w._request and w._request.parts for w in served.connections))
        caller.reset()
        await until(lambda: not served.connections)
        assert served.count("499") == 1
        assert await served.is_serving()


CHUNKED = request(b"", "Transfer-Encoding: chunked", length=-1)


def in_chunks(body: bytes, size: int) -> bytes:
    """Return a body in chunks of so many bytes."""
    pieces = [body[k : k + size] for k in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@BOTH_PATHS
@pytest.mark.parametrize("filler", [b" ", b"\n"], ids=["spaces", "empty lines"])
async def test_others_get_their_turn_while_tiny_chunks_are_parsed(
    engine: FakeEngine, protocol: type[Protocol], filler: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http.chunks._MOST_LINES", 4)
    monkeypatch.setattr("service.http.input._TURN_S", 0.0)
    body = filler * 20_000 + long_body()
    async with listening(engine, protocol, max_body_bytes=2**18) as served:
        callers = [await served.caller() for _ in range(4)]
        other = await served.caller()
        for caller in callers:
            caller.send(CHUNKED + in_chunks(body, 1))
        await until(lambda: any(connection._has_turn for connection in served.connections))
        assert (await other.ask(request()))[0] == 200
        assert served.count("200") == 1, "a long body was answered first"
        answers = [await caller.answer() for caller in callers]

    assert [status for status, _, _ in answers] == [200] * 4


@BOTH_PATHS
@pytest.mark.parametrize("size", [1, 3, 100, 10_000])
async def test_a_body_means_the_same_in_any_chunks(
    engine: FakeEngine, protocol: type[Protocol], size: int
) -> None:
    body = BODY.replace(b",", b",\n\n", 3)
    async with listening(engine, protocol) as served:
        raw = CHUNKED + in_chunks(body, size)
        for cut in (len(raw), len(CHUNKED) + 1, len(raw) - 1):
            caller = await served.caller()
            for part in (raw[:cut], raw[cut:], request()):
                caller.send(part)
                await asyncio.sleep(0)
            assert [(await caller.answer())[2] for _ in range(2)] == [
                (await (await asked(served, request(body))).answer())[2]
            ] * 2


async def asked(served: Listening, raw: bytes) -> Caller:
    caller = await served.caller()
    caller.send(raw)
    return caller


GONE = {
    "answered": request(),
    "refused": request(key="beta"),
    "not HTTP": b"nonsense\r\n\r\n",
    "in the middle of a head": request()[:20],
    "in the middle of a body": request()[:-10],
    "in the middle of chunks": CHUNKED + b"5\r\n123",
    "nothing sent": b"",
    "waiting for its answer": request(),
}


@BOTH_PATHS
@pytest.mark.parametrize("name", GONE)
async def test_nothing_is_left_of_a_connection_that_is_gone(
    engine: FakeEngine, protocol: type[Protocol], name: str
) -> None:
    """Not even until garbage is collected: that comes seldom, and bodies are big."""
    async with listening(engine, protocol) as served:
        caller = await served.caller()
        await until(lambda: len(served.connections) == 1)
        gone = weakref.ref(served.connections[0])
        gc.collect()
        gc.disable()
        try:
            if name == "waiting for its answer":
                engine.gate.clear()
            caller.send(GONE[name])
            if name == "answered":
                await caller.answer()
            for _ in range(5):
                await asyncio.sleep(0)
            await caller.leave()
            engine.gate.set()
            await until(lambda: gone() is None)
        finally:
            gc.enable()


@pytest.mark.parametrize(("count", "job_class"), [(32, "safety"), (33, "rollout")])
async def test_a_big_safety_check_does_not_hold_up_small_ones(
    engine: FakeEngine, count: int, job_class: str
) -> None:
    body = orjson.dumps({"state": STATE, "actions": [[[0.5, 0.5]] * 32] * count})
    async with listening(engine, max_body_bytes=2**20) as served:
        engine.gate.clear()
        (await served.caller()).send(request())
        await engine.entered()
        caller = await served.caller()
        caller.send(request(body, path="/safety-check"))
        depth = served.app.scheduler.queues.depth
        await until(lambda: depth(JobClass(job_class)) == 1)
        engine.gate.set()
        status, _, text = await caller.answer()

    assert status == 200
    assert len(orjson.loads(text)["candidates"]) == count


# Long bodies.


def long_body(count: int = 64, horizon: int = 32) -> bytes:
    """Return a valid body that is read in several slices."""
    states, actions = rows(count, horizon)
    body = orjson.dumps({"state": states.tolist(), "actions": actions.tolist()})
    assert len(body) > 2 * AT_ONCE_BYTES
    return body


class Slices:
    """Holds long bodies between two of their slices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.are_held = True
        self.begun = 0
        in_slices = BodyParser.in_slices

        def held(parser: BodyParser, kind: Any, body: bytes) -> Generator[None, None, Any]:
            self.begun += 1
            while self.are_held:
                yield
            return (yield from in_slices(parser, kind, body))

        monkeypatch.setattr(BodyParser, "in_slices", held)


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> Slices:
    return Slices(monkeypatch)


@BOTH_PATHS
async def test_others_are_answered_while_a_long_body_is_read(
    engine: FakeEngine, protocol: type[Protocol], slices: Slices
) -> None:
    async with listening(engine, protocol, max_body_bytes=2**20) as served:
        caller = await served.caller()
        caller.send(request(long_body()))
        await until(lambda: slices.begun == 1)
        assert await served.is_serving()
        slices.are_held = False
        status, _, text = await caller.answer()

    assert status == 200
    assert bits(orjson.loads(text)["states"]) == expected(*rows(64, 32)).states.tobytes()


@BOTH_PATHS
async def test_a_caller_may_leave_while_its_long_body_is_read(
    engine: FakeEngine, protocol: type[Protocol], slices: Slices
) -> None:
    async with listening(engine, protocol, max_body_bytes=2**20) as served:
        caller = await served.caller()
        caller.send(request(long_body()))
        await until(lambda: slices.begun == 1)
        caller.reset()
        await until(lambda: served.count("499") == 1)
        assert await served.is_serving()

    assert len(engine.launches) == 1


async def test_who_sends_fast_is_read_once_each_time_round_the_loop(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libuv reads up to 32 times in a row, in which nobody else is answered."""
    reads: list[int] = [0]
    take = Protocol.data_received

    def counting(self: Protocol, data: bytes) -> None:
        if reads[-1] == 0:
            asyncio.get_running_loop().call_soon(reads.append, 0)
        reads[-1] += 1
        take(self, data)

    monkeypatch.setattr(Protocol, "data_received", counting)
    body = long_body().ljust(2**23)
    async with listening(engine, max_body_bytes=2**24) as served:

        def send() -> bytes:
            with socket.create_connection(("127.0.0.1", served.port)) as connection:
                for _ in range(3):  # the first head is not known, the others are
                    connection.sendall(request(body))
                    answer = connection.recv(2**16)
                return answer

        assert (await asyncio.to_thread(send)).startswith(b"HTTP/1.1 422 ")

    assert sum(reads) > 3 * 2**23 / 2**18
    assert max(reads) <= 2


async def test_long_bodies_are_counted_until_they_are_read(
    engine: FakeEngine, slices: Slices
) -> None:
    body = long_body()
    limit = 7 * len(body) // 2
    async with listening(engine, max_body_bytes=2**20, max_buffered_bytes=limit) as served:
        callers = [await served.caller() for _ in range(6)]
        for caller in callers:
            caller.send(request(body)[:-1])
        await until(lambda: bool(served.app.connections.intake._waiting))
        for caller in callers:
            caller.send(body[-1:])
        await until(lambda: slices.begun >= 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert slices.begun < 6
        slices.are_held = False
        assert [(await caller.answer())[0] for caller in callers] == [200] * 6
        assert served.app.connections.intake._total == 0


@BOTH_PATHS
async def test_a_refused_body_does_not_use_up_a_connection(
    engine: FakeEngine, protocol: type[Protocol]
) -> None:
    """Bodies of refused requests are thrown away; how much, counts for each request alone."""
    raw = request(b"x" * 30_000, key="beta")
    async with listening(engine, protocol, max_body_bytes=2**20) as served:
        caller = await served.caller()
        for _ in range(20):
            status, headers, _ = await caller.ask(raw[:-100])
            assert (status, "connection" in headers) == (401, False)
            caller.send(raw[-100:])
        assert (await caller.ask(request()))[0] == 200


MUCH = 70_000
REFUSED: dict[str, tuple[int, bytes]] = {
    "too long": (413, request(b"", length=2**30)),
    "no key": (401, request(b"{", key="beta", length=MUCH)),
    "no key, in chunks": (401, CHUNKED.replace(b"alpha", b"beta")),
    "no such path": (404, request(b"{", path="/nowhere", length=MUCH)),
    "no such method": (405, request(b"{", method="DELETE", length=MUCH)),
    "no body is wanted": (200, request(b"{", method="GET", path="/healthz", length=MUCH)),
    "no deadline": (422, request(b"{", "X-Request-Timeout-Seconds: x", length=MUCH)),
}


@BOTH_PATHS
@pytest.mark.parametrize("case", REFUSED)
async def test_an_answer_says_so_if_the_rest_of_its_body_is_not_read(
    engine: FakeEngine, protocol: type[Protocol], case: str
) -> None:
    """Otherwise a caller sends its next request into a connection that is being closed."""
    expected, raw = REFUSED[case]
    async with listening(engine, protocol, max_body_bytes=2**20) as served:
        caller = await served.caller()
        status, headers, _ = await caller.ask(raw)
        assert (status, headers.get("connection")) == (expected, "close")
        async with asyncio.timeout(10):
            assert await caller.rest() == b""


async def test_reading_a_long_body_counts_towards_its_deadline(
    engine: FakeEngine, slices: Slices
) -> None:
    async with listening(engine, max_body_bytes=2**20) as served:
        caller = await served.caller()
        caller.send(request(long_body(), "X-Request-Timeout-Seconds: 0.05"))
        await until(lambda: slices.begun == 1)
        status, _, text = await caller.answer()  # while the body is still read
        slices.are_held = False

    assert (status, orjson.loads(text)["error"]["code"]) == (504, "deadline_exceeded")
    assert engine.launches == []


async def test_a_fault_in_a_long_body_is_named(engine: FakeEngine) -> None:
    body = long_body().replace(b"]]]", b",2]]]")
    async with listening(engine, max_body_bytes=2**20) as served:
        caller = await served.caller()
        for _ in range(2):
            status, _, text = await caller.ask(request(body))
            assert status == 422
            assert "actions[63]" in orjson.loads(text)["error"]["message"]


@BOTH_PATHS
@pytest.mark.parametrize("is_ending", [False, True], ids=["serving", "ending"])
@pytest.mark.parametrize("more", [1, 2000])
async def test_callers_that_stand_still_do_not_keep_others_from_being_read(
    engine: FakeEngine,
    protocol: type[Protocol],
    more: int,
    is_ending: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not at the end of the service either: who has sent everything gets an answer."""
    monkeypatch.setattr("service.http.buffers._SLOW_AFTER_S", 0.3)
    begin = b" " * 2**16
    limits: dict[str, Any] = {"max_body_bytes": 2**21, "max_buffered_bytes": 2**20}
    async with listening(engine, protocol, **limits) as served:
        stalled = [await served.caller() for _ in range(24)]
        for caller in stalled:
            caller.send(request(begin, length=2**20))
        intake = served.app.connections.intake
        await until(lambda: intake._total >= 24 * len(begin))
        for caller in stalled:
            caller.send(b" " * more)
        honest = await served.caller()
        honest.send(request(long_body().ljust(2**20)))
        await until(lambda: len(intake._waiting) >= 10)
        if is_ending:
            _start_draining(served.server, served.app)
            ending = asyncio.create_task(served.server.shutdown(served.sockets))
        async with asyncio.timeout(20):
            assert (await honest.answer())[0] == 422  # so much is blank; it was read, that is all
        assert (served.count("503") or 0) > 1
        if is_ending:
            for caller in stalled:
                await caller.leave()
            await ending


@BOTH_PATHS
async def test_much_that_comes_at_once_is_not_parsed_at_once(
    engine: FakeEngine, protocol: type[Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of callers that send at the same moment each takes a while, and all of them long."""
    monkeypatch.setattr("service.http.turns._MOST_S", -1.0)
    async with listening(engine, protocol) as served:
        callers = [await served.caller() for _ in range(8)]
        await until(lambda: len(served.connections) == 8)
        taken = served.connections
        for connection in taken:
            connection.data_received(request() + request(b"{", "X-Request-Id: B"))
        assert [connection._parsed for connection in taken] == [0] * 8
        assert [connection.idle_since_s for connection in taken] == [None] * 8
        await asyncio.sleep(0)
        assert sum(connection._parsed for connection in taken) <= 1
        for caller in callers:
            assert [(await caller.answer())[0] for _ in range(2)] == [200, 422]
        await until(lambda: all(connection.idle_since_s is not None for connection in taken))
        assert served.app.connections.intake._total == 0


@BOTH_PATHS
@pytest.mark.parametrize("cut", [-1, 10], ids=["body", "head"])
async def test_a_request_that_is_cut_short_behind_another_is_refused_at_once(
    engine: FakeEngine, protocol: type[Protocol], cut: int
) -> None:
    """No timeout has to pass: nothing more comes of it."""
    async with listening(engine, protocol, head_timeout_s=600, body_timeout_s=600) as served:
        for raw in (request(), request(b"{}", "X-Request-Id: B")):  # one head is known, one is not
            caller = await served.caller()
            engine.gate.clear()
            caller.send(request(), raw[:cut])
            await engine.entered()
            taken = next(x for x in served.connections if x._is_ahead)
            assert taken.eof_received()  # it came with the last bytes
            engine.gate.set()
            async with asyncio.timeout(20):
                assert [(await caller.answer())[0] for _ in range(2)] == [200, 400]
                assert await caller.rest() == b""


async def test_a_refused_body_that_is_cut_short_leaves_no_connection(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if its end comes while its last part waits for a turn."""
    async with listening(engine) as served:
        caller = await served.caller()
        assert (await caller.ask(request(b" ", key="beta", length=9)))[0] == 401
        (taken,) = served.connections
        monkeypatch.setattr("service.http.turns._MOST_S", -1.0)
        taken.data_received(b" ")
        assert taken.eof_received()
        async with asyncio.timeout(20):
            assert await caller.rest() == b""
