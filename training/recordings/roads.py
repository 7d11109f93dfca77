"""On which road a vehicle drives, of all that a recording has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model_client.scene import ISO8855, Place, Polylines, Road

Floats = NDArray[np.floating[Any]]

_SLACK_M = 1.0
"""So far before its beginning or beyond its end, a road still counts: maps have small gaps."""

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


def route(carriageways: Sequence[Carriageway], poses: Floats, frame: str, dt_s: float) -> Route:
    """Find the roads of a vehicle.

    Where roads overlap, as in junctions, it is on the one that it stays on for longest: a planner
    knows where it is going.

    Args:
        carriageways: Of the recording.
        poses: [N, >= 4] x, y, heading, speed, true ones.
        frame: Of both.
        dt_s: Between poses.
    """
    count = len(poses)
    road = np.full(count, -1)
    if not carriageways:
        return Route(road, np.zeros(count, np.bool_))
    found = [each.place(poses, frame) for each in carriageways]
    is_on = np.stack([on for _, on, _ in found], axis=1)  # [N, roads]
    ends = _run_ends(is_on)
    at = 0
    while at < count:
        here = np.flatnonzero(is_on[at])
        if len(here):
            best = here[int(np.argmax(ends[at, here]))]
            road[at : ends[at, best]] = best
            at = int(ends[at, best])
        else:
            at += 1
    off = _bridged(road, round(_BRIDGE_S / dt_s))
    leaves = np.zeros(count, np.bool_)
    if len(off) and off[-1][1] == count and off[-1][0] > 0:
        first = off[-1][0]
        place, _, beyond = found[road[first - 1]]
        is_across = (place.left_edge[first:] < 0) | (place.right_edge[first:] < 0)
        leaves[first:] = is_across & (beyond[first:] <= _SLACK_M)
    return Route(road, leaves)


def _run_ends(is_on: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return for each moment and road [N, roads] when it is next not on it."""
    ends = np.zeros(is_on.shape, np.intp)
    after = np.full(is_on.shape[1], len(is_on))
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


def places(
    carriageways: Sequence[Carriageway], road: NDArray[np.intp], poses: Floats, frame: str = ISO8855
) -> Place:
    """Return where poses are on the road that was found for each of them.

    Args:
        carriageways: Of the recording.
        road: [N] indices of them; -1: on none.
        poses: [N, >= 4].
        frame: Of both.
    """
    joined = nowhere(len(poses))
    for index in np.unique(road[road >= 0]).tolist():
        rows = np.flatnonzero(road == index)
        found = carriageways[index].road.locate(poses[rows], frame)
        for column, values in zip(joined, found, strict=True):
            column[rows] = values
    return joined
