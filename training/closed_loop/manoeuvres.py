"""Fallback manoeuvres: what a monitor can do instead of what a policy wants, as action sequences.

Sequences are open loop once sent, so the feedback that keeps a lane is computed beforehand, on a
bicycle rolled forward from the state, of the ego's own length where a state has one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.highway import highway_spec
from models.spec import Spec
from training.simulation.bicycle import (
    FULL_BRAKE_MPS2,
    FULL_THROTTLE_MPS2,
    bicycle_step,
    steering_limit,
)
from training.simulation.states import encoder_of

Floats = NDArray[np.floating[Any]]

HIGHWAY = highway_spec()

PEDALS_MPS2 = {
    "full brake": -FULL_BRAKE_MPS2,
    "half brake": -FULL_BRAKE_MPS2 / 2,
    "coast": 0.0,
    "throttle": FULL_THROTTLE_MPS2 / 2,
}
"""Acceleration held, m/s^2."""

SHIFTS_M = {"keep lane": 0.0, "left": -4.0, "right": 4.0}
"""Where to go, to the right of the centre of the closest lane; no further than the road."""

MANOEUVRES = tuple(f"{pedal}, {shift}" for shift in SHIFTS_M for pedal in PEDALS_MPS2)
"""Names of what `manoeuvres` returns, in order; the first is full brake in the lane."""

EDGE_MARGIN_M = 1.0
_RETURN_S = 0.6
_HEADING_S = 0.2
_MOST_HEADING_RAD = 0.7
_MOST_SIN = 0.95


def hold(actions: Floats, horizon: int) -> NDArray[np.float32]:
    """Return sequences [N, horizon, 3] that keep actions [N, 3]."""
    return np.repeat(np.asarray(actions, np.float32)[:, None], horizon, axis=1)


def manoeuvres(
    states: Floats, horizon: int, first: Floats | None = None, spec: Spec = HIGHWAY
) -> NDArray[np.float32]:
    """Return every one of `MANOEUVRES` for each of N cars.

    Args:
        states: [N, S].
        horizon: Steps, H.
        first: [N, 3], an action that comes before the manoeuvre; none if missing.
        spec: Of the states, one that `training.simulation.states` knows.

    Returns:
        [N, 12, H, 3], `first` included if it is given.
    """
    seen = encoder_of(spec).decode(np.asarray(states, np.float64)[:, None])
    speed, offset, sin_error, left, right, curvature = np.moveaxis(seen.ego, -1, 0)
    length = seen.ego_size[..., 0]
    room = np.stack([-left, right]) + offset  # of the edges from the lane
    room += np.array([EDGE_MARGIN_M, -EDGE_MARGIN_M])[:, None, None]
    pedal = np.tile(list(PEDALS_MPS2.values()), len(SHIFTS_M))
    shift = np.repeat(list(SHIFTS_M.values()), len(PEDALS_MPS2))
    # A car that is beyond a margin may stay there: its manoeuvre is not the moment to correct it.
    target = np.clip(shift, np.minimum(room[0], offset), np.maximum(room[1], offset))
    # In the lane's frame: along m, to the right m, heading error rad, speed m/s.
    error = np.arcsin(np.clip(sin_error, -1, 1))
    pose = np.stack([np.zeros_like(offset), offset, error, speed], axis=-1)
    pose = np.repeat(pose, len(MANOEUVRES), axis=1)
    actions = np.empty((*pose.shape[:2], horizon, 3), np.float32)
    for k in range(horizon):
        if k == 0 and first is not None:
            action = np.broadcast_to(np.asarray(first)[:, None], (*pose.shape[:2], 3))
        else:
            action = _follow(pose, target, curvature, pedal, length)
        actions[:, :, k] = action
        moved = bicycle_step(pose, action, length=length)
        # The lane turns on the way, and bends away to the side by half of that.
        along = moved[..., 0] - pose[..., 0]
        moved[..., 1] -= curvature * along**2 / 2
        moved[..., 2] -= curvature * along
        pose = moved
    return actions


def _follow(
    pose: Floats, target: Floats, curvature: Floats, pedal: Floats, length: Floats
) -> Floats:
    """Return the actions [..., 3] that bring cars to a lateral target, heading first.

    The lateral error becomes a heading, the heading error a turn rate on top of the lane's, and
    the turn rate a wheel angle by inverting the bicycle, as `behaviours.LaneDriver` does.
    """
    speed = np.maximum(pose[..., 3], 1.0)
    back = np.arctan2((target - pose[..., 1]) / _RETURN_S, speed)
    heading = np.clip(back, -_MOST_HEADING_RAD, _MOST_HEADING_RAD)
    # A turning car's centre slips sideways by so much.
    bend = np.arcsin(np.clip(length / 2 * curvature, -_MOST_SIN, _MOST_SIN))
    rate = (heading - bend - pose[..., 2]) / _HEADING_S + speed * curvature
    slip = np.arcsin(np.clip(length / 2 * rate / speed, -_MOST_SIN, _MOST_SIN))
    steer = np.arctan(2 * np.tan(slip)) / steering_limit(pose[..., 3], length)
    throttle, brake = pedal / FULL_THROTTLE_MPS2, -pedal / FULL_BRAKE_MPS2
    actions = np.stack(np.broadcast_arrays(steer, throttle, brake), axis=-1)
    return np.asarray(np.clip(actions, [-1, 0, 0], [1, 1, 1]))
