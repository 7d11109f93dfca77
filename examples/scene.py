"""From a simulated drive to a state as a planner's program makes it: by the client's builder.

Poses and sizes of everybody and the lanes of the road are all that is taken from the simulator. In
a car they come from its tracker and its map, and the rest stays as it is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.spec import has_sizes
from models.spec import FORWARD_RIGHT_DOWN, Spec
from training.simulation.bicycle import DT_S
from training.simulation.fleets import CARS, KINDS, MIXED
from training.simulation.roads import LaneIndex, lane_below, next_lane
from training.simulation.simulator import Simulation
from training.simulation.worlds import World
from world_model_client.scene import Ego, Layout, Road, RoadUser, StateBuilder

See = Callable[[World], NDArray[np.float32]]
"""Returns the state [S] of now; called once at the start of a drive and once after each step."""

_POINT_M, _STRAIGHT_POINT_M = 1.0, 50.0
_BEYOND_M = 80.0
"""A line goes on for so long behind the end of its piece of road."""


def fleet_of(spec: Spec) -> str:
    """Return whom a model knows: cars of one size, or all kinds of road users."""
    return MIXED if has_sizes(spec) else CARS


def sight_of(spec: Spec) -> See:
    """Return what a drive that is about to start is seen by.

    A model of cars of one size sees what it was trained on: the simulator's own state.
    """
    return SceneSight(spec) if has_sizes(spec) else lambda world: world.state(spec)


class SceneSight:
    """Sees one drive in highway-env by poses, sizes and lines.

    Args:
        spec: Of the model; `Client.model()` does as well where there is a service.
    """

    def __init__(self, spec: Spec) -> None:
        layout = Layout.from_model(
            {
                "features": {
                    "state": [{"name": f.name, "low": f.low, "high": f.high} for f in spec.state]
                },
                "frame": spec.frame,
                "saturations": [vars(saturation) for saturation in spec.saturations],
                "road_users": [{"kind": user.kind} for user in spec.road_users],
            }
        )
        # The simulator's y is to the right of x, and its poses have no noise to be taken off.
        self._builder = StateBuilder(layout, FORWARD_RIGHT_DOWN, smooths_motion=False)
        self._roads: dict[tuple[str, str], Road] = {}
        self._time_s = 0.0

    def __call__(self, world: World) -> NDArray[np.float32]:
        """Return the state [S] of now."""
        assert isinstance(world, Simulation), "lines are taken from roads of highway-env"
        state = self._builder.update(self._time_s, ego_of(world), others_of(world), self._on(world))
        self._time_s += DT_S
        return state.state

    def _on(self, world: Simulation) -> Road:
        network = world.road.network
        index = lane_below(network, world.ego.lane_index, world.ego.position)
        piece = index[0], index[1]
        if piece not in self._roads:
            self._roads[piece] = road_of(network, index)
        return self._roads[piece]


def ego_of(world: World) -> Ego:
    """Return the ego as a planner knows it."""
    x, y, heading, speed = world.poses[0].tolist()
    length, width = world.sizes[0].tolist()
    return Ego(x, y, heading, speed, length, width, KINDS[world.kinds[0]])


def others_of(world: World) -> list[RoadUser]:
    """Return everybody else as a tracker reports them."""
    users = zip(world.poses.tolist(), world.sizes.tolist(), world.kinds, strict=True)
    return [
        RoadUser(i, x, y, heading, speed, length, width, KINDS[kind])
        for i, ((x, y, heading, speed), (length, width), kind) in enumerate(users)
        if i and world.present[i]
    ]


def road_of(network: Any, index: LaneIndex) -> Road:
    """Return the road that a lane belongs to: all lanes beside it, and what bounds them."""
    start, end, _ = index
    count = len(network.graph[start][end])
    lanes = [(start, end, number) for number in range(count)]
    return Road(
        [_line(network, lane, 0.0) for lane in lanes],
        left_edge=_line(network, lanes[0], -0.5),
        right_edge=_line(network, lanes[-1], 0.5),
    )


def _line(network: Any, index: LaneIndex, aside: float) -> NDArray[np.float64]:
    """Return a lane's centre line, or a border, [P, 2], and how it goes on.

    Args:
        network: Of lanes.
        index: Of the lane.
        aside: How far aside of the centre, in widths of the lane, to the right.
    """
    points: list[NDArray[np.float64]] = []
    beyond_m: float | None = None
    place: LaneIndex | None = index
    while place is not None and (beyond_m is None or beyond_m < _BEYOND_M):
        lane = network.get_lane(place)
        is_straight = lane.heading_at(0.0) == lane.heading_at(lane.length / 2)
        step = _STRAIGHT_POINT_M if is_straight else _POINT_M
        places = np.linspace(0.0, lane.length, 1 + max(1, round(lane.length / step)))
        points += [lane.position(along, aside * lane.width_at(along)) for along in places]
        beyond_m = 0.0 if beyond_m is None else beyond_m + lane.length
        place = next_lane(network, place)
    return np.array(points)
