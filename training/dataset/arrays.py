"""Arrays of a shard, of the types and shapes that a layout asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type of each array by name, and its shape behind the count of episodes or frames."""

_TYPES = {
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I32": "int32",
    "I8": "int8",
    "I64": "int64",
    "U8": "uint8",
}
"""Types of arrays by safetensors' names, which errors show for those that are not here."""


def read_arrays(
    path: Path, of_episodes: Layout, of_frames: Layout, optional: Collection[str] = ()
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a shard, of the right types and shapes, and of episodes end to end.

    Args:
        path: Of the shard.
        of_episodes: Arrays with an entry for each episode; `frame_start` and `frame_count` too.
        of_frames: Arrays with an entry for each frame.
        optional: Those that may be missing.

    Raises:
        ValueError: It is none, or an array is missing, unknown, or of another type or shape; or
            the episodes do not follow on each other.
    """
    try:
        with safe_open(path, framework="numpy") as shard:
            heads = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
            found = {name: (x.get_dtype(), tuple(x.get_shape())) for name, x in heads.items()}
            _check_layout(path, found, of_episodes, of_frames, optional)
            arrays = {name: shard.get_tensor(name) for name in found}
    except (SafetensorError, OSError) as exc:
        raise ValueError(f"{path} is no readable shard: {exc}") from exc
    counts, frames = arrays["frame_count"].astype(np.int64), len(arrays[next(iter(of_frames))])
    # Each by itself, too: a sum of huge ones may be any number.
    fits = (counts >= 2) & (counts <= frames)
    if not (len(counts) and fits.all() and counts.sum() == frames):
        raise ValueError(f"{path}: frame_count must be 2 or more each, {frames} in all")
    if not np.array_equal(np.cumsum(counts) - counts, arrays["frame_start"]):
        raise ValueError(f"{path}: frame_start must be where the frames before end")
    return arrays


def _check_layout(
    path: Path,
    found: Layout,
    of_episodes: Layout,
    of_frames: Layout,
    optional: Collection[str],
) -> None:
    """Refuse arrays by what a shard's head says of them, before they are read."""
    known = {**of_episodes, **of_frames}
    if missing := sorted(known.keys() - found.keys() - {*optional}):
        raise ValueError(f"{path} lacks the array {missing[0]}")
    if extra := sorted(found.keys() - known.keys()):
        raise ValueError(f"{path} holds {extra[0]}, which is unknown (known: {', '.join(known)})")
    counts = {}
    for layout in (of_episodes, of_frames):
        shape = found[next(iter(layout))][1]
        counts.update(dict.fromkeys(layout, shape[:1] or (0,)))
    for name, (kind, tail) in known.items():
        if name not in found:
            continue
        given, shape = _TYPES.get(found[name][0], found[name][0]), found[name][1]
        wanted = (*counts[name], *tail)
        if given != kind or shape != wanted:
            raise ValueError(
                f"{path}: {name} is {given} {list(shape)}, but must be {kind} {list(wanted)}"
            )
