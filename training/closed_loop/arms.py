"""Arms of a comparison, the courses that they drive, and driving them in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from training.closed_loop.drives import Drive, Outcome, Setup
from training.closed_loop.log import DriveLog
from training.closed_loop.monitors import (
    BrakeMonitor,
    FallbackMonitor,
    Judge,
    JudgeSource,
    Monitor,
    NoMonitor,
    Shield,
)
from training.closed_loop.results import NO_MONITOR
from training.simulation.simulator import UNSEEN, trained_roads

BRAKE, FALLBACKS, SHIELD = MONITORS = ("brake", "fallbacks", "shield")
"""Monitors that are made of a judge."""

TRAINED, UNSEEN_PART, TUNING = "trained", "unseen", "tuning"

CARS_AT_ONCE = 24
"""Driven at once by all processes, in two fleets each: while one waits for the judge, the other is
simulated."""

ONE_AT_A_TIME = ("sumo",)
"""Sources of which a process has one simulation only."""


@dataclass(frozen=True)
class Arm:
    """One monitor of a comparison; it can be sent to another process.

    Attributes:
        name: Its name in the results.
        kind: One of `MONITORS`; empty for no monitor.
        judge: Whom the monitor asks; None for no monitor.
        threshold: Of a shield: the risk from which a sequence is unsafe.
    """

    name: str = NO_MONITOR
    kind: str = ""
    judge: JudgeSource | None = None
    threshold: float = 0.0


@dataclass(frozen=True)
class Course:
    """Drives that all arms make.

    Attributes:
        source: One of `simulator.SOURCES`.
        part: `TRAINED`, `UNSEEN_PART` or `TUNING`.
        seeds: One a drive.
    """

    source: str
    part: str
    seeds: Sequence[int]

    @property
    def roads(self) -> dict[str, float]:
        """Share of each road."""
        unseen = UNSEEN[self.source]
        return {unseen: 1.0} if self.part == UNSEEN_PART else trained_roads(self.source)


def monitor_of(arm: Arm, judge: Judge | None, setup: Setup, horizon: int) -> Monitor:
    """Return an arm's monitor.

    Args:
        arm: Its kind and threshold.
        judge: Of the arm, opened.
        setup: Says what states it sees.
        horizon: Steps, H.
    """
    if judge is None:
        return NoMonitor()
    if arm.kind == SHIELD:
        return Shield(judge, horizon, arm.threshold, setup.spec)
    if arm.kind == FALLBACKS:
        return FallbackMonitor(judge, horizon, setup.spec)
    return BrakeMonitor(judge, horizon, setup.spec)


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
        states = np.stack([drive.see(drive.world) for drive in active])
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
    course: Course,
    setup: Setup,
    done: Callable[[Drive], None],
    cars: int = CARS_AT_ONCE,
) -> None:
    """Drive a course in two fleets, or one drive after the other.

    Args:
        monitor: Decides.
        course: What is driven.
        setup: Of all drives.
        done: Called with each drive that is over.
        cars: How many at once.
    """
    start = partial(Drive.start, environments=course.roads, setup=setup)
    if course.source in ONE_AT_A_TIME:
        await drive_fleet(monitor, course.seeds, start, 1, done)
        return
    each = max(1, cars // 2)
    fleets = (drive_fleet(monitor, course.seeds[i::2], start, each, done) for i in (0, 1))
    await asyncio.gather(*fleets)


@dataclass(frozen=True)
class Driving:
    """How one process drives.

    Attributes:
        folder: Of the logs.
        setup: Of all drives.
        horizon: Steps, H.
        cars: At once, where a source can.
    """

    folder: Path
    setup: Setup
    horizon: int
    cars: int = CARS_AT_ONCE

    def drive(self, arm: Arm, course: Course, log: DriveLog) -> list[Outcome]:
        """Drive what a log does not hold yet; return all in the order of the course's seeds."""
        of = arm.name, course.source, course.part
        known = log.of(*of)
        left = [seed for seed in course.seeds if seed not in known]
        if left:
            rest = Course(course.source, course.part, left)
            asyncio.run(self._drive(arm, rest, lambda drive: log.add(drive.outcome, *of)))
            known = log.of(*of)
        return [known[seed] for seed in course.seeds]

    async def _drive(self, arm: Arm, course: Course, done: Callable[[Drive], None]) -> None:
        if arm.judge is None:
            monitor = monitor_of(arm, None, self.setup, self.horizon)
            await drive_all(monitor, course, self.setup, done, self.cars)
            return
        async with arm.judge.opened() as judge:
            monitor = monitor_of(arm, judge, self.setup, self.horizon)
            await drive_all(monitor, course, self.setup, done, self.cars)


def drive_course(name: str, driving: Driving, arms: Sequence[Arm], course: Course) -> None:
    """Drive all arms of a course; the task of one process, which another call goes on with.

    Args:
        name: Of the task's log.
        driving: How.
        arms: Which.
        course: What.
    """
    log = DriveLog(driving.folder, name)
    for arm in arms:
        driving.drive(arm, course, log)
