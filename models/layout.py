"""Which features of a state place road users and the ego, how big these are, and what saturates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval, Len, MaxLen

# What fields may hold; `models.checkpoint.files.checked` sees to it.
LONGEST_NAME = 200
Name = Annotated[str, Len(1, LONGEST_NAME)]
Text = Annotated[str, MaxLen(1000)]
Number = Annotated[float, Interval(ge=-1e12, le=1e12)]
"""Far from where float32 ends: a bound that becomes infinite would bound nothing."""
Size = Annotated[float, Interval(gt=0, le=1e6)]


@dataclass(frozen=True, kw_only=True)
class Slot:
    """Names of the state features that place a neighbour in the ego frame, and describe its motion.

    Somebody is in a slot if its presence is 1; in a slot without that feature, if its length is
    above 0.

    Attributes:
        presence: 1 if the slot holds a road user, else 0.
        dx: Centre to centre, forward, m.
        dy: Centre to centre, to the right, m.
        heading: Relative to the ego's, clockwise from above, rad.
        speed: Along its heading, m/s.
        acceleration: Along its heading, m/s^2; None: taken for 0.
        yaw_rate: Of its heading in the world, rad/s; None: taken for 0.
        length: Of its rectangle, m; None: the geometry's `length_m`.
        width: Of its rectangle, m; None: the geometry's `width_m`.

    Raises:
        ValueError: It names only one of length and width, or neither presence nor length.
    """

    presence: Name | None = None
    dx: Name
    dy: Name
    heading: Name
    speed: Name
    acceleration: Name | None = None
    yaw_rate: Name | None = None
    length: Name | None = None
    width: Name | None = None

    def __post_init__(self) -> None:
        _refuse_half_size(f"the slot of {self.dx!r}", self.length, self.width)
        if self.presence is None and self.length is None:
            raise ValueError(
                f"the slot of {self.dx!r} names neither presence nor length, but one of them must "
                "say whether somebody is there"
            )

    @property
    def gate(self) -> str:
        """The feature that is 0 where nobody is: presence, or else length."""
        name = self.presence or self.length
        assert name is not None
        return name

    @property
    def has_presence(self) -> bool:
        """Whether the gate is a presence, 0 or 1, rather than a length."""
        return self.presence is not None

    @property
    def features(self) -> tuple[str, ...]:
        """All features that are zero while the slot is empty, the gate excluded."""
        names = (self.dx, self.dy, self.heading, self.speed, self.acceleration, self.yaw_rate)
        sizes = (self.length if self.has_presence else None, self.width)
        return tuple(name for name in (*names, *sizes) if name is not None)

    @property
    def constants(self) -> tuple[str, ...]:
        """Features that no step changes: whether somebody is there, and its size."""
        names = (self.presence, self.length, self.width)
        return tuple(name for name in names if name is not None)


@dataclass(frozen=True)
class Geometry:
    """Which features show how far the ego is from hitting something.

    Attributes:
        length_m: Length of every rectangle that no feature gives.
        width_m: Width of every rectangle that no feature gives.
        slots: Neighbours, nearest first at the start of a window.
        edges: Features that hold a distance to a road edge, negative when beyond it.
        length: Feature that holds the ego's own length, m; None: `length_m`.
        width: Feature that holds the ego's own width, m; None: `width_m`.

    Raises:
        ValueError: Only one of length and width is named.
    """

    length_m: Size
    width_m: Size
    slots: Annotated[tuple[Slot, ...], MaxLen(256)]
    edges: Annotated[tuple[Name, ...], MaxLen(256)]
    length: Name | None = None
    width: Name | None = None

    def __post_init__(self) -> None:
        _refuse_half_size("the geometry", self.length, self.width)

    @property
    def size_features(self) -> tuple[str, ...]:
        """The ego's length and width, or nothing if no features hold them."""
        return () if self.length is None or self.width is None else (self.length, self.width)

    @property
    def state_features(self) -> tuple[str, ...]:
        """All state features that are named."""
        slots = (name for slot in self.slots for name in (slot.gate, *slot.features))
        return (*slots, *self.edges, *self.size_features)


SLOWEST_MPS = 0.5
"""Below, the slip angle that belongs to a turn rate is not computed: it would be noise."""

MOST_SIN = 0.95
"""Of a slip angle, and of the angle between ego and lane, in the motion by `Kinematics`."""

SHORTEST_M = 0.1
"""The wheelbase of an ego of no length, as in a state of zeros: no number may become infinite."""


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
        length_m: Of every vehicle whose length no feature gives; the axles are at its ends, the
            centre is halfway.
        full_throttle_mps2: Acceleration at full throttle.
        full_brake_mps2: Deceleration at full brake.
        grip_mps2: Lateral acceleration at full steer, at speeds where it is the limit.
        max_steering_rad: Wheel angle at full steer, at low speeds.
        max_speed_mps: The car accelerates no further.
        length: Feature that holds the ego's own length, m, its wheelbase; None: `length_m`.
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
    length: Name | None = None

    @property
    def moved_features(self) -> tuple[str, ...]:
        """The ego's state features that a step changes, in the order of the fields."""
        return (
            self.speed,
            self.lane_offset,
            self.sin_heading_error,
            self.left_edge,
            self.right_edge,
            self.curvature,
        )

    @property
    def state_features(self) -> tuple[str, ...]:
        """The ego's state features, in the order of the fields."""
        return self.moved_features if self.length is None else (*self.moved_features, self.length)

    @property
    def action_features(self) -> tuple[str, ...]:
        """The action's features, in the order of the fields."""
        return (self.steer, self.throttle, self.brake)


@dataclass(frozen=True)
class Saturation:
    """A state feature that is taken for a bound where it is beyond it, before all else.

    Attributes:
        feature: Of the state.
        low: Smaller values are taken for it, in the feature's unit; None: no value is too small.
        high: Larger values are taken for it; None: no value is too large.
        reason: Why nothing is lost, for a person.

    Raises:
        ValueError: There is no bound, or they leave nothing between them.
    """

    feature: Name
    low: Number | None
    high: Number | None
    reason: Text

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError(f"the saturation of {self.feature!r} names neither low nor high")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(
                f"the saturation of {self.feature!r}: low is {self.low}, but must be below high, "
                f"{self.high}"
            )


@dataclass(frozen=True)
class RoadUser:
    """A kind of road user that a model knows.

    Attributes:
        kind: Its name: "car", "pedestrian", ...
        length_m: The shortest and the longest.
        width_m: The narrowest and the widest.

    Raises:
        ValueError: A smallest size is above the largest.
    """

    kind: Name
    length_m: tuple[Size, Size]
    width_m: tuple[Size, Size]

    def __post_init__(self) -> None:
        for name, (least, most) in (("length_m", self.length_m), ("width_m", self.width_m)):
            if not least <= most:
                raise ValueError(
                    f"the road user {self.kind!r}: {name} is from {least} to {most}, but the first "
                    "must not be above the second"
                )


def refuse_repeated(what: str, names: Sequence[str]) -> None:
    """Refuse names that are there more than once.

    Args:
        what: Begins the message.
        names: Of features or the like.

    Raises:
        ValueError: One is.
    """
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise ValueError(f"{what} names {repeated[0]!r} more than once")


def _refuse_half_size(what: str, length: str | None, width: str | None) -> None:
    if (length is None) != (width is None):
        named, missing = ("length", "width") if width is None else ("width", "length")
        raise ValueError(
            f"{what} names the {named} {length or width!r}, but no {missing}: both or neither must "
            "be named"
        )
