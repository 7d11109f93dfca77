"""The door: one pure ASGI middleware through which requests come in and errors go out.

Requests of the hot routes go to the desk, past the framework's router: at thousands of requests a
second its layers would cost more than parsing. Everything else goes on to the framework. Served by
uvicorn, most requests of hot routes do not even come here: see `service.http.protocol`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import EngineError, MethodNotAllowedError, ServiceError
from service.http.exchange import CLIENT_GONE, REFUSALS, Desk, Errand, Reply, failure
from service.http.policy import request_id_of
from service.telemetry.metrics import OTHER

if TYPE_CHECKING:
    from service.telemetry.tracing import Trace


class Door:
    """Identifies, admits, hands over or passes on, and counts every request.

    Args:
        app: The framework, for all that is not hot.
        desk: Serves hot requests; knows what is let in, and who counts.
        endpoints: Route templates, the closed set of the endpoint label.
    """

    def __init__(self, app: ASGIApp, *, desk: Desk, endpoints: Iterable[str]) -> None:
        self._app = app
        self._desk = desk
        self._policy = desk.policy
        self._endpoints = frozenset(endpoints)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's event stream (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        scope = dict(scope)
        visit = _Visit(scope, send)
        visit.trace = self._begun(scope, visit)
        try:
            await self._serve(scope, receive, visit)
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            await visit.fail(exc)
        finally:
            if visit.trace is not None:
                visit.trace.end(visit.status)
        self._desk.metrics.answered(self._endpoint(scope), visit.status, perf_counter() - started)

    def _begun(self, scope: Scope, visit: _Visit) -> Trace | None:
        """Return a request's trace, if it is to have one; probes would drown all others."""
        tracing, path = self._desk.tracing, scope["path"]
        if tracing is None or path in self._policy.open_paths:
            return None
        route = path if path in self._endpoints else None
        return tracing.begin(scope["method"], path, route, visit.headers, visit.request_id)

    async def _serve(self, scope: Scope, receive: Receive, visit: _Visit) -> None:
        path = scope["path"]
        self._policy.check(path, visit.headers)
        if path not in self._desk.routes:
            if scope["method"] == "HEAD":  # as GET, but for the body (RFC 9110, 9.3.2)
                scope["method"] = "GET"
                visit.is_bodyless = True
            await self._app(scope, self._limited(receive, scope), visit.send)
            return
        if scope["method"] != "POST":
            raise MethodNotAllowedError(f"{path} answers POST only", allow="POST")
        replied: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

        def respond(reply: Reply | None) -> None:
            if not replied.done():  # the server may have given this request up
                replied.set_result(reply)

        errand = self._desk.receive(path, visit.headers, respond, visit.trace)
        body = await _read(self._limited(receive, scope))
        if body is not None:
            await visit.reply(await _run(errand, body, replied, receive))

    def _limited(self, receive: Receive, scope: Scope) -> Receive:
        """Return a `receive` that refuses bodies which grow too long, or which the wire refuses."""
        length = 0
        refusals: list[ServiceError] = scope.get("state", {}).get(REFUSALS, [])

        async def limited() -> Message:
            nonlocal length
            message = await receive()
            if refusals:
                # Not kept: its traceback refers to this function, and that to the connection.
                raise refusals.pop()
            length += len(message.get("body", b""))
            self._policy.check_length(length)
            return message

        return limited

    def _endpoint(self, scope: Scope) -> str:
        """Return the route's template, never a path that a stranger made up."""
        for path in (scope["path"], getattr(scope.get("route"), "path", OTHER)):
            if path in self._endpoints:
                return str(path)
        return OTHER


async def _read(receive: Receive) -> bytes | None:
    """Return the whole body, however it is chunked; None if the caller leaves before."""
    chunks: list[bytes] = []
    is_more = True
    while is_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        is_more = message.get("more_body", False)
    return b"".join(chunks)


async def _run(
    errand: Errand, body: bytes, replied: asyncio.Future[Reply | None], receive: Receive
) -> Reply | None:
    """Return an errand's reply; end it if its caller leaves."""
    errand.start(body)
    watch = asyncio.create_task(_cancel_when_gone(errand, receive))
    try:
        return await replied
    finally:
        watch.cancel()
        errand.cancel()


async def _cancel_when_gone(errand: Errand, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    errand.cancel()


class _Visit:
    """One request's identity, and what has been sent to it.

    Attributes:
        headers: Of the request.
        status: Of the answer.
        request_id: In the answer and in logs.
        trace: Of the request, if it has one.
        is_bodyless: Whether the answer has headers only.
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.status = CLIENT_GONE
        self._path = scope["path"]
        self.request_id = request_id_of(self.headers)
        self.headers[b"x-request-id"] = self.request_id.encode()  # or the desk makes another one
        self.trace: Trace | None = None
        self._send = send
        self._is_old_protocol = scope.get("http_version") == "1.0"
        self._is_started = False
        self.is_bodyless = scope["method"] == "HEAD"

    async def send(self, message: Message) -> None:
        """Pass a message of the framework on, with the request's id."""
        if message["type"] == "http.response.start":
            self._is_started = True
            self.status = message["status"]
            id_header = (b"x-request-id", self.request_id.encode())
            message["headers"] = [*message["headers"], id_header, *self._trace_headers()]
        elif self.is_bodyless:
            message["body"] = b""
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Send an error's answer; if another one was begun, cut it off instead."""
        reply = failure(error, self.request_id, self._path, self.trace)
        if self._is_started:
            raise EngineError("the service has failed on this request") from error
        await self.reply(reply)

    async def reply(self, reply: Reply | None) -> None:
        """Send a reply; None if there is nobody to send it to."""
        if reply is None:
            return
        self.status = reply.status
        lines = reply.head.splitlines()
        headers = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
        headers += self._trace_headers()
        body, texts = reply.body, reply.parts.texts if reply.parts is not None else None
        if texts is not None and self._is_old_protocol:  # it knows no body in chunks
            body, texts = b"".join([text async for text in _unhurried(texts)]), None
            headers.append((b"content-length", b"%d" % len(body)))
        await self._send(
            {"type": "http.response.start", "status": reply.status, "headers": headers}
        )
        if texts is not None:
            async for text in _unhurried(texts):
                await self._send({"type": "http.response.body", "body": text, "more_body": True})
        body = b"" if self.is_bodyless else body
        await self._send({"type": "http.response.body", "body": body})

    def _trace_headers(self) -> list[tuple[bytes, bytes]]:
        return [] if self.trace is None else self.trace.headers


async def _unhurried(texts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the parts of an answer; between two of them others get their turn."""
    for text in texts:
        yield text
        await asyncio.sleep(0)
