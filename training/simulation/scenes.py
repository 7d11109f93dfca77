"""Where episodes begin: a road of highway-env, the ego on it, and traffic around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from highway_env.road.road import Road

from training.simulation.fleets import (
    CAR,
    DEFAULT_FLEET,
    EGO_SHARES,
    MIXED,
    TIGHT_LENGTH_M,
    TIGHT_ROADS,
    TRAFFIC_SHARES,
    Build,
    check_fleet,
    draw_build,
)
from training.simulation.rectangles import rectangle_gap
from training.simulation.roads import LaneIndex, road_network
from training.simulation.vehicles import Ego, Parked, Traffic, add, give_temper, place
from training.simulation.walkers import (
    CYCLIST_SHARE,
    FASTEST_PACE_MPS,
    draw_cyclist,
    draw_pedestrian,
)

SPAWN_REACH_M = 100.0
_LEAST_GAP_M = 0.5

# Of mixed fleets.
_LANES = 2, 8
_TOWN_SHARE = 0.35
"""How often the traffic of a highway is as slow as in a town or before a jam."""
_TOWN_CRUISE = 5.0, 16.0
_MOST_WALKERS = 6


@dataclass(frozen=True)
class Scene:
    """What differs between environments when cars are placed.

    Attributes:
        cruise: Usual speeds (low, high), m/s.
        traffic: Number of other drivers (low, high), both included.
        ego_lanes: Lanes the ego may start on, as (start node, end node).
        ego_span: Share of the lane's length (low, high) where the ego starts.
    """

    cruise: tuple[float, float]
    traffic: tuple[int, int]
    ego_lanes: tuple[tuple[str, str], ...]
    ego_span: tuple[float, float] = (0.05, 0.95)


SCENES = {
    "highway": Scene((16.0, 32.0), (6, 15), (("0", "1"),), (0.03, 0.05)),
    "merge": Scene(
        (16.0, 30.0), (5, 13), (("a", "b"), ("a", "b"), ("a", "b"), ("j", "k")), (0.05, 0.75)
    ),
    "racetrack": Scene(
        (6.0, 11.0),
        (4, 10),
        tuple((a, b) for a, b in zip("abcdefghi", "bcdefghia", strict=True)),
    ),
    "roundabout": Scene(
        (7.0, 13.0), (3, 8), (("ser", "ses"), ("eer", "ees"), ("se", "ex"), ("we", "sx"))
    ),
}


def _start_lane(network: Any, pair: tuple[str, str], rng: np.random.Generator) -> LaneIndex:
    return (*pair, int(rng.integers(len(network.graph[pair[0]][pair[1]]))))


def _is_free(
    road: Any, index: LaneIndex, longitudinal: float, headway_m: float, build: Build
) -> bool:
    """Whether somebody fits: nobody within a length, and a headway along the lane."""
    lane = road.network.get_lane(index)
    spot, heading = lane.position(longitudinal, 0), lane.heading_at(longitudinal)
    for vehicle in road.vehicles:
        distance = np.linalg.norm(vehicle.position - spot)
        along, across = lane.local_coordinates(vehicle.position)
        ahead = abs(along - longitudinal)
        # By how much two are longer than two cars, for which all else is meant.
        longer = max((build.length_m + vehicle.LENGTH) / 2 - CAR.length_m, 0.0)
        headway = headway_m + longer
        same_lane = abs(across) < 1.9 and distance < 2 * headway
        if distance < (headway if same_lane and ahead < headway else 3.9):
            return False
        if distance < 7 + longer and ahead < 7 + longer and abs(across) < 2.1:
            return False
        if longer > 0 and _overlaps(spot, heading, build, vehicle):
            return False
    return True


def _overlaps(spot: Any, heading: float, build: Build, vehicle: Any) -> bool:
    """Whether somebody's rectangle would be on another's, or hardly beside it."""
    x, y = vehicle.position - spot
    cos, sin = np.cos(heading), np.sin(heading)
    gap = rectangle_gap(
        cos * x + sin * y,
        cos * y - sin * x,
        vehicle.heading - heading,
        (build.length_m, build.width_m),
        (vehicle.LENGTH, vehicle.WIDTH),
    )
    return bool(gap < _LEAST_GAP_M)


def _spawn_span(network: Any, index: LaneIndex, ego: Any) -> tuple[float, float]:
    """Return where on a lane a car may start: all of it, or the part around the ego."""
    lane = network.get_lane(index)
    along, _ = lane.local_coordinates(ego.position)
    if lane.length < 4 * SPAWN_REACH_M:
        return 0.0, float(lane.length)
    return along - 0.7 * SPAWN_REACH_M, along + SPAWN_REACH_M


@dataclass(frozen=True)
class Plan:
    """What is drawn for an episode before anybody is placed.

    Attributes:
        scene: Of the environment.
        network: Its lanes.
        pace: Of its traffic, m/s.
        longest_m: Nobody is longer.
        is_mixed: Whether everybody is a kind and a size of its own.
    """

    scene: Scene
    network: Any
    pace: float
    longest_m: float
    is_mixed: bool

    @classmethod
    def draw(cls, environment: str, rng: np.random.Generator, fleet: str) -> Plan:
        """Return the plan of an episode.

        Raises:
            ValueError: No fleet has that name.
        """
        check_fleet(fleet)
        scene, network, is_mixed = SCENES[environment], road_network(environment), fleet == MIXED
        cruise = scene.cruise
        if is_mixed and environment == "highway":
            network = road_network(environment, int(rng.integers(*_LANES, endpoint=True)))
            cruise = _TOWN_CRUISE if rng.random() < _TOWN_SHARE else cruise
        longest_m = TIGHT_LENGTH_M if environment in TIGHT_ROADS else np.inf
        return cls(scene, network, float(rng.uniform(*cruise)), longest_m, is_mixed)

    def build(self, rng: np.random.Generator, shares: dict[str, float]) -> Build:
        """Draw who somebody is."""
        return draw_build(rng, shares, self.longest_m) if self.is_mixed else CAR


def build_road(
    environment: str,
    rng: np.random.Generator,
    surprising_share: float,
    fleet: str = DEFAULT_FLEET,
) -> tuple[Any, Any, float]:
    """Place the ego and, around it, traffic.

    Args:
        environment: One of `ENVIRONMENTS`.
        rng: Source of all choices.
        surprising_share: Of the drivers, how many have a sudden manoeuvre in store.
        fleet: One of `FLEETS`.

    Returns:
        The road, the ego, and the pace of this traffic in m/s.

    Raises:
        ValueError: No fleet has that name.
    """
    plan = Plan.draw(environment, rng, fleet)
    scene, pace = plan.scene, plan.pace
    road = Road(network=plan.network, np_random=rng, neighbour_vehicles_connected_lanes=True)
    pair = scene.ego_lanes[int(rng.integers(len(scene.ego_lanes)))]
    index = _start_lane(plan.network, pair, rng)
    along = plan.network.get_lane(index).length * rng.uniform(*scene.ego_span)
    speed = pace * rng.uniform(0.8, 1.15)
    ego = place(Ego, road, index, along, speed, plan.build(rng, EGO_SHARES))
    if environment == "merge":
        end_of_ramp = plan.network.get_lane(("b", "c", 2))
        place(Parked, road, ("b", "c", 2), end_of_ramp.length, 0.0)
    wanted = int(rng.integers(scene.traffic[0], scene.traffic[1] + 1))
    if plan.is_mixed and pace < FASTEST_PACE_MPS:
        _place_walkers(road, ego, rng, pace)
    _place_traffic(plan, road, ego, rng, wanted, surprising_share)
    ego.position = ego.position + rng.normal(0, 0.2, 2)
    ego.heading += rng.normal(0, 0.01)
    return road, ego, pace


def _place_traffic(
    plan: Plan,
    road: Any,
    ego: Any,
    rng: np.random.Generator,
    wanted: int,
    surprising_share: float,
) -> None:
    """Place other drivers, until there are as many others as wanted, or hardly a free place."""
    network, pace = plan.network, plan.pace
    lanes = list(network.lanes_dict())
    for _ in range(12 * wanted):
        if len(road.vehicles) > wanted:
            break
        index = lanes[int(rng.integers(len(lanes)))]
        along = rng.uniform(*_spawn_span(network, index, ego))
        far = np.linalg.norm(network.get_lane(index).position(along, 0) - ego.position)
        speed = pace * rng.uniform(0.75, 1.2)
        build = plan.build(rng, TRAFFIC_SHARES)
        if far < SPAWN_REACH_M and _is_free(
            road, index, along, 8 + speed * rng.uniform(0.25, 1.0), build
        ):
            driver = place(Traffic, road, index, along, speed, build)
            give_temper(driver, rng, surprising_share)


def _place_walkers(road: Any, ego: Any, rng: np.random.Generator, pace: float) -> None:
    """Place some cyclists and pedestrians where traffic can still slow down for them."""
    network = road.network
    lanes = list(network.lanes_dict())
    for _ in range(int(rng.integers(_MOST_WALKERS + 1))):
        start, end, number = lanes[int(rng.integers(len(lanes)))]
        is_cyclist = rng.random() < CYCLIST_SHARE
        if is_cyclist:  # in the lane on the right
            number = len(network.graph[start][end]) - 1
        index = (start, end, number)
        along = rng.uniform(*_spawn_span(network, index, ego))
        walker = (draw_cyclist if is_cyclist else draw_pedestrian)(road, index, along, rng)
        far = np.linalg.norm(walker.position - ego.position)
        headway_m = 6 + pace * rng.uniform(1.0, 2.0)
        if far < SPAWN_REACH_M and _is_free(road, index, along, headway_m, walker.build):
            add(road, walker)
