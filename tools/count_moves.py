"""Count through how many of our files a warm request passes: `python -m tools.count_moves`.

The real service serves on a free port, and a caller sends the same request again and again, so that
its head is known and nothing is done for the first time. A move is control passing from one file
of `service/` or `models/` to another, by a call, a return, or the event loop's next callback; what
other packages do in between does not count. It is counted from the bytes on the socket until the
service is idle again, on the thread of the engine too.

The numbers are those of a CPU's machine code: PyTorch's steps pass other files. The machine's speed
does not matter: one row's steps are far shorter than what is computed at once, and a request that
a timer came into is not the usual one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import orjson

from models.backends.backend import NotCompiledError
from service.server import prepared_library, serve
from service.settings import Settings

ROOT = Path(__file__).parent.parent
_ROOMS = tuple(str(ROOT / room) + os.sep for room in ("service", "models"))
_WARM_UP = 20
_REPEATS = 15
_PATIENCE_S = 60.0
_QUIET_S = 0.01
"""The service is idle when it has passed no file for this long."""


class Passage(NamedTuple):
    """The files that one request passed.

    Attributes:
        files: How often control came into each file.
        moves: How often it passed from one file to another.
    """

    files: Counter[str]
    moves: Counter[tuple[str, str]]

    @property
    def move_count(self) -> int:
        """Moves of all kinds."""
        return self.moves.total()


class Tracer:
    """Notes the files that control comes into, one list per thread."""

    def __init__(self) -> None:
        self._names: dict[str, str | None] = {}
        self._paths: dict[int, list[str]] = {}
        self.is_on = False

    def take(self) -> Passage:
        """Return what was noted since the last call, and forget it."""
        paths, self._paths = list(self._paths.values()), {}
        moves = Counter(move for path in paths for move in pairwise(path))
        # The engine's thread got its work from the loop's.
        moves.update((paths[0][-1], path[0]) for path in paths[1:])
        return Passage(Counter(name for path in paths for name in path), moves)

    @property
    def count(self) -> int:
        """How many files have been noted, to see whether there are still more."""
        return sum(len(path) for path in self._paths.copy().values())

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """Note where control goes; for `sys.setprofile`."""
        if not self.is_on or event not in ("call", "return"):
            return
        entered = frame if event == "call" else frame.f_back
        if entered is None:
            return
        name = self._name(entered.f_code.co_filename)
        if name is None:
            return
        path = self._paths.setdefault(threading.get_ident(), [])
        if not path or path[-1] != name:
            path.append(name)

    def _name(self, file: str) -> str | None:
        if file not in self._names:
            is_ours = file.startswith(_ROOMS)
            self._names[file] = file.removeprefix(str(ROOT) + os.sep) if is_ours else None
        return self._names[file]


def passages(settings: Settings, bodies: dict[str, bytes]) -> dict[str, Passage]:
    """Serve until each request was traced, and return its usual passage; main thread only.

    Args:
        settings: Of the service; the port is replaced.
        bodies: By path.

    Raises:
        RuntimeError: The service did not answer.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tracer, found = Tracer(), {}
    errors: list[Exception] = []

    def call() -> None:
        try:
            for path, body in bodies.items():
                found[path] = _usual_passage(tracer, port, path, body)
        except (OSError, RuntimeError) as exc:
            errors.append(exc)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    with _profiled(tracer):
        serve(settings.model_copy(update={"port": port, "drain_delay_s": 0.0}))
    caller.join()
    if errors:
        raise RuntimeError(f"the service was not traced: {errors[0]}") from errors[0]
    return found


@contextlib.contextmanager
def _profiled(tracer: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Trace this thread and those it starts, whatever traces them now."""
    before = sys.getprofile(), threading.getprofile()
    sys.setprofile(tracer)
    threading.setprofile(tracer)
    try:
        yield
    finally:
        sys.setprofile(before[0])
        threading.setprofile(before[1])


def _usual_passage(tracer: Tracer, port: int, path: str, body: bytes) -> Passage:
    """Return the most frequent passage of a request: in others a timer came in between."""
    head = f"POST {path} HTTP/1.1\r\nHost: service\r\nContent-Length: {len(body)}\r\n\r\n"
    with _connected(port) as connection:
        for _ in range(_WARM_UP):
            _ask(connection, head.encode() + body)
        seen = []
        for _ in range(_REPEATS):
            _wait_until_idle(tracer)
            tracer.take()
            _ask(connection, head.encode() + body)
            _wait_until_idle(tracer)
            tracer.is_on = False
            seen.append(tracer.take())
    counts = Counter(passage.move_count for passage in seen)
    usual = counts.most_common(1)[0][0]
    return next(passage for passage in seen if passage.move_count == usual)


def _connected(port: int) -> socket.socket:
    """Return a connection to the service, once it is there."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _ask(connection: socket.socket, request: bytes) -> None:
    """Send a request and read its answer.

    Raises:
        RuntimeError: It is refused.
    """
    connection.sendall(request)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += _received(connection)
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"it answered {head.splitlines()[0].decode()}")
    lines = dict(line.lower().split(b": ", 1) for line in head.splitlines()[1:])
    while len(body) < int(lines[b"content-length"]):
        body += _received(connection)


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(2**16)
    if not data:
        raise RuntimeError("it closed the connection")
    return data


def _wait_until_idle(tracer: Tracer) -> None:
    tracer.is_on = True
    before = -1
    while (count := tracer.count) != before:
        before = count
        time.sleep(_QUIET_S)


def table(path: str, passage: Passage) -> str:
    """Return a passage for people."""
    lines = [f"{path}: {len(passage.files)} files, {passage.move_count} moves", "", "files"]
    lines += [f"{count:6}  {name}" for name, count in passage.files.most_common()]
    lines += ["", "moves"]
    lines += [f"{count:6}  {one} -> {two}" for (one, two), count in passage.moves.most_common()]
    return "\n".join([*lines, ""])


def example_bodies() -> dict[str, bytes]:
    """Return the requests that are counted, by path: those of the README."""
    read = {path: ROOT / "examples" / f"{path[1:]}.json" for path in ("/predict", "/safety-check")}
    return {path: orjson.dumps(orjson.loads(file.read_bytes())) for path, file in read.items()}


def main() -> None:
    """Print which files a `/predict` and a `/safety-check` pass."""
    settings = Settings(device="cpu", log_level="warning", log_format="console")
    try:
        prepared_library(settings)
    except NotCompiledError as exc:
        sys.exit(f"moves are counted with machine code, and there is none: {exc}")
    for path, passage in passages(settings, example_bodies()).items():
        print(table(path, passage))


if __name__ == "__main__":
    main()
