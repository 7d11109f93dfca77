"""Who is on the road: kinds of road users, how often each is there, and how big it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from models.highway import VEHICLE_LENGTH_M, VEHICLE_WIDTH_M, highway_spec
from models.road_users import ROAD_USERS, road_users_spec
from models.spec import Spec

KINDS = tuple(user.kind for user in ROAD_USERS)
"""Kinds by their numbers in recordings."""

CARS, MIXED = "cars", "mixed"
FLEETS = (CARS, MIXED)
"""Only cars of 5 x 2 m, or all kinds with sizes of their own."""

DEFAULT_FLEET = CARS
"""What highway-env drives unless someone asks; with SUMO the fleet is mixed."""

TRAFFIC_SHARES = {
    "car": 0.55,
    "van": 0.11,
    "truck": 0.10,
    "truck with trailer": 0.08,
    "bus": 0.07,
    "motorcycle": 0.09,
}
EGO_SHARES = {"car": 0.62, "van": 0.12, "bus": 0.13, "truck": 0.13}
"""How often a vehicle of a mixed fleet is of a kind."""

LONG_M = 6.5
"""Longer vehicles are heavy: they accelerate and brake less, and keep more distance."""

TIGHT_ROADS = ("racetrack", "roundabout")
TIGHT_LENGTH_M = 12.0
"""On roads with narrow bends nobody is longer: as one straight rectangle it would fill two."""


class Build(NamedTuple):
    """What somebody is.

    Attributes:
        kind: Index into `KINDS`.
        length_m: Of its rectangle.
        width_m: Of its rectangle.
    """

    kind: int
    length_m: float
    width_m: float

    @property
    def is_heavy(self) -> bool:
        """Whether it is a long vehicle."""
        return self.length_m > LONG_M


CAR = Build(KINDS.index("car"), VEHICLE_LENGTH_M, VEHICLE_WIDTH_M)
"""Everybody of the fleet `cars`."""


def check_fleet(fleet: str) -> None:
    """Refuse a fleet that is none.

    Raises:
        ValueError: No fleet has that name.
    """
    if fleet not in FLEETS:
        raise ValueError(f"unknown fleet {fleet!r}; known: {list(FLEETS)}")


def spec_of(fleet: str) -> Spec:
    """Return the spec of states that say all of a fleet that a model needs to know."""
    return road_users_spec() if fleet == MIXED else highway_spec()


def draw_build(
    rng: np.random.Generator, shares: dict[str, float], longest_m: float = np.inf
) -> Build:
    """Draw a road user.

    Args:
        rng: Source of the draw.
        shares: How often it is of a kind; they need not sum to 1.
        longest_m: Kinds that are never so short are left out, others are no longer.
    """
    fitting = {kind: share for kind, share in shares.items() if _user(kind)[0][0] <= longest_m}
    weights = np.array([*fitting.values()])
    kind = str(rng.choice([*fitting], p=weights / weights.sum()))
    (shortest, most), width = _user(kind)
    length = float(rng.uniform(shortest, min(most, longest_m)))
    return Build(KINDS.index(kind), length, float(rng.uniform(*width)))


def _user(kind: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the lengths and widths of a kind."""
    user = ROAD_USERS[KINDS.index(kind)]
    return user.length_m, user.width_m
