"""Named ways in which a state can be wrong, to see whether a model notices.

Some leave a state that other traffic could really be in: one state alone cannot show those. They
are here too, marked `plausible`, as what is not to be expected of any detector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.dataset.features import EGO_COUNT
from training.evaluation.baselines import slots_of

States = NDArray[np.float32]
Change = Callable[[States, States, np.random.Generator], None]

SPEED, OFFSET, SIN_ERROR, LEFT, RIGHT, CURVATURE = range(6)
PRESENCE, DX, DY, HEADING, SLOT_SPEED, ACCELERATION, YAW_RATE = range(7)
_FEET = 1 / 0.3048
_G_MPS2 = 9.80665


@dataclass(frozen=True)
class Corruption:
    """One way to be wrong.

    Attributes:
        name: For the report.
        change: Writes into states [N, S] and their slots [N, 4, 7], a view of the same numbers,
            given a source of randomness.
        plausible: Whether the result may be a real state of other traffic.
    """

    name: str
    change: Change
    plausible: bool = False

    def apply(self, states: States, seed: int = 0) -> States:
        """Return states [N, S] made wrong; `seed` decides what is random."""
        wrong = np.array(states, np.float32, order="C")
        self.change(wrong, slots_of(wrong), np.random.default_rng(seed))
        return wrong


CORRUPTIONS: list[Corruption] = []
"""All of them, filled below."""


def _named(name: str, *, plausible: bool = False) -> Callable[[Change], Change]:
    def register(change: Change) -> Change:
        CORRUPTIONS.append(Corruption(name, change, plausible))
        return change

    return register


# What follows is the list itself: one function a corruption, in the order of the report.
# Features in the wrong places.


@_named("features in reversed order")
def _reversed(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:] = states[:, ::-1].copy()


@_named("features shifted by one")
def _shifted(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:] = np.roll(states, 1, axis=1)


@_named("features shuffled")
def _shuffled(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:] = states[:, rng.permutation(states.shape[1])]


@_named("speed and lane offset swapped")
def _speed_for_offset(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:, [SPEED, OFFSET]] = states[:, [OFFSET, SPEED]]


@_named("dx and dy swapped")
def _dx_for_dy(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., [DX, DY]] = slots[..., [DY, DX]]


@_named("heading and speed swapped")
def _heading_for_speed(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., [HEADING, SLOT_SPEED]] = slots[..., [SLOT_SPEED, HEADING]]


@_named("acceleration and speed swapped")
def _acceleration_for_speed(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., [ACCELERATION, SLOT_SPEED]] = slots[..., [SLOT_SPEED, ACCELERATION]]


# Units.


@_named("all speeds in km/h")
def _kmh(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:, SPEED] *= 3.6
    slots[..., SLOT_SPEED] *= 3.6


@_named("neighbours' speeds in km/h")
def _neighbours_kmh(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., SLOT_SPEED] *= 3.6


@_named("all distances in feet")
def _feet(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:, [OFFSET, LEFT, RIGHT]] *= _FEET
    slots[..., [DX, DY]] *= _FEET


@_named("neighbours' distances in cm")
def _centimetres(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., [DX, DY]] *= 100


@_named("angles in degrees")
def _degrees(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., [HEADING, YAW_RATE]] *= 180 / np.pi


@_named("accelerations in g", plausible=True)
def _in_g(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., ACCELERATION] /= _G_MPS2


# Frames and signs.


@_named("neighbours' speeds relative to the ego")
def _relative(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., SLOT_SPEED] -= states[:, None, SPEED] * slots[..., PRESENCE]


@_named("neighbours' speeds negative")
def _negative(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., SLOT_SPEED] *= -1


@_named("neighbours in the world frame")
def _world(states: States, slots: States, rng: np.random.Generator) -> None:
    turn = rng.uniform(-np.pi, np.pi, (len(states), 1))
    dx, dy = slots[..., DX].copy(), slots[..., DY].copy()
    slots[..., DX] = np.cos(turn) * dx - np.sin(turn) * dy
    slots[..., DY] = np.sin(turn) * dx + np.cos(turn) * dy
    slots[..., HEADING] += turn * slots[..., PRESENCE]


@_named("headings in the world frame")
def _world_headings(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., HEADING] += rng.uniform(-np.pi, np.pi, (len(states), 1)) * slots[..., PRESENCE]


@_named("left and right mirrored for neighbours", plausible=True)
def _mirrored(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., [DY, HEADING, YAW_RATE]] *= -1


@_named("ahead and behind mirrored", plausible=True)
def _turned_round(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., DX] *= -1


@_named("road edges swapped", plausible=True)
def _edges(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:, [LEFT, RIGHT]] = states[:, [RIGHT, LEFT]]


@_named("heading error with the wrong sign", plausible=True)
def _heading_error(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:, SIN_ERROR] *= -1


@_named("curvature with the wrong sign", plausible=True)
def _curvature(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:, CURVATURE] *= -1


# Sensors that fail.


@_named("all features zero")
def _zero(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:] = 0


@_named("neighbours present, but all else zero")
def _zero_slots(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., DX:] = 0


@_named("the nearest car in all slots")
def _repeated(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[:] = slots[:, :1].copy()


@_named("presence one half")
def _half_there(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[..., PRESENCE] *= 0.5


@_named("noise of 3 standard deviations")
def _loud(states: States, slots: States, rng: np.random.Generator) -> None:
    _add_noise(states, slots, rng, 3.0)


@_named("noise of 1 standard deviation")
def _noisy(states: States, slots: States, rng: np.random.Generator) -> None:
    _add_noise(states, slots, rng, 1.0)


@_named("noise of 0.1 standard deviations", plausible=True)
def _quiet(states: States, slots: States, rng: np.random.Generator) -> None:
    _add_noise(states, slots, rng, 0.1)


@_named("no neighbours reported", plausible=True)
def _blind(states: States, slots: States, rng: np.random.Generator) -> None:
    slots[:] = 0


@_named("ego speed stuck at 0", plausible=True)
def _stuck(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:, SPEED] = 0


# States that never occur.


@_named("a neighbour inside the ego")
def _inside(states: States, slots: States, rng: np.random.Generator) -> None:
    ahead, aside = rng.uniform(-1.5, 1.5, len(states)), rng.uniform(-0.5, 0.5, len(states))
    _put_first(slots, ahead, aside, speed=states[:, SPEED])


@_named("a neighbour at 40 m/s against the traffic")
def _wrong_way(states: States, slots: States, rng: np.random.Generator) -> None:
    ahead, aside = rng.uniform(15, 60, len(states)), rng.uniform(-2, 2, len(states))
    _put_first(slots, ahead, aside, heading=-np.pi, speed=40.0)


@_named("a neighbour spinning ahead")
def _spinning(states: States, slots: States, rng: np.random.Generator) -> None:
    ahead, aside = rng.uniform(8, 30, len(states)), rng.uniform(-2, 2, len(states))
    _put_first(slots, ahead, aside, speed=25.0, yaw_rate=3.5)


@_named("the ego far off the road")
def _off_road(states: States, slots: States, rng: np.random.Generator) -> None:
    beyond = states[:, RIGHT] + rng.uniform(4, 10, len(states)).astype(np.float32)
    states[:, OFFSET] += beyond
    states[:, LEFT] += beyond
    states[:, RIGHT] -= beyond


@_named("the ego at 60 to 80 m/s")
def _too_fast(states: States, slots: States, rng: np.random.Generator) -> None:
    states[:, SPEED] = rng.uniform(60, 80, len(states))


def _put_first(
    slots: States,
    ahead: NDArray[np.float64],
    aside: NDArray[np.float64],
    *,
    heading: float = 0.0,
    speed: float | States,
    yaw_rate: float = 0.0,
) -> None:
    """Put a car into the first slot."""
    slots[:, 0, ACCELERATION] = 0
    for feature, value in (
        (PRESENCE, 1.0),
        (DX, ahead),
        (DY, aside),
        (HEADING, heading),
        (SLOT_SPEED, speed),
        (YAW_RATE, yaw_rate),
    ):
        slots[:, 0, feature] = value


def _add_noise(states: States, slots: States, rng: np.random.Generator, deviations: float) -> None:
    """Add noise to all features of what is there, in standard deviations of the given states."""
    present = slots[..., :1].copy()
    noise = rng.normal(size=states.shape).astype(np.float32) * states.std(0) * deviations
    states[:, :EGO_COUNT] += noise[:, :EGO_COUNT]
    slots[..., DX:] += slots_of(noise)[..., DX:] * present
