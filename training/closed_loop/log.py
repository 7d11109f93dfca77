"""Finished drives on disk, one a line, so that a comparison goes on where it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path

from training.closed_loop.drives import Outcome

_ENDING = ".jsonl"


class DriveLog:
    """The finished drives of one process.

    Args:
        folder: Of all logs of a comparison; must exist.
        name: Of this one, without ending.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}{_ENDING}"
        self._known: dict[tuple[str, ...], dict[int, Outcome]] = {}
        text = self._path.read_text() if self._path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # it was killed while it wrote
            self._path.write_text(whole)
        for line in whole.splitlines():
            entry = json.loads(line)
            self._note(tuple(entry["of"]), Outcome(**entry["outcome"]))

    def _note(self, of: tuple[str, ...], outcome: Outcome) -> None:
        self._known.setdefault(of, {})[outcome.seed] = outcome

    def of(self, *of: str) -> dict[int, Outcome]:
        """Return the finished drives of an arm on a course, by seed."""
        return dict(self._known.get(of, {}))

    def add(self, outcome: Outcome, *of: str) -> None:
        """Write down a drive of an arm on a course."""
        self._note(of, outcome)
        with self._path.open("a") as file:
            file.write(json.dumps({"of": of, "outcome": vars(outcome)}) + "\n")


class Tally:
    """Counts the drives in all logs of a folder as they come.

    Args:
        folder: May be empty yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self._count = 0

    def count(self) -> int:
        """Return how many drives there are by now."""
        for path in self._folder.glob(f"*{_ENDING}"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                new = file.read()
            self._read[path] = self._read.get(path, 0) + len(new)
            self._count += new.count(b"\n")
        return self._count
