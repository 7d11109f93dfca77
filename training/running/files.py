"""Files that are whole or absent, parts of pages, and folders that are not written over unasked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.running.locks import HOLDER, LOCK, locked


class OutputExistsError(ValueError):
    """A folder to write holds something already; the message is one sentence."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write the file at the path that is given; it takes its place at the end of the block."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def holds_only_locks(folder: Path) -> bool:
    """Return whether a folder is empty but for what a lock leaves there."""
    return all(path.name in (LOCK, HOLDER) for path in folder.iterdir())


def refuse_existing(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write a folder that holds anything, unless that was asked for.

    Raises:
        OutputExistsError: It does.
    """
    if overwrite or not folder.exists():
        return
    if not holds_only_locks(folder):
        raise OutputExistsError(
            f"{folder} is not empty: name another folder, or write over it by --overwrite"
        )


def replace_between(path: Path, start: str, end: str, text: str) -> None:
    """Replace what stands between two markers of a file.

    Raises:
        ValueError: The file lacks the markers.
    """
    before, start_found, rest = path.read_text().partition(start)
    _, end_found, after = rest.partition(end)
    if not start_found or not end_found:
        raise ValueError(f"{path} lacks the markers {start} and {end}")
    path.write_text(f"{before}{start}\n{text}{end}{after}")


@contextmanager
def output(folder: Path, action: str, *, overwrite: bool) -> Iterator[None]:
    """Be the only command that writes a folder in the block, over nothing unless asked for.

    Args:
        folder: Created if missing.
        action: What the command does, for others.
        overwrite: Whether the folder may hold something.

    Raises:
        FolderLockedError: Another command writes it.
        OutputExistsError: It holds something.
    """
    with locked(folder, action):
        refuse_existing(folder, overwrite=overwrite)
        yield
