"""Scores of predictions against what happened. Plain numbers in, plain JSON-ready dicts out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from models.training.baselines import slots_of
from models.training.bicycle import DT_S
from models.training.dataset import Windows
from models.training.features import EGO_COUNT, SLOT_COUNT

Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]
Scores = dict[str, float | None]

FALSE_ALARM_RATE = 0.01
REPORTED_STEPS = (1, 2, 4, 8, 16)
ECE_BINS = 15
DIVERGED_SD = 20.0
"""A rollout has diverged once a feature is this many standard deviations from the truth."""


def alarm_threshold(score: Floats, ends: Booleans, rate: float = FALSE_ALARM_RATE) -> float:
    """Return the lowest observed score that at most about `rate` of harmless windows reach."""
    return float(np.quantile(score[~ends], 1 - rate, method="higher"))


def ranking(score: Floats, ends: Booleans, weight: Floats | None = None) -> tuple[float, float]:
    """Return AUROC and average precision of scores [N] for outcomes [N]."""
    return (
        float(roc_auc_score(ends, score, sample_weight=weight)),
        float(average_precision_score(ends, score, sample_weight=weight)),
    )


def _share(part: Booleans, weight: Floats | None = None) -> float | None:
    """Return the (weighted) share of True, or None of nothing."""
    if len(part) == 0 or (weight is not None and weight.sum() == 0):
        return None
    return float(np.average(part, weights=weight))


def steps_to_end(windows: Windows) -> NDArray[np.int64]:
    """Return after how many steps each window terminates [N], 1 to H; 0 if it does not."""
    return np.where(windows.ends, windows.terminated.argmax(1) + 1, 0)


def termination_scores(score: Floats, windows: Windows, threshold: float) -> dict[str, Any]:
    """Score the ranking and the alarms of a method.

    Args:
        score: [N], higher is riskier.
        windows: The N windows, outcomes known.
        threshold: A score at or above it is an alarm; from validation data.

    Returns:
        auroc, average_precision (None unless both outcomes occur); recall at the threshold,
        of all ends and by how far ahead they are; the realised false_alarm_rate; lead_time.
    """
    ends, alarm = windows.ends, score >= threshold
    both = bool(ends.any() and not ends.all())
    auroc, precision = ranking(score, ends) if both else (None, None)
    ahead, half = steps_to_end(windows), windows.horizon // 2
    return {
        "auroc": auroc,
        "average_precision": precision,
        "recall": _share(alarm[ends]),
        "recall_near": _share(alarm[(ahead >= 1) & (ahead <= half)]),
        "recall_far": _share(alarm[ahead > half]),
        "false_alarm_rate": _share(alarm[~ends]),
        "threshold": threshold,
        "lead_time": summarise_leads(lead_times(alarm, windows)),
    }


def lead_times(alarm: Booleans, windows: Windows) -> NDArray[np.float64]:
    """Return the warning that each terminating episode got.

    Args:
        alarm: [N], whether the method called the window unsafe.
        windows: The N windows.

    Returns:
        [episodes that terminate] seconds from the start of the first alarmed window that
        contains the event to the event, at most the horizon; 0 if none alarmed.
    """
    ahead = steps_to_end(windows)
    episodes, index = np.unique(windows.episode[ahead > 0], return_inverse=True)
    lead = np.zeros(len(episodes))
    np.maximum.at(lead, index, np.where(alarm, ahead * DT_S, 0.0)[ahead > 0])
    return lead


def summarise_leads(leads: Floats) -> Scores:
    """Return the median lead and the share of episodes without any warning."""
    if len(leads) == 0:
        return {"episodes": 0, "median_s": None, "missed": None}
    return {
        "episodes": len(leads),
        "median_s": float(np.median(leads)),
        "missed": float(np.mean(leads == 0)),
    }


def bootstrap_intervals(
    score: Floats, windows: Windows, threshold: float, draws: int, seed: int = 0
) -> dict[str, list[float]]:
    """Return 95 % intervals of AUROC, average precision and recall.

    Episodes are drawn, not windows: windows of one episode overlap.

    Args:
        score: [N].
        windows: The N windows.
        threshold: Kept as it is in every draw.
        draws: Number of resamples; 0 gives no intervals.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    episodes, index = np.unique(windows.episode, return_inverse=True)
    ends, alarm = windows.ends, score >= threshold
    rows = []
    for _ in range(draws):
        picked = np.bincount(rng.integers(len(episodes), size=len(episodes)), None, len(episodes))
        weight = picked[index].astype(np.float64)
        if weight[ends].sum() > 0 and weight[~ends].sum() > 0:
            rows.append([*ranking(score, ends, weight), _share(alarm[ends], weight[ends])])
    if not rows:
        return {}
    low, high = np.quantile(np.array(rows, np.float64), [0.025, 0.975], axis=0)
    names = ("auroc", "average_precision", "recall")
    return {n: [float(low[i]), float(high[i])] for i, n in enumerate(names)}


def reliability(probability: Floats, ends: Booleans, bins: int = ECE_BINS) -> dict[str, Any]:
    """Return how far probabilities can be taken at their word.

    Args:
        probability: [N].
        ends: [N].
        bins: Number of bins of equal mass.

    Returns:
        brier; ece, the mass-weighted mean distance of predicted and observed share; and both
        shares by bin.
    """
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    predicted = np.array([probability[part].mean() for part in parts], np.float64)
    observed = np.array([ends[part].mean() for part in parts], np.float64)
    mass = np.array([len(part) for part in parts]) / len(order)
    return {
        "brier": float(np.mean((probability - ends) ** 2)),
        "ece": float(np.sum(mass * np.abs(predicted - observed))),
        "predicted": predicted.tolist(),
        "observed": observed.tolist(),
    }


def neighbour_error(predicted: Floats, true: Floats) -> tuple[Floats, Floats, Booleans]:
    """Return position error [..., 4] in m, velocity error [..., 4] in m/s, presence [..., 4]."""
    p, t = slots_of(predicted), slots_of(true)
    position = np.hypot(p[..., 1] - t[..., 1], p[..., 2] - t[..., 2])
    velocity = np.hypot(p[..., 3] - t[..., 3], p[..., 4] - t[..., 4])
    return position, velocity, t[..., 0] > 0.5


def state_scores(predicted: Floats, true: Floats, scale: Floats) -> dict[str, Scores]:
    """Score predicted states at one step.

    Args:
        predicted: [N, S].
        true: [N, S].
        scale: [S], standard deviation of each feature, for `nrmse`.

    Returns:
        By quantity: errors of the ego's speed, heading and edge distances; of the present
        neighbours' positions and velocities; nrmse over all features of present things.
    """
    error = np.abs(predicted - true)
    heading = [np.arcsin(np.clip(s[:, 2], -1, 1)) for s in (predicted, true)]
    position, velocity, there = neighbour_error(predicted, true)
    seen, speed = position[there], velocity[there]
    counted = np.ones_like(error, dtype=bool)
    counted[:, EGO_COUNT:] = np.repeat(there, SLOT_COUNT, axis=1)
    return {
        "ego": {
            "speed_mps": float(error[:, 0].mean()),
            "heading_rad": float(np.abs(heading[0] - heading[1]).mean()),
            "edge_m": float(error[:, 3:5].mean()),
        },
        "neighbour": {
            "position_mean_m": float(seen.mean()) if len(seen) else None,
            "position_median_m": float(np.median(seen)) if len(seen) else None,
            "position_p95_m": float(np.quantile(seen, 0.95)) if len(seen) else None,
            "position_worst_m": float(seen.max()) if len(seen) else None,
            "velocity_mps": float(speed.mean()) if len(seen) else None,
        },
        "all": {"nrmse": float(np.sqrt(np.mean(np.square(error / scale)[counted])))},
    }


def rollout_scores(predicted: Floats, true: Floats) -> dict[str, Any]:
    """Score rollouts that did not end: states at `REPORTED_STEPS`, and how many diverged.

    Args:
        predicted: [N, H+1, S].
        true: [N, H+1, S].
    """
    spread = true[:, 0].std(0)
    # Presence hardly varies and other features may not vary at all; their unit is the scale then.
    keeps_unit = spread < 1e-6
    keeps_unit[EGO_COUNT::SLOT_COUNT] = True
    scale = np.where(keeps_unit, 1.0, spread)
    far = ~(np.abs((predicted - true) / scale) <= DIVERGED_SD)  # true for NaN, too
    steps = [k for k in REPORTED_STEPS if k < predicted.shape[1]]
    return {
        "steps": {str(k): state_scores(predicted[:, k], true[:, k], scale) for k in steps},
        "diverged": float(far.any((1, 2)).mean()),
    }


def reward_scores(predicted: Floats, true: Floats) -> Scores:
    """Return mean absolute errors of rewards [N, H]: of the first step, and of the sum."""
    return {
        "first_step_mae": float(np.abs(predicted[:, 0] - true[:, 0]).mean()),
        "sum_mae": float(np.abs(predicted.sum(1) - true.sum(1)).mean()),
    }


def uncertainty_scores(uncertainty: Floats, error: Floats) -> dict[str, Any]:
    """Say whether uncertainty [N] ranks errors [N]: Spearman's rho, mean error by fifth."""
    order = np.argsort(uncertainty, kind="stable")
    fifths = np.array_split(order, 5)
    # Ranks by double sorting: both are continuous, so ties do not matter.
    ranks = np.argsort(order), np.argsort(np.argsort(error, kind="stable"))
    return {
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
        "error_by_fifth_m": [float(error[part].mean()) for part in fifths],
    }
