"""Nested lists of numbers to arrays, checked on the way."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import simdjson

from service.diagnosis import FLOAT32_MAX, ArrayField
from service.interface import Array

_WITHOUT_BRACKETS = b"0123456789.eE+- \t\r\n"
_MOST_SQUARES = FLOAT32_MAX**2
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
    """A value is not plainly what its field allows; `service.diagnosis` finds out."""


def brackets(body: bytes) -> bytes:
    """Return a body without blanks and what numbers are written with: brackets, commas, strings."""
    return body.translate(None, _WITHOUT_BRACKETS)


class Reader:
    """Reads the values of one field.

    Args:
        field: What it must look like.
        is_one_step: Whether an axis of one step comes before its last one.
    """

    def __init__(self, field: ArrayField, *, is_one_step: bool = False) -> None:
        self.field = field
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
        expected = self._brackets_of(shape)
        at = bracketed.find(self._key)
        if at < 0 or not bracketed.startswith(expected, at + len(self._key)):
            raise UnfitError
        return self._layout_of(shape)

    def _layout_of(self, shape: Shape) -> Layout:
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
        try:
            numbers = np.frombuffer(value.as_buffer(of_type="d"))
        except TypeError as exc:  # booleans, null, strings, objects
            raise UnfitError from exc
        if self.field.is_ranged:
            self._check_ranges(numbers)
        elif not numbers.dot(numbers) < _MOST_SQUARES:
            raise UnfitError
        return numbers.astype(np.float32).reshape(shape)

    def read_slowly(self, value: Any) -> tuple[Array, bool]:
        """Return the same of Python's lists, known to be as they must; and whether it is bare."""
        numbers = np.array(value, np.float64).astype(np.float32)
        layout = self._layout_of(numbers.shape)
        return numbers.reshape(layout.shape), layout.is_bare

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
            inner = b"[%b]" % b",".join([inner] * count)
        return inner


def _first_lengths(value: Any) -> Shape:
    """Return the length of the outermost list, of its first entry, and so on."""
    shape: Shape = ()
    while isinstance(value, simdjson.Array):
        count = len(value)
        shape += (count,)
        value = value[0] if count else None
    return shape
