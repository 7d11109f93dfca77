"""On which road a vehicle drives, of all that a recording has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.recordings.recording import RecordingError
from world_model_client.scene import Place, Polylines, Road

Floats = NDArray[np.floating[Any]]

_SLACK_M = 1.0
"""So far before its beginning or beyond its end, a road still counts: maps have small gaps."""

REACH_M = 50.0
"""Who is farther away from the box around a road's centre lines is not on it."""

MOST_PAIRS = 100_000_000
"""Poses, each with the roads near it: some minutes."""

_WINDOW = 256
"""Poses in a row that are taken together, to see which roads are near."""

_LARGEST_ANGLE_RAD = np.pi / 3
"""Who points farther away from the lanes is on another road."""

_BRIDGE_S = 0.5
"""So long, a vehicle that is on no road is still taken to be on the one before: a fault of the
map, or of the track."""


@dataclass(frozen=True)
class Carriageway:
    """All lanes of one direction, side by side.

    Attributes:
        name: For people.
        road: With lanes that may go on beyond the ends of this one.
        lanes: Centre lines of this one alone.
    """

    name: str
    road: Road
    lanes: Polylines

    def place(self, poses: Floats, frame: str) -> tuple[Place, NDArray[np.bool_], Floats]:
        """Return where poses are on it.

        Args:
            poses: [N, >= 4] x, y, heading, speed.
            frame: Of both.

        Returns:
            Places by its lines; whether they are on it [N], by edges, ends and direction; and how
            far in m they are beyond its ends [N].
        """
        place = self.road.locate(poses, frame)
        projected = self.lanes.project(poses[:, 0], poses[:, 1])
        lane = (np.abs(projected.lateral) + projected.beyond).argmin(axis=1)
        beyond = projected.beyond[np.arange(len(poses)), lane]
        along = np.abs(np.arcsin(np.clip(place.sin_heading_error, -1, 1))) < _LARGEST_ANGLE_RAD
        is_on = along & ~place.is_against & (beyond <= _SLACK_M)
        is_on &= (place.left_edge >= 0) & (place.right_edge >= 0)
        return place, np.asarray(is_on), beyond


@dataclass(frozen=True)
class Route:
    """Which roads a vehicle takes.

    Attributes:
        road: [N] index of the carriageway at each moment, -1 if it is on none.
        leaves: [N] whether it has left the road across an edge, and does not come back.
    """

    road: NDArray[np.intp]
    leaves: NDArray[np.bool_]


class Roads:
    """All roads of a recording, to be asked on which one somebody is.

    Args:
        carriageways: Of the recording.
        frame: Of them, and of all poses.
        name: Of the recording, for messages.
    """

    def __init__(self, carriageways: Sequence[Carriageway], frame: str, name: str) -> None:
        self._carriageways, self._frame, self._name = carriageways, frame, name
        boxes = [each.lanes.bounds() for each in carriageways]
        self._low, self._high = np.array(boxes).reshape(-1, 2, 2).transpose(1, 0, 2)
        self._low, self._high = self._low - REACH_M, self._high + REACH_M
        self._asked = 0
        """Poses and roads near them so far."""

    def route(self, poses: Floats, dt_s: float) -> Route:
        """Find the roads of a vehicle.

        Where roads overlap, as in junctions, it is on the one that it stays on for longest: a
        planner knows where it is going.

        Args:
            poses: [N, >= 4] x, y, heading, speed, true ones.
            dt_s: Between poses.

        Raises:
            RecordingError: So many roads are at one place that it would take hours.
        """
        count = len(poses)
        found: list[tuple[int, NDArray[np.intp]]] = []
        for index, rows in self._near(poses):
            self._count(len(rows))
            _, on, _ = self._carriageways[index].place(poses[rows], self._frame)
            if on.any():
                found.append((index, rows[on]))
        is_on = np.zeros((count, len(found)), np.bool_)
        for column, (_, rows) in enumerate(found):
            is_on[rows, column] = True
        road = _longest(is_on, np.array([index for index, _ in found], np.intp))
        off = _bridged(road, round(_BRIDGE_S / dt_s))
        leaves = np.zeros(count, np.bool_)
        if len(off) and off[-1][1] == count and off[-1][0] > 0:
            first = off[-1][0]
            last_road = self._carriageways[road[first - 1]]
            place, _, beyond = last_road.place(poses[first:], self._frame)
            is_across = (place.left_edge < 0) | (place.right_edge < 0)
            leaves[first:] = is_across & (beyond <= _SLACK_M)
        return Route(road, leaves)

    def lane_headings(self, x: Floats, y: Floats) -> Floats:
        """Return the directions of the lanes that places [N] are on; NaN where there is none.

        Raises:
            RecordingError: So many roads are at one place that it would take hours.
        """
        headings = np.full(len(x), np.nan)
        order = np.argsort(x)  # those in a row are near each other
        poses = np.zeros((len(x), 4))
        poses[:, 0], poses[:, 1] = x[order], y[order]
        for index, near in self._near(poses):
            rows = near[np.isnan(headings[order[near]])]
            if not len(rows):
                continue
            self._count(len(rows))
            carriageway, each = self._carriageways[index], np.arange(len(rows))
            along = carriageway.lanes.project(*poses[rows, :2].T)
            lane = np.argmin(np.abs(along.lateral) + along.beyond, axis=1)
            place = carriageway.road.locate(poses[rows], self._frame)
            is_on = (place.left_edge >= 0) & (place.right_edge >= 0)
            is_on &= along.beyond[each, lane] == 0
            found = carriageway.lanes.heading_at(along.along)[each, lane]
            headings[order[rows[is_on]]] = found[is_on]
        return headings

    def places(self, road: NDArray[np.intp], poses: Floats) -> Place:
        """Return where poses are on the road that was found for each of them.

        Args:
            road: [N] indices of carriageways; -1: on none.
            poses: [N, >= 4].
        """
        joined = nowhere(len(poses))
        for index in np.unique(road[road >= 0]).tolist():
            rows = np.flatnonzero(road == index)
            found = self._carriageways[index].road.locate(poses[rows], self._frame)
            for column, values in zip(joined, found, strict=True):
                column[rows] = values
        return joined

    def _near(self, poses: Floats) -> Iterator[tuple[int, NDArray[np.intp]]]:
        """Yield each road that poses are near, with their rows: by boxes, first of many poses."""
        if not len(poses):
            return
        at, count = poses[:, :2], len(poses)
        window = max(_WINDOW, count // _WINDOW)
        starts = np.arange(0, count, window)
        low, high = np.minimum.reduceat(at, starts), np.maximum.reduceat(at, starts)
        meets = np.ones((len(starts), len(self._low)), np.bool_)
        for axis in range(2):
            meets &= low[:, axis, None] <= self._high[:, axis]
            meets &= high[:, axis, None] >= self._low[:, axis]
        for index in np.flatnonzero(meets.any(axis=0)).tolist():
            rows = np.flatnonzero(np.repeat(meets[:, index], window)[:count])
            inside = (at[rows] >= self._low[index]) & (at[rows] <= self._high[index])
            rows = rows[inside.all(axis=1)]
            if len(rows):
                yield index, rows

    def _count(self, pairs: int) -> None:
        self._asked += pairs
        if self._asked > MOST_PAIRS:
            raise RecordingError(
                f"{self._name} has so many roads at the same places that poses and roads near them "
                f"are more than {MOST_PAIRS} pairs (allowed: so many; split it by time, or leave "
                "out roads that lie over others)"
            )


def _longest(is_on: NDArray[np.bool_], indices: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return which of the roads [R] each pose [N, R] is on: that which it stays on; -1: none."""
    road = np.full(len(is_on), -1)
    if not len(indices):
        return road
    ends = _run_ends(is_on)
    at = 0
    while at < len(is_on):
        here = np.flatnonzero(is_on[at])
        if len(here):
            best = here[int(np.argmax(ends[at, here]))]
            road[at : ends[at, best]] = indices[best]
            at = int(ends[at, best])
        else:
            at += 1
    return road


def _run_ends(is_on: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return for each moment and road [N, roads] when it is next not on it."""
    ends = np.zeros(is_on.shape, np.int32)
    after = np.full(is_on.shape[1], len(is_on), np.int32)
    for at in range(len(is_on) - 1, -1, -1):
        after = np.where(is_on[at], after, at)
        ends[at] = after
    return ends


def _bridged(road: NDArray[np.intp], steps: int) -> list[tuple[int, int]]:
    """Fill short times on no road with the road before, in place; return the others."""
    off = np.concatenate([[False], road < 0, [False]])
    edges = np.flatnonzero(np.diff(off.astype(np.int8)))
    rest = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if start > 0 and end < len(road) and end - start <= steps:
            road[start:end] = road[start - 1]
        else:
            rest.append((start, end))
    return rest


def nowhere(count: int) -> Place:
    """Return places of vehicles of which no road is known: a straight lane, no edges in sight."""
    return Place(
        lane=np.zeros(count, np.intp),
        lane_offset=np.zeros(count),
        sin_heading_error=np.zeros(count),
        left_edge=np.full(count, np.inf),
        right_edge=np.full(count, np.inf),
        curvature=np.zeros(count),
        is_against=np.zeros(count, np.bool_),
    )
