"""What a model's numbers mean: names, units, ranges and order of state and action features.

A `Spec` travels inside every checkpoint. Nothing else in the project holds dims as constants.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, Len, MaxLen
from numpy.typing import NDArray

# What a spec's fields may hold; `models.checkpoint.files.checked` sees to it.
LONGEST_NAME = 200
Name = Annotated[str, Len(1, LONGEST_NAME)]
Text = Annotated[str, MaxLen(1000)]
Number = Annotated[float, Interval(ge=-1e12, le=1e12)]
"""Far from where float32 ends: a bound that becomes infinite would bound nothing."""
Size = Annotated[float, Interval(gt=0, le=1e6)]
_MOST_FEATURES = 4096

FORWARD_RIGHT_DOWN = "forward-right-down"
"""Axes of a vehicle: x forward, y to the right, z down, as in SAE J670e; angles are clockwise seen
from above. ISO 8855 and ROS (REP 103) turn y, z and all angles around: forward-left-up."""

States = NDArray[np.float32]


@dataclass(frozen=True)
class Feature:
    """One number of a state or an action.

    Attributes:
        name: Unique within its vector.
        unit: SI unit; "1" if it has none.
        low: Smallest value that makes sense physically, in `unit`.
        high: Largest value that makes sense physically, in `unit`.
        meaning: One line for a person.
    """

    name: Name
    unit: Text
    low: Number
    high: Number
    meaning: Text

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"feature {self.name!r}: low is {self.low}, but must be below high, {self.high}"
            )


@dataclass(frozen=True)
class Slot:
    """Names of the state features that place a neighbour in the ego frame, and describe its motion.

    Attributes:
        presence: 1 if the slot holds a vehicle, else 0.
        dx: Centre to centre, forward, m.
        dy: Centre to centre, to the right, m.
        heading: Relative to the ego's, clockwise from above, rad.
        speed: Along its heading, m/s.
        acceleration: Along its heading, m/s^2.
        yaw_rate: Of its heading in the world, rad/s.
    """

    presence: Name
    dx: Name
    dy: Name
    heading: Name
    speed: Name
    acceleration: Name
    yaw_rate: Name

    @property
    def features(self) -> tuple[str, ...]:
        """All features that are zero while the slot is empty, presence excluded."""
        return (self.dx, self.dy, self.heading, self.speed, self.acceleration, self.yaw_rate)


@dataclass(frozen=True)
class Geometry:
    """Which features show how far the ego is from hitting something.

    Attributes:
        length_m: Length of every vehicle's rectangle.
        width_m: Width of every vehicle's rectangle.
        slots: Neighbours, nearest first at the start of a window.
        edges: Features that hold a distance to a road edge, negative when beyond it.
    """

    length_m: Size
    width_m: Size
    slots: Annotated[tuple[Slot, ...], MaxLen(256)]
    edges: Annotated[tuple[Name, ...], MaxLen(256)]

    @property
    def state_features(self) -> tuple[str, ...]:
        """All state features that are named."""
        slots = (name for slot in self.slots for name in (slot.presence, *slot.features))
        return (*slots, *self.edges)


@dataclass(frozen=True)
class Kinematics:
    """How the ego's features follow from its action: a bicycle on a road that bends evenly.

    Attributes:
        speed: Name of the feature that holds the forward speed, m/s.
        lane_offset: Lateral offset from a lane's centre, to the right, m.
        sin_heading_error: Sine of the ego's heading minus the lane's.
        left_edge: Distance to the left road edge, m.
        right_edge: Distance to the right road edge, m.
        curvature: Of the lane, positive to the right, 1/m.
        steer: Name of the action in [-1, 1]: share of the largest wheel angle, to the right.
        throttle: Name of the action in [0, 1].
        brake: Name of the action in [0, 1].
        length_m: Of every vehicle; the axles are at its ends, the centre is halfway.
        full_throttle_mps2: Acceleration at full throttle.
        full_brake_mps2: Deceleration at full brake.
        grip_mps2: Lateral acceleration at full steer, at speeds where it is the limit.
        max_steering_rad: Wheel angle at full steer, at low speeds.
        max_speed_mps: The car accelerates no further.
    """

    speed: Name
    lane_offset: Name
    sin_heading_error: Name
    left_edge: Name
    right_edge: Name
    curvature: Name
    steer: Name
    throttle: Name
    brake: Name
    length_m: Size
    full_throttle_mps2: Size
    full_brake_mps2: Size
    grip_mps2: Size
    max_steering_rad: Annotated[float, Interval(gt=0, lt=math.pi / 2)]
    max_speed_mps: Size

    @property
    def state_features(self) -> tuple[str, ...]:
        """The ego's state features, in the order of the fields."""
        return (
            self.speed,
            self.lane_offset,
            self.sin_heading_error,
            self.left_edge,
            self.right_edge,
            self.curvature,
        )

    @property
    def action_features(self) -> tuple[str, ...]:
        """The action's features, in the order of the fields."""
        return (self.steer, self.throttle, self.brake)


@dataclass(frozen=True)
class Convention:
    """Something that a caller must know to fill in a state or read an answer.

    Attributes:
        about: What it is about, one or two words.
        text: For a person; it may have several lines.
    """

    about: Name
    text: Text


@dataclass(frozen=True)
class Example:
    """A scene, and what is sent for it.

    Attributes:
        scene: In words and numbers.
        state: [S].
        action: [A]; held, it leads to no crash.
    """

    scene: Text
    state: Annotated[tuple[Number, ...], MaxLen(_MOST_FEATURES)]
    action: Annotated[tuple[Number, ...], MaxLen(_MOST_FEATURES)]


@dataclass(frozen=True)
class Spec:
    """The meaning of a model's input and output.

    Attributes:
        name: Name of the model family, as shown to clients.
        dt_s: Length of one step.
        state: State features in order; their count is S.
        action: Action features in order; their count is A.
        geometry: Present if the features allow crash geometry to be computed.
        kinematics: Present if the ego's motion follows from its action analytically.
        frame: Name of the axes that positions and angles are in, like `FORWARD_RIGHT_DOWN`;
            None: not recorded, or the features have none.
        conventions: What names, units and ranges do not say.
        example: Of a state and an action.
    """

    name: Name
    dt_s: Annotated[float, Interval(ge=1e-6, le=3600)]
    state: Annotated[tuple[Feature, ...], MaxLen(_MOST_FEATURES)]
    action: Annotated[tuple[Feature, ...], MaxLen(_MOST_FEATURES)]
    geometry: Geometry | None = None
    kinematics: Kinematics | None = None
    frame: Name | None = None
    conventions: Annotated[tuple[Convention, ...], MaxLen(64)] = ()
    example: Example | None = None

    def __post_init__(self) -> None:
        for what, features in (("state", self.state), ("action", self.action)):
            names = [feature.name for feature in features]
            if not names:
                raise ValueError(f"spec {self.name!r}: {what} has no features")
            _refuse_repeated(f"spec {self.name!r}: {what}", names)
        for part in (self.geometry, self.kinematics):
            if part is not None:
                _refuse_repeated(f"spec {self.name!r}: {type(part).__name__}", part.state_features)
                for name in part.state_features:
                    self.state_index(name)
        if self.kinematics is not None:
            actions = self.kinematics.action_features
            _refuse_repeated(f"spec {self.name!r}: Kinematics", actions)
            for name in actions:
                self.action_index(name)
        _refuse_repeated(f"spec {self.name!r}: conventions", [x.about for x in self.conventions])
        if self.example is not None:
            self._check_example(self.example)

    def _check_example(self, example: Example) -> None:
        for what, values, features in (
            ("state", example.state, self.state),
            ("action", example.action, self.action),
        ):
            if len(values) != len(features):
                raise ValueError(
                    f"spec {self.name!r}: the example's {what} has {len(values)} numbers, not "
                    f"{len(features)}"
                )
            for value, feature in zip(values, features, strict=True):
                if not feature.low <= value <= feature.high:
                    raise ValueError(
                        f"spec {self.name!r}: the example's {feature.name} is {value}, but must "
                        f"be from {feature.low} to {feature.high}"
                    )

    @property
    def state_dim(self) -> int:
        """Number of state features, S."""
        return len(self.state)

    @property
    def action_dim(self) -> int:
        """Number of action features, A."""
        return len(self.action)

    @property
    def signature(self) -> str:
        """Dims and a digest of what a caller's numbers mean, for example `34x3-1a2b3c4d`.

        Names, units and order of all features and the length of a step change it; ranges and
        texts do not.
        """
        features = [[[f.name, f.unit] for f in each] for each in (self.state, self.action)]
        meaning = json.dumps([self.dt_s, *features]).encode()
        digest = hashlib.sha256(meaning).hexdigest()
        return f"{self.state_dim}x{self.action_dim}-{digest[:8]}"

    def state_index(self, name: str) -> int:
        """Return the position of a state feature.

        Raises:
            ValueError: The spec has no such feature.
        """
        return self._index("state", self.state, name)

    def action_index(self, name: str) -> int:
        """Return the position of an action feature.

        Raises:
            ValueError: The spec has no such feature.
        """
        return self._index("action", self.action, name)

    def _index(self, what: str, features: tuple[Feature, ...], name: str) -> int:
        for index, feature in enumerate(features):
            if feature.name == name:
                return index
        raise ValueError(f"spec {self.name!r} has no {what} feature {name!r}")

    def difference_to(self, other: Spec) -> str:
        """Say in which way another spec's numbers mean something else; "" if they mean the same.

        Texts for people and ranges are not compared.
        """
        for what in ("state", "action"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if len(mine) != len(theirs):
                return f"{len(mine)} {what} features against {len(theirs)}"
            for i, (one, two) in enumerate(zip(mine, theirs, strict=True)):
                if (one.name, one.unit) != (two.name, two.unit):
                    return (
                        f"{what} feature {i} is {one.name!r} in {one.unit!r} against {two.name!r} "
                        f"in {two.unit!r}"
                    )
        if not math.isclose(self.dt_s, other.dt_s, rel_tol=1e-6):
            return f"steps of {self.dt_s:g} s against {other.dt_s:g} s"
        if self.frame != other.frame and None not in (self.frame, other.frame):
            return f"the frame {self.frame!r} against {other.frame!r}"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts, ready for JSON."""
        return asdict(self)


def _refuse_repeated(what: str, names: Sequence[str]) -> None:
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"{what} names {repeated[0]!r} more than once")


def anonymous_spec(state_dim: int, action_dim: int, dt_s: float = 0.05) -> Spec:
    """Return a spec for weights whose feature meanings are unknown.

    Features are called `state_0`, `action_0`, ...; ranges are wide, there is no geometry.
    """

    def features(kind: str, count: int) -> tuple[Feature, ...]:
        return tuple(
            Feature(f"{kind}_{i}", "1", -1e6, 1e6, f"{kind} feature {i}, meaning not recorded")
            for i in range(count)
        )

    return Spec("imported", dt_s, features("state", state_dim), features("action", action_dim))
