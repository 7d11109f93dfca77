"""Drive unseen episodes of the simulator with a policy, and score how it went."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from examples.scene import fleet_of, sight_of
from examples.spec import HIGHWAY
from models.spec import Spec
from training.closed_loop.comparison import TRAINED_ROADS
from training.evaluation.bootstrap import (
    draw_counts,
    percentile_interval,
    ratio_draws,
    share_interval,
)
from training.simulation.behaviours import make_behaviour
from training.simulation.bicycle import DT_S
from training.simulation.fleets import CARS
from training.simulation.simulator import CAUSES, MAX_STEPS, Simulation, draw_episode

FIRST_SEED = 7_000_000
"""Episode i has the seed `FIRST_SEED + i`. Data sets draw theirs from 63 bits, so none is among
them. The constants of `outlook` and of both examples were chosen on those from 6_000_000 on."""

FIRST_START_SEED = 5_000_000
"""Likewise of the episodes whose states a policy may train on."""

RIVALS = ("aggressive", "careful")

_DRAWS = 2000

Action = NDArray[np.float32]
Policy = Callable[[Simulation], Action]
"""What to do now: [3] steer, throttle, brake. It may remember things of its episode."""

MakePolicy = Callable[[Simulation], Policy]
"""A fresh policy for an episode about to start."""


@dataclass(frozen=True)
class Drive:
    """How one episode went.

    Attributes:
        cause: Index into `CAUSES`, 0 if it was driven to its end.
        time_s: Driven.
        distance_m: Driven.
        reward: Sum of the simulator's rewards.
    """

    cause: int
    time_s: float
    distance_m: float
    reward: float


def recorded_behaviour(name: str) -> MakePolicy:
    """Return one of the behaviours that data sets are recorded with, as a policy."""

    def make(world: Simulation) -> Policy:
        driver = make_behaviour(name, world.rng.spawn(1)[0], world.pace)
        return lambda world: driver.action(world.ego)

    return make


def drive(seed: int, make_policy: MakePolicy, steps: int = MAX_STEPS, fleet: str = CARS) -> Drive:
    """Drive one episode until it terminates, or for `steps`.

    Args:
        seed: Decides the road and the traffic.
        make_policy: What drives.
        steps: Truncation, at least 1.
        fleet: Who is on the road.
    """
    world = Simulation(seed, draw_episode(seed, TRAINED_ROADS)[0], fleet=fleet)
    policy = make_policy(world)
    distance_m, reward, count = 0.0, 0.0, 0
    while count < steps and not world.cause:
        action = policy(world)
        distance_m += world.ego.speed * DT_S  # the position moves with the speed before the step
        reward += world.step(action)[0]
        count += 1
    return Drive(world.cause, count * DT_S, distance_m, reward)


def drive_all(
    name: str,
    make_policy: MakePolicy,
    seeds: Sequence[int],
    *,
    at_once: int = 1,
    fleet: str = CARS,
) -> list[Drive]:
    """Drive episodes in the order of their seeds.

    Args:
        name: Of the policy, for the progress bar.
        make_policy: What drives.
        seeds: One an episode.
        at_once: More than 1 helps a policy that waits for a service.
        fleet: Who is on the road.
    """
    with ThreadPoolExecutor(at_once) as pool:
        drives = pool.map(lambda seed: drive(seed, make_policy, fleet=fleet), seeds)
        return list(tqdm(drives, total=len(seeds), desc=name, unit="episode"))


def recorded_states(episodes: int, spec: Spec = HIGHWAY) -> list[NDArray[np.float32]]:
    """Return the states [T, S] of each of so many recorded episodes, the last ones left out.

    The behaviour is the one that the seed stands for, as in a data set.
    """
    states = []
    seeds = range(FIRST_START_SEED, FIRST_START_SEED + episodes)
    for seed in tqdm(seeds, desc="start states", unit="episode"):
        road, behaviour = draw_episode(seed, TRAINED_ROADS)
        world, see = Simulation(seed, road, fleet=fleet_of(spec)), sight_of(spec)
        policy = recorded_behaviour(behaviour)(world)
        seen: list[NDArray[np.float32]] = []
        while len(seen) < MAX_STEPS and not world.cause:
            seen.append(see(world))
            world.step(policy(world))
        states.append(np.stack(seen))
    return states


def compare(
    name: str,
    make_policy: MakePolicy,
    episodes: int,
    *,
    at_once: int = 1,
    spec: Spec = HIGHWAY,
) -> dict[str, dict[str, Any]]:
    """Return the `score` of a policy, and of the `RIVALS` on the same roads in the same traffic.

    Args:
        name: Of the policy.
        make_policy: What drives.
        episodes: Their number.
        at_once: See `drive_all`.
        spec: Of the policy's model, which decides the traffic: see `scene.fleet_of`.
    """
    seeds, fleet = range(FIRST_SEED, FIRST_SEED + episodes), fleet_of(spec)
    scores = {name: score(drive_all(name, make_policy, seeds, at_once=at_once, fleet=fleet))}
    return scores | {
        rival: score(drive_all(rival, recorded_behaviour(rival), seeds, fleet=fleet))
        for rival in RIVALS
    }


def score(drives: Sequence[Drive]) -> dict[str, Any]:
    """Return what a policy's drives amount to: numbers, each with its 95 % interval.

    The interval of the terminated share is Wilson's, the others resample episodes. Mean speed is
    the mean of the episodes' mean speeds, m/s: each counts the same, so that a crash on a fast road
    does not make a policy slow.

    Raises:
        ValueError: There are no drives.
    """
    if not drives:
        raise ValueError("there are no drives to score")
    ended = np.array([float(drive.cause > 0) for drive in drives])
    km = np.array([drive.distance_m / 1000 for drive in drives])
    speeds = np.array([drive.distance_m / drive.time_s for drive in drives])
    rewards = np.array([drive.reward for drive in drives])
    one, counts = np.ones_like(ended), draw_counts(len(drives), _DRAWS)
    scores: dict[str, Any] = {
        "episodes": len(drives),
        **{cause: sum(drive.cause == i for drive in drives) for i, cause in enumerate(CAUSES) if i},
    }
    for name, above, below in (
        ("terminated_share", ended, one),
        ("terminations_per_km", ended, km),
        ("mean_speed_mps", speeds, one),
        ("reward_per_episode", rewards, one),
    ):
        scores[name], drawn = ratio_draws(above, below, counts)
        scores[f"{name}_interval"] = list(percentile_interval(drawn))
    if not ended.any():  # resamples of zeros are zeros, which says nothing about the doubt
        scores["terminations_per_km_interval"] = [None, None]
    wilson = share_interval(int(ended.sum()), len(drives))
    return scores | {"terminated_share_interval": list(wilson)}


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write plain data as JSON, with the folders it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
