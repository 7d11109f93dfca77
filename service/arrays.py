"""Nested lists of numbers to arrays, checked on the way; NumPy alone takes twice as long."""

from __future__ import annotations

import struct
from itertools import chain, starmap
from typing import Any

import numpy as np

from service.diagnosis import ArrayField, depth_of
from service.interface import Array


class UnfitError(Exception):
    """A value breaks the contract of its field; `service.diagnosis` finds out where."""


class Reader:
    """Reads the values of one field.

    Args:
        field: What it must look like.
    """

    def __init__(self, field: ArrayField) -> None:
        self.field = field
        self.name = field.name
        self._low = [feature.low for feature in field.features]
        self._high = [feature.high for feature in field.features]
        self._lows, self._highs = np.array(self._low), np.array(self._high)
        # Packing takes nothing but the right count of numbers. Asked for standard sizes ("="), it
        # makes no float32 of a number that is too large for one; native packing makes infinity.
        width = len(field.features)
        self._as_floats = struct.Struct(f"={width}f").pack
        self._as_doubles = struct.Struct(f"{width}d").pack

    def read(self, value: Any) -> Array:
        """Return an array of the value's nesting: all axes of the field, or all but the first.

        Args:
            value: Parsed JSON; booleans in it would count as 0 and 1.

        Raises:
            UnfitError: It breaks the contract.
        """
        levels = self.field.axes
        omitted = len(levels) - depth_of(value)
        if omitted not in (0, 1):
            raise UnfitError
        rows, shape = [value], []
        try:
            for axis in levels[omitted:-1]:
                count = len(rows[0])
                if not axis.low <= count <= axis.high or any(len(row) != count for row in rows):
                    raise UnfitError
                shape.append(count)
                rows = list(chain.from_iterable(rows))
            if self.field.is_ranged and not (len(rows) == 1 and self._is_within(rows[0])):
                numbers = self._many_within(rows)
            else:
                numbers = np.frombuffer(b"".join(starmap(self._as_floats, rows)), np.float32)
        except (struct.error, TypeError, OverflowError) as exc:
            raise UnfitError from exc
        return numbers.reshape(*shape, -1)

    def _is_within(self, row: list[float]) -> bool:
        """Tell whether a row's numbers are in their ranges; NumPy takes ten times as long."""
        for low, x, high in zip(self._low, row, self._high, strict=False):
            if not low <= x <= high:
                return False
        return True

    def _many_within(self, rows: list[list[float]]) -> Array:
        # Ranges are checked on doubles: 1.00000001 is not 1.
        numbers = np.frombuffer(b"".join(starmap(self._as_doubles, rows)))
        columns = numbers.reshape(len(rows), -1)
        if not ((columns >= self._lows).all() and (columns <= self._highs).all()):
            raise UnfitError
        return numbers.astype(np.float32)
