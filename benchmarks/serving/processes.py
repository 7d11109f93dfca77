"""Server processes: started on given cores, waited for, and ended with all that they started."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import psutil

from benchmarks.serving.candidates import ROOT, Candidate, Files, NotMeasuredError

START_LIMIT_S = 300.0
_STOP_LIMIT_S = 15.0
_LOG_TAIL = 2000


@dataclass(frozen=True)
class Cores:
    """Which cores server and load get; None: all, for both.

    Attributes:
        server: Of the server and all its processes.
        load: Of the load generator.
    """

    server: int | None = None
    load: int | None = None


def two_cores() -> Cores:
    """Return one core for servers and another for load.

    Raises:
        OSError: This process may use one core only.
    """
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        raise OSError("this benchmark needs two cores, one for servers and one for load")
    return Cores(*usable[:2])


def on_core(core: int | None, command: Sequence[str]) -> list[str]:
    """Return a command line that runs the command, and what it starts, on one core."""
    return list(command) if core is None else ["taskset", "-c", str(core), *command]


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        candidate: Who serves.
        port: Where, on 127.0.0.1.
        process: The process that was started; it may have started others.
    """

    candidate: Candidate
    port: int
    process: subprocess.Popen[bytes]

    def url(self, kind: str) -> str:
        """Return the address of a kind of request."""
        return f"http://127.0.0.1:{self.port}{self.candidate.dialect.path(kind)}"

    def ask(self, kind: str, body: bytes, timeout_s: float = 60.0) -> bytes:
        """Return the answer to one request on a connection of its own.

        Raises:
            OSError: There was no answer, or one that is not a 200.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", self.candidate.dialect.path(kind), body, headers)
            response = connection.getresponse()
            answer = response.read()
        except http.client.HTTPException as exc:
            raise OSError(f"a broken answer: {exc!r}") from exc
        finally:
            connection.close()
        if response.status != 200:
            raise OSError(f"answered {response.status}")
        return answer

    def cpu_s(self) -> float:
        """Return the CPU seconds that all its processes have used."""
        total = 0.0
        for process in _family(self.process.pid):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


@contextmanager
def running(candidate: Candidate, files: Files, cores: Cores) -> Iterator[Server]:
    """Start a server; yield it at once; end it and all that it has started."""
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile())
        # Some leave sockets and logs behind. The path is short: a socket's may have 107 bytes.
        leavings = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        port = _free_port()
        process = subprocess.Popen(
            on_core(cores.server, candidate.command(files, port)),
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**_environment(candidate, files, port), "TMPDIR": leavings},
            start_new_session=True,
        )
        try:
            yield Server(candidate, port, process)
        except NotMeasuredError:
            log.seek(max(0, log.tell() - _LOG_TAIL))
            print(log.read().decode(errors="replace"), flush=True)
            raise
        finally:
            _end(process)


def wait_until_ready(server: Server, bodies: dict[str, bytes]) -> None:
    """Wait until every kind of request is answered.

    Raises:
        NotMeasuredError: The server ended, or took too long.
    """
    end = time.monotonic() + START_LIMIT_S
    for kind, body in bodies.items():
        problem = "no answer"
        while True:
            try:
                server.ask(kind, body, timeout_s=10)
                break
            except OSError as exc:
                problem = "no connection" if isinstance(exc, ConnectionError) else str(exc)
            if server.process.poll() is not None:
                raise NotMeasuredError(f"it ended at start with code {server.process.returncode}")
            if time.monotonic() > end:
                raise NotMeasuredError(f"not ready within {START_LIMIT_S:.0f} s: {problem}")
            time.sleep(0.1)


def _environment(candidate: Candidate, files: Files, port: int) -> dict[str, str]:
    """Return the variables of a server's process: no settings of ours, one thread for torch.

    With more, the processes of a rival that has several take each other's cores.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("WORLD_MODEL_") and name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    return {**kept, "OMP_NUM_THREADS": "1", **candidate.environment(files, port)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process in order if it can, then whatever it leaves behind."""
    family = _family(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_LIMIT_S)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _family(pid: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
