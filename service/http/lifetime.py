"""How long a connection lasts: taken or refused, idle, half closed, at shutdown, lost."""

from __future__ import annotations

import asyncio
import contextlib
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import structlog

from service.errors import BadRequestError, UnavailableError
from service.http.buffers import Flow
from service.http.input import Expected, Input
from service.telemetry.requests import OTHER

log = structlog.get_logger()

_GRACE_S = 1.0
"""A caller that has closed its side gets its answer if it begins in this time."""

_LAST_REQUEST_S = 0.25
"""An idle connection takes a request for so long after the port is closed."""

_LINGER_S = 1.0
_WITHIN = (Expected.HEAD, Expected.BODY)
_CUT_SHORT = "the connection was closed within a request"
_ANSWER_BEGINS = "http.response.start"
_LONGEST_DROPPED = 2**16
"""Bytes of a body that are read though its request is refused by its head, to keep a connection."""

_MOST_REFUSED = 64
"""Open connections that wait for their caller to read that there are too many."""


class LingeringTransport:
    """A transport to uvicorn's cycles, which close it as `Lifetime._close` does."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = close


class Lifetime(Input):
    """The side of a connection that begins and ends it.

    Attributes:
        idle_since_s: When it began to wait for a request, on the loop's clock; None: it does not.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metrics = self.shared.exchanges.metrics
        self._is_half_closed = False
        self._is_refused = False
        self._is_ending = False  # closes as soon as it is idle
        self.idle_since_s: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, in place of an idle one if there are too many."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        self.idle_since_s = self.loop.time()
        self._set_idle_timer(self.timeout_keep_alive)
        if not self.shared.make_room(self.connections, self.idle_since_s):
            self._refuse_connection()

    def _refuse_connection(self) -> None:
        """Answer that there are too many; while many are answered so, only close."""
        self.connections.discard(self)
        self.shared.refused.add(self)
        if len(self.shared.refused) > _MOST_REFUSED:
            key = self.shared.exchanges.policy.unchecked_key
            self._metrics.answered(OTHER, UnavailableError.status, 0.0, key)
            self._stop_reading()
            self.transport.abort()
        else:
            self._refuse(UnavailableError("too many connections are open"), is_logged=False)

    # uvicorn sets a timer after every reply, and cancels it at the next request. One that looks
    # when it fires how long the connection has been idle is cheaper by several microseconds.

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it has been idle for long enough."""
        self.timeout_keep_alive_task = None
        if self.idle_since_s is None:
            return
        left_s = self.idle_since_s + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._set_idle_timer(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _set_idle_timer(self, seconds: float) -> None:
        on_time = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(seconds, on_time)

    def _unset_keepalive_if_required(self) -> None:
        self.idle_since_s = None

    def _stop_reading(self) -> None:
        super()._stop_reading()
        self._is_refused = True
        self._missing = 0

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Start a request on the long path; its answer says so if the connection closes after it.

        An answer that begins before its body has come refuses the request by its head. If much of
        the body is to come, or nobody knows how much, it is not read.
        """

        async def announcing(scope: Any, receive: Any, send: Any) -> None:
            async def announced(message: Any) -> None:
                is_to_come = self._expects is Expected.BODY and message["type"] == _ANSWER_BEGINS
                if is_to_come and (self._left is None or self._left > _LONGEST_DROPPED):
                    self._stop_reading()
                    self._close_after(cycle)
                await send(message)

            await app(scope, receive, announced)

        announces: Any = announcing  # asgiref's types are not starlette's
        super()._start_asgi_task(cycle, announces)

    def _close_after(self, cycle: Any) -> None:
        """Have uvicorn's answer say that the connection closes after it, and close it then."""
        cycle.keep_alive = False
        cycle.transport = LingeringTransport(self.transport, self._close)

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

    def eof_received(self) -> bool:  # type: ignore[override]
        """Let a caller that sends no more have its answer; True keeps the connection open.

        One that waits for an attribution is given up: it would hold a place of others.
        """
        if self._expects in _WITHIN and not self._is_ahead:
            self._refuse(BadRequestError(_CUT_SHORT))
            return not self.transport.is_closing()
        if self._expects is Expected.NOTHING or (self._is_free() and not self._input):
            return False
        if self._awaits_attribution():
            return False
        self._is_half_closed = True
        self._arm(_GRACE_S, self._on_grace_over)
        return True

    def _settle(self) -> None:
        """Refuse what will never be complete, once all that came before the end is parsed."""
        if self._is_half_closed and self._expects in _WITHIN and not self._has_turn:
            self._refuse(BadRequestError(_CUT_SHORT))
        else:
            super()._settle()

    def _on_grace_over(self) -> None:
        """Give up a caller that may have left: TCP cannot tell."""
        if not self._is_answered() and not self.cycle.response_started:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take back the request that nobody waits for any more."""
        super().connection_lost(exc)
        self._disarm()
        self.shared.refused.discard(self)
        self._input.clear()
        self._body.clear()
        self._expects = Expected.NOTHING
        self._forget_input()
        self.shared.unread.remove(self)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        # Nothing of a connection that is gone is left to the garbage collector, which comes
        # seldom: what it refers to does not refer to it any more.
        self.cycle = None
        self._give_up()

    @property
    def unread_bytes(self) -> int:
        """What is kept for a caller that does not read."""
        return self.transport.get_write_buffer_size()

    def cut_output(self) -> None:
        """Close a connection whose caller does not read."""
        who = self.shared.exchanges.who(self.client, {})
        reason = "its answer is not read"
        log.warning("connection cut", reason=reason, unread=self.unread_bytes, **who)
        self.transport.abort()

    def pause_writing(self) -> None:
        """Stop: the caller does not read."""
        super().pause_writing()
        self.shared.unread.add(self)

    def resume_writing(self) -> None:
        """Go on: the caller has read."""
        super().resume_writing()
        self.shared.unread.remove(self)

    def stop_keeping(self) -> None:
        """Close the connection after the reply that is under way, if one is."""
        if not self._is_answered():
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close a busy connection after its reply, an idle one soon: a request may be under way."""
        self.stop_keeping()
        self._is_ending = True
        self._close_soon()

    def _close_soon(self) -> None:
        self.loop.call_later(_LAST_REQUEST_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.idle_since_s is not None:
            self.transport.close()

    @abstractmethod
    def _give_up(self) -> None:
        """Take back the request that nobody waits for any more."""

    @abstractmethod
    def _awaits_attribution(self) -> bool:
        """Return whether there is a request whose answer is to hold an attribution."""
