"""Tracks twice: as they were known at each moment, and as they were.

As known (causal). At a frame counts what came until then: the client's filter of the last samples,
moved on to the frame by its acceleration and turn rate; of an ego the last sample, which the client
does not filter. A source without speeds and headings gets them by the slopes of the positions of
the last 0.4 s, by the same filter.

As they were (acausal). Positions are smoothed by a Savitzky-Golay filter (1964: cubic, 2.5 s) and
taken through a cubic spline to the frames. The course is that of the spline's velocity above 2 m/s;
slower, it is what lies between; it is evened by parabolas over 1 s. The body's heading is the
course minus the slip of a centre that is 0.3 lengths ahead of the rear axle, 1.4 m of a car.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.signal import savgol_filter

from training.recordings.recording import Track
from world_model_client.scene import FILTER_S, filtered, moved_on
from world_model_client.scene.tracks import samples_within, slopes

Floats = NDArray[np.floating[Any]]

COLUMNS = 6
"""x, y, heading, speed, acceleration, yaw rate."""

SMOOTHING_S = 2.5
_ORDER = 3
_EVENING_S = 1.0
"""Courses and rates are evened by parabolas over this: a slip that belongs to the noise of a turn
rate would be more noise than the course has."""
_LEAST_SAMPLES = 5

SLOWEST_COURSE_MPS = 2.0
SLOWEST_WALK_MPS = 0.5
"""Slower, a course is noise; of pedestrians and of others."""

_AXLE_SHARE = 0.3
_MOST_SIN = 0.95
_FARTHEST_RAD = 0.2
"""The true heading is within this of the tracker's: at the ends of a slow track a cubic is ill
determined, and its course was off by 0.8 rad."""
_SAME_TIME_S = 1e-6
_IRREGULAR = 0.01
"""Steps that differ by more than this share are made even before they are smoothed."""


class Motion(NamedTuple):
    """A track at the frames of a recording.

    Attributes:
        first: Its first frame.
        known: [F, 6] as it was known to others at the moment.
        own: [F, 6] as it was known to itself.
        true: [F, 6] as it was.
    """

    first: int
    known: Floats
    own: Floats
    true: Floats


def motion_of(track: Track, start_s: float, dt_s: float, lane_heading: float | None) -> Motion:
    """Return a track at the frames `start_s + k dt_s` that lie within it.

    Args:
        track: Without gaps.
        start_s: Time of frame 0.
        dt_s: Between frames.
        lane_heading: Taken for that of one that never moves, if its tracker gives none; None: there
            is none.

    Raises:
        ValueError: No frame lies within it, or nobody can say where it points.
    """
    times = track.times_s - start_s
    first = int(np.ceil(times[0] / dt_s - _SAME_TIME_S))
    last = int(np.floor(times[-1] / dt_s + _SAME_TIME_S))
    if last < first:
        raise ValueError("shorter than one step")
    frames_s = np.clip(np.arange(first, last + 1) * dt_s, times[0], times[-1])
    still = _heading_at_rest(track, lane_heading)
    known, own = _known(track, times, frames_s, still)
    return Motion(first, known, own, _true(track, times, frames_s, still))


def _heading_at_rest(track: Track, lane_heading: float | None) -> float | None:
    if track.heading is not None:
        return float(track.heading[0])
    return lane_heading


def _known(
    track: Track, times: Floats, frames_s: Floats, still: float | None
) -> tuple[Floats, Floats]:
    """Return it at frames [F, 6] as it was known to others, and to itself."""
    speed, heading = track.speed, track.heading
    if speed is None or heading is None:
        velocity = _velocities(track, times)
        if heading is None:
            heading = _course(velocity, _slowest(track), still)
        if speed is None:
            along = velocity[:, 0] * np.cos(heading) + velocity[:, 1] * np.sin(heading)
            speed = np.copysign(np.hypot(*velocity.T), along)
    poses = np.stack([track.x, track.y, heading, speed], axis=-1)
    present = np.ones((len(times), 1), np.bool_)
    known = filtered(times, poses[:, None], present, FILTER_S)[:, 0]
    own = np.concatenate([poses, known[:, 4:]], axis=-1)
    last = np.searchsorted(times, frames_s + _SAME_TIME_S, side="right") - 1
    elapsed_s = np.maximum(frames_s - times[last], 0.0)
    known, own = (
        np.concatenate([moved_on(motion[last], elapsed_s), motion[last, 4:]], axis=-1)
        for motion in (known, own)
    )
    return known, own


def _velocities(track: Track, times: Floats) -> Floats:
    """Return velocities [n, 2] by the positions until then."""
    if len(times) < 2:
        return np.zeros((len(times), 2))
    count = samples_within(times, FILTER_S)
    before = np.pad(times, (count - 1, 0), constant_values=-np.inf)
    ages = times[:, None] - sliding_window_view(before, count)
    places = np.stack([track.x, track.y])
    places = np.pad(places, ((0, 0), (count - 1, 0)), mode="edge")
    velocity = slopes(ages, sliding_window_view(places, count, axis=1), FILTER_S).T
    velocity[0] = velocity[1]  # known one sample later
    return velocity


def _slowest(track: Track) -> float:
    return SLOWEST_WALK_MPS if track.kind == "pedestrian" else SLOWEST_COURSE_MPS


def _course(velocity: Floats, slowest_mps: float, still: float | None) -> Floats:
    """Return the course [n] of velocities [n, 2]; while slow, that before; at first, that after.

    Raises:
        ValueError: It never moves, and nothing else is known.
    """
    is_known = np.hypot(velocity[:, 0], velocity[:, 1]) > slowest_mps
    if not is_known.any():
        if still is None:
            raise ValueError("never moves, and no heading is given")
        return np.full(len(velocity), still)
    places = np.flatnonzero(is_known)
    before = np.searchsorted(places, np.arange(len(velocity)), side="right") - 1
    course = np.arctan2(velocity[:, 1], velocity[:, 0])
    return np.asarray(course[places[np.maximum(before, 0)]])


def _true(track: Track, times: Floats, frames_s: Floats, still: float | None) -> Floats:
    even_s, places = _smoothed(track, times)
    dt_s = float(frames_s[1] - frames_s[0]) if len(frames_s) > 1 else 1.0
    if len(even_s) < 2:
        if still is None:
            raise ValueError("seen once, and no heading is given")
        now = 0.0 if track.speed is None else float(track.speed[0])
        return np.tile([track.x[0], track.y[0], still, now, 0.0, 0.0], (len(frames_s), 1))
    spline = CubicSpline(even_s, places)
    position, velocity = spline(frames_s), spline(frames_s, 1)
    speed = np.hypot(velocity[:, 0], velocity[:, 1])
    heading, is_backwards = _true_heading(track, times, frames_s, velocity, still, dt_s)
    speed = np.where(is_backwards, -speed, speed)
    rates = [_evened(values, dt_s)[1] for values in (speed, heading)]
    return np.stack([*position.T, heading, speed, *rates], axis=-1)


def _evened(values: Floats, dt_s: float) -> tuple[Floats, Floats]:
    """Return values at frames [F] and their slopes, by parabolas over `_EVENING_S`."""
    window = min(round(_EVENING_S / dt_s) // 2 * 2 + 1, (len(values) - 1) // 2 * 2 + 1)
    if window < _LEAST_SAMPLES:
        slopes = np.gradient(values, dt_s) if len(values) > 1 else np.zeros(len(values))
        return values, np.asarray(slopes)
    even, slopes = (savgol_filter(values, window, 2, deriv=order, delta=dt_s) for order in (0, 1))
    return np.asarray(even), np.asarray(slopes)


def _smoothed(track: Track, times: Floats) -> tuple[Floats, Floats]:
    """Return even times [m] and smoothed positions [m, 2]."""
    places = np.stack([track.x, track.y], axis=-1)
    if len(times) < 2:
        return times, places
    steps = np.diff(times)
    step_s = float(np.median(steps))
    if np.abs(steps - step_s).max() > _IRREGULAR * step_s:
        count = max(round(float(times[-1] - times[0]) / step_s) + 1, 2)
        even = np.linspace(times[0], times[-1], count)
        places = np.stack([np.interp(even, times, column) for column in places.T], axis=-1)
        times = even
    if len(times) < _LEAST_SAMPLES:
        return times, places
    window = min(round(SMOOTHING_S / step_s), len(times))
    window = max(window - 1 + window % 2, _LEAST_SAMPLES)
    return times, np.asarray(savgol_filter(places, window, _ORDER, axis=0))


def _true_heading(
    track: Track,
    times: Floats,
    frames_s: Floats,
    velocity: Floats,
    still: float | None,
    dt_s: float,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the body's headings [F] in one run, and whether it moves backwards [F].

    Raises:
        ValueError: It never moves, and nothing else is known.
    """
    speed = np.hypot(velocity[:, 0], velocity[:, 1])
    given = None
    if track.heading is not None:
        given = np.interp(frames_s, times, np.unwrap(track.heading))
    is_known = speed > _slowest(track)
    if not is_known.any():
        if given is None and still is None:
            raise ValueError("never moves, and no heading is given")
        heading = np.full(len(speed), still) if given is None else given
        return np.asarray(heading, np.float64), np.zeros(len(speed), np.bool_)
    course = np.arctan2(velocity[:, 1], velocity[:, 0])
    is_backwards = np.zeros(len(speed), np.bool_)
    if given is not None:
        is_backwards = (
            (np.cos(course - given) < 0) & is_known & (_signs(track, times, frames_s) < 0)
        )
        course = course + np.pi * is_backwards
    at = np.flatnonzero(is_known)
    course = np.interp(np.arange(len(speed)), at, np.unwrap(course[at]))
    course, turned = _evened(course, dt_s)
    sin_slip = turned * (_AXLE_SHARE * track.length) / np.maximum(speed, SLOWEST_COURSE_MPS)
    slip = np.arcsin(np.clip(sin_slip, -_MOST_SIN, _MOST_SIN))
    heading = course - np.where(is_backwards, -slip, slip)
    if track.heading is not None:
        axis = np.interp(frames_s, times, np.unwrap(track.heading, period=np.pi))
        heading = _near(heading, _evened(axis, dt_s)[0])
    return heading, is_backwards


def _near(headings: Floats, given: Floats) -> Floats:
    """Return headings [F] within `_FARTHEST_RAD` of those of the tracker, but for half turns."""
    off = np.mod(headings - given + np.pi / 2, np.pi) - np.pi / 2
    return headings - off + np.clip(off, -_FARTHEST_RAD, _FARTHEST_RAD)


def _signs(track: Track, times: Floats, frames_s: Floats) -> Floats:
    """Return the signs [F] of the speeds that the tracker gives; below 0 if it gives none."""
    if track.speed is None:
        return np.full(len(frames_s), -1.0)
    return np.sign(np.interp(frames_s, times, track.speed))
