"""A server that does with each request what a test says: for clients, over real sockets."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True)
class Visit:
    """A request as it came.

    Attributes:
        connection: Counted from 0.
        number: Of the request on its connection, from 0.
        headers: Names in lower case.
        body: As sent.
        write: Sends bytes at once, before the answer.
    """

    connection: int
    number: int
    headers: dict[str, str]
    body: bytes
    write: Callable[[bytes], object]

    @property
    def request_id(self) -> str:
        return self.headers.get("x-request-id", "")


def answer_to(visit: Visit, **fields: Any) -> bytes:
    """Return an answer that repeats the request's body."""
    content = orjson.dumps({"echo": orjson.loads(visit.body or b"null"), **fields})
    return answered(content, visit.request_id)


def answered(content: bytes, request_id: str, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nX-Request-Id: {request_id}\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


class Misbehaving:
    """Answers each request by what `behave` returns; by None, it closes the connection.

    Attributes:
        url: Where it listens.
        visits: All requests, in the order of their arrival.
    """

    def __init__(self, behave: Callable[[Visit], bytes | None]) -> None:
        self.visits: list[Visit] = []
        self._behave = behave
        self._connections = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    outer._serve(self)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 512

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _serve(self, handler: socketserver.StreamRequestHandler) -> None:
        with self._lock:
            connection, self._connections = self._connections, self._connections + 1
        number = 0
        while line := handler.rfile.readline():
            assert line.split()[0] in (b"GET", b"POST")
            headers: dict[str, str] = {}
            while line := handler.rfile.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            body = handler.rfile.read(int(headers.get("content-length", "0")))
            visit = Visit(connection, number, headers, body, handler.wfile.write)
            self.visits.append(visit)
            number += 1
            answer = self._behave(visit)
            if answer is None:
                return
            handler.wfile.write(answer)
            if headers.get("connection") == "close":
                return

    @contextlib.contextmanager
    def run(self) -> Iterator[Misbehaving]:
        serving = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        serving.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            serving.join()
            self._server.server_close()


def misbehaving(
    behave: Callable[[Visit], bytes | None],
) -> contextlib.AbstractContextManager[Misbehaving]:
    return Misbehaving(behave).run()
