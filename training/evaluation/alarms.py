"""What alarms are worth to whoever hears them: how early, how often missed, how often false."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.dataset.sources import Labels
from training.dataset.windows import Windows
from training.evaluation.bootstrap import (
    draw_counts,
    percentile_interval,
    ratio_draws,
    share_interval,
)
from training.evaluation.metrics import lead_times, steps_to_end
from training.fitting.calibrate import episode_scores

Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]

_MOST_OF_NONE = -math.log(0.025)
"""Largest mean of a Poisson count of which 0 is within the middle 95 %."""


def warning_scores(
    alarm: Booleans, windows: Windows, labels: Labels, draws: int, dt_s: float
) -> dict[str, Any]:
    """Return how early alarms come, and what they miss.

    Args:
        alarm: [N], whether a method called the window unsafe.
        windows: The N windows.
        labels: Why their episodes terminated.
        draws: Resamples for the interval of the median.
        dt_s: Length of a step.

    Returns:
        Recall of windows that end in the first and in the second half of the horizon; by cause of
        the end, and for `all`, what `summarise_leads` returns.
    """
    ahead, half = steps_to_end(windows), windows.horizon // 2
    leads = lead_times(alarm, windows, dt_s)
    episodes = np.unique(windows.episode[ahead > 0])
    assert len(episodes) == len(leads)
    causes = labels.cause[episodes]
    return {
        "recall_near": _share(alarm[(ahead >= 1) & (ahead <= half)]),
        "recall_far": _share(alarm[ahead > half]),
        "all": summarise_leads(leads, draws),
        **{
            name: summarise_leads(leads[causes == code], draws)
            for code, name in enumerate(labels.causes)
            if code
        },
    }


def summarise_leads(leads: Floats, draws: int) -> dict[str, Any]:
    """Return the median lead of episodes and the share without any warning, with intervals."""
    count, missed = len(leads), int(np.sum(leads == 0))
    drawn = np.random.default_rng(0).choice(leads, (draws, count)) if count else np.empty((0, 0))
    medians = np.median(drawn, axis=1) if drawn.size else np.empty(0)
    return {
        "episodes": count,
        "median_s": float(np.median(leads)) if count else None,
        "median_interval": list(percentile_interval(medians)),
        "missed": missed / count if count else None,
        "missed_interval": list(share_interval(missed, count)),
    }


def false_alarms(
    alarm: Booleans, windows: Windows, rows: Booleans, stride: int, draws: int, dt_s: float
) -> dict[str, Any]:
    """Return false alarms per minute; unsafe windows in a row are one alarm.

    Args:
        alarm: [N].
        windows: The N windows, those of an episode in order of time.
        rows: [N], those of driving that does not end.
        stride: Steps between the starts of windows.
        draws: Resamples of episodes for the interval. Without an alarm they cannot differ: the
            interval is that of a Poisson count of 0 (Garwood 1936).
        dt_s: Length of a step.
    """
    rows = rows & windows.is_known
    episode, step, alarm = windows.episode[rows], windows.start_step[rows], alarm[rows]
    follows = np.zeros(len(alarm), bool)
    follows[1:] = (np.diff(episode) == 0) & (np.diff(step) == stride)
    begins = alarm & ~(follows & np.append(False, alarm[:-1]))
    names, index = np.unique(episode, return_inverse=True)
    alarms = np.bincount(index, begins, len(names)).astype(np.float64)
    minutes = np.bincount(index, minlength=len(names)) * stride * dt_s / 60
    rate, drawn = ratio_draws(alarms, minutes, draw_counts(len(names), draws))
    interval = percentile_interval(drawn)
    if draws and rate == 0:
        interval = 0.0, _MOST_OF_NONE / float(minutes.sum())
    return {
        "per_minute": rate,
        "interval": list(interval),
        "alarms": int(alarms.sum()),
        "minutes": float(minutes.sum()),
    }


def guarantee_scores(
    probability: Floats,
    windows: Windows,
    notes: dict[str, Any],
    crash_threshold: float | None,
    dt_s: float,
) -> dict[str, Any] | None:
    """Return what the conformal guarantee says and what happened.

    An episode is missed if no window that starts at least the guaranteed time before its end, and
    contains it, reaches the threshold. Episodes without such windows (too short) do not count,
    as in `calibrate`.

    Args:
        probability: [N] crash probabilities.
        windows: N windows of known outcome, strided like those of the calibration.
        notes: The checkpoint's, see `calibrate`.
        crash_threshold: The checkpoint's, which may be lower than the guarantee needs.
        dt_s: Length of a step.

    Returns:
        None if the checkpoint carries no guarantee, or no window ends.
    """
    guarantee = notes.get("conformal") or {}
    if guarantee.get("threshold") is None or crash_threshold is None or not windows.ends.any():
        return None
    scores = episode_scores(probability, windows, round(guarantee["lead_s"] / dt_s))

    def missed(threshold: float) -> dict[str, Any]:
        hits = int(np.sum(scores < threshold))
        return {
            "threshold": threshold,
            "missed": hits / len(scores) if len(scores) else None,
            "interval": list(share_interval(hits, len(scores))),
        }

    return {
        "alpha": guarantee["alpha"],
        "lead_s": guarantee["lead_s"],
        "calibration_episodes": guarantee["episodes"],
        "episodes": len(scores),
        "guaranteed": missed(guarantee["threshold"]),
        "served": missed(crash_threshold),
    }


def _share(part: Booleans) -> float | None:
    return float(part.mean()) if len(part) else None
