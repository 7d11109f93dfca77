"""The history of tracks: accelerations and turn rates as a filter of the past knows them.

The filter. A rate (acceleration, of speeds; turn rate, of headings) is the slope of the straight
line that fits best, by least squares, to the samples of the last `window_s` (0.4 s):

    slope = sum (t_i - mean t) (v_i - mean v) / sum (t_i - mean t)^2

The times are those of the samples: their rate and its irregularities make no difference. On a
constant acceleration it is exact; a change shows fully after the window, and half after half of
it. If only the newest sample is as young as that, the one before it counts too, if it is not older
than `MEMORY_S`: so tracks of 2 Hz have their differences. With `window_s` = 0 that is always so.
A track that begins has a rate of 0, and until it is as old as the window its slope is multiplied by
age / window_s: the difference of its first two samples would be noise times 1 / 0.05 s.

Headings count modulo half a turn from sample to sample: trackers take front for back now and then.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from world_model_client.scene.frames import Floats
from world_model_client.scene.road_users import moved_on

MEMORY_S = 1.0
"""An id that was away for longer begins a new track."""

_MOST_SAMPLES = 64
"""Kept of each track: 0.4 s at 160 Hz; of faster ones the newest."""

_SAME_TIME_S = 1e-5
"""Times of a clock are not exact: a sample that old more than the window still counts."""

_FIRST_ROWS = 32

Rows = NDArray[np.intp]
Flags = NDArray[np.bool_]


def slopes(ages: Floats, values: Floats, window_s: float, track_age: Floats) -> Floats:
    """Return the filtered rate of change of each track now; the formula is the module's.

    Args:
        ages: [..., W] s, of samples in order, the last one's 0; infinite where there is none.
        values: [..., W] of the samples; finite, also where there is none.
        window_s: Samples that are older do not count.
        track_age: [...] s, of the track's first sample.
    """
    counts = ages <= window_s + _SAME_TIME_S
    counts[..., -1] = True
    counts[..., -2] |= ages[..., -2] <= MEMORY_S + _SAME_TIME_S
    weight = counts.astype(np.float64)
    number = weight.sum(-1)
    times = np.where(counts, -ages, 0.0)
    # Relative to the newest, so that large values lose no digits.
    relative = values - values[..., -1:]
    mean = times.sum(-1, keepdims=True) / number[..., None]
    centred = (times - mean) * weight
    spread = (centred * centred).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(number > 1, (centred * relative).sum(-1) / spread, 0.0)
    if window_s > 0:
        slope = slope * np.minimum(track_age / window_s, 1.0)
    return slope


def levels(ages: Floats, values: Floats, window_s: float) -> Floats:
    """Return the value now on the line that `slopes` fits; of one or two samples the newest.

    Args:
        ages: [..., W] as for `slopes`.
        values: [..., W] likewise.
        window_s: Likewise.
    """
    counts = ages <= window_s + _SAME_TIME_S
    counts[..., -1] = True
    number = counts.sum(-1)
    relative = np.where(counts, values - values[..., -1:], 0.0).sum(-1) / number
    mean_age = np.where(counts, ages, 0.0).sum(-1) / number
    slope = slopes(ages, values, window_s, np.full(number.shape, np.inf))
    return values[..., -1] + np.where(number > 2, relative + slope * mean_age, 0.0)


def straightened(before: Floats, headings: Floats) -> Floats:
    """Return headings [...] moved by half turns so that they are nearest to those before [...]."""
    return before + np.mod(headings - before + np.pi / 2, np.pi) - np.pi / 2


class History:
    """The last samples of tracks, each in a row of its own.

    Args:
        rows: Number of tracks.
        window_s: Of the filter; 0: differences of two samples.
        samples: Kept of each track.
    """

    def __init__(self, rows: int, window_s: float, samples: int = _MOST_SAMPLES) -> None:
        self._window_s = window_s
        self._times = np.full((rows, samples), -np.inf)
        self._speeds = np.zeros((rows, samples))
        self._headings = np.zeros((rows, samples))
        self._begun = np.full(rows, -np.inf)

    def add(self, rows: Rows, time_s: float, speeds: Floats, headings: Floats) -> None:
        """Add a sample to tracks; one that is away for longer than `MEMORY_S` begins anew.

        Args:
            rows: [n] of the tracks, each once.
            time_s: Of the sample; later than all before.
            speeds: [n] m/s.
            headings: [n] rad.
        """
        is_new = ~(time_s - self._times[rows, -1] <= MEMORY_S + _SAME_TIME_S)
        before = np.where(is_new, headings, self._headings[rows, -1])
        for kept, values in (
            (self._times, np.full(len(rows), time_s)),
            (self._speeds, speeds),
            (self._headings, straightened(before, headings)),
        ):
            kept[rows, :-1] = kept[rows, 1:]
            kept[rows, -1] = values
        self._times[rows[is_new], :-1] = -np.inf
        self._begun[rows[is_new]] = time_s

    def rates(self, rows: Rows, time_s: float) -> tuple[Floats, Floats]:
        """Return accelerations [n] and turn rates [n] of tracks whose newest sample is of now."""
        ages, track_age = time_s - self._times[rows], time_s - self._begun[rows]
        # Most kept samples are too old to count: half of the time is saved without them.
        counts = np.any(ages <= self._window_s + _SAME_TIME_S, axis=0)
        first = min(int(np.argmax(counts)), ages.shape[1] - 2)
        ages = ages[:, first:]
        return (
            slopes(ages, self._speeds[rows, first:], self._window_s, track_age),
            slopes(ages, self._headings[rows, first:], self._window_s, track_age),
        )

    def smooth_speeds(self, rows: Rows, time_s: float) -> Floats:
        """Return the speeds [n] of tracks now by the line through their samples."""
        return levels(time_s - self._times[rows], self._speeds[rows], self._window_s)

    def forget(self, rows: Rows) -> None:
        """Free rows for other tracks."""
        self._times[rows] = -np.inf

    def grow(self, rows: int) -> None:
        """Make room for more tracks."""
        more = rows - len(self._begun)
        self._times = np.pad(self._times, ((0, more), (0, 0)), constant_values=-np.inf)
        self._speeds = np.pad(self._speeds, ((0, more), (0, 0)))
        self._headings = np.pad(self._headings, ((0, more), (0, 0)))
        self._begun = np.pad(self._begun, (0, more), constant_values=-np.inf)


def filtered(
    times_s: Floats, speeds: Floats, headings: Floats, present: Flags, window_s: float
) -> tuple[Floats, Floats]:
    """Return what the builder's filter says at each frame of recorded tracks.

    Args:
        times_s: [T] of the frames, increasing.
        speeds: [T, V] m/s; many recordings of the same times fit side by side.
        headings: [T, V] rad.
        present: [T, V] whether there is a sample.
        window_s: Of the filter; 0: differences of two samples.

    Returns:
        Accelerations [T, V] and turn rates [T, V]; 0 where there is no sample.
    """
    steps = np.diff(times_s)
    least_s = float(steps.min(initial=np.inf))
    samples = 2 + min(int(window_s / least_s) if least_s > 0 else 0, _MOST_SAMPLES - 2)
    history = History(speeds.shape[1], window_s, samples)
    rates = np.zeros((2, *speeds.shape))
    for i, time_s in enumerate(times_s.tolist()):
        rows = np.flatnonzero(present[i])
        history.add(rows, time_s, speeds[i, rows], headings[i, rows])
        rates[:, i, rows] = history.rates(rows, time_s)
    return rates[0], rates[1]


class Tracks:
    """Road users by id: their history, and where they are while a tracker has lost them.

    Args:
        window_s: Of the filter; 0: differences of two samples.
        coast_s: How long who is lost is moved on by the last motion; 0: not at all.
        smooths_speed: Whether speeds, too, are those of the line through the window's samples.

    Attributes:
        kinds: Of those that are known, by id.
    """

    def __init__(self, window_s: float, coast_s: float, smooths_speed: bool) -> None:
        self._window_s, self._coast_s, self._smooths_speed = window_s, coast_s, smooths_speed
        self.kinds: dict[Hashable, str] = {}
        self._row_of: dict[Hashable, int] = {}
        self._free = list(range(_FIRST_ROWS))
        self._history = History(_FIRST_ROWS, window_s)
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
            [K, 8] the same without NaN.
        """
        rows = np.array([self._row(id_) for id_ in ids], np.intp)
        self._history.add(rows, time_s, others[:, 3], others[:, 2])
        known = others.copy()
        if self._smooths_speed and self._window_s > 0:
            known[:, 3] = self._history.smooth_speeds(rows, time_s)
        rates = np.stack(self._history.rates(rows, time_s), axis=1)
        known[:, 6:8] = np.where(np.isnan(others[:, 6:8]), rates, others[:, 6:8])
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
