"""RFC 9110 and 9112, case by case, as raw bytes, on the short path and on the long one.

Each case lists the statuses that its bytes are answered with; a case ends with the connection: the
server closes it by itself after what cannot be trusted, else the caller asks for that.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import orjson
import pytest

from service.http.protocol import Protocol
from tests.fakes.engine import STATE, FakeEngine
from tests.fakes.sockets import BODY, Listening, LongPath, listening, request

CLOSE = "Connection: close"
NOT_HTTP = [400]
PROBE = request(b"", CLOSE, method="GET", path="/healthz")
LAST = request(BODY, CLOSE)


class Case(NamedTuple):
    """What is sent, and what is answered.

    Attributes:
        raw: All bytes of a connection.
        statuses: Of the answers, in order.
        is_open: Whether the server waits for more; then the caller closes its side.
    """

    raw: bytes
    statuses: list[int]
    is_open: bool = False


def chunked(body: bytes = BODY, end: bytes = b"0\r\n\r\n", *headers: str) -> bytes:
    """Return a request in two chunks."""
    half = len(body) // 2
    text = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:half], body[half:]))
    return request(text + end, "Transfer-Encoding: chunked", *headers, length=-1)


def head(*lines: str, body: bytes = BODY) -> bytes:
    """Return a request whose head is these lines."""
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


KEY = "Authorization: Bearer alpha"
LENGTH = f"Content-Length: {len(BODY)}"
START = ("POST /rollout HTTP/1.1", "Host: service", KEY)

CASES: dict[str, Case] = {
    # RFC 9112, 2.2: lines and empty lines.
    "plain": Case(LAST, [200]),
    "empty lines first": Case(b"\r\n\r\n" + LAST, [200]),
    "line feeds only": Case(LAST.replace(b"\r\n", b"\n"), NOT_HTTP),
    "a bare carriage return": Case(LAST.replace(b"Host: service", b"Host: ser\rvice"), NOT_HTTP),
    "white space before the first header": Case(LAST.replace(b"Host", b" Host", 1), NOT_HTTP),
    "nonsense": Case(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", NOT_HTTP),
    "a head of HTTP/2": Case(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", NOT_HTTP),
    # RFC 9112, 2.3 and 3: request lines.
    "old version": Case(head("POST /rollout HTTP/1.0", KEY, LENGTH), [200]),
    "oldest version": Case(b"GET /healthz\r\n\r\n", NOT_HTTP),
    "version to come": Case(request(method="GET", path="/healthz", version="2.0"), NOT_HTTP),
    "unknown minor version": Case(request(version="1.2"), NOT_HTTP),
    "lower-case name of HTTP": Case(LAST.replace(b"HTTP/1.1", b"http/1.1"), NOT_HTTP),
    "lower-case method": Case(LAST.replace(b"POST", b"post"), NOT_HTTP),
    "another protocol": Case(b"SETUP /healthz RTSP/1.0\r\nHost: service\r\n\r\n", NOT_HTTP),
    "yet another protocol": Case(b"SOURCE /healthz ICE/1.0\r\nHost: service\r\n\r\n", NOT_HTTP),
    "a few empty lines first": Case(b"\r\n" * 8 + LAST, [200]),
    "too many empty lines first": Case(b"\r\n" * 9 + LAST, NOT_HTTP),
    "very many empty lines first": Case(b"\n" * 20_000 + LAST, NOT_HTTP),
    "a long target": Case(request(BODY, CLOSE, path="/" + "x" * 8192), [414]),
    "as long a target as is read": Case(request(BODY, CLOSE, path="/" + "x" * 8000), [404]),
    "many fields": Case(request(BODY, *["a:"] * 100), [431]),
    "as many fields as are read": Case(request(BODY, CLOSE, *["a:"] * 96), [200]),
    "cookies": Case(request(b"", CLOSE, "Cookie: a=1; b", method="GET", path="/healthz"), [200]),
    "unknown method": Case(request(method="BREW"), NOT_HTTP),
    "tunnel": Case(b"CONNECT service:80 HTTP/1.1\r\nHost: service\r\n\r\n", [405]),
    "whole address": Case(request(BODY, CLOSE, path="http://other/rollout"), [200]),
    "whole address without a path": Case(request(BODY, CLOSE, path="http://other"), [405]),
    "whole address with a query": Case(request(BODY, CLOSE, path="HTTP://other?x=/y"), [405]),
    "asterisk": Case(request(b"", CLOSE, method="OPTIONS", path="*"), [404]),
    "no target": Case(head("POST  HTTP/1.1", "Host: service", LENGTH), NOT_HTTP),
    "target that is no path": Case(request(path="rollout"), NOT_HTTP),
    "target beyond ASCII": Case(request(path="/rolloüt"), NOT_HTTP),
    "target with a fragment": Case(request(BODY, CLOSE, path="/rollout#x"), [200]),
    "target with a query": Case(request(BODY, CLOSE, path="/rollout?x=1"), [200]),
    # RFC 9112, 3.2: Host.
    "no host": Case(head(START[0], KEY, LENGTH), NOT_HTTP),
    "no host in an old version": Case(head("POST /rollout HTTP/1.0", KEY, LENGTH), [200]),
    "two hosts": Case(request(BODY, "Host: other"), NOT_HTTP),
    "the same host twice": Case(request(BODY, "Host: service"), NOT_HTTP),
    "host that is no host": Case(LAST.replace(b"Host: service", b"Host: ser/vice"), NOT_HTTP),
    "host with a user": Case(LAST.replace(b"Host: service", b"Host: a@service"), NOT_HTTP),
    "host with a port": Case(LAST.replace(b"Host: service", b"Host: [::1]:8000"), [200]),
    "empty host": Case(LAST.replace(b"Host: service", b"Host:"), [200]),
    # RFC 9112, 5: header fields.
    "space before a colon": Case(request(BODY, "X-Own : 1"), NOT_HTTP),
    "no name": Case(request(BODY, ": 1"), NOT_HTTP),
    "no colon": Case(request(BODY, "Xown"), NOT_HTTP),
    "folded header": Case(request(BODY, "X-Own: 1\r\n 2"), NOT_HTTP),
    "zero byte": Case(request(BODY, "X-Own: \x00"), NOT_HTTP),
    "other control byte": Case(request(BODY, "X-Own: \x07"), NOT_HTTP),
    "space around values": Case(request(BODY, CLOSE, "X-Own:\t 1 \t"), [200]),
    "value beyond ASCII": Case(request(BODY, CLOSE, "X-Own: ü"), [200]),
    "two keys": Case(request(BODY, "Authorization: Bearer beta"), NOT_HTTP),
    "two deadlines": Case(request(BODY, *["X-Request-Timeout-Seconds: 1"] * 2), NOT_HTTP),
    "two ids": Case(request(BODY, *["X-Request-Id: 1"] * 2), NOT_HTTP),
    # RFC 9112, 6: how long a body is.
    "length and chunks": Case(chunked(BODY, b"0\r\n\r\n", LENGTH), NOT_HTTP),
    "two lengths": Case(request(BODY, LENGTH), NOT_HTTP),
    "other lengths": Case(request(BODY, "Content-Length: 3"), NOT_HTTP),
    **{
        f"length {text!r}": Case(head(*START, f"Content-Length: {text}"), NOT_HTTP)
        for text in ("", "-1", "+1", "1_0", "0x10", "1 2", "1, 1", "1.0", "9" * 30, "\xb2")
    },
    "no length": Case(head(*START, CLOSE, body=b""), [422]),
    "body before its end": Case(request(BODY[:-1], length=len(BODY)), [400], is_open=True),
    "head before its end": Case(request()[:30], [400], is_open=True),
    "nothing": Case(b"", [], is_open=True),
    # RFC 9112, 6.1 and 7: chunks and other codings.
    "chunks": Case(chunked(BODY, b"0\r\n\r\n", CLOSE), [200]),
    "chunks with extensions": Case(
        request(b"%x;a=b\r\n%b\r\n0;c\r\n\r\n" % (len(BODY), BODY), CLOSE,
                "Transfer-Encoding: chunked", length=-1),
        [200],
    ),
    "chunks and trailers": Case(chunked(BODY, b"0\r\nX-Own: 1\r\nHost: x\r\n\r\n", CLOSE), [200]),
    # RFC 9110, 6.5.1: trailers say nothing of the connection, nor of what comes after them.
    **{
        f"a trailer {text!r}": Case(
            chunked(BODY, b"0\r\n%b\r\n\r\n" % text) + chunked() + request() + LAST,
            [200, 200, 200, 200],
        )
        for text in (
            b"Connection: close", b"Connection: keep-alive", b"Connection: Upgrade\r\nUpgrade: h2c",
            b"Expect: 100-continue", b"Authorization: Bearer beta", b"X-Request-Timeout-Seconds: x",
        )
    },
    "chunks in an old version": Case(chunked().replace(b"/1.1", b"/1.0"), NOT_HTTP),
    "codings in two lines": Case(
        chunked(BODY, b"0\r\n\r\n", "Transfer-Encoding: gzip"), NOT_HTTP
    ),
    "a length of many zeros": Case(
        request(BODY, CLOSE).replace(b"Length: ", b"Length: " + b"0" * 5000), NOT_HTTP
    ),
    "a length of many zeros for a probe": Case(
        PROBE.replace(b"Length: ", b"Length: " + b"0" * 5000), NOT_HTTP
    ),
    "chunks twice": Case(chunked(BODY, b"", "Transfer-Encoding: chunked"), NOT_HTTP),
    "compressed chunks": Case(
        chunked(BODY, b"0\r\n\r\n", CLOSE).replace(b"chunked", b"gzip, chunked"), [415]
    ),
    "chunks that are not the last coding": Case(
        chunked().replace(b"chunked", b"chunked, gzip"), NOT_HTTP
    ),
    "unknown coding": Case(chunked().replace(b"chunked", b"xchunked"), [415]),
    **{
        f"chunk of size {text!r}": Case(
            request(b"%b\r\n{}\r\n0\r\n\r\n" % text, "Transfer-Encoding: chunked", length=-1),
            NOT_HTTP,
        )
        for text in (b"", b"-2", b"+2", b"0x2", b"2_0", b"zz", b" 2", b"f" * 20)
    },
    "chunk longer than it says": Case(
        request(b"1\r\n{}\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=-1), NOT_HTTP
    ),
    "chunk with a line feed only": Case(
        request(b"2\n{}\n0\n\n", "Transfer-Encoding: chunked", length=-1), NOT_HTTP
    ),
    "last chunk missing": Case(chunked(BODY, b""), [400], is_open=True),
    # RFC 9110, 8.4: content codings.
    "compressed": Case(request(BODY, CLOSE, "Content-Encoding: gzip"), [415]),
    "compressed by one of two": Case(
        request(BODY, CLOSE, "Content-Encoding: identity", "Content-Encoding: br"), [415]
    ),
    "not compressed": Case(request(BODY, CLOSE, "Content-Encoding: identity"), [200]),
    # RFC 9110, 7.8: a server may ignore the wish to upgrade; the body is this request's.
    "upgrade to HTTP/2": Case(
        request(BODY, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c",
                "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA") + LAST,
        [200, 200],
    ),
    "upgrade in small letters": Case(
        request(BODY, "connection: upgrade", "UPGRADE: websocket") + LAST, [200, 200]
    ),
    "upgrade twice": Case(
        request(BODY, "Connection: Upgrade", "Upgrade: h2c", "Upgrade: foo/1") + LAST, [200, 200]
    ),
    "upgrade of chunks": Case(
        chunked(BODY, b"0\r\n\r\n", "Connection: Upgrade", "Upgrade: h2c") + LAST, [200, 200]
    ),
    "upgrade without a body": Case(
        request(b"", "Connection: Upgrade", "Upgrade: h2c", method="GET", path="/healthz") + PROBE,
        [200, 200],
    ),
    "upgrade that asks first": Case(
        request(BODY, "Expect: 100-continue", "Connection: Upgrade", "Upgrade: h2c") + LAST,
        [100, 200, 200],
    ),
    # RFC 9110, 10.1.1: expectations.
    "asks first in an old version": Case(
        request(BODY, "Expect: 100-continue", version="1.0"), [200]
    ),
    "asks first": Case(request(BODY, "Expect: 100-continue", CLOSE), [100, 200]),
    "asks first without a key": Case(
        request(BODY, "Expect: 100-continue", CLOSE, key="beta"), [401]
    ),
    # RFC 9110, 9: methods.
    "head of a probe": Case(request(b"", CLOSE, method="HEAD", path="/healthz"), [200]),
    "head of the metrics": Case(request(b"", CLOSE, method="HEAD", path="/metrics"), [200]),
    "head of the model": Case(request(b"", CLOSE, method="HEAD", path="/model"), [200]),
    "head of nothing": Case(request(b"", CLOSE, method="HEAD", path="/nowhere"), [404]),
    "head of a prediction": Case(request(b"", CLOSE, method="HEAD"), [405]),
    "delete": Case(request(b"", CLOSE, method="DELETE", path="/model"), [405]),
    # Our own headers.
    **{
        f"deadline {text!r}": Case(
            request(BODY, CLOSE, f"X-Request-Timeout-Seconds: {text}"), [status]
        )
        for text, status in {
            "1": 200, "1.5": 200, "2e0": 200, ".5": 200, "1_0": 422, "+1": 422, "-1": 422,
            "0": 422, "inf": 422, "nan": 422, "1e999": 422, "0x1": 422, "1s": 422, "": 422,
        }.items()
    },
    # Several requests on one connection.
    "two in one": Case(request() + LAST, [200, 200]),
    "a refused one first": Case(request(key="beta") + LAST, [401, 200]),
    "too long": Case(request(b" " * 5000, CLOSE), [413]),
    "too long in chunks": Case(chunked(b" " * 5000, b"0\r\n\r\n", CLOSE), [413]),
    "nonsense behind a request": Case(request() + b"nonsense\r\n\r\n", [200, 400]),
    "half closed": Case(request(), [200], is_open=True),
    "two, half closed": Case(request() + request(), [200, 200], is_open=True),
    "probe, half closed": Case(PROBE.replace(b"close", b"keep-alive"), [200], is_open=True),
}  # fmt: skip


async def answered(served: Listening, case: Case) -> bytes:
    """Return all that is answered to a case."""
    caller = await served.caller()
    caller.send(case.raw)
    if case.is_open:
        caller.half_close()
    return await caller.rest()


def is_contract_error(answer: bytes) -> bool:
    """Tell whether an answer is an error in the form of the contract."""
    lines, _, body = answer.partition(b"\r\n\r\n")
    if b"content-type: application/json" not in lines or b"x-request-id: " not in lines:
        return False
    return set(orjson.loads(body)["error"]) == {"code", "message", "details"}


def counted(served: Listening) -> float:
    """Return how many requests the metrics have seen."""
    text = served.app.connections.exchanges.metrics.render().decode()
    return sum(map(float, re.findall(r"(?m)^world_model_requests_total\{.*\} (.+)$", text)))


def fault_of(case: Case, answer: bytes, count: float) -> str:
    """Return what is wrong with what a case was answered; nothing if it is right."""
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
    if statuses != case.statuses:
        return f"answered {statuses}, expected {case.statuses}"
    if count != len(statuses) - statuses.count(100):
        return f"{count} requests are counted"
    if case.raw.startswith(b"HEAD"):
        is_bodyless = answer.endswith(b"\r\n\r\n") and answer.count(b"\r\n\r\n") == 1
        return "" if is_bodyless else "HEAD is answered with a body"
    if statuses and statuses[-1] >= 400:
        last = answer[answer.rindex(b"HTTP/1.1 ") :]
        return "" if is_contract_error(last) else "the error has not the form of the contract"
    return ""


@pytest.mark.parametrize("protocol", [Protocol, LongPath], ids=["short", "long"])
async def test_requests_are_read_as_the_standard_has_it(
    engine: FakeEngine, protocol: type[Protocol]
) -> None:
    faults = {}
    async with listening(engine, protocol) as served:
        for name, case in CASES.items():
            before = counted(served)
            answer = await answered(served, case)
            if fault := fault_of(case, answer, counted(served) - before):
                faults[name] = fault

    assert faults == {}
    assert all((states == STATE).all() for states in engine.seen)
