"""Windows with fewer neighbours than were recorded, so that an empty road is known too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.spec import Spec
from training.dataset.windows import Windows

KEEP_DISTANCE_M = 15.0
"""A neighbour that comes nearer than this within the window may matter to its outcome."""


def hide_far_neighbours(windows: Windows, spec: Spec, *, share: float, seed: int) -> Windows:
    """Empty the slots of far neighbours in a random share of the windows.

    Each chosen window gets a random sensor range; neighbours that start beyond it, and stay
    beyond `KEEP_DISTANCE_M` all along, are hidden. Recorded traffic nearly always fills all
    slots, and a model must not meet its first empty road in service.

    Args:
        windows: Not changed.
        spec: Names the slots; without a geometry, windows come back as they are.
        share: Share of windows to choose, in [0, 1].
        seed: Decides which windows and ranges.
    """
    if spec.geometry is None or not len(windows):
        return windows
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(rng.random(len(windows)) < share)
    states = np.array(windows.states)
    chosen = states[rows]
    range_m = rng.uniform(0.0, 100.0, len(rows))
    for slot in spec.geometry.slots:
        distance = np.hypot(
            chosen[..., spec.state_index(slot.dx)], chosen[..., spec.state_index(slot.dy)]
        )
        is_hidden = (distance[:, 0] > range_m) & (distance.min(axis=1) > KEEP_DISTANCE_M)
        for name in (slot.presence, *slot.features):
            column = chosen[..., spec.state_index(name)]
            column[is_hidden] = 0.0
    states[rows] = chosen
    return replace(windows, states=states)
