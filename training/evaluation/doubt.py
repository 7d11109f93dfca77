"""Whether a model doubts what it gets wrong, and what physics alone would doubt."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.spec import Spec
from training.evaluation.baselines import FAR_M, edges_of
from training.evaluation.bootstrap import (
    draw_counts,
    episode_share,
    percentile_interval,
    ratio_draws,
)
from training.simulation.rectangles import rectangle_gap
from training.simulation.simulator import HIGHWAY
from training.simulation.states import Decoded, encoder_of

Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]

HOME_QUANTILE = 0.99
"""Of the errors at home: beyond, a model is worse than it was calibrated."""

_TOUCH_M, _OVERLAP_M, _OVERLAP_SHARE = 0.1, 0.3, 0.25
"""By how much a neighbour may overlap the ego, and another one (in m, or as a share of the narrower
one's width): places and sizes are estimates."""
_BESIDE_M, _REACH_M = 0.5, 20.0
"""Who goes the ego's way this far beyond an edge is off the road; farther ahead than this, the road
may have become wider."""
_SAME_WAY_COS, _MOVING_MPS = 0.7, 2.0


def impossible(states: Floats, spec: Spec = HIGHWAY) -> Booleans:
    """Return of which states [N, S] physics says that they cannot be.

    Somebody overlaps another, or goes the ego's way beside the road. It is no proof: where lanes
    merge, others do drive beside the ego's road.

    Returns:
        [N].
    """
    seen = encoder_of(spec).decode(np.asarray(states, np.float64))
    return _overlaps(seen) | _beside_road(seen, edges_of(states, spec))


def _overlaps(seen: Decoded) -> Booleans:
    there = seen.slots[..., 0] > 0.5
    x, y, heading = (seen.slots[..., i] for i in (1, 2, 3))
    own = seen.ego_size[:, None, 0], seen.ego_size[:, None, 1]
    sizes = [(seen.sizes[:, i, 0], seen.sizes[:, i, 1]) for i in range(x.shape[1])]
    gaps = rectangle_gap(x, y, heading, own, (seen.sizes[..., 0], seen.sizes[..., 1]))
    found = (there & (gaps < -_TOUCH_M)).any(1)
    for i, j in combinations(range(x.shape[1]), 2):
        cos, sin = np.cos(heading[:, i]), np.sin(heading[:, i])
        ahead, aside = x[:, j] - x[:, i], y[:, j] - y[:, i]
        place = cos * ahead + sin * aside, cos * aside - sin * ahead
        gap = rectangle_gap(*place, heading[:, j] - heading[:, i], sizes[i], sizes[j])
        narrower = np.minimum(sizes[i][1], sizes[j][1])
        least = -np.maximum(_OVERLAP_M, _OVERLAP_SHARE * narrower)
        found |= there[:, i] & there[:, j] & (gap < least)
    return np.asarray(found)


def _beside_road(seen: Decoded, edges: Floats) -> Booleans:
    there = seen.slots[..., 0] > 0.5
    x, y, heading, speed = (seen.slots[..., i] for i in (1, 2, 3, 4))
    error = np.arcsin(np.clip(seen.ego[:, 2:3], -1, 1))
    curvature = seen.ego[:, 5:6]
    # In the frame of the road, which bends away from its first direction.
    along = np.cos(error) * x - np.sin(error) * y
    across = np.sin(error) * x + np.cos(error) * y - curvature * along**2 / 2
    goes_along = np.cos(heading + error - curvature * along) > _SAME_WAY_COS
    counted = there & goes_along & (speed > _MOVING_MPS) & (np.abs(along) < _REACH_M)
    left, right = (np.where(edge < FAR_M, edge, np.inf)[:, None] for edge in edges.T)
    return np.asarray(
        (counted & ((across > right + _BESIDE_M) | (-across > left + _BESIDE_M))).any(1)
    )


def doubt_of_errors(
    error: Floats,
    is_doubted: Booleans,
    limit: float,
    episode: NDArray[np.integer[Any]],
    draws: int,
) -> dict[str, Any]:
    """Say whether a verdict is `unknown` or `unsafe` more often where the error is large.

    Args:
        error: [N].
        is_doubted: [N], whether the verdict is not `safe`.
        limit: `HOME_QUANTILE` of the errors at home.
        episode: [N].
        draws: Resamples of episodes for the intervals.

    Returns:
        The `limit`; of windows `beyond` it and `within`: their number, how many are doubted, and
        the share; the `ratio` of the shares and its `interval`, None without doubt within.
    """
    names, index = np.unique(episode, return_inverse=True)
    counts = draw_counts(len(names), draws if len(names) else 0)
    found: dict[str, Any] = {"limit": limit}
    shares, drawn = [], []
    is_beyond = error > limit
    for name, rows in (("beyond", is_beyond), ("within", ~is_beyond)):
        above, below = (
            np.bincount(index, x, len(names)).astype(np.float64) for x in (rows & is_doubted, rows)
        )
        share, resampled = ratio_draws(above, below, counts)
        _, interval, _ = episode_share(is_doubted[rows], episode[rows], draws)
        found[name] = {
            "windows": int(rows.sum()),
            "doubted": int((rows & is_doubted).sum()),
            "share": share,
            "interval": list(interval),
        }
        shares.append(share)
        drawn.append(resampled)
    beyond, within = shares
    found["ratio"] = beyond / within if beyond is not None and within else None
    with np.errstate(divide="ignore", invalid="ignore"):
        found["interval"] = list(percentile_interval(drawn[0] / drawn[1]))
    return found
