"""A network as the ego needs it: lanes as lines, edges of the road, junctions.

All in the simulators' world frame: SUMO's y, to the north, with the opposite sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from world_model_client.scene import FORWARD_RIGHT_DOWN, Place, Polylines, Road

Floats = NDArray[np.floating[Any]]

NO_EDGE_M = 32.0
"""What is recorded where a road has no edge: states saturate there, whatever a tracker adds."""

_BEND_STEP_M, _BEND_SPAN_M = 2.0, 4.0

_PREVIEW_M = 20.0
"""So much of the next edge is enough for the curvature ahead where roads cross."""

LaneKey = tuple[str, int]
"""An edge of the network, and the number of a lane as SUMO counts it, from the right."""


class Link(NamedTuple):
    """How a lane goes on.

    Attributes:
        lane: The next one.
        points: [P, 2] across the junction.
    """

    lane: LaneKey
    points: Floats


class Spot(NamedTuple):
    """A place where a vehicle may start.

    Attributes:
        lane: Which.
        along: m from its beginning.
        x: m.
        y: m.
    """

    lane: LaneKey
    along: float
    x: float
    y: float


class RoadMap:
    """All lanes that cars may use, and how they are joined.

    Args:
        file: What netconvert wrote.
        has_crossings: See `networks.Plan`.

    Attributes:
        file: As given.
        has_crossings: As given.
        lanes: Numbers of the lanes of each edge, from the right.
        lengths: Of each edge, m.
        limits: Speed allowed on each edge, m/s.
        points: [P, 2] of each lane's centre.
        links: By lane and next edge.
        following: The edges that an edge goes on to.
        riding: By edge, the rightmost lane for bicycles.
        ridden: The edges that bicycles can go on to.
        walks: Edges with a sidewalk.
    """

    def __init__(self, file: Path, has_crossings: bool) -> None:
        # sumolib belongs to SUMO: whoever has no SUMO imports this module, too.
        from sumolib.net import readNet

        self.file, self.has_crossings = file, has_crossings
        self.lanes: dict[str, list[int]] = {}
        self.lengths: dict[str, float] = {}
        self.limits: dict[str, float] = {}
        self.points: dict[LaneKey, Floats] = {}
        self.links: dict[LaneKey, dict[str, Link]] = {}
        self.following: dict[str, list[str]] = {}
        self.riding: dict[str, int] = {}
        self.ridden: dict[str, list[str]] = {}
        self.walks: list[str] = []
        self._widths: dict[LaneKey, float] = {}
        self._polygons: dict[str, Floats] = {}
        self._stretches: dict[tuple[str | None, str, str | None], Stretch] = {}
        net = readNet(str(file), withInternal=True)
        for edge in sorted(net.getEdges(withInternal=False), key=lambda edge: str(edge.getID())):
            self._read_edge(net, edge)
        self.spots = [spot for key in self.points for spot in self._spots(key)]
        self.spot_places = np.array([(spot.x, spot.y) for spot in self.spots])

    def _read_edge(self, net: Any, edge: Any) -> None:
        name = edge.getID()
        self._polygons[name] = _world(edge.getToNode().getShape())
        self.ridden[name] = sorted(
            {
                link.getToLane().getEdge().getID()
                for lane in edge.getLanes()
                for link in lane.getOutgoing()
                if lane.allows("bicycle") and link.getToLane().allows("bicycle")
            }
        )
        for lane in edge.getLanes():
            number = lane.getIndex()
            if lane.allows("bicycle"):
                self.riding.setdefault(name, number)
            if lane.allows("pedestrian") and not lane.allows("passenger"):
                self.walks.append(name)
            if not lane.allows("passenger"):
                continue
            key = name, number
            self.lanes.setdefault(name, []).append(number)
            self.lengths[name], self.limits[name] = lane.getLength(), lane.getSpeed()
            self.points[key] = _world(lane.getShape())
            self._widths[key] = lane.getWidth()
            found = self.links.setdefault(key, {})
            for link in lane.getOutgoing():
                after = link.getToLane()
                if after.allows("passenger"):
                    lane_after = after.getEdge().getID(), after.getIndex()
                    found[lane_after[0]] = Link(lane_after, _across(net, link))
        self.following[name] = sorted(
            {after for number in self.lanes.get(name, []) for after in self.links[name, number]}
        )

    def _spots(self, key: LaneKey) -> list[Spot]:
        length, points = self.lengths[key[0]], self.points[key]
        line = Polylines([points], ["lane"])
        along = np.arange(4.0, length - 2.0, 4.0)
        # What SUMO calls a lane's length and that of its line may differ a little.
        places = line.positions_at(along[:, None] * line.lengths_m / length)[:, 0]
        return [Spot(key, *map(float, (s, x, y))) for s, (x, y) in zip(along, places, strict=True)]

    def turn(self, edge: str, after: str) -> float:
        """Return by how much the heading changes from one edge to the next, in [0, pi] rad."""
        ends = [self.points[edge, self.lanes[edge][0]], self.points[after, self.lanes[after][0]]]
        before, behind = ends[0][-1] - ends[0][-2], ends[1][1] - ends[1][0]
        cosine = before @ behind / (np.linalg.norm(before) * np.linalg.norm(behind))
        return float(np.arccos(np.clip(cosine, -1.0, 1.0)))

    def stretch(self, before: str | None, edge: str, after: str | None) -> Stretch:
        """Return the part of a route that lies around an edge."""
        key = before, edge, after
        if key not in self._stretches:
            self._stretches[key] = self._stretch(*key)
        return self._stretches[key]

    def _stretch(self, before: str | None, edge: str, after: str | None) -> Stretch:
        parts = [self._line(before, (edge, number), after) for number in self.lanes[edge]]
        lines = [np.concatenate([part for part in line if len(part)]) for line in parts]
        joined = Polylines(lines, [f"{edge}_{number}" for number in self.lanes[edge]])
        starts, ends, resumes = np.array([_bounds(line) for line in parts]).T
        around, centres = [name for name in (before, edge, after) if name is not None], lines
        if self.has_crossings:
            # Where the lane turns sharply at a junction it must not come back beside the edges.
            around = [edge]
            own = [[*line[2:4], _beginning(line[4], _PREVIEW_M)] for line in parts]
            centres = [np.concatenate([part for part in line if len(part)]) for line in own]
        left, right = (
            np.concatenate([self._border(name, side) for name in around]) for side in (-1, 1)
        )
        return Stretch(
            edge=edge,
            numbers=tuple(self.lanes[edge]),
            lines=joined,
            road=Road(centres, left, right),
            open_road=Road(lines) if self.has_crossings else None,
            starts=starts,
            ends=ends,
            resumes=resumes,
            is_last=after is None,
            polygon=self._polygons[edge],
            bends=_bends(joined),
        )

    def _line(self, before: str | None, key: LaneKey, after: str | None) -> list[Floats]:
        """Return a lane in five parts: the lane before, what joins it, itself, and so on."""
        nothing = np.zeros((0, 2))
        line = [nothing, nothing, self.points[key], nothing, nothing]
        for number in self.lanes.get(before or "", []):
            link = self.links[str(before), number].get(key[0])
            if link is not None and link.lane == key:
                line[:2] = self.points[str(before), number], link.points
        link = self.links[key].get(after or "")
        if link is not None:
            line[3:] = link.points, self.points[link.lane]
        return line

    def _border(self, edge: str, side: int) -> Floats:
        """Return the outer border of an edge's lanes: the left one for -1, the right one for 1."""
        number = self.lanes[edge][-1 if side < 0 else 0]
        points = self.points[edge, number]
        step = np.diff(points, axis=0)
        normal = np.stack([-step[:, 1], step[:, 0]], axis=1)  # to the right, y down
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        at = np.concatenate([normal[:1], normal[:-1] + normal[1:], normal[-1:]])
        at[1:-1] /= 1 + (normal[:-1] * normal[1:]).sum(axis=1, keepdims=True)
        return points + side * at * self._widths[edge, number] / 2


@dataclass(frozen=True)
class Stretch:
    """An edge of a route with what comes before and after it, L lanes.

    Attributes:
        edge: Its name.
        numbers: [L] of the lanes, as SUMO counts.
        lines: Of the lanes.
        road: The same with the road's edges.
        open_road: The same without, for the junction at the edge's end; None: its edges go on.
        starts: [L] m along each line, where the edge begins.
        ends: [L] where it ends.
        resumes: [L] where the next one begins; infinite if the lane does not go on to it.
        is_last: Whether the route ends here.
        polygon: [P, 2] of the junction at its end.
        bends: [K, L] curvature of the lines, 1/m, every `_BEND_STEP_M`, without sign.
    """

    edge: str
    numbers: tuple[int, ...]
    lines: Polylines
    road: Road
    open_road: Road | None
    starts: Floats
    ends: Floats
    resumes: Floats
    is_last: bool
    polygon: Floats
    bends: Floats

    def locate(self, pose: Floats, *, in_junction: bool) -> Place:
        """Return where the ego [4] is; N is 1."""
        is_open = in_junction and self.open_road is not None
        road = self.open_road if is_open and self.open_road is not None else self.road
        return road.locate(pose[None], FORWARD_RIGHT_DOWN)

    def bends_ahead(self, lane: int, along: float, reach_m: float) -> tuple[Floats, Floats]:
        """Return distances [n] ahead in m, and the curvatures [n] there."""
        first = max(0, int(along / _BEND_STEP_M))
        bends = self.bends[first : first + int(reach_m / _BEND_STEP_M) + 1, lane]
        return np.arange(len(bends)) * _BEND_STEP_M, bends


def is_inside(polygon: Floats, x: float, y: float) -> bool:
    """Whether a point is inside a polygon [P, 2], by the crossings of a ray."""
    if len(polygon) < 3:
        return False
    ahead = np.roll(polygon, -1, axis=0)
    spans = (polygon[:, 1] > y) != (ahead[:, 1] > y)
    (x0, y0), (x1, y1) = polygon[spans].T, ahead[spans].T
    return bool(np.count_nonzero(x < x0 + (y - y0) / (y1 - y0) * (x1 - x0)) % 2)


def _beginning(points: Floats, length_m: float) -> Floats:
    """Return a line [P, 2] up to a length."""
    if len(points) < 2:
        return points
    at = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    end = [np.interp(length_m, at, points[:, axis]) for axis in (0, 1)]
    return np.concatenate([points[at < length_m], [end]])


def _world(points: Any) -> Floats:
    return np.array([point[:2] for point in points], np.float64).reshape(-1, 2) * [1.0, -1.0]


def _across(net: Any, link: Any) -> Floats:
    """Return the points [P, 2] of the lanes inside a junction that a link uses."""
    points: list[Any] = []
    via = link.getViaLaneID()
    while via:
        lane = net.getLane(via)
        points += lane.getShape()
        via = next((after.getViaLaneID() for after in lane.getOutgoing()), "")
    return _world(points)


def _bounds(parts: list[Floats]) -> tuple[float, float, float]:
    """Return where along a line of five parts its third begins and ends, and the fifth begins."""
    lengths = []
    last: Floats | None = None
    for part in parts:
        points = part if last is None else np.concatenate([last, part])
        lengths.append(float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum()))
        # The gap to the next part counts to that part.
        last = part[-1:] if len(part) else last
    before, ends = lengths[0] + lengths[1], sum(lengths[:3])
    return before, ends, ends + lengths[3] if len(parts[4]) else np.inf


def _bends(lines: Polylines) -> Floats:
    along = np.arange(0.0, float(lines.lengths_m.max()), _BEND_STEP_M)[:, None]
    reach = np.broadcast_to(along, (len(along), len(lines.lengths_m)))
    turn = lines.heading_at(reach + _BEND_SPAN_M / 2) - lines.heading_at(reach - _BEND_SPAN_M / 2)
    return np.abs((turn + np.pi) % (2 * np.pi) - np.pi) / _BEND_SPAN_M
