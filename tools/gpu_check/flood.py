"""Connections that always ask again: closed-loop load, where a GPU's machine has no tool for it.

    python -m tools.gpu_check.flood URL BODIES CONNECTIONS SECONDS

BODIES is a file with one body a line, sent in turn. Prints `Figures` as JSON after so many seconds,
or on SIGINT if that comes first. Requests under way then are waited for and count, so that slow
answers are measured, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.serving.figures import percentile

_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Figures:
    """What one load has seen.

    Attributes:
        rate: Good answers a second.
        p50: Of their latencies, ms; 0 without answers.
        p99: The same.
        failures: What else came of requests, by kind.
    """

    rate: float
    p50: float
    p99: float
    failures: dict[str, int]


class _Load:
    """Asks over some connections until `end`.

    Args:
        url: Where to send.
        bodies: Sent in turn.
    """

    def __init__(self, url: str, bodies: list[bytes]) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname or "127.0.0.1", parts.port or 80
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: "
        requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
        self._requests: Iterator[bytes] = cycle(requests)
        self._has_ended = False
        self._latencies_ms: list[float] = []
        self._failures: Counter[str] = Counter()

    def end(self) -> None:
        """Send no more."""
        self._has_ended = True

    async def run(self, connections: int) -> Figures:
        """Ask until the end; return what was seen."""
        start = time.perf_counter()
        await asyncio.gather(*(self._ask() for _ in range(connections)))
        seconds, seen = time.perf_counter() - start, self._latencies_ms
        p50, p99 = (percentile(seen, share) if seen else 0.0 for share in (0.5, 0.99))
        return Figures(len(seen) / seconds, p50, p99, dict(self._failures))

    async def _ask(self) -> None:
        try:
            reader, writer = await asyncio.open_connection(*self._address)
        except OSError as exc:
            self._failures[type(exc).__name__] += 1
            return
        try:
            while not self._has_ended:
                sent = time.perf_counter()
                writer.write(next(self._requests))
                status = await asyncio.wait_for(_status_of_answer(reader), _TIMEOUT_S)
                if status == 200:
                    self._latencies_ms.append(1e3 * (time.perf_counter() - sent))
                else:
                    self._failures[f"status {status}"] += 1
        except (OSError, EOFError, ValueError) as exc:
            self._failures[type(exc).__name__] += 1
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _status_of_answer(reader: asyncio.StreamReader) -> int:
    """Read an answer to its end.

    Raises:
        EOFError: The connection ended before.
        ValueError: It is none that has a length.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    _, found, length = head.partition(b"\r\ncontent-length:")
    if not found:
        raise ValueError("an answer without a length")
    await reader.readexactly(int(length.partition(b"\r\n")[0]))
    return int(head.split(b" ", 2)[1])


async def flood(url: str, bodies: list[bytes], connections: int, seconds: float) -> Figures:
    """Ask for so long, or until SIGINT."""
    load, loop = _Load(url, bodies), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, load.end)
    timer = loop.call_later(seconds, load.end)
    try:
        return await load.run(connections)
    finally:
        timer.cancel()


def main() -> None:
    """Ask as the arguments say."""
    url, bodies, connections, seconds = sys.argv[1:]
    lines = Path(bodies).read_bytes().splitlines()
    figures = asyncio.run(flood(url, lines, int(connections), float(seconds)))
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
