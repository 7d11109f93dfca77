"""One request is never read together with the next, however the bytes of both are cut up."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import httptools
import orjson
import pytest
import structlog
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.http.chunks import Chunks
from service.http.protocol import Protocol
from tests.fakes.engine import FakeEngine, until
from tests.fakes.sockets import BODY, BOTH_PATHS, Caller, Listening, listening, request

CODING = "Transfer-Encoding: chunked"


def chunked(body: bytes, end: bytes, *headers: str, path: str = "/rollout") -> bytes:
    """Return a request in two chunks."""
    parts = b"".join(b"%x;e=1\r\n%b\r\n" % (len(p), p) for p in (body[:2], body[2:]))
    return request(parts + end, CODING, *headers, path=path, length=-1)


ENDS = {
    "plain": b"0\r\n\r\n",
    "trailers": b'00;a="b"\r\nX: y\r\nHost: z\r\n\r\n',
}
OTHERS = {
    "length": request(b'{"b":2}', "X-Request-Id: B", path="/predict"),
    "chunks": chunked(b'{"b":2}', ENDS["plain"], "X-Request-Id: B", path="/predict"),
    "probe": request(b"", "X-Request-Id: B", method="GET", path="/healthz"),
}


@pytest.fixture
def quiet() -> None:
    """Log nothing: thousands of lines take longer than what is tested."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


async def told(caller: Caller) -> tuple[str, bytes]:
    """Return the id of the next answer, and what it is about."""
    _, headers, body = await caller.answer()
    about = re.search(rb'"a"|"b"|alive', body.replace(b'\\"', b'"'))
    assert about is not None, body
    return headers["x-request-id"], about[0].strip(b'"')


def memorised(served: Listening) -> None:
    """Check that each known head means what its own bytes say."""
    for raw, head in served.app.connections.heads.items():
        assert CODING.encode() not in raw
        assert b"\r\nContent-Length: %d\r\n" % head.length in raw
        assert raw.startswith(b"POST %b " % head.endpoint.path.encode())


@pytest.mark.usefixtures("quiet")
@BOTH_PATHS
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("end", ENDS)
async def test_requests_may_be_cut_anywhere(
    engine: FakeEngine, protocol: type[Protocol], end: str, other: str
) -> None:
    """Both orders, every place; the bytes are given as a loop gives what it has read."""
    first, second = chunked(b'{"a":1}', ENDS[end], "X-Request-Id: A"), OTHERS[other]
    name = b"alive" if other == "probe" else b"b"
    answers = [("A", b"a"), ("B", name)]
    async with listening(engine, protocol) as served:
        caller = await served.caller()
        await until(lambda: len(served.connections) == 1)
        (connection,) = served.connections
        for pair, expected in ((first + second, answers), (second + first, answers[::-1])):
            for cut in range(1, len(pair)):
                served.app.connections.heads.clear()
                for piece in (pair[:cut], pair[cut:]):
                    connection.data_received(piece)
                async with asyncio.timeout(20):
                    assert [await told(caller) for _ in expected] == expected, pair[:cut]
                memorised(served)


@BOTH_PATHS
@pytest.mark.parametrize("lines", [1, 2, 3, 5])
async def test_requests_sent_at_once_are_told_apart_in_any_portions(
    engine: FakeEngine, protocol: type[Protocol], lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http.chunks._MOST_LINES", lines)
    first = chunked(b'{"a":1}', ENDS["trailers"], "X-Request-Id: A")
    async with listening(engine, protocol) as served:
        caller = await served.caller()
        caller.send((first + OTHERS["length"] + first + OTHERS["probe"]) * 5)
        answers = [await told(caller) for _ in range(20)]

    assert answers == [("A", b"a"), ("B", b"b"), ("A", b"a"), ("B", b"alive")] * 5


async def test_a_head_in_chunks_is_never_taken_for_one_with_a_length(engine: FakeEngine) -> None:
    """What one caller cuts up in its own way must not change what others' heads mean."""
    honest = chunked(BODY, ENDS["plain"], path="/safety-check")
    async with listening(engine) as served:
        caller = await served.caller()
        await until(lambda: len(served.connections) == 1)
        (connection,) = served.connections
        for cut in range(len(honest) - 7, len(honest)):
            for piece in (honest[:cut], honest[cut:] + request(b'{"a":1}', path="/predict")):
                connection.data_received(piece)
            assert [(await caller.answer())[0] for _ in range(2)] == [200, 422]
            memorised(served)
            caller.send(honest)
            status, _, body = await caller.answer()
            assert status == 200
            assert "verdict" in orjson.loads(body)


@BOTH_PATHS
async def test_a_parser_that_reads_too_far_ends_the_connection(
    engine: FakeEngine, protocol: type[Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should the end of a body be misread for once, nobody gets a wrong answer."""
    monkeypatch.setattr(Chunks, "take", lambda _, data: len(data))
    first = chunked(b'{"a":1}', ENDS["plain"], "X-Request-Id: A")
    async with listening(engine, protocol) as served:
        caller = await served.caller()
        caller.send(first + OTHERS["length"])
        answer = await caller.rest()
        assert served.app.connections.heads == {}

    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
    assert statuses in ([422, 400], [400])
    assert answer.count(b"x-request-id: A\r\n") == 1
    assert b"x-request-id: B\r\n" not in answer


@BOTH_PATHS
async def test_a_parser_that_sees_no_end_ends_the_connection(
    engine: FakeEngine, protocol: type[Protocol], monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(self: Chunks, _: bytes) -> int:
        self.is_over = True
        return 1

    monkeypatch.setattr(Chunks, "take", take)
    async with listening(engine, protocol) as served:
        caller = await served.caller()
        caller.send(chunked(b'{"a":1}', ENDS["plain"]))
        async with asyncio.timeout(10):
            assert (await caller.answer())[0] == 400
            assert await caller.rest() == b""


async def test_a_head_of_which_the_parser_sees_no_end_ends_the_connection(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.http.input.without_upgrade", lambda head: head[:-2])
    async with listening(engine) as served:
        caller = await served.caller()
        async with asyncio.timeout(10):
            assert (await caller.ask(request()))[0] == 400
            assert await caller.rest() == b""


@BOTH_PATHS
@pytest.mark.parametrize("filler", [b" ", b"\n", b"\r\n", b"\n\r\n", b"\r\n\r\n", b"0\r\n\r\n"])
async def test_a_chunk_is_parsed_at_once_whatever_is_in_it(
    engine: FakeEngine, protocol: type[Protocol], filler: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    feed = Protocol._feed

    def noted(self: Protocol, data: bytes) -> None:
        fed.append(len(data))
        feed(self, data)

    monkeypatch.setattr(Protocol, "_feed", noted)
    body = filler * (2**17 // len(filler))
    raw = request(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), CODING, length=-1)
    async with listening(engine, protocol, max_body_bytes=2**20) as served:
        caller = await served.caller()
        await until(lambda: len(served.connections) == 1)
        (connection,) = served.connections
        for begin in range(0, len(raw), 2**16):
            connection.data_received(raw[begin : begin + 2**16])
        assert (await caller.answer())[0] == 422

    assert sum(fed) == len(raw)
    assert len(fed) <= 6


class Ends:
    """Notes where the parser sees the end of a message."""

    def __init__(self) -> None:
        self.is_over = False

    def on_message_complete(self) -> None:
        self.is_over = True


HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def end_by_parser(raw: bytes) -> int | None:
    """Return where the parser sees the end, which gets one byte after the other."""
    ends = Ends()
    parser: Any = httptools.HttpRequestParser(ends)
    parser.feed_data(HEAD)
    for k in range(len(raw)):
        try:
            parser.feed_data(raw[k : k + 1])
        except httptools.HttpParserError:
            return None
        if ends.is_over:
            return k + 1
    return None


TOKENS = st.sampled_from(
    [b"0", b"1", b"a", b"\r\n", b"\r", b"\n", b";", b"x=", b'"', b"\\", b" ", b"0\r\n", b"X: y\r\n",
     b"1\r\nz\r\n", b"01;x\r\n\n\r\n", b"9\r\n123456789\r\n",
     b"2\r\n\r\n\r\n", b"1\r\n\n\r\n", b"3;a=b\r\n0\r\n\r\n", b"0\r\n\r\n"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(tokens=st.lists(TOKENS, max_size=10), cut=st.integers(0, 40))
@example(tokens=[b'1;a="\n"\r\nz\r\n', b"0\r\n\r\n"], cut=5)
@example(tokens=[b"1\r\nz\r\n", b"0;x\r\nX: y\r\n\r\n", b"GET"], cut=8)
def test_the_end_is_where_the_parser_sees_it(tokens: list[bytes], cut: int) -> None:
    raw = b"".join(tokens)
    chunks, taken = Chunks(), 0
    for piece in (raw[:cut], raw[cut:]):
        while piece and not chunks.is_over:
            count = chunks.take(piece)
            taken, piece = taken + count, piece[count:]

    end = end_by_parser(raw)
    if end is None and chunks.is_over:
        assert end_by_parser(raw[:taken]) is None
    elif end is not None:
        assert chunks.is_over
        assert taken == end


def test_tiny_chunks_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[bytes] = []
    read = Chunks._read

    def noted(self: Chunks, line: bytes) -> None:
        lines.append(line)
        read(self, line)

    monkeypatch.setattr(Chunks, "_read", noted)
    raw = (b"1\r\n\n\r\n" + b"02;a=b\r\n0\n\r\n") * 5000 + b"0\r\n\r\n"
    chunks, rest, portions = Chunks(), raw, 0
    while not chunks.is_over:
        rest = rest[chunks.take(rest) :]
        portions += 1

    assert rest == b""
    assert len(lines) < 50
    assert portions > 5, "others get no turn"


async def test_a_line_within_a_body_is_not_kept_without_end(engine: FakeEngine) -> None:
    """Not even behind a long body, beside which many lines may come."""
    begin = request(b"1000\r\n%b\r\n1;" % (b" " * 4096), CODING, length=-1)
    async with listening(engine, max_head_bytes=1024, max_body_bytes=2**20) as served:
        caller = await served.caller()
        caller.send(begin)
        reading, sent = asyncio.create_task(caller.answer()), 0
        while not reading.done() and sent < 2**15:
            caller.send(b"x" * 64)
            sent += 64
            await asyncio.sleep(0)
        status, _, _ = await reading

    assert status == 431
    assert sent < 2**13
