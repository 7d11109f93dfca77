"""A reckless driver in the simulator, with and without a monitor: does it prevent crashes?

Every arm drives the same seeds: the same roads, traffic and driver's choices. Only what the monitor
lets pass differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from training.closed_loop.drives import RECKLESS, Drive
from training.closed_loop.monitors import (
    BrakeMonitor,
    FallbackMonitor,
    Judge,
    Monitor,
    NoMonitor,
    Shield,
)
from training.closed_loop.results import MODEL, NO_MONITOR, PHYSICS, compare_arms
from training.dataset.collect import ENVIRONMENT_SHARES
from training.dataset.store import load_manifest, shard_names
from training.dataset.windows import UNSEEN_ENVIRONMENT
from training.simulation.bicycle import DT_S

FIRST_SEED = 20_000_000
"""Seeds of the drives count up from here; `check_unseen` holds them against a data set's."""

FIRST_TUNING_SEED = 30_000_000
"""Those of the drives that fix the shields' thresholds."""

TRAINED_ROADS = {k: x for k, x in ENVIRONMENT_SHARES.items() if k != UNSEEN_ENVIRONMENT}

SHIELD_LIMIT = 0.08
"""Share of the tuning steps that a shield may override: 10 % are allowed, and drives differ."""

SHIELD_THRESHOLDS = {
    MODEL: (0.003, 0.01, 0.03, 0.1, 0.3),
    PHYSICS: (-0.7, -0.5, -0.3, -0.1, 0.1),
}
"""Risks tried, strictest first: crash probability; minus the smallest margin, m."""

_KINDS = 3
"""Monitors that `monitors_of` makes of a judge."""

CARS = 24
"""Driven at once, in two fleets: while one waits for the judge, the other is simulated."""


def check_unseen(data: Path, seeds: Iterable[int]) -> None:
    """Make sure that no drive is in a data set.

    Raises:
        ValueError: One is, or the data set is unfinished.
    """
    recorded: set[int] = set()
    for name in shard_names(data, load_manifest(data)):
        with safe_open(data / name, framework="numpy") as shard:
            recorded.update(shard.get_tensor("seed").tolist())
    known = sorted(recorded.intersection(seeds))
    if known:
        raise ValueError(f"{data} holds episodes with the seeds {known[:3]} of the closed loop")


def seeds_of(episodes: int) -> list[int]:
    """Return all seeds that `compare_monitors` drives with, for a number of episodes per arm."""
    few = _few(episodes)
    return [*_seeds(FIRST_SEED, episodes), *_seeds(FIRST_TUNING_SEED, few)]


def most_drives(episodes: int) -> int:
    """Return how many drives `compare_monitors` makes at most."""
    arms = 1 + len(SHIELD_THRESHOLDS) * _KINDS
    tuning = sum(len(thresholds) for thresholds in SHIELD_THRESHOLDS.values())
    return arms * (episodes + _few(episodes)) + tuning * _few(episodes)


def _few(episodes: int) -> int:
    return max(1, episodes // 5)


def _seeds(first: int, count: int) -> range:
    return range(first, first + count)


async def drive_fleet(
    monitor: Monitor,
    seeds: Sequence[int],
    start: Callable[[int], Drive],
    cars: int,
    done: Callable[[Drive], None],
) -> None:
    """Drive all seeds, some at once, a step of each between two calls of the monitor.

    Args:
        monitor: Decides.
        seeds: One per drive.
        start: Returns the drive that a seed stands for.
        cars: How many at once.
        done: Called with each drive that is over.
    """
    waiting, active = list(reversed(seeds)), list[Drive]()
    while waiting or active:
        while waiting and len(active) < cars:
            active.append(start(waiting.pop()))
        states = np.stack([drive.world.state() for drive in active])
        wanted = np.stack([drive.driver.action(drive.world.ego) for drive in active])
        choice = await monitor.choose(states, wanted)
        for row, drive in enumerate(active):
            drive.step(choice, row)
            if drive.is_over:
                done(drive)
            await asyncio.sleep(0)  # lets the other fleet's answers in
        active = [drive for drive in active if not drive.is_over]


async def drive_all(
    monitor: Monitor,
    seeds: Sequence[int],
    environments: dict[str, float],
    tick: Callable[[], object] = lambda: None,
) -> list[Drive]:
    """Drive all seeds in two fleets; return them in the order of their seeds.

    Args:
        monitor: Decides.
        seeds: One per drive.
        environments: Share of each environment.
        tick: Called after each drive.
    """
    drives: list[Drive] = []

    def done(drive: Drive) -> None:
        drives.append(drive)
        tick()

    start = partial(Drive.start, environments=environments)
    fleets = (drive_fleet(monitor, seeds[i::2], start, CARS // 2, done) for i in (0, 1))
    await asyncio.gather(*fleets)
    return sorted(drives, key=lambda drive: drive.seed)


async def tune_shield(
    judge: Judge,
    horizon: int,
    thresholds: Sequence[float],
    seeds: Sequence[int],
    tick: Callable[[], object] = lambda: None,
) -> tuple[float, list[dict[str, float]]]:
    """Return the strictest threshold with which a shield overrides few enough steps.

    Args:
        judge: Whom it asks.
        horizon: Steps, H.
        thresholds: What to try, strictest first.
        seeds: Drives on trained roads that are not reported.
        tick: Called after each drive.

    Returns:
        The threshold, the last one if none overrides at most `SHIELD_LIMIT`; and what was tried.
    """
    tried: list[dict[str, float]] = []
    for threshold in thresholds:
        drives = await drive_all(Shield(judge, horizon, threshold), seeds, TRAINED_ROADS, tick)
        steps = sum(len(drive.speeds) for drive in drives)
        overridden = sum(drive.overridden for drive in drives) / steps
        terminated = float(np.mean([drive.world.cause > 0 for drive in drives]))
        tried.append({"threshold": threshold, "overridden": overridden, "terminated": terminated})
        if overridden <= SHIELD_LIMIT:
            break
    return tried[-1]["threshold"], tried


def monitors_of(judge: Judge, horizon: int, shield_threshold: float) -> dict[str, Monitor]:
    """Return the monitors that ask a judge, by name."""
    return {
        "brake": BrakeMonitor(judge, horizon),
        "fallbacks": FallbackMonitor(judge, horizon),
        "shield": Shield(judge, horizon, shield_threshold),
    }


async def compare_monitors(
    judges: Mapping[str, Judge],
    horizon: int,
    episodes: int,
    on_drive: Callable[[str], None] = lambda arm: None,
) -> dict[str, Any]:
    """Drive every arm on the same seeds, on trained roads and on the unseen one.

    Args:
        judges: By name, `MODEL` and `PHYSICS`.
        horizon: Steps, H.
        episodes: Drives an arm on trained roads; a fifth of them fix each shield's threshold, on
            other seeds, and a fifth are driven on the unseen road.
        on_drive: Called with the name of the arm after each drive.

    Returns:
        Plain JSON: the set-up, what was tuned, and the results by road and arm.
    """
    few = _few(episodes)
    monitors: dict[str, Monitor] = {NO_MONITOR: NoMonitor()}
    tuning: dict[str, Any] = {}
    for name, judge in judges.items():
        seeds = _seeds(FIRST_TUNING_SEED, few)
        tick = partial(on_drive, f"tuning, {name}")
        chosen, tried = await tune_shield(judge, horizon, SHIELD_THRESHOLDS[name], seeds, tick)
        tuning[name] = {"threshold": chosen, "tried": tried}
        made = monitors_of(judge, horizon, chosen)
        monitors |= {f"{kind}, {name}": monitor for kind, monitor in made.items()}
    results = {}
    for part, roads, count in (
        ("trained", TRAINED_ROADS, episodes),
        ("unseen", {UNSEEN_ENVIRONMENT: 1.0}, few),
    ):
        seeds = _seeds(FIRST_SEED, count)
        drives = {
            arm: await drive_all(monitor, seeds, roads, partial(on_drive, f"{arm}, {part}"))
            for arm, monitor in monitors.items()
        }
        results[part] = compare_arms(drives)
    return {
        "first_seed": FIRST_SEED,
        "horizon_s": horizon * DT_S,
        "cars_at_once": CARS,
        "behaviours": RECKLESS,
        "roads": TRAINED_ROADS,
        "unseen_road": UNSEEN_ENVIRONMENT,
        "tuning": {
            "first_seed": FIRST_TUNING_SEED,
            "episodes": few,
            "limit": SHIELD_LIMIT,
            "judges": tuning,
        },
        "results": results,
    }
