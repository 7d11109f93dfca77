"""Axes that positions and angles are given in, and checks of what a caller gives.

ISO 8855, as ROS (REP 103) has it: x forward or east, y to the left or north, angles
counterclockwise from above. Forward-right-down, as SAE J670e and image-like maps have it: y to the
right or down, angles clockwise. Lengths and speeds are the same in both; y, angles, turn rates and
curvatures have opposite signs.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from world_model_client.errors import InvalidInputError, printable

ISO8855 = "iso8855"
FORWARD_RIGHT_DOWN = "forward-right-down"
FRAMES = (ISO8855, FORWARD_RIGHT_DOWN)

Floats = NDArray[np.floating[Any]]

_SHOWN_BYTES = 80


def checked_frame(name: str, value: object) -> str:
    """Return the name of a frame.

    Raises:
        InvalidInputError: There is no such frame.
    """
    if not isinstance(value, str) or value not in FRAMES:
        raise InvalidInputError(f"{name} is {shown(value)} (allowed: {' or '.join(FRAMES)})")
    return value


def sign_between(one: str, other: str) -> float:
    """Return what turns y, angles and curvatures of one frame into those of another: 1 or -1."""
    return 1.0 if one == other else -1.0


def shown(value: object) -> str:
    """Return a value as an error shows it."""
    return printable(repr(value), _SHOWN_BYTES)


def number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    is_open: bool = False,
) -> float:
    """Return a finite number within bounds.

    Args:
        name: Of the argument, for the error.
        value: As the caller gave it.
        low: Smallest that is allowed.
        high: Largest that is allowed.
        is_open: Whether `low` itself is not allowed.

    Raises:
        InvalidInputError: It is none.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    # An int may be too large for a float.
    found = float(value) if is_number and abs(value) < 1e300 else math.nan
    if not (low < found if is_open else low <= found) or not found <= high:
        raise InvalidInputError(f"{name} is {shown(value)} (allowed: {_range(low, high, is_open)})")
    return found


def _range(low: float, high: float, is_open: bool) -> str:
    if math.isinf(low):
        return "a finite number" if math.isinf(high) else f"a finite number up to {high:g}"
    if math.isinf(high):
        return f"a finite number {'above' if is_open else 'from'} {low:g}"
    return f"a number {'above' if is_open else 'from'} {low:g}{',' if is_open else ''} to {high:g}"


def numbers(name: str, values: ArrayLike, last: tuple[int | None, ...], allowed: str) -> Floats:
    """Return an array of finite numbers.

    Args:
        name: Of the argument, for the error.
        values: As the caller gave them.
        last: Lengths of its last axes; None: any from 1. A first one of 0 stands for any axes.
        allowed: What the error says that is allowed.

    Raises:
        InvalidInputError: It holds something else, or has another shape; the message names the
            first place that is wrong.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as exc:
        raise InvalidInputError(f"{name} has rows that are not alike (allowed: {allowed})") from exc
    if array.dtype.kind not in "iuf":
        found = f"values of type {array.dtype}"
        raise InvalidInputError(f"{name} holds {found}, not numbers (allowed: {allowed})")
    is_open = last[0] == 0
    axes = last[1:] if is_open else last
    fits = array.ndim >= len(axes) if is_open else array.ndim == len(axes)
    if not fits or any(
        length != wanted if wanted is not None else length < 1
        for wanted, length in zip(axes, array.shape[-len(axes) :], strict=True)
    ):
        raise InvalidInputError(f"{name} has the shape {list(array.shape)} (allowed: {allowed})")
    is_finite = np.isfinite(array)
    if not is_finite.all():
        place = tuple(np.argwhere(~is_finite)[0].tolist())
        index = "".join(f"[{i}]" for i in place)
        raise InvalidInputError(f"{name}{index} is {array[place]:g} (allowed: {allowed})")
    return array.astype(np.float64)


def wrapped(angle: ArrayLike) -> Floats:
    """Return angles [...] in rad, in [-pi, pi)."""
    angle = np.asarray(angle, np.float64)
    turns = angle - 2 * np.pi * np.floor((angle + np.pi) / (2 * np.pi))
    # Just below -pi, rounding makes it pi.
    return np.where(turns >= np.pi, -np.pi, turns)
