"""World frame to model state: the 34 features of `spec.highway_spec`, for windows of frames."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import NEIGHBOUR_COUNT, SENSOR_RANGE_M
from models.training.store import EpisodeStore

EGO_COUNT = 6
SLOT_COUNT = 7


def nearest_columns(
    store: EpisodeStore, frames: NDArray[np.integer[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the vehicles that fill the slots at some frames.

    Args:
        store: Where the frames are.
        frames: [N] frame indices.

    Returns:
        [N, 4] columns of `store.vehicles`, nearest to the ego first; [N, 4] whether the slot is
        filled. A slot is empty if fewer vehicles are within sensor range.
    """
    offset = store.vehicles[frames, :, :2] - store.ego[frames, None, :2]
    squared = np.square(offset).sum(-1)
    squared = np.where(store.present[frames] > 0, squared, np.inf)
    # Stable, so that equal distances keep the order of columns on every machine.
    columns = np.argsort(squared, axis=1, kind="stable")[:, :NEIGHBOUR_COUNT]
    near = np.take_along_axis(squared, columns, axis=1) <= SENSOR_RANGE_M**2
    return columns, near


def slot_features(
    ego: NDArray[np.float32], others: NDArray[np.float32], filled: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return vehicles as the ego sees them.

    Args:
        ego: [..., 4] x, y, heading, speed in the world frame.
        others: [..., K, 4] likewise.
        filled: [..., K] whether the slot holds a vehicle.

    Returns:
        [..., K, 7] presence, dx, dy, dvx, dvy, cos h, sin h in the ego frame; zeros where empty.
    """
    ego = ego[..., None, :]
    cos, sin = np.cos(ego[..., 2]), np.sin(ego[..., 2])
    dx, dy = others[..., 0] - ego[..., 0], others[..., 1] - ego[..., 1]
    heading = others[..., 2] - ego[..., 2]
    cos_h, sin_h = np.cos(heading), np.sin(heading)
    features = np.stack(
        [
            np.ones_like(dx),
            cos * dx + sin * dy,
            cos * dy - sin * dx,
            # Velocities lie along the headings; in its own frame the ego's is (speed, 0).
            others[..., 3] * cos_h - ego[..., 3],
            others[..., 3] * sin_h,
            cos_h,
            sin_h,
        ],
        axis=-1,
    )
    return np.where(filled[..., None], features, np.float32(0))


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
        [N, H + 1, 34]. Beyond the episode's end its last frame repeats.
    """
    start_frames = np.asarray(start_frames, np.int64)
    episode = np.searchsorted(store.frame_start, start_frames, side="right") - 1
    last = store.frame_start[episode] + store.frame_count[episode] - 1
    # [N, H + 1]
    frames = np.minimum(start_frames[:, None] + np.arange(horizon + 1), last[:, None])
    columns, near = nearest_columns(store, start_frames)
    others = store.vehicles[frames[..., None], columns[:, None, :]]  # [N, H + 1, 4, 4]
    still_there = store.present[frames[..., None], columns[:, None, :]] > 0
    slots = slot_features(store.ego[frames], others, still_there & near[:, None, :])
    flat = slots.reshape(*frames.shape, NEIGHBOUR_COUNT * SLOT_COUNT)
    return np.concatenate([store.ego_features[frames], flat], axis=-1)
