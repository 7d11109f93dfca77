"""Errors of every feature in its own unit, beside those of a prediction that nothing changes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.slots import is_filled
from models.spec import Spec
from training.dataset.windows import Windows
from training.evaluation.bootstrap import draw_counts, percentile_interval
from training.evaluation.state_errors import reported_steps

Floats = NDArray[np.floating[Any]]

_SERIES = ("mean", "interval", "relative", "relative_interval")


def feature_errors(predicted: Floats, windows: Windows, spec: Spec, draws: int) -> dict[str, Any]:
    """Return mean absolute errors of each feature after the `reported_steps`.

    Features of a neighbour count only where it is there.

    Args:
        predicted: [N, H+1, S].
        windows: N of them, recorded to their end.
        spec: Of their features.
        draws: Resamples of episodes for the intervals; 0 leaves them out.

    Returns:
        `steps`, the number of `windows` and `episodes`; by feature its `unit`, `low` and `high`,
        and a list over the steps each of: the `mean` error, its `interval`, the error `relative` to
        that of a prediction that nothing changes, and its `relative_interval`. None where nothing
        was counted, nothing changed, or a number is not finite.
    """
    names, index = np.unique(windows.episode, return_inverse=True)
    counts, steps = draw_counts(len(names), draws), reported_steps(windows.horizon)
    table: dict[str, dict[str, Any]] = {
        x.name: {"unit": x.unit, **{key: [] for key in _SERIES}} for x in spec.state
    }
    for step in steps:
        true = windows.states[:, step]
        counted = _counted(true, spec)
        sums = [
            _by_episode(np.where(counted, np.abs(states - true), 0.0), index, len(names))
            for states in (predicted[:, step], windows.states[:, 0])
        ]
        own, still = sums
        number = _by_episode(counted.astype(np.float64), index, len(names))
        for pair, below in ((_SERIES[:2], number), (_SERIES[2:], still)):
            values, intervals = _ratios(own, below, counts)
            for row, value, interval in zip(table.values(), values, intervals, strict=True):
                row[pair[0]].append(value)
                row[pair[1]].append(interval)
    return {"steps": steps, "windows": len(windows), "episodes": len(names), "features": table}


def _counted(true: Floats, spec: Spec) -> NDArray[np.bool_]:
    """Return which features [N, S] of states [N, S] mean something."""
    counted = np.ones(true.shape, bool)
    for slot in spec.geometry.slots if spec.geometry else ():
        there = is_filled(true, slot, spec)
        counted[:, [spec.state_index(name) for name in slot.features]] = there[:, None]
    return counted


def _by_episode(values: Floats, index: NDArray[np.integer[Any]], episodes: int) -> Floats:
    """Return sums [episodes, S] of values [N, S], whose episodes are `index` [N]."""
    order = np.argsort(index, kind="stable")
    first = np.searchsorted(index[order], np.arange(episodes))
    return np.asarray(np.add.reduceat(values[order], first, axis=0, dtype=np.float64))


def _ratios(
    above: Floats, below: Floats, counts: Floats
) -> tuple[list[float | None], list[list[float | None]]]:
    """Return the ratio of sums over episodes of each feature, and its interval.

    Args:
        above: [episodes, S].
        below: [episodes, S].
        counts: [draws, episodes].
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        values = above.sum(0) / below.sum(0)
        drawn = (counts @ above) / (counts @ below)
    return (
        [float(x) if np.isfinite(x) else None for x in values],
        [list(percentile_interval(column)) for column in drawn.T],
    )
