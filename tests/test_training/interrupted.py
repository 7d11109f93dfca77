"""Commands as a terminal runs them: in a process group of their own, and stopped by signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_BEFORE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from training.running.stopping import end_with_stdin\n"
)
"""A shell has its background jobs ignore interrupts, and their children, too."""


class Running:
    """Python code in a process group of its own.

    Args:
        code: Runs with `__name__` being `__main__`.
        folder: For its output.
    """

    def __init__(self, code: str, folder: Path) -> None:
        script = folder / "script.py"
        script.write_text(
            f"{_BEFORE}if __name__ == '__main__':\n    end_with_stdin()\n    {code}\n"
        )
        self._out = folder / "output.txt"
        with self._out.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, script],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,  # it ends with the tests, however they do
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it wrote so far, on both streams."""
        return self._out.read_text()

    def until(self, is_there: Callable[[], object], limit_s: float = 300.0) -> None:
        """Wait until something is there."""
        deadline = time.monotonic() + limit_s
        while not is_there():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def workers(self) -> list[psutil.Process]:
        """Return the processes that it started."""
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def signal(self, number: signal.Signals, *, to_group: bool) -> int:
        """Send a signal, as a terminal does or to the parent alone; return the exit code."""
        (os.killpg if to_group else os.kill)(self.process.pid, number)
        code = self.process.wait(120)
        if self.process.stdin is not None:
            self.process.stdin.close()
        return code


def command(*arguments: object) -> str:
    """Return code that runs `world-model` with arguments."""
    words = [str(argument) for argument in arguments]
    return f"from service.cli import main; main({words!r})"


def still_there(processes: list[psutil.Process], limit_s: float = 10.0) -> list[psutil.Process]:
    """Return those that do not end in time."""
    alive: list[psutil.Process] = psutil.wait_procs(processes, timeout=limit_s)[1]
    return alive
