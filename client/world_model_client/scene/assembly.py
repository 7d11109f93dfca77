"""Poses to states, for any number of moments at once: what needs no history.

The builder makes the state of now with it, one row; training makes all its windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from world_model_client.scene.frames import Floats, sign_between, wrapped
from world_model_client.scene.layout import (
    ASSUMED_LENGTH_M,
    ASSUMED_WIDTH_M,
    MIRRORED_EGO,
    MIRRORED_SLOT,
    SLOT_PARTS,
    Layout,
)
from world_model_client.scene.rectangles import Sizes, gap, moved_to_show
from world_model_client.scene.road import Place

EGO_COLUMNS = ("x", "y", "heading", "speed", "length", "width")
OTHER_COLUMNS = (*EGO_COLUMNS, "acceleration", "yaw_rate")

RANGE_M = 95.0
"""Who is farther is left out: predictions have not seen anybody there."""

STANDING_MPS = 0.5
"""A speed below 0 that is nearer to 0 is noise of somebody who stands; else he reverses."""

_MIRRORED = [SLOT_PARTS.index(part) for part in MIRRORED_SLOT]
_RATES = [SLOT_PARTS.index(part) for part in ("acceleration", "yaw_rate")]
_HEADING = SLOT_PARTS.index("heading")

Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]


class Assembled(NamedTuple):
    """States and what they were made of.

    Attributes:
        states: [N, S] in the model's frame.
        columns: [N, slots] which road user is in a slot, -1 where nobody is.
        near: [N, K] who is there and within range.
        gaps: [N, K] m between the rectangles of the ego and each road user, with true sizes.
        moved: [N, K, 2] m, by how much each was moved, along and across the ego, to show its gap to
            a model without sizes.
        clipped: [N, S] whether an acceleration or turn rate was beyond the layout's range.
    """

    states: NDArray[np.float32]
    columns: Indices
    near: Flags
    gaps: Floats
    moved: Floats
    clipped: Flags


class _Seen(NamedTuple):
    """Road users as the ego sees them, [N, K] each: `SLOT_PARTS` but for the presence."""

    length: Floats
    width: Floats
    dx: Floats
    dy: Floats
    heading: Floats
    speed: Floats
    acceleration: Floats
    yaw_rate: Floats


def assemble(
    layout: Layout,
    frame: str,
    ego: Floats,
    place: Place,
    others: Floats,
    present: Flags,
    range_m: float = RANGE_M,
    columns: Indices | None = None,
) -> Assembled:
    """Return the states of N moments.

    Of all within range, a layout with sizes gets those whose rectangles are nearest to the ego's: a
    truck's end may be beside the ego while its centre is 8 m away, behind four cars. A layout
    without sizes gets those whose centres are nearest, after they were moved (`moved_to_show`). In
    both, the slots are in the order of distances of centres, as the service demands; of equal
    ones, the road user that is given first comes first.

    Args:
        layout: Of the states.
        frame: Of all else.
        ego: [N, 6] `EGO_COLUMNS`.
        place: Of the ego on the road, as `Road.locate` returns it; infinite edges are sent as
            the layout's saturation.
        others: [N, K, 8] `OTHER_COLUMNS`; turned by pi if they reverse: rectangles are symmetric.
        present: [N, K] whether a column holds somebody.
        range_m: Who is farther away is left out, by centres.
        columns: [N, slots] who is in each slot, -1 for nobody; None: as said above. So the truth
            is put into the slots that were chosen by what was measured.
    """
    ego, others = np.asarray(ego, np.float64), np.asarray(others, np.float64)
    missing = layout.slot_count - others.shape[1]
    if missing > 0:
        others = np.pad(others, ((0, 0), (0, missing), (0, 0)))
        present = np.pad(present, ((0, 0), (0, missing)))
    seen = _seen(ego, np.where(present[..., None], others, 0.0))
    sizes, theirs = (ego[:, 4:5], ego[:, 5:6]), (seen.length, seen.width)
    gaps = gap(seen.dx, seen.dy, seen.heading, sizes, theirs)
    moved = np.zeros((*gaps.shape, 2))
    if not (layout.has_sizes and layout.has_ego_size):
        shown = _shown(layout, sizes, theirs)
        dx, dy = moved_to_show(seen.dx, seen.dy, seen.heading, sizes, theirs, shown)
        moved = np.stack([dx - seen.dx, dy - seen.dy], axis=-1)
        seen = seen._replace(dx=dx, dy=dy)
    squared = np.square(seen.dx) + np.square(seen.dy)
    near = present & (squared <= range_m**2)
    if columns is None:
        columns = _chosen(layout, np.where(near, squared, np.inf), gaps, near)
    values, is_there = _values(layout, frame, ego, place, seen, columns)
    clipped = _clip_rates(layout, values, is_there)
    values = np.clip(values, layout.saturations[:, 0], layout.saturations[:, 1])
    # Plus 0: a mirrored 0 is -0.
    states = (np.where(is_there, values, 0.0) + 0.0).astype(np.float32)
    count = gaps.shape[1] - max(missing, 0)
    return Assembled(states, columns, near[:, :count], gaps[:, :count], moved[:, :count], clipped)


def _seen(ego: Floats, others: Floats) -> _Seen:
    cos, sin = np.cos(ego[:, 2:3]), np.sin(ego[:, 2:3])
    x, y = others[..., 0] - ego[:, 0:1], others[..., 1] - ego[:, 1:2]
    heading, speed, acceleration = others[..., 2] - ego[:, 2:3], others[..., 3], others[..., 6]
    if (speed < 0).any():
        is_reversing = speed < -STANDING_MPS
        heading = heading + np.where(is_reversing, np.pi, 0.0)
        acceleration = np.where(is_reversing, -acceleration, acceleration)
        speed = np.where(is_reversing, -speed, np.maximum(speed, 0.0))
    return _Seen(
        length=others[..., 4],
        width=others[..., 5],
        dx=cos * x + sin * y,
        dy=cos * y - sin * x,
        heading=heading,
        speed=speed,
        acceleration=acceleration,
        yaw_rate=others[..., 7],
    )


def _shown(layout: Layout, sizes: Sizes, theirs: Sizes) -> tuple[Sizes, Sizes]:
    """Return what the model takes the ego's and the others' sizes for."""
    assumed: Sizes = (ASSUMED_LENGTH_M, ASSUMED_WIDTH_M)
    return (
        sizes if layout.has_ego_size else assumed,
        theirs if layout.has_sizes else assumed,
    )


def _chosen(layout: Layout, squared: Floats, gaps: Floats, near: Flags) -> Indices:
    """Return who is in each slot [N, slots], -1 for nobody.

    Args:
        layout: Of the states.
        squared: [N, K] distances of centres, squared; infinite of who is not near.
        gaps: [N, K].
        near: [N, K].
    """
    nearest = np.where(near, gaps, np.inf) if layout.has_sizes else squared
    # Stable, so that equal distances keep the order of columns on every machine.
    columns = np.argsort(nearest, axis=1, kind="stable")[:, : layout.slot_count]
    if layout.has_sizes:
        columns = np.sort(columns, axis=1)
        order = np.argsort(np.take_along_axis(squared, columns, axis=1), axis=1, kind="stable")
        columns = np.take_along_axis(columns, order, axis=1)
    return np.where(np.take_along_axis(near, columns, axis=1), columns, -1)


def _values(
    layout: Layout, frame: str, ego: Floats, place: Place, seen: _Seen, columns: Indices
) -> tuple[Floats, Flags]:
    """Return all features [N, S] in the model's frame, and which of them are not of empty slots."""
    sign = sign_between(frame, layout.frame)
    values = np.zeros((len(ego), len(layout.names)))
    is_there: Flags = np.ones((len(ego), len(layout.names)), bool)
    speed = ego[:, 3]
    parts = {
        "lane_offset": place.lane_offset,
        "sin_heading_error": place.sin_heading_error,
        "left_edge": place.left_edge,
        "right_edge": place.right_edge,
        "curvature": place.curvature,
        # Noise of one that stands: of one that reverses the model knows nothing, and says so.
        "speed": np.where(speed >= -STANDING_MPS, np.maximum(speed, 0.0), speed),
        "length": ego[:, 4],
        "width": ego[:, 5],
    }
    for part, column in layout.ego.items():
        values[:, column] = parts[part] * sign if part in MIRRORED_EGO else parts[part]
    is_filled = columns >= 0
    rows = np.arange(len(ego))[:, None]
    chosen = np.stack([np.ones(seen.dx.shape), *seen], axis=-1)[rows, columns]  # [N, slots, parts]
    if sign < 0:
        chosen[..., _MIRRORED] *= -1
    chosen[..., _HEADING] = wrapped(chosen[..., _HEADING])
    has_part = layout.slots >= 0
    places = layout.slots[has_part]
    values[:, places] = chosen[:, has_part]
    is_there[:, places] = np.broadcast_to(is_filled[..., None], chosen.shape)[:, has_part]
    return values, is_there


def _clip_rates(layout: Layout, values: Floats, is_there: Flags) -> Flags:
    """Take accelerations and turn rates beyond the layout's range for its bounds, in place.

    They come of differences: what no vehicle does is noise.

    Returns:
        [N, S] what was beyond.
    """
    clipped: Flags = np.zeros(is_there.shape, bool)
    columns = layout.slots[:, _RATES]
    columns = columns[columns >= 0]
    given = values[:, columns]
    values[:, columns] = np.clip(given, layout.low[columns], layout.high[columns])
    clipped[:, columns] = (values[:, columns] != given) & is_there[:, columns]
    return clipped
