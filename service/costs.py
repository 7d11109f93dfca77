"""What launches cost, as measured at warm-up."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Costs:
    """Durations of launches, undisturbed.

    Attributes:
        rows: Launch shapes, ascending.
        step_s: Seconds of one step of a launch of each shape, with its share of the copies.
        is_divisible: Whether a launch can be left between steps and gone on with later.
    """

    rows: tuple[int, ...]
    step_s: tuple[float, ...]
    is_divisible: bool = True

    def launch_s(self, rows: int, steps: int) -> float:
        """Return how long so many steps of so many rows take, in as many launches as needed."""
        whole, rest = divmod(rows, self.rows[-1])
        seconds = whole * steps * self.step_s[-1]
        if rest:
            seconds += steps * self.step_s[bisect_left(self.rows, rest)]
        return seconds

    def work_s(self, work: int) -> float:
        """Return how long so many rows x steps take in launches of the best shape."""
        return work * self._best_s

    @cached_property
    def _best_s(self) -> float:
        return min(s / rows for rows, s in zip(self.rows, self.step_s, strict=True))

    def most_rows(self, seconds: float, horizon: int) -> int:
        """Return the rows of the biggest launch that occupies the engine for no longer at once.

        Where launches can be left between steps, that is one step; else the whole horizon. The
        smallest shape always may.
        """
        step_s = seconds if self.is_divisible else seconds / horizon
        for rows, seconds_a_step in self._biggest_first:
            if seconds_a_step <= step_s:
                return rows
        return self.rows[0]

    @cached_property
    def _biggest_first(self) -> list[tuple[int, float]]:
        return list(zip(reversed(self.rows), reversed(self.step_s), strict=True))

    def most_steps(self, seconds: float, rows: int, horizon: int) -> int:
        """Return the steps that so many rows may take in that time; at least the least there are.

        Where launches cannot be left between steps, that is a whole horizon.
        """
        least = 1 if self.is_divisible else horizon
        least_s = least * self.step_s[min(bisect_left(self.rows, rows), len(self.rows) - 1)]
        return least * max(1, int(seconds / least_s)) if least_s else 1 << 30
