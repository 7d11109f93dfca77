"""Where in a state each number goes, learned from the service's answer to `GET /model`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model_client.errors import InvalidInputError
from world_model_client.scene.frames import Floats, checked_frame, number, shown

EGO_PARTS = (
    "speed",
    "lane_offset",
    "sin_heading_error",
    "left_edge",
    "right_edge",
    "curvature",
    "length",
    "width",
)
"""Features of the ego that the builder knows."""

SLOT_PARTS = (
    "presence",
    "length",
    "width",
    "dx",
    "dy",
    "heading",
    "speed",
    "acceleration",
    "yaw_rate",
)
"""Features of a slot, which are called `neighbour_N_PART`."""

MIRRORED_EGO = ("lane_offset", "sin_heading_error", "curvature")
MIRRORED_SLOT = ("dy", "heading", "yaw_rate")
"""What changes its sign between the frames."""

ASSUMED_LENGTH_M, ASSUMED_WIDTH_M = 5.0, 2.0
"""What a model without sizes in its state takes everybody for (`sizes` in its conventions)."""

EDGE_SATURATION_M = 16.0
"""Road edges farther than this are sent as this, where a model does not say where they saturate:
four lanes, the widest road that was trained on before roads of more lanes were."""

HORIZON_S = 0.8
"""How far ahead a model was evaluated, if it does not say."""

Columns = NDArray[np.intp]

_NEEDED = ("dx", "dy", "heading", "speed")
_SLOT_NAME = re.compile(rf"neighbour_([1-9]\d{{0,3}})_({'|'.join(SLOT_PARTS)})")


@dataclass(frozen=True)
class Layout:
    """The order and the ranges of a model's state.

    Attributes:
        names: Of the S features, in order.
        frame: Of the state: one of `FRAMES`.
        ego: Column of each feature of the ego that the state has, by part.
        slots: [slots, parts] columns of each slot's features, in the order of `SLOT_PARTS`; -1
            for what a slot does not have.
        low: [S] smallest values that make sense and that the model knows; those of no feature
            that it has not seen are left out.
        high: [S] largest.
        saturations: [S, 2] bounds that values beyond are sent as; infinite where there are none.
        kinds: Kinds of road users that the model knows; empty if it does not say.
        horizon_s: How far ahead it was evaluated.
    """

    names: tuple[str, ...]
    frame: str
    ego: Mapping[str, int]
    slots: Columns
    low: Floats
    high: Floats
    saturations: Floats
    kinds: frozenset[str]
    horizon_s: float

    @property
    def slot_count(self) -> int:
        """Number of slots."""
        return len(self.slots)

    @property
    def has_sizes(self) -> bool:
        """Whether slots hold a length and a width."""
        return bool((self.slots[:, SLOT_PARTS.index("length")] >= 0).any())

    @property
    def has_ego_size(self) -> bool:
        """Whether the state holds the ego's length and width."""
        return "length" in self.ego

    @classmethod
    def from_model(cls, document: Mapping[str, Any]) -> Layout:
        """Read a layout.

        Args:
            document: The answer to `GET /model`, as `Client.model()` returns it. Used are
                `features.state` (name, low, high and, if they are there, trained_low and
                trained_high), `frame`, and, if they are there, `saturations` (feature, low, high),
                `road_users` (kind), `dt_s` and `thresholds.evaluated_horizon`.

        Raises:
            InvalidInputError: The builder cannot fill such a state, or a bound is no finite number;
                the message names the feature.
        """
        features = _features(document)
        names = tuple(str(feature["name"]) for feature in features)
        frame = checked_frame("frame of the model", document.get("frame"))
        ego, slots = _columns(names)
        low, high = _known(features)
        return cls(
            names=names,
            frame=frame,
            ego=ego,
            slots=slots,
            low=low,
            high=high,
            saturations=_saturations(document, names, ego, high),
            kinds=frozenset(str(x["kind"]) for x in document.get("road_users") or ()),
            horizon_s=_horizon_s(document),
        )


def _features(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    try:
        features = document["features"]["state"]
        if features and all(isinstance(feature["name"], str) for feature in features):
            return list(features)
    except (KeyError, TypeError, IndexError):
        pass
    raise InvalidInputError(
        f"the model's document is {shown(document)}, without names in features.state (allowed: the "
        "answer to GET /model, as Client.model() returns it)"
    )


def _columns(names: tuple[str, ...]) -> tuple[dict[str, int], Columns]:
    """Return the columns of the ego's parts, and those of the slots' parts [slots, parts]."""
    ego: dict[str, int] = {}
    found: dict[int, dict[str, int]] = {}
    for column, name in enumerate(names):
        match = _SLOT_NAME.fullmatch(name)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = column
        elif name in EGO_PARTS:
            ego[name] = column
        else:
            raise InvalidInputError(
                f"the model's state has a feature {shown(name)}, which the builder cannot fill "
                f"(allowed: {', '.join(EGO_PARTS)} and neighbour_N_PART with PART of "
                f"{', '.join(SLOT_PARTS)})"
            )
    _check_size("the ego", ego)
    slots = [found[number] for number in sorted(found)]
    if sorted(found) != list(range(1, len(found) + 1)):
        raise InvalidInputError(
            f"the model's neighbours have the numbers {sorted(found)} (allowed: 1, 2, 3, ...)"
        )
    for count, slot in enumerate(slots, 1):
        _check_slot(f"neighbour_{count}", slot)
        _check_size(f"neighbour_{count}", slot)
        if ("length" in slot) != ("length" in slots[0]):
            raise InvalidInputError(
                f"neighbour_{count} differs from neighbour_1 in whether it has a length (allowed: "
                "all slots or none)"
            )
    columns = [[slot.get(part, -1) for part in SLOT_PARTS] for slot in slots]
    return ego, np.array(columns, np.intp).reshape(-1, len(SLOT_PARTS))


def _check_slot(name: str, slot: Mapping[str, int]) -> None:
    missing = [part for part in _NEEDED if part not in slot]
    if "presence" not in slot and "length" not in slot:
        missing.append("presence (or length)")
    if missing:
        raise InvalidInputError(f"the model's {name} lacks {', '.join(missing)} (allowed: none)")


def _check_size(name: str, parts: Mapping[str, int]) -> None:
    if ("length" in parts) != ("width" in parts):
        raise InvalidInputError(
            f"the model's state has only one of length and width of {name} (allowed: both or none)"
        )


def _known(features: Sequence[Mapping[str, Any]]) -> tuple[Floats, Floats]:
    """Return the smallest and the largest values [S] that make sense and were trained on."""
    low, high = (
        np.array(
            [
                [infinite if x.get(name) is None else _bound(x, name) for name in names]
                for x in features
            ]
        )
        for infinite, names in (
            (-np.inf, ("low", "trained_low")),
            (np.inf, ("high", "trained_high")),
        )
    )
    return low.max(axis=1), high.min(axis=1)


def _saturations(
    document: Mapping[str, Any], names: tuple[str, ...], ego: Mapping[str, int], high: Floats
) -> Floats:
    bounds = np.tile([-np.inf, np.inf], (len(names), 1))
    for edge in ("left_edge", "right_edge"):
        if edge in ego:
            bounds[ego[edge], 1] = min(EDGE_SATURATION_M, high[ego[edge]])
    for saturation in document.get("saturations") or ():
        if saturation["feature"] in names:
            column = names.index(saturation["feature"])
            for k, name in enumerate(("low", "high")):
                if saturation.get(name) is not None:
                    bounds[column, k] = _bound(saturation, name)
    return bounds


def _bound(given: Mapping[str, Any], name: str) -> float:
    """Return a bound of a feature, or of where it saturates."""
    return number(f"{name} of the model's {given.get('name', given.get('feature'))}", given[name])


def _horizon_s(document: Mapping[str, Any]) -> float:
    steps = (document.get("thresholds") or {}).get("evaluated_horizon")
    step_s = document.get("dt_s")
    if not steps or not step_s:
        return HORIZON_S
    return number("evaluated_horizon x dt_s of the model", steps * step_s, 0, is_open=True)
