"""Memory that callers occupy while they send or read: bounded over all connections together.

A caller's bytes wait here in two cases: its request is not complete, or it does not read its
answer. Small amounts are not counted. When the sum passes its limit, input is left in the kernel,
where TCP makes the caller wait; and connections that do not move are cut off. Who does not send is
told from who is not read by what has come: read, or still in the kernel.
"""

from __future__ import annotations

import asyncio
import fcntl
import termios
from array import array
from collections.abc import Callable
from enum import Enum
from itertools import islice
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl

_LOOK_EVERY_S = 0.1
_STALLED_AFTER_S = 0.25
"""An answer that is read without such a pause never counts, however big it is."""

_SLOW_AFTER_S, _SLOW_BYTES = 2.0, 2**15
"""A request of which fewer bytes come in so long gives way to those that wait for its room."""

_SMALL_BYTES = 2**15
"""A request of so many bytes is not counted."""

_ONE_READ = 2**18
"""Bytes that event loops read at once, at most: what comes when a connection is read again."""


class Sender(Protocol):
    """A connection whose request is not complete."""

    @property
    def is_paused(self) -> bool:
        """Whether it is not read for another reason than room."""

    @property
    def is_ahead(self) -> bool:
        """Whether what has come waits for the answer to a request before it."""

    @property
    def pending_bytes(self) -> int:
        """What has come of it and is not read: it waits in the kernel."""

    def hold_input(self) -> None:
        """Read no more of it for now."""

    def take_input(self) -> None:
        """Read on."""

    def cut_input(self) -> None:
        """Answer 503, and close it."""


class Reader(Protocol):
    """A connection that does not read its answer."""

    @property
    def unread_bytes(self) -> int:
        """What is kept for it."""

    def cut_output(self) -> None:
        """Close it."""


class Hold(Enum):
    """Why input is left in the kernel."""

    AHEAD = "a request before it is not answered"
    ROOM = "requests of others take the memory"
    PAUSE = "much has been read this time round the event loop"


class Flow(FlowControl):
    """Leaves input in the kernel as long as there is one reason to, whoever asks for it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._holds: set[Hold] = set()

    def resume_reading(self) -> None:
        """Read again, unless input is held."""
        if not self._holds:
            super().resume_reading()

    @property
    def pending_bytes(self) -> int:
        """What the kernel has taken in and nobody has read."""
        count = array("i", [0])
        fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.FIONREAD, count)
        return count[0]

    def hold(self, why: Hold) -> None:
        """Read no more until that is released."""
        self._holds.add(why)
        self.pause_reading()

    def release(self, *why: Hold) -> None:
        """Read again, unless there are other reasons not to."""
        self._holds.difference_update(why)
        if not self._transport.is_closing():
            self.resume_reading()


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


class _Upload:
    """How a request comes.

    Attributes:
        count: Bytes that were read.
        since_s: When it was seen last that enough had come, on the loop's clock.
        arrived: Bytes that had come then, those in the kernel too.
        is_last_read: Whether little has come since, and that is read once more.
    """

    __slots__ = ("arrived", "count", "is_last_read", "since_s")

    def __init__(self) -> None:
        self.count = 0
        self.begin(0.0, 0)

    def begin(self, now: float, arrived: int) -> None:
        """Look from now on how much comes."""
        self.since_s = now
        self.arrived = arrived
        self.is_last_read = False


class Intake:
    """Bytes of requests that are not complete, and of bodies that wait to be read.

    Small requests are not counted, and never wait. Of the others the one that came first may always
    go on, unless bodies are being read: so some request always gets complete.

    Args:
        limit_bytes: Of all requests together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._total = 0
        self._complete = 0  # bytes of bodies that wait to be read
        self._small: dict[Sender, int] = {}
        self._held: dict[Sender, _Upload] = {}  # in the order of arrival
        self._waiting: set[Sender] = set()
        self._waiting_since_s = 0.0
        self._moved = 0  # bytes of those that need not wait, since the last look
        self._room = 0  # for what is read to learn whether more comes
        self._ticker = Ticker(self._look)

    def add(self, sender: Sender, count: int) -> None:
        """Count more bytes of a request that is not complete; it may have to wait."""
        upload = self._held.get(sender)
        if upload is None:
            count += self._small.pop(sender, 0)
            if count <= _SMALL_BYTES:
                self._small[sender] = count
                return
            upload = self._held[sender] = _Upload()
        now = asyncio.get_running_loop().time()
        upload.count += count
        self._total += count
        if upload.count - upload.arrived >= _SLOW_BYTES:
            upload.begin(now, upload.count)
        if self._may_go_on(sender):
            self._moved += count
            return
        if self._total > 2 * self._limit:  # as many begin at once as one read each is too much
            # Who sends ahead gets the answer before it even so.
            other = next((other for other in self._held if other.is_ahead), sender)
            other.cut_input()
            if other is sender:
                return
        if sender not in self._waiting and not sender.is_paused:
            self._waiting_since_s = self._waiting_since_s if self._waiting else now
            self._waiting.add(sender)
            sender.hold_input()
            self._ticker.start()

    def remove(self, sender: Sender) -> None:
        """Forget a request: it is complete, or gone."""
        self._small.pop(sender, None)
        if sender not in self._held:
            return
        self._total -= self._held.pop(sender).count
        if sender in self._waiting:
            self._read_on(sender)
        self._wake()

    def keep(self, count: int) -> None:
        """Count a body that waits to be read."""
        self._complete += count
        self._total += count

    def give_back(self, count: int) -> None:
        """Forget a body that waited: it was read, or is not wanted any more."""
        self._complete -= count
        self._total -= count
        self._wake()

    def _may_go_on(self, sender: Sender) -> bool:
        if self._total <= self._limit:
            return True
        first = next((other for other in self._held if not other.is_paused), None)
        return not self._complete and sender is first

    def _wake(self) -> None:
        if not self._waiting:
            return
        places = max(1, (self._limit - self._total) // _ONE_READ)
        waiting = (x for x in self._held if x in self._waiting and not x.is_paused)
        for sender in [*islice(waiting, places)]:
            if self._may_go_on(sender):
                self._read_on(sender)

    def _read_on(self, sender: Sender) -> None:
        self._waiting.discard(sender)
        sender.take_input()

    def _look(self, now: float) -> bool:
        is_moving = self._moved >= _SLOW_BYTES or self._complete > 0
        self._moved = 0
        self._room = 0 if is_moving else 2 * self._limit - self._total
        for sender, upload in [*self._held.items()]:
            since_s = max(upload.since_s, self._waiting_since_s)
            if sender in self._held and now - since_s > _SLOW_AFTER_S:
                self._judge(sender, upload, now)
        self._wake()
        return bool(self._waiting)

    def _judge(self, sender: Sender, upload: _Upload, now: float) -> None:
        """Cut off a caller of which little has come for a while, if others wait."""
        pending = sender.pending_bytes
        arrived = upload.count + pending
        do_others_wait = len(self._waiting) > (sender in self._waiting)
        if sender.is_paused or not do_others_wait or arrived - upload.arrived >= _SLOW_BYTES:
            upload.begin(now, arrived)
        elif sender not in self._waiting or not pending:
            sender.cut_input()
        elif pending >= _SLOW_BYTES:
            # More may not come before this is read: as long as nobody else moves, see if it does.
            upload.begin(now, arrived)
            count = min(pending, _ONE_READ)
            if count <= self._room:
                self._room -= count
                self._read_on(sender)
        elif upload.is_last_read:
            sender.cut_input()
        else:  # it may be the end of the request
            upload.is_last_read = True
            self._read_on(sender)


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
