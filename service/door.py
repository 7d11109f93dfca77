"""The door: one pure ASGI middleware through which every request comes in and every error goes out.

The hot routes are answered here, past the framework's router: at thousands of requests a second
its layers would cost more than parsing. Everything else goes on to the framework.
"""

from __future__ import annotations

import hmac
import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter

import orjson
import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    EngineError,
    InvalidRequestError,
    MethodNotAllowedError,
    PayloadTooLargeError,
    ServiceError,
    UnauthorizedError,
)
from service.metrics import OTHER, Metrics
from service.routes.call import Answer, Call, ClientGoneError, HotRoute

log = structlog.get_logger()

TIMEOUT_HEADER = "X-Request-Timeout-Seconds"
CLIENT_GONE = 499
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_JSON = (b"content-type", b"application/json")


@dataclass(frozen=True)
class Policy:
    """What the door lets in.

    Attributes:
        keys: One of them must come with a request; empty: all are welcome.
        open_paths: Need no key.
        max_body_bytes: Longest body.
        default_timeout_s: Deadline of requests that bring none.
        max_timeout_s: Longest deadline; requests for more get this one.
    """

    keys: tuple[str, ...]
    open_paths: frozenset[str]
    max_body_bytes: int
    default_timeout_s: float
    max_timeout_s: float


class Door:
    """Identifies, admits, answers or passes on, and counts every request.

    Args:
        app: The framework, for all that is not hot.
        hot: Hot routes by path.
        policy: What is let in.
        metrics: Counts requests.
        endpoints: Route templates, the closed set of the endpoint label.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hot: Mapping[str, HotRoute],
        policy: Policy,
        metrics: Metrics,
        endpoints: Iterable[str],
    ) -> None:
        self._app = app
        self._hot = hot
        self._policy = policy
        self._keys = [key.encode() for key in policy.keys]
        self._metrics = metrics
        self._endpoints = frozenset(endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's event stream (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        visit = _Visit(scope, send)
        try:
            await self._serve(scope, receive, visit)
        except ClientGoneError:
            visit.status = CLIENT_GONE
        except ServiceError as exc:
            await self._fail(scope, visit, exc)
        except Exception as exc:  # the app's last resort (design, section 6)
            log.error("unexpected error", request_id=visit.request_id, exc_info=exc)
            await self._fail(scope, visit, EngineError("the service has failed on this request"))
        self._metrics.answered(self._endpoint(scope), visit.status, perf_counter() - started)

    async def _serve(self, scope: Scope, receive: Receive, visit: _Visit) -> None:
        headers = visit.headers
        path = scope["path"]
        if self._keys and path not in self._policy.open_paths:
            self._admit(headers.get(b"authorization", b""))
        if _declared_length(headers) > self._policy.max_body_bytes:
            raise self._too_large()
        route = self._hot.get(path)
        if route is None:
            await self._app(scope, self._limited(receive), visit.send)
            return
        if scope["method"] != "POST":
            raise MethodNotAllowedError(f"{path} answers POST only", allow="POST")
        timeout_s = self._timeout_s(headers)
        body = await self._read(receive)
        await visit.answer(await route(Call(body, timeout_s, receive)))

    def _admit(self, authorization: bytes) -> None:
        scheme, _, given = authorization.partition(b" ")
        # All keys are compared, each in constant time: the time tells nothing about them.
        matches = [hmac.compare_digest(given.strip(), key) for key in self._keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise UnauthorizedError("a known key is needed as 'Authorization: Bearer KEY'")

    def _timeout_s(self, headers: Mapping[bytes, bytes]) -> float:
        given = headers.get(b"x-request-timeout-seconds")
        if given is None:
            return self._policy.default_timeout_s
        try:
            timeout_s = float(given)
        except ValueError:
            timeout_s = math.nan
        if not 0 < timeout_s < math.inf:
            raise InvalidRequestError(
                f"{TIMEOUT_HEADER} is not a positive number of seconds",
                [
                    {
                        "field": TIMEOUT_HEADER,
                        "problem": "is not a positive number of seconds",
                        "allowed": f"up to {self._policy.max_timeout_s:g}; more is cut to that",
                    }
                ],
            )
        return min(timeout_s, self._policy.max_timeout_s)

    async def _read(self, receive: Receive) -> bytes:
        """Return the whole body, however it is chunked."""
        chunks: list[bytes] = []
        length, is_more = 0, True
        while is_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunks.append(message.get("body", b""))
            length += len(chunks[-1])
            if length > self._policy.max_body_bytes:
                raise self._too_large()
            is_more = message.get("more_body", False)
        return b"".join(chunks)

    def _limited(self, receive: Receive) -> Receive:
        """Return a `receive` that refuses bodies which grow too long."""
        length = 0

        async def limited() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > self._policy.max_body_bytes:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> PayloadTooLargeError:
        limit = self._policy.max_body_bytes
        return PayloadTooLargeError(f"the body is longer than the {limit} bytes that are read")

    async def _fail(self, scope: Scope, visit: _Visit, error: ServiceError) -> None:
        level = log.error if error.status >= 500 else log.info
        (log.warning if error.status == 429 else level)(
            "request failed",
            request_id=visit.request_id,
            code=error.code,
            status=error.status,
            path=scope["path"][:200],
            message=error.message,
        )
        await visit.fail(error)

    def _endpoint(self, scope: Scope) -> str:
        """Return the route's template, never a path that a stranger made up."""
        for path in (scope["path"], getattr(scope.get("route"), "path", OTHER)):
            if path in self._endpoints:
                return str(path)
        return OTHER


class _Visit:
    """One request's identity, and what has been sent to it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = (
            given.decode() if _SANE_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        )
        self.status = 500
        self._send = send
        self._is_started = False

    async def send(self, message: Message) -> None:
        """Pass a message of the framework on, with the request's id."""
        if message["type"] == "http.response.start":
            self._is_started = True
            self.status = message["status"]
            message["headers"] = [*message["headers"], self._id_header()]
        await self._send(message)

    async def answer(self, answer: Answer) -> None:
        """Send a hot route's answer."""
        timing = f"queue;dur={1e3 * answer.queue_s:.3f}, compute;dur={1e3 * answer.compute_s:.3f}"
        await self._whole(200, answer.body, [(b"server-timing", timing.encode())])

    async def fail(self, error: ServiceError) -> None:
        """Send an error's answer; if another one was begun, cut it off instead."""
        if self._is_started:
            raise error
        headers = [(k.lower().encode(), v.encode()) for k, v in error.headers.items()]
        await self._whole(error.status, orjson.dumps(error.body()), headers)

    async def _whole(self, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        length = (b"content-length", str(len(body)).encode())
        all_headers = [_JSON, length, self._id_header(), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": all_headers})
        await self._send({"type": "http.response.body", "body": body})

    def _id_header(self) -> tuple[bytes, bytes]:
        return b"x-request-id", self.request_id.encode()


def _declared_length(headers: Mapping[bytes, bytes]) -> int:
    given = headers.get(b"content-length", b"0")
    return int(given) if given.isdigit() else 0
