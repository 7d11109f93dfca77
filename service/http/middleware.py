"""The long path of a request: one pure ASGI middleware, through which errors go out, too.

Prediction requests go past the framework's router: at thousands of requests a second its layers
would cost more than parsing. All others go on to the framework. Served by uvicorn, most prediction
requests do not even come here: see `service.http.protocol`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import EngineError, MethodNotAllowedError, ServiceError
from service.http.answers import Reply
from service.http.endpoints import PATHS
from service.http.exchange import CLIENT_GONE, Exchange, Exchanges, Head
from service.interface import Headers

REFUSALS = "refusals"
"""Key in the state of a scope: errors by which the protocol refuses a body on its way."""

SERVICE_ENDS = "the service ends"
"""Message by which requests are cancelled whose connections were cut off at the end."""


class Middleware:
    """Opens an exchange for every request, and hands the request over or passes it on.

    Args:
        app: The framework, for all that is no prediction.
        exchanges: What exchanges share.
    """

    def __init__(self, app: ASGIApp, *, exchanges: Exchanges) -> None:
        self._app = app
        self._exchanges = exchanges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's event stream (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = dict(scope)
        headers: Headers = dict(scope["headers"])
        path = scope["path"]
        # The template, never a path that a stranger made up.
        label = path if path in PATHS else None
        address = scope.get("client")
        exchange = Exchange(self._exchanges, scope["method"], path, headers, label, address)
        answer = _Answer(scope, send, exchange)
        try:
            await self._serve(scope, headers, receive, answer)
        except asyncio.CancelledError as exc:
            if SERVICE_ENDS not in exc.args:
                raise
            # The connection is closed already; uvicorn would log this as a fault of the app.
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            await answer.fail(exc)
        finally:
            exchange.finish(answer.status)

    async def _serve(
        self, scope: Scope, headers: Headers, receive: Receive, answer: _Answer
    ) -> None:
        path, shared = scope["path"], self._exchanges
        answer.exchange.key = key = shared.policy.key_of(path, headers)
        shared.policy.check(headers)
        if path not in shared.endpoints:
            if scope["method"] == "HEAD":  # as GET, but for the body (RFC 9110, 9.3.2)
                scope["method"] = "GET"
                answer.is_bodyless = True
            # Nothing here means cookies, and the framework would parse them.
            scope["headers"] = [field for field in scope["headers"] if field[0] != b"cookie"]
            await self._app(scope, self._limited(receive, scope), answer.send)
            return
        if scope["method"] != "POST":
            raise MethodNotAllowedError(f"{path} answers POST only", allow="POST")
        head = shared.head(path, headers, key)
        body = await _read(self._limited(receive, scope))
        if body is not None:
            await answer.reply(await _run(answer.exchange, head, body, receive))

    def _limited(self, receive: Receive, scope: Scope) -> Receive:
        """Return a `receive` that refuses bodies which grow too long, or the protocol refuses."""
        length = 0
        refusals: list[ServiceError] = scope.get("state", {}).get(REFUSALS, [])

        async def limited() -> Message:
            nonlocal length
            message = await receive()
            if refusals:
                # Not kept: its traceback refers to this function, and that to the connection.
                raise refusals.pop()
            length += len(message.get("body", b""))
            self._exchanges.policy.check_length(length)
            return message

        return limited


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


async def _run(exchange: Exchange, head: Head, body: bytes, receive: Receive) -> Reply | None:
    """Return an exchange's reply; end it if its caller leaves."""
    replied: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()

    def respond(reply: Reply | None) -> None:
        if not replied.done():  # the server may have given this request up
            replied.set_result(reply)

    exchange.start(head, body, respond)
    watch = asyncio.create_task(_cancel_when_gone(exchange, receive))
    try:
        return await replied
    finally:
        watch.cancel()
        exchange.cancel()


async def _cancel_when_gone(exchange: Exchange, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    exchange.cancel()


class _Answer:
    """What is sent to one request.

    Attributes:
        exchange: The request's.
        status: Of the answer.
        is_bodyless: Whether the answer has headers only.
    """

    def __init__(self, scope: Scope, send: Send, exchange: Exchange) -> None:
        self.exchange = exchange
        self.status = CLIENT_GONE
        self.is_bodyless = scope["method"] == "HEAD"
        self._send = send
        self._is_old_protocol = scope.get("http_version") == "1.0"
        self._is_started = False

    async def send(self, message: Message) -> None:
        """Pass a message of the framework on, with the request's id."""
        if message["type"] == "http.response.start":
            self._is_started = True
            self.status = message["status"]
            exchange = self.exchange
            own = [(b"x-request-id", exchange.request_id.encode())]
            if exchange.trace is not None:
                own += exchange.trace.headers
            message["headers"] = [*message["headers"], *own]
        elif self.is_bodyless:
            message["body"] = b""
        await self._send(message)

    async def fail(self, error: Exception) -> None:
        """Send an error's answer; if another one was begun, cut it off instead."""
        reply = self.exchange.failure(error)
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


async def _unhurried(texts: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the parts of an answer; between two of them others get their turn."""
    for text in texts:
        yield text
        await asyncio.sleep(0)
