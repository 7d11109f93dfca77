"""How far apart two equal rectangles are, for numbers and arrays.

`models.network.geometry` has the same formula over tensors, for the network to learn from.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Lengths = TypeVar("Lengths", float, NDArray[np.floating[Any]])


def separations(
    dx: Lengths, dy: Lengths, cos: Lengths, sin: Lengths, length_m: float, width_m: float
) -> tuple[Lengths, Lengths, Lengths, Lengths]:
    """Return how far apart two equal cars are along each of the four axes of their rectangles.

    They are apart if they are along any (separating axis theorem: Gottschalk, Lin, Manocha 1996,
    "OBBTree").

    Args:
        dx: [...] m, centre to centre along the first car.
        dy: [...] m, centre to centre across the first car.
        cos: [...] cosine of the second car's heading relative to the first.
        sin: [...] its sine.
        length_m: Of each car.
        width_m: Of each car.

    Returns:
        [...] m each, negative where their shadows on an axis overlap.
    """
    length, width, abs_cos, abs_sin = length_m / 2, width_m / 2, abs(cos), abs(sin)
    along = length + length * abs_cos + width * abs_sin
    across = width + length * abs_sin + width * abs_cos
    return (
        abs(dx) - along,
        abs(dy) - across,
        abs(dx * cos + dy * sin) - along,
        abs(dy * cos - dx * sin) - across,
    )
