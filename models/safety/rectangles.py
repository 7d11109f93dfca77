"""How far apart two rectangles are, for numbers and arrays.

`models.network.geometry` has the same formula over tensors, for the network to learn from.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Lengths = TypeVar("Lengths", float, NDArray[np.floating[Any]])


def separations(
    dx: Lengths,
    dy: Lengths,
    cos: Lengths,
    sin: Lengths,
    length_m: float | Lengths,
    width_m: float | Lengths,
    other_length_m: float | Lengths | None = None,
    other_width_m: float | Lengths | None = None,
) -> tuple[Lengths, Lengths, Lengths, Lengths]:
    """Return how far apart two rectangles are along each of their four axes.

    They are apart if they are along any (separating axis theorem: Gottschalk, Lin, Manocha 1996,
    "OBBTree").

    Args:
        dx: [...] m, centre to centre along the first one.
        dy: [...] m, centre to centre across the first one.
        cos: [...] cosine of the second one's heading relative to the first.
        sin: [...] its sine.
        length_m: Of the first one.
        width_m: Of the first one.
        other_length_m: Of the second one; None: it is as long as the first.
        other_width_m: Of the second one; None: it is as wide as the first.

    Returns:
        [...] m each, negative where their shadows on an axis overlap.
    """
    length, width, abs_cos, abs_sin = length_m / 2, width_m / 2, abs(cos), abs(sin)
    others_length = length if other_length_m is None else other_length_m / 2
    others_width = width if other_width_m is None else other_width_m / 2
    return (
        abs(dx) - (length + others_length * abs_cos + others_width * abs_sin),
        abs(dy) - (width + others_length * abs_sin + others_width * abs_cos),
        abs(dx * cos + dy * sin) - (others_length + length * abs_cos + width * abs_sin),
        abs(dy * cos - dx * sin) - (others_width + length * abs_sin + width * abs_cos),
    )
