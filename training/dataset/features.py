"""Frames to states of windows: from the world frame of recordings, or as others recorded them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.highway import NEIGHBOUR_COUNT
from models.slots import SLOT_KINDS
from training.dataset.episodes import Episodes
from training.dataset.store import EpisodeStore
from training.simulation.slots import (
    EGO_COUNT,
    SLOT_COUNT,
    nearest_columns,
    slot_features,
    whole_turns,
)

__all__ = ["EGO_COUNT", "SLOT_COUNT", "tracked_states"]

HEADING = 3
"""Place of the heading within a slot."""


def tracked_states(
    store: EpisodeStore, start_frames: NDArray[np.integer[Any]], horizon: int
) -> NDArray[np.float32]:
    """Return windows of states in which a slot is one vehicle throughout.

    The nearest vehicles are chosen at the start and followed: re-sorted at every frame, half of
    all 16-step windows would see a slot change hands.

    Args:
        store: Where the frames are.
        start_frames: [N] frame indices.
        horizon: Number of steps, H.

    Returns:
        [N, H + 1, 34]. Beyond the episode's end its last frame repeats. In an episode's first
        frame accelerations and yaw rates are 0: nothing came before.
    """
    start_frames = np.asarray(start_frames, np.int64)
    episode = np.searchsorted(store.frame_start, start_frames, side="right") - 1
    first = store.frame_start[episode]
    last = first + store.frame_count[episode] - 1
    # [N, H + 1]
    frames = np.minimum(start_frames[:, None] + np.arange(horizon + 1), last[:, None])
    earlier = np.maximum(frames - 1, first[:, None])
    columns, near = nearest_columns(
        store.ego[start_frames], store.vehicles[start_frames], store.present[start_frames]
    )
    columns = columns[:, None, :]
    still_there = store.present[frames[..., None], columns] > 0
    slots = slot_features(
        store.ego[frames],
        store.vehicles[frames[..., None], columns],  # [N, H + 1, 4, 4]
        store.vehicles[earlier[..., None], columns],
        still_there & near[:, None, :],
    )
    # By the first frame's turns throughout: a heading must not jump within a window.
    slots[..., HEADING] -= whole_turns(slots[:, :1, :, HEADING]) * slots[..., 0]
    flat = slots.reshape(*frames.shape, NEIGHBOUR_COUNT * SLOT_COUNT)
    return np.concatenate([store.ego_features[frames], flat], axis=-1)


def followed_states(episodes: Episodes, frames: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return windows of recorded states in which a slot is one neighbour throughout.

    Where identities are known, the neighbours of the first frame are followed through whatever
    slots they are in later; who is in none is absent. Headings do not jump by whole turns. What a
    later slot does not hold of them, as an acceleration, stays as it was last.

    Args:
        episodes: Where the frames are.
        frames: [N, H + 1] of them.

    Returns:
        [N, H + 1, S].
    """
    states = episodes.states[frames]
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
