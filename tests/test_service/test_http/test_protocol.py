"""Over real sockets: the short path of a request differs from the long one in speed alone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any

import orjson
import pytest

from service.http.heads import is_one_head
from service.http.middleware import Middleware
from service.http.protocol import Protocol
from tests.fakes.engine import DIVERGE, POISON, FakeEngine, bits, expected, rows, until
from tests.fakes.sockets import BODY, LIMIT, Caller, LongPath, listening, request

CLOSE = "Connection: close"
CHUNKED = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"
ENDLESS = b"%x\r\n%b\r\n" % (LIMIT + 1, b" " * (LIMIT + 1))


def of_state(*state: float) -> bytes:
    return orjson.dumps({"state": state, "actions": [[0.5, 0.5]]})


REQUESTS = {
    "plain": request(BODY, CLOSE),
    "predict": request(b'{"state":[1,2,3],"action":[0,0]}', CLOSE, path="/predict"),
    "safety check": request(BODY, CLOSE, path="/safety-check"),
    "own id": request(BODY, CLOSE, "X-Request-Id: car-7"),
    "own deadline": request(BODY, CLOSE, "X-Request-Timeout-Seconds: 3"),
    "old protocol": request(BODY, version="1.0"),
    "old protocol kept alive": request(BODY, "Connection: keep-alive", version="1.0"),
    "chunks": request(CHUNKED, CLOSE, "Transfer-Encoding: chunked", length=-1),
    "query": request(BODY, CLOSE, path="/rollout?a=1"),
    "escaped path": request(BODY, CLOSE, path="/roll%6fut"),
    "whole address": request(BODY, CLOSE, path="http://service/rollout"),
    "asks first": request(BODY, CLOSE, "Expect: 100-continue"),
    "wants to upgrade": request(BODY, "Connection: close, Upgrade", "Upgrade: h2c"),
    "broken body": request(b"{", CLOSE),
    "no body": request(b"", CLOSE),
    "no length": request(b"", CLOSE, length=-1),
    "get": request(b"", CLOSE, method="GET"),
    "head": request(b"", CLOSE, method="HEAD"),
    "head elsewhere": request(b"", CLOSE, method="HEAD", path="/healthz"),
    "other route": request(b"", CLOSE, method="GET", path="/readyz"),
    "no route": request(BODY, CLOSE, path="/nowhere"),
    "unknown key": request(BODY, CLOSE, key="beta"),
    "bad deadline": request(BODY, CLOSE, "X-Request-Timeout-Seconds: soon"),
    "too long": request(b" " * (LIMIT + 1), CLOSE),
    "too many chunks": request(ENDLESS, CLOSE, "Transfer-Encoding: chunked", length=-1),
    "engine fault": request(of_state(POISON, 0, 0), CLOSE),
    "diverged": request(of_state(DIVERGE, 0, 0), CLOSE),
    "no HTTP": b"nonsense\r\n\r\n",
    "two lengths": request(BODY, CLOSE, f"Content-Length: {len(BODY) - 1}"),
    "two requests": request() + request(BODY, CLOSE, path="/safety-check"),
    "fault, then another": request(b"{") + request(BODY, CLOSE),
    "hot, then cold": request() + request(b"", CLOSE, method="GET", path="/healthz"),
    "cold, then hot": request(b"", method="GET", path="/healthz") + request(BODY, CLOSE),
    "nothing after a close": request(BODY, CLOSE) + request(),
    "nothing after a fault and a close": request(b"{", CLOSE) + request(),
    "request, then no HTTP": request() + b"nonsense\r\n\r\n",
}


async def test_both_paths_answer_alike(engine: FakeEngine) -> None:
    answers = []
    for protocol in (LongPath, Protocol):
        async with listening(engine, protocol) as served:
            answers.append({name: await served.ask(raw) for name, raw in REQUESTS.items()})

    assert all(answer.startswith(b"HTTP/1.1 ") for answer in answers[0].values())
    assert answers[1] == answers[0]


async def test_plain_requests_take_the_short_path(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    enter = Middleware.__call__

    async def noted(self: Middleware, scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope.get("path", ""))
        await enter(self, scope, receive, send)

    monkeypatch.setattr(Middleware, "__call__", noted)
    async with listening(engine) as served:
        caller = await served.caller()
        for path in ("/rollout", "/safety-check", "/healthz", "/rollout"):
            await caller.ask(request(path=path))

    assert seen == ["", "/healthz"]  # the first is the lifespan


async def test_a_connection_is_kept_for_many_requests(engine: FakeEngine) -> None:
    states, actions = rows(20)
    truth = expected(states, actions)
    async with listening(engine) as served:
        caller = await served.caller()
        for k in range(20):
            caller.send(
                request(orjson.dumps({"state": states[k].tolist(), "actions": actions[k].tolist()}))
            )
            status, _, body = await caller.answer()
            assert status == 200
            assert bits(orjson.loads(body)["states"]) == truth.states[k].tobytes()
        assert served.count("200") == 20


KEPT = {
    "plain": request(),
    "predict": request(b'{"state":[1,2,3],"action":[0,0]}', path="/predict"),
    "safety check": request(path="/safety-check"),
    "own id": request(BODY, "X-Request-Id: car-7"),
    "own deadline": request(BODY, "X-Request-Timeout-Seconds: 3"),
    "broken body": request(b"{"),
    "no body": request(b""),
    "engine fault": request(of_state(POISON, 0, 0)),
    "diverged": request(of_state(DIVERGE, 0, 0)),
}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the paths of all requests whose heads were parsed."""
    paths: list[bytes] = []
    complete = Protocol.on_headers_complete

    def noted(self: Protocol) -> None:
        paths.append(self.url)
        complete(self)

    monkeypatch.setattr(Protocol, "on_headers_complete", noted)
    return paths


async def replies(caller: Caller, raw: bytes, cuts: Iterable[int]) -> list[object]:
    """Send a request as often as there are cuts, cut there; return what is answered each time."""
    answered: list[object] = []
    for cut in cuts:
        caller.send(raw[:cut])
        await asyncio.sleep(0.01)  # the server reads the pieces one by one
        status, headers, body = await caller.ask(raw[cut:])
        headers["server-timing"] = re.sub(r"[\d.]+", "x", headers.get("server-timing", ""))
        is_own = headers["x-request-id"] == "car-7"
        kept = {k: v for k, v in headers.items() if k != "date" and (is_own or "-id" not in k)}
        answered.append((status, kept, re.sub(rb"[0-9a-f]{32}", b"new", body)))
    return answered


@pytest.mark.parametrize("name", KEPT)
async def test_a_known_head_means_what_it_meant(
    engine: FakeEngine, parsed: list[bytes], name: str
) -> None:
    raw = KEPT[name]
    head = raw.index(b"\r\n\r\n") + 4
    cuts = (len(raw), len(raw), head, (head + len(raw)) // 2)
    answers = []
    for protocol in (LongPath, Protocol):
        async with listening(engine, protocol) as served:
            answers.append(await replies(await served.caller(), raw, cuts))

    assert answers[1] == answers[0]
    assert len(parsed) == len(cuts) + 1  # each time on the long protocol, once on the short one


async def test_a_head_is_known_to_all_connections(engine: FakeEngine, parsed: list[bytes]) -> None:
    async with listening(engine) as served:
        for _ in range(3):
            caller = await served.caller()
            assert (await caller.ask(request()))[0] == 200

    assert len(parsed) == 1


async def test_what_follows_a_known_request_is_parsed(
    engine: FakeEngine, parsed: list[bytes]
) -> None:
    async with listening(engine) as served:
        caller = await served.caller()
        for raw in (request(), request(b"{")):
            await caller.ask(raw)
        health = request(b"", method="GET", path="/healthz")
        caller.send(request(b"{") * 700, health, request()[:-9])  # errors are answered at once
        statuses = [(await caller.answer())[0] for _ in range(701)]
        caller.send(request()[-9:], request(), health)
        statuses += [(await caller.answer())[0] for _ in range(3)]

    assert statuses == [422] * 700 + [200] * 4
    assert b"/healthz" in parsed


UNKNOWN = {
    "unknown key": (request(key="beta"),),
    "bad deadline": (request(BODY, "X-Request-Timeout-Seconds: soon"),),
    "too long": (request(b" " * (LIMIT + 1)),),
    "chunks": (request(CHUNKED, "Transfer-Encoding: chunked", length=-1),),
    "asks first": (request(BODY, "Expect: 100-continue"),),
    "long head": (request(BODY, "X-Filler: " + "x" * 5000),),
    "closes": (request(BODY, CLOSE),),
    "old protocol": (request(BODY, "Connection: keep-alive", version="1.0"),),
    "other line ends": (request(b"").replace(b"\r\n", b"\n") + b"\r\n\r\n",),
    "one other line end": (request(BODY, "A: b").replace(b"A: b\r\n", b"A: b\n"),),
}


@pytest.mark.parametrize("name", UNKNOWN)
async def test_other_heads_are_parsed_each_time(engine: FakeEngine, name: str) -> None:
    async with listening(engine) as served:
        caller = await served.caller()
        for piece in UNKNOWN[name]:
            caller.send(piece)
            await asyncio.sleep(0.05)
        await caller.answer()

        assert served.app.connections.heads == {}


@pytest.mark.parametrize(
    ("raw", "is_one"),
    [
        (b"POST / HTTP/1.1\r\nA: b\r\n\r\n", True),
        (b"POST / HTTP/1.1\nA: b\n\n[1]\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nA: b\r\r[1]\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nA: b\r\n\r\n", False),
        (b"POS", False),
    ],
)
def test_heads_with_other_line_ends_are_not_trusted(raw: bytes, is_one: bool) -> None:
    assert is_one_head(raw) is is_one


async def test_each_head_is_known_for_itself(engine: FakeEngine) -> None:
    first, second = request(b"{", "X-Request-Id: a"), request(BODY, "X-Request-Id: b")
    async with listening(engine) as served:
        caller = await served.caller()
        caller.send(first + second)  # the first is answered before the second is parsed
        ids = [(await caller.answer())[1]["x-request-id"] for _ in range(2)]
        known = {raw: head.length for raw, head in served.app.connections.heads.items()}

    assert ids == ["a", "b"]
    assert known == {first[:-1]: 1, second[: -len(BODY)]: len(BODY)}


PIECES = {
    "head in two pieces": (request()[:20], request()[20:]),
    "head after another request": (request(b"", method="GET", path="/healthz") + request(),),
    "empty line before": (b"\r\n" + request(),),
    "empty lines before": (b"\r\n\r\n" + request(),),
}


@pytest.mark.parametrize("name", PIECES)
async def test_a_head_is_known_however_it_came(
    engine: FakeEngine, parsed: list[bytes], name: str
) -> None:
    async with listening(engine) as served:
        caller = await served.caller()
        await caller.ask(request())
        for piece in PIECES[name]:
            caller.send(piece)
            await asyncio.sleep(0.01)
        statuses = [(await caller.answer())[0] for _ in range(1 + (name == [*PIECES][1]))]

    assert set(statuses) == {200}
    assert parsed.count(b"/rollout") == 1


async def test_a_known_request_inside_a_body_is_a_body(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        caller = await served.caller()
        await caller.ask(request())
        caller.send(request(b"", key="beta", length=len(request())))  # refused by its head
        refused = await caller.answer()
        caller.send(request())  # its body
        await asyncio.sleep(0.05)
        answered = await caller.ask(request(path="/safety-check"))

    assert (refused[0], answered[0]) == (401, 200)
    assert "verdict" in orjson.loads(answered[2])
    assert len(engine.launches) == 2


async def test_so_many_heads_are_known_at_most(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http.connections._MOST_HEADS", 3)
    async with listening(engine) as served:
        caller = await served.caller()
        for k in range(7):
            _, headers, _ = await caller.ask(request(BODY, f"X-Request-Id: {k}"))
            assert headers["x-request-id"] == str(k)
            assert 1 <= len(served.app.connections.heads) <= 3


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_request_may_come_in_single_bytes(engine: FakeEngine, is_known: bool) -> None:
    async with listening(engine) as served:
        caller = await served.caller()
        if is_known:
            await caller.ask(request())
        for byte in request():
            caller.send(bytes([byte]))
            await asyncio.sleep(0)  # the server is on the same loop

        assert (await caller.answer())[0] == 200


async def test_requests_sent_ahead_are_answered_in_their_order(engine: FakeEngine) -> None:
    """One is computed meanwhile; the others wait, and then many fill the socket's buffers."""
    async with listening(engine) as served:
        caller = await served.caller()
        engine.gate.clear()
        caller.send(request())
        await engine.entered()
        caller.send(*(request(of_state(k, 0, 0)) for k in range(400)))
        caller.send(request(b"", method="GET", path="/healthz"))
        engine.gate.set()
        answers = [await caller.answer() for _ in range(402)]

    assert [status for status, _, _ in answers] == [200] * 402
    starts = [orjson.loads(body)["states"][0][0] for _, _, body in answers[1:-1]]
    assert starts == [float(k) for k in range(400)]
    assert orjson.loads(answers[-1][2]) == {"status": "alive"}


async def test_a_caller_that_does_not_read_is_waited_for(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        caller = await served.caller()
        await caller.ask(request())
        (connection,) = served.connections
        connection.pause_writing()  # as the transport does when its buffer is full
        caller.send(request())
        await until(lambda: connection.flow.read_paused)
        assert len(engine.launches) == 1
        connection.resume_writing()

        assert (await caller.answer())[0] == 200


async def test_a_deadline_is_answered_and_the_connection_kept(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        await served.hold(engine)
        caller = await served.caller()
        assert (await caller.ask(request(BODY, "X-Request-Timeout-Seconds: 0.01")))[0] == 504
        engine.gate.set()
        caller.send(request())

        assert (await caller.answer())[0] == 200


async def test_a_fault_of_ours_leaves_the_connection_usable(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        lanes = served.app.scheduler.queues.lanes
        served.app.scheduler.queues.lanes = {}
        caller = await served.caller()
        status, _, body = await caller.ask(request())
        served.app.scheduler.queues.lanes = lanes
        caller.send(request())

        assert (status, orjson.loads(body)["error"]["code"]) == (500, "engine_error")
        assert (await caller.answer())[0] == 200
