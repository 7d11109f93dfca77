"""Tables of tracks, CSV or Parquet; `docs/recordings.md` describes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.recordings.columns import MOST_TEXT, Allowed, Columns, quoted, read_columns
from training.recordings.maps import ROAD_SUFFIXES, read_roads
from training.recordings.recording import (
    LARGEST_SIZE_M,
    LEAST_SIZE_M,
    SIZE_UNITS,
    Recording,
    RecordingError,
    Track,
    Unused,
    kind_of,
    size_of,
    whole_tracks,
)
from training.recordings.units import check_units
from world_model_client.errors import printable
from world_model_client.scene import ISO8855

MOST_TRACKS, MOST_CLASSES = 200_000, 10_000

_SIZE = Allowed(LEAST_SIZE_M, LARGEST_SIZE_M, f"{SIZE_UNITS}; or 0, if none is known", is_or_0=True)
BOUNDS = {
    "time_s": Allowed(-1e11, 1e11, "s"),
    "x": Allowed(-1e9, 1e9, "m"),
    "y": Allowed(-1e9, 1e9, "m"),
    "length": _SIZE,
    "width": _SIZE,
    "heading": Allowed(-50.0, 50.0, "rad, not degrees"),
    "speed": Allowed(-150.0, 150.0, "m/s"),
}
OPTIONAL = ("length", "width", "heading", "speed")
"""May be missing, as a column or in a row."""

Floats = NDArray[np.floating[Any]]


def read_table(
    path: Path, unused: Unused, *, road: Path | None = None, frame: str = ISO8855
) -> Recording:
    """Read a table of tracks with its roads.

    Args:
        path: Of the table.
        unused: Takes what cannot be used.
        road: Of the description of its roads; None: the file beside the table with the same name
            and `.road.json`, `.road.csv` or `.road.parquet`, if there is one.
        frame: Of all places and angles.

    Raises:
        RecordingError: A file is missing, too large, or holds what cannot be.
    """
    table = read_columns(path, {"id": MOST_TRACKS, "class": MOST_CLASSES}, BOUNDS, OPTIONAL)
    for name in table.extra:
        unused.add("a column of no use here", printable(name, 60))
    tracks = list(_tracks(path, table, unused))
    check_units(str(path), tracks, ("column heading", "column speed"))
    if road is None:
        beside = (path.with_suffix(f".road{suffix}") for suffix in ROAD_SUFFIXES)
        road = next((each for each in beside if each.is_file()), None)
    carriageways = () if road is None else read_roads(road, frame)
    whole = whole_tracks(tracks, unused)
    return Recording(path.name, whole, carriageways, road is not None, frame)


def _tracks(path: Path, table: Columns, unused: Unused) -> Iterator[Track]:
    """Yield the tracks of a table, by id."""
    numbers, (ids, names) = table.numbers, table.texts["id"]
    order = np.lexsort((numbers["time_s"], ids))
    ids, times = ids[order], numbers["time_s"][order]
    is_same = (np.diff(ids) == 0) & (np.diff(times) <= 0)
    if is_same.any():
        at = int(np.argmax(is_same)) + 1
        raise RecordingError(
            f"{path}, row {int(order[at]) + 1}, column time_s: is {times[at]:g} once more for the "
            f"id {quoted(names[ids[at]])} (allowed: one row for each id and time)"
        )
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        rows, name = order[start:end], names[ids[start]]
        kind = _kind(table, rows, name, unused)
        size = size_of(kind, *(_usual(numbers.get(x), rows) for x in ("length", "width")))
        if size is None:
            unused.add(f"no size, and none is usual for the class {quoted(kind)}", name)
            continue
        yield Track(
            id=printable(name, MOST_TEXT),
            kind=kind,
            length=size[0],
            width=size[1],
            times_s=times[start:end],
            x=numbers["x"][rows],
            y=numbers["y"][rows],
            heading=_all_or_none(numbers.get("heading"), rows),
            speed=_all_or_none(numbers.get("speed"), rows),
        )


def _kind(table: Columns, rows: NDArray[np.intp], name: str, unused: Unused) -> str:
    """Return the kind of a track: the class that most of its rows have."""
    codes, names = table.texts["class"]
    found, counts = np.unique(codes[rows], return_counts=True)
    if len(found) > 1:
        unused.add("classes that only some rows have, the most frequent one taken", name)
    return kind_of(names[int(found[counts.argmax()])])


def _usual(values: Floats | None, rows: NDArray[np.intp]) -> float | None:
    """Return the median of the sizes that are given; a size of 0 is none."""
    given = np.zeros(0) if values is None else values[rows]
    given = given[given > 0]
    return float(np.median(given)) if len(given) else None


def _all_or_none(values: Floats | None, rows: NDArray[np.intp]) -> Floats | None:
    """Return a column of a track, which is derived if a row lacks it."""
    if values is None or np.isnan(values[rows]).any():
        return None
    return values[rows]
