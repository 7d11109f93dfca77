"""A tiny world of other dims (S = 4, A = 2): a puck on a table that ends when it falls off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from models.spec import Feature, Spec
from training.dataset.windows import Windows
from training.dataset.writer import EpisodeWriter

DT_S = 0.1


def toy_spec() -> Spec:
    return Spec(
        name="toy",
        dt_s=DT_S,
        state=tuple(
            Feature(name, unit, -10.0, 10.0, name)
            for name, unit in (("x", "m"), ("y", "m"), ("vx", "m/s"), ("vy", "m/s"))
        ),
        action=(
            Feature("push_x", "1", -1.0, 1.0, "push along x"),
            Feature("push_y", "1", -1.0, 1.0, "push along y"),
        ),
    )


def toy_windows(count: int, horizon: int, seed: int) -> Windows:
    """Exact windows; half of them a whole episode, cut at the fall."""
    rng = np.random.default_rng(seed)
    states = np.zeros((count, horizon + 1, 4), np.float32)
    states[:, 0] = rng.uniform(-1, 1, (count, 4)) * [1, 1, 2, 2]
    actions = rng.uniform(-1, 1, (count, horizon, 2)).astype(np.float32)
    for k in range(horizon):
        velocity = states[:, k, 2:] + DT_S * 3 * actions[:, k]
        states[:, k + 1] = np.hstack([states[:, k, :2] + DT_S * velocity, velocity])
    off = (np.abs(states[:, 1:, :2]) > 1.2).any(-1)
    fallen = np.cumsum(off, axis=1) > 0
    terminated = off & (np.cumsum(off, axis=1) == 1) & (np.cumsum(fallen, axis=1) == 1)
    return Windows(
        states=states,
        actions=actions,
        rewards=-np.abs(states[:, 1:, 0]),
        terminated=terminated,
        valid=~fallen | terminated,
        episode=np.arange(count),
        environment=np.zeros(count, np.uint8),
        behaviour=np.zeros(count, np.uint8),
        start_step=np.zeros(count, np.int64),
    )


def write_toy_episodes(folder: Path, count: int, *, reach_m: float = 1.2, seed: int = 0) -> None:
    """Write episodes of 1 to 25 steps in our format; one ends once the puck is beyond `reach_m`."""
    rng = np.random.default_rng(seed)
    with EpisodeWriter(folder, toy_spec(), origin="made up") as writer:
        for _ in range(count):
            states, actions = [rng.uniform(-1, 1, 4)], list[Any]()
            while not actions or (len(actions) < 25 and np.abs(states[-1][:2]).max() <= reach_m):
                actions.append(rng.uniform(-1, 1, 2))
                velocity = states[-1][2:] + DT_S * 3 * actions[-1]
                states.append(np.concatenate([states[-1][:2] + DT_S * velocity, velocity]))
            rewards = [-abs(state[0]) for state in states[1:]]
            writer.add(states, actions, rewards, ended=bool(np.abs(states[-1][:2]).max() > reach_m))
