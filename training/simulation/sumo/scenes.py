"""Where episodes in SUMO begin: the ego on its route, and everybody around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.simulation.sumo.maps import LaneKey, RoadMap, Spot
from training.simulation.sumo.networks import Attributes, Network
from training.simulation.sumo.process import element
from training.simulation.sumo.users import (
    BICYCLE,
    EGO,
    EGO_FLEET,
    User,
    draw_temper,
    draw_user,
    rounded,
    with_dash,
    with_lapse,
)

REACH_M = 110.0
"""Others begin within this distance of the ego."""

_TYPICAL_M = 35.0
"""Nearer places are taken more often: who is far away decides nothing."""

_WALK_REACH_M = 70.0
_DASH_FACTOR = 5.0
"""Pedestrians have sudden moves in store so much more often than drivers."""

_ROUTE_M = 700.0
_FIRST_M = 20.0
_ENDS_S = 6.0
_ENOUGH_S, _MOST_STARTS = 8.0, 100

_BENDS_EASILY_M = 6.5
"""Longer egos go straight on at junctions: the bicycle of their wheelbase cannot turn there."""

_STRAIGHT_RAD = 0.45


@dataclass(frozen=True)
class Scene:
    """Where an episode begins.

    Attributes:
        ego: Its kind and size.
        route: Edges that the ego follows, the first one that it starts on.
        users: Everybody else, pedestrians last.
        traffic: All of them as SUMO's XML.
    """

    ego: User
    route: tuple[str, ...]
    users: tuple[User, ...]
    traffic: str


def draw_scene(
    roads: RoadMap, network: Network, rng: np.random.Generator, pace: float, surprising_share: float
) -> Scene:
    """Place the ego and, around it, everybody else.

    Args:
        roads: The network's map.
        network: What is usual on it.
        rng: Source of all choices.
        pace: Usual speed of this traffic, m/s.
        surprising_share: Of the others, how many have a lapse in store.
    """
    ego = draw_user(EGO, EGO_FLEET, rng)
    start, route = _draw_start(roads, network, ego, rng, pace)
    speed = min(pace * rng.uniform(0.8, 1.15), roads.limits[start.lane[0]])
    own: Attributes = {"maxSpeed": 60.0, "speedFactor": 1.05, "speedDev": 0.0}
    placed = _Placed(roads, rng)
    placed.add(ego, start, route, speed, own)
    share = pace / max(roads.limits.values())
    drivers = _draw_drivers(placed, roads, network, start, share, surprising_share)
    walkers, walks = _draw_walkers(roads, network, rng, start, surprising_share)
    return Scene(ego, route, (*drivers, *walkers), f"<routes>{placed.text}{walks}</routes>")


def _draw_start(
    roads: RoadMap, network: Network, ego: User, rng: np.random.Generator, pace: float
) -> tuple[Spot, tuple[str, ...]]:
    """Return where the ego begins, and a route with room to go on for a while."""
    spots = [
        spot
        for spot in roads.spots
        if spot.along > _FIRST_M and spot.lane[0].startswith(network.starts or "")
    ]
    for _ in range(_MOST_STARTS):
        spot = spots[int(rng.integers(len(spots)))]
        route = _draw_route(roads, spot.lane, ego, rng, is_ego=True)
        if sum(roads.lengths[edge] for edge in route) - spot.along > _ENOUGH_S * pace:
            break
    return spot, route


def _draw_route(
    roads: RoadMap, start: LaneKey, user: User, rng: np.random.Generator, *, is_ego: bool = False
) -> tuple[str, ...]:
    """Return the edges that somebody drives along, from where he begins."""
    following = roads.ridden if user.kind == BICYCLE else roads.following
    edge = start[0]
    route, length = [edge], 0.0
    links = roads.links.get(start, {})
    while length < _ROUTE_M:
        onward = following[edge]
        if len(route) == 1 and links:
            onward = [name for name in onward if name in links]
        if is_ego and user.length > _BENDS_EASILY_M:
            onward = [name for name in onward if roads.turn(edge, name) < _STRAIGHT_RAD]
        if not onward:
            break
        edge = onward[int(rng.integers(len(onward)))]
        route.append(edge)
        length += roads.lengths[edge]
    return tuple(route)


class _Placed:
    """Who stands where on each lane at the start, and all of them as SUMO's XML."""

    def __init__(self, roads: RoadMap, rng: np.random.Generator) -> None:
        self.rng = rng
        self.text = ""
        self._roads = roads
        self._taken: list[tuple[LaneKey, float, float]] = []

    def is_free(self, user: User, spot: Spot, headway_m: float) -> bool:
        """Whether somebody fits there with a headway to whoever is before and behind."""
        front, back = spot.along + 2.0 + headway_m, spot.along - user.length - 2.0 - headway_m
        if back < 0 or spot.along > self._roads.lengths[spot.lane[0]]:
            return False
        return all(
            lane != spot.lane or begin > front or end < back for lane, begin, end in self._taken
        )

    def add(
        self, user: User, spot: Spot, route: tuple[str, ...], speed: float, temper: Attributes
    ) -> None:
        """Place somebody."""
        self._taken.append((spot.lane, spot.along - user.length, spot.along))
        driving = user.driving
        numbers = {
            "length": user.length,
            "width": user.width,
            "accel": self.rng.uniform(*driving.accel),
            "decel": self.rng.uniform(*driving.decel),
            "emergencyDecel": 8.5,
            "maxSpeed": self.rng.uniform(*driving.top),
        }
        kind = {"id": f"t-{user.name}", "vClass": driving.role, **rounded(numbers), **temper}
        vehicle: Attributes = {
            "id": user.name,
            "type": str(kind["id"]),
            "depart": "0.00",
            "departLane": spot.lane[1],
            "departPos": round(spot.along, 2),
            "departSpeed": round(speed, 3),
            "insertionChecks": "none",
        }
        self.text += element("vType", kind)
        self.text += element("vehicle", vehicle, element("route", {"edges": " ".join(route)}))


def _draw_drivers(
    placed: _Placed,
    roads: RoadMap,
    network: Network,
    start: Spot,
    pace_share: float,
    surprising_share: float,
) -> list[User]:
    """Place drivers around the ego.

    Args:
        placed: Where they are placed.
        roads: The map.
        network: What is usual on it.
        start: Where the ego is.
        pace_share: Usual speed of this traffic, as a share of the highest that is allowed.
        surprising_share: Of the drivers, how many have a lapse in store.
    """
    rng = placed.rng
    wanted = int(rng.integers(network.users[0], network.users[1] + 1))
    distance = np.hypot(*(roads.spot_places - (start.x, start.y)).T)
    near = np.flatnonzero(distance < REACH_M)
    weights = np.exp(-distance[near] / _TYPICAL_M)
    order = rng.choice(near, min(10 * wanted, len(near)), replace=False, p=weights / weights.sum())
    users: list[User] = []
    for spot in (roads.spots[i] for i in order.tolist()):
        if len(users) == wanted:
            break
        user = draw_user(f"v{len(users)}", network.fleet, rng)
        # Of its own pace, its top speed, SUMO would take the same share.
        factor = 1.0 if user.kind == BICYCLE else pace_share * rng.uniform(0.8, 1.2)
        edge = spot.lane[0]
        if user.kind == BICYCLE:
            spot = spot._replace(lane=(edge, roads.riding[edge]))
        speed = min(roads.limits[edge] * factor, user.driving.top[0]) * rng.uniform(0.7, 0.98)
        left_m = roads.lengths[edge] - spot.along
        if not roads.links.get(spot.lane, True) and left_m < _ENDS_S * speed:
            continue  # could not stop, nor change, where its lane ends
        if placed.is_free(user, spot, speed * rng.uniform(0.1, 0.6)):
            user = with_lapse(user, rng, surprising_share)
            route = _draw_route(roads, spot.lane, user, rng)
            placed.add(user, spot, route, speed, draw_temper(user, rng, factor))
            users.append(user)
    return users


def _draw_walkers(
    roads: RoadMap, network: Network, rng: np.random.Generator, start: Spot, share: float
) -> tuple[list[User], str]:
    """Return the pedestrians near the ego, and their walks as SUMO's XML."""
    distance = np.hypot(*(roads.spot_places - (start.x, start.y)).T)
    near = [i for i in np.flatnonzero(distance < _WALK_REACH_M) if _has_walk(roads, i)]
    count = int(rng.integers(network.walkers[0], network.walkers[1] + 1)) if near else 0
    users, text = [], ""
    for i in range(count):
        user = draw_user(f"p{i}", {"pedestrian": 1.0}, rng)
        speed = float(np.clip(rng.normal(1.35, 0.3), 0.5, 3.5))
        spot = roads.spots[near[int(rng.integers(len(near)))]]
        edge = spot.lane[0]
        goal = _draw_route(roads, spot.lane, user, rng)[:3][-1]
        goal = goal if goal in roads.walks else edge
        users.append(with_dash(user, rng, _DASH_FACTOR * share))
        size = {"length": user.length, "width": user.width, "maxSpeed": speed, "speedFactor": 1.0}
        person: Attributes = {
            "id": user.name,
            "type": f"t-{user.name}",
            "depart": "0.00",
            "departPos": round(spot.along, 2),
        }
        middle = round(roads.lengths[goal] / 2, 2)
        walk = element("walk", {"from": edge, "to": goal, "arrivalPos": middle})
        text += element("vType", {"id": person["type"], "vClass": "pedestrian", **rounded(size)})
        text += element("person", person, walk)
    return users, text


def _has_walk(roads: RoadMap, spot: np.intp) -> bool:
    return roads.spots[int(spot)].lane[0] in roads.walks
