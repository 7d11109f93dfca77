"""Recorded episodes to training windows: states of frozen neighbours, actions, outcomes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.saturation import Saturations
from models.spec import Slot, Spec
from training.dataset.episodes import Episodes
from training.dataset.features import followed_states, tracked_states
from training.dataset.store import EpisodeStore
from training.dataset.trackers import Tracking, report
from training.simulation.simulator import CAUSES, HIGHWAY, UNSEEN
from training.simulation.states import EGO_FEATURES
from training.simulation.worlds import lane_reward

SPLIT_SHARES = {"train": 0.56, "validation": 0.08, "calibration": 0.18, "test": 0.18}
ENOUGH_EPISODES = math.ceil(1 / min(SPLIT_SHARES.values()))
"""So many, or more, leave no part of a split empty."""
UNSEEN_ENVIRONMENT = UNSEEN["highway-env"]
"""Never trained or calibrated on: it shows how a model does on roads it has not seen."""
KEEP_DISTANCE_M = 15.0
"""A neighbour that comes nearer than this within a window may matter to its outcome."""

_OFF_ROAD = CAUSES.index("off_road")
_EDGES = [EGO_FEATURES.index(name) for name in ("left_edge", "right_edge")]

_CHUNK_WINDOWS = 8192


@dataclass(frozen=True)
class Windows:
    """N windows of H steps; neighbours keep their slot throughout a window.

    Attributes:
        states: float32 [N, H+1, S]; after the episode's end the last state repeats.
        actions: float32 [N, H, A].
        rewards: float32 [N, H].
        terminated: bool [N, H], the episode terminated at the end of the step.
        valid: bool [N, H], the step was recorded.
        episode: int64 [N], index in the store.
        environment: uint8 [N], index in the store's names.
        behaviour: uint8 [N], index in the store's names.
        start_step: int64 [N], step of the episode at which the window starts.
    """

    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    episode: NDArray[np.int64]
    environment: NDArray[np.uint8]
    behaviour: NDArray[np.uint8]
    start_step: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.states)

    @property
    def horizon(self) -> int:
        """H."""
        return int(self.actions.shape[1])

    @property
    def ends(self) -> NDArray[np.bool_]:
        """[N], whether the episode terminates within the window."""
        return np.asarray(self.terminated.any(axis=1))

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """[N], whether the outcome after H steps is known: it ended, or all H were recorded."""
        return np.asarray(self.ends | self.valid[:, -1])

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Windows:
        """Return some of the windows."""
        return Windows(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @classmethod
    def joined(cls, parts: Sequence[Windows]) -> Windows:
        """Return windows of equal horizon one after the other; at least one part."""
        return cls(
            **{f.name: np.concatenate([getattr(x, f.name) for x in parts]) for f in fields(cls)}
        )

    def save(self, folder: Path) -> None:
        """Write one `.npy` file a field, so that several processes can map them."""
        folder.mkdir(parents=True, exist_ok=True)
        for f in fields(self):
            np.save(folder / f"{f.name}.npy", getattr(self, f.name))

    @classmethod
    def open(cls, folder: Path) -> Windows:
        """Map what `save` wrote, read-only."""
        return cls(**{f.name: np.load(folder / f"{f.name}.npy", "r") for f in fields(cls)})


def split_episodes(store: EpisodeStore, seed: int) -> dict[str, NDArray[np.int64]]:
    """Split episodes at random by `SPLIT_SHARES`; those of each source's unseen road go apart.

    Returns:
        `train` for weights, `validation` to watch training and calibrate probabilities,
        `calibration` for thresholds, `test` for what is reported, and `unseen`.
    """
    names = store.environment_names
    codes = [names.index(road) for road in UNSEEN.values() if road in names]
    is_unseen = np.isin(store.environment, codes)
    parts = split_at_random(np.flatnonzero(~is_unseen), seed)
    return {**parts, "unseen": np.flatnonzero(is_unseen).astype(np.int64)}


def split_at_random(episodes: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.int64]]:
    """Split episodes at random by `SPLIT_SHARES`."""
    order = np.random.default_rng(seed).permutation(episodes)
    bounds = np.round(np.cumsum(list(SPLIT_SHARES.values()))[:-1] * len(order)).astype(int)
    parts = zip(SPLIT_SHARES, np.split(order, bounds), strict=True)
    return {name: np.sort(part).astype(np.int64) for name, part in parts}


def make_windows(
    store: EpisodeStore,
    episodes: NDArray[np.int64],
    horizon: int,
    stride: int,
    *,
    spec: Spec = HIGHWAY,
    tracking: Tracking | None = None,
) -> Windows:
    """Cut windows that start every `stride` steps of the given episodes, from step 1 on.

    At step 0 no acceleration and turn rate is known yet. Windows that run past an episode's end
    are kept; `valid` marks what was recorded.

    Args:
        store: Where the episodes are.
        episodes: Each once.
        horizon: H.
        stride: Steps between the starts of windows.
        spec: Of the states.
        tracking: By which trackers the first states are seen; what follows stays true, by the
            same tracker's map. Without it, all is.
    """
    cut = _cut(store, episodes, horizon, stride, first_step=1)
    start = store.frame_start[cut.episode] + cut.start_step
    states = np.empty((len(start), horizon + 1, spec.state_dim), np.float32)
    for i in range(0, len(start), _CHUNK_WINDOWS):
        rows = slice(i, i + _CHUNK_WINDOWS)
        some = np.unique(cut.episode[rows])
        reports = None if tracking is None else report(store, some, tracking)
        states[rows] = tracked_states(store, start[rows], horizon, spec, reports)
    windows = _windows(
        cut,
        states,
        (store.action, store.reward, store.terminated),
        store.environment[cut.episode],
        store.behaviour[cut.episode],
    )
    return windows if tracking is None else _by_map(windows, store, spec, tracking)


def _by_map(windows: Windows, store: EpisodeStore, spec: Spec, tracking: Tracking) -> Windows:
    """Return windows that go on by the map of their tracker; what they hold is changed in place.

    - Lane offsets are from the tracker's centre line, and rewards are those of these offsets: the
      next request of whoever has that map will have the same bias. Targets from the true line would
      teach a jump to it in the first step.
    - An edge out of sight stays out of sight, and where a drive ends beyond it, recording stops a
      step before. Nobody could have seen that end coming; labels would teach that a far edge is
      a danger, and would make conformal thresholds so low that they tell nothing.
    """
    car = spec.kinematics
    assert car is not None, "the encoder of tracked states needs them"
    episodes, rows = np.unique(windows.episode, return_inverse=True)
    trackers = [tracking.tracker_of(int(seed))[0] for seed in store.seed[episodes]]
    bias = np.array([tracker.lane_bias_m for tracker in trackers], np.float32)[rows, None]
    is_hidden = ~np.array([tracker.sees_edges for tracker in trackers]).reshape(-1, 2)
    offset = windows.states[:, 1:, spec.state_index(car.lane_offset)]
    change = lane_reward(offset + bias) - lane_reward(offset)
    np.add(windows.rewards, change, out=windows.rewards, where=~windows.terminated)
    offset += bias
    for side, name in enumerate((car.left_edge, car.right_edge)):
        edge = windows.states[:, :, spec.state_index(name)]
        np.copyto(edge, edge[:, :1], where=is_hidden[rows, side, None])
    last = store.frame_start[episodes] + store.frame_count[episodes] - 1
    side_left = store.ego_features[last][:, _EDGES].argmin(1)
    is_unseen = is_hidden[np.arange(len(episodes)), side_left]
    is_unseen &= store.cause[episodes] == _OFF_ROAD
    ends = windows.terminated & is_unseen[rows, None]
    return replace(windows, terminated=windows.terminated & ~ends, valid=windows.valid & ~ends)


def cut_windows(episodes: Episodes, which: NDArray[np.int64], horizon: int, stride: int) -> Windows:
    """Cut windows as `make_windows` does, of episodes of any spec, from step 0 on.

    Features saturate in all states, the targets too, as those of requests do.
    """
    cut = _cut(episodes, which, horizon, stride, first_step=0)
    last = episodes.frame_start[cut.episode] + episodes.frame_count[cut.episode] - 1
    start = episodes.frame_start[cut.episode] + cut.start_step
    frames = np.minimum(start[:, None] + np.arange(horizon + 1), last[:, None])
    states = np.empty((*frames.shape, episodes.spec.state_dim), np.float32)
    saturations = Saturations(episodes.spec)
    for i in range(0, len(frames), _CHUNK_WINDOWS):
        chunk = followed_states(episodes, frames[i : i + _CHUNK_WINDOWS])
        states[i : i + _CHUNK_WINDOWS] = saturations.applied(chunk)
    nowhere = np.zeros(len(frames), np.uint8)
    recorded = episodes.actions, episodes.rewards, episodes.terminated
    return _windows(cut, states, recorded, nowhere, nowhere)


class _Cut(NamedTuple):
    """Where N windows of H steps lie.

    Attributes:
        episode: [N].
        start_step: [N].
        frame: [N, H], in which each step begins; beyond the episode's end its last step's.
        is_last: [N, H], whether the episode's recording ends with the step.
        valid: [N, H], whether the step was recorded.
    """

    episode: NDArray[np.int64]
    start_step: NDArray[np.int64]
    frame: NDArray[np.int64]
    is_last: NDArray[np.bool_]
    valid: NDArray[np.bool_]


def _cut(
    store: EpisodeStore | Episodes,
    episodes: NDArray[np.int64],
    horizon: int,
    stride: int,
    *,
    first_step: int,
) -> _Cut:
    steps = store.frame_count[episodes].astype(np.int64) - 1
    counts = -(-(steps - first_step) // stride)
    episode = np.repeat(episodes, counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    start_step = first_step + (np.arange(len(episode)) - first) * stride
    steps = np.repeat(steps, counts)
    step = start_step[:, None] + np.arange(horizon)
    frame = store.frame_start[episode][:, None] + np.minimum(step, steps[:, None] - 1)
    return _Cut(episode, start_step, frame, step == steps[:, None] - 1, step < steps[:, None])


def _windows(
    cut: _Cut,
    states: NDArray[np.float32],
    recorded: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]],
    environment: NDArray[np.uint8],
    behaviour: NDArray[np.uint8],
) -> Windows:
    """Return the windows of a cut; recorded are actions [F, A], rewards [F], terminated [E]."""
    actions, rewards, terminated = recorded
    return Windows(
        states=states,
        actions=actions[cut.frame],
        rewards=rewards[cut.frame],
        terminated=cut.is_last & (terminated[cut.episode][:, None] > 0),
        valid=cut.valid,
        episode=cut.episode,
        environment=environment,
        behaviour=behaviour,
        start_step=cut.start_step,
    )


def hide_far_neighbours(windows: Windows, spec: Spec, *, share: float, seed: int) -> Windows:
    """Empty the slots of far neighbours in a random share of the windows.

    Each chosen window gets a random sensor range; neighbours that start beyond it, and stay
    beyond `KEEP_DISTANCE_M` all along, are hidden. Recorded traffic nearly always fills all
    slots, and a model must not meet its first empty road in service.

    Args:
        windows: Not changed.
        spec: Names the slots; without a geometry, windows come back as they are.
        share: Share of windows to choose, in [0, 1].
        seed: Decides which windows and ranges.
    """
    if spec.geometry is None or not len(windows):
        return windows
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(rng.random(len(windows)) < share)
    states = np.array(windows.states)
    chosen = states[rows]
    range_m = rng.uniform(0.0, 100.0, len(rows))
    for slot in spec.geometry.slots:
        distance = np.hypot(
            chosen[..., spec.state_index(slot.dx)], chosen[..., spec.state_index(slot.dy)]
        )
        distance = distance - _reach_beyond(chosen, slot, spec)
        is_hidden = (distance[:, 0] > range_m) & (distance.min(axis=1) > KEEP_DISTANCE_M)
        for name in (slot.gate, *slot.features):
            column = chosen[..., spec.state_index(name)]
            column[is_hidden] = 0.0
    states[rows] = chosen
    return replace(windows, states=states)


def _reach_beyond(states: NDArray[np.float32], slot: Slot, spec: Spec) -> NDArray[np.float32]:
    """Return by how much a neighbour and the ego reach towards each other beyond two usual cars.

    Args:
        states: [N, H + 1, S].
        slot: Of the neighbour.
        spec: With a geometry.

    Returns:
        [N, H + 1] m; 0 where lengths are not known or below the usual one.
    """
    assert spec.geometry is not None
    usual_m, reach = spec.geometry.length_m, np.zeros(states.shape[:-1], np.float32)
    for name in (slot.length, spec.geometry.length):
        if name is not None:
            reach += np.maximum(states[..., spec.state_index(name)] - usual_m, 0) / 2
    return reach
