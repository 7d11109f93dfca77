"""The meaning of imported weights' features: a file that says it, or the bundled model's."""

from __future__ import annotations

from pathlib import Path

from models.checkpoint import read_spec
from models.highway import highway_spec
from models.spec import Spec

BUNDLED = "highway"


def spec_of(source: str) -> Spec:
    """Return a spec.

    Args:
        source: `highway` for the bundled model's, else a file like a checkpoint's spec.json.

    Raises:
        CheckpointError: The file cannot be read, or holds no spec.
    """
    if source == BUNDLED:
        return highway_spec()
    return read_spec(Path(source))
