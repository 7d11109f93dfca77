"""The meaning of imported weights' features: a file that says it, or one of our own layouts."""

from __future__ import annotations

from pathlib import Path

from models.checkpoint import read_spec
from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import Spec

_NAMED = {"highway": highway_spec, "road-users": road_users_spec}


def spec_of(source: str) -> Spec:
    """Return a spec.

    Args:
        source: `highway` for that of `models.highway`, `road-users` for that of
            `models.road_users`, else a file like a checkpoint's spec.json.

    Raises:
        CheckpointError: The file cannot be read, or holds no spec.
    """
    named = _NAMED.get(source)
    return read_spec(Path(source)) if named is None else named()
