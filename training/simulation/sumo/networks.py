"""The networks of the SUMO source, kept as code: what `netconvert` makes files of.

Lengths in m, x to the east, y to the north, traffic keeps to the right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Point = tuple[float, float]
Attributes = Mapping[str, str | float]


@dataclass(frozen=True)
class Plan:
    """What a network is made of.

    Attributes:
        nodes: Attributes of each, its id among them.
        edges: Likewise, in the terms of SUMO's plain XML.
        connections: Likewise; none: netconvert guesses them.
        options: Further ones for netconvert.
        has_crossings: Whether roads meet at junctions, which have no edges; else a road only goes
            on there, and so do its edges.
    """

    nodes: list[Attributes] = field(default_factory=list)
    edges: list[Attributes] = field(default_factory=list)
    connections: list[Attributes] = field(default_factory=list)
    options: tuple[str, ...] = ()
    has_crossings: bool = False


@dataclass(frozen=True)
class Network:
    """A kind of road that episodes are on.

    Attributes:
        variants: Ways to build it; an episode draws one.
        pace: Usual speeds (low, high), as shares of the highest speed allowed on it.
        users: Number of other road users around the ego (low, high), both included.
        fleet: Share of each kind among them.
        walkers: Number of pedestrians beside them (low, high).
        starts: Prefixes of the edges that the ego may start on; none: any.
    """

    variants: tuple[Callable[[], Plan], ...]
    pace: tuple[float, float]
    users: tuple[int, int]
    fleet: Mapping[str, float]
    walkers: tuple[int, int] = (0, 0)
    starts: tuple[str, ...] = ()


def _text(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.3f},{y:.3f}" for x, y in points)


def _node(name: str, at: Point, **attributes: str | float) -> Attributes:
    return {"id": name, "x": at[0], "y": at[1], **attributes}


def _edge(
    name: str, ends: tuple[str, str], lanes: int, speed: float, **rest: str | float
) -> Attributes:
    return {"id": name, "from": ends[0], "to": ends[1], "numLanes": lanes, "speed": speed, **rest}


def _line(
    start: Point, heading: float, pieces: Sequence[tuple[float, float]], step_m: float = 4.0
) -> list[Point]:
    """Return points along a curve.

    Args:
        start: Its first point.
        heading: There, rad, counterclockwise from east.
        pieces: Length and curvature (1/m, to the left positive) of each piece.
        step_m: Between points.
    """
    points = [start]
    for length, curvature in pieces:
        count = max(1, round(length / step_m))
        step, turn = length / count, curvature * length / count
        # The chord of an arc points halfway between the headings at its ends.
        chord = step * math.sin(turn / 2) / (turn / 2) if turn else step
        for _ in range(count):
            x, y = points[-1]
            middle = heading + turn / 2
            points.append((x + chord * math.cos(middle), y + chord * math.sin(middle)))
            heading += turn
    return points


def _both(
    name: str,
    ends: tuple[str, str],
    lanes: int,
    speed: float,
    rest: Attributes,
    line: Sequence[Point] = (),
) -> list[Attributes]:
    """Return the two edges of a road with traffic in both directions, along a line."""
    shapes = ({"shape": _text(points)} if line else {} for points in (line, line[::-1]))
    there, back = ({**rest, **shape} for shape in shapes)
    return [
        _edge(name, ends, lanes, speed, **there),
        _edge(f"-{name}", ends[::-1], lanes, speed, **back),
    ]


def freeway(lanes: int, width: float) -> Plan:
    """Return a straight freeway with one ramp on and one off, each with a lane of its own between.

    Args:
        lanes: Of the freeway itself; beside the ramps it has one more.
        width: Of a lane.
    """
    x = (0.0, 500.0, 750.0, 1050.0, 1300.0, 1800.0)
    names = ("a", "b", "c", "d", "e")
    speed = 36.0
    edges = [
        _edge(name, (f"n{i}", f"n{i + 1}"), lanes + (name in "bd"), speed, width=width, priority=3)
        for i, name in enumerate(names)
    ]
    side = -lanes * width
    bend = 0.004
    ramp = _line((0.0, 0.0), 0.0, [(80.0, 0.0), (40.0, bend), (40.0, -bend), (40.0, 0.0)])
    on = [(px - ramp[-1][0] + x[1], py - ramp[-1][1] + side) for px, py in ramp]
    off = [(x[4] + x[1] - px, py) for px, py in reversed(on)]
    edges += [
        _edge("on", ("r0", "n1"), 1, 25.0, width=width, priority=1, shape=_text(on)),
        _edge("off", ("n4", "r1"), 1, 25.0, width=width, priority=1, shape=_text(off)),
    ]
    connections: list[Attributes] = [
        {"from": one, "to": two, "fromLane": i + (one in "bd"), "toLane": i + (two in "bd")}
        for one, two in pairwise(names)
        for i in range(lanes)
    ]
    connections += [
        {"from": "on", "to": "b", "fromLane": 0, "toLane": 0},
        {"from": "d", "to": "off", "fromLane": 0, "toLane": 0},
    ]
    nodes = [_node(f"n{i}", (at, 0.0), radius=0) for i, at in enumerate(x)]
    nodes += [_node("r0", on[0]), _node("r1", off[-1])]
    return Plan(nodes, edges, connections)


def curves(lanes: int, width: float, tightest_m: float, speed: float) -> Plan:
    """Return a winding road.

    Args:
        lanes: In each direction.
        width: Of a lane.
        tightest_m: Radius of its tightest bend.
        speed: Allowed, m/s.
    """
    k = 1 / tightest_m
    bends = [
        [(100.0, 0.0), (0.8 / k, k), (60.0, 0.0), (1.2 / k, -k), (40.0, 0.0)],
        [(60.0, 0.0), (0.9 / k, -k / 1.5), (0.9 / k, k / 2), (80.0, 0.0)],
        [(50.0, 0.0), (1.4 / k, k), (0.7 / k, -k / 2), (150.0, 0.0)],
    ]
    nodes, edges = [_node("n0", (0.0, 0.0), radius=0)], []
    at, heading = (0.0, 0.0), 0.0
    for i, pieces in enumerate(bends):
        shape = _line(at, heading, pieces)
        at, heading = shape[-1], heading + sum(length * bend for length, bend in pieces)
        nodes.append(_node(f"n{i + 1}", at, radius=0))
        edges += _both(f"w{i}", (f"n{i}", f"n{i + 1}"), lanes, speed, {"width": width}, shape)
    return Plan(nodes, edges)


def ring(lanes: int, radius_m: float, speed: float) -> Plan:
    """Return a closed circular road with traffic in both directions.

    Args:
        lanes: In each direction.
        radius_m: Of the line between both.
        speed: Allowed, m/s.
    """
    quarter, nodes, edges = radius_m * math.pi / 2, [], []
    for i in range(4):
        angle = i * math.pi / 2
        at = (radius_m * math.cos(angle), radius_m * math.sin(angle))
        nodes.append(_node(f"n{i}", at, radius=0))
        shape = _line(at, angle + math.pi / 2, [(quarter, 1 / radius_m)], step_m=3.0)
        edges += _both(f"q{i}", (f"n{i}", f"n{(i + 1) % 4}"), lanes, speed, {}, shape)
    return Plan(nodes, edges)


_TOWN = (
    *("--crossings.guess", "--junctions.corner-detail", "5"),
    *("--junctions.internal-link-detail", "20"),
    # Corners that vehicles of true width can turn around, at a speed that tyres bear.
    *("--default.junctions.radius", "9", "--junctions.limit-turn-speed", "3.5"),
)


def arterial(lanes: int, speed: float) -> Plan:
    """Return a main road with three junctions with signals, side streets, and pedestrians.

    Args:
        lanes: Of the main road, in each direction.
        speed: Allowed there, m/s.
    """
    nodes = [_node("m0", (-220.0, 0.0)), _node("m4", (640.0, 0.0))]
    edges: list[Attributes] = []
    for i, x in enumerate((0.0, 190.0, 420.0), 1):
        nodes += [
            _node(f"m{i}", (x, 0.0), type="traffic_light"),
            _node(f"u{i}", (x, 150.0)),
            _node(f"d{i}", (x, -150.0)),
        ]
        side = {"sidewalkWidth": 2.5, "priority": 1}
        edges += _both(f"u{i}", (f"m{i}", f"u{i}"), 1, 11.0, side)
        edges += _both(f"d{i}", (f"m{i}", f"d{i}"), 1, 11.0, side)
    main = {"sidewalkWidth": 2.5, "bikeLaneWidth": 1.6, "priority": 3}
    for i in range(4):
        edges += _both(f"m{i}", (f"m{i}", f"m{i + 1}"), lanes, speed, main)
    return Plan(nodes, edges, options=_TOWN, has_crossings=True)


def town(kind: str, block_m: float) -> Plan:
    """Return a small grid of streets, with pedestrians and bicycles.

    Args:
        kind: Of its junctions, as SUMO names them.
        block_m: From one to the next.
    """
    size, nodes, edges = 4, [], []
    for i in range(size):
        for j in range(size):
            # Never on a straight line: streets that meet at right angles only are rare.
            shift = 7.0 * math.sin(3.0 * i + 5.0 * j)
            at = (block_m * i + shift, block_m * j - shift)
            inner = 0 < i < size - 1 and 0 < j < size - 1
            nodes.append(_node(f"{i}{j}", at, type=kind if inner else "right_before_left"))
    for i in range(size):
        for j in range(size):
            for other in ((i + 1, j), (i, j + 1)):
                if max(other) < size:
                    ends = f"{i}{j}", "{}{}".format(*other)
                    edges += _both(f"s{ends[0]}-{ends[1]}", ends, 1, 12.0, {"sidewalkWidth": 2.0})
    return Plan(nodes, edges, options=_TOWN, has_crossings=True)


def harbour() -> Plan:
    """Return what no model was trained on: skewed junctions, bent wide streets, lanes that end."""
    quay = _line((0.0, 0.0), 0.75, [(60.0, 0.0), (150.0, -0.006), (20.0, 0.0)])
    shore = _line((-80.0, -210.0), -0.5, [(200.0, 0.004), (160.0, 0.003), (30.0, 0.0)])
    nodes = [
        _node("w", (-260.0, -40.0)),
        _node("p", (0.0, 0.0), type="traffic_light"),
        _node("q", quay[-1], type="priority"),
        _node("e", (480.0, 60.0)),
        _node("n", (60.0, 240.0)),
        _node("s", (-80.0, -210.0)),
        _node("t", shore[-1]),
    ]
    walk = {"sidewalkWidth": 2.0}
    main, side = {**walk, "priority": 3}, {**walk, "priority": 2}
    edges = [
        *_both("wp", ("w", "p"), 2, 16.0, main),
        *_both("pq", ("p", "q"), 2, 14.0, main, quay),
        *_both("qe", ("q", "e"), 3, 18.0, {"priority": 3}),
        *_both("pn", ("p", "n"), 1, 12.0, side),
        *_both("ps", ("p", "s"), 1, 12.0, side),
        *_both("qt", ("q", "t"), 2, 14.0, {**walk, "priority": 1}),
        *_both("st", ("s", "t"), 1, 16.0, {"priority": 1}, shore),
    ]
    return Plan(nodes, edges, options=_TOWN, has_crossings=True)


_FREEWAY_FLEET = {
    "car": 0.54,
    "van": 0.1,
    "truck": 0.12,
    "truck with trailer": 0.14,
    "bus": 0.04,
    "motorcycle": 0.06,
}
_ROAD_FLEET = {
    "car": 0.48,
    "van": 0.1,
    "truck": 0.1,
    "truck with trailer": 0.08,
    "bus": 0.07,
    "motorcycle": 0.08,
    "bicycle": 0.09,
}
_TOWN_FLEET = {
    "car": 0.44,
    "van": 0.1,
    "truck": 0.08,
    "bus": 0.08,
    "motorcycle": 0.1,
    "bicycle": 0.2,
}
_HARBOUR_FLEET = {
    "car": 0.35,
    "van": 0.12,
    "truck": 0.16,
    "truck with trailer": 0.12,
    "bus": 0.06,
    "motorcycle": 0.07,
    "bicycle": 0.12,
}
_WALKERS = (2, 7)


def _variant(make: Callable[..., Plan], *values: float | str) -> Callable[[], Plan]:
    return lambda: make(*values)


NETWORKS = {
    "freeway": Network(
        tuple(_variant(freeway, 2 + i, (3.25, 3.5, 3.75)[i % 3]) for i in range(6)),
        pace=(0.4, 0.95),
        users=(8, 24),
        fleet=_FREEWAY_FLEET,
        starts=("a", "b", "c", "d", "on"),
    ),
    "curves": Network(
        (
            _variant(curves, 1, 3.25, 45.0, 17.0),
            _variant(curves, 2, 3.5, 90.0, 24.0),
            _variant(curves, 3, 3.75, 200.0, 33.0),
        ),
        pace=(0.55, 1.0),
        users=(5, 16),
        fleet=_ROAD_FLEET,
    ),
    "ring": Network(
        (
            _variant(ring, 1, 60.0, 14.0),
            _variant(ring, 2, 90.0, 17.0),
            _variant(ring, 3, 140.0, 22.0),
        ),
        pace=(0.55, 1.0),
        users=(5, 16),
        fleet=_ROAD_FLEET,
    ),
    "arterial": Network(
        (_variant(arterial, 2, 16.0), _variant(arterial, 3, 19.0)),
        pace=(0.5, 0.95),
        users=(8, 20),
        fleet=_TOWN_FLEET,
        walkers=_WALKERS,
        starts=("m", "-m"),
    ),
    "town": Network(
        (_variant(town, "right_before_left", 85.0), _variant(town, "traffic_light", 95.0)),
        pace=(0.5, 1.0),
        users=(8, 18),
        fleet=_TOWN_FLEET,
        walkers=_WALKERS,
    ),
    "harbour": Network(
        (harbour,),
        pace=(0.5, 0.95),
        users=(8, 18),
        fleet=_HARBOUR_FLEET,
        walkers=(1, 5),
    ),
}
"""By name; what is recorded on `harbour` is never trained on."""
