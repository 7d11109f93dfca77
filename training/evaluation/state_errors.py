"""Errors of predicted states, step by step, and whether rollouts stay sane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.slots import is_filled
from models.spec import Spec
from training.dataset.windows import Windows
from training.evaluation.baselines import slot_velocity
from training.evaluation.bootstrap import draw_counts, percentile_interval, ratio_draws
from training.simulation.simulator import HIGHWAY
from training.simulation.states import encoder_of

Floats = NDArray[np.floating[Any]]
Booleans = NDArray[np.bool_]
Scores = dict[str, float | None]
Sums = dict[str, tuple[Floats, Floats]]

_REPORTED_STEPS = (1, 2, 4, 8, 16)
DIVERGED_SD = 20.0
"""A rollout has diverged once a feature is this many standard deviations off."""


def reported_steps(horizon: int) -> list[int]:
    """Return the steps after which errors are reported, the last one among them."""
    return sorted({horizon, *(k for k in _REPORTED_STEPS if k < horizon)})


def feature_scale(states: Floats, spec: Spec) -> Floats:
    """Return the standard deviation of each feature [S] over states [N, S].

    Presence hardly varies and other features may not vary at all; their unit is the scale then.
    """
    spread: Floats = states.std(0)
    keeps_unit = spread < 1e-6
    for slot in spec.geometry.slots if spec.geometry else ():
        if slot.presence is not None:
            keeps_unit[spec.state_index(slot.presence)] = True
    return np.where(keeps_unit, 1.0, spread)


def neighbour_error(
    predicted: Floats, true: Floats, spec: Spec = HIGHWAY
) -> tuple[Floats, Floats, Booleans]:
    """Return errors of neighbours' positions and velocities, and who is there.

    Returns:
        [..., slots] in m, [..., slots] in m/s, and where a neighbour is in truth [..., slots].
    """
    position, there = position_errors(predicted, true, spec)
    p, t = (encoder_of(spec).decode(states).slots for states in (predicted, true))
    forward, right = (a - b for a, b in zip(slot_velocity(p), slot_velocity(t), strict=True))
    return position, np.hypot(forward, right), there


def state_scores(
    predicted: Floats, true: Floats, scale: Floats, spec: Spec = HIGHWAY
) -> dict[str, Scores]:
    """Score predicted states at one step.

    Args:
        predicted: [N, S].
        true: [N, S].
        scale: [S], standard deviation of each feature, for `nrmse`.
        spec: Of the states.

    Returns:
        By quantity: errors of the ego's speed, heading and edge distances; of the present
        neighbours' positions and velocities; nrmse over all features of present things.
    """
    error, ego_error = np.abs(predicted - true), _ego_error(predicted, true, spec)
    egos = (encoder_of(spec).decode(states).ego for states in (predicted, true))
    heading = [np.arcsin(np.clip(ego[:, 2], -1, 1)) for ego in egos]
    position, velocity, there = neighbour_error(predicted, true, spec)
    seen, speed = position[there], velocity[there]
    counted = _of_present(there, spec)
    return {
        "ego": {
            "speed_mps": float(ego_error[:, 0].mean()),
            "heading_rad": float(np.abs(heading[0] - heading[1]).mean()),
            "edge_m": float(ego_error[:, 3:5].mean()),
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


def _of_present(there: Booleans, spec: Spec) -> Booleans:
    """Return which features [N, S] are the ego's, or of somebody who is there [N, slots]."""
    counted = np.ones((len(there), spec.state_dim), bool)
    for i, slot in enumerate(spec.geometry.slots if spec.geometry else ()):
        columns = [spec.state_index(name) for name in (slot.gate, *slot.features)]
        counted[:, columns] = there[:, i : i + 1]
    return counted


def _ego_error(predicted: Floats, true: Floats, spec: Spec) -> Floats:
    """Return absolute errors [..., 6] of `states.EGO_FEATURES`."""
    one, other = (encoder_of(spec).decode(states).ego for states in (predicted, true))
    return np.abs(one - other)


def errors_by_step(
    predicted: Floats, true: Floats, scale: Floats, spec: Spec = HIGHWAY
) -> dict[str, Any]:
    """Return `state_scores` of rollouts [N, H+1, S] after the `reported_steps`."""
    return {
        str(k): state_scores(predicted[:, k], true[:, k], scale, spec)
        for k in reported_steps(predicted.shape[1] - 1)
    }


def error_curves(predicted: Floats, true: Floats, spec: Spec = HIGHWAY) -> dict[str, Floats]:
    """Return mean errors [H+1] of rollouts [N, H+1, S], by quantity with its unit."""
    position, _, there = neighbour_error(predicted, true, spec)
    error = _ego_error(predicted, true, spec)
    return {
        "neighbour position error, m": np.sum(position * there, (0, 2))
        / np.maximum(there.sum((0, 2)), 1),
        "speed error, m/s": error[..., 0].mean(0),
        "edge distance error, m": error[..., 3:5].mean((0, 2)),
    }


def final_error_sums(
    predicted: Floats,
    true: Floats,
    episode: NDArray[np.integer[Any]],
    episodes: int,
    spec: Spec = HIGHWAY,
) -> Sums:
    """Sum errors after the last step by episode, for intervals of their means.

    Args:
        predicted: [N, S].
        true: [N, S].
        episode: [N], from 0.
        episodes: Their number.
        spec: Of the states.

    Returns:
        By quantity: sums and counts, [episodes] each.
    """
    error = _ego_error(predicted, true, spec)
    position, _, there = neighbour_error(predicted, true, spec)
    ones = np.ones(len(error))
    parts = {
        "speed_mps": (error[:, 0], ones),
        "edge_m": (error[:, 3:5].mean(1), ones),
        "neighbour_m": ((position * there).sum(1), there.sum(1)),
    }

    def by_episode(values: Floats) -> Floats:
        return np.bincount(episode, values, episodes).astype(np.float64)

    return {name: (by_episode(above), by_episode(below)) for name, (above, below) in parts.items()}


def compare_final_errors(sums: Mapping[str, Sums], draws: int, reference: str) -> dict[str, Any]:
    """Return mean errors after the last step, with intervals, and how they differ.

    Args:
        sums: By method, what `final_error_sums` returned.
        draws: Resamples of episodes; 0 leaves intervals out.
        reference: The method from whose errors the others' are taken off.

    Returns:
        By method, by quantity: mean, interval, lead (the reference's error minus this one's;
        negative: the reference is better), lead_interval.
    """
    quantities = list(sums[reference])
    episodes = len(sums[reference][quantities[0]][0])
    counts = draw_counts(episodes, draws)
    means = {
        name: {q: ratio_draws(*by_quantity[q], counts) for q in quantities}
        for name, by_quantity in sums.items()
    }
    table: dict[str, Any] = {}
    for name, by_quantity in means.items():
        table[name] = {}
        for q, (mean, drawn) in by_quantity.items():
            best, best_drawn = means[reference][q]
            table[name][q] = {
                "mean": mean,
                "interval": list(percentile_interval(drawn)),
                "lead": None if best is None or mean is None else best - mean,
                "lead_interval": list(percentile_interval(best_drawn - drawn)),
            }
    return table


def deviation_sd(predicted: Floats, reference: Floats, scale: Floats, valid: Booleans) -> Floats:
    """Return how far each rollout gets from a reference, in standard deviations.

    Args:
        predicted: [N, H+1, S].
        reference: [N, H+1, S].
        scale: [S].
        valid: [N, H], at which steps the reference means something.

    Returns:
        [N] the largest over steps and features; infinite if the rollout is not finite anywhere.
    """
    far = np.abs((predicted[:, 1:] - reference[:, 1:]) / scale).max(-1)
    worst = np.where(valid, far, 0.0).max(1)
    is_finite = np.isfinite(predicted).all((1, 2))
    return np.where(is_finite, worst, np.inf)


def divergence(deviation: Floats) -> dict[str, Any]:
    """Count diverged rollouts, given their deviations [N] in standard deviations."""
    finite = deviation[np.isfinite(deviation)]
    return {
        "windows": len(deviation),
        "diverged": int(np.sum(deviation > DIVERGED_SD)),
        "not_finite": int(len(deviation) - len(finite)),
        "largest_sd": float(finite.max()) if len(finite) else None,
        "p99_sd": float(np.quantile(finite, 0.99)) if len(finite) else None,
    }


def reward_scores(predicted: Floats, true: Floats) -> Scores:
    """Return mean absolute errors of rewards [N, H]: of the first step, and of the sum."""
    return {
        "first_step_mae": float(np.abs(predicted[:, 0] - true[:, 0]).mean()),
        "sum_mae": float(np.abs(predicted.sum(1) - true.sum(1)).mean()),
    }


def survivors(windows: Windows) -> Booleans:
    """Return which windows were driven to their end [N], where state errors mean something."""
    return windows.valid[:, -1] & ~windows.ends


def overall_error(predicted: Floats, true: Floats, scale: Floats) -> Floats:
    """Return the error of all features after each step of rollouts [N, H].

    Args:
        predicted: [N, H+1, S].
        true: [N, H+1, S].
        scale: [S], in units of which the root mean square is taken.
    """
    with np.errstate(over="ignore"):
        return np.asarray(np.sqrt(np.square((predicted[:, 1:] - true[:, 1:]) / scale).mean(-1)))


def position_errors(predicted: Floats, true: Floats, spec: Spec) -> tuple[Floats, Booleans]:
    """Return how far neighbours are from where they were predicted.

    Args:
        predicted: [..., S].
        true: [..., S].
        spec: With neighbour slots.

    Returns:
        [..., slots] in m, and where a neighbour is in truth [..., slots].
    """
    assert spec.geometry is not None
    slots = spec.geometry.slots
    dx, dy = ([spec.state_index(getattr(slot, name)) for slot in slots] for name in ("dx", "dy"))
    there = np.stack([is_filled(true, slot, spec) for slot in slots], axis=-1)
    off_x, off_y = (predicted[..., columns] - true[..., columns] for columns in (dx, dy))
    return np.hypot(off_x, off_y), there


def nearest_error(predicted: Floats, true: Floats, spec: Spec) -> tuple[Floats, Booleans]:
    """Return the error of the neighbours' positions after each step of rollouts.

    Args:
        predicted: [N, H+1, S].
        true: [N, H+1, S].
        spec: With neighbour slots.

    Returns:
        Their mean [N, H] in m, whether there are neighbours [N, H].
    """
    position, there = position_errors(predicted[:, 1:], true[:, 1:], spec)
    seen = there.sum(-1)
    return np.sum(position * there, -1) / np.maximum(seen, 1), seen > 0


def disagreement_scores(
    disagreement: Floats,
    uncertainty: Floats,
    errors: Mapping[str, tuple[Floats, Booleans]],
    episode: NDArray[np.integer[Any]],
    draws: int,
) -> dict[str, Any]:
    """Say whether disagreement ranks errors, see `uncertainty_scores`.

    Args:
        disagreement: [N, H].
        uncertainty: [N].
        errors: By quantity: the errors after each step [N, H], and which of them exist [N, H].
        episode: [N].
        draws: Resamples of episodes.

    Returns:
        `steps`: the disagreement after each step against the error after it, all steps of all
        windows; `end`: the uncertainty of a window against the error after its last step. Both by
        quantity.
    """
    index = np.broadcast_to(episode[:, None], disagreement.shape)
    scores: dict[str, Any] = {"steps": {}, "end": {}}
    for name, (error, exists) in errors.items():
        scores["steps"][name] = uncertainty_scores(
            disagreement[exists], error[exists], index[exists], draws
        )
        last = exists[:, -1]
        scores["end"][name] = uncertainty_scores(
            uncertainty[last], error[last, -1], episode[last], draws
        )
    return scores


def expected_scores(
    expected: Floats | None,
    errors: Mapping[str, tuple[Floats, Booleans]],
    episode: NDArray[np.integer[Any]],
    draws: int,
) -> dict[str, Any] | None:
    """Say whether the errors that a model expects of itself rank those that it makes.

    Args:
        expected: [N] m; None if it expects none.
        errors: As for `disagreement_scores`.
        episode: [N].
        draws: Resamples of episodes.

    Returns:
        As `uncertainty_scores`, against the error of the neighbours' places after the last step;
        None without either.
    """
    if expected is None or "neighbour_m" not in errors:
        return None
    error, exists = errors["neighbour_m"]
    last = exists[:, -1]
    return uncertainty_scores(expected[last], error[last, -1], episode[last], draws)


def uncertainty_scores(
    uncertainty: Floats, error: Floats, episode: NDArray[np.integer[Any]], draws: int
) -> dict[str, Any]:
    """Say whether uncertainty ranks errors.

    Args:
        uncertainty: [N].
        error: [N].
        episode: [N].
        draws: Resamples of episodes for the interval, in which ranks stay as they are.

    Returns:
        Spearman's rho with its interval, and the mean error by fifth of uncertainty. None, and
        no fifths, of fewer than two windows or of an uncertainty that is always the same, as that
        of one member is.
    """
    if len(error) < 2 or not np.ptp(uncertainty) > 0:
        return {"spearman": None, "interval": [None, None], "error_by_fifth": []}
    # Ranks by double sorting: both are continuous, so ties do not matter.
    x, y = (np.argsort(np.argsort(v, kind="stable")) / len(v) - 0.5 for v in (uncertainty, error))
    names, index = np.unique(episode, return_inverse=True)
    parts = (np.ones(len(x)), x, y, x * x, y * y, x * y)
    sums = np.stack([np.bincount(index, part, len(names)) for part in parts])

    def rho(counts: Floats) -> Floats:
        n, sx, sy, sxx, syy, sxy = sums @ counts
        spread = (n * sxx - sx**2) * (n * syy - sy**2)
        return np.asarray((n * sxy - sx * sy) / np.sqrt(spread))

    fifths = [
        part for part in np.array_split(np.argsort(uncertainty, kind="stable"), 5) if len(part)
    ]
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = rho(draw_counts(len(names), draws).T)
        return {
            "spearman": float(rho(np.ones(len(names)))),
            "interval": list(percentile_interval(drawn)),
            "error_by_fifth": [float(error[part].mean()) for part in fifths],
        }
