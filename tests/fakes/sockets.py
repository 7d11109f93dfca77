"""The app behind a real socket, and requests as the bytes they are."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import uvicorn

from service.app import create_app
from service.http.peers import Peers
from service.http.protocol import Protocol, protocol_for
from service.server import Server
from service.telemetry.metrics import Registry
from service.telemetry.tracing import Tracing
from tests.fakes.engine import ACTIONS, STATE, FakeEngine, settings, until

BODY = orjson.dumps({"state": STATE, "actions": ACTIONS})
LIMIT = 4096


def request(
    body: bytes = BODY,
    *headers: str,
    method: str = "POST",
    path: str = "/rollout",
    version: str = "1.1",
    key: str = "alpha",
    length: int | None = None,
) -> bytes:
    """Return a request; `length`: what it says, -1 for nothing."""
    lines = [f"{method} {path} HTTP/{version}", "Host: service", f"Authorization: Bearer {key}"]
    if length != -1:
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


class Caller:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, *requests: bytes) -> None:
        self._writer.write(b"".join(requests))

    async def ask(self, *requests: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send requests, and return the first answer."""
        self.send(*requests)
        return await self.answer()

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the next answer, whose end is known."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        if headers.get("transfer-encoding") == "chunked":
            return int(status.split()[1]), headers, await self._chunks()
        body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, body

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        assert await self._reader.readexactly(2) == b"\r\n"
        return body

    async def rest(self) -> bytes:
        """Return all that comes until the server closes the connection."""
        return await self._reader.read()

    async def leave(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    def half_close(self) -> None:
        """Send no more, as `nc -N` does at its input's end."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Leave so that the server can tell."""
        linger = struct.pack("ii", 1, 0)
        self._writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, linger
        )
        self._writer.transport.abort()


class LongPath(Protocol):
    """A connection on which no request is plain: all go through uvicorn and the middleware."""

    def _is_admitted(self) -> bool:
        return False


BOTH_PATHS = pytest.mark.parametrize("protocol", [Protocol, LongPath], ids=["short", "long"])


class Listening:
    """A server on a free port; allows the key "alpha" and bodies of `LIMIT` bytes."""

    def __init__(
        self,
        engine: FakeEngine,
        protocol: type[Protocol],
        tracing: Tracing | None,
        given: dict[str, Any],
    ) -> None:
        idle_timeout_s: int = given.get("idle_timeout_s", 75)
        self.registry = Registry()
        proxies: str = given.pop("proxies", "127.0.0.1")
        given = {"max_body_bytes": LIMIT, "api_keys": "alpha", "max_rows": 64, **given}
        self.app = create_app(settings(**given), engine, self.registry, tracing, Peers(proxies))
        self.server = Server(
            uvicorn.Config(
                self.app,
                http=protocol_for(self.app.connections, protocol),
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=idle_timeout_s,
                proxy_headers=False,
            ),
            lambda: None,
        )
        self._callers: list[Caller] = []
        self.sockets: list[socket.socket] = []
        self.port = 0

    @property
    def connections(self) -> list[Protocol]:
        return [c for c in self.server.server_state.connections if isinstance(c, Protocol)]

    @property
    def busy(self) -> int:
        """Connections with a request that has begun."""
        connections = self.server.server_state.connections
        return sum(getattr(connection, "cycle", None) is not None for connection in connections)

    async def caller(self) -> Caller:
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port))
        self._callers.append(caller)
        return caller

    async def is_serving(self) -> bool:
        """Tell whether another caller is answered."""
        return (await (await self.caller()).ask(request()))[0] == 200

    async def hold(self, engine: FakeEngine) -> None:
        """Keep the engine busy with another caller's request."""
        engine.gate.clear()
        (await self.caller()).send(request())
        await engine.entered()

    async def ask(self, *requests: bytes) -> bytes:
        """Return all that is answered on a connection of their own, less what differs by chance."""
        caller = await self.caller()
        caller.send(*requests)
        answered = await caller.rest()
        answered = re.sub(rb"x-request-id: [0-9a-f]{32}", b"x-request-id: new", answered)
        answered = re.sub(rb"dur=\d+\.\d{3}", b"dur=x", answered)
        return re.sub(rb"date: [^\r]*", b"date: now", answered)

    def count(self, code: str, endpoint: str = "/rollout") -> float | None:
        labels = {"endpoint": endpoint, "code": code}
        return self.registry.get_sample_value("world_model_requests_total", labels)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[Listening]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            self.sockets = [listener]
            serving = asyncio.create_task(self.server.serve(sockets=self.sockets))
            await until(lambda: self.server.started)
            try:
                yield self
            finally:
                self.server.should_exit = True
                for caller in self._callers:
                    with contextlib.suppress(OSError):
                        await caller.leave()
                await serving


def listening(
    engine: FakeEngine,
    protocol: type[Protocol] = Protocol,
    tracing: Tracing | None = None,
    **given: Any,
) -> contextlib.AbstractAsyncContextManager[Listening]:
    """Serve; `given` are settings, and `proxies` those that are trusted."""
    return Listening(engine, protocol, tracing, given).run()
