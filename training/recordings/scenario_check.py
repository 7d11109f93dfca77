"""Whether the numbers of a CommonRoad file can be, before anything else reads it.

The file is read once, in pieces, and each number is judged as it comes: what is wrong is named by
its line, its element and what is allowed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
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
MOST_ELEMENTS = 5_000_000
_MOST_ATTRIBUTES, _MOST_ATTRIBUTE, _MOST_NUMBER = 64, 10_000, 100
"""Of an element; characters of an attribute, and of a number."""
_MOST_MARKUP_BYTES = 2**20
"""Of a tag, a comment or the like: the parser reads it anew with each piece."""

MOST_LANELETS, MOST_OBSTACLES = 10_000, 20_000
MOST_FOLLOWERS = 32
"""Successors of a lanelet, and predecessors."""
_FOLLOWERS = ("successor", "predecessor")
_REFERENCES = ("id", "ref")
_REFERENCE = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[+-]?[0-9]+")
"""Python reads 1_0 as 10, and figures of any script; others do not."""

_STATES = frozenset({"state", "initialState", "goalState", "occupancy"})
_VALUES_OF = ({"exact"}, {"intervalStart", "intervalEnd"})
_PLACES_OF = ({"point"}, {"rectangle"}, {"circle"}, {"polygon"}, {"lanelet"})
_VALUED = {
    "position": _PLACES_OF,
    "time": _VALUES_OF,
    "orientation": _VALUES_OF,
    "velocity": _VALUES_OF,
    "acceleration": _VALUES_OF,
    "yawRate": _VALUES_OF,
    "slipAngle": _VALUES_OF,
}
"""What each part of a state has to hold, one of these."""


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
            count = 0
            while piece := file.read(_PIECE_BYTES):
                check.parser.Parse(piece, False)
                count += len(piece)
                check.unread(count - check.parser.CurrentByteIndex)
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
        self._lines: dict[int, int] = {}
        self._points = 0
        """Of the polygon that is being read."""
        self._counts: Counter[str] = Counter()
        """Of all elements, lanelets and obstacles, and of what follows on a lanelet."""
        self._inner: set[str] = set()
        """What the part of a state holds that is being read."""
        self._text = ""

    def unread(self, count: int) -> None:
        """Refuse markup that does not end, by the bytes that wait for its end."""
        if count > _MOST_MARKUP_BYTES:
            raise self._fail(f"has a tag or comment of more than {_MOST_MARKUP_BYTES} bytes")

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
        self._count(name)
        self._check_attributes(name, attributes)
        if len(self._names) == 1 and "id" in attributes:
            before = self._lines.setdefault(int(attributes["id"]), self.parser.CurrentLineNumber)
            if before != self.parser.CurrentLineNumber:
                raise self._fail(
                    f"<{name}> has the id {attributes['id']} of line {before} (allowed: one "
                    "element for each id)"
                )
        self._names.append(name)
        self._text = ""
        self._points = 0 if name == "polygon" else self._points + (name == "point")
        if name in _VALUED:
            self._inner = set()

    def _count(self, name: str) -> None:
        """Refuse an element that is one too many."""
        bounds = {"all": ("elements", MOST_ELEMENTS)}
        if len(self._names) == 1 and name == "lanelet":
            bounds["lanelets"] = ("lanelets", MOST_LANELETS)
            for each in _FOLLOWERS:
                self._counts[each] = 0
        elif len(self._names) == 1 and name in _OBSTACLES:
            bounds["obstacles"] = ("obstacles", MOST_OBSTACLES)
        elif name in _FOLLOWERS:
            bounds[name] = (f"{name}s of a lanelet", MOST_FOLLOWERS)
        for kind, (what, most) in bounds.items():
            self._counts[kind] += 1
            if self._counts[kind] > most:
                raise self._fail(f"has more {what} than are allowed ({most})")

    def _check_attributes(self, name: str, attributes: dict[str, str]) -> None:
        """Refuse attributes that are too many or too long, and ids that are no whole numbers."""
        if len(attributes) > _MOST_ATTRIBUTES:
            raise self._fail(
                f"<{printable(name, 60)}> has {len(attributes)} attributes (allowed: "
                f"{_MOST_ATTRIBUTES})"
            )
        for key, value in attributes.items():
            if len(value) > _MOST_ATTRIBUTE:
                raise self._fail(
                    f"<{printable(name, 60)}> has an attribute {printable(key, 60)} of "
                    f"{len(value)} characters (allowed: {_MOST_ATTRIBUTE})"
                )
            if key in _REFERENCES and not _REFERENCE.fullmatch(value):
                raise self._fail(
                    f"<{printable(name, 60)}> has the {key} {printable(value, 60)!r} (allowed: "
                    "whole numbers of up to 18 figures)"
                )

    def _data(self, text: str) -> None:
        if self._allowed() is not None:
            self._text += text
            if len(self._text) > _MOST_NUMBER:
                raise self._fail(
                    f"{self._names[-1]} has more than {_MOST_NUMBER} characters, and is no number"
                )

    def _end(self, name: str) -> None:
        allowed = self._allowed()
        if name == "polygon" and self._points < _LEAST_POINTS:
            raise self._fail(f"polygon has {self._points} points (allowed: 3 or more)")
        self._names.pop()
        self._check_value(name, self._names[-1] if self._names else "")
        if allowed is not None:
            path = [*self._names[-1:], name] if name in _VALUES else [name]
            self._number("/".join(path), self._text, allowed)
        self._text = ""

    def _check_value(self, name: str, above: str) -> None:
        """Refuse a part of a state that holds no value; the reader has no word for it."""
        wanted = _VALUED.get(name, ())
        if wanted and above in _STATES and not any(each <= self._inner for each in wanted):
            shown = " or ".join(" and ".join(sorted(each)) for each in wanted)
            raise self._fail(f"{name} holds no value (allowed: {shown})")
        if above in _VALUED:
            self._inner.add(name)

    def _allowed(self) -> _Allowed | None:
        """Return what the element that is being read may hold; None: anything."""
        name, above = self._names[-1], self._names[-2:-1]
        if name == "orientation" and above == ["rectangle"]:
            return _ORIENTATION
        if name in _PLACES:
            return _PLACE
        if name in _SIZES and self._names[1] in _OBSTACLES:
            return _SIZES[name]
        if name in _VALUES:
            kinds = {"time": _STEP, "orientation": _ORIENTATION, "velocity": _VELOCITY}
            return kinds.get(above[0], _ANY) if above else _ANY
        return None

    def _number(self, name: str, text: str, allowed: _Allowed) -> None:
        text = text.strip(" \t\r\n")
        wanted = _WHOLE if allowed.is_whole else _NUMBER
        value = float(text) if wanted.fullmatch(text) else math.nan
        if not (math.isfinite(value) and allowed.fits(value)):
            shown = repr(printable(text, 60)) if text else "missing"
            raise self._fail(f"{name} is {shown} (allowed: {allowed})")
