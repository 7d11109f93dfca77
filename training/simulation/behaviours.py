"""Ways to drive the ego, from careful to reckless. Each turns what the ego sees into an action."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from training.simulation.bicycle import DT_S, FULL_BRAKE_MPS2, FULL_THROTTLE_MPS2, steering_limit
from training.simulation.fleets import LONG_M
from training.simulation.roads import wrap_angle

Action = NDArray[np.float32]

SEQUENCE_KINDS = ("white", "smooth", "bang_bang", "evasive")
"""Kinds of action sequences that planners try out; see `draw_sequence`."""

BEHAVIOURS = ("careful", "noisy", "aggressive", "bursts", *SEQUENCE_KINDS)
SHARES = (0.20, 0.04, 0.32, 0.18, 0.04, 0.08, 0.06, 0.08)
"""How often an episode has each behaviour."""


Lane = Hashable
"""Names a lane of a source's road."""


class Car(Protocol):
    """The ego as its driver knows it, in whatever source: own motion, lanes, who is ahead.

    Headings and laterals are in the simulators' world frame: y to the right of x.
    """

    @property
    def speed(self) -> float:
        """In m/s."""

    @property
    def heading(self) -> float:
        """In rad."""

    @property
    def length(self) -> float:
        """In m."""

    @property
    def lane_now(self) -> Lane:
        """The lane it is on."""

    def follow(self, lane: Lane, ahead_m: float) -> tuple[Lane, float, float]:
        """Return where the car is beside a lane.

        Args:
            lane: That it shall be on.
            ahead_m: How far ahead of the car the heading is asked for.

        Returns:
            The lane, or the next one if the car is at its end; m from its centre to the car; the
            lane's heading ahead.
        """

    def side_lanes(self, lane: Lane) -> Sequence[Lane]:
        """Return the lanes beside a lane."""

    def leaders(self, lanes: Iterable[Lane]) -> Iterable[tuple[float, float]]:
        """Yield who is ahead on lanes: the gap in m, and how fast it closes in m/s."""

    def limit(self, comfort: tuple[float, float], *, blind: bool) -> float:
        """Return the acceleration in m/s^2 that bends, signals and right of way allow.

        Args:
            comfort: Largest wanted (acceleration, deceleration), m/s^2.
            blind: Whether the driver looks at bends alone.
        """


class Behaviour(Protocol):
    """What drives the ego."""

    def action(self, ego: Car) -> Action:
        """Return the action [3] for the coming step."""


def as_action(ego: Car, steering: float, acceleration: float) -> Action:
    """Return the action that means a wheel angle in rad and an acceleration in m/s^2."""
    steer = steering / float(steering_limit(ego.speed, ego.length))
    throttle, brake = acceleration / FULL_THROTTLE_MPS2, -acceleration / FULL_BRAKE_MPS2
    return np.clip([steer, throttle, brake], [-1, 0, 0], [1, 1, 1]).astype(np.float32)


class LaneDriver:
    """Keeps a lane and a distance; the base of most behaviours.

    Args:
        rng: Source of its choices.
        cruise: Wanted speed, m/s.
        time_gap_s: Wanted time gap to the car ahead.
        comfort: Largest wanted (acceleration, deceleration), m/s^2.
        offset_m: Wanted lateral offset from the lane's centre.
        blind: Whether it ignores everyone.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        cruise: float,
        time_gap_s: float = 1.5,
        comfort: tuple[float, float] = (2.0, 4.0),
        offset_m: float = 0.0,
        blind: bool = False,
    ) -> None:
        self.rng = rng
        self.cruise = cruise
        self.time_gap_s = time_gap_s
        self.comfort = comfort
        self.offset_m = offset_m
        self.blind = blind
        self.target: Lane | None = None

    def steering(self, ego: Car) -> float:
        """Return the wheel angle that brings the ego to its lane, heading first.

        The lateral error becomes a heading, the heading error a turn rate, and the turn rate a
        wheel angle by inverting the bicycle.
        """
        speed = max(ego.speed, 1.0)
        wanted_lane = ego.lane_now if self.target is None else self.target
        self.target, lateral, wanted = ego.follow(wanted_lane, 0.1 * speed)
        back = math.atan2((self.offset_m - lateral) / 0.6, speed)
        rate = wrap_angle(wanted + min(max(back, -0.7), 0.7) - ego.heading) / 0.2
        slip = math.asin(min(max(ego.length / 2 * rate / speed, -0.95), 0.95))
        return math.atan(2 * math.tan(slip))

    def acceleration(self, ego: Car) -> float:
        """Return the acceleration of the Intelligent Driver Model (Treiber 2000)."""
        most, comfortable = self.comfort
        time_gap_s = self.time_gap_s
        if ego.length > LONG_M:  # heavy
            most, comfortable, time_gap_s = most / 2, comfortable * 0.7, time_gap_s * 1.3
        pace = (ego.speed / self.cruise) ** 4
        wanted = min(float(most * (1 - pace)), ego.limit((most, comfortable), blind=self.blind))
        if self.blind:
            return wanted
        for gap, closing in ego.leaders({ego.lane_now, self.target or ego.lane_now}):
            braking = ego.speed * closing / (2 * math.sqrt(most * comfortable))
            desired = 2.0 + max(ego.speed * time_gap_s + braking, 0.0)
            wanted = min(wanted, float(most * (1 - pace - (desired / gap) ** 2)))
        return wanted

    def action(self, ego: Car) -> Action:
        """Return the action [3] for the coming step."""
        return as_action(ego, self.steering(ego), self.acceleration(ego))


class NoisyDriver(LaneDriver):
    """A lane driver with shaky hands and feet (Ornstein-Uhlenbeck noise), off centre."""

    def __init__(self, rng: np.random.Generator, cruise: float) -> None:
        super().__init__(rng, cruise, rng.uniform(0.6, 1.8), offset_m=rng.normal(0, 0.6))
        self.scale = np.array([rng.uniform(0.02, 0.5), rng.uniform(0.1, 0.6)])
        self.keep = math.exp(-DT_S / rng.uniform(0.05, 0.8))
        self.noise = np.zeros(2)

    def action(self, ego: Car) -> Action:
        """Return the action [3] for the coming step."""
        fresh = self.rng.normal(size=2) * self.scale * math.sqrt(1 - self.keep**2)
        self.noise = self.keep * self.noise + fresh
        steering = self.steering(ego) + self.noise[0] * float(steering_limit(ego.speed, ego.length))
        return as_action(ego, steering, self.acceleration(ego) + 5 * self.noise[1])


class AggressiveDriver(LaneDriver):
    """Fast, close, and changes lane without looking, at times where there is no lane."""

    def __init__(self, rng: np.random.Generator, cruise: float) -> None:
        super().__init__(
            rng,
            cruise * rng.uniform(1.1, 1.6),
            time_gap_s=rng.uniform(0.1, 0.5),
            comfort=(rng.uniform(3.0, 5.0), rng.uniform(5.0, 8.0)),
            blind=bool(rng.random() < 0.6),
        )
        self.next_change = rng.uniform(0.2, 3.0)
        self.time_s = 0.0

    def action(self, ego: Car) -> Action:
        """Return the action [3] for the coming step."""
        self.time_s += DT_S
        if self.time_s >= self.next_change:
            self.next_change = self.time_s + self.rng.uniform(0.8, 3.0)
            self.offset_m = 0.0
            sides = ego.side_lanes(self.target or ego.lane_now)
            if self.rng.random() < 0.12:
                self.offset_m = self.rng.uniform(1.0, 3.5) * self.rng.choice([-1, 1])
            elif sides:
                self.target = sides[int(self.rng.integers(len(sides)))]
        return super().action(ego)


class BurstDriver(LaneDriver):
    """A lane driver that now and then does something rash for up to 1.5 s (throttle: 3 s)."""

    def __init__(self, rng: np.random.Generator, cruise: float) -> None:
        super().__init__(rng, cruise, rng.uniform(0.4, 1.2))
        self.wait = int(rng.integers(5, 50))
        self.left = 0
        self.kind = 0
        self.strength = 0.0

    def action(self, ego: Car) -> Action:
        """Return the action [3] for the coming step."""
        calm = super().action(ego)
        if self.left == 0:
            self.wait -= 1
            if self.wait > 0:
                return calm
            self.wait = int(self.rng.integers(8, 45))
            self.left = int(self.rng.integers(5, 30))
            self.kind = int(self.rng.integers(5))
            if self.kind == 1:
                self.left *= 2  # it takes a while to reach the car ahead
            self.strength = float(self.rng.uniform(0.2, 1.0) * self.rng.choice([-1, 1]))
        self.left -= 1
        return self._burst(calm)

    def _burst(self, calm: Action) -> Action:
        steer, throttle, brake = calm
        if self.kind == 0:
            steer = self.strength
        elif self.kind == 1:
            throttle, brake = 1.0, 0.0
        elif self.kind == 2:
            throttle, brake = 0.0, 1.0
        elif self.kind == 3:  # a swerve: one way, then the other
            steer = self.strength * math.sin(self.left * DT_S * 2 * math.pi)
        else:
            steer, throttle, brake = self.strength, 1.0, 0.0
        return np.array([steer, throttle, brake], dtype=np.float32)


def draw_sequence(kind: str, rng: np.random.Generator, steps: int) -> Action:
    """Return actions [steps, 3] as planners try them out, whatever the road is like.

    Args:
        kind: One of `SEQUENCE_KINDS`: "white" draws every step anew; "smooth" is an
            Ornstein-Uhlenbeck process; "bang_bang" holds extremes for 4 to 12 steps; "evasive"
            steers one way, then the other, with a pedal held.
        rng: Source of the draw.
        steps: Length.

    Raises:
        ValueError: No kind has that name.
    """
    if kind == "white":
        steer, pedal = rng.normal(size=(2, steps)) * [[rng.uniform(0.1, 0.8)], [0.6]]
    elif kind == "smooth":
        steer, pedal = _smooth_noise(rng, steps)
    elif kind == "bang_bang":
        steer, pedal = _held_extremes(rng, steps)
    elif kind == "evasive":
        steer, pedal = _swerve(rng, steps)
    else:
        raise ValueError(f"unknown kind {kind!r}; known: {list(SEQUENCE_KINDS)}")
    actions = np.stack([steer, pedal, -pedal], axis=1)
    return np.asarray(np.clip(actions, [-1, 0, 0], [1, 1, 1]), np.float32)


def _smooth_noise(rng: np.random.Generator, steps: int) -> NDArray[np.float64]:
    keep = math.exp(-DT_S / rng.uniform(0.3, 1.5))
    scale = np.array([rng.uniform(0.02, 0.3), 0.6])
    values = [rng.normal(size=2) * scale]
    for fresh in rng.normal(size=(steps - 1, 2)) * scale * math.sqrt(1 - keep**2):
        values.append(keep * values[-1] + fresh)
    return np.array(values).T


def _held_extremes(rng: np.random.Generator, steps: int) -> NDArray[np.float64]:
    strength = rng.uniform(0.2, 1.0)
    values: list[NDArray[np.float64]] = []
    while len(values) < steps:
        extreme = np.array([strength * rng.integers(-1, 2), rng.integers(-1, 2)], np.float64)
        values += [extreme] * int(rng.integers(4, 13))
    return np.array(values[:steps]).T


def _swerve(rng: np.random.Generator, steps: int) -> NDArray[np.float64]:
    strength = rng.uniform(0.2, 1.0) * rng.choice([-1, 1])
    there, back = rng.integers(4, 12, size=2)
    step = np.arange(steps)
    steer = np.where(step < there, strength, np.where(step < there + back, -strength, 0.0))
    pedal = np.full(steps, rng.choice([-1.0, -0.5, 0.0, 0.0, 0.5, 1.0]))
    return np.stack([steer, pedal])


class SequenceDriver(LaneDriver):
    """A lane driver that now and then executes a planner's sequence of one kind, eyes shut."""

    def __init__(self, rng: np.random.Generator, cruise: float, kind: str) -> None:
        super().__init__(rng, cruise, rng.uniform(0.4, 1.5))
        self.kind = kind
        self.wait = int(rng.integers(1, 30))
        self.sequence: list[Action] = []

    def action(self, ego: Car) -> Action:
        """Return the action [3] for the coming step."""
        if self.sequence:
            return self.sequence.pop()
        self.wait -= 1
        if self.wait <= 0:
            self.wait = int(self.rng.integers(1, 30))
            steps = int(self.rng.integers(16, 33))
            self.sequence = list(draw_sequence(self.kind, self.rng, steps)[::-1])
        return super().action(ego)


def make_behaviour(name: str, rng: np.random.Generator, cruise: float) -> Behaviour:
    """Return a freshly drawn driver.

    Args:
        name: One of `BEHAVIOURS`.
        rng: Source of its choices, from now on its own.
        cruise: Usual speed on this road, m/s.

    Raises:
        ValueError: No behaviour has that name.
    """
    if name == "careful":
        return LaneDriver(rng, cruise, rng.uniform(1.2, 2.0), offset_m=rng.normal(0, 0.15))
    if name == "noisy":
        return NoisyDriver(rng, cruise)
    if name == "aggressive":
        return AggressiveDriver(rng, cruise)
    if name == "bursts":
        return BurstDriver(rng, cruise)
    if name in SEQUENCE_KINDS:
        return SequenceDriver(rng, cruise, name)
    raise ValueError(f"unknown behaviour {name!r}; known: {list(BEHAVIOURS)}")
