"""Values sorted into the buckets of a histogram, cheaply enough for every request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

LATENCY_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
COUNTS = tuple(float(2**n) for n in range(14))
PROBABILITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.99, 1.0)
UNCERTAINTIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_MOST_WAITING = 4096


class Buckets:
    """One series of a histogram. One thread adds and sorts; any may read.

    Values wait in a list until somebody sorts them: many at once cost a tenth of one by one.

    Args:
        bounds: Upper bounds, in order.

    Attributes:
        add: Adds a finite value.
    """

    __slots__ = ("_bounds", "_seen", "add")

    add: Callable[[float], None]

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._keep([0] * (len(bounds) + 1), 0.0)

    def _keep(self, counts: list[int], total: float) -> None:
        waiting: list[float] = []
        # One assignment: who reads meanwhile has all of what was or all of what is.
        self._seen = counts, total, waiting
        self.add = waiting.append

    def add_all(self, values: Sequence[float]) -> None:
        """Add finite values."""
        waiting = self._seen[2]
        waiting += values
        if len(waiting) > _MOST_WAITING:
            self.sort()

    def sort(self) -> None:
        """Put values that wait into their buckets."""
        counts, total, waiting = self._seen
        if waiting:
            self._keep(*self._sorted(counts, total, waiting))

    def read(self) -> tuple[list[int], float]:
        """Return how many values lie up to each bound, the last being infinity; and their sum."""
        counts, total, waiting = self._seen
        if waiting:
            counts, total = self._sorted(counts, total, waiting.copy())
        return list(accumulate(counts)), total

    def _sorted(
        self, counts: list[int], total: float, waiting: list[float]
    ) -> tuple[list[int], float]:
        values = np.array(waiting)
        more = np.bincount(np.searchsorted(self._bounds, values), minlength=len(counts)).tolist()
        added = float(values.sum())
        return [x + y for x, y in zip(counts, more, strict=True)], total + added
