from __future__ import annotations

import asyncio
import select
import socket
from typing import cast

import pytest
import uvloop

from service.scheduling.worker import input_file


@pytest.mark.parametrize("make", [uvloop.new_event_loop, asyncio.SelectorEventLoop])
def test_a_file_of_the_loop_is_readable_while_input_waits(
    make: type[asyncio.AbstractEventLoop],
) -> None:
    """Whatever a new version of a loop keeps to itself shows here, not as slow answers."""
    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(_play())


async def _play() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    came = asyncio.Event()
    with ours, theirs:
        ours.setblocking(False)
        loop.add_reader(ours, came.set)
        await asyncio.sleep(0)
        file = input_file(loop)
        assert file is not None
        assert not _is_readable(file)
        theirs.send(b"x")
        assert _is_readable(file)
        await came.wait()
        ours.recv(1)
        assert not _is_readable(file)
        loop.call_soon_threadsafe(lambda: None)
        assert _is_readable(file)
        loop.remove_reader(ours)


def test_a_loop_may_have_no_such_file() -> None:
    assert input_file(cast(asyncio.AbstractEventLoop, object())) is None


def _is_readable(file: int) -> bool:
    return bool(select.select([file], [], [], 0)[0])
