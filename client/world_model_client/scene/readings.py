"""What a planner gave, checked and laid into rows of numbers."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model_client.errors import InvalidInputError
from world_model_client.scene.frames import Floats, number, shown
from world_model_client.scene.report import NO_SIZE, NOT_FINITE, LeftOut, Note
from world_model_client.scene.road_users import TYPICAL_SIZES_M, Ego, RoadUser

_MOST = 1e9
"""Numbers beyond are as useless as infinite ones."""

_MOST_M = 1000.0
"""Of a length or width."""

_FIELDS = ("x", "y", "heading", "speed", "length", "width", "acceleration", "yaw_rate")
_NEEDED = 4
"""The first so many must be given."""

_PLAIN: frozenset[type] = frozenset({float, np.float32, np.float64})
"""Numbers that NumPy takes as they are; an int may be too large, and others are rare."""
_PLAIN_OR_NONE = _PLAIN | {type(None)}


@dataclass
class Readings:
    """Road users that have a place and a size.

    Attributes:
        ids: [K].
        rows: [K, 8] `OTHER_COLUMNS`; NaN where the filter says the acceleration or turn rate.
        kinds: Of all ids that were given.
        left_out: Who has no place or no size.
        notes: What was put in place of sizes.
    """

    ids: list[Hashable]
    rows: Floats
    kinds: dict[Hashable, str]
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def read_ego(ego: Ego) -> Floats:
    """Return the ego as one row [1, 6], `EGO_COLUMNS`.

    Raises:
        InvalidInputError: It is none; the message names the field.
    """
    if not isinstance(ego, Ego):
        raise InvalidInputError(f"ego is {shown(ego)} (allowed: an Ego)")
    places = [
        number(f"ego.{name}", getattr(ego, name), -_MOST, _MOST)
        for name in ("x", "y", "heading", "speed")
    ]
    sizes = [
        number(f"ego.{name}", getattr(ego, name), 0, _MOST_M, is_open=True)
        for name in ("length", "width")
    ]
    return np.array([[*places, *sizes]])


def read_objects(objects: Iterable[RoadUser]) -> Readings:
    """Return road users as rows.

    Raises:
        InvalidInputError: One is no road user, has a field of another type, or an id that another
            has; the message names it.
    """
    try:
        given = list(objects)
    except TypeError as exc:
        raise InvalidInputError(
            f"objects is {shown(objects)} (allowed: RoadUsers in a list or the like)"
        ) from exc
    kinds: dict[Hashable, str] = {}
    for i, user in enumerate(given):
        _check_user(i, user)
        kinds[user.id] = user.kind
    if len(kinds) < len(given):
        _refuse_repeated(given)
    values = [
        (x.x, x.y, x.heading, x.speed, x.length, x.width, x.acceleration, x.yaw_rate) for x in given
    ]
    rows = _as_rows(given, values)
    rates = rows[:, 6:]
    rates[~(np.abs(rates) <= _MOST)] = np.nan
    readings = Readings([user.id for user in given], rows, kinds)
    is_placed = np.abs(rows[:, :4]) <= _MOST
    is_sized = (rows[:, 4:6] > 0) & (rows[:, 4:6] <= _MOST_M)
    if not (is_placed.all() and is_sized.all()):
        _sort_out(given, readings, is_placed, is_sized)
    return readings


def _check_user(index: int, user: RoadUser) -> None:
    if not isinstance(user, RoadUser):
        raise InvalidInputError(f"objects[{index}] is {shown(user)} (allowed: a RoadUser)")
    if not isinstance(user.kind, str):
        raise InvalidInputError(f"objects[{index}].kind is {shown(user.kind)} (allowed: text)")
    try:
        hash(user.id)
    except TypeError as exc:
        raise InvalidInputError(
            f"objects[{index}].id is {shown(user.id)} (allowed: what can be hashed, such as text "
            "or an integer)"
        ) from exc


def _refuse_repeated(given: list[RoadUser]) -> None:
    first: dict[Hashable, int] = {}
    for i, user in enumerate(given):
        if user.id in first:
            raise InvalidInputError(
                f"objects[{first[user.id]}] and objects[{i}] both have the id {shown(user.id)} "
                "(allowed: each id once)"
            )
        first[user.id] = i


def _as_rows(given: list[RoadUser], values: list[tuple[Any, ...]]) -> Floats:
    """Return what was given as floats [K, 8], NaN for None, at little cost for each number.

    Raises:
        InvalidInputError: Something in it is no number; the message says whose.
    """
    needed = {type(value) for row in values for value in row[:_NEEDED]}
    optional = {type(value) for row in values for value in row[_NEEDED:]}
    if not (needed <= _PLAIN and optional <= _PLAIN_OR_NONE):
        values = [_numbers(user, row) for user, row in zip(given, values, strict=True)]
    return np.array(values, np.float64).reshape(-1, len(_FIELDS))


def _numbers(user: RoadUser, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a row as floats and None.

    Raises:
        InvalidInputError: Something in it is no number.
    """
    found = []
    for i, (name, value) in enumerate(zip(_FIELDS, row, strict=True)):
        is_missing = value is None and i >= _NEEDED
        if not is_missing and (not isinstance(value, Real) or isinstance(value, bool | np.bool_)):
            allowed = "a number or None" if i >= _NEEDED else "a number"
            raise InvalidInputError(
                f"{name} of the road user {shown(user.id)} is {shown(value)} (allowed: {allowed})"
            )
        found.append(None if is_missing else _as_float(value))
    return tuple(found)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return np.inf


def _sort_out(
    given: list[RoadUser],
    readings: Readings,
    is_placed: NDArray[np.bool_],
    is_sized: NDArray[np.bool_],
) -> None:
    """Leave out who has no place or no size; give sizes of their kind to the others."""
    kept = np.full(len(given), True)
    for i, user in enumerate(given):
        typical = TYPICAL_SIZES_M.get(user.kind)
        if not is_placed[i].all():
            name = _FIELDS[int(np.argmin(is_placed[i]))]
            text = f"its {name} is {shown(getattr(user, name))}, not a finite number"
            readings.left_out.append(LeftOut(user.id, NOT_FINITE, could_matter=True, fault=text))
            kept[i] = False
        elif not is_sized[i].all() and typical is None:
            size = f"{shown(user.length)} x {shown(user.width)}"
            text = f"its size is {size} m, and sizes of the kind {shown(user.kind)} are not known"
            readings.left_out.append(LeftOut(user.id, NO_SIZE, could_matter=True, fault=text))
            kept[i] = False
        elif typical is not None and not is_sized[i].all():
            readings.rows[i, 4:6] = np.where(is_sized[i], readings.rows[i, 4:6], typical)
            _note_size(user, is_sized[i], readings)
    readings.rows = readings.rows[kept]
    readings.ids = [user.id for user, is_kept in zip(given, kept, strict=True) if is_kept]


def _note_size(user: RoadUser, is_sized: Any, readings: Readings) -> None:
    """Note sizes that were given and are none; who gave none knows it."""
    for name, is_given, typical in zip(
        ("length", "width"), is_sized, TYPICAL_SIZES_M[user.kind], strict=True
    ):
        value = getattr(user, name)
        if not is_given and value is not None:
            text = f"its {name} is {shown(value)}: taken for {typical:g} m, as a {user.kind}"
            readings.notes.append(Note(user.id, text))
