"""Actions: what steer and pedals a motion needs, and what motion they give.

The formulas are those of the model's conventions "steering" and "pedals": a kinematic bicycle with
axles at the ends of the ego (wheelbase L, its length) and the centre halfway.

    largest(v) = min(0.5 rad, atan(8 m/s^2 L / max(v, 1 m/s)^2))
    angle = steer largest(v);  slip = atan(tan(angle) / 2)
    x += v cos(heading + slip) dt;  y += v sin(heading + slip) dt
    heading += v sin(slip) / (L / 2) dt;  v += a dt,  0 to 40 m/s
    a = 5 m/s^2 throttle - 8 m/s^2 brake
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from world_model_client.errors import InvalidInputError
from world_model_client.scene.frames import (
    FORWARD_RIGHT_DOWN,
    ISO8855,
    Floats,
    checked_frame,
    number,
    numbers,
    sign_between,
    wrapped,
)
from world_model_client.scene.layout import ASSUMED_LENGTH_M

FULL_THROTTLE_MPS2 = 5.0
FULL_BRAKE_MPS2 = 8.0
GRIP_MPS2 = 8.0
MAX_STEERING_RAD = 0.5
MAX_SPEED_MPS = 40.0

_CRAWL_MPS = 0.1
"""Slower, a heading says nothing about the wheels."""

_ROUNDING = 1e-6


class Inferred(NamedTuple):
    """Actions that a motion came of.

    Attributes:
        actions: [..., T, 3] steer, throttle, brake, within their ranges.
        is_possible: [..., T] whether the bicycle can do the step; else the actions are the nearest.
    """

    actions: NDArray[np.float32]
    is_possible: NDArray[np.bool_]


@dataclass(frozen=True)
class Bicycle:
    """The ego as the model moves it.

    Attributes:
        length: m, of the ego: its wheelbase. A model without sizes in its state moves 5 m.
        frame: Of curvatures and poses.
        model_frame: Of steer: `frame` of `GET /model`.

    Raises:
        InvalidInputError: A length or a frame is none.
    """

    length: float = ASSUMED_LENGTH_M
    frame: str = ISO8855
    model_frame: str = FORWARD_RIGHT_DOWN

    def __post_init__(self) -> None:
        number("length", self.length, 0, 1e3, is_open=True)
        checked_frame("frame", self.frame)
        checked_frame("model_frame", self.model_frame)

    @property
    def _sign(self) -> float:
        return sign_between(self.frame, self.model_frame)

    def largest_angle(self, speed: ArrayLike) -> Floats:
        """Return the wheel angle [...] in rad that full steer means at speeds [...] in m/s."""
        squared = np.maximum(np.asarray(speed, np.float64), 1.0) ** 2
        angle: Floats = np.minimum(MAX_STEERING_RAD, np.arctan(GRIP_MPS2 * self.length / squared))
        return angle

    def steer_for_curvature(self, curvature: ArrayLike, speed: ArrayLike) -> Floats:
        """Return the steer for a path, at most full steer.

        Args:
            curvature: [...] 1/m, of the centre's path, in `frame`.
            speed: [...] m/s.

        Returns:
            [...] from -1 to 1: slip = asin(k L / 2), angle = atan(2 tan(slip)), angle / largest.
        """
        return np.clip(self._steer(np.asarray(curvature, np.float64), speed), -1.0, 1.0)

    def _steer(self, curvature: Floats, speed: ArrayLike) -> Floats:
        slip = np.arcsin(np.clip(curvature * self._sign * self.length / 2, -1.0, 1.0))
        angle: Floats = np.arctan(2 * np.tan(slip))
        return angle / self.largest_angle(speed)

    def curvature_of_steer(self, steer: ArrayLike, speed: ArrayLike) -> Floats:
        """Return the curvature [...] of the path, 1/m in `frame`, for steer [...] at a speed."""
        angle = np.asarray(steer, np.float64) * self.largest_angle(speed)
        return self._sign * np.sin(np.arctan(np.tan(angle) / 2)) / (self.length / 2)

    @staticmethod
    def pedals_for_acceleration(acceleration: ArrayLike) -> tuple[Floats, Floats]:
        """Return throttle [...] and brake [...] for an acceleration [...] in m/s^2; one is 0."""
        wanted = np.asarray(acceleration, np.float64)
        return (
            np.clip(wanted / FULL_THROTTLE_MPS2, 0.0, 1.0),
            np.clip(-wanted / FULL_BRAKE_MPS2, 0.0, 1.0),
        )

    @staticmethod
    def acceleration_of_pedals(throttle: ArrayLike, brake: ArrayLike) -> Floats:
        """Return the acceleration [...] in m/s^2 for throttle [...] and brake [...]."""
        pushed = FULL_THROTTLE_MPS2 * np.asarray(throttle, np.float64)
        return pushed - FULL_BRAKE_MPS2 * np.asarray(brake, np.float64)

    def step(self, poses: ArrayLike, actions: ArrayLike, dt_s: float) -> Floats:
        """Return the poses one step later.

        Args:
            poses: [..., 4] x, y, heading, speed, in `frame`.
            actions: [..., 3] steer, throttle, brake.
            dt_s: Length of the step.
        """
        x, y, heading, speed = np.moveaxis(np.asarray(poses, np.float64), -1, 0)
        steer, throttle, brake = np.moveaxis(np.asarray(actions, np.float64), -1, 0)
        slip = self._sign * np.arctan(np.tan(steer * self.largest_angle(speed)) / 2)
        after = speed + self.acceleration_of_pedals(throttle, brake) * dt_s
        return np.stack(
            [
                x + speed * np.cos(heading + slip) * dt_s,
                y + speed * np.sin(heading + slip) * dt_s,
                heading + speed * np.sin(slip) / (self.length / 2) * dt_s,
                np.clip(after, 0.0, MAX_SPEED_MPS),
            ],
            axis=-1,
        )

    def actions_from_motion(self, poses: ArrayLike, dt_s: float) -> Inferred:
        """Infer the actions of a motion by inverting `step`.

        Steer comes of how the heading turns, pedals of how the speed changes; where the centre went
        is not looked at. A car slower than 0.1 m/s has straight wheels. Noise in recordings becomes
        noise in actions, divided by `dt_s`: smooth first.

        Args:
            poses: [..., T+1, 4] x, y, heading, speed, in `frame`, a step apart.
            dt_s: Length of the step.

        Raises:
            InvalidInputError: Poses are no such array, or not finite.
        """
        array = numbers("poses", poses, (0, None, 4), "finite numbers [..., T+1, 4], T from 1")
        if array.shape[-2] < 2:
            raise InvalidInputError("poses has one pose (allowed: at least 2, for one step)")
        number("dt_s", dt_s, 0, is_open=True)
        heading, speed = array[..., 2], array[..., 3]
        turned, before = wrapped(np.diff(heading, axis=-1)), speed[..., :-1]
        is_moving = before >= _CRAWL_MPS
        curvature = np.where(is_moving, turned / (np.where(is_moving, before, 1.0) * dt_s), 0.0)
        steer = self._steer(curvature, before)
        acceleration = np.diff(speed, axis=-1) / dt_s
        throttle, brake = self.pedals_for_acceleration(acceleration)
        actions = np.stack([np.clip(steer, -1.0, 1.0), throttle, brake], axis=-1)
        bound = 1 + _ROUNDING
        is_possible = (
            (np.abs(steer) <= bound)
            & (np.abs(curvature) * self.length / 2 <= 1)
            & (acceleration <= FULL_THROTTLE_MPS2 * bound)
            & (acceleration >= -FULL_BRAKE_MPS2 * bound)
            & (before >= 0)
        )
        return Inferred(actions.astype(np.float32), is_possible)
