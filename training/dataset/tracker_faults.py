"""What a tracker will do wrong in one episode: drawn before it begins, as far as it can be."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr, stdtrit

from training.dataset.tracker_models import Tracker
from training.simulation.bicycle import DT_S

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]

_EGO = 6

_MOST_SD = 6.0
"""Heavy tails end there: the known ranges of a model are the extremes that it was trained on."""
_NORMAL = np.linspace(-6.0, 6.0, 1201)
_HEAVY = np.clip(stdtrit(3, ndtr(_NORMAL)) / np.sqrt(3), -_MOST_SD, _MOST_SD)
"""Values of as likely normal errors, and of those with heavy tails, both of deviation 1."""


class Faults(NamedTuple):
    """What a tracker does wrong in one episode, of at most T frames.

    Attributes:
        swaps: [n] frames at which two tracks may be exchanged, increasing.
        chosen: [n] in [0, 1), which ones.
        is_tracked: [T, V] whether a track would have a sample of its own, if it is there.
        pose: [T, V, 4] errors along and across the ego, of headings, of speeds.
        rates: [T, V, 2] errors of reported rates.
        size_factors: [V, 2].
        is_typical: [V].
        ego: [T, 6] errors; of the heading in place of its sine. Of an edge out of sight: inf.
    """

    swaps: NDArray[np.int64]
    chosen: Floats
    is_tracked: Booleans
    pose: Floats
    rates: Floats
    size_factors: Floats
    is_typical: Booleans
    ego: Floats

    def padded(self, count: int) -> Faults:
        """Return the same for so many frames, of which the last ones repeat."""
        missing = count - len(self.ego)

        def longer(values: NDArray[Any]) -> NDArray[Any]:
            return np.pad(values, ((0, missing), *((0, 0),) * (values.ndim - 1)), mode="edge")

        by_frame = ("is_tracked", "pose", "rates", "ego")
        return self._replace(**{name: longer(getattr(self, name)) for name in by_frame})


def draw_faults(tracker: Tracker, rng: np.random.Generator, count: int, columns: int) -> Faults:
    """Draw what a tracker does wrong.

    Args:
        tracker: How good it is.
        rng: Source of the draw.
        count: Frames of the episode, at most; 2 at least.
        columns: Road users beside the ego, V.
    """
    shape = (count, columns, 4)
    white, lasting = (_noise(tracker, rng, shape, is_lasting=x) for x in (False, True))
    pose = white * tracker.white.as_row() + lasting * tracker.correlated.as_row()
    pose += rng.normal(size=shape[1:]) * tracker.bias.as_row()
    factors = 1 + tracker.size_share * rng.normal(size=(columns, 2))
    rates = rng.normal(size=(count, columns, 2))
    ego = _ego(tracker, rng, count)
    swaps = np.sort(rng.integers(1, count, rng.poisson(tracker.swaps_per_s * count * DT_S)))
    return Faults(
        swaps=swaps,
        chosen=rng.random(len(swaps)),
        is_tracked=_tracked(tracker, count, columns, rng),
        pose=pose,
        rates=rates * (tracker.acceleration_mps2, tracker.yaw_rate_radps),
        size_factors=np.clip(factors, 0.5, 1.6),
        is_typical=np.asarray(rng.random(columns) < tracker.typical_share),
        ego=ego,
    )


def _ego(tracker: Tracker, rng: np.random.Generator, count: int) -> Floats:
    """Return errors of the ego's features, see `Faults.ego`."""
    ego = _noise(tracker, rng, (count, _EGO)) * (
        *(tracker.ego_speed_mps, tracker.lane_offset_m, tracker.ego_heading_rad),
        *(tracker.edge_m, tracker.edge_m, tracker.curvature_per_m),
    )
    ego[:, 3:5] += rng.normal(size=2) * tracker.edge_bias_m
    ego[:, 3] += ego[:, 1]
    ego[:, 4] -= ego[:, 1]
    ego[:, 1] += tracker.lane_bias_m
    ego[:, 3:5] = np.where(tracker.sees_edges, ego[:, 3:5], np.inf)
    return ego


def _noise(
    tracker: Tracker, rng: np.random.Generator, shape: tuple[int, ...], *, is_lasting: bool = False
) -> Floats:
    """Return errors [T, ...] of deviation 1."""
    normal = rng.normal(size=shape)
    if is_lasting:
        normal = _lasting(normal, tracker.correlation_s)
    return np.interp(normal, _NORMAL, _HEAVY) if tracker.heavy_tails else normal


def _lasting(white: Floats, correlation_s: float) -> Floats:
    """Return errors [T, ...] of deviation 1 that last, made of independent ones."""
    keep = float(np.exp(-DT_S / correlation_s))
    fresh = np.sqrt(1 - keep**2)
    white[0] /= fresh  # as if it had gone on for ever before
    return np.asarray(lfilter([fresh], [1, -keep], white, axis=0))


def _tracked(tracker: Tracker, count: int, columns: int, rng: np.random.Generator) -> Booleans:
    """Return when tracks [V] have begun and have not lost their road user, [T, V]."""
    is_late = rng.random(columns) < tracker.late_share
    begins = np.where(is_late, rng.integers(1, count, columns), 0)
    tracked: Booleans = np.arange(count)[:, None] >= begins
    starts = np.argwhere(rng.random((count, columns)) < tracker.drops_per_s * DT_S)
    lengths = np.ceil(rng.exponential(tracker.drop_s / DT_S, len(starts))).astype(int)
    for (start, column), length in zip(starts, lengths, strict=True):
        tracked[start : start + length, column] = False
    return tracked
