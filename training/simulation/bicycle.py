"""The ego's motion: action to command to next pose, exactly as the simulator does it.

Pure numpy, any leading shape, so that the simulator (one car) and the physics baseline (all
windows at once) share one definition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.highway import STEP_S, highway_spec

FloatArray = NDArray[np.floating[Any]]

_CAR = highway_spec().kinematics
assert _CAR is not None, "the spec of the simulated car says how it moves"
DT_S = STEP_S
LENGTH_M = _CAR.length_m
MAX_SPEED_MPS = _CAR.max_speed_mps
FULL_THROTTLE_MPS2 = _CAR.full_throttle_mps2
FULL_BRAKE_MPS2 = _CAR.full_brake_mps2
GRIP_MPS2 = _CAR.grip_mps2
MAX_STEERING_RAD = _CAR.max_steering_rad


def steering_limit(speed: ArrayLike, length: ArrayLike = LENGTH_M) -> FloatArray:
    """Return the front wheel angle that full steer means at a speed.

    Args:
        speed: [...] m/s.
        length: [...] m, of the ego: its wheelbase.

    Returns:
        [...] rad: what keeps lateral acceleration near `GRIP_MPS2`, at most `MAX_STEERING_RAD`.
        From v^2 tan(delta) / length = grip.
    """
    squared = np.maximum(np.asarray(speed, dtype=np.float64), 1.0) ** 2
    grip = GRIP_MPS2 * np.asarray(length, np.float64) / squared
    limit: FloatArray = np.minimum(MAX_STEERING_RAD, np.arctan(grip))
    return limit


def command(
    action: ArrayLike, speed: ArrayLike, dt_s: float = DT_S, length: ArrayLike = LENGTH_M
) -> tuple[FloatArray, FloatArray]:
    """Translate actions into what the bicycle takes.

    Args:
        action: [..., 3] steer in [-1, 1], throttle and brake in [0, 1].
        speed: [...] m/s.
        dt_s: Step length the acceleration will be held for.
        length: [...] m, of the ego.

    Returns:
        Acceleration [...] in m/s^2, limited so that one step neither reverses the car nor takes
        it above `MAX_SPEED_MPS`; front wheel angle [...] in rad.
    """
    action = np.asarray(action, dtype=np.float64)
    speed = np.asarray(speed, dtype=np.float64)
    wanted = FULL_THROTTLE_MPS2 * action[..., 1] - FULL_BRAKE_MPS2 * action[..., 2]
    acceleration = np.clip(wanted, -speed / dt_s, (MAX_SPEED_MPS - speed) / dt_s)
    return acceleration, action[..., 0] * steering_limit(speed, length)


def bicycle_step(
    pose: ArrayLike, action: ArrayLike, dt_s: float = DT_S, length: ArrayLike = LENGTH_M
) -> FloatArray:
    """Move kinematic bicycles by one explicit Euler step.

    Args:
        pose: [..., 4] x m, y m, heading rad, speed m/s.
        action: [..., 3] as in `command`.
        dt_s: Step length.
        length: [...] m, of the ego.

    Returns:
        [..., 4] the next pose. Position and heading use the speed from before the step, as
        highway-env's `Vehicle.step` does; beta is the slip angle at the centre.
    """
    pose = np.asarray(pose, dtype=np.float64)
    x, y, heading, speed = np.moveaxis(pose, -1, 0)
    acceleration, steering = command(action, speed, dt_s, length)
    beta = np.arctan(0.5 * np.tan(steering))
    return np.stack(
        [
            x + speed * np.cos(heading + beta) * dt_s,
            y + speed * np.sin(heading + beta) * dt_s,
            heading + speed * np.sin(beta) / (np.asarray(length) / 2) * dt_s,
            speed + acceleration * dt_s,
        ],
        axis=-1,
    )
