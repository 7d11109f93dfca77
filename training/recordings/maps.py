"""Descriptions of roads beside tables of tracks; `docs/recordings.md` shows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.recordings.columns import MOST_TEXT, SUFFIXES, Allowed, quoted, read_columns
from training.recordings.recording import RecordingError, first_line
from training.recordings.roads import Carriageway
from world_model_client.errors import InvalidInputError, printable
from world_model_client.scene import ISO8855, Polylines, Road

ROAD_SUFFIXES = (".json", *SUFFIXES)

MOST_JSON_BYTES = 64 * 2**20
MOST_POINTS = 1_000_000
"""Of all lines of a description."""
MOST_ROADS, MOST_LANES = 10_000, 64

_BOUNDS = dict.fromkeys(("x", "y"), Allowed(-1e9, 1e9, "m"))
_EDGES = ("left_edge", "right_edge")

Floats = NDArray[np.floating[Any]]


def read_roads(path: Path, frame: str = ISO8855) -> tuple[Carriageway, ...]:
    """Read a description of roads: JSON, or a table of points.

    Args:
        path: Of the file.
        frame: Of its points, that of the tracks.

    Raises:
        RecordingError: It cannot be read, or a line is none.
    """
    roads = _roads_of_json(path) if path.suffix == ".json" else _roads_of_table(path)
    found: list[Carriageway] = []
    for name, lines, edges in roads:
        _check_count(f"{path}, road {quoted(name)}", len(lines), MOST_LANES, "centre lines")
        _check_count(path, len(found) + 1, MOST_ROADS, "roads or more")
        try:
            road = Road(lines, **edges)
            road.locate(np.zeros((1, 4)), frame)
            lanes = Polylines(lines, [f"centre_lines[{i}]" for i in range(len(lines))])
        except InvalidInputError as exc:
            raise RecordingError(f"{path}, road {quoted(name)}: {exc}") from exc
        found.append(Carriageway(name, road, lanes))
    return tuple(found)


_Roads = Iterator[tuple[str, list[Any], dict[str, Any]]]
"""Names, centre lines, and edges by name."""


def _roads_of_json(path: Path) -> _Roads:
    try:
        size = path.stat().st_size
        _check_count(path, size, MOST_JSON_BYTES, "bytes")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as exc:
        if isinstance(exc, RecordingError):
            raise
        raise RecordingError(f"{path} cannot be read: {first_line(exc)}") from exc
    roads = document.get("roads") if isinstance(document, dict) else None
    if not isinstance(roads, list) or not roads:
        raise RecordingError(f'{path} lacks a list "roads" with at least one road')
    points = 0
    for index, road in enumerate(roads):
        known = {"name", "centre_lines", *_EDGES}
        if not isinstance(road, dict) or not isinstance(road.get("centre_lines"), list):
            raise RecordingError(f"{path}, roads[{index}]: lacks a list centre_lines")
        if extra := sorted(road.keys() - known):
            raise RecordingError(
                f"{path}, roads[{index}]: has {quoted(extra[0])}, which is unknown (known: "
                f"{', '.join(sorted(known))})"
            )
        edges = {name: road[name] for name in _EDGES if road.get(name) is not None}
        lines = [*road["centre_lines"], *edges.values()]
        points += sum(len(line) for line in lines if isinstance(line, list))
        _check_count(path, points, MOST_POINTS, "points")
        yield printable(str(road.get("name", index)), MOST_TEXT), road["centre_lines"], edges


def _roads_of_table(path: Path) -> _Roads:
    if path.suffix not in SUFFIXES:
        raise RecordingError(f"{path} is no road description ({', '.join(ROAD_SUFFIXES)})")
    table = read_columns(path, {"road": MOST_ROADS, "line": MOST_ROADS * MOST_LANES}, _BOUNDS)
    points = np.stack([table.numbers["x"], table.numbers["y"]], axis=-1)
    _check_count(path, len(points), MOST_POINTS, "points")
    names = (table.texts["road"], table.texts["line"])
    labels = zip(*(each.codes.tolist() for each in names), strict=True)
    rows: dict[tuple[str, str], list[int]] = {}
    for row, codes in enumerate(labels):
        road, line = (each.names[code] for each, code in zip(names, codes, strict=True))
        rows.setdefault((road, line), []).append(row)
    roads: dict[str, dict[str, Floats]] = {}
    for (road, line), of_line in rows.items():
        roads.setdefault(road, {})[line] = points[of_line]
    for road, lines in roads.items():
        edges = {edge: lines.pop(edge) for edge in _EDGES if edge in lines}
        yield printable(str(road), MOST_TEXT), list(lines.values()), edges


def _check_count(where: object, count: int, most: int, what: str) -> None:
    if count > most:
        raise RecordingError(f"{where} has {count} {what} (allowed: {most})")
