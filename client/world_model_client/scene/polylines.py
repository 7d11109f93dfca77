"""Lines on a map as rows of points: the closest place on one, its heading and its curvature."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from world_model_client.errors import InvalidInputError
from world_model_client.scene.frames import Floats, numbers, wrapped

_LEAST_STEP_M = 1e-3
"""Points nearer to the one before are left out: the direction between them is rounding."""

_JOG_M, _JOG_COS = 2.0, 0.5
"""A step that is shorter and turns by more than 60 degrees is a fault where two pieces of a map are
joined: they overlap, or lie side by side."""

_MOST_AT_ONCE = 2**20
"""Points times pieces of a line whose distances are computed at once, which bounds memory."""
_WINDOW = 512
"""So many points in a row share the pieces near them, if all points with all pieces are too many:
those of a path are near each other."""
_SLACK = 1e-6
"""Share, and m, for the rounding of distances."""


class Projection(NamedTuple):
    """The closest places on lines to N points.

    Attributes:
        along: [N, L] m, from the line's first point; below 0, or above its length, beyond its ends.
        lateral: [N, L] m, from the line to the point, positive on the side to which angles are
            positive, from x towards y: the left one if y is to the left.
        beyond: [N, L] m, how far beyond an end, 0 on the line.
    """

    along: Floats
    lateral: Floats
    beyond: Floats


class Polylines:
    """Lines through points, in their order; straight on beyond their ends.

    A line whose last point is its first is closed and has no ends. Points that are repeated count
    once; those that lead back or aside for less than 2 m, as where two pieces of a map overlap, are
    left out. Between two pieces the heading turns evenly within half of the shorter one: points on
    an arc give the arc's own headings and curvature, however few they are.

    Args:
        lines: L of them, each [P, 2], x and y in m, with at least two points that differ.
        names: Of each, for errors.

    Attributes:
        lengths_m: [L] from the first point of each to its last.
        is_closed: [L] whether it has no ends.

    Raises:
        InvalidInputError: Points make no line; the message names it.
    """

    def __init__(self, lines: Sequence[ArrayLike], names: Sequence[str]) -> None:
        parts = [_Line(points, name) for points, name in zip(lines, names, strict=True)]
        counts = np.array([len(part.lengths) for part in parts], np.intp)
        ends: NDArray[np.intp] = np.cumsum(counts)
        self._first, self._last = ends - counts, ends - 1
        self._x, self._y, self._cos, self._sin, self._lengths, self._starts = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("x", "y", "cos", "sin", "lengths", "starts")
        )
        self.lengths_m = np.array([part.length_m for part in parts])
        self.is_closed = np.array([part.is_closed for part in parts])
        turns = [part.turns() for part in parts]
        # All lines' headings in one table: those of line i are found from `bases[i]` on.
        self._low = np.array([knots[0] for knots, _ in turns])
        self._high = np.array([knots[-1] for knots, _ in turns])
        spans = self._high - self._low + 1.0
        self._bases = np.cumsum(spans) - spans - self._low
        self._knots = np.concatenate(
            [knots + base for (knots, _), base in zip(turns, self._bases, strict=True)]
        )
        self._headings = np.concatenate([headings for _, headings in turns])

    def heading_at(self, along: Floats) -> Floats:
        """Return the headings of the lines, not wrapped.

        Args:
            along: [..., L] m, from each one's first point.

        Returns:
            [..., L] rad, counted from x towards y.
        """
        places = self._within(along)
        table = np.clip(places, self._low, self._high) + self._bases
        return np.asarray(np.interp(table, self._knots, self._headings))

    def _within(self, along: Floats) -> Floats:
        """Return places [..., L] in the first turn of closed lines."""
        if not self.is_closed.any():
            return along
        return np.where(self.is_closed, np.mod(along, self.lengths_m), along)

    def positions_at(self, along: Floats) -> Floats:
        """Return the points [..., L, 2] at places [..., L] on the lines."""
        places = self._within(along)
        piece = np.empty(places.shape, np.intp)
        for i, (first, last) in enumerate(zip(self._first, self._last, strict=True)):
            inner = self._starts[first + 1 : last + 1]
            piece[..., i] = first + np.searchsorted(inner, places[..., i], "right")
        rest = places - self._starts[piece]
        x = self._x[piece] + rest * self._cos[piece]
        return np.stack([x, self._y[piece] + rest * self._sin[piece]], axis=-1)

    def project(self, x: Floats, y: Floats) -> Projection:
        """Return the closest place on each line to each point.

        Beyond an end only who is nearest to that end is: a line goes straight on for them, and not
        through others.

        Args:
            x: [N] m.
            y: [N] m.
        """
        if len(x) * len(self._x) <= _MOST_AT_ONCE:
            return self._project(x, y, None)
        parts = [
            part
            for i in range(0, len(x), _WINDOW)
            for part in self._projections(x[i : i + _WINDOW], y[i : i + _WINDOW])
        ]
        return Projection(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def bounds(self) -> tuple[Floats, Floats]:
        """Return the lowest and the highest x and y [2] of all points of the lines."""
        starts = np.stack([self._x, self._y], axis=-1)
        ends = starts + self._lengths[:, None] * np.stack([self._cos, self._sin], axis=-1)
        return np.minimum(starts, ends).min(axis=0), np.maximum(starts, ends).max(axis=0)

    def _projections(
        self, x: Floats, y: Floats, pieces: NDArray[np.intp] | None = None
    ) -> Iterator[Projection]:
        """Yield the closest places in parts, each by the pieces near its points."""
        pieces = self._near(x, y, pieces)
        if len(x) > 1 and len(x) * len(pieces) > _MOST_AT_ONCE:
            half = len(x) // 2
            yield from self._projections(x[:half], y[:half], pieces)
            yield from self._projections(x[half:], y[half:], pieces)
        else:
            yield self._project(x, y, pieces)

    def _near(self, x: Floats, y: Floats, pieces: NDArray[np.intp] | None) -> NDArray[np.intp]:
        """Return the pieces of each line that can be the nearest one to any of the points.

        All points lie in a circle. A line is no farther from any of them than the middle of its
        nearest piece is from the circle's far side.
        """
        centre_x, centre_y = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
        radius = np.hypot(x - centre_x, y - centre_y).max()
        (from_x, from_y, cos, sin, lengths), firsts, lasts = self._picked(pieces)
        half = lengths / 2
        away = np.hypot(from_x + half * cos - centre_x, from_y + half * sin - centre_y)
        nearest = np.minimum.reduceat(away, firsts) + 2 * radius
        farthest = np.repeat(nearest, lasts - firsts + 1) * (1 + _SLACK) + _SLACK
        near = np.flatnonzero(away - half <= farthest)
        return near if pieces is None else pieces[near]

    def _picked(
        self, pieces: NDArray[np.intp] | None
    ) -> tuple[tuple[Floats, ...], NDArray[np.intp], NDArray[np.intp]]:
        """Return some pieces, in order, and each line's first and last one; None: all."""
        values = (self._x, self._y, self._cos, self._sin, self._lengths)
        if pieces is None:
            return values, self._first, self._last
        firsts = np.searchsorted(pieces, self._first)
        lasts = np.searchsorted(pieces, self._last, "right") - 1
        return tuple(each[pieces] for each in values), firsts, lasts

    def _project(self, x: Floats, y: Floats, pieces: NDArray[np.intp] | None) -> Projection:
        """Return the closest places, by some of the pieces; None: by all."""
        lines, firsts, lasts = self._picked(pieces)
        from_x, from_y = x[:, None] - lines[0], y[:, None] - lines[1]  # [N, pieces]
        cos, sin, lengths = lines[2:]
        ahead = from_x * cos + from_y * sin
        off = ahead - np.minimum(np.maximum(ahead, 0.0), lengths)
        squared = (from_y * cos - from_x * sin) ** 2 + off**2
        piece = np.stack(
            [
                first + squared[:, first : last + 1].argmin(axis=1)
                for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
            ],
            axis=1,
        )  # [N, L]
        rows = np.arange(len(x))[:, None]
        ahead, off = ahead[rows, piece], off[rows, piece]
        from_x, from_y = from_x[rows, piece], from_y[rows, piece]
        piece = piece if pieces is None else pieces[piece]
        cos, sin = self._cos[piece], self._sin[piece]
        lateral = cos * from_y - sin * from_x
        is_end = ((piece == self._first) & (off < 0)) | ((piece == self._last) & (off > 0))
        is_beyond = is_end & ~self.is_closed
        along = self._starts[piece] + np.where(is_beyond, ahead, ahead - off)
        is_corner = (off != 0) & ~is_beyond
        if is_corner.any():
            # The closest place is the same for a whole wedge of points: which side such a point is
            # on is seen from the heading there, which is between those of both pieces.
            heading, rest = self.heading_at(along), ahead - off
            across = np.cos(heading) * (from_y - rest * sin)
            across -= np.sin(heading) * (from_x - rest * cos)
            lateral = np.where(is_corner, np.copysign(np.hypot(lateral, off), across), lateral)
        return Projection(along, lateral, np.where(is_beyond, np.abs(off), 0.0))


class _Line:
    """One line in pieces: where they begin, their directions and lengths."""

    def __init__(self, points: ArrayLike, name: str) -> None:
        given = numbers(name, points, (None, 2), "finite points [P, 2], x and y in m")
        kept = _smoothly_joined(given)
        if len(kept) < 2:
            raise InvalidInputError(
                f"{name} has no length, by {len(given)} points (allowed: at least 2 points that "
                f"are {_LEAST_STEP_M:g} m apart)"
            )
        x, y = kept.T
        steps_x, steps_y = np.diff(x), np.diff(y)
        self.lengths = np.hypot(steps_x, steps_y)
        self.x, self.y = x[:-1], y[:-1]
        self.cos, self.sin = steps_x / self.lengths, steps_y / self.lengths
        ends = np.cumsum(self.lengths)
        self.starts, self.length_m = ends - self.lengths, float(ends[-1])
        self.is_closed = _is_closed(kept)

    def turns(self) -> tuple[Floats, Floats]:
        """Return where the heading begins and ends to turn, and what it is there."""
        headings = np.unwrap(np.arctan2(self.sin, self.cos))
        lengths, corners = self.lengths, self.starts[1:]
        if self.is_closed:
            # Once more before and after: at the last point it turns into the first piece.
            turn = headings[-1] + float(wrapped(headings[0] - headings[-1])) - headings[0]
            headings = np.concatenate([headings - turn, headings, headings + turn])
            corners = np.concatenate([self.starts + k * self.length_m for k in (-1, 0, 1)])[1:]
            lengths = np.tile(lengths, 3)
        if not len(corners):
            return np.zeros(1), headings
        half = np.minimum(lengths[:-1], lengths[1:]) / 2
        knots = np.stack([corners - half, corners + half], axis=1).reshape(-1)
        return knots, np.stack([headings[:-1], headings[1:]], axis=1).reshape(-1)


def _smoothly_joined(points: Floats) -> Floats:
    """Return the points without those that are repeated, or lead back or aside for a moment."""
    steps = np.diff(points, axis=0)
    lengths = np.hypot(steps[:, 0], steps[:, 1])
    ahead = (steps[1:] * steps[:-1]).sum(axis=1)
    is_jog = (lengths[1:] < _JOG_M) & (ahead < _JOG_COS * lengths[1:] * lengths[:-1])
    if lengths.min(initial=np.inf) >= _LEAST_STEP_M and not is_jog.any():
        return points
    rows = points.tolist()
    kept = rows[:1]
    for point in rows[1:]:
        if _is_step(kept, point):
            kept.append(point)
    if _is_closed(points) and kept[-1] != rows[-1]:
        # Its end comes before its beginning: the pieces overlap there.
        while len(kept) > 2 and not _is_step(kept, rows[-1]):
            kept.pop()
        kept.append(rows[-1])
    return np.array(kept)


def _is_step(kept: list[list[float]], point: list[float]) -> bool:
    """Return whether a point is a step on from those that are kept, and no fault."""
    (x, y), (next_x, next_y) = kept[-1], point
    step_x, step_y = next_x - x, next_y - y
    length = math.hypot(step_x, step_y)
    if length < _LEAST_STEP_M or len(kept) < 2 or length >= _JOG_M:
        return length >= _LEAST_STEP_M
    before_x, before_y = x - kept[-2][0], y - kept[-2][1]
    ahead = step_x * before_x + step_y * before_y
    return ahead >= _JOG_COS * length * math.hypot(before_x, before_y)


def _is_closed(points: Floats) -> bool:
    back = points[-1] - points[0]
    return len(points) > 3 and math.hypot(back[0], back[1]) < _LEAST_STEP_M
