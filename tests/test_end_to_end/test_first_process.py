"""The service as process 1, as in a container, which the kernel treats in a way of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "service", "serve", "--port", "0")
ALONE = ("unshare", "--pid", "--fork", "--kill-child")
TIMEOUT_S = 60.0


def may_be_first() -> bool:
    """Whether this user may start processes with numbers of their own."""
    if shutil.which(ALONE[0]) is None:
        return False
    return subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode == 0


def handles(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = next(x for x in status.splitlines() if x.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.skipif(not may_be_first(), reason="needs unshare, and the right to use it")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_while_it_loads(number: signal.Signals) -> None:
    with subprocess.Popen([*ALONE, *COMMAND], stdout=subprocess.DEVNULL) as outer:
        try:
            deadline = time.monotonic() + TIMEOUT_S
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            while not children.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            inner = int(children.read_text())
            # Python itself has one for SIGINT, which raises KeyboardInterrupt.
            while not handles(inner, signal.SIGTERM):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            subprocess.run(["kill", f"-{number.value}", str(inner)], check=True)

            assert outer.wait(TIMEOUT_S) == 128 + number
        finally:
            outer.kill()
