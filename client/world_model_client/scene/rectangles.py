"""Rectangles of road users: how far apart two are, and where one of another size shows the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from world_model_client.scene.frames import Floats

Sizes = tuple[ArrayLike, ArrayLike]
"""Lengths and widths in m."""


def gap(
    dx: ArrayLike,
    dy: ArrayLike,
    heading: ArrayLike,
    sizes: Sizes,
    others: Sizes,
) -> Floats:
    """Return how far apart two rectangles are; negative means overlap by that depth.

    Exact in sign (separating axis theorem), exact as a distance between parallel rectangles, and
    never more than the distance between turned ones.

    Args:
        dx: [...] m, centre to centre along the first.
        dy: [...] m, centre to centre across the first.
        heading: [...] rad, of the second one relative to the first.
        sizes: Length and width [...] of the first, m.
        others: Of the second.

    Returns:
        [...] m.
    """
    dx, dy, cos, sin = np.asarray(dx), np.asarray(dy), np.cos(heading), np.sin(heading)
    (length, width), (other_length, other_width) = _halves(sizes), _halves(others)
    turned, across = np.abs(cos), np.abs(sin)
    first = np.abs(dx) - length - other_length * turned - other_width * across
    second = np.abs(dy) - width - other_length * across - other_width * turned
    third = np.abs(dx * cos + dy * sin) - other_length - length * turned - width * across
    fourth = np.abs(dy * cos - dx * sin) - other_width - length * across - width * turned
    return np.maximum(_distance(first, second), _distance(third, fourth))


def _halves(sizes: Sizes) -> tuple[Floats, Floats]:
    return np.asarray(sizes[0], np.float64) / 2, np.asarray(sizes[1], np.float64) / 2


def _distance(along: Floats, across: Floats) -> Floats:
    """Return the distance of two parallel rectangles by their gaps along two axes."""
    apart = np.hypot(np.maximum(along, 0.0), np.maximum(across, 0.0))
    return np.where(apart > 0, apart, np.maximum(along, across))


def moved_to_show(
    dx: Floats,
    dy: Floats,
    heading: Floats,
    sizes: Sizes,
    others: Sizes,
    shown: tuple[Sizes, Sizes],
) -> tuple[Floats, Floats]:
    """Return where a road user's centre is sent to a model that takes it for another size.

    The gaps along the ego's two axes become those between rectangles of the sizes that the model
    takes both for. With c and s the absolute cosine and sine of the relative heading, two
    rectangles of lengths L and widths W touch along the ego's axis where |dx| = X = L_ego / 2 +
    (c L + s W) / 2, across it where |dy| = Y = W_ego / 2 + (s L + c W) / 2. X' and Y' are these of
    the rectangles that the model takes them for.

        dx' = sign(dx) (|dx| - X + X')   if |dx| > X, apart along the ego's axis
        dx' = dx X' / X                  else, beside the ego

    and dy' likewise, so that what is apart stays as far apart, what overlaps goes on doing so, and
    nothing jumps. Limits: this is exact in the gaps of rectangles parallel to the ego; of turned
    ones, in those of the boxes around them along the ego's axes. A long vehicle beside the ego
    shows its middle, not its ends. Turning circles stay those of the model's size. Where others
    are relative to each other changes: two that walk side by side may overlap when sent, and the
    verdict is `unknown`.

    Args:
        dx: [...] m, centre to centre along the ego.
        dy: [...] m, centre to centre across the ego.
        heading: [...] rad, relative to the ego's.
        sizes: The ego's length and width [...], m.
        others: The road user's, all above 0.
        shown: What the model takes the ego's and the road user's size for.
    """
    cos, sin = np.abs(np.cos(heading)), np.abs(np.sin(heading))
    true_x, true_y = _reaches(cos, sin, sizes, others)
    shown_x, shown_y = _reaches(cos, sin, *shown)
    return _moved(dx, true_x, shown_x), _moved(dy, true_y, shown_y)


def _reaches(cos: Floats, sin: Floats, sizes: Sizes, others: Sizes) -> tuple[Floats, Floats]:
    """Return how far apart along and across the ego two centres are when the boxes touch."""
    (length, width), (other_length, other_width) = _halves(sizes), _halves(others)
    along = length + cos * other_length + sin * other_width
    across = width + sin * other_length + cos * other_width
    return along, across


def _moved(distance: Floats, true: Floats, shown: Floats) -> Floats:
    apart = np.abs(distance) - true
    return np.where(apart > 0, np.copysign(apart + shown, distance), distance * (shown / true))
