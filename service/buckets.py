"""Values sorted into the buckets of a histogram, cheaply enough for every request."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

LATENCY_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
COUNTS = tuple(float(2**n) for n in range(14))
PROBABILITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.99, 1.0)
UNCERTAINTIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Buckets:
    """One series of a histogram. One thread adds; any may read.

    There is no lock: who reads meanwhile may see a value's bucket without its sum, never a torn
    number.

    Args:
        bounds: Upper bounds, in order.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Add a finite value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_all(self, values: NDArray[Any]) -> None:
        """Add finite values [K]: thousands at once do not hold the event loop."""
        places = np.searchsorted(self._bounds, values)
        for place, count in enumerate(np.bincount(places).tolist()):
            self._counts[place] += count
        self._sum += float(values.sum(dtype=np.float64))

    def read(self) -> tuple[list[int], float]:
        """Return how many values lie up to each bound, the last being infinity; and their sum."""
        return list(accumulate(self._counts.copy())), self._sum
