"""A client that asks on schedule, whatever is outstanding. A process of its own.

    python -m benchmarks.serving.poller URL BODIES SECONDS HZ [AT_ONCE]

BODIES is a file with one body a line. Prints JSON: latencies in ms from the scheduled moments, and
how many requests failed in which way. One that is not answered within 30 s counts with that time.
A thread a request in flight, so that a slow answer holds up nothing; each keeps its connection.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.serving.figures import due_s, scheduled_latencies_s

_MOST_IN_FLIGHT = 2000
_WARM_UP = 16
_TIMEOUT_S = 30.0


class Poller:
    """Sends prepared requests, each from a thread that keeps its connection.

    Args:
        url: Where to send.
        bodies: Sent in turn.
    """

    def __init__(self, url: str, bodies: list[bytes]) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        # Head and body leave in one packet, so that no server has to wait for a second one.
        self._requests = [
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
            for body in bodies
        ]
        self._own = threading.local()

    def run(self, seconds: float, hz: float, at_once: int = 1) -> tuple[list[float], Counter[str]]:
        """Return latencies in seconds from the scheduled moments, and failures by kind.

        Args:
            seconds: How long to ask.
            hz: Moments a second.
            at_once: Requests of each moment.
        """
        with ThreadPoolExecutor(_MOST_IN_FLIGHT) as pool:
            list(pool.map(self.ask, range(_WARM_UP)))
            first = time.perf_counter() + 0.1
            due = [first + moment for moment in due_s(seconds, hz, at_once)]
            futures = []
            for i, moment in enumerate(due):
                time.sleep(max(0.0, moment - time.perf_counter()))
                futures.append(pool.submit(self.ask, i))
            answered = [future.result() for future in futures]
        failures = Counter(x for x in answered if isinstance(x, str))
        good = [
            (start, end)
            for start, end in zip(due, answered, strict=True)
            if not isinstance(end, str)
        ]
        return scheduled_latencies_s([x[0] for x in good], [x[1] for x in good]), failures

    def ask(self, turn: int) -> float | str:
        """Send one request; return when it was answered, or how it failed."""
        request = self._requests[turn % len(self._requests)]
        failure = ""
        for _ in range(2):  # a server may have closed a connection that was idle for long
            try:
                return self._ask_once(request)
            except TimeoutError:
                self._own.socket = None
                return time.perf_counter()
            except (OSError, http.client.HTTPException) as exc:
                failure = type(exc).__name__
                self._own.socket = None
        return failure

    def _ask_once(self, request: bytes) -> float | str:
        if getattr(self._own, "socket", None) is None:
            self._own.socket = socket.create_connection(self._address, _TIMEOUT_S)
            self._own.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._own.socket.sendall(request)
        response = http.client.HTTPResponse(self._own.socket, method="POST")
        response.begin()
        response.read()
        return time.perf_counter() if response.status == 200 else f"status {response.status}"


def main() -> None:
    """Poll as the arguments say."""
    url, bodies, seconds, hz, *at_once = sys.argv[1:]
    poller = Poller(url, Path(bodies).read_bytes().splitlines())
    latencies, failures = poller.run(float(seconds), float(hz), *map(int, at_once))
    print(json.dumps({"latencies_ms": [1e3 * x for x in latencies], "failures": failures}))


if __name__ == "__main__":
    main()
