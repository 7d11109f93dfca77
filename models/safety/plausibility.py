"""Start states that cannot be, or are the end already. Pure functions, one state at a time.

Nothing that is compared with NaN is found to be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import cos, hypot, isfinite, nan, sin

from models.safety.limits import SafetyLimits
from models.safety.rectangles import separations

_ORDER_SLACK = 0.5
"""How much nearer than one in a slot before a neighbour may be, in widths of a vehicle: a tracker
may have sorted them a moment ago. Measured on 4,000 made-up scenes: in the opposite order, 8 % of
what is `unsafe` came out `safe`, and 2 % with the nearest two exchanged. Empty slots between others
matter less."""

_TOLERATED = 0.25
"""Two neighbours may overlap by this share of the narrower one's width: their places and sizes are
estimates."""

_LEAST_TOLERATED_M = 0.3
"""Of neighbours whose sizes are measured, those who are narrow may overlap by this: people walk
side by side, and trackers are wrong by decimetres about each of two places."""

_LEAST_SIZE_M = 0.1
"""Nobody on a road is smaller: with a size in km, or what rounding leaves of one, nobody would be
in the way. Trained ranges do not catch that, as empty slots are zeros."""

Faults = Iterator[str]
Size = tuple[float, float]
"""Length and width, m."""

Neighbour = tuple[int, float, float, float, Size, float]
"""Somebody who is there: number by the slots, from 1 on; dx and dy of the centre, m; heading, rad;
size; and how far its rectangle reaches from its centre, however it is turned, m. A plain tuple:
four of them are made for each request."""


def faults_of(state: Sequence[float], limits: SafetyLimits) -> Faults:
    """Yield what cannot be in a state [S], or is the end already."""
    there: list[Neighbour] = []
    usual = limits.length_m, limits.apart_m
    usual_reach_m = hypot(*usual) / 2
    for number, gate, x, y, heading, size in limits.places:
        gate_value = state[gate]
        if gate_value == 0:
            continue
        if size and gate == size[0]:
            if not gate_value > 0:
                yield f"{limits.feature_names[gate]} = {gate_value:g} is below 0"
        elif gate_value != 1:
            yield f"{limits.feature_names[gate]} = {gate_value:g} is neither 0 nor 1"
        if not gate_value > 0:
            continue
        turned = 0.0 if heading is None else state[heading]
        if not size:
            there.append((number, state[x], state[y], turned, usual, usual_reach_m))
            continue
        own = state[size[0]], state[size[1]]
        if _can_be(own, limits):
            there.append((number, state[x], state[y], turned, own, hypot(*own) / 2))
        else:
            yield from _size_faults(own, size, limits, "of somebody who is there")
    yield from _faults_of_ego(state, there, usual, limits)
    yield from _collisions(there, limits)
    yield from _disorder(there, _ORDER_SLACK * limits.apart_m)


def _can_be(size: Size, limits: SafetyLimits) -> bool:
    longest_m, widest_m = limits.largest_m
    return _LEAST_SIZE_M <= size[0] <= longest_m and _LEAST_SIZE_M <= size[1] <= widest_m


def _size_faults(size: Size, columns: tuple[int, ...], limits: SafetyLimits, whose: str) -> Faults:
    """Yield what is wrong with a size of which something is."""
    for value, column, what, most_m in zip(
        size, columns, ("length", "width"), limits.largest_m, strict=True
    ):
        if not _LEAST_SIZE_M <= value <= most_m:
            name = limits.feature_names[column]
            allowed = f"which is from {_LEAST_SIZE_M:g} to {most_m:g} m"
            yield f"{name} = {value:g} is no {what} {whose}, {allowed}"


def _faults_of_ego(
    state: Sequence[float], there: Sequence[Neighbour], usual: Size, limits: SafetyLimits
) -> Faults:
    """Yield what it overlaps, and what is wrong with its own size and its place on the road."""
    own, can_be = usual, True
    if limits.ego_size:
        length, width = limits.ego_size
        own = state[length], state[width]
        can_be = _can_be(own, limits)
        if not can_be:
            yield from _size_faults(own, limits.ego_size, limits, "of the ego")
    if limits.headings and can_be:
        yield from _contacts(there, own)
    for edge in limits.edges:
        if not state[edge] >= 0:
            yield f"{limits.feature_names[edge]} = {state[edge]:g} is off the road"
    road_m = sum([state[side] for side in limits.sides])
    if limits.sides and can_be and not road_m >= own[1]:
        yield f"a road of {road_m:g} m is narrower than a vehicle"


def _contacts(there: Sequence[Neighbour], own: Size) -> Faults:
    """Yield which of the neighbours that are there overlap the ego, of its own size."""
    ahead_m, beside_m = own[0] / 2, own[1] / 2
    for number, dx, dy, heading, size, reach_m in there:
        if abs(dx) > ahead_m + reach_m or abs(dy) > beside_m + reach_m:
            continue
        depth_m = _depth(dx, dy, heading, own, size)
        if not depth_m <= 0:
            yield f"neighbour {number} overlaps the ego by {depth_m:.2g} m"


def _collisions(there: Sequence[Neighbour], limits: SafetyLimits) -> Faults:
    """Yield which neighbours are in one place, or overlap by more than an error of their sizes."""
    for one, other in combinations(there, 2):
        i, x1, y1, heading1, size1, reach1_m = one
        j, x2, y2, heading2, size2, reach2_m = other
        dx, dy = x2 - x1, y2 - y1
        distance_m = hypot(dx, dy)
        if distance_m >= reach1_m + reach2_m:
            continue
        least_m = _least_tolerated(i, j, limits)
        if not least_m and not distance_m >= limits.apart_m:
            yield f"neighbours {i} and {j} are in the same place"
            continue
        along, left = _direction(heading1)
        ahead_m, beside_m = along * dx + left * dy, along * dy - left * dx
        depth_m = _depth(ahead_m, beside_m, heading2 - heading1, size1, size2)
        if not depth_m <= max(_TOLERATED * min(size1[1], size2[1]), least_m):
            yield f"neighbours {i} and {j} overlap by {depth_m:.2g} m"


def _least_tolerated(one: int, other: int, limits: SafetyLimits) -> float:
    """Return by how much two may overlap at least, m; 0 if both are taken for usual vehicles."""
    is_measured = limits.sizes and (limits.sizes[one - 1] or limits.sizes[other - 1])
    return _LEAST_TOLERATED_M if is_measured else 0.0


def _disorder(there: Sequence[Neighbour], slack_m: float) -> Faults:
    """Yield which neighbour is nearer than one before it."""
    before, farthest_m = 0, 0.0
    for number, dx, dy, *_ in there:
        distance_m = hypot(dx, dy)
        if distance_m < farthest_m - slack_m:  # who is nowhere is in no range, either
            yield (
                f"neighbour {number} is {distance_m:.1f} m away, nearer than neighbour {before}, "
                f"{farthest_m:.1f} m, but slots are filled nearest first"
            )
            return
        if distance_m >= farthest_m:
            before, farthest_m = number, distance_m


def _depth(dx: float, dy: float, heading: float, own: Size, size: Size) -> float:
    """Return by how much two rectangles overlap, in m, at most 0 if they do not.

    Args:
        dx: m, centre to centre along the first one.
        dy: m, centre to centre across the first one.
        heading: rad, of the second one relative to the first.
        own: Of the first one.
        size: Of the second one.
    """
    return -max(separations(dx, dy, *_direction(heading), *own, *size))


def _direction(heading: float) -> tuple[float, float]:
    return (cos(heading), sin(heading)) if isfinite(heading) else (nan, nan)
