"""Road users in SUMO: what they are, how they drive, what they have in store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from training.simulation.fleets import KINDS, draw_build
from training.simulation.sumo.networks import Attributes

PEDESTRIAN, BICYCLE = KINDS.index("pedestrian"), KINDS.index("bicycle")

EGO = "ego"
"""Its name in SUMO."""

EGO_FLEET = {
    "car": 0.6,
    "van": 0.1,
    "truck": 0.1,
    "truck with trailer": 0.08,
    "bus": 0.06,
    "motorcycle": 0.06,
}

_RASH_SHARE = 0.2


class Driving(NamedTuple):
    """How a kind drives in SUMO.

    Attributes:
        role: SUMO's vehicle class.
        accel: Largest acceleration (low, high), m/s^2.
        decel: Largest comfortable deceleration (low, high), m/s^2.
        top: Largest speed (low, high), m/s.
        align: Where in its lane it drives.
    """

    role: str
    accel: tuple[float, float]
    decel: tuple[float, float]
    top: tuple[float, float]
    align: tuple[str, ...] = ("center", "center", "nice", "arbitrary")


DRIVING = {
    "bicycle": Driving("bicycle", (0.8, 1.5), (2, 4), (3.5, 8), ("right", "right", "arbitrary")),
    "motorcycle": Driving("motorcycle", (2.5, 5), (4, 7), (25, 45), ("arbitrary", "center")),
    "car": Driving("passenger", (1.5, 3.5), (3, 6), (25, 50)),
    "van": Driving("delivery", (1.2, 2.8), (3, 5.5), (25, 42)),
    "bus": Driving("bus", (0.8, 1.5), (2.5, 4.5), (22, 28)),
    "truck": Driving("truck", (0.8, 1.6), (2.5, 4.5), (22, 28)),
    "truck with trailer": Driving("trailer", (0.5, 1.2), (2.5, 4.5), (22, 27)),
}


@dataclass(frozen=True)
class Lapse:
    """Something sudden that a road user does once.

    Attributes:
        kind: "brake", "swerve" (a lane change without looking), "distraction" (holds its speed
            whatever is ahead), or, of a pedestrian, "dash" across the road.
        start_s: When, from the start of the episode; of a dash, how much sooner than the ego's
            arrival it begins than would be needed to meet.
        duration_s: How long.
        strength: Deceleration of braking, m/s^2; speed of a dash, m/s.
        choice: In [0, 1), picks the side.
    """

    kind: str
    start_s: float
    duration_s: float
    strength: float
    choice: float

    def is_on(self, time_s: float) -> bool:
        """Whether it goes on at a time."""
        return 0 <= time_s - self.start_s < self.duration_s


@dataclass(frozen=True)
class User:
    """A road user of an episode.

    Attributes:
        name: In SUMO.
        kind: Index into `KINDS`.
        length: m.
        width: m.
        lapse: Or None.
    """

    name: str
    kind: int
    length: float
    width: float
    lapse: Lapse | None = None

    @property
    def driving(self) -> Driving:
        """How its kind drives; pedestrians do not."""
        return DRIVING[KINDS[self.kind]]


def draw_user(name: str, shares: Mapping[str, float], rng: np.random.Generator) -> User:
    """Draw what somebody is, and how big.

    Args:
        name: In SUMO.
        shares: How often it is of a kind; they need not sum to 1.
        rng: Source of the draw.
    """
    build = draw_build(rng, dict(shares))
    return User(name, build.kind, round(build.length_m, 3), round(build.width_m, 3))


def draw_temper(user: User, rng: np.random.Generator, factor: float) -> Attributes:
    """Draw how somebody drives: distance, imperfection, attention, manners, as SUMO's attributes.

    Args:
        user: Who.
        rng: Source of the draw.
        factor: By how much he is faster than allowed.
    """
    is_rash = rng.random() < _RASH_SHARE
    numbers = {
        "sigma": rng.uniform(0.0, 0.9),
        "tau": rng.uniform(0.4, 0.9) if is_rash else rng.uniform(0.8, 1.9),
        "minGap": rng.uniform(0.8, 3.0),
        "minGapLat": rng.uniform(0.1, 0.6),
        "maxSpeedLat": rng.uniform(0.6, 2.0),
        "lcSigma": rng.uniform(0.0, 0.2),
        "lcSpeedGain": rng.uniform(0.3, 3.0),
        "lcAssertive": rng.uniform(1.0, 3.0) if is_rash else 1.0,
        "lcKeepRight": rng.uniform(0.0, 1.0),
        "speedFactor": factor,
        "speedDev": 0.0,
        "impatience": rng.uniform(0.0, 1.0),
        "jmIgnoreFoeProb": 0.3 if is_rash else 0.0,
        "jmIgnoreFoeSpeed": 15.0 if is_rash else 0.0,
        # An inattentive driver looks up once in a while only.
        "actionStepLength": float(rng.choice([0.05, 0.25, 0.5, 1.0], p=[0.4, 0.3, 0.2, 0.1])),
    }
    return {**rounded(numbers), "latAlignment": str(rng.choice(user.driving.align))}


def with_lapse(user: User, rng: np.random.Generator, share: float) -> User:
    """Return a driver who has a lapse in store, in a share of all cases."""
    chance, choice = rng.random(2)
    kind = str(rng.choice(["brake", "swerve", "distraction"]))
    duration_s = rng.uniform(1.5, 4.0) if kind == "distraction" else 1.5
    lapse = Lapse(kind, rng.uniform(0.3, 6.0), duration_s, rng.uniform(5.0, 8.0), float(choice))
    return replace(user, lapse=lapse) if chance < share else user


def with_dash(user: User, rng: np.random.Generator, share: float) -> User:
    """Return a pedestrian who will run across the road, in a share of all cases."""
    lapse = Lapse("dash", rng.uniform(0.5, 2.5), 60.0, rng.uniform(1.0, 3.5), rng.random())
    return replace(user, lapse=lapse) if rng.random() < share else user


def rounded(values: Mapping[str, float]) -> Attributes:
    """Return numbers with as many digits as matter to SUMO."""
    return {name: round(value, 4) for name, value in values.items()}
