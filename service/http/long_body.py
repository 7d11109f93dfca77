"""A long body of one request, from bytes to arrays, while others are served."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from service.errors import DeadlineExceededError
from service.http.reading.bodies import Parsed
from service.scheduling.admission import OVERHEAD_S

if TYPE_CHECKING:
    from service.http.exchange import Exchange, Head

_FASTEST_BYTES_A_SECOND = 2e8
"""No machine reads long bodies faster: an earlier deadline is the caller's own choice."""


class LongBody:
    """A long body on its way to arrays: it is counted, takes turns, and is bound by its deadline.

    Args:
        exchange: Gets the result.
        head: The request's.
        body: The body.
        started_s: When it was there, on the clock for durations.
    """

    def __init__(self, exchange: Exchange, head: Head, body: bytes, started_s: float) -> None:
        self._exchange = exchange
        self._started_s = started_s
        shared = exchange.shared
        self._intake, self._length = shared.intake, len(body)
        self._least_s = OVERHEAD_S + self._length / _FASTEST_BYTES_A_SECOND
        slices = shared.parser.in_slices(head.endpoint.kind, body)
        self._intake.keep(self._length)
        self._cancel = shared.turns.run(slices, self._on_read, self._on_failed)
        self._timer = asyncio.get_running_loop().call_later(head.timeout_s, self._on_late)

    def end(self) -> None:
        """Read no more."""
        self._cancel()
        self._timer.cancel()
        self._intake.give_back(self._length)

    def _on_read(self, parsed: Parsed) -> None:
        self.end()
        self._exchange.read_late(parsed, perf_counter() - self._started_s)

    def _on_failed(self, error: Exception) -> None:
        self.end()
        self._exchange.refuse(error)

    def _on_late(self) -> None:
        self.end()
        error = DeadlineExceededError("the deadline passed while the body was read")
        self._exchange.refuse(error, self._least_s)
