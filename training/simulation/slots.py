"""Neighbours as the ego sees them: who is nearest, where, and how he moves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.highway import NEIGHBOUR_COUNT, SENSOR_RANGE_M
from training.simulation.bicycle import DT_S

EGO_COUNT = 6
SLOT_COUNT = 7

Floats = NDArray[np.floating[Any]]


def nearest_columns(
    ego: Floats, vehicles: Floats, present: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the vehicles that fill the slots.

    Args:
        ego: [N, >= 2] x, y, ...
        vehicles: [N, V, >= 2] likewise.
        present: [N, V], whether a column holds a vehicle.

    Returns:
        [N, 4] columns of `vehicles`, nearest to the ego first; [N, 4] whether the slot is filled.
        A slot is empty if fewer vehicles are within sensor range.
    """
    squared = np.square(vehicles[..., :2] - ego[:, None, :2]).sum(-1)
    squared = np.where(present > 0, squared, np.inf)
    # Stable, so that equal distances keep the order of columns on every machine.
    columns = np.argsort(squared, axis=1, kind="stable")[:, :NEIGHBOUR_COUNT]
    near = np.take_along_axis(squared, columns, axis=1) <= SENSOR_RANGE_M**2
    return columns, near


def slot_features(
    ego: Floats, others: Floats, before: Floats, filled: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return vehicles as a tracker on the ego reports them.

    Acceleration and yaw rate are differences to the frame before: what a tracker can know now.

    Args:
        ego: [..., 4] x, y, heading, speed in the world frame.
        others: [..., K, 4] likewise.
        before: [..., K, 4] the others one frame earlier.
        filled: [..., K] whether the slot holds a vehicle.

    Returns:
        [..., K, 7] presence, dx, dy, heading (not wrapped), speed, acceleration, yaw rate; zeros
        where empty.
    """
    ego = ego[..., None, :]
    cos, sin = np.cos(ego[..., 2]), np.sin(ego[..., 2])
    dx, dy = others[..., 0] - ego[..., 0], others[..., 1] - ego[..., 1]
    turn = others[..., 2] - before[..., 2]
    features = np.stack(
        [
            np.ones_like(dx),
            cos * dx + sin * dy,
            cos * dy - sin * dx,
            others[..., 2] - ego[..., 2],
            others[..., 3],
            (others[..., 3] - before[..., 3]) / DT_S,
            (turn - 2 * np.pi * np.round(turn / (2 * np.pi))) / DT_S,
        ],
        axis=-1,
    )
    return np.where(filled[..., None], features, 0.0).astype(np.float32)


def reported_features(
    ego: Floats, others: Floats, rates: Floats, filled: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return vehicles as a tracker with rates of its own reports them.

    Args:
        ego: [..., 4] x, y, heading, speed in the world frame.
        others: [..., K, 4] likewise.
        rates: [..., K, 2] acceleration, yaw rate.
        filled: [..., K] whether the slot holds a vehicle.

    Returns:
        [..., K, 7] as `slot_features`, headings in [-pi, pi).
    """
    features = slot_features(ego, others, others, filled)
    features[..., -2:] = rates * filled[..., None]
    features[..., 3] -= whole_turns(features[..., 3])
    return features


def whole_turns(heading: Floats) -> Floats:
    """Return the multiple of 2 pi to take off headings [...] so that they are in [-pi, pi)."""
    turns: Floats = 2 * np.pi * np.floor((heading + np.pi) / (2 * np.pi))
    return turns
