"""State features beyond a bound that the spec declares are taken for the bound."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from operator import ge, le
from typing import Any

import numpy as np

from models.spec import Spec, States


class Saturations:
    """Brings features back to where they saturate, before anything else looks at a state.

    Args:
        spec: Declares them.
    """

    def __init__(self, spec: Spec) -> None:
        saturations = sorted(spec.saturations, key=lambda each: spec.state_index(each.feature))
        self._columns = np.array([spec.state_index(x.feature) for x in saturations], np.intp)
        self._low = np.array(
            [-math.inf if x.low is None else x.low for x in saturations], np.float32
        )
        self._high = np.array(
            [math.inf if x.high is None else x.high for x in saturations], np.float32
        )
        self._lows, self._highs = self._low.tolist(), self._high.tolist()
        self._has_low = any(x.low is not None for x in saturations)
        # One state comes most often; NumPy takes many times as long to compare a few numbers of it.
        form, end = "=", 0
        for column in self._columns.tolist():
            form += f"{4 * (column - end)}xf"
            end = column + 1
        self._of_one: Callable[[Any], tuple[float, ...]] = struct.Struct(form).unpack_from

    def applied(self, states: States) -> States:
        """Return states of which no feature is beyond its bounds; NaN stays.

        Args:
            states: [..., S], rows without gaps; not changed.

        Returns:
            The same array if nothing is beyond, else a copy.
        """
        if states.size == states.shape[-1]:
            picked = self._of_one(states)
            if all(map(le, picked, self._highs)) and (
                not self._has_low or all(map(ge, picked, self._lows))
            ):
                return states
        values = states[..., self._columns]
        within = np.clip(values, self._low, self._high)
        if ((within == values) | np.isnan(values)).all():
            return states
        saturated = states.copy()
        saturated[..., self._columns] = within
        return saturated
