"""From repetitions to numbers that can be compared. Pure functions."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Repetitions = dict[str, dict[str, list[float]]]
"""Values by candidate and measure, one a repetition."""

Medians = dict[str, dict[str, float]]
"""Median values by candidate and measure."""


@dataclass(frozen=True)
class WrkFigures:
    """What one run of wrk has seen.

    Attributes:
        rate: Answers a second.
        faults: What went wrong, by kind; empty if every answer was a 2xx or 3xx in time.
    """

    rate: float
    faults: dict[str, int]


def parse_wrk(output: str) -> WrkFigures:
    """Read the line that `post.lua` prints.

    Raises:
        ValueError: There is none, or it is about no time at all.
    """
    line = re.search(r"^FIGURES (.+)$", output, re.MULTILINE)
    if line is None:
        raise ValueError("wrk has printed no figures")
    found = dict(pair.split("=") for pair in line[1].split())
    requests, duration_s = int(found["requests"]), 1e-6 * int(found["duration_us"])
    if duration_s <= 0:
        raise ValueError("wrk has measured nothing")
    faults = {kind: int(found[kind]) for kind in ("refused", "broken", "late")}
    return WrkFigures(requests / duration_s, {kind: n for kind, n in faults.items() if n})


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed.

    Raises:
        ValueError: There are no values, or the share is not in (0, 1].
    """
    ordered = sorted(values)
    if not ordered or not 0 < share <= 1:
        raise ValueError("percentiles need values, and a share in (0, 1]")
    # The product of 0.99 and 100 is a little above 99: without rounding it would be rank 100.
    return ordered[math.ceil(round(share * len(ordered), 9)) - 1]


def due_s(seconds: float, hz: float, at_once: int = 1) -> list[float]:
    """Return when requests are due, in s from the first: `at_once` of them `hz` times a second."""
    return [i / hz for i in range(max(1, int(seconds * hz))) for _ in range(at_once)]


def scheduled_latencies_s(due: Sequence[float], answered: Sequence[float]) -> list[float]:
    """Return how long after its scheduled moment each request was answered.

    Counting from the moment of sending would hide the time that a request waits to be sent.
    """
    return [end - start for start, end in zip(due, answered, strict=True)]


def medians(repetitions: Repetitions) -> Medians:
    """Return the median of each candidate's measures; measures without values are left out."""
    return {
        name: {measure: statistics.median(x) for measure, x in measures.items() if x}
        for name, measures in repetitions.items()
    }


def best(of: Medians, names: Iterable[str], measure: str, *, lowest: bool = False) -> str | None:
    """Return which candidate has the highest (or lowest) median; None if none has one."""
    measured = [name for name in names if measure in of.get(name, {})]
    if not measured:
        return None
    pick = min if lowest else max
    return pick(measured, key=lambda name: of[name][measure])


def ratio(of: Medians, first: str, second: str | None, measure: str) -> float | None:
    """Return the first candidate's median over the second's; None if either is missing."""
    above, below = (of.get(name or "", {}).get(measure) for name in (first, second))
    return above / below if above is not None and below else None
