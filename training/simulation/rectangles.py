"""Signed gap between two cars, in plain numpy: crash detection and the physics baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.highway import VEHICLE_LENGTH_M, VEHICLE_WIDTH_M
from models.safety.rectangles import separations


def rectangle_gap(dx: ArrayLike, dy: ArrayLike, heading: ArrayLike) -> NDArray[np.floating[Any]]:
    """Return how far apart two equal cars are; negative means overlap by that depth.

    The gap is the largest separation over the four axes of the rectangles (separating axis
    theorem), hence exact in sign and a lower bound of the distance where corners face.

    Args:
        dx: [...] m, centre to centre along the first car.
        dy: [...] m, centre to centre across the first car.
        heading: [...] rad, of the second car relative to the first.

    Returns:
        [...] m.
    """
    dx, dy = np.asarray(dx), np.asarray(dy)
    first, second, third, fourth = separations(
        dx, dy, np.cos(heading), np.sin(heading), VEHICLE_LENGTH_M, VEHICLE_WIDTH_M
    )
    gap: NDArray[np.floating[Any]] = np.maximum(
        np.maximum(first, second), np.maximum(third, fourth)
    )
    return gap
