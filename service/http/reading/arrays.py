"""Nested lists of numbers to arrays, checked on the way."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from simdjson import Array as JsonArray

from service.http.contract import FLOAT32_MAX, ArrayField
from service.interface import Array

SIMDJSON_ERRORS = (ValueError, RuntimeError, KeyError)
"""What simdjson raises if it does not like a text, or a field is missing."""

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
# Whole numbers that may not fit into 64 bits. Plain zeros are found many times faster than [0-9].
_LONG_RUN = re.compile(rb"0000000000000000000[0]*+(?=[,\]} \t\r\n])")
_BEFORE_WHOLE = frozenset(b"[,: \t\r\n")
_MINUS = ord("-")
_WITHOUT_BRACKETS = b"0123456789.eE+- \t\r\n"
_FEW = 256


Shape = tuple[int, ...]


class Layout(NamedTuple):
    """How the numbers of a value lie.

    Attributes:
        shape: With a first axis of one, if the value has none: [K, S] or [K, H, A].
        is_bare: Whether it has none.
    """

    shape: Shape
    is_bare: bool


class UnfitError(Exception):
    """A value is not plainly what its field allows; `service.http.reading.walk` finds out."""


def brackets(body: bytes) -> bytes:
    """Return a body without blanks and what numbers are written with: brackets, commas, strings."""
    return body.translate(None, _WITHOUT_BRACKETS)


def with_points(body: bytes) -> bytes:
    """Return a body in which long whole numbers end in `.0`: simdjson takes only 64 bits of others.

    Names of digits may change, too; there are none.
    """
    parts, done = [], 0
    for run in _LONG_RUN.finditer(body.translate(_DIGITS_TO_ZERO)):
        start, end = run.span()
        before = body[start - 1] if start else 0
        if before in _BEFORE_WHOLE or (before == _MINUS and body[start - 2] in _BEFORE_WHOLE):
            parts.append(body[done:end])
            done = end
    return b".0".join([*parts, body[done:]]) if parts else body


def list_brackets(entry: bytes, count: int) -> bytes:
    """Return the brackets of a list of so many entries."""
    return b"[%b]" % b",".join([entry] * count)


class Reader:
    """Reads the values of one field.

    Args:
        field: What it must look like.
        is_one_step: Whether an axis of one step comes before its last one.
        finish: Gets rows [N, features], and the same as doubles; returns what is meant by them.
    """

    def __init__(
        self,
        field: ArrayField,
        *,
        is_one_step: bool = False,
        finish: Callable[[Array, np.ndarray], Array] | None = None,
    ) -> None:
        self.field = field
        self.finish = finish
        self._is_one_step = is_one_step
        self.name = field.name
        self._key = brackets(f'"{field.name}":'.encode())
        limit = FLOAT32_MAX
        self._ranges = [(max(x.low, -limit), min(x.high, limit)) for x in field.features]

    def layout(self, value: Any, bracketed: bytes) -> Layout:
        """Return how a value lies, by its lists: all axes of the field, or all but the first.

        Lists of no and of one entry have the same brackets: `read` tells them apart.

        Args:
            value: Parsed JSON.
            bracketed: `brackets` of the body. In its strings quotes are escaped: what looks like
                a field's name is one.

        Raises:
            UnfitError: It breaks the contract, or is written in an unusual way.
        """
        shape = _first_lengths(value)
        if math.prod(shape) > len(bracketed):
            raise UnfitError  # the first entries are longer than the others
        expected = self._brackets_of(shape)
        at = bracketed.find(self._key)
        if at < 0 or not bracketed.startswith(expected, at + len(self._key)):
            raise UnfitError
        return self.layout_of(shape)

    def layout_of(self, shape: Shape) -> Layout:
        """Return the layout of numbers by the lengths of their lists, outermost first."""
        is_bare = len(shape) < len(self.field.axes)
        rows = (1, *shape) if is_bare else shape
        return Layout((*rows[:-1], 1, rows[-1]) if self._is_one_step else rows, is_bare)

    def read(self, value: Any, shape: Shape) -> Array:
        """Return an array of the value's numbers, which come without their nesting.

        Args:
            value: Parsed JSON.
            shape: Of its layout, or of another value's that has the same brackets.

        Raises:
            UnfitError: It breaks the contract, or is written in an unusual way.
            ValueError: It has not the shape.
        """
        numbers = self.numbers(value).reshape(shape)
        array = numbers.astype(np.float32)
        return array if self.finish is None else self.finish(array, numbers)

    def numbers(self, value: Any) -> np.ndarray:
        """Return all numbers of parsed JSON as doubles, without their nesting.

        Raises:
            UnfitError: It holds anything else, or a number that is not allowed.
        """
        try:
            numbers = np.frombuffer(value.as_buffer(of_type="d"))
        except TypeError as exc:  # booleans, null, strings, objects
            raise UnfitError from exc
        if self.field.is_ranged:
            self._check_ranges(numbers)
        elif len(numbers) > _FEW or math.hypot(*numbers.tolist()) > FLOAT32_MAX:
            # Few numbers are nearly always far below the limit even all at once.
            self._check_sizes(numbers)
        return numbers

    @staticmethod
    def _check_sizes(numbers: np.ndarray) -> None:
        if not -FLOAT32_MAX <= numbers.min() <= numbers.max() <= FLOAT32_MAX:
            raise UnfitError

    def _check_ranges(self, numbers: np.ndarray) -> None:
        """Refuse what is out of range; as doubles, for 1.00000001 is not 1."""
        width = len(self._ranges)
        if len(numbers) == width:
            for (low, high), number in zip(self._ranges, numbers.tolist(), strict=True):
                if not low <= number <= high:
                    raise UnfitError
            return
        # NumPy takes several times as long for a few numbers.
        is_short = len(numbers) <= _FEW
        columns = numbers.tolist() if is_short else numbers
        for i, (low, high) in enumerate(self._ranges):
            column = columns[i::width]
            least, most = (min(column), max(column)) if is_short else (column.min(), column.max())
            if not (low <= least and most <= high):
                raise UnfitError

    def _brackets_of(self, shape: Shape) -> bytes:
        axes = self.field.axes
        omitted = len(axes) - len(shape)
        if omitted not in (0, 1):
            raise UnfitError
        inner = b""
        for axis, count in zip(reversed(axes), reversed(shape), strict=False):
            if not axis.low <= count <= axis.high:
                raise UnfitError
            inner = list_brackets(inner, count)
        return inner


def _first_lengths(value: Any) -> Shape:
    """Return the length of the outermost list, of its first entry, and so on to the fourth."""
    shape: Shape = ()
    while isinstance(value, JsonArray) and len(shape) < 4:
        count = len(value)
        shape += (count,)
        value = value[0] if count else None
    return shape
