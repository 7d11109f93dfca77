"""The ego in SUMO as its driver knows it: lanes of its route, who is ahead, bends and signals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.simulation.behaviours import Lane
from training.simulation.sumo.maps import Floats, RoadMap, Stretch, is_inside
from training.simulation.sumo.users import EGO, User

_BESIDE_M = 0.4
"""Who leaves less room than this beside the ego is ahead of it."""

_CROSSING_SIN = 0.5
_LOOK_AHEAD_S = (0.0, 0.7, 1.4)
"""Who drives or walks across is expected where he will be then, too."""

_SEEN_M = 90.0
_CHANGES_M = 120.0
"""So far before its lane ends a driver looks for one that goes on."""

_BEND_MPS2 = (3.0, 6.0)
"""Lateral acceleration that drivers take bends with: those who look, and the blind."""

_CLOSED_SIGNALS = "ruyY"


class SumoEgo:
    """The car we drive; a `behaviours.Car`. Lanes are (place in the route, number in SUMO).

    Args:
        user: Its kind and size.
        route: Edges that it follows.
        roads: The map.
        pose: [4] x, y, heading, speed at the start.
        api: libsumo.

    Attributes:
        user: As given.
        pose: Now.
        others: [M, 4] poses of everybody else now; set by the world, as the next.
        sizes: [M, 2] their lengths and widths.
        is_lost: Whether it left its route, where no edge of the road says so.
    """

    def __init__(
        self, user: User, route: tuple[str, ...], roads: RoadMap, pose: Floats, api: Any
    ) -> None:
        self.user, self.pose = user, pose
        self.others: Floats = np.zeros((0, 4))
        self.sizes: Floats = np.zeros((0, 2))
        self.is_lost = False
        self._route, self._roads, self._api = route, roads, api
        self._at = 0
        self._is_in_junction = False
        self._stretch = self._stretch_at(0)
        self._along: Floats = np.zeros(0)
        self._lateral: Floats = np.zeros(0)
        self._lane = 0
        self._find()

    @property
    def speed(self) -> float:
        """In m/s."""
        return float(self.pose[3])

    @property
    def heading(self) -> float:
        """In rad."""
        return float(self.pose[2])

    @property
    def length(self) -> float:
        """In m."""
        return self.user.length

    @property
    def lane_now(self) -> Lane:
        """The lane it is on."""
        return self._at, self._stretch.numbers[self._lane]

    @property
    def is_in_junction(self) -> bool:
        """Whether it is where the road has no edges."""
        return self._is_in_junction

    def _stretch_at(self, at: int) -> Stretch:
        route = self._route
        before = route[at - 1] if at else None
        after = route[at + 1] if at + 1 < len(route) else None
        return self._roads.stretch(before, route[at], after)

    def moved(self, pose: Floats) -> list[float]:
        """Take a new pose [4], and return the six ego features there."""
        self.pose = pose
        was_open = self._is_in_junction
        self._find()
        place = self._stretch.locate(pose, in_junction=self._is_in_junction)
        left, right = float(place.left_edge[0]), float(place.right_edge[0])
        if was_open and not self._is_in_junction and min(left, right) < 0:
            self.is_lost = True
        return [
            self.speed,
            float(place.lane_offset[0]),
            float(place.sin_heading_error[0]),
            left,
            right,
            float(place.curvature[0]),
        ]

    def _find(self) -> None:
        """Find the ego's place on its route again."""
        self._project()
        x, y = float(self.pose[0]), float(self.pose[1])
        stretch = self._stretch
        along = self._along[self._lane]
        has_passed = along >= stretch.resumes[self._lane]
        if stretch.is_last and along + self.length / 2 > stretch.ends[self._lane]:
            self.is_lost = True
        if stretch.open_road is None:
            if has_passed:
                self._go_on()
            return
        was_open = self._is_in_junction
        self._is_in_junction = is_inside(stretch.polygon, x, y)
        if self._is_in_junction:
            return
        if has_passed:
            self._go_on()
        elif was_open:
            self.is_lost = True

    def _go_on(self) -> None:
        self._at += 1
        self._stretch = self._stretch_at(self._at)
        self._project()

    def _project(self) -> None:
        lines, pose = self._stretch.lines, self.pose
        place = lines.project(pose[:1], pose[1:2])
        self._along, self._lateral = place.along[0], place.lateral[0]
        self._lane = int(np.argmin(np.abs(self._lateral) + place.beyond[0]))

    def _column(self, lane: Any) -> int:
        return self._stretch.numbers.index(lane[1])

    def follow(self, lane: Any, ahead_m: float) -> tuple[Lane, float, float]:
        """See `behaviours.Car`."""
        number = self._carried_on(lane)
        column = self._stretch.numbers.index(number)
        along = np.broadcast_to(self._along[column] + ahead_m, (1, len(self._along)))
        heading = float(self._stretch.lines.heading_at(along)[0, column])
        return (self._at, number), float(self._lateral[column]), heading

    def _carried_on(self, lane: Any) -> int:
        """Return the number, on the edge the ego is at now, of a lane that it was to follow."""
        at, number = lane
        numbers = self._stretch.numbers
        while at < self._at:
            link = self._roads.links[self._route[at], number].get(self._route[at + 1])
            number = number if link is None else link.lane[1]
            at += 1
            known = self._roads.lanes[self._route[at]]
            number = min(known, key=lambda one, wanted=number: abs(one - wanted))  # type: ignore[misc]
        column = numbers.index(number)
        left_m = self._stretch.ends[column] - self._along[column]
        if not self._goes_on(column) and left_m < _CHANGES_M:
            going = [i for i in range(len(numbers)) if self._goes_on(i)]
            if going:
                nearest = min(going, key=lambda i: abs(i - column))
                # One lane at a time.
                number = numbers[column + int(np.sign(nearest - column))]
        return int(number)

    def _goes_on(self, column: int) -> bool:
        return self._stretch.is_last or bool(np.isfinite(self._stretch.resumes[column]))

    def side_lanes(self, lane: Any) -> Sequence[Lane]:
        """See `behaviours.Car`."""
        column = self._stretch.numbers.index(self._carried_on(lane))
        beside = (i for i in (column - 1, column + 1) if 0 <= i < len(self._stretch.numbers))
        return [(self._at, self._stretch.numbers[i]) for i in beside if self._goes_on(i)]

    def leaders(self, lanes: Iterable[Any]) -> Iterator[tuple[float, float]]:
        """See `behaviours.Car`."""
        columns = sorted({self._stretch.numbers.index(self._carried_on(lane)) for lane in lanes})
        for column in columns:
            if not self._goes_on(column):
                end = float(self._stretch.ends[column] - self._along[column]) - self.length / 2
                yield max(end, 0.5), self.speed
        if not len(self.others):
            return
        gaps, closing = self._ahead(columns)
        for gap, speed in zip(gaps.tolist(), closing.tolist(), strict=True):
            yield max(gap, 0.5), speed

    def _ahead(self, columns: list[int]) -> tuple[Floats, Floats]:
        """Return gaps [n] and closing speeds [n] of those who are in the way on some lanes."""
        near = np.abs(self.others[:, :2] - self.pose[:2]).max(axis=1) < _SEEN_M
        others, sizes = self.others[near], self.sizes[near]
        cos, sin = np.cos(others[:, 2]), np.sin(others[:, 2])
        velocity = np.stack([cos, sin], axis=1) * others[:, 3:4]
        later = np.array(_LOOK_AHEAD_S)
        places = others[:, None, :2] + velocity[:, None] * later[:, None]
        line = self._stretch.lines
        found = line.project(places[..., 0].ravel(), places[..., 1].ravel())
        shape = len(others), len(later)
        gaps, closing = [], []
        for column in columns:
            along = found.along[:, column].reshape(shape)
            lateral = found.lateral[:, column].reshape(shape)
            heading = line.heading_at(found.along)[:, column].reshape(shape)[:, 0]
            cosine, sine = np.cos(others[:, 2] - heading), np.sin(others[:, 2] - heading)
            reach = np.abs(cosine) * sizes[:, 0] + np.abs(sine) * sizes[:, 1]
            breadth = np.abs(sine) * sizes[:, 0] + np.abs(cosine) * sizes[:, 1]
            room = (breadth + self.user.width) / 2 + _BESIDE_M
            ahead = along - self._along[column]
            counts = (np.abs(lateral) < room[:, None]) & (ahead > 0)
            # Where who drives along the lane will be is not where he is in the way.
            counts[:, 1:] &= (np.abs(sine) > _CROSSING_SIN)[:, None]
            who, when = np.nonzero(counts)
            gaps.append(ahead[who, when] - (reach[who] + self.length) / 2)
            closing.append(self.speed - others[who, 3] * cosine[who])
        return np.concatenate(gaps), np.concatenate(closing)

    def limit(self, comfort: tuple[float, float], *, blind: bool) -> float:
        """See `behaviours.Car`."""
        lane, speed = self._lane, self.speed
        reach = speed * speed / 4.0 + 10.0
        distances, bends = self._stretch.bends_ahead(lane, float(self._along[lane]), reach)
        allowed = _BEND_MPS2[blind] / np.maximum(bends, 1e-3)
        needed = (allowed - speed * speed) / (2 * np.maximum(distances, 0.3 * speed + 1.0))
        wanted = float(needed.min(initial=np.inf))
        return wanted if blind else min(wanted, self._give_way(comfort))

    def _give_way(self, comfort: tuple[float, float]) -> float:
        """Return the acceleration that signals and right of way allow at the next junction."""
        lane = self._lane
        left_m = float(self._stretch.ends[lane] - self._along[lane]) - self.length / 2
        stopping_m = self.speed**2 / (2 * comfort[1])
        if self._is_in_junction or left_m < 0 or left_m > 2 * stopping_m + 20.0:
            return math.inf
        links = self._api.vehicle.getNextLinks(EGO)
        if not links:
            return math.inf
        _, _, has_priority, is_open, _, state, *_ = links[0]
        is_closed = state in _CLOSED_SIGNALS or not (has_priority or is_open)
        # Whoever cannot stop any more goes on.
        if not is_closed or stopping_m > left_m + 3.0:
            return math.inf
        most, comfortable = comfort
        desired = 1.0 + self.speed * 0.8 + self.speed**2 / (2 * math.sqrt(most * comfortable))
        return most * (1 - (desired / max(left_m, 0.5)) ** 2)


def centres(
    fronts: NDArray[np.float64], angles: NDArray[np.float64], lengths: NDArray[np.float64]
) -> tuple[Floats, Floats]:
    """Return centres [M, 2] and headings [M] in the world frame of what SUMO says.

    Args:
        fronts: [M, 2] x and y of the middle of each one's front, y to the north.
        angles: [M] degrees, clockwise from north.
        lengths: [M] m.
    """
    headings = np.radians(angles) - np.pi / 2
    back = np.stack([np.cos(headings), np.sin(headings)], axis=1) * lengths[:, None] / 2
    return fronts * [1.0, -1.0] - back, headings
