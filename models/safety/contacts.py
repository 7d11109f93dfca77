"""Whether a motion ends in contact, whatever the predicted probability says.

Two motions are looked at. The predicted one: positions and hazards come from one network, by
different outputs, and where they contradict each other (the ego drives through somebody, and a
crash is improbable), one of them is wrong. And that of physics alone (`models.safety.physics`):
what a network does not foresee need not be rare, as a car ahead that brakes harder than any that
it saw.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from models.safety.limits import Floats, Reason, SafetyLimits
from models.safety.rectangles import separations

LEAST_CONTACT_M = 0.1
"""By how much rectangles must overlap, or the ego be beyond an edge: predicted places are right to
a decimetre at best. *Measured* on test windows that do not end, .01 % are doubted for it, and .06 %
with a bound of 0."""


class Motion(NamedTuple):
    """Where everybody is at times that are evenly spaced, by one way to know it.

    Attributes:
        rule: Names a contact of it: one of `models.safety.limits.RULES`.
        said: How a reason speaks of it.
        values: [K, times, columns] as `SafetyLimits.motion_columns` has them, the last time being
            that of the last step.
    """

    rule: str
    said: str
    values: Floats


def motions_of(states: Floats, actions: Floats | None, limits: SafetyLimits) -> list[Motion]:
    """Return the motions of K sequences.

    Args:
        states: [K, H+1, S] as predicted, the start included.
        actions: [K, H, A], for physics.
        limits: Say which features move, and how.

    Raises:
        ValueError: Physics can be computed, and has no actions, or not those of the states.
    """
    # All columns are taken at once, and from an array without gaps: that is quicker.
    taken = states.take(limits.motion_columns, -1)
    predicted = taken[:, 1:]
    motions = [Motion("predicted_contact", "in the predicted motion", predicted)]
    if limits.physics is not None:
        if actions is None or actions.shape[:2] != predicted.shape[:2]:
            shape = None if actions is None else actions.shape
            raise ValueError(f"actions {shape} do not fit states {states.shape}")
        values = _with_middles(taken[:, 0], limits.physics(states[:, 0], actions))
        motions.append(Motion("physics_contact", "by physics alone", values))
    return motions


@np.errstate(all="ignore")
def contact_reasons(
    states: Floats, actions: Floats | None, limits: SafetyLimits
) -> dict[int, list[Reason]]:
    """Name the first contact of each sequence that has one, in each of its motions.

    Comparisons are written so that NaN counts as contact.

    Args:
        states: [K, H+1, S], the start included. Who is there, and sizes, are those of the start.
        actions: [K, H, A], for physics.
        limits: Say which features are places, sizes and edges. Without headings nobody can touch.

    Returns:
        By sequence: who the ego overlaps, or which edge it is beyond, by how much and when.

    Raises:
        ValueError: See `motions_of`.
    """
    motions = motions_of(states, actions, limits)
    # As one motion of more times: that is quicker than one after the other.
    values = np.concatenate([motion.values for motion in motions], axis=1)
    beyond = -values[..., values.shape[-1] - len(limits.edges) :]
    depths = np.concatenate([_overlaps(states[:, 0], values, limits), beyond], axis=-1)
    touches = ~(depths <= LEAST_CONTACT_M)
    found: dict[int, list[Reason]] = {}
    if not touches.any():
        return found
    length_s, end = (states.shape[1] - 1) * limits.dt_s, 0
    for motion in motions:
        times = motion.values.shape[1]
        begin, end = end, end + times
        for k in np.flatnonzero(touches[:, begin:end].any((1, 2))).tolist():
            first = int(touches[k, begin:end].any(-1).argmax())
            depth = depths[k, begin + first]
            message = (
                f"{motion.said} the ego {_contact(int(depth.argmax()), depth, limits)} after "
                f"{(first + 1) * length_s / times:.2f} s"
            )
            found.setdefault(k, []).append(Reason(motion.rule, message))
    return found


def _with_middles(start: Floats, motion: Floats) -> Floats:
    """Return a motion in half steps: at 30 m/s a step is 1.5 m, and a corner is shorter.

    Args:
        start: [K, columns].
        motion: [K, H, columns].

    Returns:
        [K, 2 H, columns], from half a step after the start.
    """
    halves = np.empty((len(motion), 2 * motion.shape[1], motion.shape[2]), motion.dtype)
    halves[:, 1::2] = motion
    halves[:, 0] = (start + motion[:, 0]) / 2
    halves[:, 2::2] = (motion[:, :-1] + motion[:, 1:]) / 2
    return halves


def _contact(which: int, depths: Floats, limits: SafetyLimits) -> str:
    """Say what is touched: one of the neighbours if they were looked at, or of the edges."""
    first_edge = len(depths) - len(limits.edges)
    if which < first_edge:
        return f"overlaps neighbour {which + 1} by {depths[which]:.2g} m"
    edge = limits.feature_names[limits.edges[which - first_edge]]
    return f"is {depths[which]:.2g} m off the road ({edge})"


def _overlaps(start: Floats, motion: Floats, limits: SafetyLimits) -> Floats:
    """Return by how much the ego overlaps each neighbour after each step, m, [K, H, slots].

    It is -inf for who is not there or clearly apart; [K, H, 0] if all are.
    """
    count = len(limits.headings)
    nobody = motion[..., :0]
    if not count:
        return nobody
    sizes = _sizes(start, limits)
    reach = np.hypot(sizes[:, 1:, 0], sizes[:, 1:, 1]) / 2
    reach[start.take(limits.slots[:, 0], -1) <= 0] = -np.inf  # not for NaN: who may be there, is
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
