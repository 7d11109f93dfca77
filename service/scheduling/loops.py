"""What event loops tell of themselves."""

from __future__ import annotations

import asyncio
from typing import Any


def incoming(loop: asyncio.AbstractEventLoop) -> int:
    """Return a file descriptor that is readable while input waits for a loop; -1 if it has none.

    Computing on the loop can look at it, and stop for what has come in. Neither kind of loop
    promises that descriptor; one that has it no longer is asked for work in small slices instead.
    """
    any_loop: Any = loop
    try:
        if hasattr(loop, "_get_backend_id"):  # uvloop: libuv's epoll
            return int(any_loop._get_backend_id())
        return int(any_loop._selector.fileno())  # asyncio
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return -1
