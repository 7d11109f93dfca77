"""The desk: where hot requests are served, whoever brings them.

The wire (`service.http.protocol`) brings most of them, straight from the socket; the door
(`service.http.middleware`) brings the others, and sends its errors by the same replies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import orjson
import structlog

from service.errors import DeadlineExceededError, EngineError, ServiceError
from service.http.buffers import Intake, Unread
from service.http.call import HotRoute, Parts, Pending
from service.http.connections import ConnectionLimits
from service.http.policy import Policy, request_id_of
from service.http.reading.bodies import AT_ONCE_BYTES, Parsed
from service.http.turns import Turns
from service.interface import Headers
from service.scheduling.health import Health
from service.scheduling.jobs import JobResult, Outcome
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.telemetry.tracing import Trace, Tracing

log = structlog.get_logger()

CLIENT_GONE = 499
"""Counted in place of a status if the caller left before the reply."""

REFUSALS = "refusals"
"""Key in the state of a request's scope: errors by which the wire refuses a body on its way."""


class Reply(NamedTuple):
    """What is sent to a caller.

    Attributes:
        status: HTTP status.
        head: Header lines, each with its end.
        body: JSON.
        parts: The body if it is long, made while it is sent; its length is not known then.
    """

    status: int
    head: bytes
    body: bytes
    parts: Parts | None = None


class Head(NamedTuple):
    """What the head of a plain request says, that was let in.

    Attributes:
        path: Of a hot route.
        headers: By name.
        length: Of the body.
    """

    path: str
    headers: Headers
    length: int


Lines = Sequence[tuple[bytes, bytes]]
"""Headers of an answer."""

Respond = Callable[[Reply | None], None]
"""Takes a request's one reply; None if its caller has left."""


class Desk:
    """Serves the hot routes.

    Args:
        routes: Hot routes by path; all answer POST only.
        policy: What is let in.
        metrics: Counts requests; whoever sends a reply tells it.
        health: Says whether connections are kept.
        tracing: Makes spans of requests; None: nobody does.

    Attributes:
        heads: What bytes mean that came before; the wire keeps them, for all connections.
        turns: Runs long work between short requests.
    """

    def __init__(
        self,
        routes: Mapping[str, HotRoute],
        policy: Policy,
        metrics: Metrics,
        limits: ConnectionLimits,
        health: Health,
        tracing: Tracing | None = None,
    ) -> None:
        self.routes = routes
        self.policy = policy
        self.metrics = metrics
        self.limits = limits
        self.health = health
        self.tracing = tracing
        self.turns = Turns()
        self.intake = Intake(limits.max_buffered_bytes)
        self.unread = Unread(limits.max_buffered_bytes, limits.answer_timeout_s)
        self.next_look_for_idle_s = 0.0
        self.heads: dict[bytes, Head] = {}
        self._common: tuple[Lines, bytes] = [], b""

    def common_lines(self, headers: Lines) -> bytes:
        """Return headers as lines; the server has a new list of its own once a second."""
        known, lines = self._common
        if known is not headers:
            lines = as_lines(headers)
            self._common = headers, lines
        return lines

    def receive(
        self, path: str, headers: Headers, respond: Respond, trace: Trace | None = None
    ) -> Errand:
        """Take on a request of a hot route.

        Args:
            path: Of a hot route.
            headers: Admitted by the policy.
            respond: Called exactly once, maybe before the errand's `start` returns.
            trace: Of the request, if the caller has begun one, which it ends itself.

        Raises:
            InvalidRequestError: It asks for a deadline that cannot be.
        """
        timeout_s = self.policy.timeout_s(headers)
        request_id = request_id_of(headers)
        route, turns = self.routes[path], self.turns
        if self.tracing is None:
            return Errand(path, route, request_id, timeout_s, respond, turns)
        if trace is None:
            trace = self.tracing.begin("POST", path, path, headers, request_id)
            respond = _ending(trace, respond)
        return _TracedErrand(path, route, request_id, timeout_s, respond, turns, trace)


def as_lines(headers: Lines) -> bytes:
    """Return headers as they are sent."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def _ending(trace: Trace, respond: Respond) -> Respond:
    """Return a `respond` that tells the caller of a trace, and ends it."""

    def respond_and_end(reply: Reply | None) -> None:
        if reply is None:
            respond(None)
            trace.end(CLIENT_GONE)
            return
        respond(reply._replace(head=reply.head + as_lines(trace.headers)))
        trace.end(reply.status)

    return respond_and_end


class Errand:
    """One request of a hot route, from its headers to its reply.

    Args:
        path: Of the route.
        route: Makes a job of the body, and an answer of the job's result.
        request_id: Of the request.
        timeout_s: Time until its deadline.
        respond: Gets the reply.
        turns: Reads long bodies.
    """

    __slots__ = (
        "_cancel_reading", "_path", "_pending", "_request_id", "_respond", "_route", "_timeout_s",
        "_turns",
    )  # fmt: skip

    def __init__(
        self,
        path: str,
        route: HotRoute,
        request_id: str,
        timeout_s: float,
        respond: Respond,
        turns: Turns,
    ) -> None:
        self._path = path
        self._route = route
        self._request_id = request_id
        self._timeout_s = timeout_s
        self._respond = respond
        self._turns = turns
        self._pending: Pending | None = None
        self._cancel_reading: Callable[[], None] | None = None

    def start(self, body: bytes) -> None:
        """Read the body, which is all there, and queue the job; a long body takes its time."""
        started = perf_counter()
        try:
            if len(body) <= AT_ONCE_BYTES:
                parsed = self._route.read(body)
                took_s = perf_counter() - started
                self._pending = self._route.submit(parsed, took_s, self._timeout_s, self._finish)
            else:
                slices = self._route.read_in_slices(body)
                done = partial(self._submit_late, started)
                self._cancel_reading = self._turns.run(slices, done, self._refuse_late)
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            self._respond(self._failure(exc))

    def _submit_late(self, started: float, parsed: Parsed) -> None:
        self._cancel_reading = None
        took_s = perf_counter() - started
        try:
            if took_s >= self._timeout_s:
                raise DeadlineExceededError(
                    f"no answer within {self._timeout_s:g} s, while its body was read"
                )
            timeout_s = self._timeout_s - took_s
            self._pending = self._route.submit(parsed, took_s, timeout_s, self._finish)
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            self._respond(self._failure(exc))

    def _refuse_late(self, error: Exception) -> None:
        self._cancel_reading = None
        self._respond(self._failure(error))

    def abandon(self) -> None:
        """End it in place of its start: the caller has left before its body was there."""
        self._respond(None)

    def refuse(self, error: ServiceError) -> None:
        """End it in place of its start: its body cannot be taken."""
        self._respond(self._failure(error))

    def cancel(self) -> None:
        """Free the job's place; the reply is None then. After the reply, do nothing."""
        if self._cancel_reading is not None:
            self._cancel_reading()
            self._cancel_reading = None
            self._respond(None)
        elif self._pending is not None:
            self._pending.cancel()

    def _finish(self, outcome: Outcome) -> None:
        # The job knows this errand: without a cycle nothing is left to the garbage collector.
        pending, self._pending = self._pending, None
        if outcome is None:
            self._respond(None)
            return
        assert pending is not None
        try:
            if isinstance(outcome, ServiceError):
                raise outcome
            reply = _success(pending.answer(outcome), self._request_id, outcome)
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            reply = self._failure(exc)
        self._respond(reply)

    def _failure(self, error: Exception) -> Reply:
        return failure(error, self._request_id, self._path)


class _TracedErrand(Errand):
    """An errand whose stages become spans."""

    __slots__ = ("_trace",)

    def __init__(
        self,
        path: str,
        route: HotRoute,
        request_id: str,
        timeout_s: float,
        respond: Respond,
        turns: Turns,
        trace: Trace,
    ) -> None:
        super().__init__(path, route, request_id, timeout_s, respond, turns)
        self._trace = trace

    def start(self, body: bytes) -> None:
        self._trace.parsing()
        super().start(body)

    def _finish(self, outcome: Outcome) -> None:
        assert self._pending is not None
        self._trace.settled(self._pending.job, outcome)
        super()._finish(outcome)

    def _failure(self, error: Exception) -> Reply:
        return failure(error, self._request_id, self._path, self._trace)


def failure(
    error: Exception,
    request_id: str,
    path: str,
    trace: Trace | None = None,
    *,
    is_logged: bool = True,
) -> Reply:
    """Log an error and return what its caller is told; a stranger learns nothing of our faults."""
    ids = {"request_id": request_id, **({} if trace is None else trace.ids)}
    if not isinstance(error, ServiceError):
        log.error("unexpected error", **ids, exc_info=error)
        error = EngineError("the service has failed on this request")
    if trace is not None:
        trace.failed(error)
    if is_logged:
        level = log.error if error.status >= 500 else log.info
        (log.warning if error.status == 429 else level)(
            "request failed",
            **ids,
            code=error.code,
            status=error.status,
            path=path[:200],
            message=error.message,
        )
    body = orjson.dumps(error.body())
    extra = "".join(f"{name.lower()}: {value}\r\n" for name, value in error.headers.items())
    return Reply(error.status, _HEAD % (len(body), request_id.encode()) + extra.encode(), body)


_TYPE = b"content-type: application/json\r\n"
_ID = b"x-request-id: %b\r\n"
_HEAD = _TYPE + b"content-length: %d\r\n" + _ID
_TIMES = b"server-timing: queue;dur=%.3f, compute;dur=%.3f\r\n"
_TIMED_HEAD = _HEAD + _TIMES
_TIMED_HEAD_OF_PARTS = _TYPE + _ID + _TIMES


def _success(answer: bytes | Parts, request_id: str, result: JobResult) -> Reply:
    times_ms = 1e3 * result.queue_s, 1e3 * result.compute_s
    if isinstance(answer, Parts):
        return Reply(200, _TIMED_HEAD_OF_PARTS % (request_id.encode(), *times_ms), b"", answer)
    return Reply(200, _TIMED_HEAD % (len(answer), request_id.encode(), *times_ms), answer)
