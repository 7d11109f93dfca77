"""Where exactly a body breaks the contract: the slow walk, taken only when the fast one fails."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from models.spec import Feature
from service.errors import Detail

FLOAT32_MAX = math.nextafter((2 - 2**-24) * 2.0**127, 0)
"""The largest double that rounds to a finite float32; the shortest text of the largest float32
lies a little above that number itself."""

MAX_DETAILS = 16
_MAX_NAME = 64


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


def with_non_finite(body: bytes) -> Any:
    """Parse a body that holds NaN, Infinity or 1e400, so that they can be named; else None."""
    seen: list[str] = []

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            seen.append(text)
        return value

    try:
        document = json.loads(body, parse_constant=number, parse_float=number)
    except (ValueError, RecursionError):
        return None
    return document if seen else None


def broken_entries(field: ArrayField, value: Any) -> list[Detail]:
    """Return what is wrong with the value of a field, at most `MAX_DETAILS` entries."""
    is_batch = depth_of(value) >= len(field.axes)
    walk = _Walk(field)
    return list(islice(walk.list(value, field.name, field.axes[not is_batch :]), MAX_DETAILS))


def detail(field: str, problem: str, allowed: str = "") -> Detail:
    """Return one entry of an error's details."""
    entry = {"field": field[:_MAX_NAME], "problem": problem}
    return {**entry, "allowed": allowed} if allowed else entry


def kind_of(value: Any) -> str:
    """Name the JSON type of a value."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


class _Walk:
    """One walk over a field's value; knows the length of the first list of each level."""

    def __init__(self, field: ArrayField) -> None:
        self._field = field
        self._first: dict[str, tuple[str, int]] = {}

    def list(self, value: Any, path: str, axes: Sequence[Axis]) -> Iterator[Detail]:
        axis = axes[0]
        if not isinstance(value, list):
            yield detail(path, f"must be a list of {axis.entries}, is {kind_of(value)}")
            return
        if not axis.low <= len(value) <= axis.high:
            yield detail(path, f"has {len(value)} {axis.entries}", axis.allowed)
            return
        first, count = self._first.setdefault(axis.entries, (path, len(value)))
        if len(value) != count:
            yield detail(path, f"has {len(value)} {axis.entries}, {first} has {count}")
            return
        for index, entry in enumerate(value):
            here = f"{path}[{index}]"
            if len(axes) > 1:
                yield from self.list(entry, here, axes[1:])
            else:
                yield from self.number(entry, here, self._field.features[index])

    def number(self, value: Any, path: str, feature: Feature) -> Iterator[Detail]:
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield detail(path, f"must be a number, is {kind_of(value)}")
        elif not -FLOAT32_MAX <= value <= FLOAT32_MAX:
            yield detail(path, "is not a finite number of 32 bits", f"up to {FLOAT32_MAX:g}")
        elif self._field.is_ranged and not feature.low <= value <= feature.high:
            yield detail(
                path, f"{feature.name} is {value:g}", f"{feature.low:g} to {feature.high:g}"
            )


def depth_of(value: Any) -> int:
    """Return how deeply the first entries are nested."""
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def is_number_within(value: Any, low: float, high: float) -> bool:
    """Tell whether a value is a JSON number in [low, high]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
