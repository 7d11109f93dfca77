"""Whether headings and speeds are in the units that they should be in, by how positions move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.recordings.recording import RecordingError, Track

Floats = NDArray[np.floating[Any]]

LARGEST_ANGLE_RAD = 0.35
SPEED_RATIOS = (0.7, 1.4)
"""Of the medians of given speeds and of those by positions."""

_SPAN_S = 1.0
"""Positions so far apart tell a direction in spite of their noise."""
_LONGEST_SPAN_S = 2.0
_MOVES_MPS = 2.0
_ENOUGH = 20


class _Spans(NamedTuple):
    """What pairs of positions tell, and what is given halfway between.

    Attributes:
        moved_mps: [n] speed by positions.
        course: [n] rad.
        heading: [n] rad; NaN if none is given.
        speed: [n] m/s; NaN if none is given.
    """

    moved_mps: Floats
    course: Floats
    heading: Floats
    speed: Floats


def check_units(source: str, tracks: Sequence[Track], names: tuple[str, str]) -> None:
    """Refuse headings in degrees, speeds in km/h, positions in degrees and times in ms.

    It takes medians over all who move, so that some wrong values do not matter.

    Args:
        source: For the message.
        tracks: As recorded.
        names: How the source calls headings and speeds.

    Raises:
        RecordingError: They cannot be in the right units.
    """
    parts = list(_spans(tracks))
    if not parts:
        return
    spans = _Spans(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    _check_heading(source, spans, names[0])
    _check_speed(source, spans, names[1])


def _spans(tracks: Sequence[Track]) -> Iterator[_Spans]:
    for track in tracks:
        if len(track.times_s) < 2 or (track.heading is None and track.speed is None):
            continue
        step_s = float(np.median(np.diff(track.times_s)))
        lag = min(max(1, round(_SPAN_S / step_s)), len(track.times_s) - 1)
        apart_s = track.times_s[lag:] - track.times_s[:-lag]
        moved = np.stack([track.x[lag:] - track.x[:-lag], track.y[lag:] - track.y[:-lag]])
        rows = apart_s <= max(_LONGEST_SPAN_S, 1.5 * lag * step_s)
        half = slice(lag // 2, lag // 2 + len(apart_s))
        unknown = np.full(int(rows.sum()), np.nan)
        yield _Spans(
            np.hypot(*moved)[rows] / apart_s[rows],
            np.arctan2(moved[1], moved[0])[rows],
            unknown if track.heading is None else track.heading[half][rows],
            unknown if track.speed is None else track.speed[half][rows],
        )


def _check_heading(source: str, spans: _Spans, name: str) -> None:
    rows = (spans.moved_mps > _MOVES_MPS) & np.isfinite(spans.heading)
    if rows.sum() < _ENOUGH:
        return
    is_backwards = spans.speed[rows] < 0
    off = spans.course[rows] - spans.heading[rows] + np.pi * is_backwards
    angle = float(np.median(np.abs(np.arctan2(np.sin(off), np.cos(off)))))
    if angle > LARGEST_ANGLE_RAD:
        raise RecordingError(
            f"{source}, {name}: is off the direction of motion by {angle:.2f} rad in the median "
            f"(allowed: {LARGEST_ANGLE_RAD:g}; it is in rad, not in degrees, and counted from the "
            "x axis towards the y axis)"
        )


def _check_speed(source: str, spans: _Spans, name: str) -> None:
    given = np.abs(spans.speed)
    rows = np.isfinite(given) & (np.maximum(given, spans.moved_mps) > _MOVES_MPS)
    if rows.sum() < _ENOUGH:
        return
    known, moved = float(np.median(given[rows])), float(np.median(spans.moved_mps[rows]))
    low, high = SPEED_RATIOS
    if not low * moved <= known <= high * moved:
        raise RecordingError(
            f"{source}, {name}: has the median {known:.3g} m/s of all who move, and by positions "
            f"and times it is {moved:.3g} (allowed: {low:g} to {high:g} times that; speeds are in "
            "m/s, positions in m, times in s)"
        )
