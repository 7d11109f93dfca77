"""Whether the numbers of a CommonRoad file can be, before anything else reads it.

The file is read once, in pieces, and each number is judged as it comes: what is wrong is named by
its line, its element and what is allowed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from training.recordings.recording import (
    LARGEST_SIZE_M,
    LEAST_SIZE_M,
    SIZE_UNITS,
    RecordingError,
)
from world_model_client.errors import printable

MOST_BYTES = 64 * 2**20
MOST_STEPS = 1_000_000
"""Of a scenario."""

_ROOT = "commonRoad"
_OBSTACLES = frozenset({"obstacle", "dynamicObstacle", "staticObstacle"})
_PLACES = frozenset({"x", "y", "z"})
_VALUES = frozenset({"exact", "intervalStart", "intervalEnd"})
_MOST_DEPTH = 64
_LEAST_POINTS = 3
_PIECE_BYTES = 2**16


class _Allowed(NamedTuple):
    """Which numbers an element may hold."""

    low: float
    high: float
    unit: str = ""
    is_whole: bool = False
    is_open: bool = False

    def fits(self, value: float) -> bool:
        """Return whether it may hold a number."""
        is_above = value > self.low if self.is_open else value >= self.low
        return is_above and value <= self.high and (not self.is_whole or value == int(value))

    def __str__(self) -> str:
        above = "above " if self.is_open else ""
        whole = "whole numbers, " if self.is_whole else ""
        return f"{whole}{above}{self.low:g} to {self.high:g}{self.unit}"


_DT = _Allowed(0.0, 0.5, " s", is_open=True)
_STEP = _Allowed(0, MOST_STEPS, is_whole=True)
_SIZE = _Allowed(LEAST_SIZE_M, LARGEST_SIZE_M, f" {SIZE_UNITS}")
_RADIUS = _Allowed(LEAST_SIZE_M / 2, LARGEST_SIZE_M / 2, f" {SIZE_UNITS}")
_SIZES = {"length": _SIZE, "width": _SIZE, "radius": _RADIUS}
_PLACE = _Allowed(-1e9, 1e9, " m")
_ORIENTATION = _Allowed(-50.0, 50.0, " rad, not degrees")
_VELOCITY = _Allowed(-150.0, 150.0, " m/s")
_ANY = _Allowed(-1e12, 1e12)


def check_scenario(path: Path) -> None:
    """Read a file for the sake of its numbers.

    Raises:
        RecordingError: It is too large, no XML, no CommonRoad scenario, or a number cannot be.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise RecordingError(f"{path} has {size} bytes (allowed: {MOST_BYTES})")
        with path.open("rb") as file:
            check = _Check(path)
            while piece := file.read(_PIECE_BYTES):
                check.parser.Parse(piece, False)
            check.parser.Parse(b"", True)
    except OSError as exc:
        raise RecordingError(f"{path} cannot be read: {exc.strerror}") from exc
    except expat.ExpatError as exc:
        raise RecordingError(f"{path} is no whole XML file: {exc}") from exc


class _Check:
    """What is known while a file is read.

    Args:
        path: For messages.
    """

    def __init__(self, path: Path) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._data
        self._path = path
        self._names: list[str] = []
        self._lines: dict[str, int] = {}
        self._points = 0
        """Of the polygon that is being read."""
        self._text = ""

    def _fail(self, problem: str) -> RecordingError:
        return RecordingError(f"{self._path}, line {self.parser.CurrentLineNumber}: {problem}")

    def _doctype(self, *_: object) -> None:
        # Its entities could make gigabytes of a few bytes.
        raise self._fail("has a DOCTYPE (allowed: none)")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._names:
            if name != _ROOT:
                raise self._fail(f"begins with <{printable(name, 60)}> (allowed: <{_ROOT}>)")
            self._number("timeStepSize", attributes.get("timeStepSize", ""), _DT)
        if len(self._names) >= _MOST_DEPTH:
            raise self._fail(f"has elements within each other (allowed: {_MOST_DEPTH} levels)")
        if len(self._names) == 1 and "id" in attributes:
            before = self._lines.setdefault(attributes["id"], self.parser.CurrentLineNumber)
            if before != self.parser.CurrentLineNumber:
                raise self._fail(
                    f"<{name}> has the id {printable(attributes['id'], 60)} of line {before} "
                    "(allowed: one element for each id)"
                )
        self._names.append(name)
        self._text = ""
        self._points = 0 if name == "polygon" else self._points + (name == "point")

    def _data(self, text: str) -> None:
        if self._allowed() is not None:
            self._text += text

    def _end(self, name: str) -> None:
        allowed = self._allowed()
        if name == "polygon" and self._points < _LEAST_POINTS:
            raise self._fail(f"polygon has {self._points} points (allowed: 3 or more)")
        self._names.pop()
        if allowed is not None:
            path = [*self._names[-1:], name] if name in _VALUES else [name]
            self._number("/".join(path), self._text, allowed)
        self._text = ""

    def _allowed(self) -> _Allowed | None:
        """Return what the element that is being read may hold; None: anything."""
        name, above = self._names[-1], self._names[-2:-1]
        if name in _PLACES:
            return _PLACE
        if name in _SIZES and self._names[1] in _OBSTACLES:
            return _SIZES[name]
        if name in _VALUES:
            kinds = {"time": _STEP, "orientation": _ORIENTATION, "velocity": _VELOCITY}
            return kinds.get(above[0], _ANY) if above else _ANY
        return None

    def _number(self, name: str, text: str, allowed: _Allowed) -> None:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and allowed.fits(value)):
            shown = repr(printable(text.strip(), 60)) if text.strip() else "missing"
            raise self._fail(f"{name} is {shown} (allowed: {allowed})")
