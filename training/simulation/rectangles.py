"""Signed gap between two road users, in plain numpy: crash detection and the physics baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.highway import VEHICLE_LENGTH_M, VEHICLE_WIDTH_M
from models.safety.rectangles import separations

Lengths = float | NDArray[np.floating[Any]]
Sizes = tuple[Lengths, Lengths]
"""Length and width in m."""

CAR_SIZE: Sizes = (VEHICLE_LENGTH_M, VEHICLE_WIDTH_M)


def rectangle_gap(
    dx: ArrayLike,
    dy: ArrayLike,
    heading: ArrayLike,
    size: Sizes = CAR_SIZE,
    other: Sizes = CAR_SIZE,
) -> NDArray[np.floating[Any]]:
    """Return how far apart two rectangles are; negative means overlap by that depth.

    The gap is the largest separation over the four axes of the rectangles (separating axis
    theorem), hence exact in sign and a lower bound of the distance where corners face.

    Args:
        dx: [...] m, centre to centre along the first one.
        dy: [...] m, centre to centre across the first one.
        heading: [...] rad, of the second one relative to the first.
        size: Of the first one, [...] each.
        other: Of the second one.

    Returns:
        [...] m.
    """
    dx, dy = np.asarray(dx), np.asarray(dy)
    first, second, third, fourth = separations(
        dx, dy, np.cos(heading), np.sin(heading), *size, *other
    )
    gap: NDArray[np.floating[Any]] = np.maximum(
        np.maximum(first, second), np.maximum(third, fourth)
    )
    return gap
