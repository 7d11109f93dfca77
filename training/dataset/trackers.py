"""What trackers report of episodes: noise, lag, lost and exchanged tracks.

They go frame by frame, so that the same ones see recorded episodes (`report`) and a drive that is
on its way (`training.closed_loop.sight`). A window of recordings begins with what was reported, and
goes on with what was true of those who were tracked: a model shall learn what comes of a scene that
it sees badly. Each episode has a tracker of its own, see `training.dataset.tracker_models`.

- A track without a sample is moved on by its last motion (`world_model_client.scene.moved_on`), as
  the client's builder does; its targets are those of the road user that it lost. After `coast_s`
  it is in no slot.
- Two tracks that are exchanged follow each other's road user from then on. The one that is followed
  now is the target; the filter begins anew, and sizes are those of before for `SIZE_MEMORY_S`.
- Who is taken for longer or shorter than he is has his near end where it is, seen from the ego.
- Places, headings and speeds go through the client's filter (`world_model_client.scene.tracks`), as
  the client's builder sends them. Accelerations and turn rates are what the filter makes of them,
  or, of trackers that report them, the true ones of a moment ago with noise.
- Nobody is reported who was never there.
- A map that has the lane's centre line elsewhere, or no road edges, has it so in the next moment,
  too: what follows in a window is true by that map, see `training.dataset.windows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.dataset.store import EpisodeStore
from training.dataset.tracker_faults import Booleans, Floats, draw_faults
from training.dataset.tracker_models import DRAWN, TRACKERS, Tracker, draw_tracker
from training.simulation.bicycle import DT_S
from world_model_client.scene import TYPICAL_SIZES_M, moved_on
from world_model_client.scene.tracks import History

Indices = NDArray[np.int64]

SIZE_MEMORY_S = 0.5
"""How long a track keeps its size after it was exchanged for another."""

_SWAP_RANGE_M = 10.0
_SWAPPED_NEAR_EGO = 6
"""Exchanged are some of so many that are nearest to the ego: the others are in no slot."""

_LEAST_SIZE_M, _LARGEST_SIZE_M = 0.2, (30.0, 4.0)
FAR_EDGE_M = 40.0
"""How far an edge is reported that is out of sight: as the largest that specs allow."""

_EPISODES_AT_ONCE = 128
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


class Moment(NamedTuple):
    """What is true at one frame of E episodes side by side.

    Attributes:
        ego: [E, 4] x, y, heading, speed.
        features: [E, 6] of the ego.
        vehicles: [E, V, 4] like `ego`, of the others.
        present: [E, V] whether each one is there.
    """

    ego: Floats
    features: Floats
    vehicles: Floats
    present: Booleans


class Reported(NamedTuple):
    """What was reported of it; see `Reports`.

    Attributes:
        ego_features: [E, 6].
        vehicles: [E, V, 4].
        sizes: [E, V, 2].
        rates: [E, V, 2].
        present: [E, V].
        source: [E, V].
    """

    ego_features: Floats
    vehicles: Floats
    sizes: Floats
    rates: Floats
    present: Booleans
    source: Indices


class Trackers:
    """The trackers of E episodes side by side, which see one frame after the other.

    Args:
        tracking: Which trackers.
        seeds: [E] of the episodes.
        counts: [E] frames of each one, at most; 2 at least.
        size: [E, V, 2] true lengths and widths of the others.
        typical: [E, V, 2] those of their kinds, see `typical_sizes`.
    """

    def __init__(
        self,
        tracking: Tracking,
        seeds: Sequence[int] | NDArray[np.integer],
        counts: Sequence[int] | NDArray[np.integer],
        size: Floats,
        typical: Floats,
    ) -> None:
        pairs = [tracking.tracker_of(int(seed)) for seed in seeds]
        self._trackers = [tracker for tracker, _ in pairs]
        frames, columns = int(max(counts)), size.shape[1]
        faults = [
            draw_faults(tracker, rng, int(count), columns).padded(frames)
            for (tracker, rng), count in zip(pairs, counts, strict=True)
        ]
        self._swaps = [(each.swaps, each.chosen) for each in faults]
        self._tracked, self._pose, self._rates, self._ego = (
            np.stack([getattr(each, name) for each in faults], axis=1)
            for name in ("is_tracked", "pose", "rates", "ego")
        )
        self._size, self._typical = size, typical
        self._factors = np.stack([each.size_factors for each in faults])
        self._is_typical = np.stack([each.is_typical for each in faults])[..., None]
        self._speed_lag = _steps([tracker.speed_lag_s for tracker in self._trackers])
        self._rate_lag = _steps([tracker.rate_lag_s or 0.0 for tracker in self._trackers])
        self._coast_s = np.array([tracker.coast_s for tracker in self._trackers])
        self._asks = np.array([tracker.rate_lag_s is None for tracker in self._trackers])
        self._filters = _filters(self._trackers, columns)
        shape = (len(pairs), columns)
        self._step = -1
        # By frame, for those that report late.
        self._source = np.zeros((frames, *shape), np.int64)
        self._speeds = np.zeros((frames, *shape))
        self._changes = np.zeros((frames, *shape, 2))
        self._vehicles = np.zeros((*shape, 4))
        self._last = np.full(shape, -1)  # frame of each track's newest sample
        self._last_motion = np.zeros((*shape, 6))

    def update(self, now: Moment) -> Reported:
        """Return what is reported of the next frame.

        Args:
            now: What is true; the first call is about the first frame.
        """
        self._step += 1
        source = self._follow(now)
        tracked = np.take_along_axis(now.vehicles, source[..., None], axis=1)
        self._speeds[self._step] = tracked[..., 3]
        sizes, shift = self._sizes(now, source, tracked)
        errors = self._pose[self._step]
        seen = tracked + _turned(errors, now.ego[:, 2]) + shift
        late = _before(self._speeds, self._step, self._speed_lag)
        seen[..., 3] = np.maximum(late + errors[..., 3], 0.0)
        is_there = np.take_along_axis(now.present, source, axis=1)
        is_measured = self._tracked[self._step] & is_there
        rates = self._reported_rates(now, source)
        self._filter(seen, rates, is_measured)
        present = self._coast(seen, rates, is_measured)
        features = _ego_features(now.features, self._ego[self._step])
        return Reported(features, seen, sizes, rates, present, source)

    def _follow(self, now: Moment) -> Indices:
        """Return whom each track follows now [E, V]."""
        step, columns = self._step, now.vehicles.shape[1]
        source = self._source[step - 1].copy() if step else np.arange(columns)[None]
        self._source[step] = source
        for e, (frames, chosen) in enumerate(self._swaps):
            for number in chosen[frames == step]:
                _swap(self._source[step, e], now, e, float(number))
        return np.asarray(self._source[step])

    def _sizes(self, now: Moment, source: Indices, tracked: Floats) -> tuple[Floats, Floats]:
        """Return reported sizes [E, V, 2], and by how much they move centres [E, V, 4].

        A tracker sees the near end of a road user: where it takes the length for another, the
        centre moves with the far end.
        """
        rows = np.arange(len(source))[:, None]
        former = self._source[max(self._step - round(SIZE_MEMORY_S / DT_S), 0)]
        known = np.where(self._is_typical, self._typical[rows, former], self._size[rows, former])
        sizes = np.clip(known * self._factors, _LEAST_SIZE_M, _LARGEST_SIZE_M)
        longer = (sizes[..., 0] - self._size[rows, source][..., 0]) / 2
        offset = tracked[..., :2] - now.ego[:, None, :2]
        cos, sin = np.cos(tracked[..., 2]), np.sin(tracked[..., 2])
        ahead = longer * np.sign(offset[..., 0] * cos + offset[..., 1] * sin)
        zero = np.zeros_like(ahead)
        return sizes, np.stack([ahead * cos, ahead * sin, zero, zero], axis=-1)

    def _reported_rates(self, now: Moment, source: Indices) -> Floats:
        """Return accelerations and turn rates [E, V, 2] as reported; NaN where the filter asks."""
        if self._step:
            change = (now.vehicles - self._vehicles)[..., [3, 2]]
            change[..., 1] -= 2 * np.pi * np.round(change[..., 1] / (2 * np.pi))
            self._changes[self._step] = change
        self._vehicles = now.vehicles
        late = _before(self._changes, self._step, self._rate_lag) / DT_S
        rates = np.take_along_axis(late, source[..., None], axis=1) + self._rates[self._step]
        rates[self._asks] = np.nan
        return np.asarray(rates)

    def _filter(self, seen: Floats, rates: Floats, is_measured: Booleans) -> None:
        """Put the client's filter on what was measured, in place; rates of others become 0."""
        time_s = self._step * DT_S
        for some, history in self._filters:
            places = np.nonzero(is_measured[some])
            rows = np.ravel_multi_index(places, is_measured[some].shape)
            at = (some[places[0]], places[1])
            history.add(rows, time_s, seen[at])
            motions = history.motions(rows, time_s, rates[at])
            seen[at], rates[at] = motions[:, :4], motions[:, 4:]
        rates[np.isnan(rates)] = 0.0

    def _coast(self, seen: Floats, rates: Floats, is_measured: Booleans) -> Booleans:
        """Move tracks without a sample on, in place; return which tracks are there [E, V]."""
        self._last[is_measured] = self._step
        self._last_motion[is_measured] = np.concatenate([seen, rates], axis=-1)[is_measured]
        elapsed_s = (self._step - self._last) * DT_S
        is_moved = ~is_measured & (self._last >= 0)
        is_moved &= elapsed_s <= self._coast_s[:, None] + _SAME_TIME_S
        motion = self._last_motion[is_moved]
        seen[is_moved], rates[is_moved] = moved_on(motion, elapsed_s[is_moved]), motion[:, 4:]
        return np.asarray(is_measured | is_moved)


def _steps(seconds: Sequence[float]) -> Indices:
    return np.array([round(each / DT_S) for each in seconds], np.int64)


def _before(values: Floats, step: int, lag: Indices) -> Floats:
    """Return what values [T, E, ...] were some frames [E] before a step, [E, ...]."""
    return np.asarray(values[np.maximum(step - lag, 0), np.arange(len(lag))])


def _filters(trackers: Sequence[Tracker], columns: int) -> list[tuple[Indices, History]]:
    """Return the client's filters, and whose tracks each one has side by side."""
    filters = []
    windows_s = np.array([tracker.filter_s for tracker in trackers])
    for window_s in np.unique(windows_s).tolist():
        some = np.flatnonzero(windows_s == window_s)
        samples = 2 + round(window_s / DT_S)
        filters.append((some, History(len(some) * columns, window_s, samples)))
    return filters


def _swap(source: Indices, now: Moment, e: int, chosen: float) -> None:
    """Exchange two tracks near the ego [V], in place, if there are two near each other.

    Args:
        source: [V] whom they follow.
        now: What is true.
        e: Number of the episode.
        chosen: In [0, 1), which of those near the ego is one of them.
    """
    places, there = now.vehicles[e, :, :2], np.flatnonzero(now.present[e])
    away = np.linalg.norm(places[there] - now.ego[e, :2], axis=-1)
    near = there[np.argsort(away)[:_SWAPPED_NEAR_EGO]]
    if len(near) < 2:
        return
    one = near[int(chosen * len(near))]
    others = near[near != one]
    apart = np.linalg.norm(places[others] - places[one], axis=-1)
    if apart.min() <= _SWAP_RANGE_M:
        other = others[np.argmin(apart)]
        tracks = [int(np.argmax(source == x)) for x in (one, other)]
        source[tracks] = source[tracks[::-1]]


def _turned(errors: Floats, heading: Floats) -> Floats:
    """Return errors [E, V, 4] along and across an ego of a heading [E] in the world."""
    cos, sin = np.cos(heading)[..., None], np.sin(heading)[..., None]
    along, across = errors[..., 0], errors[..., 1]
    zero = np.zeros_like(along)
    moved = (cos * along - sin * across, sin * along + cos * across, errors[..., 2], zero)
    return np.stack(moved, axis=-1)


def _ego_features(features: Floats, errors: Floats) -> Floats:
    """Return the ego's features [E, 6] with errors."""
    wrong = features + errors
    wrong[..., 0] = np.maximum(wrong[..., 0], 0.0)
    heading = np.arcsin(np.clip(features[..., 2], -1, 1)) + errors[..., 2]
    wrong[..., 2] = np.where(errors[..., 2] == 0, features[..., 2], np.sin(heading))
    wrong[np.isinf(errors)] = FAR_EDGE_M
    return wrong


def typical_sizes(kinds: NDArray[np.integer], names: Sequence[str], size: Floats) -> Floats:
    """Return the sizes [..., 2] that road users are taken for where a tracker measures none.

    Args:
        kinds: [...] indices into `names`.
        names: Of the kinds.
        size: [..., 2] true ones, for kinds that nobody knows.
    """
    typical = np.array([TYPICAL_SIZES_M.get(name, (0.0, 0.0)) for name in names])[kinds]
    return np.where(typical > 0, typical, size)


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
    counts = store.frame_count[episodes].astype(np.int64)
    size = store.size[episodes].astype(np.float64)
    typical = typical_sizes(store.kind[episodes], store.kind_names, size)
    trackers = Trackers(tracking, store.seed[episodes], counts, size, typical)
    # Behind an episode's end its last frame repeats.
    steps = np.minimum(np.arange(counts.max())[:, None], counts - 1)
    frames = store.frame_start[episodes] + steps  # [T, E]
    seen = [
        trackers.update(
            Moment(
                store.ego[now].astype(np.float64),
                store.ego_features[now].astype(np.float64),
                store.vehicles[now].astype(np.float64),
                store.present[now] > 0,
            )
        )
        for now in frames
    ]
    recorded = np.arange(len(frames)) < counts[:, None]  # [E, T], as in the store

    def in_order(values: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.swapaxes(values, 0, 1)[recorded])

    columns = (in_order(np.stack(column)) for column in zip(*seen, strict=True))
    return Reports(in_order(frames), *columns)
