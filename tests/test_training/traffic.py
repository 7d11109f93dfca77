"""Made-up traffic for the tests of recordings: rows of a table, and what they must become."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("time_s", "id", "class", "length", "width", "x", "y", "heading", "speed")
COURSE = math.radians(30)


def rows(
    id_: str,
    *,
    ahead_m: float = 0.0,
    left_m: float = 0.0,
    speed: float = 20.0,
    acceleration: float = 0.0,
    seconds: float = 4.0,
    rate_hz: float = 10.0,
    start_s: float = 0.0,
    kind: str = "car",
    length: float = 4.5,
    width: float = 1.8,
    course: float = COURSE,
) -> list[dict[str, Any]]:
    """Return somebody who goes straight along a road that runs 30 degrees left of the x axis."""
    found = []
    for k in range(round(seconds * rate_hz) + 1):
        t = k / rate_hz
        along = ahead_m + speed * t + acceleration * t**2 / 2
        x, y = place(along, left_m)
        now = speed + acceleration * t
        values = (start_s + t, id_, kind, length, width, x, y, course, now)
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def place(along_m: float, left_m: float) -> tuple[float, float]:
    cos, sin = math.cos(COURSE), math.sin(COURSE)
    return 100 + cos * along_m - sin * left_m, -50 + sin * along_m + cos * left_m


def line(left_m: float, start_m: float = -200.0, end_m: float = 600.0) -> list[list[float]]:
    steps = 41
    return [
        list(place(start_m + (end_m - start_m) * k / (steps - 1), left_m)) for k in range(steps)
    ]


def road(**edges: float | None) -> dict[str, Any]:
    """Return three lanes of 3.5 m, the right one on the line."""
    lines = {"left_edge": 8.75, "right_edge": -1.75, **edges}
    return {
        "name": "motorway",
        "centre_lines": [line(0.0), line(3.5), line(7.0)],
        **{name: None if left is None else line(left) for name, left in lines.items()},
    }


def write_csv(
    path: Path, given: Iterable[Mapping[str, Any]], columns: Sequence[str] = COLUMNS
) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(given)
    return path


def write_roads(path: Path, *roads: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps({"roads": list(roads)}))
    return path


def write_scenario(
    path: Path,
    given: Iterable[Mapping[str, Any]],
    *,
    lanes: Iterable[str] = (),
    standing: Iterable[Mapping[str, Any]] = (),
    dt_s: float = 0.1,
) -> Path:
    """Write rows as the obstacles of a CommonRoad scenario; ids have to be numbers."""
    by_id: dict[str, list[Mapping[str, Any]]] = {}
    for row in given:
        by_id.setdefault(row["id"], []).append(row)
    parts = [*lanes, *(_obstacle(x, "dynamic", dt_s) for x in by_id.values())]
    parts += [_obstacle([row], "static", dt_s) for row in standing]
    path.write_text(
        '<?xml version="1.0"?>\n<commonRoad commonRoadVersion="2018b" benchmarkID="ZAM_Made-1" '
        f'timeStepSize="{dt_s}" author="" affiliation="" source="" tags="" date="2026-01-01">\n'
        + "".join(parts)
        + "</commonRoad>\n"
    )
    return path


def _obstacle(given: Sequence[Mapping[str, Any]], role: str, dt_s: float) -> str:
    first, *rest = (_state(row, dt_s) for row in given)
    row = given[0]
    size = "".join(f"<{x}>{row[x]}</{x}>\n" for x in ("length", "width"))
    path = "".join(f"<state>{state}</state>\n" for state in rest)
    return (
        f'<obstacle id="{row["id"]}">\n<role>{role}</role>\n<type>{row["class"]}</type>\n'
        f"<shape><rectangle>\n{size}</rectangle></shape>\n<initialState>{first}</initialState>\n"
        + (f"<trajectory>{path}</trajectory>\n" if rest else "")
        + "</obstacle>\n"
    )


def _state(row: Mapping[str, Any], dt_s: float) -> str:
    exact = {
        "orientation": row["heading"],
        "time": round(row["time_s"] / dt_s),
        "velocity": row["speed"],
    }
    values = "".join(f"<{name}>\n<exact>{x}</exact>\n</{name}>\n" for name, x in exact.items())
    return f"\n<position><point>\n{_point(row['x'], row['y'])}</point></position>\n{values}"


def _point(x: float, y: float) -> str:
    return f"<x>{x}</x>\n<y>{y}</y>\n"


def lanelet(
    id_: int,
    left_m: float,
    *,
    start_m: float = -200.0,
    end_m: float = 600.0,
    left: int | None = None,
    right: int | None = None,
    after: int | None = None,
    before: int | None = None,
) -> str:
    """Return a lane of 3.5 m whose centre line is so far left of the road's line."""
    bounds = "".join(
        f"<{name}Bound>"
        + "".join(
            f"<point>\n{_point(x, y)}</point>\n" for x, y in line(left_m + off, start_m, end_m)
        )
        + f"</{name}Bound>\n"
        for name, off in (("left", 1.75), ("right", -1.75))
    )
    links = "".join(
        f'<{name} ref="{ref}"{more}/>\n'
        for name, ref, more in (
            ("predecessor", before, ""),
            ("successor", after, ""),
            ("adjacentLeft", left, ' drivingDir="same"'),
            ("adjacentRight", right, ' drivingDir="same"'),
        )
        if ref is not None
    )
    return f'<lanelet id="{id_}">\n{bounds}{links}</lanelet>\n'
