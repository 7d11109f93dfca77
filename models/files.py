"""Files of a checkpoint, and what is said if they cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint folder cannot be read, or its parts do not fit each other."""


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON object."""
    path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        CheckpointError: The file cannot be read, or holds something else.
    """
    content = read_bytes(path)
    try:
        document = json.loads(content)
    except ValueError as exc:
        raise CheckpointError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return document


def read_bytes(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"cannot read {path}: {exc.strerror}") from exc
