"""Named ways in which a state can be wrong, to see whether a model notices.

Some leave a state that other traffic could really be in: one state alone cannot show those. They
are here too, marked `plausible`, as what is not to be expected of any detector. What a layout does
not hold is left out of a way: without accelerations, nothing of them is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.spec import Slot, Spec
from training.simulation.simulator import HIGHWAY
from training.simulation.states import EGO_FEATURES

States = NDArray[np.float32]

SPEED, OFFSET, SIN_ERROR, LEFT, RIGHT, CURVATURE = range(len(EGO_FEATURES))
PRESENCE, DX, DY, HEADING, SLOT_SPEED, ACCELERATION, YAW_RATE, LENGTH, WIDTH = range(9)
_PARTS = ("presence", "dx", "dy", "heading", "speed", "acceleration", "yaw_rate", "length", "width")
_FEET = 1 / 0.3048
_G_MPS2 = 9.80665


class Scene:
    """States by what their numbers mean; what is written here goes into them.

    Args:
        states: [N, S], written to.
        spec: Of the states, with kinematics and slots.

    Attributes:
        states: As given.
        slots: [N, slots, 9] presence, dx, dy, heading, speed, acceleration, yaw rate, length and
            width of each slot, a copy: `write_slots` puts back what the layout has of it.
        ego_columns: Those of `EGO_FEATURES`.
        ego_size_columns: Those of the ego's length and width; none in a layout without sizes.
    """

    def __init__(self, states: States, spec: Spec) -> None:
        geometry, car = spec.geometry, spec.kinematics
        assert geometry is not None
        assert car is not None
        self.states, self._usual = states, (geometry.length_m, geometry.width_m)
        self.ego_columns = [spec.state_index(getattr(car, name)) for name in EGO_FEATURES]
        self.ego_size_columns = [spec.state_index(name) for name in geometry.size_features]
        columns = np.array([_columns(slot, spec) for slot in geometry.slots])
        self._has = columns >= 0
        self._columns = columns[self._has]
        self.slots = self.of_slots(states)
        gates = self._has[:, PRESENCE], self.slots[..., PRESENCE], self.slots[..., LENGTH] > 0
        self.slots[..., PRESENCE] = np.where(*gates)
        self._given = self.slots.copy()

    def own(self, *parts: int) -> list[int]:
        """Return the columns of some of `EGO_FEATURES`."""
        return [self.ego_columns[part] for part in parts]

    def has(self, part: int) -> NDArray[np.bool_]:
        """Return which slots have a part [slots]."""
        return np.asarray(self._has[:, part])

    def of_slots(self, values: States) -> States:
        """Return the numbers of the slots [N, slots, 9] in values [N, S]; 0 where there is none."""
        slots = np.zeros((len(values), *self._has.shape), values.dtype)
        slots[..., self._has] = values[..., self._columns]
        return slots

    def put_size(self, slot: int) -> None:
        """Give whoever is in a slot the usual size."""
        self.slots[:, slot, [LENGTH, WIDTH]] = self._usual

    def write_slots(self) -> None:
        """Write into the states what has changed in the slots."""
        changed = (self.slots != self._given)[..., self._has]
        values = self.slots[..., self._has]
        self.states[..., self._columns] = np.where(changed, values, self.states[..., self._columns])


def _columns(slot: Slot, spec: Spec) -> list[int]:
    """Return the columns of `_PARTS`; -1 for what a slot has not."""
    names = (getattr(slot, part) for part in _PARTS)
    return [-1 if name is None else spec.state_index(name) for name in names]


Change = Callable[[Scene, np.random.Generator], None]


@dataclass(frozen=True)
class Corruption:
    """One way to be wrong.

    Attributes:
        name: For the report.
        change: Makes a scene wrong, given a source of randomness.
        plausible: Whether the result may be a real state of other traffic.
    """

    name: str
    change: Change
    plausible: bool = False

    def apply(self, states: States, seed: int = 0, spec: Spec = HIGHWAY) -> States:
        """Return states [N, S] of a spec made wrong; `seed` decides what is random."""
        wrong = np.array(states, np.float32, order="C")
        scene = Scene(wrong, spec)
        self.change(scene, np.random.default_rng(seed))
        scene.write_slots()
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
def _reversed(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:] = scene.states[:, ::-1].copy()


@_named("features shifted by one")
def _shifted(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:] = np.roll(scene.states, 1, axis=1)


@_named("features shuffled")
def _shuffled(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:] = scene.states[:, rng.permutation(scene.states.shape[1])]


@_named("speed and lane offset swapped")
def _speed_for_offset(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:, scene.own(SPEED, OFFSET)] = scene.states[:, scene.own(OFFSET, SPEED)]


@_named("dx and dy swapped")
def _dx_for_dy(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., [DX, DY]] = scene.slots[..., [DY, DX]]


@_named("heading and speed swapped")
def _heading_for_speed(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., [HEADING, SLOT_SPEED]] = scene.slots[..., [SLOT_SPEED, HEADING]]


@_named("acceleration and speed swapped")
def _acceleration_for_speed(scene: Scene, rng: np.random.Generator) -> None:
    some = scene.slots[:, scene.has(ACCELERATION)]
    some[..., [ACCELERATION, SLOT_SPEED]] = some[..., [SLOT_SPEED, ACCELERATION]]
    scene.slots[:, scene.has(ACCELERATION)] = some


# Units.


@_named("all speeds in km/h")
def _kmh(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:, scene.own(SPEED)] *= 3.6
    scene.slots[..., SLOT_SPEED] *= 3.6


@_named("neighbours' speeds in km/h")
def _neighbours_kmh(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., SLOT_SPEED] *= 3.6


@_named("all distances in feet")
def _feet(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:, [*scene.own(OFFSET, LEFT, RIGHT), *scene.ego_size_columns]] *= _FEET
    scene.slots[..., [DX, DY, LENGTH, WIDTH]] *= _FEET


@_named("neighbours' distances in cm")
def _centimetres(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., [DX, DY]] *= 100


@_named("angles in degrees")
def _degrees(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., [HEADING, YAW_RATE]] *= 180 / np.pi


@_named("accelerations in g", plausible=True)
def _in_g(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., ACCELERATION] /= _G_MPS2


# Frames and signs.


@_named("neighbours' speeds relative to the ego")
def _relative(scene: Scene, rng: np.random.Generator) -> None:
    own = scene.states[:, scene.own(SPEED)]
    scene.slots[..., SLOT_SPEED] -= own * scene.slots[..., PRESENCE]


@_named("neighbours' speeds negative")
def _negative(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., SLOT_SPEED] *= -1


@_named("neighbours in the world frame")
def _world(scene: Scene, rng: np.random.Generator) -> None:
    slots, turn = scene.slots, _random_turns(scene, rng)
    dx, dy = slots[..., DX].copy(), slots[..., DY].copy()
    slots[..., DX] = np.cos(turn) * dx - np.sin(turn) * dy
    slots[..., DY] = np.sin(turn) * dx + np.cos(turn) * dy
    slots[..., HEADING] += turn * slots[..., PRESENCE]


@_named("headings in the world frame")
def _world_headings(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., HEADING] += _random_turns(scene, rng) * scene.slots[..., PRESENCE]


@_named("left and right mirrored for neighbours", plausible=True)
def _mirrored(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., [DY, HEADING, YAW_RATE]] *= -1


@_named("ahead and behind mirrored", plausible=True)
def _turned_round(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., DX] *= -1


@_named("road edges swapped", plausible=True)
def _edges(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:, scene.own(LEFT, RIGHT)] = scene.states[:, scene.own(RIGHT, LEFT)]


@_named("heading error with the wrong sign", plausible=True)
def _heading_error(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:, scene.own(SIN_ERROR)] *= -1


@_named("curvature with the wrong sign", plausible=True)
def _curvature(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:, scene.own(CURVATURE)] *= -1


# Sensors that fail.


@_named("all features zero")
def _zero(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:] = 0


@_named("neighbours present, but all else zero")
def _zero_slots(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., DX:LENGTH] = 0


@_named("the nearest car in all slots")
def _repeated(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[:] = scene.slots[:, :1].copy()


@_named("presence one half")
def _half_there(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[..., PRESENCE] *= 0.5


@_named("noise of 3 standard deviations")
def _loud(scene: Scene, rng: np.random.Generator) -> None:
    _add_noise(scene, rng, 3.0)


@_named("noise of 1 standard deviation")
def _noisy(scene: Scene, rng: np.random.Generator) -> None:
    _add_noise(scene, rng, 1.0)


@_named("noise of 0.1 standard deviations", plausible=True)
def _quiet(scene: Scene, rng: np.random.Generator) -> None:
    _add_noise(scene, rng, 0.1)


@_named("no neighbours reported", plausible=True)
def _blind(scene: Scene, rng: np.random.Generator) -> None:
    scene.slots[:] = 0


@_named("ego speed stuck at 0", plausible=True)
def _stuck(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:, scene.own(SPEED)] = 0


# States that never occur.


@_named("a neighbour inside the ego")
def _inside(scene: Scene, rng: np.random.Generator) -> None:
    count = len(scene.states)
    ahead, aside = rng.uniform(-1.5, 1.5, count), rng.uniform(-0.5, 0.5, count)
    _put_first(scene, ahead, aside, speed=scene.states[:, scene.own(SPEED)[0]])


@_named("a neighbour at 40 m/s against the traffic")
def _wrong_way(scene: Scene, rng: np.random.Generator) -> None:
    count = len(scene.states)
    ahead, aside = rng.uniform(15, 60, count), rng.uniform(-2, 2, count)
    _put_first(scene, ahead, aside, heading=-np.pi, speed=40.0)


@_named("a neighbour spinning ahead")
def _spinning(scene: Scene, rng: np.random.Generator) -> None:
    count = len(scene.states)
    ahead, aside = rng.uniform(8, 30, count), rng.uniform(-2, 2, count)
    if scene.has(YAW_RATE)[0]:  # without turn rates it would be an ordinary car
        _put_first(scene, ahead, aside, speed=25.0, yaw_rate=3.5)


@_named("the ego far off the road")
def _off_road(scene: Scene, rng: np.random.Generator) -> None:
    states, (offset, left, right) = scene.states, scene.own(OFFSET, LEFT, RIGHT)
    beyond = states[:, right] + rng.uniform(4, 10, len(states)).astype(np.float32)
    states[:, offset] += beyond
    states[:, left] += beyond
    states[:, right] -= beyond


@_named("the ego at 60 to 80 m/s")
def _too_fast(scene: Scene, rng: np.random.Generator) -> None:
    scene.states[:, scene.own(SPEED)[0]] = rng.uniform(60, 80, len(scene.states))


@_named("lengths and widths swapped")
def _length_for_width(scene: Scene, rng: np.random.Generator) -> None:
    columns = scene.ego_size_columns
    scene.states[:, columns] = scene.states[:, columns[::-1]]
    scene.slots[..., [LENGTH, WIDTH]] = scene.slots[..., [WIDTH, LENGTH]]


def _random_turns(scene: Scene, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return an angle for each state [N, 1]."""
    return rng.uniform(-np.pi, np.pi, (len(scene.states), 1))


def _put_first(
    scene: Scene,
    ahead: NDArray[np.float64],
    aside: NDArray[np.float64],
    *,
    heading: float = 0.0,
    speed: float | States,
    yaw_rate: float = 0.0,
) -> None:
    """Put a vehicle of the usual size into the first slot."""
    scene.put_size(0)
    for feature, value in (
        (PRESENCE, 1.0),
        (DX, ahead),
        (DY, aside),
        (HEADING, heading),
        (SLOT_SPEED, speed),
        (ACCELERATION, 0.0),
        (YAW_RATE, yaw_rate),
    ):
        scene.slots[:, 0, feature] = value


def _add_noise(scene: Scene, rng: np.random.Generator, deviations: float) -> None:
    """Add noise to what moves of all that is there, in standard deviations of the given states."""
    states = scene.states
    noise = rng.normal(size=states.shape).astype(np.float32) * states.std(0) * deviations
    present = scene.slots[..., :1].copy()
    states[:, scene.ego_columns] += noise[:, scene.ego_columns]
    scene.slots[..., DX:LENGTH] += scene.of_slots(noise)[..., DX:LENGTH] * present
