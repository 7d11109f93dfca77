"""What all connections share: limits, most of them before any key is known, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from service.http.buffers import Unread
from service.http.exchange import Exchanges, Head, as_lines
from service.scheduling.health import Health

log = structlog.get_logger()

_MOST_HEADS = 2**10
_MAY_GO_AFTER_S = 1.0
_LOOK_FOR_IDLE_EVERY_S = 0.1


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

    max_connections: int
    max_head_bytes: int
    head_timeout_s: float
    body_timeout_s: float
    answer_timeout_s: float
    max_buffered_bytes: int


class KnownHeads(dict[bytes, Head]):
    """What heads mean that came before, by their bytes."""

    def keep(self, raw: bytes, head: Head) -> None:
        """Know a head from now on; when there are too many, all others are forgotten."""
        if len(self) >= _MOST_HEADS:
            self.clear()
        self[raw] = head


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
        heads: What heads mean that came before.
        common: Headers of all answers, as the server had them last.
        common_lines: The same as they are sent.
        refused: Open connections that were refused because there were too many.
    """

    def __init__(self, exchanges: Exchanges, limits: ConnectionLimits, health: Health) -> None:
        self.exchanges = exchanges
        self.limits = limits
        self.health = health
        self.turns = exchanges.turns
        self.intake = exchanges.intake
        self.unread = Unread(limits.max_buffered_bytes, limits.answer_timeout_s)
        self.paths = {path.encode(): path for path in exchanges.endpoints}
        self.heads = KnownHeads()
        self.refused: set[object] = set()
        self._next_look_s = 0.0  # for an idle connection, on the loop's clock
        self.common: Sequence[tuple[bytes, bytes]] = []
        self.common_lines = b""

    def lines_of(self, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """Return the server's headers as lines; it has a new list of them once a second."""
        self.common, self.common_lines = headers, as_lines(headers)
        return self.common_lines

    def make_room(self, connections: set[Any], now_s: float) -> bool:
        """Close the connection that has been idle for longest if there are too many.

        Args:
            connections: All `Protocol`s that are open, the newest too.
            now_s: On the loop's clock.

        Returns:
            Whether there is room for the newest one; there is none if no other has been idle for
            long.
        """
        if len(connections) <= self.limits.max_connections:
            return True
        if now_s < self._next_look_s:
            return False
        idle = (other for other in connections if other.idle_since_s is not None)
        longest = min(idle, key=lambda other: other.idle_since_s, default=None)
        if longest is None or longest.idle_since_s > now_s - _MAY_GO_AFTER_S:
            self._next_look_s = now_s + _LOOK_FOR_IDLE_EVERY_S
            log.warning("too many connections", open=len(connections) - 1)
            return False
        connections.discard(longest)
        longest.transport.close()
        return True
