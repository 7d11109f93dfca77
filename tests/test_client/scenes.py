"""Roads, road users and documents for tests of `world_model_client.scene`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.highway import highway_spec
from models.spec import Spec
from training.simulation.roads import road_network
from world_model_client.scene import Ego, Road, RoadUser

Floats = NDArray[np.floating[Any]]

EGO_NAMES = (
    "speed",
    "lane_offset",
    "sin_heading_error",
    "left_edge",
    "right_edge",
    "curvature",
)
SIZED_PARTS = ("length", "width", "dx", "dy", "heading", "speed")


def cars_document(**more: Any) -> dict[str, Any]:
    """Return what `GET /model` says of a state of the layout `highway`: cars without sizes."""
    return document_of(highway_spec(), **more)


def document_of(spec: Spec, **more: Any) -> dict[str, Any]:
    """Return what `GET /model` says of the state of a spec."""
    features = {"state": [asdict(feature) for feature in spec.state]}
    return {"features": features, "frame": spec.frame, "dt_s": spec.dt_s, **more}


def document(names: list[str], **more: Any) -> dict[str, Any]:
    """Return a document of features of these names."""
    state = [{"name": name, "low": -200.0, "high": 200.0} for name in names]
    return {"features": {"state": state}, "frame": "forward-right-down", **more}


def sized_names(slots: int = 4) -> list[str]:
    """Return the names of a layout with sizes: 34 with four slots."""
    neighbours = [f"neighbour_{i}_{part}" for i in range(1, slots + 1) for part in SIZED_PARTS]
    rates = [f"neighbour_{i}_acceleration" for i in (1, 2)] if slots > 1 else []
    return [*EGO_NAMES, "length", "width", *neighbours, *rates]


def named(names: list[str], state: NDArray[Any]) -> dict[str, float]:
    return dict(zip(names, state.tolist(), strict=True))


def straight(y: float, low: float = -200.0, high: float = 200.0) -> Floats:
    return np.array([[low, y], [high, y]])


def motorway(lanes: int = 3, width_m: float = 4.0) -> Road:
    """Return a road along x in ISO 8855: the rightmost lane's centre is y = 0, others above."""
    return Road(
        [straight(i * width_m) for i in range(lanes)],
        left_edge=straight((lanes - 0.5) * width_m),
        right_edge=straight(-width_m / 2),
    )


def at(id_: Any, x: Any, y: Any, speed: Any = 20.0, **more: Any) -> RoadUser:
    return RoadUser(
        id_, x, y, **{"heading": 0.0, "speed": speed, "length": 5.0, "width": 2.0, **more}
    )


EGO = Ego(0.0, 0.0, 0.0, 20.0, 5.0, 2.0)


def ego_with(**more: Any) -> Ego:
    return replace(EGO, **more)


def highway_lines(lanes: int = 4) -> tuple[list[Floats], Floats, Floats]:
    """Return the simulator's highway: centre lines, left edge, right edge; y is to the right."""
    centres = [straight(4.0 * i, 0.0, 10_000.0) for i in range(lanes)]
    return centres, straight(-2.0, 0.0, 10_000.0), straight(4.0 * lanes - 2.0, 0.0, 10_000.0)


def racetrack_lines(step_m: float) -> tuple[list[Floats], Floats, Floats]:
    """Return the simulator's racetrack likewise: closed lines through straights and arcs."""
    network = road_network("racetrack")

    def line(number: int, lateral_m: float) -> Floats:
        points = []
        for start, end in zip("abcdefghi", "bcdefghia", strict=True):
            lane = network.graph[start][end][number]
            count = max(2, int(lane.length / step_m))
            points += [lane.position(x, lateral_m) for x in np.linspace(0, lane.length, count)]
        return np.array([*points, points[0]])

    return [line(0, 0.0), line(1, 0.0)], line(0, -2.5), line(1, 2.5)
