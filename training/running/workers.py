"""Processes that do one call after the other, and that what they call may kill.

Code that is not Python, as that of a simulator, can end its process by a fault. `Worker` tells that
from an end by the system, and leaves to its owner what to do.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from training.running.stopping import begin_worker, starting_workers

FAULTS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})
"""Signals that a process gets for what its own code does; SIGABRT, too, after others' handlers."""


class WorkerEndedError(ChildProcessError):
    """A worker process ended in the middle of its work.

    Args:
        exit_code: As `multiprocessing` has it: minus the signal's number.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(describe_end(exit_code))
        self.exit_code = exit_code

    @property
    def is_fault(self) -> bool:
        """Whether a fault in the code that it ran killed it, and nobody else did."""
        return -self.exit_code in FAULTS


def describe_end(exit_code: int) -> str:
    """Say how a worker process ended that should not have.

    Args:
        exit_code: As `multiprocessing` has it: minus the signal's number.
    """
    if exit_code >= 0:
        return f"a worker process ended with exit code {exit_code}; its error stands above"
    known = {each.value: each.name for each in signal.Signals}
    ended = f"a worker process was ended by {known.get(-exit_code, f'signal {-exit_code}')}"
    if -exit_code == signal.SIGKILL:
        return f"{ended}; the kernel does that if memory runs out"
    if -exit_code in FAULTS:
        return f"{ended}, a fault in code that is not Python, as that of SUMO"
    return ended


class Worker:
    """A process of its own that does one call after the other; it ends with this process.

    Signals that stop commands are left to this process.

    Args:
        folder: For the worker's temporary files; one that is killed leaves them there.

    Attributes:
        connection: Ready when `result` has something to say.
    """

    def __init__(self, folder: Path) -> None:
        # Spawned, not forked: forking a process that has threads (torch, BLAS) can deadlock.
        spawn = multiprocessing.get_context("spawn")
        self.connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, str(folder)))
        with starting_workers():
            self._process.start()
        theirs.close()  # so that the worker's end is the pipe's, too

    def begin(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call, after the result of the one before was taken.

        Args:
            call: Function that can be pickled.
            arguments: Of the call.
        """
        with suppress(ConnectionError):  # it is dead: `result` says so
            self.connection.send((call, arguments))

    def result(self) -> Any:
        """Wait for the end of the call, and return what it returned, or raise what it raised.

        Raises:
            WorkerEndedError: The process ended.
        """
        try:
            is_done, value = self.connection.recv()
        except (EOFError, OSError):  # an answer may break off in its middle, too
            self._process.join()
            raise WorkerEndedError(self._process.exitcode or 0) from None
        if not is_done:
            raise value
        return value

    def close(self) -> None:
        """Let the process end after the call in work, if there is one, and wait for that."""
        self.connection.close()
        self._process.join()


def _serve(connection: Connection, folder: str) -> None:
    begin_worker(is_stoppable=False)
    tempfile.tempdir = folder
    with suppress(EOFError, ConnectionError):  # the parent wants no more
        while True:
            call, arguments = connection.recv()
            try:
                answer = True, call(*arguments)
            except Exception as exc:  # noqa: BLE001 (whoever asked for the call answers for it)
                exc.add_note(traceback.format_exc())  # a traceback is not pickled
                answer = False, exc
            connection.send(answer)
