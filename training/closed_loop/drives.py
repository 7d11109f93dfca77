"""One reckless drive in a simulator, step by step, and what is remembered of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.spec import Spec
from training.closed_loop.monitors import Choice
from training.closed_loop.sight import See, TrueSight, sight_of
from training.dataset.trackers import Tracking
from training.simulation.behaviours import SEQUENCE_KINDS, Behaviour, make_behaviour
from training.simulation.fleets import DEFAULT_FLEET
from training.simulation.simulator import HIGHWAY, MAX_STEPS, open_world
from training.simulation.worlds import World

RECKLESS = {"aggressive": 0.4, "bursts": 0.4, **dict.fromkeys(SEQUENCE_KINDS, 0.05)}
"""How often the driver has each behaviour."""


@dataclass(frozen=True)
class Setup:
    """What all drives of a comparison have in common.

    Attributes:
        spec: Of the states that monitors see.
        fleet: One of `fleets.FLEETS`; SUMO's is always mixed.
        tracking: By which trackers monitors see; None: all that they see is true.
    """

    spec: Spec = HIGHWAY
    fleet: str = DEFAULT_FLEET
    tracking: Tracking | None = None


@dataclass
class Outcome:
    """What is remembered of a drive; plain JSON by `vars`.

    Attributes:
        seed: Decided the road, the traffic and the driver.
        cause: Index into `CAUSES`, 0 while it goes on or if it was driven to its end.
        is_provoked: See `World`.
        speeds: After each step, m/s.
        rewards: Of each step.
        overridden: Number of steps.
        judged: Number of sequences the monitor asked about.
        unknown: How many of them got no verdict.
        round_trips_s: Of the monitor's requests.
    """

    seed: int
    cause: int = 0
    is_provoked: bool = False
    speeds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    overridden: int = 0
    judged: int = 0
    unknown: int = 0
    round_trips_s: list[float] = field(default_factory=list)


@dataclass
class Drive:
    """One episode on its way; only `drive_fleet` changes it.

    Attributes:
        seed: Decides the road, the traffic and the driver.
        environment: One of `simulator.ROADS`.
        behaviour: One of `RECKLESS`.
        world: The simulation; crashes are judged by what is true in it.
        driver: What the monitor watches; it sees what is true, and draws from a source of its own.
        see: What the monitor sees by.
        outcome: So far.
    """

    seed: int
    environment: str
    behaviour: str
    world: World
    driver: Behaviour
    see: See = field(default_factory=TrueSight)
    outcome: Outcome = field(init=False)

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.seed)

    @classmethod
    def start(cls, seed: int, environments: dict[str, float], setup: Setup | None = None) -> Drive:
        """Return the drive that a seed stands for.

        One on a road of SUMO ends the one before it in this process, see `SumoSimulation`.

        Args:
            seed: Of the drive.
            environments: Share of each road.
            setup: `Setup()` by default.

        Raises:
            ModuleNotFoundError: The simulator of its road is not installed.
        """
        setup = setup or Setup()
        environment, behaviour = draw_reckless(seed, environments)
        world = open_world(seed, environment, fleet=setup.fleet)
        # Spawned, so that its choices depend on the seed, not on what traffic has drawn.
        driver = make_behaviour(behaviour, world.rng.spawn(1)[0], world.pace)
        see = sight_of(world, setup.spec, setup.tracking, seed)
        return cls(seed, environment, behaviour, world, driver, see)

    @property
    def is_over(self) -> bool:
        """Whether it crashed, left the road, cannot go on, or time ran out."""
        world = self.world
        return bool(world.cause) or world.is_cut or len(self.outcome.speeds) >= MAX_STEPS

    def step(self, choice: Choice, row: int) -> None:
        """Do what the monitor chose for this car."""
        outcome = self.outcome
        reward, _ = self.world.step(choice.actions[row])
        if self.world.is_cut and outcome.speeds:
            return  # what came of the step is outside of what the road is known for
        outcome.cause, outcome.is_provoked = self.world.cause, self.world.is_provoked
        outcome.speeds.append(self.world.features[0])
        outcome.rewards.append(reward)
        outcome.overridden += int(choice.is_overridden[row])
        if choice.opinion is not None:
            outcome.judged += choice.opinion.verdict.shape[1]
            outcome.unknown += int(choice.opinion.is_unknown[row].sum())
            if len(choice.opinion.round_trip_s):
                outcome.round_trips_s.append(float(choice.opinion.round_trip_s[row]))


def draw_reckless(seed: int, environments: dict[str, float]) -> tuple[str, str]:
    """Return the environment and behaviour that a seed stands for.

    Args:
        seed: Of the drive.
        environments: Share of each environment; they need not sum to 1.
    """
    rng = np.random.default_rng([seed, 4])
    shares = np.array(list(environments.values()), np.float64)
    environment = str(rng.choice(list(environments), p=shares / shares.sum()))
    return environment, str(rng.choice(list(RECKLESS), p=list(RECKLESS.values())))
