"""Folders and files of machine code: nothing is loaded that was cut short or that others may write.

Loading a file that was cut short kills the process by SIGBUS, without a message; loading one that
somebody else wrote runs their code with our rights. Both are found out before, by reading.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

_MAGIC = b"world-model code"
_LENGTH_BYTES = 8
_SEAL_BYTES = len(_MAGIC) + _LENGTH_BYTES + hashlib.sha256().digest_size
_MOST_BYTES = 64 * 2**20
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def trusted_folder(folder: Path) -> Path:
    """Return a folder without links on its path, if only root and this user decide what is in it.

    Args:
        folder: What of it is there is checked; the rest may be missing.

    Raises:
        PermissionError: Others may write into it or replace it; the message says who, and where.
        OSError: It cannot be looked at.
    """
    real = Path(os.path.realpath(folder))
    for place in (real, *real.parents):
        try:
            found = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        fault = _not_ours(found)
        # In a sticky folder, as /tmp is, others may add files, but neither rename nor remove ours.
        is_safe_above = place != real and bool(found.st_mode & stat.S_ISVTX)
        if fault is None and found.st_mode & _OTHERS_MAY_WRITE and not is_safe_above:
            fault = "others may write into it"
        if fault is not None:
            where = "" if place == real else f" {place}:"
            raise PermissionError(errno.EPERM, f"is not trusted:{where} {fault}", str(real))
    return real


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that others may read and not write, whatever the umask.

    Raises:
        OSError: It cannot be made.
    """
    for place in (*reversed(folder.parents), folder):
        if not place.exists():
            place.mkdir(mode=0o755, exist_ok=True)


def seal(path: Path, name: str) -> None:
    """Add a seal to a finished library, by which it is later known to be whole.

    The linker ignores it.

    Args:
        path: Written and closed.
        name: The file name under which it will be looked for.

    Raises:
        OSError: It cannot be written.
    """
    with path.open("r+b") as file:
        content = file.read()
        file.write(_seal_of(content, name))
        file.flush()
        # Renamed without it, a file may be found empty after a power failure.
        os.fsync(file.fileno())
    path.chmod(0o644)


def fault_of(path: Path) -> str | None:
    """Return why a library must not be loaded; None if it may be.

    Args:
        path: In a folder that is trusted.
    """
    try:
        # A link is not followed, and a pipe that nobody writes into does not hold the start up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "is not there"
    except OSError as exc:
        is_link = exc.errno == errno.ELOOP
        return "is a symbolic link" if is_link else f"cannot be opened: {exc.strerror}"
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            return "is not a plain file"
        fault = _not_ours(found)
        if fault is not None:
            return fault
        if found.st_mode & _OTHERS_MAY_WRITE:
            return "may be written by others"
        try:
            content = file.read(_MOST_BYTES)
        except OSError as exc:
            return f"cannot be read: {exc.strerror}"
    body = content[:-_SEAL_BYTES]
    if content[len(body) :] != _seal_of(body, path.name):
        return f"is damaged or cut short ({found.st_size} bytes)"
    return None


def _seal_of(content: bytes, name: str) -> bytes:
    """Return magic, length and digest; the name is in it, lest one target pass for another."""
    digest = hashlib.sha256(name.encode() + b"\0" + content).digest()
    return _MAGIC + len(content).to_bytes(_LENGTH_BYTES, "little") + digest


def _not_ours(found: os.stat_result) -> str | None:
    """Return whose it is, if neither root's nor this user's."""
    if found.st_uid in (0, os.geteuid()):
        return None
    return f"belongs to user {found.st_uid}, neither to root nor to user {os.geteuid()}"
