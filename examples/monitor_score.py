"""Score the safety monitor in the simulator, beside a naive one and none.

    world-model serve &
    python -m examples.monitor_score --out runs/monitor.json --page docs/monitoring.md

All arms of a part drive the same roads in the same traffic, and simulated time stands still while
a monitor waits. Plans are the driver's action of the moment, held for the horizon.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from examples.driving import write_document
from examples.monitor import (
    Decision,
    Judgement,
    ask,
    brake_in_lane,
    decide,
    served,
)
from examples.scene import fleet_of, sight_of
from examples.spec import HIGHWAY
from models.spec import Spec
from training.closed_loop.arms import CARS_AT_ONCE, drive_fleet
from training.closed_loop.comparison import FIRST_SEED, TRAINED_ROADS
from training.closed_loop.drives import Drive, Outcome, draw_reckless
from training.closed_loop.manoeuvres import hold
from training.closed_loop.monitors import Choice, Monitor, NoMonitor, Opinion
from training.closed_loop.results import NO_MONITOR, compare_arms
from training.dataset.windows import UNSEEN_ENVIRONMENT
from training.evaluation.report import rounded
from training.evaluation.tables import number, ranged, table
from training.running.files import replace_between
from training.simulation.behaviours import LaneDriver, make_behaviour
from training.simulation.simulator import Simulation
from training.simulation.vehicles import Traffic, place
from world_model_client import AsyncClient

START = "<!-- results: written by `python -m examples.monitor_score` -->"
END = "<!-- end of results -->"

NAIVE, MONITOR, NO_STOPPING_CHECK = "naive", "monitor", "monitor without the stopping check"
SILENT = "service silent 1 s in 5: "
SILENCE_STEPS, CYCLE_STEPS = 20, 100

QUEUE_MPS, QUEUE_AHEAD_S = 6.0, 4.0

PATIENCE_S = 60.0
"""Longest wait for an answer: the simulator's clock waits too."""

Floats = NDArray[np.floating[Any]]


@dataclass
class Outage:
    """Says when the service is silent: never, or at the end of each cycle.

    Attributes:
        steps: Silent ones of each `CYCLE_STEPS`.
        passed: Steps so far; only `is_now` changes it.
    """

    steps: int = 0
    passed: int = 0

    def is_now(self) -> bool:
        """Tell whether this step is silent; called once a step."""
        self.passed += 1
        return (self.passed - 1) % CYCLE_STEPS >= CYCLE_STEPS - self.steps


@dataclass
class Naive:
    """Brakes fully in the lane if the plan alone is `unsafe`; all else is fine.

    Attributes:
        client: Of the service.
        horizon: Steps of a plan.
        spec: Of the states.
        outage: When the service is silent.
    """

    client: AsyncClient
    horizon: int
    spec: Spec = HIGHWAY
    outage: Outage = field(default_factory=Outage)

    async def choose(self, states: Floats, wanted: Floats) -> Choice:
        """Decide for N cars."""
        if self.outage.is_now():
            return Choice(wanted, np.zeros(len(wanted), bool), None)
        calls = (
            self.client.safety_check(state, plan, timeout_s=PATIENCE_S)
            for state, plan in zip(states, hold(wanted, self.horizon), strict=True)
        )
        verdicts = np.array([[answer["verdict"]] for answer in await asyncio.gather(*calls)])
        is_unsafe = verdicts[:, 0] == "unsafe"
        brake = np.stack([brake_in_lane(state, 1, self.spec)[0] for state in states])
        actions = np.where(is_unsafe[:, None], brake, wanted)
        return Choice(actions, is_unsafe, Opinion(verdicts, np.zeros(verdicts.shape), np.empty(0)))


@dataclass
class Watched:
    """The monitor of `examples.monitor`, for N cars.

    Attributes:
        client: Of the service.
        horizon: Steps of a plan.
        spec: Of the states.
        outage: When the service is silent.
        checks_stopping: Whether it looks beyond the horizon.
    """

    client: AsyncClient
    horizon: int
    spec: Spec = HIGHWAY
    outage: Outage = field(default_factory=Outage)
    checks_stopping: bool = True

    async def choose(self, states: Floats, wanted: Floats) -> Choice:
        """Decide for N cars.

        Raises:
            ConnectionError: The service gives no answer.
        """
        plans = hold(wanted, self.horizon)
        cars = list(zip(np.asarray(states, np.float64), plans, strict=True))
        if self.outage.is_now():
            return _choice([decide(*car, None, self.spec) for car in cars], None)
        started = time.perf_counter()
        calls = (ask(self.client, *car, PATIENCE_S, self.spec) for car in cars)
        answers = await asyncio.gather(*calls)
        took = np.full(len(cars), time.perf_counter() - started)
        judged = [self._seen(answer) for answer in answers if answer is not None]
        if len(judged) < len(cars):
            raise ConnectionError("the service gives no answer: see the log")
        decisions = [decide(*car, x, self.spec) for car, x in zip(cars, judged, strict=True)]
        verdicts = np.array([[x.verdict for x in row] for row in judged])
        risks = np.array([[x.risk for x in row] for row in judged])
        return _choice(decisions, Opinion(verdicts, risks, took))

    def _seen(self, judgements: Sequence[Judgement]) -> Sequence[Judgement]:
        if self.checks_stopping:
            return judgements
        # On an empty road one can always stop.
        return [replace(x, trajectory=np.zeros_like(x.trajectory)) for x in judgements]


def _choice(decisions: Sequence[Decision], opinion: Opinion | None) -> Choice:
    actions = np.stack([x.actions[0] for x in decisions])
    return Choice(actions, np.array([x.is_alarm for x in decisions]), opinion)


def drive_of(seed: int, environment: str, behaviour: str, spec: Spec) -> Drive:
    """Return a drive in the traffic that a model knows, seen as a planner's program sees it."""
    world = Simulation(seed, environment, fleet=fleet_of(spec))
    driver = make_behaviour(behaviour, world.rng.spawn(1)[0], world.pace)
    return Drive(seed, environment, behaviour, world, driver, sight_of(spec))


def reckless(seed: int, spec: Spec = HIGHWAY) -> Drive:
    """Return the drive of a reckless driver on one of the trained roads."""
    return drive_of(seed, *draw_reckless(seed, TRAINED_ROADS), spec)


def reckless_elsewhere(seed: int, spec: Spec = HIGHWAY) -> Drive:
    """Return the drive of a reckless driver on the road that was never trained on."""
    return drive_of(seed, *draw_reckless(seed, {UNSEEN_ENVIRONMENT: 1.0}), spec)


def careful(seed: int, spec: Spec = HIGHWAY) -> Drive:
    """Return the drive of a careful driver on one of the trained roads."""
    return drive_of(seed, draw_reckless(seed, TRAINED_ROADS)[0], "careful", spec)


def into_queue(seed: int, spec: Spec = HIGHWAY) -> Drive:
    """Return the drive of a driver who does not see a slow car ahead in every lane."""
    world = Simulation(seed, "highway", surprising_share=0.0, fleet=fleet_of(spec))
    road, (start, end, _) = world.road, world.ego.lane_index
    along, _ = road.network.get_lane(world.ego.lane_index).local_coordinates(world.ego.position)
    along += QUEUE_AHEAD_S * world.ego.speed
    road.vehicles = [world.ego]
    for lane in range(len(road.network.graph[start][end])):
        place(Traffic, road, (start, end, lane), along, QUEUE_MPS)
    world.others = road.vehicles[1:]
    world.poses = np.array([[*car.position, car.heading, car.speed] for car in road.vehicles])
    world.poses_before = world.poses
    builds = [car.build for car in road.vehicles]
    world.sizes = np.array([[build.length_m, build.width_m] for build in builds])
    world.kinds = np.array([build.kind for build in builds])
    world.present = np.ones(len(builds), np.bool_)
    driver = LaneDriver(world.rng.spawn(1)[0], world.pace, blind=True)
    return Drive(seed, "highway", "blind", world, driver, sight_of(spec))


@dataclass(frozen=True)
class Part:
    """Drives that arms are compared on.

    Attributes:
        title: For the table.
        start: Returns the drive that a seed stands for, in the traffic that a spec knows.
        share: Of the number of drives that was asked for.
        arms: Names of what `arms_of` returns; `NO_MONITOR` is always driven.
    """

    title: str
    start: Callable[[int, Spec], Drive]
    share: float
    arms: tuple[str, ...]


PARTS = (
    Part(
        "Reckless drivers on trained roads",
        reckless,
        1.0,
        (NAIVE, NO_STOPPING_CHECK, MONITOR, SILENT + NAIVE, SILENT + MONITOR),
    ),
    Part(
        f"A driver who does not see the end of a queue: on the highway, {QUEUE_AHEAD_S:g} s ahead, "
        f"a car at {QUEUE_MPS:g} m/s in every lane",
        into_queue,
        0.5,
        (NAIVE, NO_STOPPING_CHECK, MONITOR),
    ),
    Part(
        "Reckless drivers on a road that was never trained on (roundabout)",
        reckless_elsewhere,
        0.5,
        (NAIVE, MONITOR),
    ),
    Part(
        "Careful drivers on trained roads: what alarms cost where few are needed",
        careful,
        0.5,
        (NAIVE, MONITOR),
    ),
)


def arms_of(client: AsyncClient, spec: Spec, horizon: int) -> dict[str, Monitor]:
    """Return fresh monitors by name."""
    return {
        NO_MONITOR: NoMonitor(),
        NAIVE: Naive(client, horizon, spec),
        NO_STOPPING_CHECK: Watched(client, horizon, spec, checks_stopping=False),
        MONITOR: Watched(client, horizon, spec),
        SILENT + NAIVE: Naive(client, horizon, spec, Outage(SILENCE_STEPS)),
        SILENT + MONITOR: Watched(client, horizon, spec, Outage(SILENCE_STEPS)),
    }


async def score_part(
    client: AsyncClient, spec: Spec, horizon: int, part: Part, seeds: range
) -> dict[str, Any]:
    """Drive all arms of a part; return what `compare_arms` does, by arm.

    Args:
        client: Of the service.
        spec: Of its model.
        horizon: Steps of a plan.
        part: What to drive.
        seeds: One a drive.

    Raises:
        WorldModelError: The service refused or failed.
        ConnectionError: It gave no answer.
    """
    made = arms_of(client, spec, horizon)
    names = (NO_MONITOR, *part.arms)
    with tqdm(total=len(names) * len(seeds), desc=part.title, unit="drive") as bar:

        def start(seed: int) -> Drive:
            return part.start(seed, spec)

        async def drive_arm(name: str) -> list[Outcome]:
            done: list[Outcome] = []

            def note(drive: Drive) -> None:
                done.append(drive.outcome)
                bar.update()

            # One fleet an arm: only so does each step of an outage meet the same cars again.
            await drive_fleet(made[name], seeds, start, CARS_AT_ONCE, note)
            return sorted(done, key=lambda outcome: outcome.seed)

        # At once: while one arm waits for the service, another is simulated.
        drives = await asyncio.gather(*(drive_arm(name) for name in names))
    return compare_arms(dict(zip(names, drives, strict=True)))


async def score(url: str, drives: int, first_seed: int) -> dict[str, Any]:
    """Drive all parts against the service; return plain JSON.

    Raises:
        ValueError: The model is not one that the monitor reads.
        WorldModelError: The service refused or failed.
        ConnectionError: It gave no answer.
    """
    async with AsyncClient(url, timeout_s=2 * PATIENCE_S) as client:
        spec, horizon = await served(client)
        model = await client.model()
        started, parts = time.perf_counter(), {}
        for part in PARTS:
            seeds = range(first_seed, first_seed + max(1, round(part.share * drives)))
            parts[part.title] = await score_part(client, spec, horizon, part, seeds)
    return {
        "model_version": model["version"],
        "fleet": fleet_of(spec),
        "first_seed": first_seed,
        "horizon": horizon,
        "seconds": time.perf_counter() - started,
        "parts": rounded(parts),
    }


def section(document: Mapping[str, Any]) -> str:
    """Return what `score` returned as Markdown."""
    tables = [f"{title}:\n\n{_table(arms)}" for title, arms in document["parts"].items()]
    return (
        "\n".join(tables)
        + f"\nModel {document['model_version']}. Drives of at most 7 s with seeds from "
        f"{document['first_seed']} on, the same for all arms of a table. Brackets: 95 % intervals, "
        "Wilson's for the terminated share, else by bootstrap over drives.\n"
    )


def _table(arms: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            ranged(x["terminated"], x["terminated_interval"], 3),
            f"{number(x['crash'])} / {number(x['off_road'])}",
            ranged(x["prevented"], x["prevented_interval"], 2),
            ranged(x["speed_kept"], x["speed_kept_interval"], 2),
            f"{100 * x['overridden']:.1f} %",
            number(x["reward_per_episode"], 1),
            "-" if x["unknown"] is None else f"{100 * x['unknown']:.2f} %",
        ]
        for name, x in arms.items()
    ]
    header = (
        f"{arms[NO_MONITOR]['episodes']} drives",
        "terminated",
        "crash / off the road",
        "prevented",
        "speed kept",
        "steps with an alarm",
        "reward",
        "answers unknown",
    )
    return table(header, rows)


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The service.")
@click.option("--drives", default=60, show_default=True, type=click.IntRange(min=1))
@click.option("--first-seed", default=FIRST_SEED, show_default=True, help="Of the drives.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Write JSON here.")
@click.option(
    "--page",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Put the tables between the markers of this page.",
)
def main(url: str, drives: int, first_seed: int, out: Path, page: Path | None) -> None:
    """Drive with the monitor, with a naive one and with none, and write how it went."""
    document = asyncio.run(score(url, drives, first_seed))
    write_document(out, document)
    text = section(document)
    if page is not None:
        replace_between(page, START, END, f"\n{text}\n")
    click.echo(text)


if __name__ == "__main__":
    main()
