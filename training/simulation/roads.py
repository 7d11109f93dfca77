"""highway-env's roads, and what a car sees of the road it is on."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from highway_env.envs.merge_env import MergeEnv
from highway_env.envs.racetrack_env import RacetrackEnv
from highway_env.envs.roundabout_env import RoundaboutEnv
from highway_env.road.road import RoadNetwork

ENVIRONMENTS = ("highway", "merge", "racetrack", "roundabout")

LaneIndex = tuple[str, str, int]

PREVIEW_S = 0.4
CURVATURE_SPAN_M = 4.0
MAX_CURVATURE = 0.2


HIGHWAY_LANES = 4
"""Of the highway, unless another number is drawn."""


@lru_cache(maxsize=16)
def road_network(environment: str, lanes: int = HIGHWAY_LANES) -> Any:
    """Return the lanes of an environment, shared by all its episodes (nothing changes them).

    Args:
        environment: One of `ENVIRONMENTS`.
        lanes: Of the highway; the other roads have those that they have.

    Raises:
        ValueError: No environment has that name.
    """
    if environment == "highway":
        return RoadNetwork.straight_road_network(lanes, speed_limit=30)
    classes = {"merge": MergeEnv, "racetrack": RacetrackEnv, "roundabout": RoundaboutEnv}
    if environment not in classes:
        raise ValueError(f"unknown environment {environment!r}; known: {list(ENVIRONMENTS)}")
    # The classes are built directly: gymnasium.make warns that newer versions exist. Building
    # one also resets it, which draws random traffic that we drop.
    network = classes[environment]().road.network
    if environment == "merge":
        for lane in network.lanes_list():
            lane.speed_limit = 30  # the stock 20 would have all traffic brake at the start
    return network


def wrap_angle(angle: float) -> float:
    """Return an angle in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def next_lane(network: Any, index: LaneIndex) -> LaneIndex | None:
    """Return the lane that follows, or None at the end of the road.

    Where the road forks, the successor named first is taken, so that the preview is a function
    of the place alone.
    """
    successors = network.graph.get(index[1])
    if not successors:
        return None
    target, lanes = next(iter(successors.items()))
    return (index[1], target, min(index[2], len(lanes) - 1))


def heading_ahead(network: Any, index: LaneIndex, longitudinal: float) -> float:
    """Return the lane heading at a longitudinal position that may lie on a later lane."""
    lane = network.get_lane(index)
    while longitudinal > lane.length:
        following = next_lane(network, index)
        if following is None:
            break
        longitudinal -= lane.length
        index, lane = following, network.get_lane(following)
    return float(lane.heading_at(longitudinal))


def edges(network: Any, index: LaneIndex, position: Any) -> tuple[float, float]:
    """Return the distances from a point to the left and right edge of a lane's whole road, in m.

    Negative beyond the edge. The road is the union of the parallel lanes.
    """
    left, right = -math.inf, -math.inf
    for lane in network.graph[index[0]][index[1]]:
        longitudinal, lateral = lane.local_coordinates(position)
        half = lane.width_at(longitudinal) / 2
        left = max(left, half + lateral)
        right = max(right, half - lateral)
    return left, right


def lane_below(network: Any, closest: LaneIndex, position: Any) -> LaneIndex:
    """Return the lane that a point is on, or else the closest one.

    At the joint of two road pieces the closest lane can be one the car has already left
    sideways while it stands on another: that car is on the road.
    """
    if min(edges(network, closest, position)) >= 0:
        return closest
    for start, ends in network.graph.items():
        for end, lanes in ends.items():
            for number, lane in enumerate(lanes):
                longitudinal, lateral = lane.local_coordinates(position)
                if 0 <= longitudinal <= lane.length and abs(lateral) <= lane.width / 2:
                    return (start, end, number)
    return closest


def ego_features(network: Any, ego: Any) -> list[float]:
    """Return the six ego features of `spec.highway_spec` for a vehicle, in order."""
    index = lane_below(network, ego.lane_index, ego.position)
    lane = network.get_lane(index)
    longitudinal, lateral = lane.local_coordinates(ego.position)
    left, right = edges(network, index, ego.position)
    ahead = longitudinal + ego.speed * PREVIEW_S
    turn = wrap_angle(
        heading_ahead(network, index, ahead + CURVATURE_SPAN_M / 2)
        - heading_ahead(network, index, ahead - CURVATURE_SPAN_M / 2)
    )
    curvature = min(max(turn / CURVATURE_SPAN_M, -MAX_CURVATURE), MAX_CURVATURE)
    heading_error = ego.heading - lane.heading_at(longitudinal)
    return [ego.speed, lateral, math.sin(heading_error), left, right, curvature]
