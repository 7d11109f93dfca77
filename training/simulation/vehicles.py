"""Who moves in an episode: the ego that takes our actions, and the traffic around it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from highway_env.vehicle.behavior import IDMVehicle
from highway_env.vehicle.kinematics import Vehicle

from training.simulation.bicycle import DT_S, command
from training.simulation.fleets import CAR, Build
from training.simulation.roads import LaneIndex, heading_ahead, next_lane


@dataclass(frozen=True)
class Surprise:
    """A sudden manoeuvre of a driver: hard braking, or a lane change without looking.

    Attributes:
        start_s: When, from the start of the episode.
        brake_mps2: How hard it brakes; 0 for a lane change.
        choice: In [0, 1), picks the lane.
    """

    start_s: float
    brake_mps2: float
    choice: float


_LEAST_DISTANCE_M = 0.5
"""Of who is ahead, though his rectangle reaches back beyond; 0 would say that he is behind."""


class Sized(Vehicle):  # type: ignore[misc]
    """Somebody who has a size, and sees that others have.

    Attributes:
        build: What it is; its rectangle is `LENGTH` x `WIDTH`, as the library has it.
    """

    build: Build = CAR

    def become(self, build: Build) -> None:
        """Take on a kind and a size."""
        self.build = build
        self.LENGTH, self.WIDTH = build.length_m, build.width_m

    def lane_distance_to(self, other: Any, lane: Any = None) -> float:
        """Return the distance along a lane as if both were cars: from bumper to bumper plus 5 m.

        The library's drivers keep distances between centres that are meant for cars.
        """
        distance = float(super().lane_distance_to(other, lane))
        longer = float((self.LENGTH + other.LENGTH) / 2 - CAR.length_m)
        if distance <= 0:
            return distance
        return max(distance - longer, min(distance, _LEAST_DISTANCE_M))


class Ego(Sized):
    """The vehicle we drive: `drive` holds an action for the next step; a `behaviours.Car`."""

    lane_index: LaneIndex

    @property
    def length(self) -> float:
        """In m."""
        return float(self.LENGTH)

    @property
    def lane_now(self) -> LaneIndex:
        """The lane it is on; `lane` is highway-env's own."""
        return self.lane_index

    def follow(self, lane: LaneIndex, ahead_m: float) -> tuple[LaneIndex, float, float]:
        """See `behaviours.Car`."""
        network = self.road.network
        line = network.get_lane(lane)
        along, lateral = line.local_coordinates(self.position)
        # The second test: a half circle's longitudinal coordinate wraps around at its far end.
        if along > line.length or self.lane_index[0] == lane[1]:
            lane = next_lane(network, lane) or lane
            line = network.get_lane(lane)
            along, lateral = line.local_coordinates(self.position)
        return lane, lateral, heading_ahead(network, lane, along + ahead_m)

    def side_lanes(self, lane: LaneIndex) -> Sequence[LaneIndex]:
        """See `behaviours.Car`."""
        sides: list[LaneIndex] = self.road.network.side_lanes(lane)
        return sides

    def leaders(self, lanes: Iterable[LaneIndex]) -> Iterator[tuple[float, float]]:
        """See `behaviours.Car`."""
        for lane in lanes:
            ahead, _ = self.road.neighbour_vehicles(self, lane)
            if ahead is not None:
                reach = (self.LENGTH + ahead.LENGTH) / 2
                gap = max(float(np.linalg.norm(ahead.position - self.position)) - reach, 0.5)
                yield gap, self.speed - ahead.speed * math.cos(ahead.heading - self.heading)

    def limit(self, comfort: tuple[float, float], *, blind: bool) -> float:
        """See `behaviours.Car`; these roads have no signals, and bends fit their traffic."""
        del comfort, blind
        return math.inf

    def drive(self, action: np.ndarray[Any, Any]) -> None:
        """Hold an action [3] (steer, throttle, brake) for the next step."""
        acceleration, steering = command(action, self.speed, length=self.LENGTH)
        self.action = {"steering": float(steering), "acceleration": float(acceleration)}


class Traffic(Sized, IDMVehicle):  # type: ignore[misc]
    """A driver with its own temper, who may do something sudden once.

    Never reverses: IDM would, when stopped too close.
    """

    lane_index: LaneIndex
    clock_s = 0.0
    surprise: Surprise | None = None

    def act(self, action: Any = None) -> None:
        """Decide as IDM and MOBIL do, or do what is sudden; never reverse."""
        self.clock_s += DT_S
        sudden = self.surprise if self.surprised_within(SURPRISE_S) else None
        if sudden is not None and sudden.brake_mps2 == 0 and self.surprised_within(DT_S):
            sides = self.road.network.side_lanes(self.lane_index)
            if sides:
                self.target_lane_index = sides[int(sudden.choice * len(sides))]
        # MOBIL gives up a lane change that gets in someone's way; a sudden one looks at nobody.
        self.enable_lane_change = sudden is None
        super().act(action)
        acceleration = self.action["acceleration"]
        if sudden is not None and sudden.brake_mps2 > 0:
            acceleration = -sudden.brake_mps2
        self.action["acceleration"] = max(acceleration, -self.speed / DT_S)

    def surprised_within(self, seconds: float) -> bool:
        """Whether it began its sudden manoeuvre less than so long ago."""
        return self.surprise is not None and (0 <= self.clock_s - self.surprise.start_s < seconds)

    def on_state_update(self) -> None:
        """Find the lane among those a car can reach in one step: the same road and the next.

        The library searches every lane for every car, which takes most of the time of a step.
        """
        network = self.road.network
        start, end, _ = self.lane_index
        near = [(start, end, i) for i in range(len(network.graph[start][end]))]
        if network.get_lane(self.lane_index).after_end(self.position):
            for target, lanes in network.graph.get(end, {}).items():
                near += [(end, target, i) for i in range(len(lanes))]
        if len(near) == 1:
            return
        distances = [
            network.get_lane(index).distance_with_heading(self.position, self.heading)
            for index in near
        ]
        self.lane_index = near[int(np.argmin(distances))]
        self.lane = network.get_lane(self.lane_index)


SURPRISING_SHARE = 0.03
"""How many drivers have a sudden manoeuvre in store, unless someone asks for another share."""

SURPRISE_S = 1.5
"""How long a sudden manoeuvre lasts."""


class Parked(Sized):
    """A broken-down car.

    It stands where the merging lane ends, in place of the stock obstacle, which is no car and so
    would not be in the state.
    """


def place(
    kind: Any, road: Any, index: LaneIndex, longitudinal: float, speed: float, build: Build = CAR
) -> Any:
    """Put a vehicle of a class on a lane's centre, along the lane, and add it to the road."""
    vehicle = kind.make_on_lane(road, index, longitudinal, speed)
    vehicle.become(build)
    return add(road, vehicle)


def add(road: Any, vehicle: Any) -> Any:
    """Add somebody to the road."""
    vehicle.check_collisions = False  # the simulator looks for the ego's collisions itself
    road.vehicles.append(vehicle)
    return vehicle


def give_temper(driver: Any, rng: np.random.Generator, surprising_share: float) -> None:
    """Draw how a driver drives: pace, distance, strength of pedals, eagerness to change lane.

    Args:
        driver: Who.
        rng: Source of the draw.
        surprising_share: How likely it has a sudden manoeuvre in store.
    """
    driver.target_speed = max(driver.speed * rng.uniform(0.8, 1.25), 3.0)
    driver.TIME_WANTED = rng.uniform(0.7, 2.0)
    driver.DISTANCE_WANTED = rng.uniform(7.0, 10.0)
    driver.COMFORT_ACC_MAX = rng.uniform(1.5, 4.0)
    driver.COMFORT_ACC_MIN = -rng.uniform(3.0, 6.0)
    driver.DELTA = rng.uniform(3.5, 4.5)
    driver.POLITENESS = rng.choice([0.0, 0.3])
    restless = rng.random() < 0.25
    # A negative gain means: changes lane for no reason, whenever nobody behind must brake.
    driver.LANE_CHANGE_MIN_ACC_GAIN = -0.5 if restless else rng.uniform(0.1, 1.0)
    driver.LANE_CHANGE_DELAY = rng.uniform(0.8, 3.0)
    driver.timer = rng.uniform(0.0, driver.LANE_CHANGE_DELAY)
    if driver.build.is_heavy:
        _calm_down(driver, rng)
    if rng.random() < surprising_share:
        brakes = rng.random() < 0.5
        driver.surprise = Surprise(
            start_s=rng.uniform(0.3, 6.5),
            brake_mps2=rng.uniform(5.0, 8.0) if brakes else 0.0,
            choice=rng.random(),
        )


def _calm_down(driver: Any, rng: np.random.Generator) -> None:
    """Let a driver drive as a long vehicle allows: weaker pedals, more distance, fewer changes."""
    driver.target_speed = min(driver.target_speed, rng.uniform(20.0, 26.0))
    driver.TIME_WANTED *= rng.uniform(1.1, 1.5)
    driver.COMFORT_ACC_MAX *= rng.uniform(0.3, 0.6)
    driver.COMFORT_ACC_MIN *= rng.uniform(0.6, 0.9)
    driver.LANE_CHANGE_MIN_ACC_GAIN = rng.uniform(0.3, 1.5)
