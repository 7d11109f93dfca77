"""The wire: uvicorn's HTTP protocol, with a short way from the socket to the desk and back.

A request of a hot route that is plain in every respect needs neither an ASGI scope nor a task of
its own: its body goes to the desk when it is complete, and the reply to the socket. That takes
less than half the time. Whatever is not plain (see `Wire._is_admitted`), and whatever is refused by
its headers, goes the long way through uvicorn and the door, which know all of HTTP.

Callers send the same heads again and again. One that comes again to the byte is not parsed: it
means what it meant.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.desk import CLIENT_GONE, Desk, Errand, Head, Reply
from service.errors import ServiceError

_BLANK_LINE = b"\r\n\r\n"
_LONGEST_KEPT = 2**12
_HEADS_KEPT = 2**10


class Wire(HttpToolsProtocol):
    """One connection; the app it serves has a `desk`.

    Its state belongs to the event loop's thread. At most one request is on the short way; those
    that follow it on the same connection before its reply wait on the long one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._desk: Desk = self.config.app.desk  # type: ignore[union-attr]
        self._paths = {path.encode(): path for path in self._desk.routes}
        self._heads = self._desk.heads
        self._exchange: _Exchange | None = None
        self._is_between = True  # the parser expects a new request
        self._first_head = b""  # of the input that is parsed, if a request begins with it
        self._missing = 0  # bytes of a body that is not parsed
        self._idle_since: float | None = None
        self._unheard = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Parse what has come, unless it begins with a known head."""
        if self._missing:
            self._keep(data)
            return
        raw = b""
        if self._is_between:
            end = data.find(_BLANK_LINE) + len(_BLANK_LINE)
            raw = data[:end]
            head = self._heads.get(raw)
            if head is not None and self._is_free():
                self._unset_keepalive_if_required()
                exchange = self._begin(head, keep_alive=True)
                rest = data[end:]
                if len(rest) == head.length:  # as most come
                    exchange.complete(rest)
                else:
                    self._missing = head.length
                    self._keep(rest)
                return
        self._first_head = raw
        super().data_received(data)

    def _keep(self, data: bytes) -> None:
        """Keep a part of a body under a known head; parse what follows the body."""
        exchange = self._exchange
        assert exchange is not None
        body, rest = data[: self._missing], data[self._missing :]
        exchange.chunks.append(body)
        self._missing -= len(body)
        if self._missing:
            return
        exchange.complete(b"".join(exchange.chunks))
        if rest:
            super().data_received(rest)

    def on_message_begin(self) -> None:
        """Begin a request; its scope is made when it turns out to be needed."""
        self._is_between = False
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Take the short way, or the long one."""
        # In one piece of input, a reply to a request before may have made the connection idle.
        self._unset_keepalive_if_required()
        first_head, self._first_head = self._first_head, b""
        if self._is_admitted(first_head):
            return
        url, headers, is_expected = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, is_expected
        self.headers += headers
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body; the parser ends it at its declared length."""
        exchange = self._exchange
        if exchange is None or exchange.is_complete:
            super().on_body(body)
        else:
            exchange.chunks.append(body)

    def on_message_complete(self) -> None:
        """Bring a complete request to the desk."""
        self._is_between = True
        exchange = self._exchange
        if exchange is None or exchange.is_complete:
            super().on_message_complete()
        else:
            exchange.complete(b"".join(exchange.chunks))

    def connection_lost(self, exc: Exception | None) -> None:
        """Take back the request that nobody waits for any more."""
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.is_complete:
            exchange.errand.cancel()
        else:
            exchange.errand.abandon()

    def _is_free(self) -> bool:
        """Whether a request may be replied to as soon as its result is there."""
        is_idle = self.cycle is None or self.cycle.response_complete
        return is_idle and not self.flow.write_paused

    def _is_admitted(self, raw: bytes) -> bool:
        """Let in a plain request; False for all others.

        What is refused goes the long way too: the door says why.

        Args:
            raw: Its head, if it is the first in the input and came in one piece.
        """
        path = self._paths.get(self.url)
        if (
            path is None
            or self.expect_100_continue
            or not self._is_free()
            or self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
            or self.parser.should_upgrade()
        ):
            return False
        headers = dict(self.headers)
        if b"content-length" not in headers:  # no body, or one in chunks of unknown length
            return False
        head = Head(path, headers, int(headers[b"content-length"]))
        keep_alive = self.parser.should_keep_alive()
        try:
            self._desk.policy.check(path, headers)
            self._begin(head, keep_alive)
        except ServiceError:
            return False
        if keep_alive and is_one_head(raw):
            if len(self._heads) >= _HEADS_KEPT:
                self._heads.clear()
            self._heads[raw] = head
        return True

    def _begin(self, head: Head, keep_alive: bool) -> _Exchange:
        errand = self._desk.receive(head.path, head.headers, self._respond)
        exchange = _Exchange(head.path, errand, keep_alive, self._unheard)
        self._exchange = exchange
        self.cycle = exchange  # type: ignore[assignment]
        return exchange

    def _respond(self, reply: Reply | None) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._exchange = None
        exchange.response_complete = True
        status = CLIENT_GONE if reply is None else reply.status
        if reply is not None and not self.transport.is_closing():
            self._write(reply, exchange.keep_alive)
        self._desk.metrics.answered(exchange.path, status, perf_counter() - exchange.started)
        self.on_response_complete()

    def _write(self, reply: Reply, keep_alive: bool) -> None:
        common = self._desk.common_lines(self.server_state.default_headers)
        end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        lines = STATUS_LINE[reply.status], common, reply.head, end, reply.body
        self.transport.write(b"".join(lines))
        if not keep_alive:
            self.transport.close()

    # uvicorn sets a timer after every reply, and cancels it at the next request. One that looks
    # when it fires how long the connection has been idle is cheaper by several microseconds.

    def on_response_complete(self) -> None:
        """Go on with what the connection has sent already, or be idle."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._set_timer(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long enough."""
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._set_timer(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _set_timer(self, seconds: float) -> None:
        on_time = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(seconds, on_time)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None


class _Exchange:
    """A request on the short way; to uvicorn it is one of its cycles.

    Attributes:
        chunks: Parts of the body that have come.
        is_complete: Whether all of it has.
        keep_alive: Whether the connection stays open; uvicorn ends that at shutdown.
        response_complete: Whether it was replied to; uvicorn looks at it.
        disconnected: Set by uvicorn, as is the event; nobody listens here.
    """

    __slots__ = (
        "chunks", "disconnected", "errand", "is_complete", "keep_alive", "message_event", "path",
        "response_complete", "started",
    )  # fmt: skip

    def __init__(self, path: str, errand: Errand, keep_alive: bool, event: asyncio.Event) -> None:
        self.started = perf_counter()
        self.path = path
        self.errand = errand
        self.chunks: list[bytes] = []
        self.is_complete = False
        self.keep_alive = keep_alive
        self.response_complete = False
        self.disconnected = False
        self.message_event = event

    def complete(self, body: bytes) -> None:
        """Bring the body to the desk; it has come."""
        self.is_complete = True
        self.errand.start(body)


def is_one_head(raw: bytes) -> bool:
    """Whether input up to its first empty line is the head of one POST, by any reading of HTTP.

    A parser that takes less than CRLF for the end of a line might see the head's end elsewhere.
    """
    lines = raw.count(b"\r\n")
    is_plain = lines == raw.count(b"\n") == raw.count(b"\r")
    return len(raw) <= _LONGEST_KEPT and raw.startswith(b"POST ") and is_plain
