"""The short path of a request: uvicorn's HTTP protocol, with bounds, straight to an exchange.

A prediction request that is plain in every respect needs neither an ASGI scope nor a task of its
own: its body goes to its exchange when it is complete, and the reply to the socket. That takes less
than half the time. Whatever is not plain (see `Protocol._is_admitted`), and whatever is refused by
its headers, takes the long path through uvicorn and the middleware, which know all of HTTP.

Callers send the same heads again and again. One that comes again to the byte is not parsed: it
means what it meant.

Of a connection's other sides, `service.http.input` parses what comes, and `service.http.lifetime`
begins and ends it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import ServiceError
from service.http.answers import Parts, Reply
from service.http.connections import Connections
from service.http.exchange import CLIENT_GONE, Exchange, Exchanges, Head, Respond, request_id_of
from service.http.failures import failure
from service.http.heads import fault_of, is_one_head, path_of
from service.http.input import Expected
from service.http.lifetime import Lifetime
from service.http.middleware import REFUSALS
from service.http.peers import Address
from service.telemetry.requests import OTHER

log = structlog.get_logger()

_BLANK_LINE = b"\r\n\r\n"
_MUCH_AT_ONCE = 2**17
"""Bytes that come in one read; a read takes at most 2**18."""


def protocol_for(connections: Connections, base: type[Protocol] | None = None) -> type[Protocol]:
    """Return the protocol class of one service; uvicorn makes an instance a connection.

    Args:
        connections: What they share.
        base: To derive it from.
    """
    return type("ServedProtocol", (base or Protocol,), {"shared": connections})


class Protocol(Lifetime):
    """One connection.

    Its state belongs to the event loop's thread. One request at a time is parsed and answered.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._exchanges = self.shared.exchanges
        self._policy = self._exchanges.policy
        self._request: _Request | None = None
        self._refusals: list[ServiceError] = []  # of the request on the long path
        self._unheard = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Take in what has come; under a known head it is not parsed."""
        if len(data) > _MUCH_AT_ONCE:
            self._pause()
        if self._missing:
            self._keep(data)
            return
        if self._expects is Expected.REQUEST and not self._input:
            end = data.find(_BLANK_LINE) + len(_BLANK_LINE)
            head = self._heads.get(data[:end])
            if head is not None and self._is_free():
                rest = data[end:]
                if len(rest) == head.length:  # as most come
                    self.idle_since_s = None
                    self._begin(head, keep_alive=True).complete(rest)
                else:
                    self._take_known(head, rest)
                return
        self._input += data
        if self.shared.turns.is_late():
            self._unset_keepalive_if_required()
            self._parse_later()
        else:
            self._parse()

    def _take_known(self, head: Head, rest: bytes) -> bool:
        self.idle_since_s = None
        request = self._begin(head, keep_alive=True)
        if len(rest) == head.length:
            request.complete(rest)
            return True
        self._missing = head.length
        self._expects = Expected.BODY
        self._arm(self._limits.body_timeout_s, self._on_body_timeout)
        self._keep(rest)
        return not self._missing

    def _keep(self, data: bytes) -> None:
        """Keep a part of a body under a known head."""
        body, rest = data[: self._missing], data[self._missing :]
        self._body += body
        self._missing -= len(body)
        if self._missing:
            self.shared.intake.add(self, len(body))
            return
        self._end_body()
        self._input += rest
        self._complete()
        self._parse()

    def _take_body(self) -> None:
        """Look at what the parser has read of a body; the long path gets it at once."""
        if self._request is None:
            if self._body:
                self._body_bytes += len(self._body)
                HttpToolsProtocol.on_body(self, bytes(self._body))
                self._body.clear()
            return
        self._body_bytes = len(self._body)
        try:
            self._policy.check_length(self._body_bytes)
        except ServiceError as exc:
            self._fault = exc

    def _be_idle(self) -> None:
        if self._is_half_closed:
            self.transport.close()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        self.idle_since_s = self.loop.time()
        if self._is_ending:  # its answer had begun before, and did not say so
            self._close_soon()
        if self.timeout_keep_alive_task is None:
            self._set_idle_timer(self.timeout_keep_alive)

    def on_headers_complete(self) -> None:
        """Take the short path, or the long one."""
        self._is_head_complete = True
        self._named = dict(self.headers)
        version = self.parser.get_http_version()
        self._fault = fault_of(version, self.headers, self._named)
        if self._fault is not None:
            return
        if version == "1.0":  # means nothing there (RFC 9110, 10.1.1)
            self.expect_100_continue = False
        self._is_taken = True
        self.url = path_of(self.url)
        if self._is_admitted():
            return
        url, headers, is_expected = self.url, self.headers, self.expect_100_continue
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.expect_100_continue = url, is_expected
        self.headers += headers
        self._refusals = self.scope["state"][REFUSALS] = []
        HttpToolsProtocol.on_headers_complete(self)
        if self.shared.health.is_draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Bring a complete request to its exchange."""
        if self._fault is None:
            self._take_body()
        if self._fault is not None:
            return
        self._end_body()
        if self._request is None:
            super().on_message_complete()
        else:
            self._complete()

    def _complete(self) -> None:
        request, body = self._request, bytes(self._body)
        assert request is not None
        self._body.clear()
        request.complete(body)

    # What is refused.

    def _refuse(self, error: ServiceError, *, is_logged: bool = True) -> None:
        """Answer what cannot be taken, and close the connection when that has been sent."""
        # If this request was answered, it was by its head, before its body came.
        is_late = self._expects is Expected.BODY and self._is_taken
        self._stop_reading()
        request, cycle = self._request, self.cycle
        if request is not None:
            request.keep_alive = False
            if not request.is_complete:
                self._respond(request.failure(error))
        elif not self._is_answered():
            self._refusals.append(error)  # the middleware answers it
            self._close_after(cycle)
            cycle.message_event.set()
        elif is_late:
            self._close()
        elif not self.transport.is_closing():
            who = self._exchanges.who(self.client, {})
            reply = failure(error, request_id_of({}), OTHER, who, is_logged=is_logged)
            self._metrics.answered(OTHER, reply.status, 0.0, self._policy.unchecked_key)
            self._write(reply, keep_alive=False)

    # Exchanges and their answers.

    def _give_up(self) -> None:
        request = self._request
        if request is None:
            return
        if request.parts is not None:
            self._end_request(CLIENT_GONE)
        elif request.is_complete:
            request.cancel()
        else:
            self._respond(None)

    def _awaits_attribution(self) -> bool:
        request = self._request
        return request is not None and request.is_complete and request.awaits_attribution

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _is_free(self) -> bool:
        """Whether a request may be replied to as soon as its result is there."""
        is_answered = self.cycle is None or self.cycle.response_complete
        return is_answered and not self.flow.write_paused

    def _is_admitted(self) -> bool:
        """Let in a plain request; False for all others.

        What is refused by its headers takes the long path too: the middleware says why.
        """
        path, headers = self.shared.paths.get(self.url), self._named
        length = headers.get(b"content-length")
        if (
            path is None
            or self.expect_100_continue
            or self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
            or (length is None and b"transfer-encoding" not in headers)
        ):
            return False
        keep_alive = self.parser.should_keep_alive()
        try:
            key = self._policy.key_of(path, headers)
            self._policy.check(headers)
            head = self._exchanges.head(path, headers, key, int(length or 0))
        except ServiceError:
            return False
        self._begin(head, keep_alive)
        if keep_alive and length is not None and is_one_head(self._raw_head):
            self._heads.keep(self._raw_head, head)
        return True

    def _begin(self, head: Head, keep_alive: bool) -> _Request:
        request = _Request(
            self._exchanges, head, keep_alive, self._unheard, self._respond, self.client
        )
        self._request = self.cycle = request
        return request

    def _respond(self, reply: Reply | None) -> None:
        request = self._request
        assert request is not None
        if reply is None or self.transport.is_closing():
            self._end_request(CLIENT_GONE if reply is None else reply.status)
            return
        keep_alive = request.keep_alive and not self.shared.health.is_draining
        if reply.parts is None:
            # Before it is written: to write may be to learn that the caller does not read.
            request.response_complete = True
            self._write(reply, keep_alive)
            self._end_request(reply.status)
        else:
            self._write(reply, keep_alive)
            request.parts = reply.parts
            self.shared.turns.add(self._write_part)

    def _end_request(self, status: int) -> None:
        request, self._request = self._request, None
        assert request is not None
        request.response_complete = True
        request.finish(status)
        self.on_response_complete()

    def _write(self, reply: Reply, keep_alive: bool) -> None:
        shared, headers = self.shared, self.server_state.default_headers
        common = shared.common_lines if headers is shared.common else shared.lines_of(headers)
        end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
        if reply.parts is not None:
            end = b"transfer-encoding: chunked\r\n" + end
        lines = STATUS_LINE[reply.status], common, reply.head, end, reply.body
        self.transport.write(b"".join(lines))
        if not keep_alive:
            self._expects = Expected.NOTHING
            if reply.parts is None:
                self._close()

    def _write_part(self) -> bool:
        """Write the next part of a long answer; tell whether another one may follow now."""
        request = self._request
        if request is None or request.parts is None:  # its caller has left
            return False
        if self.flow.write_paused:  # goes on when the caller reads
            request.is_waiting = True
            return False
        try:
            text = next(request.parts.texts, b"")
        except Exception as exc:  # its head was sent: it can only be cut off
            log.error("answer cut off", path=request.label, exc_info=exc)
            self.transport.abort()
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(text), text))
        if text:
            return True
        if self._expects is Expected.NOTHING:
            self._close()
        self._end_request(200)
        return False

    # Callers that do not read.

    @property
    def unread_bytes(self) -> int:
        """What is kept for a caller that does not read."""
        parts = self._request.parts if self._request is not None else None
        return super().unread_bytes + (parts.held_bytes if parts is not None else 0)

    def resume_writing(self) -> None:
        """Go on: the caller has read."""
        super().resume_writing()
        request = self._request
        if request is not None and request.is_waiting:
            request.is_waiting = False
            self.shared.turns.add(self._write_part)
        self._parse()

    def on_response_complete(self) -> None:
        """Go on with what the connection has sent already, or be idle."""
        self.server_state.total_requests += 1
        if self._is_parsing:  # the loop that answered it goes on
            return
        if self._input and not self.transport.is_closing():
            self._parse_later()
        elif self._is_ahead or self.flow.write_paused or self.transport.is_closing():
            self._settle()
        elif self._expects is Expected.REQUEST:
            self._be_idle()


class _Request(Exchange):
    """An exchange on the short path; to uvicorn it is one of its cycles.

    Attributes:
        is_complete: Whether its body has come.
        keep_alive: Whether the connection stays open; uvicorn ends that at shutdown.
        response_complete: Whether it was replied to; uvicorn looks at it.
        parts: What is left of a long answer.
        is_waiting: Whether its caller has to read before it goes on.
        disconnected: Set by uvicorn, as is the event; nobody listens here.
    """

    __slots__ = (
        "disconnected", "is_complete", "is_waiting", "keep_alive", "message_event", "parts",
        "response_complete",
    )  # fmt: skip

    def __init__(
        self,
        shared: Exchanges,
        head: Head,
        keep_alive: bool,
        event: asyncio.Event,
        respond: Respond,
        address: Address,
    ) -> None:
        path = head.endpoint.path
        super().__init__(shared, "POST", path, head.headers, path, address, head.key)
        self._head = head
        self._respond = respond
        self.is_complete = False
        self.keep_alive = keep_alive
        self.response_complete = False
        self.parts: Parts | None = None
        self.is_waiting = False
        self.disconnected = False
        self.message_event = event

    @property
    def response_started(self) -> bool:
        """Whether a part of its answer was sent; uvicorn's cycles say that, too."""
        return self.parts is not None

    def complete(self, body: bytes) -> None:
        """Start with the whole body."""
        self.is_complete = True
        self.start(self._head, body, self._respond)
