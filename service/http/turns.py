"""Long work on the event loop, cut into short turns that others get in between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")

Turn = Callable[[], bool]
"""Does a millisecond's work; tells whether it wants another turn. It must not raise."""

_MOST_S = 0.01
"""Time for short work of many, each time round the event loop; more of it waits for turns."""


class Turns:
    """Gives one turn each time round the event loop, to all that want one in order.

    Whatever is ready on the loop, a safety check above all, waits for at most one turn.
    Used on the event loop's thread only.
    """

    def __init__(self) -> None:
        self._waiting: deque[Turn] = deque()
        self._is_scheduled = False
        self._until_s: float | None = None  # for short work this time round, by `perf_counter`

    def is_late(self) -> bool:
        """Tell whether short work should wait for a turn: much was done this time round the loop.

        Whoever calls it goes on with that work. A hundred callers that send at the same moment
        would hold up all others otherwise, though each takes less than a millisecond.
        """
        now = perf_counter()
        if self._until_s is None:
            self._until_s = now + _MOST_S
            asyncio.get_running_loop().call_soon(self._begin_round)
        return now > self._until_s

    def _begin_round(self) -> None:
        self._until_s = None

    def add(self, turn: Turn) -> None:
        """Give it turns from the next time round, until it wants no more."""
        self._waiting.append(turn)
        self._schedule()

    def run(
        self,
        work: Generator[None, None, T],
        done: Callable[[T], None],
        failed: Callable[[Exception], None],
    ) -> Callable[[], None]:
        """Run a generator, a turn from one `yield` to the next.

        Args:
            work: Returns the result.
            done: Gets the result; must not raise.
            failed: Gets what the work raised; must not raise.

        Returns:
            Ends the work: neither `done` nor `failed` is called any more.
        """

        def turn() -> bool:
            try:
                next(work)
            except StopIteration as end:
                done(end.value)
                return False
            except Exception as exc:  # noqa: BLE001 (whoever asked for the work answers for it)
                failed(exc)
                return False
            return True

        def cancel() -> None:
            if turn in self._waiting:
                self._waiting.remove(turn)
            work.close()

        self.add(turn)
        return cancel

    def _schedule(self) -> None:
        if self._waiting and not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._is_scheduled = False
        if self._waiting:
            turn = self._waiting.popleft()
            if turn():
                self._waiting.append(turn)
        self._schedule()
