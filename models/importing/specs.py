"""The meaning of imported weights' features: a file that says it, or the bundled model's."""

from __future__ import annotations

from pathlib import Path

from models.checkpoint.files import checked, read_json
from models.highway import highway_spec
from models.spec import Spec

BUNDLED = "highway"


def read_spec(source: str) -> Spec:
    """Return a spec.

    Args:
        source: `highway` for the bundled model's, else a file like a checkpoint's spec.json.

    Raises:
        CheckpointError: The file cannot be read, or holds no spec.
    """
    if source == BUNDLED:
        return highway_spec()
    path = Path(source)
    return checked(Spec, read_json(path), path)
