"""The desk: where hot requests are served, whoever brings them.

The wire (`service.wire`) brings most of them, straight from the socket; the door (`service.door`)
brings the others, and sends its errors by the same replies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import orjson
import structlog

from service.errors import EngineError, ServiceError
from service.jobs import JobResult, Outcome
from service.metrics import Metrics
from service.policy import Headers, Policy, request_id_of
from service.routes.call import HotRoute, Pending

log = structlog.get_logger()

CLIENT_GONE = 499
"""Counted in place of a status if the caller left before the reply."""


class Reply(NamedTuple):
    """What is sent to a caller.

    Attributes:
        status: HTTP status.
        head: Header lines, each with its end.
        body: JSON.
    """

    status: int
    head: bytes
    body: bytes


Respond = Callable[[Reply | None], None]
"""Takes a request's one reply; None if its caller has left."""


class Desk:
    """Serves the hot routes.

    Args:
        routes: Hot routes by path; all answer POST only.
        policy: What is let in.
        metrics: Counts requests; whoever sends a reply tells it.
    """

    def __init__(self, routes: Mapping[str, HotRoute], policy: Policy, metrics: Metrics) -> None:
        self.routes = routes
        self.policy = policy
        self.metrics = metrics

    def receive(self, path: str, headers: Headers, respond: Respond) -> Errand:
        """Take on a request of a hot route.

        Args:
            path: Of a hot route.
            headers: Admitted by the policy.
            respond: Called exactly once, maybe before the errand's `start` returns.

        Raises:
            InvalidRequestError: It asks for a deadline that cannot be.
        """
        timeout_s = self.policy.timeout_s(headers)
        return Errand(path, self.routes[path], headers, timeout_s, respond)


class Errand:
    """One request of a hot route, from its headers to its reply.

    Args:
        path: Of the route.
        route: Makes a job of the body, and an answer of the job's result.
        headers: Of the request.
        timeout_s: Time until its deadline.
        respond: Gets the reply.
    """

    __slots__ = ("_headers", "_path", "_pending", "_respond", "_route", "_timeout_s")

    def __init__(
        self, path: str, route: HotRoute, headers: Headers, timeout_s: float, respond: Respond
    ) -> None:
        self._path = path
        self._route = route
        self._headers = headers
        self._timeout_s = timeout_s
        self._respond = respond
        self._pending: Pending | None = None

    def start(self, body: bytes) -> None:
        """Queue the job, now that the whole body is there."""
        try:
            self._pending = self._route(body, self._timeout_s, self._finish)
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            self._respond(failure(exc, request_id_of(self._headers), self._path))

    def cancel(self) -> None:
        """Free the job's place; the reply is None then. After the reply, do nothing."""
        if self._pending is not None:
            self._pending.cancel()

    def _finish(self, outcome: Outcome) -> None:
        # The job knows this errand: without a cycle nothing is left to the garbage collector.
        pending, self._pending = self._pending, None
        if outcome is None:
            self._respond(None)
            return
        assert pending is not None
        request_id = request_id_of(self._headers)
        try:
            if isinstance(outcome, ServiceError):
                raise outcome
            reply = _success(pending.answer(outcome), request_id, outcome)
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            reply = failure(exc, request_id, self._path)
        self._respond(reply)


def failure(error: Exception, request_id: str, path: str) -> Reply:
    """Log an error and return what its caller is told; a stranger learns nothing of our faults."""
    if not isinstance(error, ServiceError):
        log.error("unexpected error", request_id=request_id, exc_info=error)
        error = EngineError("the service has failed on this request")
    level = log.error if error.status >= 500 else log.info
    (log.warning if error.status == 429 else level)(
        "request failed",
        request_id=request_id,
        code=error.code,
        status=error.status,
        path=path[:200],
        message=error.message,
    )
    body = orjson.dumps(error.body())
    extra = "".join(f"{name.lower()}: {value}\r\n" for name, value in error.headers.items())
    return Reply(error.status, _HEAD % (len(body), request_id.encode()) + extra.encode(), body)


_HEAD = b"content-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
_TIMED_HEAD = _HEAD + b"server-timing: queue;dur=%.3f, compute;dur=%.3f\r\n"


def _success(body: bytes, request_id: str, result: JobResult) -> Reply:
    times_ms = 1e3 * result.queue_s, 1e3 * result.compute_s
    return Reply(200, _TIMED_HEAD % (len(body), request_id.encode(), *times_ms), body)
