"""What trackers would have reported of recorded episodes: noise, lag, lost and exchanged tracks.

A window begins with what was reported, and goes on with what was true of those who were tracked:
a model shall learn what comes of a scene that it sees badly. Each episode has a tracker of its own,
see `training.dataset.tracker_models`.

- A track without a sample is moved on by its last motion (`world_model_client.scene.moved_on`), as
  the client's builder does; its targets are those of the road user that it lost. After `coast_s`
  it is in no slot.
- Two tracks that are exchanged follow each other's road user from then on. The one that is followed
  now is the target; filtered rates jump, and sizes are those of before for `SIZE_MEMORY_S`.
- Who is taken for longer or shorter than he is has his near end where it is, seen from the ego.
- Accelerations and turn rates are what the client's filter makes of the reported speeds and
  headings, or, of trackers that report them, the true ones of a moment ago with noise.
- Nobody is reported who was never there.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from training.dataset.store import EpisodeStore
from training.dataset.tracker_models import DRAWN, TRACKERS, Tracker, draw_tracker
from training.simulation.bicycle import DT_S
from world_model_client.scene import TYPICAL_SIZES_M, filtered, moved_on

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]
Indices = NDArray[np.int64]

SIZE_MEMORY_S = 0.5
"""How long a track keeps its size after it was exchanged for another."""

_SWAP_RANGE_M = 10.0
_SWAPPED_NEAR_EGO = 6
"""Exchanged are some of so many that are nearest to the ego: the others are in no slot."""

_LEAST_SIZE_M, _LARGEST_SIZE_M = 0.2, (30.0, 4.0)
_EPISODES_AT_ONCE = 128
_EGO = 6
_SAME_TIME_S = 1e-6


@dataclass(frozen=True)
class Tracking:
    """By which trackers episodes are seen.

    Attributes:
        seed: Decides, with the episode's own, the tracker and all its errors.
        model: A name of `TRACKERS` for all episodes, or "drawn": another one for each.

    Raises:
        ValueError: No tracker has that name.
    """

    seed: int = 0
    model: str = DRAWN

    def __post_init__(self) -> None:
        if self.model not in (DRAWN, *TRACKERS):
            raise ValueError(f"unknown tracker {self.model!r}; known: {[DRAWN, *TRACKERS]}")

    def tracker_of(self, episode_seed: int) -> tuple[Tracker, np.random.Generator]:
        """Return the tracker of an episode, and the source of its errors."""
        rng = np.random.default_rng([int(episode_seed), self.seed, 5])
        return (draw_tracker(rng) if self.model == DRAWN else TRACKERS[self.model]), rng


@dataclass(frozen=True)
class Reports:
    """What was reported at some frames of a store, F of them, V columns.

    Attributes:
        frames: [F] of the store, increasing.
        ego_features: [F, 6].
        vehicles: [F, V, 4] x, y, heading, speed of each track in the world frame.
        sizes: [F, V, 2] length, width.
        rates: [F, V, 2] acceleration, yaw rate.
        present: [F, V] whether there is such a track.
        source: [F, V] column of the store's vehicles that the track follows.
    """

    frames: Indices
    ego_features: Floats
    vehicles: Floats
    sizes: Floats
    rates: Floats
    present: Booleans
    source: Indices

    def at(self, frames: Indices) -> Reports:
        """Return those at some of the frames [N], in the order that is asked for."""
        rows = np.searchsorted(self.frames, frames)
        return Reports(*(getattr(self, f.name)[rows] for f in fields(self)))


class _Truth(NamedTuple):
    """E episodes side by side, T frames each; behind an episode's end its last one repeats.

    Attributes:
        frames: [T, E] of the store.
        last: [E] last frame, from the episode's first.
        ego: [T, E, 4].
        features: [T, E, 6].
        vehicles: [T, E, V, 4].
        present: [T, E, V].
        size: [E, V, 2].
        typical: [E, V, 2] sizes of the kinds.
    """

    frames: Indices
    last: Indices
    ego: Floats
    features: Floats
    vehicles: Floats
    present: Booleans
    size: Floats
    typical: Floats


class _Faults(NamedTuple):
    """What a tracker did wrong in one episode, of T frames.

    Attributes:
        lag: Frames by which speeds are late.
        source: [T, V].
        is_measured: [T, V] whether a track has a sample of its own.
        pose: [T, V, 4] errors along and across the ego, of headings, of speeds.
        rates: [T, V, 2] errors of reported rates.
        size_factors: [V, 2].
        is_typical: [V].
        ego: [T, 6] errors; of the heading in place of its sine.
    """

    lag: int
    source: Indices
    is_measured: Booleans
    pose: Floats
    rates: Floats
    size_factors: Floats
    is_typical: Booleans
    ego: Floats


def report(store: EpisodeStore, episodes: Indices, tracking: Tracking) -> Reports:
    """Return what was reported at all frames of some episodes.

    What is reported of an episode does not depend on which others are asked for.

    Args:
        store: Where the episodes are.
        episodes: Each once, increasing.
        tracking: By which trackers.
    """
    parts = [
        _report(store, episodes[i : i + _EPISODES_AT_ONCE], tracking)
        for i in range(0, len(episodes), _EPISODES_AT_ONCE)
    ]
    return Reports(
        *(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Reports))
    )


def _report(store: EpisodeStore, episodes: Indices, tracking: Tracking) -> Reports:
    truth = _truth(store, episodes)
    pairs = [tracking.tracker_of(seed) for seed in store.seed[episodes]]
    trackers = [tracker for tracker, _ in pairs]
    faults = [_draw(truth, e, *pair) for e, pair in enumerate(pairs)]
    source = np.stack([each.source for each in faults], axis=1)
    tracked = np.take_along_axis(truth.vehicles, source[..., None], axis=2)
    lag = np.array([each.lag for each in faults])
    errors = np.stack([each.pose for each in faults], axis=1)
    sizes, shift = _sizes(truth, faults, source, tracked)
    seen = tracked + _turned(errors, truth.ego[..., 2]) + shift
    late = tracked[_earlier(truth, lag)][..., 3]
    seen[..., 3] = np.maximum(late + errors[..., 3], 0.0)
    is_measured = np.stack([each.is_measured for each in faults], axis=1)
    rates = _rates(truth, trackers, faults, source, seen, is_measured)
    coast_s = np.array([tracker.coast_s for tracker in trackers])
    present = _coast(seen, rates, is_measured, coast_s)
    features = _ego_features(truth.features, np.stack([each.ego for each in faults], axis=1))
    recorded = np.arange(len(truth.frames)) <= truth.last[:, None]  # [E, T], as in the store

    def in_order(values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.swapaxes(values, 0, 1)[recorded])

    return Reports(
        frames=in_order(truth.frames),
        ego_features=in_order(features),
        vehicles=in_order(seen),
        sizes=in_order(sizes),
        rates=in_order(rates),
        present=in_order(present),
        source=in_order(source),
    )


def _truth(store: EpisodeStore, episodes: Indices) -> _Truth:
    last = store.frame_count[episodes].astype(np.int64) - 1
    steps = np.minimum(np.arange(last.max() + 1)[:, None], last)
    frames = store.frame_start[episodes] + steps
    usual = np.array([TYPICAL_SIZES_M.get(name, (0.0, 0.0)) for name in store.kind_names])
    size = store.size[episodes].astype(np.float64)
    typical = usual[store.kind[episodes]]
    return _Truth(
        frames=frames,
        last=last,
        ego=store.ego[frames].astype(np.float64),
        features=store.ego_features[frames].astype(np.float64),
        vehicles=store.vehicles[frames].astype(np.float64),
        present=store.present[frames] > 0,
        size=size,
        typical=np.where(typical > 0, typical, size),
    )


def _draw(truth: _Truth, e: int, tracker: Tracker, rng: np.random.Generator) -> _Faults:
    """Draw what a tracker does wrong in the batch's e-th episode."""
    count, columns = int(truth.last[e]) + 1, truth.vehicles.shape[2]
    shape = (count, columns, 4)
    pose = rng.normal(size=shape) * tracker.white.as_row()
    pose += _lasting(rng.normal(size=shape), tracker.correlation_s) * tracker.correlated.as_row()
    pose += rng.normal(size=shape[1:]) * tracker.bias.as_row()
    factors = 1 + tracker.size_share * rng.normal(size=(columns, 2))
    rates = rng.normal(size=(count, columns, 2))
    ego = rng.normal(size=(count, _EGO)) * (
        *(tracker.ego_speed_mps, tracker.lane_offset_m, tracker.ego_heading_rad),
        *(tracker.edge_m, tracker.edge_m, 0.0),
    )
    ego[:, 3:5] += rng.normal(size=2) * tracker.edge_bias_m
    ego[:, 3] += ego[:, 1]
    ego[:, 4] -= ego[:, 1]
    missing = len(truth.frames) - count

    def padded(values: NDArray[Any]) -> NDArray[Any]:
        return np.pad(values, ((0, missing), *((0, 0),) * (values.ndim - 1)), mode="edge")

    source = _swapped(truth, e, tracker.swaps_per_s, rng)
    is_measured = _measured(tracker, count, columns, rng)
    present = np.take_along_axis(truth.present[:count, e], source, axis=1)
    return _Faults(
        lag=round(tracker.speed_lag_s / DT_S),
        source=padded(source),
        is_measured=padded(is_measured & present),
        pose=padded(pose),
        rates=padded(rates * (tracker.acceleration_mps2, tracker.yaw_rate_radps)),
        size_factors=np.clip(factors, 0.5, 1.6),
        is_typical=np.asarray(rng.random(columns) < tracker.typical_share),
        ego=padded(ego),
    )


def _lasting(white: Floats, correlation_s: float) -> Floats:
    """Return errors [T, ...] of deviation 1 that last, made of independent ones."""
    keep = float(np.exp(-DT_S / correlation_s))
    fresh = np.sqrt(1 - keep**2)
    white[0] /= fresh  # as if it had gone on for ever before
    return np.asarray(lfilter([fresh], [1, -keep], white, axis=0))


def _measured(tracker: Tracker, count: int, columns: int, rng: np.random.Generator) -> Booleans:
    """Return when tracks [V] have begun and have not lost their road user, [T, V]."""
    is_late = rng.random(columns) < tracker.late_share
    begins = np.where(is_late, rng.integers(1, count, columns), 0)
    measured: Booleans = np.arange(count)[:, None] >= begins
    starts = np.argwhere(rng.random((count, columns)) < tracker.drops_per_s * DT_S)
    lengths = np.ceil(rng.exponential(tracker.drop_s / DT_S, len(starts))).astype(int)
    for (start, column), length in zip(starts, lengths, strict=True):
        measured[start : start + length, column] = False
    return measured


def _swapped(truth: _Truth, e: int, swaps_per_s: float, rng: np.random.Generator) -> Indices:
    """Return which road user each track follows [T, V]."""
    count, columns = int(truth.last[e]) + 1, truth.vehicles.shape[2]
    source = np.tile(np.arange(columns), (count, 1))
    for frame in np.sort(rng.integers(1, count, rng.poisson(swaps_per_s * count * DT_S))):
        places, chosen = truth.vehicles[frame, e, :, :2], rng.random()
        there = np.flatnonzero(truth.present[frame, e])
        away = np.linalg.norm(places[there] - truth.ego[frame, e, :2], axis=-1)
        near = there[np.argsort(away)[:_SWAPPED_NEAR_EGO]]
        if len(near) < 2:
            continue
        one = near[int(chosen * len(near))]
        others = near[near != one]
        apart = np.linalg.norm(places[others] - places[one], axis=-1)
        if apart.min() <= _SWAP_RANGE_M:
            other = others[np.argmin(apart)]
            tracks = [int(np.argmax(source[frame] == x)) for x in (one, other)]
            source[frame:, tracks] = source[frame:, tracks[::-1]]
    return source


def _earlier(truth: _Truth, lag: Indices) -> tuple[Indices, Indices]:
    """Return where, in arrays [T, E, ...], the frames some frames ago are; `lag` is [E]."""
    steps = np.arange(len(truth.frames))[:, None]
    return np.maximum(steps - lag, 0), np.arange(len(lag))[None]


def _turned(errors: Floats, heading: Floats) -> Floats:
    """Return errors [T, E, V, 4] along and across an ego of a heading [T, E] in the world."""
    cos, sin = np.cos(heading)[..., None], np.sin(heading)[..., None]
    along, across = errors[..., 0], errors[..., 1]
    zero = np.zeros_like(along)
    moved = (cos * along - sin * across, sin * along + cos * across, errors[..., 2], zero)
    return np.stack(moved, axis=-1)


def _sizes(
    truth: _Truth, faults: list[_Faults], source: Indices, tracked: Floats
) -> tuple[Floats, Floats]:
    """Return reported sizes [T, E, V, 2], and by how much they move centres [T, E, V, 4].

    A tracker sees the near end of a road user: where it takes the length for another, the centre
    moves with the far end.
    """
    rows = np.arange(source.shape[1])[None, :, None]
    memory = np.full(source.shape[1], round(SIZE_MEMORY_S / DT_S))
    former = source[_earlier(truth, memory)]
    is_typical = np.stack([each.is_typical for each in faults])[..., None]
    factors = np.stack([each.size_factors for each in faults])
    known = np.where(is_typical, truth.typical[rows, former], truth.size[rows, former])
    sizes = np.clip(known * factors, _LEAST_SIZE_M, _LARGEST_SIZE_M)
    longer = (sizes[..., 0] - truth.size[rows, source][..., 0]) / 2
    offset = tracked[..., :2] - truth.ego[:, :, None, :2]
    cos, sin = np.cos(tracked[..., 2]), np.sin(tracked[..., 2])
    ahead = longer * np.sign(offset[..., 0] * cos + offset[..., 1] * sin)
    zero = np.zeros_like(ahead)
    return sizes, np.stack([ahead * cos, ahead * sin, zero, zero], axis=-1)


def _rates(
    truth: _Truth,
    trackers: list[Tracker],
    faults: list[_Faults],
    source: Indices,
    seen: Floats,
    is_measured: Booleans,
) -> Floats:
    """Return accelerations and turn rates [T, E, V, 2], by the filter or as a tracker has them."""
    lag = np.array([round((tracker.rate_lag_s or 0.0) / DT_S) for tracker in trackers])
    change = np.diff(truth.vehicles[..., [3, 2]], axis=0, prepend=truth.vehicles[:1, ..., [3, 2]])
    change[..., 1] -= 2 * np.pi * np.round(change[..., 1] / (2 * np.pi))
    true = np.take_along_axis(change[_earlier(truth, lag)] / DT_S, source[..., None], axis=2)
    rates = true + np.stack([each.rates for each in faults], axis=1)
    times = np.arange(len(seen)) * DT_S
    windows = {tracker.filter_s for tracker in trackers if tracker.rate_lag_s is None}
    for window_s in sorted(windows):
        some = [
            i
            for i, tracker in enumerate(trackers)
            if tracker.rate_lag_s is None and tracker.filter_s == window_s
        ]
        shape = (len(seen), -1)
        part = seen[:, some]
        found = filtered(
            times,
            part[..., 3].reshape(shape),
            part[..., 2].reshape(shape),
            is_measured[:, some].reshape(shape),
            window_s,
        )
        rates[:, some] = np.stack(found, axis=-1).reshape(*part.shape[:3], 2)
    return rates


def _coast(seen: Floats, rates: Floats, is_measured: Booleans, coast_s: Floats) -> Booleans:
    """Move tracks without a sample on, in place; return which tracks are there [T, E, V].

    Args:
        seen: [T, E, V, 4].
        rates: [T, E, V, 2].
        is_measured: [T, E, V].
        coast_s: [E].
    """
    steps = np.arange(len(seen))[:, None, None]
    last = np.maximum.accumulate(np.where(is_measured, steps, -1), axis=0)
    elapsed_s = (steps - last) * DT_S
    is_moved = ~is_measured & (last >= 0) & (elapsed_s <= coast_s[:, None] + _SAME_TIME_S)
    _, episode, column = np.nonzero(is_moved)
    before = last[is_moved], episode, column
    motion = np.concatenate([seen[before], rates[before]], axis=-1)
    seen[is_moved] = moved_on(motion, elapsed_s[is_moved])
    rates[is_moved] = rates[before]
    return np.asarray(is_measured | is_moved)


def _ego_features(features: Floats, errors: Floats) -> Floats:
    """Return the ego's features [T, E, 6] with errors."""
    wrong = features + errors
    wrong[..., 0] = np.maximum(wrong[..., 0], 0.0)
    heading = np.arcsin(np.clip(features[..., 2], -1, 1)) + errors[..., 2]
    wrong[..., 2] = np.where(errors[..., 2] == 0, features[..., 2], np.sin(heading))
    return wrong
