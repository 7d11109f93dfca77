"""Bytes to requests: what has come on a connection, parsed one request at a time.

What comes is kept until it is a whole head, and parsed only when the request before it has been
answered and its answer read. So a caller that sends ahead, or does not read, is left waiting by
TCP: one connection holds one request, whatever is sent on it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from time import perf_counter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.errors import (
    BadRequestError,
    HeadersTooLargeError,
    RequestTimeoutError,
    ServiceError,
    UnavailableError,
)
from service.http.buffers import Flow, Hold
from service.http.chunks import Chunks
from service.http.connections import Connections
from service.http.exchange import Head
from service.http.heads import HEAD_END, fault_of_lines, without_upgrade
from service.interface import Headers

_MOST_EMPTY = 16
"""Bytes of empty lines that may come before a request."""

_TURN_S = 0.0005
"""Time for which input is parsed before others get a turn."""

_CHUNK_HEAD_BYTES = 8
"""What may be around each byte of a body in chunks: a chunk of one byte has five around it."""

_MOST_LINGERING_BYTES = 2**18
"""After a refusal input is thrown away for a while: closing at once would destroy the reply."""


class Expected(Enum):
    """What a connection expects to come next."""

    REQUEST = "request"
    HEAD = "rest of a head"
    BODY = "rest of a body"
    NOTHING = "nothing"


class Input(HttpToolsProtocol, ABC):
    """The side of a connection that takes in.

    Attributes:
        shared: With all connections; `service.http.protocol.protocol_for` sets it.
    """

    shared: Connections
    flow: Flow
    cycle: Any  # uvicorn's of the last request, or the protocol's own

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = self.shared.limits
        self._heads = self.shared.heads
        self._input = bytearray()  # has come and is not parsed
        self._expects = Expected.REQUEST
        self._scanned = 0  # bytes of the input that hold no end of a head
        self._left: int | None = None  # bytes of a body that the parser expects; None: chunks
        self._chunks = Chunks()
        self._body = bytearray()  # what the parser has read of it and nobody has taken
        self._missing = 0  # bytes of a body under a known head that have not come
        self._body_bytes = 0  # read by the parser
        self._fed_bytes = 0  # given to the parser, what is around chunks too
        self._fault: ServiceError | None = None  # found by a callback of the parser
        self._empty = 0  # bytes of empty lines before a head
        self._raw_head = b""  # while the parser reads it
        self._named: Headers = {}  # the headers by name
        self._is_head_complete = False
        self._is_taken = False  # whether somebody answers the request whose body comes
        self._is_parsing = False
        self._parsed = 0  # requests whose head was parsed
        self._has_turn = False  # whether parsing goes on in a turn
        self._is_ahead = False  # input waits for a turn, or for the answer before it
        self._counted = 0  # bytes of the input that the intake counts
        self._lingering = 0  # bytes thrown away since a refusal
        self._timer: asyncio.TimerHandle | None = None  # of a head, a body, grace or lingering

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
        is_over = is_in_body = False
        while self._input and not is_over and self._step():
            was_in_body, is_in_body = is_in_body, self._expects is Expected.BODY
            if not is_in_body:
                is_over = self._parsed != parsed  # one request is enough
            elif was_in_body:
                is_over = perf_counter() >= until
        self._is_parsing = False
        if is_over and self._input and (self._expects is Expected.BODY or self._is_free()):
            self._parse_later()
        else:
            self._settle()

    def _parse_later(self) -> None:
        """Go on in a turn: who sends much at once does not hold up others."""
        if not self._has_turn:
            self._has_turn = True
            self._hold(is_ahead=True)
            self.shared.turns.add(self._parse_in_turn)

    def _parse_in_turn(self) -> bool:
        self._has_turn = False
        self._parse(perf_counter() + _TURN_S)
        return False

    def _step(self) -> bool:
        """Parse a head, or a part of a body; False if that cannot be done now."""
        if self._expects is Expected.NOTHING:
            self._throw_away()
            return False
        if self._expects is Expected.BODY:
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
        if not is_free or self._expects is not Expected.REQUEST:
            return
        self._be_idle()

    def _hold(self, *, is_ahead: bool) -> None:
        """Leave input in the kernel while what has come waits."""
        was_ahead, self._is_ahead = self._is_ahead, is_ahead
        if is_ahead:
            self.flow.hold(Hold.AHEAD)
            count = len(self._input) - self._counted
            if count > 0:
                self._counted += count
                self.shared.intake.add(self, count)
        elif was_ahead:
            if self._expects is not Expected.BODY:
                self._forget_input()
            self.flow.release(Hold.AHEAD)

    def _forget_input(self) -> None:
        self._counted = 0
        self.shared.intake.remove(self)

    def _pause(self) -> None:
        """Read no more until the next time round the event loop.

        libuv reads up to 32 times in a row, 8 MiB, from a caller that sends as fast.
        """
        self.flow.hold(Hold.PAUSE)
        self.loop.call_soon(self.flow.release, Hold.PAUSE)

    def _parse_head(self) -> bool:
        """Parse the head that the input begins with; False if it is not whole."""
        data = self._input
        if self._expects is Expected.REQUEST:
            self._expects = Expected.HEAD
            self._unset_keepalive_if_required()
            self._arm(self._limits.head_timeout_s, self._on_head_timeout)
        if data.startswith((b"\r", b"\n")):  # a few empty lines may come first (RFC 9112, 2.2)
            begin = data[: _MOST_EMPTY + 1]
            count = len(begin) - len(begin.lstrip(b"\r\n"))
            self._empty += count
            if self._empty > _MOST_EMPTY:
                self._refuse(BadRequestError("there is no request, but empty lines"))
                return False
            del data[:count]
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
        self._scanned = self._empty = 0
        self._disarm()
        self._parsed += 1
        known = self._heads.get(head)
        if known is not None:
            self._expects = Expected.REQUEST
            rest = bytes(data[: known.length])
            del data[: known.length]
            return self._take_known(known, rest)
        self._parse_new_head(head)
        return True

    def _parse_new_head(self, head: bytes) -> None:
        """Let the parser read a whole head."""
        self._expects = Expected.BODY
        self._is_taken = False
        self._lingering = 0
        fault = fault_of_lines(head, self._limits.max_head_bytes)
        if fault is not None:
            self._refuse(fault)
            return
        if self._left is None:
            # Trailers are headers to the parser: after `Connection: close` it reads nothing more.
            self.parser = httptools.HttpRequestParser(self)
        self._is_head_complete = False
        self._raw_head = head
        self._feed(without_upgrade(head))
        self._raw_head = b""
        if self._expects is not Expected.BODY:
            return
        if not self._is_head_complete:  # what it says of the body is not known
            self._refuse(BadRequestError("the head has no clear end"))
            return
        if b"transfer-encoding" in self._named:
            self._left, self._chunks = None, Chunks()
        else:
            self._left = int(self._named.get(b"content-length", b"0"))
        self._body.clear()
        self._body_bytes = self._fed_bytes = 0
        self._arm(self._limits.body_timeout_s, self._on_body_timeout)

    def _parse_body(self) -> None:
        """Let the parser read a part of a body; never what may come after it."""
        data = self._input
        if self._left is None:
            length = self._chunks.take(data)
        else:
            length = min(self._left, len(data))
            self._left -= length
        piece = bytes(data[:length])
        del data[:length]
        self._fed_bytes += length
        self._feed(piece)
        if self._expects is not Expected.BODY:
            return
        if self._left is None and self._chunks.is_over:  # not as the parser sees it
            self._refuse(BadRequestError("the body in chunks has no clear end"))
            return
        if self._is_answered():
            self._throw_away(length)
            return
        known = min(length, self._counted)
        self._counted -= known
        self.shared.intake.add(self, length - known)
        extra = self._fed_bytes - self._body_bytes
        most = self._limits.max_head_bytes + _CHUNK_HEAD_BYTES * self._body_bytes
        is_long = extra > most or self._chunks.line_bytes > self._limits.max_head_bytes
        if self._left is None and is_long:
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
        if self._expects is Expected.BODY:
            self._take_body()
        if self._fault is not None:
            self._refuse(self._fault)

    def _end_body(self) -> None:
        self._expects = Expected.REQUEST
        self._disarm()
        self._forget_input()

    # What the protocol does with it.

    @abstractmethod
    def _is_answered(self) -> bool:
        """Tell whether no request waits for its answer."""

    @abstractmethod
    def _is_free(self) -> bool:
        """Tell whether a request may be replied to as soon as its result is there."""

    @abstractmethod
    def _take_known(self, head: Head, rest: bytes) -> bool:
        """Begin a request whose head came before; the rest is its body, or a part of it.

        Returns:
            Whether that was all of it.
        """

    @abstractmethod
    def _take_body(self) -> None:
        """Look at what the parser has read of a body."""

    @abstractmethod
    def _be_idle(self) -> None:
        """Wait for the next request."""

    @abstractmethod
    def _refuse(self, error: ServiceError, *, is_logged: bool = True) -> None:
        """Answer what cannot be taken, and close the connection when that has been sent."""

    # Callbacks of the parser. They must not raise: the parser would be lost.

    def on_message_begin(self) -> None:
        """Begin a request; its scope is made when it turns out to be needed.

        Raises:
            BadRequestError: It was read together with the one before it. That must not be; the
                connection is of no use any more.
        """
        if not self._raw_head:
            self._fault = BadRequestError("one request ends where another one has begun")
            raise self._fault
        self.url = b""
        self.headers = []
        self._named = {}
        self.expect_100_continue = False
        self._is_head_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; trailers mean nothing here, and are not kept."""
        if not self._is_head_complete:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body, which may be one byte: a chunk."""
        self._body += body

    # What is not taken in.

    def _stop_reading(self) -> None:
        """Parse nothing of this connection any more."""
        self._expects = Expected.NOTHING
        self._input.clear()
        self._fault = None
        self._is_ahead = False
        self._body.clear()
        self._disarm()
        self._unset_keepalive_if_required()
        self._forget_input()
        self.flow.release(Hold.AHEAD, Hold.ROOM)

    def _throw_away(self, count: int = 0) -> None:
        """Drop what comes after a refusal; at last stop the caller that sends on and on."""
        self._lingering += count + len(self._input)
        self._input.clear()
        if self._lingering > _MOST_LINGERING_BYTES:
            self._stop_reading()
            self.transport.close()

    def _refuse_long_head(self, data: bytearray) -> None:
        limit = self._limits.max_head_bytes
        fault = fault_of_lines(bytes(data[:limit]), limit)
        self._refuse(
            fault or HeadersTooLargeError(f"the head is longer than the {limit} bytes read")
        )

    def _on_head_timeout(self) -> None:
        limit_s = self._limits.head_timeout_s
        self._refuse(RequestTimeoutError(f"the request's head did not come within {limit_s:g} s"))

    def _on_body_timeout(self) -> None:
        limit_s = self._limits.body_timeout_s
        self._refuse(RequestTimeoutError(f"the request's body did not come within {limit_s:g} s"))

    # What the intake asks of a connection (see `service.http.buffers`).

    @property
    def is_paused(self) -> bool:
        """Whether it is not read for another reason than room."""
        return self._is_ahead

    @property
    def is_ahead(self) -> bool:
        """Whether what has come waits for the answer to a request before it."""
        return self._is_ahead and self._expects is not Expected.BODY

    @property
    def pending_bytes(self) -> int:
        """What has come and was not read."""
        return 0 if self.transport.is_closing() else self.flow.pending_bytes

    def hold_input(self) -> None:
        """Leave input in the kernel."""
        self.flow.hold(Hold.ROOM)

    def take_input(self) -> None:
        """Read again."""
        self.flow.release(Hold.ROOM)

    def cut_input(self) -> None:
        """Refuse a request that keeps others from being read."""
        self._refuse(UnavailableError("too much is sent at once"))

    def _arm(self, seconds: float, on_time: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, on_time)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
