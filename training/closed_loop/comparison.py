"""A reckless driver in simulators, with and without a monitor: does it prevent crashes?

Every arm drives the same seeds: the same roads, traffic and driver's choices. Only what the monitor
lets pass differs. Drives are shared out among processes; finished ones are on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from training.closed_loop.arms import (
    CARS_AT_ONCE,
    MONITORS,
    SHIELD,
    TRAINED,
    TUNING,
    UNSEEN_PART,
    Arm,
    Course,
    Driving,
    drive_course,
)
from training.closed_loop.drives import RECKLESS, Outcome, Setup
from training.closed_loop.log import DriveLog, Tally
from training.closed_loop.monitors import JudgeSource
from training.closed_loop.results import MODEL, PHYSICS, VELOCITY, compare_arms
from training.dataset.store import load_manifest, shard_names
from training.fitting.parallel import run_in_processes
from training.simulation.bicycle import DT_S
from training.simulation.simulator import SOURCES, UNSEEN, trained_roads

FIRST_SEED = 20_000_000
"""Seeds of the drives count up from here; `check_unseen` holds them against a data set's."""

FIRST_TUNING_SEED = 30_000_000
"""Those of the drives that fix the shields' thresholds."""

TRAINED_ROADS = trained_roads(SOURCES[0])

SHIELD_LIMIT = 0.08
"""Share of the tuning steps that a shield may override: 10 % are allowed, and drives differ."""

_MARGINS_M = (-0.7, -0.5, -0.3, -0.1, 0.1)
SHIELD_THRESHOLDS = {
    MODEL: (0.003, 0.01, 0.03, 0.1, 0.3),
    PHYSICS: _MARGINS_M,
    VELOCITY: _MARGINS_M,
}
"""Risks tried, strictest first: crash probability; minus the smallest margin, m."""


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


def most_drives(episodes: int, sources: int = 1, judges: Sequence[str] = (MODEL, PHYSICS)) -> int:
    """Return how many drives `compare_monitors` makes at most.

    Args:
        episodes: Per arm and source, on trained roads.
        sources: How many.
        judges: Names of the judges.
    """
    arms = 1 + len(judges) * len(MONITORS)
    tuning = sum(len(SHIELD_THRESHOLDS[name]) for name in judges)
    return sources * (arms * (episodes + _few(episodes)) + tuning * _few(episodes))


def _few(episodes: int) -> int:
    return max(1, episodes // 5)


def _seeds(first: int, count: int) -> range:
    return range(first, first + count)


def tune_shield(
    driving: Driving, name: str, judge: JudgeSource, courses: Sequence[Course]
) -> tuple[float, list[dict[str, float]]]:
    """Return the strictest threshold with which a shield overrides few enough steps.

    Args:
        driving: How.
        name: Of the judge, one of `SHIELD_THRESHOLDS`; also that of the log.
        judge: Whom it asks.
        courses: Drives that are not reported, of all sources.

    Returns:
        The threshold, the last one if none overrides at most `SHIELD_LIMIT`; and what was tried.
    """
    log, tried = DriveLog(driving.folder, f"{TUNING}-{name}"), list[dict[str, float]]()
    for threshold in SHIELD_THRESHOLDS[name]:
        arm = Arm(f"{SHIELD}, {name}, {threshold:g}", SHIELD, judge, threshold)
        drives = [x for course in courses for x in driving.drive(arm, course, log)]
        steps = sum(len(drive.speeds) for drive in drives)
        overridden = sum(drive.overridden for drive in drives) / steps
        terminated = float(np.mean([drive.cause > 0 for drive in drives]))
        tried.append({"threshold": threshold, "overridden": overridden, "terminated": terminated})
        if overridden <= SHIELD_LIMIT:
            break
    return tried[-1]["threshold"], tried


def _tune(driving: Driving, name: str, judge: JudgeSource, courses: Sequence[Course]) -> None:
    """Do what `tune_shield` does in a process of its own: the log keeps it."""
    tune_shield(driving, name, judge, courses)


def arms_of(judges: Mapping[str, JudgeSource], thresholds: Mapping[str, float]) -> list[Arm]:
    """Return all arms: no monitor, and each kind with each judge.

    Args:
        judges: By name.
        thresholds: Of their shields, by name.
    """
    return [
        Arm(),
        *(
            Arm(f"{kind}, {name}", kind, judge, thresholds[name])
            for name, judge in judges.items()
            for kind in MONITORS
        ),
    ]


@dataclass(frozen=True)
class DrivePool:
    """The processes that make drives, and where they keep them.

    Attributes:
        folder: Of the logs; another comparison needs another one.
        workers: Processes at once; 1 drives in this one.
        on_drives: Called with the number of drives made so far, now and then.
    """

    folder: Path
    workers: int = 1
    on_drives: Callable[[int], object] = lambda count: None

    def run(self, target: Callable[..., None], tasks: Sequence[tuple[Any, ...]]) -> None:
        """Call `target(*task)` for all tasks."""
        tally = Tally(self.folder)
        if self.workers > 1:
            run_in_processes(target, tasks, self.workers, lambda: self.on_drives(tally.count()))
            return
        for task in tasks:
            target(*task)
            self.on_drives(tally.count())


def compare_monitors(
    judges: Mapping[str, JudgeSource],
    horizon: int,
    episodes: int,
    pool: DrivePool,
    setup: Setup | None = None,
    sources: Sequence[str] = SOURCES[:1],
) -> dict[str, Any]:
    """Drive every arm on the same seeds, on trained roads and on the unseen one of each source.

    Args:
        judges: By name, of `SHIELD_THRESHOLDS`.
        horizon: Steps, H.
        episodes: Drives an arm and source on trained roads; a fifth of them fix each shield's
            threshold, on other seeds of all sources, and a fifth are driven on the unseen road.
        pool: The processes that drive.
        setup: Of all drives; `Setup()` by default.
        sources: Some of `simulator.SOURCES`.

    Returns:
        Plain JSON: the set-up, what was tuned, and the results by source, road and arm.
    """
    setup, few = setup or Setup(), _few(episodes)
    workers = pool.workers
    driving = Driving(pool.folder, setup, horizon, max(1, CARS_AT_ONCE // workers))
    tuned = [Course(source, TUNING, _seeds(FIRST_TUNING_SEED, few)) for source in sources]
    # Processes write down what they drive; here it is only read.
    pool.run(_tune, [(driving, *judge, tuned) for judge in judges.items()])
    found = {name: tune_shield(driving, name, judge, tuned) for name, judge in judges.items()}
    arms = arms_of(judges, {name: threshold for name, (threshold, _) in found.items()})
    courses = [
        Course(source, part, _seeds(FIRST_SEED, count))
        for source in sources
        for part, count in ((TRAINED, episodes), (UNSEEN_PART, few))
    ]
    shares = [
        (f"{course.source}-{course.part}-{i}", driving, arms, share)
        for course in courses
        for i, share in enumerate(_shared_out(course, workers))
    ]
    pool.run(drive_course, shares)
    logs = [DriveLog(pool.folder, name) for name, *_ in shares]
    results: dict[str, Any] = {source: {} for source in sources}
    for course in courses:
        drives = {arm.name: _collected(logs, arm, course) for arm in arms}
        results[course.source][course.part] = compare_arms(drives)
    return {
        "first_seed": FIRST_SEED,
        "horizon_s": horizon * DT_S,
        "cars_at_once": CARS_AT_ONCE,
        "behaviours": RECKLESS,
        "fleet": setup.fleet,
        "tracks": None if setup.tracking is None else setup.tracking.model,
        "roads": {source: trained_roads(source) for source in sources},
        "unseen_roads": {source: UNSEEN[source] for source in sources},
        "tuning": {
            "first_seed": FIRST_TUNING_SEED,
            "episodes": few * len(sources),
            "limit": SHIELD_LIMIT,
            "judges": {
                name: {"threshold": threshold, "tried": tried}
                for name, (threshold, tried) in found.items()
            },
        },
        "results": results,
    }


def _shared_out(course: Course, workers: int) -> list[Course]:
    """Return a course in parts for so many processes."""
    parts = (course.seeds[i::workers] for i in range(workers))
    return [replace(course, seeds=seeds) for seeds in parts if len(seeds)]


def _collected(logs: Sequence[DriveLog], arm: Arm, course: Course) -> list[Outcome]:
    """Return the drives of an arm in the order of the course's seeds."""
    known: dict[int, Outcome] = {}
    for log in logs:
        known |= log.of(arm.name, course.source, course.part)
    return [known[seed] for seed in course.seeds]
