"""What a learned model must beat: predictions that need no training.

Each takes windows and predicts their states, a termination score (higher is riskier), or both.
Layouts are those of `spec.highway_spec`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import NEIGHBOUR_COUNT, VEHICLE_LENGTH_M, VEHICLE_WIDTH_M
from models.training.bicycle import DT_S, bicycle_step
from models.training.dataset import Windows
from models.training.features import EGO_COUNT, SLOT_COUNT
from models.training.rectangles import rectangle_gap

Floats = NDArray[np.floating[Any]]

LONGEST_TTC_S = 10.0
FAR_M = 100.0
_CHUNK_WINDOWS = 8192


@dataclass(frozen=True)
class BaselinePrediction:
    """What a baseline says about N windows of H steps.

    Attributes:
        states: [N, H+1, S], or None if it predicts none.
        score: [N], higher means termination is likelier.
    """

    states: NDArray[np.float32] | None
    score: NDArray[np.float64]


def slots_of(states: Floats) -> Floats:
    """Return the neighbour part of states [..., 34] as [..., 4, 7]."""
    slots: Floats = states[..., EGO_COUNT:].reshape(*states.shape[:-1], NEIGHBOUR_COUNT, SLOT_COUNT)
    return slots


def margin(states: Floats) -> Floats:
    """Return how far states [..., S] are from a crash or the road's edge, in m [...].

    The smallest of the rectangle gaps to present neighbours and the distances to both edges;
    negative once it happened.
    """
    slots = slots_of(states)
    gaps = rectangle_gap(slots[..., 1], slots[..., 2], np.arctan2(slots[..., 6], slots[..., 5]))
    gaps = np.where(slots[..., 0] > 0.5, gaps, FAR_M)
    nearest: Floats = np.minimum(gaps.min(-1), states[..., 3:5].min(-1))
    return nearest


def persistence(windows: Windows) -> BaselinePrediction:
    """Nothing changes; the nearer something is now, the riskier."""
    start = windows.states[:, 0]
    states = np.repeat(start[:, None], windows.horizon + 1, axis=1)
    return BaselinePrediction(states, -margin(start).astype(np.float64))


def constant_velocity(windows: Windows) -> BaselinePrediction:
    """Everyone goes straight on at the present speed, whatever the actions."""
    return _in_chunks(windows, lambda part: _kinematic(part, np.zeros_like(part.actions)))


def bicycle(windows: Windows) -> BaselinePrediction:
    """The ego moves exactly as the actions have it, the others straight on.

    The strongest rival: its ego is the simulator's own equation. The road is taken to bend
    evenly, by the curvature given at the start.
    """
    return _in_chunks(windows, lambda part: _kinematic(part, part.actions))


def time_to_collision(windows: Windows) -> BaselinePrediction:
    """The classic score: minus the seconds until contact at constant relative velocity.

    Contact of axis-parallel rectangles by the slab method (Kay and Kajiya 1986), or of the
    centre with a road edge; at most `LONGEST_TTC_S`. It predicts no states.
    """
    start = windows.states[:, 0].astype(np.float64)
    slots = slots_of(start)
    enter = np.zeros(slots.shape[:-1])
    leave = np.full(slots.shape[:-1], np.inf)
    for place, velocity, reach in (
        (slots[..., 1], slots[..., 3], VEHICLE_LENGTH_M),
        (slots[..., 2], slots[..., 4], VEHICLE_WIDTH_M),
    ):
        # A speed of exactly 0 would divide 0 by 0 at the slab's border.
        speed = np.where(np.abs(velocity) < 1e-9, 1e-9, velocity)
        one, other = (-reach - place) / speed, (reach - place) / speed
        enter = np.maximum(enter, np.minimum(one, other))
        leave = np.minimum(leave, np.maximum(one, other))
    meets = (slots[..., 0] > 0.5) & (enter <= leave)
    contact = np.where(meets, enter, LONGEST_TTC_S).min(-1)
    sideways = start[:, 0] * start[:, 2]  # m/s to the right
    edge = np.where(sideways > 0, start[:, 4], start[:, 3]) / np.maximum(np.abs(sideways), 1e-9)
    return BaselinePrediction(None, -np.minimum(np.minimum(contact, edge), LONGEST_TTC_S))


BASELINES: dict[str, Callable[[Windows], BaselinePrediction]] = {
    "persistence": persistence,
    "constant velocity": constant_velocity,
    "time to collision": time_to_collision,
    "bicycle + constant velocity": bicycle,
}


def _in_chunks(
    windows: Windows, predict: Callable[[Windows], BaselinePrediction]
) -> BaselinePrediction:
    """Predict part by part, to bound the memory of double precision intermediates."""
    starts = range(0, len(windows), _CHUNK_WINDOWS)
    parts = [predict(windows.take(slice(i, i + _CHUNK_WINDOWS))) for i in starts]
    states = [part.states for part in parts if part.states is not None]
    return BaselinePrediction(np.concatenate(states), np.concatenate([p.score for p in parts]))


def _kinematic(windows: Windows, actions: NDArray[np.float32]) -> BaselinePrediction:
    """Roll out the ego by the bicycle and its neighbours at constant velocity."""
    start = windows.states[:, 0].astype(np.float64)
    poses = np.zeros((len(start), windows.horizon + 1, 4))  # in the ego frame of the start
    poses[:, 0, 3] = start[:, 0]
    for k in range(windows.horizon):
        poses[:, k + 1] = bicycle_step(poses[:, k], actions[:, k])
    states = np.concatenate([_road_features(start, poses), _neighbours(start, poses)], axis=-1)
    score = -margin(states[:, 1:]).min(1)
    return BaselinePrediction(states.astype(np.float32), score)


def _road_features(start: Floats, poses: Floats) -> Floats:
    """Return the ego features [N, H+1, 6] of poses [N, H+1, 4] on an evenly bending road."""
    curvature = start[:, 5:6]
    step = np.diff(poses[..., :2], axis=1)
    travelled = np.linalg.norm(step, axis=-1)
    # The lane's heading relative to the ego's first, at every step; its turn follows the path.
    turned = np.cumsum(np.pad(travelled, ((0, 0), (1, 0))), axis=1) * curvature
    lane = turned - np.arcsin(np.clip(start[:, 2:3], -1, 1))
    halfway = (lane[:, :-1] + lane[:, 1:]) / 2
    moved = np.cos(halfway) * step[..., 1] - np.sin(halfway) * step[..., 0]
    right = np.cumsum(np.pad(moved, ((0, 0), (1, 0))), axis=1)
    return np.stack(
        [
            poses[..., 3],
            start[:, 1:2] + right,
            np.sin(poses[..., 2] - lane),
            start[:, 3:4] + right,
            start[:, 4:5] - right,
            np.broadcast_to(curvature, right.shape),
        ],
        axis=-1,
    )


def _neighbours(start: Floats, poses: Floats) -> Floats:
    """Return the slots [N, H+1, 28] seen from poses [N, H+1, 4]; everyone goes straight on."""
    slots = slots_of(start)[:, None]  # [N, 1, 4, 7]
    time_s = np.arange(poses.shape[1])[:, None] * DT_S  # [H+1, 1]
    speed_x, speed_y = slots[..., 3] + start[:, None, :1], slots[..., 4]
    x, y, heading, speed = (poses[..., i : i + 1] for i in range(4))
    cos, sin = np.cos(heading), np.sin(heading)
    ahead, aside = slots[..., 1] + speed_x * time_s - x, slots[..., 2] + speed_y * time_s - y
    moved = np.stack(
        [
            np.broadcast_to(slots[..., 0], ahead.shape),
            cos * ahead + sin * aside,
            cos * aside - sin * ahead,
            cos * speed_x + sin * speed_y - speed,
            cos * speed_y - sin * speed_x,
            cos * slots[..., 5] + sin * slots[..., 6],
            cos * slots[..., 6] - sin * slots[..., 5],
        ],
        axis=-1,
    )
    moved = np.where(slots[..., :1] > 0.5, moved, 0.0)
    return moved.reshape(*poses.shape[:2], NEIGHBOUR_COUNT * SLOT_COUNT)
