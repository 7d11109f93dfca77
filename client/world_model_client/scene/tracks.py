"""The history of tracks: motions as a filter of the past knows them.

The filter. Through the samples of the last `window_s` (0.4 s) goes the straight line that fits
best, by least squares. A rate (acceleration, of speeds; turn rate, of headings) is its slope,

    slope = sum (t_i - mean t) (v_i - mean v) / sum (t_i - mean t)^2

and a speed, a heading or a coordinate of a place is its value now: at 20 Hz, two fifths of
independent noise go. The times are those of the samples: their rate and its irregularities make no
difference. Places lie on a parabola: what a steady acceleration and turn rate bend the path by is
taken off before, and put back. So steady motion shows exactly; a change of a rate shows fully after
the window, and half after half of it.

If only the newest sample is as young as the window, the one before it counts for rates, too, if it
is not older than `MEMORY_S`: so tracks of 2 Hz have their differences. With `window_s` = 0 that is
always so. A line needs three samples: of fewer the newest one is taken as it is. A track that
begins has a rate of 0, and until it is as old as the window its slope is multiplied by age /
window_s: the difference of its first two samples would be noise times 1 / 0.05 s.

Headings count modulo half a turn from sample to sample: trackers take front for back now and then.
A sample where its track cannot be, by its place or its speed, begins a new track: it is somebody
else, and two road users never share a line.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from world_model_client.scene.frames import Floats
from world_model_client.scene.road_users import moved_on

MEMORY_S = 1.0
"""An id that was away for longer begins a new track."""

JUMP_M, JUMP_MPS = 2.0, 5.0
"""Whose next sample is that far from where it can be, or that much faster, is somebody else; both
grow with the time between the samples, see `_are_jumps`."""

_MOST_MPS2 = 10.0
"""No road user accelerates more; in any direction."""

_MOST_SAMPLES = 64
"""Kept of each track: 0.4 s at 160 Hz; of faster ones the newest."""

_SAME_TIME_S = 1e-5
"""Times of a clock are not exact: a sample that old more than the window still counts."""

_FIRST_ROWS = 32
_HEADING, _SPEED = 2, 3

Rows = NDArray[np.intp]
Flags = NDArray[np.bool_]


class _Fit(NamedTuple):
    """The line through samples, as weights of their values relative to the newest one.

    Attributes:
        slope: [..., W].
        level: [..., W] of its value now; 0 where there are fewer than three samples.
    """

    slope: Floats
    level: Floats


def _fitted(ages: Floats, window_s: float) -> _Fit:
    """Fit lines; the formula is the module's.

    Args:
        ages: [..., W] s, of samples in order, the last one's 0; infinite where there is none.
        window_s: Samples that are older do not count.
    """
    counts = ages <= window_s + _SAME_TIME_S
    counts[..., -1] = True
    counts[..., -2] |= ages[..., -2] <= MEMORY_S + _SAME_TIME_S
    number = counts.sum(-1, keepdims=True)
    times = np.where(counts, -ages, 0.0)
    mean = times.sum(-1, keepdims=True) / number
    centred = np.where(counts, times - mean, 0.0)
    spread = (centred * centred).sum(-1, keepdims=True)
    # Samples of one moment tell no rate.
    has_rate = (number > 1) & (spread > _SAME_TIME_S**2)
    slope = np.divide(centred, spread, out=np.zeros_like(centred), where=has_rate)
    level = np.where(counts & (number > 2), 1 / number - mean * slope, 0.0)
    return _Fit(slope, level)


def slopes(ages: Floats, values: Floats, window_s: float) -> Floats:
    """Return the rate of change now [...] of values [..., W] by the filter, of any age of tracks.

    Args:
        ages: [..., W] s, of samples in order, the last one's 0; infinite where there is none.
        values: [..., W] of the samples; finite, also where there is none.
        window_s: Of the filter; 0: differences of two samples.
    """
    # Relative to the newest, so that large values lose no digits.
    relative = values - values[..., -1:]
    return np.asarray((_fitted(ages, window_s).slope * relative).sum(-1))


def straightened(before: Floats, headings: Floats) -> Floats:
    """Return headings [...] moved by half turns so that they are nearest to those before [...]."""
    return before + np.mod(headings - before + np.pi / 2, np.pi) - np.pi / 2


def _are_jumps(before: Floats, now: Floats, elapsed_s: Floats) -> Flags:
    """Return which samples [n] are of somebody else than those before.

    One moves on by its speed and heading of before, or comes here by those of now: one of both may
    have taken front for back. Or it stays in place, in a frame that moves with it.

    Args:
        before: [n, 4] x, y, heading, speed.
        now: [n, 4] likewise.
        elapsed_s: [n] s.
    """
    x, y = now[:, 0] - before[:, 0], now[:, 1] - before[:, 1]
    away = np.hypot(x, y)
    for sample in (before, now):
        way, heading = sample[:, _SPEED] * elapsed_s, sample[:, _HEADING]
        away = np.minimum(away, np.hypot(x - way * np.cos(heading), y - way * np.sin(heading)))
    faster = np.abs(now[:, _SPEED] - before[:, _SPEED])
    return np.asarray(
        (away > JUMP_M + _MOST_MPS2 / 2 * elapsed_s**2)
        | (faster > JUMP_MPS + _MOST_MPS2 * elapsed_s)
    )


class History:
    """The last samples of tracks, each in a row of its own.

    Args:
        rows: Number of tracks.
        window_s: Of the filter; 0: differences of two samples, and all else as it was sampled.
        samples: Kept of each track.
        smooths: Whether places, headings and speeds are filtered, too.
    """

    def __init__(
        self, rows: int, window_s: float, samples: int = _MOST_SAMPLES, *, smooths: bool = True
    ) -> None:
        self._window_s, self._smooths = window_s, smooths
        self._times = np.full((rows, samples), -np.inf)
        self._values = np.zeros((rows, 4, samples))  # headings straightened
        self._newest = np.zeros((rows, 4))  # as given
        self._begun = np.full(rows, -np.inf)

    def add(self, rows: Rows, time_s: float, poses: Floats) -> None:
        """Add a sample to tracks.

        One that was away for longer than `MEMORY_S`, or is where it cannot be, begins anew.

        Args:
            rows: [n] of the tracks, each once.
            time_s: Of the sample; later than all before.
            poses: [n, 4] x, y, heading, speed.
        """
        elapsed_s = time_s - self._times[rows, -1]
        is_new = ~(elapsed_s <= MEMORY_S + _SAME_TIME_S)
        is_new |= _are_jumps(self._newest[rows], poses, np.where(is_new, 0.0, elapsed_s))
        values = poses.copy()
        before = np.where(is_new, poses[:, _HEADING], self._values[rows, _HEADING, -1])
        values[:, _HEADING] = straightened(before, poses[:, _HEADING])
        for kept, sample in ((self._times, time_s), (self._values, values)):
            kept[rows, ..., :-1] = kept[rows, ..., 1:]
            kept[rows, ..., -1] = sample
        self._newest[rows] = poses
        self._times[rows[is_new], :-1] = -np.inf
        self._begun[rows[is_new]] = time_s

    def motions(self, rows: Rows, time_s: float, reported: Floats | None = None) -> Floats:
        """Return the motions of tracks whose newest sample is of now.

        Args:
            rows: [n] of the tracks.
            time_s: Of now.
            reported: [n, 2] acceleration and turn rate as the tracker says them; NaN where the
                filter shall.

        Returns:
            [n, 6] x, y, heading, speed, acceleration, turn rate.
        """
        ages = time_s - self._times[rows]
        # Most kept samples are too old to count: half of the time is saved without them.
        counts = np.any(ages <= self._window_s + _SAME_TIME_S, axis=0)
        first = min(int(np.argmax(counts)), ages.shape[1] - 2)
        ages, values = ages[:, first:], self._values[rows, :, first:]
        fit = _fitted(ages, self._window_s)
        # Relative to the newest, so that large values lose no digits.
        relative = values - values[..., -1:]
        rates = np.einsum("nw,ncw->nc", fit.slope, relative[:, [_SPEED, _HEADING]])
        if self._window_s > 0:
            age_s = time_s - self._begun[rows]
            rates *= np.minimum(age_s / self._window_s, 1.0)[:, None]
        if reported is not None:
            rates = np.where(np.isnan(reported), rates, reported)
        poses = self._newest[rows]
        if self._smooths:
            poses += np.einsum("nw,ncw->nc", fit.level, relative)
            self._bound_speeds(rows, poses)
            squares = np.where(np.isinf(ages), 0.0, ages) ** 2
            poses[:, :2] -= _bends(poses, rates, (fit.level * squares).sum(-1) / 2)
        return np.concatenate([poses, rates], axis=1)

    def _bound_speeds(self, rows: Rows, poses: Floats) -> None:
        """Let no speed have another sign than it was sampled with, in place."""
        speeds, is_forward = poses[:, _SPEED], self._newest[rows, _SPEED] >= 0
        poses[:, _SPEED] = np.where(is_forward, np.maximum(speeds, 0), np.minimum(speeds, 0))

    def forget(self, rows: Rows) -> None:
        """Free rows for other tracks."""
        self._times[rows] = -np.inf

    def grow(self, rows: int) -> None:
        """Make room for more tracks."""
        more = rows - len(self._begun)
        self._times = np.pad(self._times, ((0, more), (0, 0)), constant_values=-np.inf)
        self._values = np.pad(self._values, ((0, more), (0, 0), (0, 0)))
        self._newest = np.pad(self._newest, ((0, more), (0, 0)))
        self._begun = np.pad(self._begun, (0, more), constant_values=-np.inf)


def _bends(poses: Floats, rates: Floats, half_squares: Floats) -> Floats:
    """Return by how much lines through places [n, 2] are off now, of steady accelerations.

    Args:
        poses: [n, 4] x, y, heading, speed.
        rates: [n, 2] acceleration, turn rate.
        half_squares: [n] s^2, half the value now of the line through the squares of the ages.
    """
    ahead = np.clip(rates[:, 0], -_MOST_MPS2, _MOST_MPS2) * half_squares
    aside = np.clip(poses[:, _SPEED] * rates[:, 1], -_MOST_MPS2, _MOST_MPS2) * half_squares
    cos, sin = np.cos(poses[:, _HEADING]), np.sin(poses[:, _HEADING])
    return np.stack([cos * ahead - sin * aside, sin * ahead + cos * aside], axis=1)


def samples_within(times_s: Floats, window_s: float) -> int:
    """Return how many samples at times [T] the filter looks at, at most, and at least two."""
    least_s = float(np.diff(times_s).min(initial=np.inf))
    return 2 + min(int(window_s / least_s) if least_s > 0 else 0, _MOST_SAMPLES - 2)


def filtered(
    times_s: Floats, poses: Floats, present: Flags, window_s: float, *, smooths: bool = True
) -> Floats:
    """Return what the builder's filter says at each frame of recorded tracks.

    Args:
        times_s: [T] of the frames, increasing.
        poses: [T, V, 4] x, y, heading, speed; many recordings of the same times fit side by side.
        present: [T, V] whether there is a sample.
        window_s: Of the filter; 0: differences of two samples, and all else as it was sampled.
        smooths: Whether places, headings and speeds are filtered, too.

    Returns:
        [T, V, 6] x, y, heading, speed, acceleration, turn rate; 0 where there is no sample.
    """
    samples = samples_within(times_s, window_s)
    history = History(poses.shape[1], window_s, samples, smooths=smooths)
    motions = np.zeros((*present.shape, 6))
    for i, time_s in enumerate(times_s.tolist()):
        rows = np.flatnonzero(present[i])
        history.add(rows, time_s, poses[i, rows])
        motions[i, rows] = history.motions(rows, time_s)
    return motions


class Tracks:
    """Road users by id: their history, and where they are while a tracker has lost them.

    Args:
        window_s: Of the filter; 0: differences of two samples.
        coast_s: How long who is lost is moved on by the last motion; 0: not at all.
        smooths: Whether places, headings and speeds are filtered, too.

    Attributes:
        kinds: Of those that are known, by id.
    """

    def __init__(self, window_s: float, coast_s: float, smooths: bool) -> None:
        self._coast_s = coast_s
        self.kinds: dict[Hashable, str] = {}
        self._row_of: dict[Hashable, int] = {}
        self._free = list(range(_FIRST_ROWS))
        self._history = History(_FIRST_ROWS, window_s, smooths=smooths)
        self._last = np.zeros((_FIRST_ROWS, 8))  # as they were last seen, `OTHER_COLUMNS`
        self._seen_s = np.full(_FIRST_ROWS, -np.inf)

    def update(
        self,
        time_s: float,
        ids: Sequence[Hashable],
        others: Floats,
        kinds: Mapping[Hashable, str],
    ) -> Floats:
        """Take in what a tracker reports now.

        Args:
            time_s: Of now; later than before.
            ids: [K] each once.
            others: [K, 8] `OTHER_COLUMNS`; NaN in place of an acceleration or turn rate that the
                filter shall say.
            kinds: By id.

        Returns:
            [K, 8] the same without NaN, filtered.
        """
        rows = np.array([self._row(id_) for id_ in ids], np.intp)
        self._history.add(rows, time_s, others[:, :4])
        motions = self._history.motions(rows, time_s, others[:, 6:8])
        known = np.concatenate([motions[:, :4], others[:, 4:6], motions[:, 4:]], axis=1)
        self._last[rows] = known
        self._seen_s[rows] = time_s
        self.kinds.update((id_, kinds[id_]) for id_ in ids)
        return known

    def lost(self, time_s: float, ids: Collection[Hashable]) -> tuple[list[Hashable], Floats]:
        """Return who is not reported now, but was a moment ago, and where they are by now.

        Args:
            time_s: Of now.
            ids: Who is reported.

        Returns:
            Their ids, and [L, 8] `OTHER_COLUMNS`.
        """
        if len(ids) == len(self._row_of):  # those of `ids` are all in it
            return [], np.zeros((0, 8))
        gone = [(id_, row) for id_, row in self._row_of.items() if id_ not in ids]
        rows = np.array([row for _, row in gone], np.intp)
        away_s = time_s - self._seen_s[rows]
        is_kept = away_s <= self._coast_s + _SAME_TIME_S if self._coast_s else away_s < 0
        for (id_, row), away in zip(gone, away_s.tolist(), strict=True):
            if away > max(MEMORY_S, self._coast_s) + _SAME_TIME_S:
                del self._row_of[id_], self.kinds[id_]
                self._free.append(row)
                self._history.forget(np.array([row]))
        moved = self._last[rows[is_kept]]
        moved[:, :4] = moved_on(moved[:, [0, 1, 2, 3, 6, 7]], away_s[is_kept])
        return [id_ for (id_, _), kept in zip(gone, is_kept, strict=True) if kept], moved

    def _row(self, id_: Hashable) -> int:
        row = self._row_of.get(id_)
        if row is None:
            if not self._free:
                self._grow()
            row = self._row_of[id_] = self._free.pop()
        return row

    def _grow(self) -> None:
        count = len(self._seen_s)
        self._history.grow(2 * count)
        self._last = np.pad(self._last, ((0, count), (0, 0)))
        self._seen_s = np.pad(self._seen_s, (0, count), constant_values=-np.inf)
        self._free.extend(range(count, 2 * count))
