"""What requests hold: fields, axes and bounds, declared once from the model's spec.

`service.http.reading` reads bodies by it, `service.http.schemas` shows it in OpenAPI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from models.spec import Feature, Spec

Kind = Literal["predict", "rollout", "safety_check"]
Output = Literal[
    "states", "rewards", "dones", "returns", "crash_probability", "uncertainty", "final_state"
]
Include = Literal["trajectory", "attribution"]

OUTPUTS: tuple[str, ...] = get_args(Output)
DEFAULT_OUTPUTS = ("states", "rewards", "dones")
INCLUDES: tuple[str, ...] = get_args(Include)

MOST_NAMES = 16
"""Most entries of a list of names."""

FLOAT32_MAX = math.nextafter((2 - 2**-24) * 2.0**127, 0)
"""The largest double that rounds to a finite float32; the shortest text of the largest float32
lies a little above that number itself."""


_SAME = 1e-6
"""How far, in shares, a caller's `dt_s` may be from the model's: it may have 32 bits."""


@dataclass(frozen=True)
class Axis:
    """One level of nesting: what its entries are, and how many there may be."""

    entries: str
    low: int
    high: int

    @property
    def allowed(self) -> str:
        """How many entries are allowed, for a person."""
        count = f"{self.low}" if self.low == self.high else f"{self.low} to {self.high}"
        return f"{count} {self.entries}"


@dataclass(frozen=True)
class ArrayField:
    """A field of nested lists of numbers; the outermost level may be left out.

    Attributes:
        name: Name in the body.
        axes: Levels, outermost first.
        features: Meaning of the innermost entries.
        is_ranged: Whether numbers must lie within the features' ranges.
    """

    name: str
    axes: tuple[Axis, ...]
    features: tuple[Feature, ...]
    is_ranged: bool


@dataclass(frozen=True)
class RequestFields:
    """What the body of an endpoint holds.

    Attributes:
        state: Of the start; a bare one serves all action rows.
        actions: One action a row, or a sequence of them.
        takes_many_states: Whether there may be as many states as action rows.
        options: Optional fields, and the names that each may list; none: it is a single value.
    """

    state: ArrayField
    actions: ArrayField
    takes_many_states: bool = True
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Contract:
    """The request bodies of one model.

    Args:
        spec: The model's features.
        max_horizon: Most steps of a sequence.
        max_rows: Most sequences of a request.
        members: Of the ensemble that are served.
    """

    spec: Spec
    max_horizon: int
    max_rows: int
    members: int = 1

    def fields(self, kind: Kind) -> RequestFields:
        """Return what the body of an endpoint holds."""
        spec = self.spec
        rows = Axis("rows", 1, self.max_rows)
        vector = Axis("state features", spec.state_dim, spec.state_dim)
        state = ArrayField("state", (rows, vector), spec.state, is_ranged=False)
        if kind == "predict":
            return RequestFields(state, self._actions("action", rows), options=self._conventions)
        sequences, steps = Axis("sequences", 1, self.max_rows), Axis("steps", 1, self.max_horizon)
        actions = self._actions("actions", sequences, steps)
        others = {"members": (), **self._conventions}
        if kind == "rollout":
            return RequestFields(state, actions, options={"outputs": OUTPUTS, **others})
        options = {"threshold": (), "include": INCLUDES, **others}
        return RequestFields(state, actions, takes_many_states=False, options=options)

    @property
    def dt_bounds(self) -> tuple[float, float]:
        """Smallest and largest `dt_s` of a request that is the model's."""
        return self.spec.dt_s * (1 - _SAME), self.spec.dt_s * (1 + _SAME)

    @property
    def _conventions(self) -> dict[str, tuple[str, ...]]:
        """Optional fields of every endpoint: what a caller takes for granted, to be compared."""
        return {"dt_s": ()} if self.spec.frame is None else {"dt_s": (), "frame": ()}

    def _actions(self, name: str, *axes: Axis) -> ArrayField:
        spec = self.spec
        vector = Axis("action features", spec.action_dim, spec.action_dim)
        return ArrayField(name, (*axes, vector), spec.action, is_ranged=True)
