"""What all connections share: limits, most of them before any key is known, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.http.buffers import Unread
from service.http.exchange import Exchanges, Head, as_lines
from service.scheduling.health import Health


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections; see `service.settings`.

    Attributes:
        max_connections: At once.
        max_head_bytes: Of a request's line and headers, or of its trailers.
        head_timeout_s: From a request's first byte to the end of its head.
        body_timeout_s: From there to the end of its body.
        answer_timeout_s: In which a caller reads nothing of its answer.
        max_buffered_bytes: Of all incomplete requests together, and of all unread answers.
    """

    max_connections: int = 1024
    max_head_bytes: int = 2**15
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    answer_timeout_s: float = 30.0
    max_buffered_bytes: int = 2**24


class Connections:
    """What all connections of a service share. Used on the event loop's thread only.

    Args:
        exchanges: What their requests share.
        limits: Of connections.
        health: Says when connections are not kept any more.

    Attributes:
        turns: Runs long work between short requests.
        intake: Bounds the memory of requests that are not complete.
        unread: Bounds the memory of answers that are not read.
        paths: Of prediction endpoints, by their bytes.
        heads: What heads mean that came before, by their bytes.
        common: Headers of all answers, as the server had them last.
        common_lines: The same as they are sent.
        refused: Open connections that were refused because there were too many.
        next_look_for_idle_s: When an idle connection is looked for again, on the loop's clock.
    """

    def __init__(self, exchanges: Exchanges, limits: ConnectionLimits, health: Health) -> None:
        self.exchanges = exchanges
        self.limits = limits
        self.health = health
        self.turns = exchanges.turns
        self.intake = exchanges.intake
        self.unread = Unread(limits.max_buffered_bytes, limits.answer_timeout_s)
        self.paths = {path.encode(): path for path in exchanges.endpoints}
        self.heads: dict[bytes, Head] = {}
        self.refused = 0
        self.next_look_for_idle_s = 0.0
        self.common: Sequence[tuple[bytes, bytes]] = []
        self.common_lines = b""

    def lines_of(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return the server's headers as lines; it has a new list of them once a second."""
        self.common, self.common_lines = headers, as_lines(headers)
        return self.common_lines
