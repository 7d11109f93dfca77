"""How far a command is: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tqdm import tqdm

_LINE_S, _LINE_SHARE = 60.0, 0.1
"""A line is written at the first of these, in seconds and in share of the work, ..."""
_LEAST_S = 2.0
"""... but lines are at least so far apart."""


class Progress:
    """Shows the share of a whole command that is done, and the time left; a context manager.

    Args:
        title: What the command does: "training".
        total: All work, in any unit whose pieces take about the same time.
        unit: Of `total`, for people; empty if only the share means something.
        done: Work that an earlier call did.
        is_shown: Whether to show anything.
    """

    def __init__(
        self,
        title: str,
        total: float,
        *,
        unit: str = "",
        done: float = 0.0,
        is_shown: bool = True,
    ) -> None:
        self._title, self._unit, self._is_shown = title, unit, is_shown
        self._total = max(total, 1e-9)
        self._first = self._done = min(done, total)
        self._note = ""
        self._bar: tqdm | None = None
        self._began_s = self._line_s = time.monotonic()
        self._line_done = self._done

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        if not self._is_shown:
            return self
        if sys.stderr.isatty():
            share = (
                "{l_bar}{bar}| {n_fmt} of {total_fmt} {unit}, {elapsed}, {remaining} left{postfix}"
            )
            self._bar = tqdm(
                desc=self._title,
                total=self._total,
                initial=self._done,
                unit=self._unit,
                unit_scale=True,
                smoothing=0,
                bar_format=share
                if self._unit
                else "{l_bar}{bar}| {elapsed}, {remaining} left{postfix}",
            )
        else:
            self._write()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._is_shown and kind is None and self._done != self._line_done:
            self._write()

    def extend(self, amount: float) -> None:
        """Say that there is more work than was known."""
        self._total += amount
        if self._bar is not None:
            self._bar.total = self._total

    def advance(self, amount: float) -> None:
        """Say that some more work is done."""
        self.reach(self._done + amount)

    def skip(self, amount: float) -> None:
        """Say that an earlier call did some work."""
        self._first += amount
        self.advance(amount)

    @contextmanager
    def stretch(self, amount: float) -> Iterator[Callable[[float], None]]:
        """Do some of the work in the block, which may say what share of it is done."""
        begin = self._done
        yield lambda share: self.reach(begin + amount * share)
        self.reach(begin + amount)

    def reach(self, done: float) -> None:
        """Say how much work is done in all; never less than before."""
        done = min(max(done, self._done), self._total)
        if self._bar is not None:
            self._bar.update(done - self._done)
        self._done = done
        if self._bar is None and self._is_shown and self._is_time():
            self._write()

    def finish(self) -> None:
        """Say that all is done, if less was needed than expected."""
        self.reach(self._total)

    def note(self, text: str) -> None:
        """Say what is being done now."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def _is_time(self) -> bool:
        waited_s = time.monotonic() - self._line_s
        share = (self._done - self._line_done) / self._total
        return waited_s >= _LEAST_S and (waited_s >= _LINE_S or share >= _LINE_SHARE)

    def _write(self) -> None:
        self._line_s, self._line_done = time.monotonic(), self._done
        amount = f" ({_amount(self._done)} of {_amount(self._total)} {self._unit})"
        parts = [
            f"{self._title}: {100 * self._done / self._total:.0f} %{amount if self._unit else ''}",
            *([self._left()] if self._done < self._total else []),
            *([self._note] if self._note else []),
        ]
        print(f"{time.strftime('%H:%M:%S')} {', '.join(parts)}", file=sys.stderr, flush=True)

    def _left(self) -> str:
        done = self._done - self._first
        if done <= 0:
            return "time left unknown yet"
        left_s = (time.monotonic() - self._began_s) * (self._total - self._done) / done
        return f"{duration(left_s)} left"


def duration(seconds: float) -> str:
    """Return a length of time for people: "40 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _amount(value: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / limit if letter != 'k' else value / 1e3:.4g}{letter}"
    return f"{value:.0f}"
