"""What a model's numbers mean: names, units, ranges and order of state and action features.

A `Spec` travels inside every checkpoint. Nothing else in the project holds dims as constants.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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

    name: str
    unit: str
    low: float
    high: float
    meaning: str


@dataclass(frozen=True)
class Slot:
    """Names of the state features that place one neighbour in the ego frame, and say how it moves.

    Attributes:
        presence: 1 if the slot holds a vehicle, else 0.
        dx: Centre to centre, forward, m.
        dy: Centre to centre, to the right, m.
        heading: Relative to the ego's, clockwise from above, rad.
        speed: Along its heading, m/s.
        acceleration: Along its heading, m/s^2.
        yaw_rate: Of its heading in the world, rad/s.
    """

    presence: str
    dx: str
    dy: str
    heading: str
    speed: str
    acceleration: str
    yaw_rate: str

    @property
    def features(self) -> tuple[str, ...]:
        """All features that are zero while the slot is empty, presence excluded."""
        return (self.dx, self.dy, self.heading, self.speed, self.acceleration, self.yaw_rate)


@dataclass(frozen=True)
class Geometry:
    """Which features say how far the ego is from hitting something.

    Attributes:
        length_m: Length of every vehicle's rectangle.
        width_m: Width of every vehicle's rectangle.
        slots: Neighbours, nearest first at the start of a window.
        edges: Features that hold a distance to a road edge, negative when beyond it.
    """

    length_m: float
    width_m: float
    slots: tuple[Slot, ...]
    edges: tuple[str, ...]


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

    speed: str
    lane_offset: str
    sin_heading_error: str
    left_edge: str
    right_edge: str
    curvature: str
    steer: str
    throttle: str
    brake: str
    length_m: float
    full_throttle_mps2: float
    full_brake_mps2: float
    grip_mps2: float
    max_steering_rad: float
    max_speed_mps: float

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
class Spec:
    """The meaning of a model's input and output.

    Attributes:
        name: Name of the model family, as shown to clients.
        dt_s: Length of one step.
        state: State features in order; their count is S.
        action: Action features in order; their count is A.
        geometry: Present if the features allow crash geometry to be computed.
        kinematics: Present if the ego's motion follows from its action analytically.
    """

    name: str
    dt_s: float
    state: tuple[Feature, ...]
    action: tuple[Feature, ...]
    geometry: Geometry | None = None
    kinematics: Kinematics | None = None

    def __post_init__(self) -> None:
        for what, features in (("state", self.state), ("action", self.action)):
            names = [feature.name for feature in features]
            if not names:
                raise ValueError(f"spec {self.name!r}: {what} has no features")
            if len(set(names)) != len(names):
                raise ValueError(f"spec {self.name!r}: {what} feature names repeat: {names}")
        if self.dt_s <= 0:
            raise ValueError(f"spec {self.name!r}: dt_s must be positive, got {self.dt_s}")
        if self.geometry is not None:
            for slot in self.geometry.slots:
                for name in (slot.presence, *slot.features):
                    self.state_index(name)
            for name in self.geometry.edges:
                self.state_index(name)
        if self.kinematics is not None:
            for name in self.kinematics.state_features:
                self.state_index(name)
            for name in self.kinematics.action_features:
                self.action_index(name)

    @property
    def state_dim(self) -> int:
        """Number of state features, S."""
        return len(self.state)

    @property
    def action_dim(self) -> int:
        """Number of action features, A."""
        return len(self.action)

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

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Spec:
        """Build a spec from what `to_json` returned.

        Raises:
            ValueError: A field is missing, unknown or inconsistent.
        """
        try:
            geometry, kinematics = document["geometry"], document["kinematics"]
            return cls(
                name=document["name"],
                dt_s=float(document["dt_s"]),
                state=tuple(Feature(**feature) for feature in document["state"]),
                action=tuple(Feature(**feature) for feature in document["action"]),
                geometry=None
                if geometry is None
                else Geometry(
                    length_m=geometry["length_m"],
                    width_m=geometry["width_m"],
                    slots=tuple(Slot(**slot) for slot in geometry["slots"]),
                    edges=tuple(geometry["edges"]),
                ),
                kinematics=None if kinematics is None else Kinematics(**kinematics),
            )
        except (KeyError, TypeError) as exc:
            raise ValueError(f"spec is malformed: {exc!r}") from exc


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
