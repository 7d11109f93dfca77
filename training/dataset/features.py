"""Frames to states of windows: from the world frame of recordings, or as others recorded them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.slots import SLOT_KINDS
from models.spec import Spec
from training.dataset.episodes import Episodes
from training.dataset.store import EpisodeStore
from training.dataset.trackers import Reports
from training.simulation.simulator import HIGHWAY
from training.simulation.slots import (
    EGO_COUNT,
    SLOT_COUNT,
    reported_features,
    slot_features,
    whole_turns,
)
from training.simulation.states import encoder_of

__all__ = ["EGO_COUNT", "SLOT_COUNT", "tracked_states"]

HEADING = 3
"""Place of the heading within a slot."""


def tracked_states(
    store: EpisodeStore,
    start_frames: NDArray[np.integer[Any]],
    horizon: int,
    spec: Spec = HIGHWAY,
    reports: Reports | None = None,
) -> NDArray[np.float32]:
    """Return windows of states in which a slot is one road user throughout.

    Who is nearest is chosen at the start and followed: re-sorted at every frame, half of all
    16-step windows would see a slot change hands.

    Args:
        store: Where the frames are.
        start_frames: [N] frame indices.
        horizon: Number of steps, H.
        spec: Of the states; a layout that `StateEncoder` knows.
        reports: What trackers reported at the start frames; the truth without. The states behind
            the first one are true in any case, but for the sizes of neighbours: nothing predicts
            those, and what was reported is held.

    Returns:
        [N, H + 1, S]. Beyond the episode's end its last frame repeats. In an episode's first
        frame accelerations and yaw rates are 0: nothing came before.
    """
    encoder = encoder_of(spec)
    start_frames = np.asarray(start_frames, np.int64)
    episode = np.searchsorted(store.frame_start, start_frames, side="right") - 1
    first = store.frame_start[episode]
    last = first + store.frame_count[episode] - 1
    # [N, H + 1]
    frames = np.minimum(start_frames[:, None] + np.arange(horizon + 1), last[:, None])
    earlier = np.maximum(frames - 1, first[:, None])
    reported = None if reports is None else reports.at(np.asarray(start_frames, np.int64))
    seen = (
        (store.vehicles[start_frames], store.size[episode], store.present[start_frames])
        if reported is None
        else (reported.vehicles, reported.sizes, reported.present)
    )
    ego, ego_size = store.ego[start_frames], store.ego_size[episode]
    tracks, near = encoder.choose(ego, ego_size, *seen)
    columns = tracks if reported is None else np.take_along_axis(reported.source, tracks, axis=1)
    columns = columns[:, None, :]
    still_there = store.present[frames[..., None], columns] > 0
    slots = slot_features(
        store.ego[frames],
        store.vehicles[frames[..., None], columns],  # [N, H + 1, slots, 4]
        store.vehicles[earlier[..., None], columns],
        still_there & near[:, None, :],
    )
    # By the first frame's turns throughout: a heading must not jump within a window.
    slots[..., HEADING] -= whole_turns(slots[:, :1, :, HEADING]) * slots[..., 0]
    features = store.ego_features[frames]
    sizes = np.repeat(store.size[episode[:, None], columns[:, 0]][:, None], horizon + 1, axis=1)
    if reported is not None:
        features[:, 0] = reported.ego_features
        # Nothing predicts sizes: what was reported at the start is held throughout.
        sizes[:] = np.take_along_axis(reported.sizes, tracks[..., None], axis=1)[:, None]
        _begin_as_reported(slots, ego, reported, tracks, near)
    own_size = np.repeat(ego_size[:, None], horizon + 1, axis=1)
    states = encoder.encode(features, own_size, slots, sizes)
    if reported is not None:
        states[:, 0] = encoder.clipped_rates(states[:, 0])
    return states


def _begin_as_reported(
    slots: NDArray[np.float32],
    ego: NDArray[np.float32],
    reported: Reports,
    tracks: NDArray[np.int64],
    near: NDArray[np.bool_],
) -> None:
    """Write what was reported into the first frames of slots [N, H + 1, slots, 7]."""
    poses = np.take_along_axis(reported.vehicles, tracks[..., None], axis=1)
    rates = np.take_along_axis(reported.rates, tracks[..., None], axis=1)
    start = reported_features(ego, poses, rates, near)
    # A reported heading may be on the other side of half a turn than the true one.
    ahead = start[..., HEADING] - slots[:, 0, :, HEADING]
    turns = 2 * np.pi * np.round(ahead / (2 * np.pi)) * (slots[:, 0, :, 0] > 0)
    slots[..., HEADING] += turns[:, None].astype(np.float32) * slots[..., 0]
    slots[:, 0] = start


def followed_states(episodes: Episodes, frames: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return windows of recorded states in which a slot is one neighbour throughout.

    Where identities are known, the neighbours of the first frame are followed through whatever
    slots they are in later; who is in none is absent. Headings do not jump by whole turns. What a
    later slot does not hold of them, as an acceleration, stays as it was last. Where the truth was
    recorded beside what was measured, all but the first states are true ones.

    Args:
        episodes: Where the frames are.
        frames: [N, H + 1] of them.

    Returns:
        [N, H + 1, S].
    """
    states = episodes.states[frames]
    if episodes.true_states is not None:
        states[:, 1:] = episodes.true_states[frames[:, 1:]]
    geometry, index = episodes.spec.geometry, episodes.spec.state_index
    if geometry is None or not geometry.slots:
        return states
    names = [[getattr(slot, kind) for kind in SLOT_KINDS] for slot in geometry.slots]
    has = np.array([[name is not None for name in row] for row in names])
    columns = np.array([[0 if name is None else index(name) for name in row] for row in names])
    slots = states[..., columns]  # [N, H + 1, slots, kinds]
    if episodes.slot_ids is not None:
        ids = episodes.slot_ids[frames]
        same = (ids[:, :1, :, None] == ids[:, :, None, :]) & (ids[:, :1, :, None] >= 0)
        source = same.argmax(-1)
        is_there = np.asarray(same.any(-1, keepdims=True))
        slots = np.take_along_axis(slots, source[..., None], axis=2)
        if not (has.all(0) == has.any(0)).all():
            _keep_unknown(slots, has[source] & is_there)
        slots *= is_there
    heading, is_filled = slots[..., HEADING], slots[..., 0] > 0
    heading -= 2 * np.pi * np.round((heading - heading[:, :1]) / (2 * np.pi)) * is_filled
    states[..., columns[has]] = slots[..., has]
    return states


def _keep_unknown(slots: NDArray[np.float32], is_known: NDArray[np.bool_]) -> None:
    """Write what is not known into [N, H + 1, slots, kinds]: what was last."""
    for step in range(1, slots.shape[1]):
        slots[:, step] = np.where(is_known[:, step], slots[:, step], slots[:, step - 1])
