"""CommonRoad scenarios (Althoff, Koschi, Manzinger 2017), by `commonroad-io`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import ParseError

import numpy as np
from numpy.typing import NDArray
from scipy.signal import savgol_filter

from training.recordings.recording import (
    LARGEST_SIZE_M,
    LEAST_SIZE_M,
    Recording,
    RecordingError,
    Track,
    Unused,
    first_line,
    kind_of,
    whole_tracks,
)
from training.recordings.roads import Carriageway
from training.recordings.scenario_check import check_scenario
from training.recordings.units import check_units
from world_model_client.errors import InvalidInputError
from world_model_client.scene import Polylines, Road

SUFFIX = ".xml"

_AHEAD_M, _BEHIND_M = 40.0, 10.0
"""Centre lines go on for so long past a lanelet's ends, for the curvature that is ahead."""

_FARTHEST_CENTRE_M, _LARGEST_SIN = 0.1, 0.02
"""A shape that is off its obstacle by less is taken to be where and as its obstacle is."""

_EVENING_M = 21
_LONGEST_PIECE_M = 20
"""Lines of longer pieces, on average, are left as they are: they would become too many points."""

MOST_STATIC_STATES = 1_000_000
_MOST_LANES, _MOST_LINKS = 64, 40
"""Lanelets side by side, and one after another beyond an end of one."""
MOST_POINTS = 5_000_000
"""Of the centre lines of all roads, with what is beyond their ends."""
_BROKEN = (
    ParseError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What the reader raises where a scenario is not as it should be."""

Floats = NDArray[np.floating[Any]]


def read_commonroad(path: Path, unused: Unused) -> Recording:
    """Read a scenario: obstacles as tracks, lanelets as roads.

    Args:
        path: Of the XML file.
        unused: Takes what cannot be used.

    Raises:
        RecordingError: It is no scenario.
    """
    scenario = _open(path)
    try:
        tracks = list(_tracks(path, scenario, unused))
        carriageways = tuple(_carriageways(path, scenario.lanelet_network.lanelets, unused))
    except RecordingError:
        raise
    except _BROKEN as exc:
        raise RecordingError(f"{path} is no whole CommonRoad scenario: {first_line(exc)}") from exc
    if not tracks:
        raise RecordingError(f"{path} has no obstacle with a trajectory")
    check_units(str(path), tracks, ("orientation", "velocity"))
    has_roads = bool(scenario.lanelet_network.lanelets)
    return Recording(path.name, whole_tracks(tracks, unused), carriageways, has_roads)


def _open(path: Path) -> Any:
    """Return the scenario of a file."""
    with warnings.catch_warnings():
        # It imports a module of SciPy by an old name.
        warnings.simplefilter("ignore", DeprecationWarning)
        from commonroad.common.file_reader import CommonRoadFileReader
    check_scenario(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scenario, _ = CommonRoadFileReader(str(path)).open()
    except _BROKEN as exc:
        raise RecordingError(f"{path} is no whole CommonRoad scenario: {first_line(exc)}") from exc
    return scenario


def _tracks(path: Path, scenario: Any, unused: Unused) -> Iterator[Track]:
    last = max(
        (
            obstacle.prediction.final_time_step
            for obstacle in scenario.dynamic_obstacles
            if obstacle.prediction is not None
        ),
        default=0,
    )
    if (standing := (last + 1) * len(scenario.static_obstacles)) > MOST_STATIC_STATES:
        raise RecordingError(
            f"{path} has static obstacles at so many time steps that these are {standing} states "
            f"(allowed: {MOST_STATIC_STATES}; split it by time)"
        )
    everybody = [(each, False) for each in scenario.dynamic_obstacles]
    everybody += [(each, True) for each in scenario.static_obstacles]
    for obstacle, is_static in everybody:
        name, kind = str(obstacle.obstacle_id), kind_of(str(obstacle.obstacle_type.value))
        trajectory = getattr(getattr(obstacle, "prediction", None), "trajectory", None)
        if trajectory is None and not is_static:
            unused.add("no trajectory, but occupancy sets or nothing", name)
            continue
        try:
            size = _size(obstacle.obstacle_shape)
        except _ShapeError as exc:
            unused.add(f"a shape that {exc}", name)
            continue
        states = [obstacle.initial_state, *(trajectory.state_list if trajectory else ())]
        rows = _rows(states)
        if rows is None:
            unused.add("uncertain states, of sets or intervals", name)
            continue
        if is_static:
            rows = np.repeat(rows, last + 1, axis=0)
            rows[:, 0] = np.arange(last + 1)
        order = np.unique(rows[:, 0], return_index=True)[1]
        if len(order) < len(rows):
            unused.add("states of a time step that has one already", name)
        steps, x, y, heading, speed = rows[order].T
        is_given = bool(np.isfinite(speed).all())
        yield Track(
            name, kind, *size, steps * scenario.dt, x, y, heading, speed if is_given else None
        )


class _ShapeError(ValueError):
    """No rectangle around an obstacle's position stands for its shape; the message says why."""


def _size(shape: Any) -> tuple[float, float]:
    """Return length and width of a shape; of a polygon those of the box around it.

    Raises:
        _ShapeError: It has none that can be, or lies or points elsewhere than its obstacle.
    """
    orientation, area = float(getattr(shape, "orientation", 0.0)), np.inf
    if hasattr(shape, "length") and hasattr(shape, "width"):
        size, centre = np.array([shape.length, shape.width], np.float64), shape.center
    elif hasattr(shape, "radius"):
        size, centre = np.full(2, 2 * float(shape.radius)), shape.center
    elif hasattr(shape, "vertices"):
        points = np.asarray(shape.vertices, np.float64)
        size, centre = np.ptp(points, axis=0), (points.min(axis=0) + points.max(axis=0)) / 2
        area = shape.shapely_object.area if shape.shapely_object.is_valid else 0.0
    else:
        raise _ShapeError("has several parts")
    if not ((size >= LEAST_SIZE_M) & (size <= LARGEST_SIZE_M)).all() or area < LEAST_SIZE_M**2:
        raise _ShapeError(f"has no area, or is not {LEAST_SIZE_M:g} to {LARGEST_SIZE_M:g} m large")
    if not (np.abs(centre) <= _FARTHEST_CENTRE_M).all():
        raise _ShapeError("does not have its centre at the obstacle's position")
    if not abs(np.sin(orientation)) <= _LARGEST_SIN:
        raise _ShapeError("points elsewhere than its obstacle")
    return float(size[0]), float(size[1])


def _rows(states: list[Any]) -> Floats | None:
    """Return time steps, x, y, orientation and speed [n, 5]; None if they are no numbers."""
    rows = []
    for state in states:
        place = getattr(state, "position", None)
        values = [
            getattr(state, "time_step", None),
            *(place if isinstance(place, np.ndarray) and place.shape == (2,) else (None, None)),
            getattr(state, "orientation", None),
        ]
        if not all(isinstance(x, int | float | np.number) and np.isfinite(x) for x in values):
            return None
        speed = getattr(state, "velocity", None)
        if speed is not None and not isinstance(speed, int | float | np.number):
            return None
        rows.append([*map(float, values), np.nan if speed is None else float(speed)])
    return np.array(rows)


class _Lane(NamedTuple):
    """A lanelet, and what is asked for again and again.

    Attributes:
        lanelet: Of the scenario.
        line: [P, 2] m, its centre line.
        along: [P] m, from its beginning.
        headings: rad, where it begins and where it ends.
    """

    lanelet: Any
    line: Floats
    along: Floats
    headings: tuple[float, float]


def _lane(lanelet: Any) -> _Lane:
    line = np.asarray(lanelet.center_vertices, np.float64)
    steps = np.diff(line, axis=0)
    along = np.concatenate([[0.0], np.cumsum(np.hypot(steps[:, 0], steps[:, 1]))])
    first, last = (math.atan2(step[1], step[0]) for step in (steps[0], steps[-1]))
    return _Lane(lanelet, line, along, (first, last))


def _carriageways(path: Path, lanelets: list[Any], unused: Unused) -> Iterator[Carriageway]:
    """Yield the roads: adjacent lanelets of the same direction, from left to right."""
    by_id = {lanelet.lanelet_id: _lane(lanelet) for lanelet in lanelets}
    done: set[int] = set()
    points = 0
    for lanelet in lanelets:
        if lanelet.lanelet_id in done:
            continue
        lanes = _side_by_side(lanelet, by_id)
        done.update(each.lanelet.lanelet_id for each in lanes)
        name = f"lanelets {', '.join(str(each.lanelet.lanelet_id) for each in lanes)}"
        continued = [_continued(each, by_id) for each in lanes]
        points += sum(map(len, continued))
        if points > MOST_POINTS:
            raise RecordingError(
                f"{path} has lanelets of so many points that those side by side and one after "
                f"another are {points} points or more (allowed: {MOST_POINTS})"
            )
        try:
            road = Road(
                continued,
                np.asarray(lanes[0].lanelet.left_vertices, np.float64),
                np.asarray(lanes[-1].lanelet.right_vertices, np.float64),
            )
            road.locate(np.zeros((1, 4)))
            lines = Polylines([each.line for each in lanes], [name] * len(lanes))
            yield Carriageway(name, road, lines)
        except InvalidInputError:
            unused.add("lanelets that make no road", name)


def _side_by_side(lanelet: Any, by_id: Mapping[int, _Lane]) -> list[_Lane]:
    """Return a lanelet and those beside it, from left to right."""
    lanes, seen = [by_id[lanelet.lanelet_id]], {lanelet.lanelet_id}
    for side, place in (("left", 0), ("right", None)):
        at = lanelet
        while len(lanes) < _MOST_LANES:
            beside = getattr(at, f"adj_{side}")
            if not getattr(at, f"adj_{side}_same_direction") or beside in seen:
                break
            if beside not in by_id:
                break
            at = by_id[beside].lanelet
            seen.add(beside)
            lanes.insert(len(lanes) if place is None else place, by_id[beside])
    return lanes


def _continued(lane: _Lane, by_id: Mapping[int, _Lane]) -> Floats:
    """Return a centre line that goes on, as straight as it can, past both ends."""
    ahead = _chain(lane, by_id, "successor", _AHEAD_M)
    behind = _chain(lane, by_id, "predecessor", _BEHIND_M)
    return _evened(np.concatenate([*reversed(behind), lane.line, *ahead]))


def _evened(line: Floats) -> Floats:
    """Return points of a line [n, 2] each metre, evened by cubics over `_EVENING_M`.

    Points of maps are some centimetres off: each few metres a kink, of a straight motorway a
    curvature of 0.02 1/m. A bend of 12 m radius moves by 8 cm.
    """
    steps_m = np.hypot(*np.diff(line, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps_m)])
    count = int(along[-1]) + 1
    if not _EVENING_M <= count <= _LONGEST_PIECE_M * len(line):
        return line
    even = np.linspace(0.0, along[-1], count)
    points = np.stack([np.interp(even, along, column) for column in line.T], axis=-1)
    return np.asarray(savgol_filter(points, _EVENING_M, 3, axis=0))


def _chain(lane: _Lane, by_id: Mapping[int, _Lane], name: str, length_m: float) -> list[Floats]:
    """Return the centre lines of those that follow on a lanelet, up to a length."""
    found: list[Floats] = []
    seen, is_ahead = {lane.lanelet.lanelet_id}, name == "successor"
    while length_m > 0 and len(found) < _MOST_LINKS:
        others = [by_id[x] for x in getattr(lane.lanelet, name) if x in by_id and x not in seen]
        if not others:
            break
        heading = lane.headings[is_ahead]
        lane = max(others, key=lambda each: math.cos(each.headings[not is_ahead] - heading))
        seen.add(lane.lanelet.lanelet_id)
        # The point behind the length belongs to it: the line must not end before.
        kept = (lane.along if is_ahead else lane.along[-1] - lane.along) < length_m
        count = min(int(kept.sum()) + 1, len(kept))
        found.append(lane.line[:count] if is_ahead else lane.line[-count:])
        length_m -= float(lane.along[-1])
    return found
