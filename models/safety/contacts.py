"""Whether a predicted motion ends in contact, whatever the predicted probability says.

Positions and hazards come from one network, by different outputs. Where they contradict each other
(the ego drives through somebody, and a crash is improbable), one of them is wrong.
"""

from __future__ import annotations

import numpy as np

from models.safety.limits import Floats, Reason, SafetyLimits
from models.safety.rectangles import separations

LEAST_CONTACT_M = 0.1
"""By how much rectangles must overlap, or the ego be beyond an edge: predicted places are right to
a decimetre at best. *Measured* on test windows that do not end, .01 % are doubted for it, and .06 %
with a bound of 0."""


@np.errstate(all="ignore")
def contact_reasons(states: Floats, limits: SafetyLimits) -> dict[int, Reason]:
    """Name the first contact of each sequence that has one.

    Comparisons are written so that NaN counts as contact.

    Args:
        states: [K, H+1, S], the start included. Who is there, and sizes, are those of the start.
        limits: Say which features are places, sizes and edges. Without headings nobody can touch.

    Returns:
        By sequence: who the ego overlaps, or which edge it is beyond, by how much and when.
    """
    columns = limits.motion_columns
    # All are taken at once, and from an array without gaps: that is quicker.
    motion = states.take(columns, -1)[:, 1:]
    beyond = -motion[..., len(columns) - len(limits.edges) :]
    depths = np.concatenate([_overlaps(states, motion, limits), beyond], axis=-1)
    touches = ~(depths <= LEAST_CONTACT_M)
    if not touches.any():
        return {}
    found: dict[int, Reason] = {}
    for k in np.flatnonzero(touches.any((1, 2))).tolist():
        step = int(touches[k].any(-1).argmax())
        which = int(depths[k, step].argmax())
        message = (
            f"in the predicted motion the ego {_contact(which, depths[k, step], limits)} after "
            f"{(step + 1) * limits.dt_s:.2f} s"
        )
        found[k] = Reason("predicted_contact", message)
    return found


def _contact(which: int, depths: Floats, limits: SafetyLimits) -> str:
    """Say what is touched: one of the neighbours if they were looked at, or of the edges."""
    first_edge = len(depths) - len(limits.edges)
    if which < first_edge:
        return f"overlaps neighbour {which + 1} by {depths[which]:.2g} m"
    edge = limits.feature_names[limits.edges[which - first_edge]]
    return f"is {depths[which]:.2g} m off the road ({edge})"


def _overlaps(states: Floats, motion: Floats, limits: SafetyLimits) -> Floats:
    """Return by how much the ego overlaps each neighbour after each step, m, [K, H, slots].

    It is -inf for who is not there or clearly apart; [K, H, 0] if all are.
    """
    count = len(limits.headings)
    nobody = motion[..., :0]
    if not count:
        return nobody
    start = states[:, 0]
    sizes = _sizes(start, limits)
    reach = np.hypot(sizes[:, 1:, 0], sizes[:, 1:, 1]) / 2
    reach[~(start.take(limits.slots[:, 0], -1) > 0)] = -np.inf
    places, headings = motion[..., : 2 * count], motion[..., 2 * count : 3 * count]
    places = places.reshape(*places.shape[:2], 2, count)
    # Along the ego, and across it.
    is_apart = np.abs(places) > sizes[:, None, 0, :, None] / 2 + reach[:, None, None]
    is_near = ~(is_apart[:, :, 0] | is_apart[:, :, 1])
    if not is_near.any():
        return nobody
    rows, steps, slots = near = is_near.nonzero()
    dx, dy, heading = *places[rows, steps, :, slots].T, headings[near]
    pair = (*sizes[rows, 0].T, *sizes[rows, 1 + slots].T)
    gaps = separations(dx, dy, np.cos(heading), np.sin(heading), *pair)
    depths = np.full(is_near.shape, -np.inf)
    depths[near] = -np.max(gaps, axis=0)
    return depths


def _sizes(start: Floats, limits: SafetyLimits) -> Floats:
    """Return length and width of the ego and of each neighbour, m, [K, 1 + slots, 2]."""
    columns, is_usual = limits.size_columns
    sizes = start.take(columns, -1)
    return np.where(is_usual, (limits.length_m, limits.apart_m), sizes) if is_usual.any() else sizes
