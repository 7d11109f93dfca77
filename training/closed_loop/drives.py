"""One reckless drive in the simulator, step by step, and what is remembered of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from training.closed_loop.monitors import Choice
from training.simulation.behaviours import SEQUENCE_KINDS, Behaviour, make_behaviour
from training.simulation.simulator import MAX_STEPS, Simulation

RECKLESS = {"aggressive": 0.4, "bursts": 0.4, **dict.fromkeys(SEQUENCE_KINDS, 0.05)}
"""How often the driver has each behaviour."""


@dataclass
class Drive:
    """One episode on its way; only `drive_fleet` changes it.

    Attributes:
        seed: Decides the road, the traffic and the driver.
        environment: One of `roads.ENVIRONMENTS`.
        behaviour: One of `RECKLESS`.
        world: The simulation.
        driver: What the monitor watches; it draws from a source of its own.
        speeds: After each step, m/s.
        rewards: Of each step.
        overridden: Number of steps.
        judged: Number of sequences the monitor asked about.
        unknown: How many of them got no verdict.
        round_trips_s: Of the monitor's requests.
    """

    seed: int
    environment: str
    behaviour: str
    world: Simulation
    driver: Behaviour
    speeds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    overridden: int = 0
    judged: int = 0
    unknown: int = 0
    round_trips_s: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, seed: int, environments: dict[str, float]) -> Drive:
        """Return the drive that a seed stands for."""
        environment, behaviour = draw_reckless(seed, environments)
        world = Simulation(seed, environment)
        # Spawned, so that its choices depend on the seed, not on what traffic has drawn.
        driver = make_behaviour(behaviour, world.rng.spawn(1)[0], world.pace)
        return cls(seed, environment, behaviour, world, driver)

    @property
    def is_over(self) -> bool:
        """Whether it crashed, left the road, or time ran out."""
        return bool(self.world.cause) or len(self.speeds) >= MAX_STEPS

    def step(self, choice: Choice, row: int) -> None:
        """Do what the monitor chose for this car."""
        reward, _ = self.world.step(choice.actions[row])
        self.speeds.append(self.world.features[0])
        self.rewards.append(reward)
        self.overridden += int(choice.is_overridden[row])
        if choice.opinion is not None:
            self.judged += choice.opinion.verdict.shape[1]
            self.unknown += int(choice.opinion.is_unknown[row].sum())
            if len(choice.opinion.round_trip_s):
                self.round_trips_s.append(float(choice.opinion.round_trip_s[row]))


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
