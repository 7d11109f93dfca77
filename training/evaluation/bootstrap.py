"""95 % intervals: by resampling episodes, since windows of one episode overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Floats = NDArray[np.floating[Any]]
Interval = tuple[float | None, float | None]

_QUANTILES = (0.025, 0.975)


def draw_counts(episodes: int, draws: int, seed: int = 0) -> NDArray[np.float64]:
    """Return how often each episode is in each resample, [draws, episodes].

    The same arguments give the same resamples, which is what makes differences paired.
    """
    rng = np.random.default_rng(seed)
    counts = np.empty((draws, episodes))
    for row in counts:
        row[:] = np.bincount(rng.integers(episodes, size=episodes), minlength=episodes)
    return counts


def percentile_interval(values: Floats) -> Interval:
    """Return the middle 95 % of resampled values [draws], those that exist; else None."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None, None
    low, high = np.quantile(values, _QUANTILES)
    return float(low), float(high)


def ratio_draws(above: Floats, below: Floats, counts: Floats) -> tuple[float | None, Floats]:
    """Return a ratio of sums over episodes, and its resamples.

    Args:
        above: [episodes].
        below: [episodes].
        counts: [draws, episodes].

    Returns:
        The ratio, None if `below` sums to 0; [draws], NaN where it does.
    """
    total = float(below.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        return (float(above.sum()) / total if total else None), (counts @ above) / (counts @ below)


def share_interval(hits: int, count: int) -> Interval:
    """Return the 95 % interval of a share of independent cases (Wilson 1927).

    Unlike a bootstrap it does not shrink to a point when there are no hits.
    """
    if count == 0:
        return None, None
    interval = binomtest(hits, count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def episode_share(
    hits: NDArray[np.bool_], episode: NDArray[np.integer[Any]], draws: int
) -> tuple[float | None, Interval, int]:
    """Return a share of windows with its 95 % interval, and their number of episodes.

    Args:
        hits: [N], whether a window counts.
        episode: [N].
        draws: Resamples of episodes. Where all windows count, or none, resamples cannot differ: the
            interval is that of as many independent cases as there are episodes.
    """
    names, index = np.unique(episode, return_inverse=True)
    above, below = (
        np.bincount(index, x, len(names)).astype(np.float64) for x in (hits, np.ones(len(hits)))
    )
    share, drawn = ratio_draws(above, below, draw_counts(len(names), draws if len(names) else 0))
    if draws and share in (0, 1):
        return share, share_interval(round(share * len(names)), len(names)), len(names)
    return share, percentile_interval(drawn), len(names)
