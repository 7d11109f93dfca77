"""Cyclists and pedestrians: they move along lines of their own, and look at nobody."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.simulation.bicycle import DT_S
from training.simulation.fleets import draw_build
from training.simulation.roads import LaneIndex, edges, next_lane, wrap_angle
from training.simulation.vehicles import SURPRISE_S, Sized, Surprise

CYCLIST_SHARE = 0.45
FASTEST_PACE_MPS = 17.0
"""Where traffic is faster nobody walks or cycles."""

_SWING_M = 1.2
"""How far a cyclist swings out who does something sudden."""


class Walker(Sized):
    """Somebody whose way is fixed from the start.

    Attributes:
        clock_s: Since the start of the episode.
        surprise: What it does of a sudden: a pedestrian steps off, a cyclist swings out.
        target_speed: Its usual speed, for drivers who ask what would slow it down.
    """

    clock_s = 0.0
    surprise: Surprise | None = None
    target_speed = 0.0

    def act(self, action: Any = None) -> None:
        """Decide nothing."""

    def surprised_within(self, seconds: float) -> bool:
        """Whether it began to do something sudden less than so long ago."""
        return self.surprise is not None and (0 <= self.clock_s - self.surprise.start_s < seconds)


class Cyclist(Walker):
    """Rides along a lane, at a distance from its centre that a swing may change.

    Attributes:
        index: Of its lane.
        along: m from the lane's start.
        offset_m: To the right of the lane's centre.
    """

    index: LaneIndex
    along: float
    offset_m: float

    def step(self, dt: float) -> None:
        """Move on."""
        self.clock_s += dt
        network = self.road.network
        lane = network.get_lane(self.index)
        self.along += self.speed * dt
        following = next_lane(network, self.index)
        if self.along > lane.length and following is not None:
            self.along -= lane.length
            self.index, lane = following, network.get_lane(following)
        aside = 0.0
        if self.surprised_within(SURPRISE_S):
            aside = -_SWING_M * dt / SURPRISE_S
            self.offset_m += aside
        self.position = lane.position(self.along, self.offset_m)
        turn = math.atan2(aside, max(self.speed * dt, 1e-6))
        # Lanes of a ring count full turns each in their own way.
        self.heading += wrap_angle(float(lane.heading_at(self.along)) + turn - self.heading)


class Pedestrian(Walker):
    """Stands until it starts to walk straight on."""

    position: NDArray[np.float64]

    def step(self, dt: float) -> None:
        """Move on, or stand."""
        self.clock_s += dt
        if self.surprise is not None and self.clock_s >= self.surprise.start_s:
            self.speed = self.target_speed
        ahead = np.array([math.cos(self.heading), math.sin(self.heading)])
        self.position = self.position + self.speed * dt * ahead


def draw_cyclist(road: Any, index: LaneIndex, along: float, rng: np.random.Generator) -> Cyclist:
    """Return a cyclist near the right edge of a lane; the caller adds it to the road."""
    lane = road.network.get_lane(index)
    offset = float(lane.width_at(along)) / 2 - rng.uniform(0.4, 1.2)
    speed = rng.uniform(3.0, 7.5)
    position, heading = lane.position(along, offset), float(lane.heading_at(along))
    cyclist = Cyclist(road, position, heading, speed)
    cyclist.index, cyclist.along, cyclist.offset_m = index, along, offset
    cyclist.target_speed = speed
    cyclist.become(draw_build(rng, {"bicycle": 1.0}))
    if rng.random() < 0.1:
        cyclist.surprise = Surprise(rng.uniform(0.3, 6.5), 0.0, 0.0)
    return cyclist


def draw_pedestrian(
    road: Any, index: LaneIndex, along: float, rng: np.random.Generator
) -> Pedestrian:
    """Return a pedestrian who crosses, stands on the road, or walks beside it.

    Args:
        road: The caller adds it there.
        index: Of a lane of the road that it crosses.
        along: Where, m from the lane's start.
        rng: Source of the draw.
    """
    lane = road.network.get_lane(index)
    left, right = edges(road.network, index, lane.position(along, 0))
    heading, pace = float(lane.heading_at(along)), float(rng.uniform(0.8, 2.5))
    what, beyond, side = rng.random(), rng.uniform(0.2, 1.5), rng.choice([-1, 1])
    aside = right + beyond if side > 0 else -left - beyond
    start_s = math.inf
    if what < 0.6:  # crosses, from the right to the left or the other way
        heading -= side * math.pi / 2
        start_s = rng.uniform(0.0, 4.0)
    elif what < 0.75:  # stands on the road
        aside = rng.uniform(-left, right)
        heading = rng.uniform(-math.pi, math.pi)
    else:  # walks beside it, with or against the traffic
        heading += math.pi * rng.integers(2)
        start_s = -DT_S
    pedestrian = Pedestrian(road, lane.position(along, aside), heading, 0.0)
    pedestrian.become(draw_build(rng, {"pedestrian": 1.0}))
    if start_s < math.inf:
        pedestrian.target_speed = pace
        pedestrian.speed = 0.0 if start_s > 0 else pace
        pedestrian.surprise = Surprise(start_s, 0.0, 0.0)
    return pedestrian
