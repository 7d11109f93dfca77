"""What a model's numbers mean: names, units, ranges and order of state and action features.

A `Spec` travels inside every checkpoint. Nothing else in the project holds dims as constants.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, MaxLen
from numpy.typing import NDArray

from models.layout import (
    LONGEST_NAME,
    Geometry,
    Kinematics,
    Name,
    Number,
    RoadUser,
    Saturation,
    Size,
    Slot,
    Text,
    refuse_repeated,
)

__all__ = [
    "FORWARD_RIGHT_DOWN",
    "LONGEST_NAME",
    "Convention",
    "Example",
    "Feature",
    "Geometry",
    "Kinematics",
    "Name",
    "Number",
    "RoadUser",
    "Saturation",
    "Size",
    "Slot",
    "Spec",
    "States",
    "Text",
    "anonymous_spec",
]

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
        saturations: State features that are taken for a bound where they are beyond it.
        road_users: The kinds that the model knows, the ego's among them.

    Raises:
        ValueError: Its parts do not fit each other.
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
    saturations: Annotated[tuple[Saturation, ...], MaxLen(_MOST_FEATURES)] = ()
    road_users: Annotated[tuple[RoadUser, ...], MaxLen(64)] = ()

    def __post_init__(self) -> None:
        for what, features in (("state", self.state), ("action", self.action)):
            names = [feature.name for feature in features]
            if not names:
                raise ValueError(f"spec {self.name!r}: {what} has no features")
            refuse_repeated(f"spec {self.name!r}: {what}", names)
        self._check_parts()
        what = f"spec {self.name!r}"
        refuse_repeated(f"{what}: conventions", [x.about for x in self.conventions])
        refuse_repeated(f"{what}: saturations", [x.feature for x in self.saturations])
        refuse_repeated(f"{what}: road_users", [x.kind for x in self.road_users])
        for saturation in self.saturations:
            self._check_saturation(saturation)
        if self.example is not None:
            self._check_example(self.example)

    def _check_parts(self) -> None:
        """Refuse geometry and kinematics that name what is not there, or twice."""
        geometry, car = self.geometry, self.kinematics
        for part in (geometry, car):
            if part is not None:
                refuse_repeated(f"spec {self.name!r}: {type(part).__name__}", part.state_features)
                for name in part.state_features:
                    self.state_index(name)
        for slot in geometry.slots if geometry is not None else ():
            low = self.state[self.state_index(slot.gate)].low
            if not low <= 0:
                raise ValueError(
                    f"spec {self.name!r}: {slot.gate} is 0 where nobody is, but its low is {low}"
                )
        if car is not None:
            refuse_repeated(f"spec {self.name!r}: Kinematics", car.action_features)
            for name in car.action_features:
                self.action_index(name)
            length = None if geometry is None else geometry.length
            if car.length is not None and car.length != length:
                raise ValueError(
                    f"spec {self.name!r}: the ego's length is {car.length!r} in its kinematics, "
                    f"but {length!r} in its geometry"
                )

    def _check_saturation(self, saturation: Saturation) -> None:
        feature = self.state[self.state_index(saturation.feature)]
        if feature.name in self._place_features():
            raise ValueError(
                f"spec {self.name!r}: {feature.name} must not saturate: who is there would be "
                "elsewhere, or of another size"
            )
        for bound in (saturation.low, saturation.high):
            if bound is not None and not feature.low <= bound <= feature.high:
                raise ValueError(
                    f"spec {self.name!r}: {feature.name} saturates at {bound}, but the bound must "
                    f"be from {feature.low} to {feature.high}"
                )

    def _place_features(self) -> set[str | None]:
        """Return the features that say where somebody is and how big, of those that there are."""
        geometry = self.geometry
        if geometry is None:
            return set()
        parts = ("gate", "dx", "dy", "heading", "length", "width")
        of_slots = {getattr(slot, part) for slot in geometry.slots for part in parts}
        return {*of_slots, *geometry.size_features} - {None}

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
        """Return plain lists and dicts, ready for JSON.

        Names of features that a layout does not have are left out, and so are saturations and road
        users where there are none: specs from before them keep their bytes.
        """
        document = asdict(self)
        geometry = document["geometry"] or {"slots": ()}
        for part in (geometry, document["kinematics"] or {}, *geometry["slots"]):
            for name in [name for name, value in part.items() if value is None]:
                del part[name]
        for name in ("saturations", "road_users"):
            if not document[name]:
                del document[name]
        return document


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
