"""The road as a planner knows it, as lines, and where the ego is on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from world_model_client.errors import InvalidInputError
from world_model_client.scene.frames import FRAMES, ISO8855, Floats, shown, wrapped
from world_model_client.scene.polylines import Polylines

PREVIEW_S = 0.4
"""The curvature is that of the lane where the ego is in so long, at present speed."""

CURVATURE_SPAN_M = 4.0
"""Length over which it is measured."""

MAX_CURVATURE = 0.2
"""1/m; lines that bend more have corners."""

_METRES_PER_RADIAN = 1.0
"""How far away a lane counts for each radian that the ego points away from it: at a crossing, the
ego is on the lane that goes its way."""

_SAMPLES = 7
"""Of each centre line, to see on which side of it an edge is."""

_BESIDE_M = 0.2
"""Nearer to an edge, it is not counted which side of it a centre line is on."""


class Place(NamedTuple):
    """Where N egos are on a road, in the frame that the road is given in.

    Attributes:
        lane: [N] index of the closest centre line.
        lane_offset: [N] m, from it to the ego.
        sin_heading_error: [N] sine of the ego's heading minus the lane's.
        left_edge: [N] m, to the left road edge, negative beyond; infinite if the road has none.
        right_edge: [N] likewise.
        curvature: [N] 1/m, of the lane ahead.
        is_against: [N] whether the ego points against the lane's direction.
    """

    lane: NDArray[np.intp]
    lane_offset: Floats
    sin_heading_error: Floats
    left_edge: Floats
    right_edge: Floats
    curvature: Floats
    is_against: NDArray[np.bool_]


class Road:
    """All lanes that run in the ego's direction, side by side, and what bounds them.

    Lines are rows of points in the frame of the builder, centre lines in the direction of travel,
    edges in either. They may be longer than what matters, but cost time: some 200 m around the ego
    are enough, of a line that goes on past joints of the map for 0.4 s and 2 m ahead at least.
    Beyond its ends a line goes straight on. A road may be used for any number of states.

    Args:
        centre_lines: Of each lane [P, 2], in m.
        left_edge: [P, 2] in m, the outer border of the leftmost lane, the shoulder not included;
            None if it is not known: the builder then takes it for far away, and nobody is told
            that the ego leaves the road there.
        right_edge: Likewise.

    Raises:
        InvalidInputError: A line is none.
    """

    def __init__(
        self,
        centre_lines: Sequence[ArrayLike],
        left_edge: ArrayLike | None = None,
        right_edge: ArrayLike | None = None,
    ) -> None:
        if not hasattr(centre_lines, "__len__") or not len(centre_lines):
            raise InvalidInputError(
                f"centre_lines is {shown(centre_lines)} (allowed: a list of at least one line)"
            )
        given = {"left_edge": left_edge, "right_edge": right_edge}
        edges = {name: line for name, line in given.items() if line is not None}
        names = [f"centre_lines[{i}]" for i in range(len(centre_lines))]
        self._lines = Polylines([*centre_lines, *edges.values()], [*names, *edges])
        self._lanes = slice(0, len(names))
        self._edges = {name: i for i, name in enumerate(edges, len(names))}
        self._directions, self._sides = self._orient()
        self._checked: set[str] = set()

    def _orient(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return whether edges run along (1) or against (-1) the lanes, and where the lanes are.

        The second is below 0 if the lanes are on the side of negative laterals of the edge when it
        is turned along them, above 0 if on the other side, and 0 if nobody can say.
        """
        directions: dict[str, float] = {}
        sides: dict[str, float] = {}
        if not self._edges:
            return directions, sides
        along = np.linspace(0.0, 1.0, _SAMPLES)[:, None] * self._lines.lengths_m
        points = self._lines.positions_at(along)[:, self._lanes].reshape(-1, 2)
        headings = self._lines.heading_at(along)[:, self._lanes].reshape(-1)
        place = self._lines.project(points[:, 0], points[:, 1])
        angles = headings[:, None] - self._lines.heading_at(place.along)
        for name, i in self._edges.items():
            is_beside = place.beyond[:, i] == 0
            # Who is beside the line says more about it than who is beyond its ends.
            counts = is_beside if is_beside.any() else ~is_beside
            directions[name] = -1.0 if np.cos(angles[counts, i]).sum() < 0 else 1.0
            lateral = directions[name] * place.lateral[counts, i]
            sides[name] = float(np.sign(lateral[np.abs(lateral) > _BESIDE_M]).sum())
        return directions, sides

    def locate(self, ego: Floats, frame: str = ISO8855) -> Place:
        """Return where egos are on the road.

        The lane is the one whose centre line is closest, where a line that points another way
        counts as 1 m farther for each radian.

        Args:
            ego: [N, >= 4] x, y, heading, speed, ...
            frame: Of the ego and of the lines.

        Raises:
            InvalidInputError: An edge is on the wrong side in this frame.
        """
        if frame not in self._checked:
            self._check_sides(frame)
        place = self._lines.project(ego[:, 0], ego[:, 1])
        errors = ego[:, 2:3] - self._lines.heading_at(place.along)
        cosines = np.cos(errors)
        # The angle between both, in [0, pi]: the cosine knows no whole turns.
        away = np.arccos(np.clip(cosines, -1.0, 1.0))
        costs = np.abs(place.lateral) + place.beyond + _METRES_PER_RADIAN * away
        lane = costs[:, self._lanes].argmin(axis=1)
        rows = np.arange(len(ego))
        ahead = place.along + ego[:, 3:4] * PREVIEW_S
        turn = wrapped(
            self._lines.heading_at(ahead + CURVATURE_SPAN_M / 2)
            - self._lines.heading_at(ahead - CURVATURE_SPAN_M / 2)
        )[rows, lane]
        left, right = (
            sign * self._directions[name] * place.lateral[:, self._edges[name]]
            if name in self._edges
            else np.full(len(ego), np.inf)
            for name, sign in _signs(frame)
        )
        return Place(
            lane=lane,
            lane_offset=place.lateral[rows, lane],
            sin_heading_error=np.sin(errors[rows, lane]),
            left_edge=left,
            right_edge=right,
            curvature=np.clip(turn / CURVATURE_SPAN_M, -MAX_CURVATURE, MAX_CURVATURE),
            is_against=cosines[rows, lane] < 0,
        )

    def _check_sides(self, frame: str) -> None:
        for name, sign in _signs(frame):
            if self._sides.get(name, 0.0) * sign < 0:
                side, other = name.removesuffix("_edge"), FRAMES[FRAMES[0] == frame]
                raise InvalidInputError(
                    f"{name} is on the wrong side of the centre lines in the frame {frame} "
                    f"(allowed: on their {side}): are both edges exchanged, does a centre line run "
                    f"against the traffic, or is this the frame {other}?"
                )
        self._checked.add(frame)


def _signs(frame: str) -> tuple[tuple[str, float], tuple[str, float]]:
    """Return what turns laterals of an edge, along the lanes, into distances to it."""
    left = -1.0 if frame == ISO8855 else 1.0
    return ("left_edge", left), ("right_edge", -left)
