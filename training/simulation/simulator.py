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

from models.highway import highway_spec
from models.spec import Spec
from training.simulation.behaviours import BEHAVIOURS, SHARES, make_behaviour
from training.simulation.bicycle import DT_S
from training.simulation.fleets import DEFAULT_FLEET
from training.simulation.rectangles import rectangle_gap
from training.simulation.roads import ENVIRONMENTS, ego_features
from training.simulation.scenes import build_road
from training.simulation.slots import slot_features, whole_turns
from training.simulation.states import encoder_of
from training.simulation.vehicles import SURPRISING_SHARE, Traffic
from training.simulation.walkers import Walker

MAX_STEPS = 140
MAX_VEHICLES = 16

CAUSES = ("none", "crash", "off_road")
SOURCES = ("highway-env", "sumo")
"""Simulators that episodes come from."""

HIGHWAY = highway_spec()

PROVOKED_S = 2.5
"""A crash so soon after the other car began a sudden manoeuvre counts as provoked by it."""


@dataclass(frozen=True)
class Episode:
    """One recorded episode of T steps; T + 1 frames, the last is where it ended.

    Attributes:
        seed: Reproduces the episode, given environment and behaviour.
        environment: Index into `ENVIRONMENTS`.
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


def reward_of(features: list[float], cause: int) -> float:
    """Return the reward of the step that led to a state.

    -1 if the step ended in a crash or off the road, else
    0.6 clip(speed / 30 m/s, 0, 1) + 0.4 (1 - min(|lane offset| / 2 m, 1)), hence in [-1, 1].
    """
    if cause:
        return -1.0
    speed, offset = features[0], features[1]
    return 0.6 * min(max(speed / 30, 0), 1) + 0.4 * (1 - min(abs(offset) / 2, 1))


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


class Simulation:
    """A road with the ego and traffic, driven step by step.

    Args:
        seed: The same seed and actions give the same future, bit for bit.
        environment: One of `ENVIRONMENTS`.
        surprising_share: Of the drivers, how many have a sudden manoeuvre in store.
        fleet: One of `fleets.FLEETS`: "cars" are all of 5 x 2 m; in "mixed" ones everybody has a
            kind and a size of its own, there are cyclists and pedestrians where traffic is slow,
            and highways have 2 to 8 lanes.

    Attributes:
        environment: As given.
        rng: Source of everything random; spawn from it what must depend on the seed alone.
        road: highway-env's.
        ego: The vehicle we drive.
        others: The other road users.
        sizes: [1 + others, 2] length and width of everybody, m, the ego first.
        kinds: [1 + others] index into `fleets.KINDS`.
        pace: Usual speed of this traffic, m/s.
        poses: [1 + others, 4] x, y, heading, speed now, the ego first.
        poses_before: The same one step ago; equal to `poses` before the first step.
        features: The six ego features now.
        cause: Index into `CAUSES`: why it is over, 0 while it goes on.
        is_provoked: Whether it ended in a crash with somebody who had begun a sudden manoeuvre
            within `PROVOKED_S`.

    Raises:
        ValueError: No environment or no fleet has that name.
    """

    def __init__(
        self,
        seed: int,
        environment: str,
        surprising_share: float = SURPRISING_SHARE,
        fleet: str = DEFAULT_FLEET,
    ) -> None:
        self.environment = environment
        self.rng = np.random.default_rng(seed)
        self.road, self.ego, self.pace = build_road(environment, self.rng, surprising_share, fleet)
        self.others = [vehicle for vehicle in self.road.vehicles if vehicle is not self.ego]
        builds = [vehicle.build for vehicle in (self.ego, *self.others)]
        self.sizes = np.array([[build.length_m, build.width_m] for build in builds])
        self.kinds = np.array([build.kind for build in builds])
        self.poses = _poses([self.ego, *self.others])
        self.poses_before = self.poses
        self.features = ego_features(self.road.network, self.ego)
        self.cause = 0
        self.is_provoked = False
        self._encoder = encoder_of(HIGHWAY)

    def state(self, spec: Spec = HIGHWAY) -> NDArray[np.float32]:
        """Return the state [S] of a spec as a perfect tracker delivers it now.

        Args:
            spec: A layout of `models.highway` or `models.road_users`. One without sizes gets the
                true centres, whatever size everybody has.
        """
        # Looked for only if it is another spec: to hash one takes as long as to write its state.
        encoder = self._encoder if self._encoder.spec is spec else encoder_of(spec)
        self._encoder = encoder
        ego, sizes = self.poses[:1], self.sizes[None]
        # Columns for all slots even where there are fewer others.
        missing = max(0, encoder.slot_count - len(self.others))
        present = np.pad(np.ones((1, len(self.others))), ((0, 0), (0, missing)))
        others, before, theirs = (
            np.pad(x, ((0, 0), (0, missing), (0, 0)))
            for x in (self.poses[None, 1:], self.poses_before[None, 1:], sizes[:, 1:])
        )
        columns, near = encoder.choose(ego, sizes[:, 0], others, theirs, present)
        slots = slot_features(ego, others[:, columns[0]], before[:, columns[0]], near)
        slots[..., 3] -= whole_turns(slots[..., 3])
        features = np.array([self.features], np.float32)
        states = encoder.encode(features, sizes[:, 0], slots, theirs[:, columns[0]])
        return np.asarray(states[0])

    def step(self, action: NDArray[Any]) -> tuple[float, int]:
        """Drive one step.

        Args:
            action: [3] steer, throttle, brake.

        Returns:
            The reward, and the cause if it is over (an index into `CAUSES`, 0 if not).
        """
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
        environment: One of `ENVIRONMENTS`.
        behaviour: One of `BEHAVIOURS`.
        steps: Truncation.
        surprising_share: Of the drivers, how many have a sudden manoeuvre in store.
        fleet: One of `fleets.FLEETS`.

    Returns:
        What happened.
    """
    world = Simulation(seed, environment, surprising_share, fleet)
    driver = make_behaviour(behaviour, world.rng.spawn(1)[0], world.pace)
    frames, features = [world.poses], [world.features]
    actions: list[NDArray[np.float32]] = []
    rewards: list[float] = []
    while len(actions) < steps and not world.cause:
        actions.append(driver.action(world.ego))
        rewards.append(world.step(actions[-1])[0])
        frames.append(world.poses)
        features.append(world.features)
    codes = (
        ENVIRONMENTS.index(environment),
        BEHAVIOURS.index(behaviour),
        world.cause,
        int(world.is_provoked),
    )
    return _record(world, seed, codes, np.stack(frames), features, np.array(actions), rewards)


def _record(
    world: Simulation,
    seed: int,
    codes: tuple[int, int, int, int],
    frames: NDArray[np.float64],
    features: list[list[float]],
    actions: NDArray[np.float32],
    rewards: list[float],
) -> Episode:
    """Pack frames [T+1, 1 + others, 4] (ego first) and the rest into fixed columns."""
    count, columns = len(frames), frames.shape[1] - 1
    frames = frames.copy()
    frames[..., :2] -= frames[0, 0, :2].copy()
    vehicles = np.zeros((count, MAX_VEHICLES, 4), np.float32)
    vehicles[:, :columns] = frames[:, 1:]
    present = np.zeros((count, MAX_VEHICLES), np.uint8)
    present[:, :columns] = 1
    identities = np.full(MAX_VEHICLES, -1, np.int32)
    identities[:columns] = np.arange(columns)
    size = np.zeros((MAX_VEHICLES, 2), np.float32)
    size[:columns] = world.sizes[1:]
    kind = np.full(MAX_VEHICLES, -1, np.int8)
    kind[:columns] = world.kinds[1:]
    return Episode(
        seed,
        *codes,
        ego=frames[:, 0].astype(np.float32),
        ego_features=np.array(features, np.float32),
        vehicles=vehicles,
        present=present,
        vehicle_id=identities,
        action=np.concatenate([actions, np.zeros((1, 3), np.float32)]),
        reward=np.array([*rewards, 0.0], np.float32),
        size=size,
        kind=kind,
        ego_size=world.sizes[0].astype(np.float32),
        ego_kind=int(world.kinds[0]),
    )


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
