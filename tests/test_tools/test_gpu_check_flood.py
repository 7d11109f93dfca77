"""Closed-loop load on servers that answer well, badly or not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from tools.gpu_check.flood import Figures, flood

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BODIES = [b'{"a": 1}', b'{"b": 22}']


def answering(status: str, seen: list[bytes], delay_s: float = 0.0) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            seen.append(await reader.readexactly(int(head.split(b"Content-Length: ")[1])))
            await asyncio.sleep(delay_s)
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}".encode())

    return serve


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)


async def no_length(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n{}")
    await reader.read()


def figures_of(serve: Serve, connections: int = 3, seconds: float = 0.1) -> Figures:
    left = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left.append(asyncio.current_task())
        try:
            with contextlib.suppress(EOFError):
                await serve(reader, writer)
        finally:
            writer.close()

    async def run() -> Figures:
        server = await asyncio.start_server(serve_one, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        try:
            return await flood(f"http://{host}:{port}/plan", BODIES, connections, seconds)
        finally:
            server.close()
            await asyncio.gather(*(task for task in left if task))

    return asyncio.run(run())


def test_good_answers_are_counted_and_bodies_sent_in_turn() -> None:
    seen: list[bytes] = []

    figures = figures_of(answering("200 OK", seen, 0.01))

    assert figures.failures == {}
    assert figures.rate > 0
    assert 10 <= figures.p50 <= figures.p99
    assert {*seen} == {*BODIES}


def test_answers_that_take_longer_than_the_load_count() -> None:
    figures = figures_of(answering("200 OK", [], 0.3), connections=2)

    assert figures.failures == {}
    assert figures.p50 >= 300
    assert 0 < figures.rate < 2 / 0.3


def test_refusals_are_failures() -> None:
    figures = figures_of(answering("503 Service Unavailable", [], 0.01))

    assert figures.rate == 0
    assert figures.failures["status 503"] >= 3


@pytest.mark.parametrize(
    ("serve", "kind"), [(hangs_up, "IncompleteReadError"), (no_length, "ValueError")]
)
def test_connections_that_break_are_failures(serve: Serve, kind: str) -> None:
    figures = figures_of(serve)

    assert (figures.rate, figures.failures) == (0, {kind: 3})


def test_nobody_there_is_a_failure() -> None:
    figures = asyncio.run(flood("http://127.0.0.1:9/plan", BODIES, 2, 0.1))

    assert (figures.rate, figures.failures) == (0, {"ConnectionRefusedError": 2})
