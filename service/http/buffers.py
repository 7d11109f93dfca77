"""Memory that callers occupy while they send or read: bounded over all connections together.

A caller's bytes wait here in two cases: its request is not complete, or it does not read its
answer. Small amounts are not counted. When the sum passes its limit, input is left in the kernel,
where TCP makes the caller wait; and connections that do not move are cut off, the ones that have
stood still for longest first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

_LOOK_EVERY_S = 0.1
_STALLED_AFTER_S = 0.25
"""An answer that is read without such a pause never counts, however big it is."""

_IDLE_INPUT_S = 2.0
"""A request that sends nothing for so long gives way to those that wait for its room."""

_ONE_READ = 2**18
"""Bytes that event loops read at once, at most: what comes when a connection is read again."""


class Sender(Protocol):
    """A connection whose request is not complete."""

    def hold_input(self) -> None:
        """Read no more of it for now."""

    def take_input(self) -> None:
        """Read on."""

    def cut_input(self) -> None:
        """Answer that its request did not come in time, and close it."""


class Reader(Protocol):
    """A connection that does not read its answer."""

    @property
    def unread_bytes(self) -> int:
        """What is kept for it."""

    def cut_output(self) -> None:
        """Close it."""


class Ticker:
    """Calls a function now and then, while it says that there is something to look at."""

    def __init__(self, look: Callable[[float], bool]) -> None:
        self._look = look
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look from now on."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if self._look(asyncio.get_running_loop().time()):
            self.start()


class Intake:
    """Bytes of requests that are not complete.

    The one that came first may always go on, so that some request always gets complete.

    Args:
        limit_bytes: Of all requests together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._total = 0
        self._held: dict[Sender, int] = {}  # in the order of arrival
        self._moved_s: dict[Sender, float] = {}
        self._waiting: set[Sender] = set()
        self._ticker = Ticker(self._look)

    def add(self, sender: Sender, count: int) -> None:
        """Count more bytes of a request that is not complete; it may have to wait."""
        self._held[sender] = self._held.get(sender, 0) + count
        self._moved_s[sender] = asyncio.get_running_loop().time()
        self._total += count
        if self._total <= self._limit or sender is next(iter(self._held)):
            return
        if self._total > 2 * self._limit:  # as many begin at once as one read each is too much
            sender.cut_input()
        elif sender not in self._waiting:
            self._waiting.add(sender)
            sender.hold_input()
            self._ticker.start()

    def remove(self, sender: Sender) -> None:
        """Forget a request: it is complete, or gone."""
        if sender not in self._held:
            return
        self._total -= self._held.pop(sender)
        del self._moved_s[sender]
        self._waiting.discard(sender)
        places = max(1, (self._limit - self._total) // _ONE_READ)
        for other in [other for other in self._held if other in self._waiting][:places]:
            if self._total <= self._limit or other is next(iter(self._held)):
                self._waiting.discard(other)
                other.take_input()

    def _look(self, now: float) -> bool:
        for sender, moved_s in [*self._moved_s.items()]:
            is_idle = now - moved_s > _IDLE_INPUT_S
            if is_idle and self._waiting and sender not in self._waiting:
                sender.cut_input()
        # Who waits for room is not idle.
        self._moved_s.update(dict.fromkeys(self._waiting, now))
        return bool(self._waiting)


class Unread:
    """Answers that are not read.

    Args:
        limit_bytes: Of all answers together; one alone may be bigger.
        timeout_s: Longest time in which a caller reads nothing.
    """

    def __init__(self, limit_bytes: int, timeout_s: float) -> None:
        self._limit = limit_bytes
        self._timeout_s = timeout_s
        self._since_s: dict[Reader, float] = {}  # those that stand still for longest come first
        self._ticker = Ticker(self._look)

    def add(self, reader: Reader) -> None:
        """Note that a caller does not read at present."""
        self._since_s[reader] = asyncio.get_running_loop().time()
        self._ticker.start()

    def remove(self, reader: Reader) -> None:
        """Note that it reads again, or is gone."""
        self._since_s.pop(reader, None)

    def _look(self, now: float) -> bool:
        stalled = [r for r, since in self._since_s.items() if now - since > _STALLED_AFTER_S]
        total = sum(reader.unread_bytes for reader in stalled)
        for reader in stalled:
            is_too_much = total > self._limit and reader is not stalled[-1]
            if is_too_much or now - self._since_s[reader] > self._timeout_s:
                total -= reader.unread_bytes
                self.remove(reader)
                reader.cut_output()
        return bool(self._since_s)
