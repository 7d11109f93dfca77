"""The wire: uvicorn's HTTP protocol, with bounds, and a short way from the socket to the desk.

A request of a hot route that is plain in every respect needs neither an ASGI scope nor a task of
its own: its body goes to the desk when it is complete, and the reply to the socket. That takes
less than half the time. Whatever is not plain (see `Wire._is_admitted`), and whatever is refused by
its headers, goes the long way through uvicorn and the door, which know all of HTTP.

Callers send the same heads again and again. One that comes again to the byte is not parsed: it
means what it meant.

What comes is kept until it is a whole head, and parsed only when the request before it has been
answered and its answer read. So a caller that sends ahead, or does not read, is left waiting by
TCP: one connection holds one request, whatever is sent on it.

This file is long because a connection is one state machine: what is expected next, who is answered,
and when it ends touch each other in every method.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from enum import Enum
from time import perf_counter
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import (
    BadRequestError,
    HeadersTooLargeError,
    MethodNotAllowedError,
    RequestTimeoutError,
    ServiceError,
    UnavailableError,
    UriTooLongError,
)
from service.http.connections import HEAD_END, fault_of, without_upgrade
from service.http.exchange import CLIENT_GONE, REFUSALS, Desk, Errand, Head, Reply, failure
from service.http.policy import request_id_of
from service.telemetry.metrics import OTHER

log = structlog.get_logger()

_BLANK_LINE = b"\r\n\r\n"
_LONGEST_KEPT = 2**12
_HEADS_KEPT = 2**10
_GRACE_S = 1.0
"""A caller that has closed its side gets its answer if it begins in this time."""

_LAST_REQUEST_S = 0.25
"""An idle connection takes a request for so long after the port is closed."""

_LINGER_S = 1.0
_MOST_LINGERING_BYTES = 2**18
"""After a refusal input is thrown away for a while: closing at once would destroy the reply."""

_LONGEST_DROPPED = 2**16

_LONGEST_FED = 2**13
"""Of chunks, at once: in tiny ones so much takes a third of a millisecond."""

_TURN_S = 0.0005
"""Time for which input is parsed before others get a turn."""

_CHUNK_HEAD_BYTES = 8
"""What may be around each byte of a body in chunks: a chunk of one byte has five around it."""

_MAY_GO_AFTER_S = 1.0
_LOOK_FOR_IDLE_EVERY_S = 0.1


class _Input(Enum):
    """What a connection expects to come next."""

    REQUEST = "request"
    HEAD = "rest of a head"
    BODY = "rest of a body"
    NOTHING = "nothing"


class _Flow(FlowControl):
    """Leaves input in the kernel while a request before it is not answered.

    Attributes:
        is_held: Whether nothing may be read, whoever asks for it.
    """

    is_held = False

    def resume_reading(self) -> None:
        if not self.is_held:
            super().resume_reading()


class Wire(HttpToolsProtocol):
    """One connection; the app it serves has a `desk`.

    Its state belongs to the event loop's thread. One request at a time is parsed and answered.
    """

    flow: _Flow

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._desk: Desk = self.config.app.desk  # type: ignore[union-attr]
        self._limits = self._desk.limits
        self._paths = {path.encode(): path for path in self._desk.routes}
        self._heads = self._desk.heads
        self._exchange: _Exchange | None = None
        self._input = bytearray()  # has come and is not parsed
        self._expects = _Input.REQUEST
        self._scanned = 0  # bytes of the input that hold no end of a head
        self._missing = 0  # bytes of a body under a known head
        self._left: int | None = None  # bytes of a body that the parser expects; None: chunks
        self._body = bytearray()  # what the parser has read of it and nobody has taken
        self._body_bytes = 0  # read by the parser
        self._fed_bytes = 0  # given to the parser, what is around chunks too
        self._fault: ServiceError | None = None  # found by a callback of the parser
        self._refusals: list[ServiceError] = []  # of the request on the long way
        self._raw_head = b""
        self._is_head_complete = False
        self._is_taken = False  # whether somebody answers the request whose body comes
        self._is_parsing = False
        self._parsed = 0  # requests whose head was parsed
        self._has_turn = False  # whether parsing goes on in a turn
        self._is_ahead = False  # input waits for a turn, or for the answer before it
        self._counted = 0  # bytes of the input that the intake counts
        self._has_room = True  # says the intake
        self._is_half_closed = False
        self._is_refused = False
        self._lingering = 0  # bytes thrown away since the refusal
        self._timer: asyncio.TimerHandle | None = None  # of a head, a body, grace or lingering
        self._idle_since: float | None = None
        self._unheard = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, in place of an idle one if there are too many."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._idle_since = self.loop.time()
        self._set_idle_timer(self.timeout_keep_alive)
        if len(self.connections) > self._limits.max_connections and not self._replace_idle():
            self.connections.discard(self)
            self._refuse(UnavailableError("too many connections are open"), is_logged=False)

    def _replace_idle(self) -> bool:
        """Close the connection that has been idle for longest; False if none has been for long."""
        now, desk = self.loop.time(), self._desk
        if now < desk.next_look_for_idle_s:
            return False
        idle = [
            (wire._idle_since, id(wire), wire)
            for wire in self.connections
            if isinstance(wire, Wire) and wire._idle_since is not None
        ]
        if not idle or min(idle)[0] > now - _MAY_GO_AFTER_S:
            desk.next_look_for_idle_s = now + _LOOK_FOR_IDLE_EVERY_S
            log.warning("too many connections", open=len(self.connections) - 1)
            return False
        wire = min(idle)[2]
        self.connections.discard(wire)
        wire.transport.close()
        return True

    def data_received(self, data: bytes) -> None:
        """Take in what has come; under a known head it is not parsed."""
        if self._missing:
            self._keep(data)
            return
        if self._expects is _Input.REQUEST and not self._input:
            end = data.find(_BLANK_LINE) + len(_BLANK_LINE)
            head = self._heads.get(data[:end])
            if head is not None and self._is_free():
                rest = data[end:]
                if len(rest) == head.length:  # as most come
                    self._idle_since = None
                    self._begin(head, keep_alive=True).complete(rest)
                else:
                    self._take_known(head, rest)
                return
        self._input += data
        self._parse()

    def _take_known(self, head: Head, rest: bytes) -> None:
        """Begin a request whose head came before; the rest is its body, or a part of it."""
        self._idle_since = None
        exchange = self._begin(head, keep_alive=True)
        if len(rest) == head.length:
            exchange.complete(rest)
            return
        self._missing = head.length
        self._expects = _Input.BODY
        self._arm(self._limits.body_timeout_s, self._on_body_timeout)
        self._keep(rest)

    def _keep(self, data: bytes) -> None:
        """Keep a part of a body under a known head."""
        exchange = self._exchange
        assert exchange is not None
        body, rest = data[: self._missing], data[self._missing :]
        exchange.chunks.append(body)
        self._missing -= len(body)
        if self._missing:
            self._desk.intake.add(self, len(body))
            return
        self._end_body()
        self._input += rest
        exchange.complete(b"".join(exchange.chunks))
        self._parse()

    def _parse(self, until: float = 0.0) -> None:
        """Parse what has come, up to the request whose answer has to be waited for.

        Args:
            until: When others get a turn, by `perf_counter`; a head and a part of its body are
                parsed in any case.
        """
        if self._is_parsing or self._has_turn:  # a request was answered at once
            return
        self._is_parsing = True
        parsed = self._parsed
        is_over = False
        while self._input and not is_over and self._step():
            is_in_body = self._expects is _Input.BODY
            # One request is enough.
            is_over = perf_counter() >= until if is_in_body else self._parsed != parsed
        self._is_parsing = False
        if is_over and self._input and (self._expects is _Input.BODY or self._is_free()):
            self._parse_later()
        else:
            self._settle()

    def _parse_later(self) -> None:
        """Go on in a turn: who sends much at once does not hold up others."""
        if not self._has_turn:
            self._has_turn = True
            self._hold(is_ahead=True)
            self._desk.turns.add(self._parse_in_turn)

    def _parse_in_turn(self) -> bool:
        self._has_turn = False
        self._parse(perf_counter() + _TURN_S)
        return False

    def _step(self) -> bool:
        """Parse a head, or a part of a body; False if that cannot be done now."""
        if self._expects is _Input.NOTHING:
            self._throw_away()
            return False
        if self._expects is _Input.BODY:
            self._parse_body()
            return True
        return self._is_free() and self._parse_head()

    def _settle(self) -> None:
        """Wait for an answer, for more input, or for the next request."""
        if self.transport.is_closing():
            return
        is_free = self._is_free()
        if self._is_ahead or self._input:
            self._hold(is_ahead=bool(self._input) and not is_free)
        if not is_free or self._expects is not _Input.REQUEST:
            return
        if self._is_half_closed:
            self.transport.close()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._set_idle_timer(self.timeout_keep_alive)

    def _hold(self, *, is_ahead: bool) -> None:
        """Leave input in the kernel while what has come waits."""
        was_ahead, self._is_ahead = self._is_ahead, is_ahead
        if is_ahead and len(self._input) > self._counted:
            count = len(self._input) - self._counted
            self._counted += count
            self._desk.intake.add(self, count)
        elif was_ahead and not is_ahead and self._expects is not _Input.BODY:
            self._forget_input()
        if is_ahead != was_ahead:
            self._read_or_not()

    def _forget_input(self) -> None:
        self._counted = 0
        self._desk.intake.remove(self)

    def _read_or_not(self) -> None:
        is_held = self._is_ahead or not self._has_room
        self.flow.is_held = is_held
        if is_held:
            self.flow.pause_reading()
        elif not self.transport.is_closing():
            self.flow.resume_reading()

    def _parse_head(self) -> bool:
        """Parse the head that the input begins with; False if it is not whole."""
        data = self._input
        if self._expects is _Input.REQUEST:
            self._expects = _Input.HEAD
            self._unset_keepalive_if_required()
            self._arm(self._limits.head_timeout_s, self._on_head_timeout)
        while data.startswith((b"\r", b"\n")):  # empty lines may come first (RFC 9112, 2.2)
            del data[:1]
        end = HEAD_END.search(data, max(0, self._scanned - 2))
        length = end.end() if end is not None else len(data)
        if length > self._limits.max_head_bytes:
            self._refuse_long_head(data)
            return False
        self._scanned = len(data)
        if end is None:
            return False
        head = bytes(data[:length])
        del data[:length]
        self._scanned = 0
        self._disarm()
        self._parsed += 1
        known = self._heads.get(head)
        if known is not None:
            self._expects = _Input.REQUEST
            rest = bytes(data[: known.length])
            del data[: known.length]
            self._take_known(known, rest)
            return not self._missing
        self._parse_new_head(head)
        return True

    def _parse_new_head(self, head: bytes) -> None:
        """Let the parser read a whole head."""
        self._expects = _Input.BODY
        self._is_taken = False
        if head.startswith(b"CONNECT "):
            self._refuse(MethodNotAllowedError("this server is no proxy", allow="GET, HEAD, POST"))
            return
        if head.startswith(b"PRI "):
            self._refuse(BadRequestError("HTTP/2 is not spoken here (allowed: HTTP/1.1, HTTP/1.0)"))
            return
        self._raw_head = head
        self._feed(without_upgrade(head))
        if self._expects is not _Input.BODY:
            return
        given = dict(self.headers)
        is_in_chunks = b"transfer-encoding" in given
        self._left = None if is_in_chunks else int(given.get(b"content-length", b"0"))
        self._body.clear()
        self._body_bytes = self._fed_bytes = 0
        self._arm(self._limits.body_timeout_s, self._on_body_timeout)

    def _parse_body(self) -> None:
        """Let the parser read a part of a body; never what may come after it."""
        data = self._input
        if self._left is None:
            end = HEAD_END.search(data, 0, _LONGEST_FED)
            length = end.end() if end is not None else min(len(data), _LONGEST_FED)
        else:
            length = min(self._left, len(data))
            self._left -= length
        piece = bytes(data[:length])
        del data[:length]
        self._fed_bytes += length
        self._feed(piece)
        if self._expects is not _Input.BODY:
            return
        if self._is_answered():
            self._throw_away(length)
            return
        known = min(length, self._counted)
        self._counted -= known
        self._desk.intake.add(self, length - known)
        extra = self._fed_bytes - self._body_bytes
        most = self._limits.max_head_bytes + _CHUNK_HEAD_BYTES * self._body_bytes
        if self._left is None and extra > most:
            self._refuse(HeadersTooLargeError(
                f"chunk headers and trailers are longer than the "
                f"{self._limits.max_head_bytes} bytes that are read"
            ))  # fmt: skip

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._refuse(self._fault or BadRequestError(f"this is not HTTP/1.1: {exc}"))
            return
        if self._expects is _Input.BODY:
            self._take_body()
        if self._fault is not None:
            self._refuse(self._fault)

    def _take_body(self) -> None:
        """Look at what the parser has read of a body; the long way gets it at once."""
        if self._exchange is None:
            if self._body:
                self._body_bytes += len(self._body)
                super().on_body(bytes(self._body))
                self._body.clear()
            return
        self._body_bytes = len(self._body)
        try:
            self._desk.policy.check_length(self._body_bytes)
        except ServiceError as exc:
            self._fault = exc

    def _end_body(self) -> None:
        self._expects = _Input.REQUEST
        self._disarm()
        self._forget_input()

    # Callbacks of the parser. They must not raise: the parser would be lost.

    def on_message_begin(self) -> None:
        """Begin a request; its scope is made when it turns out to be needed."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._is_head_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; trailers mean nothing here, and are not kept."""
        if not self._is_head_complete:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Take the short way, or the long one."""
        self._is_head_complete = True
        version = self.parser.get_http_version()
        self._fault = fault_of(version, self.headers)
        if self._fault is not None:
            return
        if version == "1.0":  # means nothing there (RFC 9110, 10.1.1)
            self.expect_100_continue = False
        self._is_taken = True
        self.url = _path_of(self.url)
        if self._is_admitted():
            return
        url, headers, is_expected = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, is_expected
        self.headers += headers
        self._refusals = self.scope["state"][REFUSALS] = []
        super().on_headers_complete()
        if self._desk.health.is_draining:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body, which may be one byte: a chunk."""
        self._body += body

    def on_message_complete(self) -> None:
        """Bring a complete request to the desk."""
        if self._fault is None:
            self._take_body()
        if self._fault is not None:
            return
        self._end_body()
        exchange = self._exchange
        if exchange is None:
            super().on_message_complete()
        else:
            body = bytes(self._body)
            self._body.clear()
            exchange.complete(body)

    # What is refused.

    def _refuse(self, error: ServiceError, *, is_logged: bool = True) -> None:
        """Answer what cannot be taken, and close the connection when that has been sent."""
        # If this request was answered, it was by its head, before its body came.
        is_late = self._expects is _Input.BODY and self._is_taken
        self._stop_reading()
        exchange, cycle = self._exchange, self.cycle
        if exchange is not None:
            exchange.keep_alive = False
            if not exchange.is_complete:
                exchange.errand.refuse(error)
        elif not self._is_answered():
            self._refusals.append(error)  # the door answers it
            cycle.keep_alive = False
            cycle.transport = _GentleTransport(self.transport, self._close)  # type: ignore[assignment]
            cycle.message_event.set()
        elif is_late:
            self._close()
        elif not self.transport.is_closing():
            reply = failure(error, request_id_of({}), OTHER, is_logged=is_logged)
            self._desk.metrics.answered(OTHER, reply.status, 0.0)
            self._write(reply, keep_alive=False)

    def _stop_reading(self) -> None:
        """Parse nothing of this connection any more."""
        self._expects = _Input.NOTHING
        self._is_refused = True
        self._input.clear()
        self._fault = None
        self._missing = 0
        self._is_ahead = False
        self._has_room = True
        self._body.clear()
        self._disarm()
        self._unset_keepalive_if_required()
        self._forget_input()
        self._read_or_not()

    def _throw_away(self, count: int = 0) -> None:
        """Drop what comes after a refusal; at last stop the caller that sends on and on."""
        self._lingering += count + len(self._input)
        self._input.clear()
        if self._lingering > _MOST_LINGERING_BYTES:
            self._stop_reading()
            self.transport.close()

    def _close(self) -> None:
        """Close when all is sent.

        If more may come, that is read and thrown away for a moment: the kernel answers input that
        nobody reads by a reset, which destroys the reply on its way.
        """
        if not self._is_refused or self.transport.is_closing():
            self.transport.close()
            return
        with contextlib.suppress(OSError):  # the caller has left
            self.transport.write_eof()
        self._arm(_LINGER_S, self.transport.close)

    def _refuse_long_head(self, data: bytearray) -> None:
        limit = self._limits.max_head_bytes
        if 0 <= data.find(b"\n") < limit:
            self._refuse(HeadersTooLargeError(f"the head is longer than the {limit} bytes read"))
        else:
            self._refuse(UriTooLongError(f"the target is longer than the {limit} bytes read"))

    def _on_head_timeout(self) -> None:
        limit_s = self._limits.head_timeout_s
        self._refuse(RequestTimeoutError(f"the request's head did not come within {limit_s:g} s"))

    def _on_body_timeout(self) -> None:
        limit_s = self._limits.body_timeout_s
        self._refuse(RequestTimeoutError(f"the request's body did not come within {limit_s:g} s"))

    def hold_input(self) -> None:
        """Leave input in the kernel (see `service.http.buffers`)."""
        self._has_room = False
        self._read_or_not()

    def take_input(self) -> None:
        """Read again."""
        self._has_room = True
        self._read_or_not()

    def cut_input(self) -> None:
        """Refuse a request that keeps others from being read."""
        self._refuse(UnavailableError("too much is sent at once, and this request stands still"))

    def _arm(self, seconds: float, on_time: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, on_time)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # How a connection ends.

    def eof_received(self) -> bool:  # type: ignore[override]
        """Let a caller that sends no more have its answer; True keeps the connection open."""
        if self._expects in (_Input.HEAD, _Input.BODY) and not self._is_ahead:
            self._refuse(BadRequestError("the connection was closed within a request"))
            return not self.transport.is_closing()
        if self._expects is _Input.NOTHING or (self._is_free() and not self._input):
            return False
        self._is_half_closed = True
        self._arm(_GRACE_S, self._on_grace_over)
        return True

    def _on_grace_over(self) -> None:
        """Give up a caller that may have left: TCP cannot tell."""
        exchange = self._exchange
        is_begun = self.cycle.response_started if exchange is None else exchange.parts is not None
        if not self._is_answered() and not is_begun:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take back the request that nobody waits for any more."""
        super().connection_lost(exc)
        self._disarm()
        self._input.clear()
        self._body.clear()
        self._expects = _Input.NOTHING
        self._forget_input()
        self._desk.unread.remove(self)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        # Nothing of a connection that is gone is left to the garbage collector, which comes
        # seldom: what it refers to does not refer to it any more.
        self.cycle = None  # type: ignore[assignment]
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.parts is not None:
            self._end_exchange(CLIENT_GONE)
        elif exchange.is_complete:
            exchange.errand.cancel()
        else:
            exchange.errand.abandon()

    def stop_keeping(self) -> None:
        """Close the connection after the reply that is under way, if one is."""
        if not self._is_answered():
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close a busy connection after its reply, an idle one soon: a request may be under way."""
        self.stop_keeping()
        self.loop.call_later(_LAST_REQUEST_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self._idle_since is not None:
            self.transport.close()

    # The short way.

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _is_free(self) -> bool:
        """Whether a request may be replied to as soon as its result is there."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and not self.flow.write_paused

    def _is_admitted(self) -> bool:
        """Let in a plain request; False for all others.

        What is refused by its headers goes the long way too: the door says why.
        """
        path = self._paths.get(self.url)
        if (
            path is None
            or self.expect_100_continue
            or self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
        ):
            return False
        headers = dict(self.headers)
        length = headers.get(b"content-length")
        if length is None and b"transfer-encoding" not in headers:
            return False
        head = Head(path, headers, int(length or 0))
        keep_alive = self.parser.should_keep_alive()
        try:
            self._desk.policy.check(path, headers)
            self._begin(head, keep_alive)
        except ServiceError:
            return False
        if keep_alive and length is not None and is_one_head(self._raw_head):
            if len(self._heads) >= _HEADS_KEPT:
                self._heads.clear()
            self._heads[self._raw_head] = head
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
        if reply is None or self.transport.is_closing():
            self._end_exchange(CLIENT_GONE if reply is None else reply.status)
            return
        keep_alive = exchange.keep_alive and not self._desk.health.is_draining
        if reply.parts is None:
            # Before it is written: to write may be to learn that the caller does not read.
            exchange.response_complete = True
            self._write(reply, keep_alive)
            self._end_exchange(reply.status)
        else:
            self._write(reply, keep_alive)
            exchange.parts, exchange.held_bytes = reply.parts
            self._desk.turns.add(self._write_part)

    def _end_exchange(self, status: int) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        exchange.response_complete = True
        exchange.chunks = []  # a closed connection stays until garbage is collected
        self._desk.metrics.answered(exchange.path, status, perf_counter() - exchange.started)
        self.on_response_complete()

    def _write(self, reply: Reply, keep_alive: bool) -> None:
        common = self._desk.common_lines(self.server_state.default_headers)
        end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        if reply.parts is not None:
            end = b"transfer-encoding: chunked\r\n" + end
        lines = STATUS_LINE[reply.status], common, reply.head, end, reply.body
        self.transport.write(b"".join(lines))
        if not keep_alive:
            self._expects = _Input.NOTHING
            if reply.parts is None:
                self._close()

    def _write_part(self) -> bool:
        """Write the next part of a long answer; tell whether another one may follow now."""
        exchange = self._exchange
        if exchange is None or exchange.parts is None:  # its caller has left
            return False
        if self.flow.write_paused:  # goes on when the caller reads
            exchange.is_waiting = True
            return False
        try:
            text = next(exchange.parts, b"")
        except Exception as exc:  # its head was sent: it can only be cut off
            log.error("answer cut off", path=exchange.path, exc_info=exc)
            self.transport.abort()
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(text), text))
        if text:
            return True
        if self._expects is _Input.NOTHING:
            self._close()
        self._end_exchange(200)
        return False

    # Callers that do not read.

    @property
    def unread_bytes(self) -> int:
        """What is kept for a caller that does not read."""
        held = self._exchange.held_bytes if self._exchange is not None else 0
        return held + self.transport.get_write_buffer_size()

    def cut_output(self) -> None:
        """Close a connection whose caller does not read."""
        log.warning("connection cut", reason="its answer is not read", unread=self.unread_bytes)
        self.transport.abort()

    def pause_writing(self) -> None:
        """Stop: the caller does not read."""
        super().pause_writing()
        self._desk.unread.add(self)

    def resume_writing(self) -> None:
        """Go on: the caller has read."""
        super().resume_writing()
        self._desk.unread.remove(self)
        exchange = self._exchange
        if exchange is not None and exchange.is_waiting:
            exchange.is_waiting = False
            self._desk.turns.add(self._write_part)
        self._parse()

    # uvicorn sets a timer after every reply, and cancels it at the next request. One that looks
    # when it fires how long the connection has been idle is cheaper by several microseconds.

    def on_response_complete(self) -> None:
        """Go on with what the connection has sent already, or be idle."""
        self.server_state.total_requests += 1
        if self._is_parsing:  # the loop that answered it goes on
            return
        if self._expects is _Input.BODY and self._left != 0:
            # Refused by its head. A short body is read and dropped, and the connection kept.
            if self._left is None or self._left > _LONGEST_DROPPED:
                self._stop_reading()
                self._close()
        elif self._input and not self.transport.is_closing():
            self._parse_later()
        else:
            self._settle()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long enough."""
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._set_idle_timer(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _set_idle_timer(self, seconds: float) -> None:
        on_time = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(seconds, on_time)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None


class _GentleTransport:
    """A transport to uvicorn's cycles, which close it as `Wire._close` does."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


class _Exchange:
    """A request on the short way; to uvicorn it is one of its cycles.

    Attributes:
        chunks: Parts of the body that have come.
        is_complete: Whether all of it has.
        keep_alive: Whether the connection stays open; uvicorn ends that at shutdown.
        response_complete: Whether it was replied to; uvicorn looks at it.
        parts: What is left of a long answer.
        held_bytes: What is kept for that.
        is_waiting: Whether its caller has to read before it goes on.
        disconnected: Set by uvicorn, as is the event; nobody listens here.
    """

    __slots__ = (
        "chunks", "disconnected", "errand", "held_bytes", "is_complete", "is_waiting",
        "keep_alive", "message_event", "parts", "path", "response_complete", "started",
    )  # fmt: skip

    def __init__(self, path: str, errand: Errand, keep_alive: bool, event: asyncio.Event) -> None:
        self.started = perf_counter()
        self.path = path
        self.errand = errand
        self.chunks: list[bytes] = []
        self.is_complete = False
        self.keep_alive = keep_alive
        self.response_complete = False
        self.parts: Iterator[bytes] | None = None
        self.held_bytes = 0
        self.is_waiting = False
        self.disconnected = False
        self.message_event = event

    def complete(self, body: bytes) -> None:
        """Bring the body to the desk; it has come."""
        self.is_complete = True
        self.chunks = []
        self.errand.start(body)


def is_one_head(raw: bytes) -> bool:
    """Whether input up to its first empty line is the head of one POST, by any reading of HTTP.

    A parser that takes less than CRLF for the end of a line might see the head's end elsewhere.
    """
    lines = raw.count(b"\r\n")
    is_plain = lines == raw.count(b"\n") == raw.count(b"\r")
    return len(raw) <= _LONGEST_KEPT and raw.startswith(b"POST ") and is_plain


def _path_of(target: bytes) -> bytes:
    """Return the path and query of a target that may be a whole address (RFC 9112, 3.2.2)."""
    if not target.lower().startswith((b"http://", b"https://")):
        return target
    rest = target[target.index(b"//") + 2 :]
    begin = next((k for k, byte in enumerate(rest) if byte in b"/?"), len(rest))
    return rest[begin:] if rest[begin : begin + 1] == b"/" else b"/" + rest[begin:]
