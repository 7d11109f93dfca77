"""Where everybody will be by physics alone, without anything learned. NumPy only.

The motion of `models.network.kinematics`, on which the model's corrections stand: the ego is a
kinematic bicycle under its actions, neighbours keep their acceleration and their turn rate until
they stand, the road bends evenly. There it is made of Euler's steps, as the simulators'; here speed
and heading are those of the middle of each step, and the road is an arc, as this is compared with
what a world does. All steps are computed at once, in a tenth of the time for one sequence.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from models.layout import MOST_SIN, SHORTEST_M, SLOWEST_MPS
from models.spec import Spec

Floats = NDArray[np.floating[Any]]
Complex = NDArray[np.complexfloating[Any, Any]]
"""Places: forward of where the ego starts, and i times to its right."""

_LEAST_OF_RADIUS = 0.1
"""The least radius of an arc through the ego, as a share of the lane's."""

Numbers = TypeVar("Numbers", Floats, Complex)


class PhysicalMotion:
    """Start and actions to places, headings and edges.

    Args:
        spec: Must name kinematics and a geometry.

    Raises:
        ValueError: It does not.
    """

    def __init__(self, spec: Spec) -> None:
        car, geometry = spec.kinematics, spec.geometry
        if car is None or geometry is None:
            raise ValueError(f"spec {spec.name!r} names no kinematics and geometry")
        index = spec.state_index
        self._car = car
        self._dt_s = spec.dt_s
        names = (car.speed, car.lane_offset, car.sin_heading_error, car.curvature)
        self._speed, self._offset, self._sin_error, self._curvature = map(index, names)
        self._length = None if car.length is None else index(car.length)
        self._actions = [spec.action_index(name) for name in car.action_features]
        kinds = [[getattr(slot, kind) for slot in geometry.slots] for kind in _KINDS]
        columns = [[0 if name is None else index(name) for name in row] for row in kinds]
        self._slots = np.array(columns, np.int64)
        self._lacks = np.array([[name is None for name in row] for row in kinds], bool)
        self._lacks_any = bool(self._lacks.any())
        self._usual = np.array([[0.0]] * (len(_KINDS) - 1) + [[car.length_m]], np.float32)
        self._edges = np.array([index(name) for name in geometry.edges], np.int64)
        # How far an edge comes nearer for each metre to the right; others stay where they are.
        signs = {car.left_edge: 1.0, car.right_edge: -1.0}
        self._towards = np.array([signs.get(name, 0.0) for name in geometry.edges], np.float32)

    def __call__(self, start: Floats, actions: Floats) -> Floats:
        """Return the motion that follows.

        Args:
            start: [K, S], or [1, S] of all sequences.
            actions: [K, H, A].

        Returns:
            [K, H, 3 * slots + edges]: after each step dx of all neighbours in the ego's frame, dy,
            heading, and the distances to edges, as `SafetyLimits.motion_columns` has them. Whoever
            is not there has numbers as well.
        """
        ego = start[:, :, None]
        moved, turned = self._ego(ego, actions)
        heading = _sums(turned)
        path = _sums(_direction(heading - turned / 2) * moved)
        places, headings = self._neighbours(start, actions.shape[1])
        places = (places - path[..., None]) * _direction(-heading)[..., None]
        edges = start.take(self._edges, -1)[:, None]
        edges = edges + self._towards * self._across(ego, path)[..., None]
        turn = headings - heading[..., None]
        return np.concatenate([places.real, places.imag, turn, edges], axis=-1)

    def _ego(self, ego: Floats, actions: Floats) -> tuple[Complex, Floats]:
        """Return metres moved and radians turned in each step, [K, H] each."""
        car, dt_s = self._car, self._dt_s
        steer, throttle, brake = (actions[..., column] for column in self._actions)
        faster = (car.full_throttle_mps2 * throttle - car.full_brake_mps2 * brake) * dt_s
        speed = self._speeds(ego[:, self._speed], faster)
        length: Any = car.length_m
        if self._length is not None:
            length = np.maximum(ego[:, self._length], SHORTEST_M)
        grip = car.grip_mps2 * length / np.square(np.maximum(speed, 1.0))
        wheel = steer * np.minimum(np.arctan(grip), car.max_steering_rad)
        # The centre is halfway between the axles: tan(slip) = tan(wheel) / 2.
        tan_slip = 0.5 * np.tan(wheel)
        forward = speed * dt_s / np.sqrt(1 + np.square(tan_slip))
        return forward * (1 + 1j * tan_slip), forward * tan_slip * (2 / length)

    def _speeds(self, speed: Floats, faster: Floats) -> Floats:
        """Return the mean speed in each step, [K, H] m/s: neither reverse nor too fast.

        Args:
            speed: [K or 1, 1] at the start.
            faster: [K, H] m/s that each step would add.
        """
        most = self._car.max_speed_mps
        after = speed + _sums(faster)
        # Only these step by step: a row's bits must not depend on the rows beside it.
        rows = np.flatnonzero(~((after >= 0) & (after <= most)).all(1))
        if len(rows):
            now = np.broadcast_to(speed[:, 0], len(after))[rows]
            for k in range(faster.shape[1]):
                now = np.minimum(np.maximum(now + faster[rows, k], 0.0), most)
                after[rows, k] = now
        before = np.empty_like(after)
        before[:, :1], before[:, 1:] = speed, after[:, :-1]
        return (before + after) / 2

    def _across(self, ego: Floats, path: Complex) -> Floats:
        """Return how far to the right of the lane's line through its start the ego is, [K, H] m.

        That line is an arc around the centre of the lane's own: with a curvature of 1/r, at an
        offset o to the right, of c = 1/(r - o). Where x is along its start and y to its right, the
        distance from the arc is 1/c - sqrt(x^2 + (1/c - y)^2), written so that it holds for c = 0
        as well.

        Args:
            ego: [K or 1, S, 1].
            path: [K, H] places after each step.
        """
        sin = np.minimum(np.maximum(ego[:, self._sin_error], -1.0), 1.0)
        across = (path * (np.sqrt(1 - np.square(sin)) + 1j * sin)).imag
        curvature = ego[:, self._curvature]
        # Nobody drives near the centre itself, where there is no arc.
        curvature = curvature / np.maximum(1 - curvature * ego[:, self._offset], _LEAST_OF_RADIUS)
        bent = 2 * across - curvature * np.square(np.abs(path))
        return cast("Floats", bent / (1 + np.sqrt(np.maximum(1 - curvature * bent, 0.0))))

    def _neighbours(self, start: Floats, horizon: int) -> tuple[Complex, Floats]:
        """Return the neighbours' places and headings in the frame of the start.

        [K or 1, H, slots] each.
        """
        dt_s = self._dt_s
        values = start.take(self._slots, -1)
        if self._lacks_any:
            values = np.where(self._lacks, self._usual, values)
        dx, dy, heading, speed, acceleration, yaw_rate, length = values.swapaxes(0, 1)[:, :, None]
        steps = np.arange(horizon + 1, dtype=np.float32)[:, None]
        speeds = speed + acceleration * (dt_s * steps)
        # A braking car stops; it neither reverses nor turns any more.
        goes_on = speeds > 0
        goes_on[:, 0] = True
        speeds *= goes_on
        last, speeds, goes_on = speeds[:, 1:], speeds[:, :-1], goes_on[:, :-1]
        turned = yaw_rate * dt_s * goes_on
        after = heading + _sums(turned)
        slip = yaw_rate * (length / 2) / np.maximum(speeds, SLOWEST_MPS)
        course = after - turned / 2 + np.arcsin(_bounded(slip))
        path = _sums((speeds + last) * (dt_s / 2) * _direction(course))
        return dx + 1j * dy + path, after


def _sums(of_steps: Numbers) -> Numbers:
    """Return the sums up to each step, [K, H, ...]; quicker than `cumsum`."""
    return cast("Numbers", np.add.accumulate(of_steps, 1))


def _direction(angle: Floats) -> Complex:
    """Return the unit vector of an angle; twice as fast as the exponential function."""
    return cast("Complex", np.cos(angle) + 1j * np.sin(angle))


def _bounded(sine: Floats) -> Floats:
    return cast("Floats", np.minimum(np.maximum(sine, -MOST_SIN), MOST_SIN))


_KINDS = ("dx", "dy", "heading", "speed", "acceleration", "yaw_rate", "length")
