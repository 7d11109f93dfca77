"""Counters and histograms that write their own Prometheus text.

The library's take a lock for every value, and histograms walk their buckets: a microsecond each,
eight times per request. And their text is made anew, label by label, at every scrape: milliseconds
in which a thread that renders keeps the event loop's thread from the interpreter. These are plain
dicts and lists, to which only the event loop's thread adds, and whose lines lack only numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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


class Counts:
    """A counter; the series given at the start are there from the start.

    Args:
        name: Without `_total`.
        text: Help.
        labels: Names of the labels.
        known: Values of the labels, one tuple per series; none holds quotes or backslashes.

    Attributes:
        counts: Events by the values of their labels, even of labels that nobody foresaw. Changed
            on the event loop's thread.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], known: Iterable[tuple[str, ...]]
    ) -> None:
        self._name = f"{name}_total"
        self._text = text
        self._labels = labels
        self.counts = Counter(dict.fromkeys(known, 0))
        self._heads = {values: self._head(values) for values in self.counts}

    def lines(self) -> list[str]:
        """Return the present counts; any thread."""
        return self.lines_of(dict(self.counts))

    def lines_of(self, counts: Mapping[tuple[str, ...], int]) -> list[str]:
        """Return lines for given counts, of all series that are known and maybe more."""
        heads = self._heads
        if len(counts) > len(heads):
            heads = self._heads = {values: self._head(values) for values in counts}
        return [
            *_title(self._name, self._text, "counter"),
            *(f"{heads[values]} {count}" for values, count in counts.items()),
        ]

    def _head(self, values: tuple[str, ...]) -> str:
        return self._name + _braced(zip(self._labels, values, strict=True))


class Histogram:
    """A histogram, without a label or with one whose values are known from the start.

    Args:
        name: Of the metric.
        text: Help.
        bounds: Upper bounds of the buckets, in order.
        label: Name of the label.
        values: Its values, one per series; none holds quotes or backslashes.

    Attributes:
        series: Buckets by the label's value.
    """

    def __init__(
        self,
        name: str,
        text: str,
        bounds: Sequence[float],
        label: str | None = None,
        values: Iterable[str] = ("",),
    ) -> None:
        self._title = _title(name, text, "histogram")
        self.series = {value: Buckets(bounds) for value in values}
        upto = [*(str(bound) for bound in bounds), "+Inf"]
        self._heads: dict[str, list[str]] = {}
        for value in self.series:
            own = [] if label is None else [(label, value)]
            self._heads[value] = [
                *(f"{name}_bucket{_braced([*own, ('le', bound)])}" for bound in upto),
                f"{name}_count{_braced(own)}",
                f"{name}_sum{_braced(own)}",
            ]

    @property
    def only(self) -> Buckets:
        """The series of a histogram without a label."""
        return self.series[""]

    def sort(self) -> None:
        """Put values that wait into their buckets: they would be too many some day."""
        for buckets in self.series.values():
            buckets.sort()

    def lines(self) -> list[str]:
        """Return the present counts; any thread."""
        lines = list(self._title)
        for value, buckets in self.series.items():
            counts, total = buckets.read()
            numbers = (*counts, counts[-1], total)
            lines += [f"{h} {n}" for h, n in zip(self._heads[value], numbers, strict=True)]
        return lines


def _title(name: str, text: str, kind: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _braced(labels: Iterable[tuple[str, str]]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in labels)
    return f"{{{inside}}}" if inside else ""
