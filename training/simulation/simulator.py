"""One episode of driving: highway-env's roads and drivers, stepped by our own loop.

`env.step` renders observations and checks every pair of cars for collisions; stepping the road
directly is five times as fast with the same physics. Only the ego's collisions are looked for,
and exactly: the episode ends at the first frame in which its rectangle overlaps another car's,
with no collision impulse, so the terminal frame is ordinary motion.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.simulation.behaviours import BEHAVIOURS, SHARES, make_behaviour
from training.simulation.bicycle import DT_S
from training.simulation.fleets import DEFAULT_FLEET
from training.simulation.rectangles import rectangle_gap
from training.simulation.roads import ENVIRONMENTS, ego_features
from training.simulation.scenes import build_road
from training.simulation.sumo.networks import NETWORKS
from training.simulation.sumo.world import SumoSimulation
from training.simulation.vehicles import SURPRISING_SHARE, Traffic
from training.simulation.walkers import Walker
from training.simulation.worlds import CAUSES, HIGHWAY, PROVOKED_S, World, reward_of

__all__ = [
    "CAUSES",
    "HIGHWAY",
    "MAX_STEPS",
    "MAX_VEHICLES",
    "ROADS",
    "SOURCES",
    "SOURCE_ROADS",
    "UNSEEN",
    "Episode",
    "Simulation",
    "draw_episode",
    "open_world",
    "run_episode",
    "source_of",
    "trained_roads",
]

MAX_STEPS = 140
MAX_VEHICLES = 16

SOURCE_ROADS = {
    "highway-env": {"highway": 0.54, "merge": 0.15, "racetrack": 0.24, "roundabout": 0.07},
    "sumo": {
        "freeway": 0.22,
        "curves": 0.13,
        "ring": 0.10,
        "arterial": 0.21,
        "town": 0.27,
        "harbour": 0.07,
    },
}
"""Simulators that episodes come from, and how often an episode is on each of their roads."""

SOURCES = tuple(SOURCE_ROADS)

ROADS = (*ENVIRONMENTS, *NETWORKS)
"""All roads of all sources, by their numbers in recordings."""

UNSEEN = {"highway-env": "roundabout", "sumo": "harbour"}
"""Of each source the road that nothing is trained or calibrated on."""


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps; T + 1 frames, the last is where it ended.

    Attributes:
        seed: Reproduces the episode, given environment and behaviour.
        environment: Index into `ROADS`.
        behaviour: Index into `BEHAVIOURS`.
        cause: Index into `CAUSES`.
        provoked: 1 if the car that was hit had begun a sudden manoeuvre shortly before.
        ego: [T+1, 4] x, y, heading, speed; position relative to the first frame's.
        ego_features: [T+1, 6].
        vehicles: [T+1, 16, 4] like `ego`, same origin; a column is one vehicle throughout.
        present: [T+1, 16] whether the column holds a vehicle.
        vehicle_id: [16], -1 where unused.
        action: [T+1, 3], zeros in the last frame.
        reward: [T+1], of the step that starts at the frame; zero in the last.
        size: [16, 2] length and width of each column, m; zeros where unused.
        kind: [16] index into `fleets.KINDS`, -1 where unused.
        ego_size: [2] length and width, m.
        ego_kind: Index into `fleets.KINDS`.
        source: Index into `SOURCES`.
    """

    seed: int
    environment: int
    behaviour: int
    cause: int
    provoked: int
    ego: NDArray[np.float32]
    ego_features: NDArray[np.float32]
    vehicles: NDArray[np.float32]
    present: NDArray[np.uint8]
    vehicle_id: NDArray[np.int32]
    action: NDArray[np.float32]
    reward: NDArray[np.float32]
    size: NDArray[np.float32]
    kind: NDArray[np.int8]
    ego_size: NDArray[np.float32]
    ego_kind: int
    source: int = 0

    @property
    def steps(self) -> int:
        """Number of transitions, T."""
        return len(self.ego) - 1


def _poses(vehicles: list[Any]) -> NDArray[np.float64]:
    return np.array([[*v.position, v.heading, v.speed] for v in vehicles]).reshape(-1, 4)


def _is_hit(poses: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of the others the ego overlaps [n], by poses [1 + n, 4] and sizes [1 + n, 2]."""
    ego, others = poses[0], poses[1:]
    dx, dy = others[:, 0] - ego[0], others[:, 1] - ego[1]
    cos, sin = np.cos(ego[2]), np.sin(ego[2])
    gaps = rectangle_gap(
        cos * dx + sin * dy,
        cos * dy - sin * dx,
        others[:, 2] - ego[2],
        (sizes[0, 0], sizes[0, 1]),
        (sizes[1:, 0], sizes[1:, 1]),
    )
    return np.asarray(gaps < 0)


class Simulation(World):
    """A road of highway-env with the ego and traffic, driven step by step; see `World`.

    Args:
        seed: The same seed and actions give the same future, bit for bit.
        environment: One of `ENVIRONMENTS`.
        surprising_share: Of the drivers, how many have a sudden manoeuvre in store.
        fleet: One of `fleets.FLEETS`: "cars" are all of 5 x 2 m; in "mixed" ones everybody has a
            kind and a size of its own, there are cyclists and pedestrians where traffic is slow,
            and highways have 2 to 8 lanes.

    Attributes:
        road: highway-env's.
        others: The other road users.

    Raises:
        ValueError: No environment or no fleet has that name.
    """

    ego: Any

    def __init__(
        self,
        seed: int,
        environment: str,
        surprising_share: float = SURPRISING_SHARE,
        fleet: str = DEFAULT_FLEET,
    ) -> None:
        super().__init__()
        self.environment = environment
        self.rng = np.random.default_rng(seed)
        self.road, self.ego, self.pace = build_road(environment, self.rng, surprising_share, fleet)
        self.others = [vehicle for vehicle in self.road.vehicles if vehicle is not self.ego]
        builds = [vehicle.build for vehicle in (self.ego, *self.others)]
        self.sizes = np.array([[build.length_m, build.width_m] for build in builds])
        self.kinds = np.array([build.kind for build in builds])
        self.poses = _poses([self.ego, *self.others])
        self.poses_before = self.poses
        self.present = np.ones(len(self.poses), np.bool_)
        self.features = ego_features(self.road.network, self.ego)

    def step(self, action: NDArray[Any]) -> tuple[float, int]:
        """See `World`."""
        self.ego.drive(action)
        self.road.act()
        self.road.step(DT_S)
        self.poses_before, self.poses = self.poses, _poses([self.ego, *self.others])
        self.features = ego_features(self.road.network, self.ego)
        hit = _is_hit(self.poses, self.sizes)
        if hit.any():
            self.cause = CAUSES.index("crash")
            self.is_provoked = any(
                isinstance(self.others[i], Traffic | Walker)
                and self.others[i].surprised_within(PROVOKED_S)
                for i in np.flatnonzero(hit)
            )
        elif min(self.features[3:5]) < 0:
            self.cause = CAUSES.index("off_road")
        return reward_of(self.features, self.cause), self.cause

    def copy(self) -> Simulation:
        """Return a simulation with the same present and, under the same actions, future."""
        shared = self.road.network, self._encoder
        return copy.deepcopy(self, {id(x): x for x in shared})


def trained_roads(source: str) -> dict[str, float]:
    """Return how often an episode of a source is on each of its roads but the one of `UNSEEN`."""
    return {road: x for road, x in SOURCE_ROADS[source].items() if road != UNSEEN[source]}


def source_of(environment: str) -> str:
    """Return the one of `SOURCES` that has a road.

    Raises:
        ValueError: None has.
    """
    for source, roads in SOURCE_ROADS.items():
        if environment in roads:
            return source
    raise ValueError(f"unknown environment {environment!r}; known: {list(ROADS)}")


def open_world(
    seed: int,
    environment: str,
    surprising_share: float = SURPRISING_SHARE,
    fleet: str = DEFAULT_FLEET,
) -> World:
    """Return a simulation on a road of any source; see `run_episode`.

    Raises:
        ValueError: No environment or no fleet has that name.
        ModuleNotFoundError: The source's simulator is not installed.
    """
    if source_of(environment) == "sumo":
        return SumoSimulation(seed, environment, surprising_share)
    return Simulation(seed, environment, surprising_share, fleet)


def run_episode(
    seed: int,
    environment: str,
    behaviour: str,
    steps: int = MAX_STEPS,
    surprising_share: float = SURPRISING_SHARE,
    fleet: str = DEFAULT_FLEET,
) -> Episode:
    """Simulate one episode, until a crash, leaving the road, or `steps`.

    Args:
        seed: The same seed gives the same episode, bit for bit.
        environment: One of `ROADS`.
        behaviour: One of `BEHAVIOURS`.
        steps: Truncation.
        surprising_share: Of the drivers, how many have a sudden manoeuvre in store.
        fleet: One of `fleets.FLEETS`; SUMO's are always mixed.

    Returns:
        What happened.
    """
    world = open_world(seed, environment, surprising_share, fleet)
    driver = make_behaviour(behaviour, world.rng.spawn(1)[0], world.pace)
    frames, present, features = [world.poses], [world.present], [world.features]
    actions: list[NDArray[np.float32]] = []
    rewards: list[float] = []
    while len(actions) < steps and not (world.cause or world.is_cut):
        actions.append(driver.action(world.ego))
        rewards.append(world.step(actions[-1])[0])
        if world.is_cut and len(actions) > 1:
            # What came of the step is outside of what the road is known for.
            del actions[-1], rewards[-1]
            break
        frames.append(world.poses)
        present.append(world.present)
        features.append(world.features)
    codes = (
        ROADS.index(environment),
        BEHAVIOURS.index(behaviour),
        world.cause,
        int(world.is_provoked),
    )
    return _record(
        world, seed, codes, (np.stack(frames), np.stack(present)), features, actions, rewards
    )


def _record(
    world: World,
    seed: int,
    codes: tuple[int, int, int, int],
    seen: tuple[NDArray[np.float64], NDArray[np.bool_]],
    features: list[list[float]],
    actions: list[NDArray[np.float32]],
    rewards: list[float],
) -> Episode:
    """Pack frames [T+1, 1 + others, 4] (ego first), who was present, and the rest into columns."""
    frames, present = seen[0].copy(), seen[1]
    frames[..., :2] -= frames[0, 0, :2].copy()
    chosen = 1 + _who_matters(frames, present)
    count, columns = len(frames), len(chosen)
    there = present[:, chosen]
    vehicles = np.zeros((count, MAX_VEHICLES, 4), np.float32)
    vehicles[:, :columns] = np.where(there[..., None], frames[:, chosen], 0.0)
    presence = np.zeros((count, MAX_VEHICLES), np.uint8)
    presence[:, :columns] = there
    identities = np.full(MAX_VEHICLES, -1, np.int32)
    identities[:columns] = chosen - 1
    size = np.zeros((MAX_VEHICLES, 2), np.float32)
    size[:columns] = world.sizes[chosen]
    kind = np.full(MAX_VEHICLES, -1, np.int8)
    kind[:columns] = world.kinds[chosen]
    return Episode(
        seed,
        *codes,
        ego=frames[:, 0].astype(np.float32),
        ego_features=np.array(features, np.float32),
        vehicles=vehicles,
        present=presence,
        vehicle_id=identities,
        action=np.concatenate([np.array(actions), np.zeros((1, 3), np.float32)]),
        reward=np.array([*rewards, 0.0], np.float32),
        size=size,
        kind=kind,
        ego_size=world.sizes[0].astype(np.float32),
        ego_kind=int(world.kinds[0]),
        source=SOURCES.index(source_of(world.environment)),
    )


def _who_matters(frames: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return which of the others [n] get a column: those who come nearest, in their own order."""
    apart = np.hypot(*np.moveaxis(frames[:, 1:, :2] - frames[:, :1, :2], -1, 0))
    apart = np.where(present[:, 1:], apart, np.inf)
    # By the best rank that each one has in any frame, then by distance.
    ranks = np.argsort(np.argsort(apart, axis=1, kind="stable"), axis=1, kind="stable")
    order = np.lexsort((apart.min(axis=0), ranks.min(axis=0)))
    order = order[np.isfinite(apart.min(axis=0)[order])]
    return np.sort(order[:MAX_VEHICLES])


def draw_episode(seed: int, environments: dict[str, float]) -> tuple[str, str]:
    """Return the environment and behaviour that a seed stands for.

    Args:
        seed: Seed of the episode.
        environments: Share of each environment; they need not sum to 1.
    """
    rng = np.random.default_rng([seed, 1])
    shares = np.array(list(environments.values()), np.float64)
    environment = str(rng.choice(list(environments), p=shares / shares.sum()))
    return environment, str(rng.choice(BEHAVIOURS, p=np.array(SHARES)))
