"""Where episodes begin: a road of highway-env, the ego on it, and traffic around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from highway_env.road.road import Road

from training.simulation.roads import LaneIndex, road_network
from training.simulation.vehicles import Ego, Parked, Traffic, give_temper, place

SPAWN_REACH_M = 100.0


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


def _is_free(road: Any, index: LaneIndex, longitudinal: float, headway_m: float) -> bool:
    """Whether a car fits: nobody within a car's length, and a headway along the lane."""
    lane = road.network.get_lane(index)
    spot = lane.position(longitudinal, 0)
    for vehicle in road.vehicles:
        distance = np.linalg.norm(vehicle.position - spot)
        along, across = lane.local_coordinates(vehicle.position)
        same_lane = abs(across) < 1.9 and distance < 2 * headway_m
        if distance < (headway_m if same_lane and abs(along - longitudinal) < headway_m else 3.9):
            return False
        if distance < 7 and abs(along - longitudinal) < 7 and abs(across) < 2.1:
            return False
    return True


def _spawn_span(network: Any, index: LaneIndex, ego: Any) -> tuple[float, float]:
    """Return where on a lane a car may start: all of it, or the part around the ego."""
    lane = network.get_lane(index)
    along, _ = lane.local_coordinates(ego.position)
    if lane.length < 4 * SPAWN_REACH_M:
        return 0.0, float(lane.length)
    return along - 0.7 * SPAWN_REACH_M, along + SPAWN_REACH_M


def build_road(
    environment: str, rng: np.random.Generator, surprising_share: float
) -> tuple[Any, Any, float]:
    """Place the ego and, around it, traffic.

    Args:
        environment: One of `ENVIRONMENTS`.
        rng: Source of all choices.
        surprising_share: Of the drivers, how many have a sudden manoeuvre in store.

    Returns:
        The road, the ego, and the pace of this traffic in m/s.
    """
    network, scene = road_network(environment), SCENES[environment]
    road = Road(network=network, np_random=rng, neighbour_vehicles_connected_lanes=True)
    pace = float(rng.uniform(*scene.cruise))
    pair = scene.ego_lanes[int(rng.integers(len(scene.ego_lanes)))]
    index = _start_lane(network, pair, rng)
    along = network.get_lane(index).length * rng.uniform(*scene.ego_span)
    ego = place(Ego, road, index, along, pace * rng.uniform(0.8, 1.15))
    if environment == "merge":
        end_of_ramp = network.get_lane(("b", "c", 2))
        place(Parked, road, ("b", "c", 2), end_of_ramp.length, 0.0)
    lanes = list(network.lanes_dict())
    wanted = int(rng.integers(scene.traffic[0], scene.traffic[1] + 1))
    for _ in range(12 * wanted):
        if len(road.vehicles) > wanted:
            break
        index = lanes[int(rng.integers(len(lanes)))]
        along = rng.uniform(*_spawn_span(network, index, ego))
        far = np.linalg.norm(network.get_lane(index).position(along, 0) - ego.position)
        speed = pace * rng.uniform(0.75, 1.2)
        if far < SPAWN_REACH_M and _is_free(road, index, along, 8 + speed * rng.uniform(0.25, 1.0)):
            give_temper(place(Traffic, road, index, along, speed), rng, surprising_share)
    ego.position = ego.position + rng.normal(0, 0.2, 2)
    ego.heading += rng.normal(0, 0.01)
    return road, ego, pace
