"""What a planner knows about the ego and the others, and the sizes of their kinds."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from world_model_client.scene.frames import Floats

TYPICAL_SIZES_M = {
    "pedestrian": (0.6, 0.6),
    "bicycle": (1.8, 0.7),
    "motorcycle": (2.2, 0.9),
    "car": (4.6, 1.9),
    "van": (5.9, 2.1),
    "bus": (12.0, 2.5),
    "truck": (9.0, 2.5),
    "truck with trailer": (16.5, 2.5),
}
"""Length and width that a kind is taken for where a tracker gives none."""


@dataclass(frozen=True, slots=True)
class Ego:
    """The ego now.

    Attributes:
        x: Of the centre of its rectangle, m, in any world frame: see `centre_of`.
        y: Likewise.
        heading: Of its body, rad, from x towards y.
        speed: Along the heading, m/s; it does not reverse.
        length: m.
        width: m, without mirrors.
        kind: One of the kinds of `TYPICAL_SIZES_M`, or another name.
    """

    x: float
    y: float
    heading: float
    speed: float
    length: float
    width: float
    kind: str = "car"


@dataclass(frozen=True, slots=True)
class RoadUser:
    """Somebody else now, as a tracker reports it.

    Attributes:
        id: The same for as long as it is tracked.
        x: Of the centre of its rectangle, m, in the ego's world frame: see `centre_of`.
        y: Likewise.
        heading: Of its body, rad, from x towards y.
        speed: Along the heading over ground, m/s; below 0 if it reverses.
        length: m; None: that of its kind, by `TYPICAL_SIZES_M`.
        width: m; likewise.
        kind: One of the kinds of `TYPICAL_SIZES_M`, or another name.
        acceleration: Along the heading, m/s^2; None: the builder takes it of the track.
        yaw_rate: rad/s, from x towards y; None: likewise.
    """

    id: Hashable
    x: float
    y: float
    heading: float
    speed: float
    length: float | None = None
    width: float | None = None
    kind: str = "car"
    acceleration: float | None = None
    yaw_rate: float | None = None


def centre_of(
    x: ArrayLike, y: ArrayLike, heading: ArrayLike, ahead_m: ArrayLike
) -> tuple[Floats, Floats]:
    """Return the centre of a rectangle by another point on its axis.

    Args:
        x: [...] m, of the point that is known.
        y: [...] m.
        heading: [...] rad, of the rectangle.
        ahead_m: [...] how far the centre is ahead of that point: minus half the length from the
            front bumper (SUMO), half the length from the rear one; from the rear axle (base_link in
            ROS) half the length minus the overhang behind that axle, some 1.4 m with a car.

    Returns:
        x [...] and y [...] in m.
    """
    ahead = np.asarray(ahead_m, np.float64)
    return (
        np.asarray(x, np.float64) + ahead * np.cos(heading),
        np.asarray(y, np.float64) + ahead * np.sin(heading),
    )


def moved_on(motion: Floats, elapsed_s: ArrayLike) -> Floats:
    """Return poses some time later, with constant acceleration and turn rate.

    The path is taken for its chord: 0.5 s at 0.5 rad/s and 20 m/s end within 3 cm of the arc.
    Nobody is braked into driving backwards.

    Args:
        motion: [..., >= 6] x, y, heading, speed, acceleration, yaw rate.
        elapsed_s: [...] s.

    Returns:
        [..., 4] x, y, heading, speed.
    """
    x, y, heading, speed, acceleration, yaw_rate = np.moveaxis(motion[..., :6], -1, 0)
    elapsed = np.broadcast_to(np.asarray(elapsed_s, np.float64), speed.shape)
    # Until it stands, if it brakes: then neither its place nor its heading changes.
    with np.errstate(divide="ignore", invalid="ignore"):
        stops = np.where(acceleration * speed < 0, -speed / acceleration, np.inf)
    stops = np.where((speed == 0) & (acceleration < 0), 0.0, stops)
    moving = np.minimum(elapsed, stops)
    way = (speed + acceleration * moving / 2) * moving
    middle = heading + yaw_rate * moving / 2
    return np.stack(
        [
            x + way * np.cos(middle),
            y + way * np.sin(middle),
            heading + yaw_rate * moving,
            np.where(elapsed < stops, speed + acceleration * elapsed, 0.0),
        ],
        axis=-1,
    )
