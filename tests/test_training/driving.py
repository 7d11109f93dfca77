"""Exact made-up episodes on a straight road, without the simulator: one car ahead of the ego."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from training.dataset.store import EpisodeStore, load_store, shard_path, write_manifest, write_shard
from training.simulation.behaviours import BEHAVIOURS
from training.simulation.bicycle import DT_S, bicycle_step
from training.simulation.fleets import CAR, CARS
from training.simulation.rectangles import rectangle_gap
from training.simulation.simulator import CAUSES, MAX_VEHICLES, ROADS, Episode

ROAD_HALF_WIDTH_M = 6.0
OTHER_COLUMN = 2
"""The car ahead is not in the first column, so that columns and slots differ."""


def drive(
    seed: int,
    *,
    ahead_m: float = 60.0,
    other_speed: float = 10.0,
    steer: float = 0.0,
    steps: int = 30,
    environment: int = 0,
    behaviour: int = 0,
) -> Episode:
    """Drive at about 20 m/s behind a slower car, until a crash, the road's edge, or `steps`."""
    rng = np.random.default_rng(seed)
    pose = np.array([0.0, 0.0, 0.0, rng.uniform(18, 22)])
    other = np.array([ahead_m, 0.0, 0.0, other_speed])
    poses, others, cause = [pose], [other], 0
    actions: list[np.ndarray] = []
    while len(actions) < steps and cause == 0:
        noise = rng.uniform(-0.05, 0.05)
        actions.append(np.array([steer + noise, rng.uniform(0, 0.5), 0.0], np.float32))
        pose = bicycle_step(pose, actions[-1])
        other = other + np.array([other[3] * DT_S, 0, 0, 0])
        poses.append(pose)
        others.append(other)
        dx, dy = other[:2] - pose[:2]
        cos, sin = np.cos(pose[2]), np.sin(pose[2])
        if rectangle_gap(cos * dx + sin * dy, cos * dy - sin * dx, -pose[2]) < 0:
            cause = CAUSES.index("crash")
        elif abs(pose[1]) > ROAD_HALF_WIDTH_M:
            cause = CAUSES.index("off_road")
    return _episode(seed, (environment, behaviour, cause), poses, others, actions)


def _episode(
    seed: int,
    codes: tuple[int, int, int],
    poses: list[np.ndarray],
    others: list[np.ndarray],
    actions: list[np.ndarray],
) -> Episode:
    ego = np.array(poses)
    vehicles = np.zeros((len(ego), MAX_VEHICLES, 4), np.float32)
    vehicles[:, OTHER_COLUMN] = others
    present = np.zeros((len(ego), MAX_VEHICLES), np.uint8)
    present[:, OTHER_COLUMN] = 1
    y, zero = ego[:, 1], np.zeros(len(ego))
    left, right = ROAD_HALF_WIDTH_M + y, ROAD_HALF_WIDTH_M - y
    features = np.stack([ego[:, 3], y, np.sin(ego[:, 2]), left, right, zero], axis=1)
    reward = np.append(-np.abs(y[1:]) / 10, 0.0)
    identities = np.full(MAX_VEHICLES, -1, np.int32)
    identities[OTHER_COLUMN] = 7
    sizes = np.zeros((MAX_VEHICLES, 2), np.float32)
    sizes[OTHER_COLUMN] = CAR[1:]
    return Episode(
        seed,
        *codes,
        provoked=0,
        ego=ego.astype(np.float32),
        ego_features=features.astype(np.float32),
        vehicles=vehicles,
        present=present,
        vehicle_id=identities,
        action=np.array([*actions, np.zeros(3)], np.float32),
        reward=reward.astype(np.float32),
        size=sizes,
        kind=np.where(identities < 0, -1, CAR.kind).astype(np.int8),
        ego_size=np.array(CAR[1:], np.float32),
        ego_kind=CAR.kind,
    )


def save_store(
    folder: Path, episodes: list[Episode], per_shard: int = 7, fleet: str = CARS
) -> EpisodeStore:
    """Write episodes as a finished dataset and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for start in range(0, len(episodes), per_shard):
        paths.append(shard_path(folder, len(paths)))
        write_shard(paths[-1], episodes[start : start + per_shard], {"seed": 0})
    names = {"environments": list(ROADS), "behaviours": list(BEHAVIOURS), "fleet": fleet}
    write_manifest(folder, paths, names)
    return load_store(folder)


def mixed_episodes(count: int) -> list[Episode]:
    """A mix in which a third crash, a sixth leave the road, and the rest do neither."""
    kinds = [
        {"ahead_m": 14.0, "behaviour": 2},
        {"ahead_m": 90.0},
        {"ahead_m": 80.0, "steer": 0.9, "behaviour": 4},
        {"ahead_m": 16.0, "other_speed": 8.0, "environment": 1, "behaviour": 2},
        {"ahead_m": 70.0, "environment": 1},
        {"ahead_m": 130.0},
    ]
    return [drive(i, **kinds[i % len(kinds)]) for i in range(count)]  # type: ignore[arg-type]
