"""One command at a time writes a folder: locks that end with the process that holds them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

LOCK, HOLDER = ".lock", ".lock-holder"
"""Files in a locked folder. The second is one of its own: on NFS, closing a file unlocks it."""


class FolderLockedError(ValueError):
    """Another command writes a folder; the message is one sentence that says which."""


@contextmanager
def locked(folder: Path, action: str) -> Iterator[None]:
    """Hold a folder while the block writes it.

    The operating system drops the lock when the process ends, however it does.

    Args:
        folder: Created if missing.
        action: What the command does, for others: "training".

    Raises:
        FolderLockedError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as exc:
        raise FolderLockedError(f"{folder} is being written by {_holder(folder)}") from exc
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "action": action}
        (folder / HOLDER).write_text(json.dumps(note) + "\n")
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        note = json.loads((folder / HOLDER).read_text())
        return (
            f"another command: {note['action']}, process {note['pid']} on {note['host']}, "
            f"since {note['since']}"
        )
    except (OSError, ValueError, TypeError, KeyError):  # it is just being written
        return "another command"
