"""Start states for which the model's answer would mean nothing, and why.

A state is not judged if it lies outside what the model was trained on, if it cannot be, or if it is
the end already: the ego touches a neighbour or is off the road. Episodes end there, so no model has
learned what comes next, and hazards are those of steps that begin before the end.

All sequences of a safety check begin in one state. Plain Python looks at one in a tenth of the time
that NumPy takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import cos, hypot, isfinite, nan, sin

import numpy as np

from models.limits import Floats, Reason, SafetyLimits
from models.rectangles import separations

_MAX_FEATURES_NAMED = 4

Slots = Sequence[tuple[int, int, int]]


def start_reasons(start: Floats, limits: SafetyLimits) -> list[list[Reason]]:
    """Say, for each start state [K, S], why the model's answer to it would mean nothing."""
    reasons, slots = _range_reasons(start, limits), limits.slots.tolist()
    for of_state, state in zip(reasons, start.tolist(), strict=True):
        faults = [*_faults(state, slots, limits)]
        if faults:
            of_state.append(Reason("input_impossible", "; ".join(faults[:_MAX_FEATURES_NAMED])))
    return reasons


def _faults(state: Sequence[float], slots: Slots, limits: SafetyLimits) -> Iterator[str]:
    """Yield what cannot be in a state [S], or is the end already.

    Nothing that is compared with NaN is found to be right.
    """
    there = []
    for number, (presence, x, y) in enumerate(slots, 1):
        if state[presence] not in (0.0, 1.0):
            name = limits.feature_names[presence]
            yield f"{name} = {state[presence]:g} is neither 0 nor 1"
        if state[presence] > 0:
            there.append((number, state[x], state[y]))
    if limits.headings:
        yield from _contacts(state, there, limits)
    for edge in limits.edges:
        if not state[edge] >= 0:
            yield f"{limits.feature_names[edge]} = {state[edge]:g} is off the road"
    for (i, x1, y1), (j, x2, y2) in combinations(there, 2):
        if not hypot(x1 - x2, y1 - y2) >= limits.apart_m:
            yield f"neighbours {i} and {j} are in the same place"


def _contacts(
    state: Sequence[float], there: Sequence[tuple[int, float, float]], limits: SafetyLimits
) -> Iterator[str]:
    """Yield which of the neighbours that are there overlap the ego.

    Args:
        state: [S].
        there: Number, dx and dy of each.
        limits: With a length and columns of headings.
    """
    length_m, width_m = limits.length_m, limits.apart_m
    # A rectangle reaches no further from its centre than its corners, however it is turned.
    corner_m = hypot(length_m, width_m) / 2
    ahead, beside = length_m / 2 + corner_m, width_m / 2 + corner_m
    for number, dx, dy in there:
        if abs(dx) > ahead or abs(dy) > beside:
            continue
        heading = state[limits.headings[number - 1]]
        turn = (cos(heading), sin(heading)) if isfinite(heading) else (nan, nan)
        apart = separations(dx, dy, *turn, length_m, width_m)
        if not any(gap >= 0 for gap in apart):
            yield f"neighbour {number} overlaps the ego by {-max(apart):.2g} m"


def _range_reasons(start: Floats, limits: SafetyLimits) -> list[list[Reason]]:
    """Name, for each start state [K, S], the features outside what training covered."""
    inside = (start >= limits.state_low) & (start <= limits.state_high)
    if inside.all():
        return [[] for _ in start]
    reasons: list[list[Reason]] = []
    for k in range(len(start)):
        columns = np.flatnonzero(~inside[k])
        named = [
            f"{limits.feature_names[i]} = {start[k, i]:g} is outside "
            f"[{limits.state_low[i]:g}, {limits.state_high[i]:g}]"
            for i in columns[:_MAX_FEATURES_NAMED]
        ]
        if len(columns) > _MAX_FEATURES_NAMED:
            named.append(f"and {len(columns) - _MAX_FEATURES_NAMED} more features")
        reasons.append([Reason("input_out_of_range", "; ".join(named))] if named else [])
    return reasons
