"""Held-out windows to hazard calibration, crash threshold, uncertainty limit, known ranges."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.checkpoint.calibration import (
    ALLOW_UNGUARANTEED,
    DONE_SCALES,
    DONE_SHIFTS,
    HIGHEST_THRESHOLD,
    Calibration,
)
from models.conformal import Guarantee, conformal_threshold, has_values_beyond
from models.network.ensemble import EnsembleRollout, WorldModelEnsemble
from models.safety.expected_error import ExpectedError
from models.slots import is_filled
from models.spec import Spec
from models.survival import crash_probability
from training.dataset.windows import Windows
from training.fitting.options import TrainOptions

Floats = NDArray[np.floating]

_CHUNK_ROWS = 1024
_RANGE_MARGIN = 0.05
_LOWEST_THRESHOLD = 1e-9
_LARGEST_LOGIT = 25.0
"""Beyond, a hazard is 0 or 1 to any purpose."""
_SMALLEST = 1e-300
DIVERGED = "the trained model's predictions for held-out windows are not finite: it has diverged"


@dataclass(frozen=True)
class Prediction:
    """What an ensemble predicts for N windows.

    Attributes:
        states: [N, H+1, S].
        rewards: [N, H].
        dones: [N, H].
        disagreement: [N, H].
        uncertainty: [N].
    """

    states: NDArray[np.float32]
    rewards: NDArray[np.float32]
    dones: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    uncertainty: NDArray[np.float32]


@torch.inference_mode()
def predict_windows(ensemble: WorldModelEnsemble, windows: Windows) -> Prediction:
    """Roll out every window from its first state with its recorded actions."""
    device = next(ensemble.parameters()).device
    parts: list[EnsembleRollout] = []
    for start in range(0, len(windows), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        states = torch.tensor(windows.states[rows, 0], device=device)
        parts.append(ensemble.rollout(states, torch.tensor(windows.actions[rows], device=device)))

    def joined(name: str) -> NDArray[np.float32]:
        return torch.cat([getattr(part, name) for part in parts]).cpu().numpy()

    return Prediction(**{field.name: joined(field.name) for field in fields(Prediction)})


def calibrate(
    ensemble: WorldModelEnsemble,
    known_ranges: tuple[Floats, Floats],
    validation: Windows,
    calibration: Windows,
    options: TrainOptions,
    spec: Spec,
    expected_error: ExpectedError | None = None,
) -> Calibration:
    """Calibrate an ensemble; sets its members' hazard calibration.

    The crash threshold is the lowest of three: the one at the options' false-alarm rate, the one
    that carries a guarantee for episodes that end, see `conformal_threshold`, and one half: what is
    more likely to crash than not is never safe. Just below it, verdicts are unknown. What few data
    cannot support is None, unless the options ask for it by name: no verdict is `safe` then.

    Args:
        ensemble: The trained members.
        known_ranges: Smallest and largest trained value of each feature, [S] each.
        validation: Held-out windows that fix the hazards.
        calibration: Windows that nothing was fitted to; they fix thresholds and limits.
        options: The run's.
        spec: Meaning of the features.
        expected_error: Of the ensemble, if it is known.

    Raises:
        ValueError: The ensemble's predictions are not finite.
    """
    scale, shift = fit_hazard(ensemble, validation.take(np.flatnonzero(validation.is_known)))
    for member in ensemble.members:
        member.set_calibration(done_scale=scale, done_shift=shift)
    known = calibration.take(np.flatnonzero(calibration.is_known))
    prediction = predict_windows(ensemble, known)
    probability = crash_probability(prediction.dones)
    if not np.isfinite(probability + prediction.uncertainty).all():
        raise ValueError(DIVERGED)
    harmless = probability[~known.ends]
    at_rate = _upper_quantile(harmless, 1 - options.false_alarm_rate, "higher")
    guarantee = guarantee_of(
        episode_scores(probability, known, options.lead_steps), options, spec.dt_s
    )
    threshold = _threshold(at_rate, guarantee, options)
    peopled = _with_neighbours(known.states[:, 0], spec)
    realised = None if threshold is None else float(np.mean(harmless >= threshold))
    return Calibration(
        crash_threshold=threshold,
        safe_below=None
        if threshold is None
        else _safe_below(harmless, threshold, options.doubt_rate),
        uncertainty_limit=_upper_limit(
            prediction.uncertainty, options.uncertainty_quantile, options
        ),
        error_limit_m=None
        if expected_error is None
        else _upper_limit(expected_error(peopled), options.error_quantile, options),
        state_low=tuple(known_ranges[0].tolist()),
        state_high=tuple(known_ranges[1].tolist()),
        horizon=calibration.horizon,
        notes={
            "windows": len(known),
            "episodes": len(np.unique(known.episode)),
            "windows_that_end": int(known.ends.sum()),
            "false_alarm_rate": options.false_alarm_rate,
            "false_alarm_threshold": at_rate,
            "conformal": asdict(guarantee),
            ALLOW_UNGUARANTEED: options.allow_unguaranteed,
            "realised_false_alarm_rate": realised,
            "doubt_rate": options.doubt_rate,
            "uncertainty_quantile": options.uncertainty_quantile,
            "windows_with_neighbours": len(peopled),
            "error_quantile": options.error_quantile,
            "done_scale": scale,
            "done_shift": shift,
        },
    )


def guarantee_of(scores: NDArray[np.float64], options: TrainOptions, dt_s: float) -> Guarantee:
    """Return what the scores of episodes that end can guarantee, see `episode_scores`."""
    return Guarantee(
        alpha=options.miss_rate,
        lead_s=round(options.lead_steps * dt_s, 6),
        episodes=len(scores),
        threshold=conformal_threshold(scores, options.miss_rate),
    )


def summary(calibration: Calibration) -> str:
    """Say for a person how many episodes a calibration had, how many it needed, what follows."""
    guarantee, threshold = calibration.guarantee, calibration.served_threshold
    if guarantee is None:
        return "no calibration episodes were noted"
    if threshold is None:
        follows = "there is no crash threshold, and safety checks answer unknown"
    elif guarantee.holds_for(threshold):
        follows = f"the crash threshold {threshold:.4g} keeps that guarantee"
    else:
        follows = f"the crash threshold {threshold:.4g}, which was asked for, guarantees nothing"
    realised = calibration.notes.get("realised_false_alarm_rate")
    if threshold is not None and realised is not None:
        follows += (
            f" and calls {realised:.3g} of harmless windows unsafe "
            f"({calibration.notes['false_alarm_rate']:g} was aimed at)"
        )
    if threshold is not None and calibration.safe_below is not None:
        follows += (
            f"; from {calibration.safe_below:.4g} on none is called safe, so that at most "
            f"{calibration.notes['doubt_rate']:g} of them are unknown for that"
        )
    if calibration.uncertainty_limit is None:
        follows += "; there is no uncertainty limit, and no verdict is safe"
    return f"{counted(guarantee)}: {follows}"


def counted(guarantee: Guarantee) -> str:
    """Say how many episodes there were and how many are needed, as the first half of a sentence."""
    return (
        f"{guarantee.episodes} calibration episodes end in time (after {guarantee.lead_s:g} s or "
        f"more), {guarantee.episodes_needed} are needed to guarantee a miss rate of "
        f"{guarantee.alpha:g}"
    )


def _threshold(at_rate: float | None, guarantee: Guarantee, options: TrainOptions) -> float | None:
    """Return the crash threshold; None if nothing supports it and nobody asked for it."""
    if at_rate is None:
        return None
    bounds = [max(at_rate, _LOWEST_THRESHOLD), HIGHEST_THRESHOLD]
    if guarantee.threshold is not None:
        bounds.append(guarantee.threshold)
    elif not options.allow_unguaranteed:
        return None
    # A guarantee at 0: episodes were predicted to be certain not to end, and did.
    return threshold if (threshold := min(bounds)) > 0 else None


def _safe_below(harmless: Floats, threshold: float, doubt_rate: float) -> float | None:
    """Return from which crash probability on verdicts below the threshold are unknown.

    What is neither likely nor unlikely enough is not decided (Chow 1970, "On optimum recognition
    error and reject tradeoff"). It is the lowest one that leaves at most a share of the
    harmless windows undecided; None if every such bound would leave more.

    Args:
        harmless: Crash probabilities of windows in which nothing happens.
        threshold: From which on verdicts are unsafe.
        doubt_rate: The share.
    """
    values, counts = np.unique(harmless[harmless < threshold], return_counts=True)
    undecided = counts[::-1].cumsum()[::-1]
    bounds = values[undecided <= doubt_rate * len(harmless)]
    return min(max(float(bounds[0]), _LOWEST_THRESHOLD), threshold) if len(bounds) else None


def _with_neighbours(states: Floats, spec: Spec) -> Floats:
    """Return those of the states [N, S] in which somebody is near, if the spec has neighbours."""
    slots = spec.geometry.slots if spec.geometry is not None else ()
    if not slots:
        return states
    return states[np.any([is_filled(states, slot, spec) for slot in slots], axis=0)]


def _upper_limit(values: Floats, quantile: float, options: TrainOptions) -> float | None:
    """Return the limit; None if so few windows would make it the largest that was seen, or it is 0.

    The largest of few values is any value: one wrong window decides it.
    """
    limit = _upper_quantile(values, quantile, "linear")
    is_few = not has_values_beyond(len(values), quantile)
    if limit is None or limit <= 0 or (is_few and not options.allow_unguaranteed):
        return None
    return limit


def _upper_quantile(
    values: Floats, share: float, method: Literal["higher", "linear"]
) -> float | None:
    """Return a quantile; None of no values."""
    return float(np.quantile(values, share, method=method)) if len(values) else None


def episode_scores(
    probability: NDArray[np.floating], windows: Windows, lead_steps: int
) -> NDArray[np.float64]:
    """Return the highest crash probability that each ending episode was given in time.

    Args:
        probability: [N], of the windows.
        windows: The N windows.
        lead_steps: In time means this many steps before the end, or earlier.

    Returns:
        [episodes that end and have a window that starts in time and contains the end].
    """
    ahead = np.where(windows.ends, windows.terminated.argmax(1) + 1, 0)
    in_time = ahead >= lead_steps
    episodes, index = np.unique(windows.episode[in_time], return_inverse=True)
    scores = np.zeros(len(episodes))
    np.maximum.at(scores, index, probability[in_time])
    return scores


def fit_hazard(ensemble: WorldModelEnsemble, windows: Windows) -> tuple[float, float]:
    """Fit the affine map of hazard logits that makes the outcomes of windows most likely.

    Returns:
        done_scale, done_shift; 1 and 0 if there are not both outcomes.

    Raises:
        ValueError: The ensemble's predictions are not finite.
    """
    if not windows.ends.any() or windows.ends.all():
        return 1.0, 0.0
    logits = _member_logits(ensemble, windows)
    if not logits.isfinite().all():
        raise ValueError(DIVERGED)
    return fit_platt(logits, torch.as_tensor(windows.terminated, device=logits.device))


def fit_platt(logits: Tensor, terminated: Tensor) -> tuple[float, float]:
    """Fit scale and shift of hazard logits to when windows ended.

    Platt scaling of what is served: the members' mean survival up to every step, against whether
    the window had ended by then. The outcomes are not 0 and 1 but Platt's targets, (n+ + 1) /
    (n+ + 2) and 1 / (n- + 2) for n+ and n- outcomes of each kind (Platt 1999, "Probabilistic
    outputs for support vector machines"; Lin, Lin, Weng 2007): without them, outcomes that the
    logits separate would drive the map to infinity, and probabilities to exactly 0 and 1. Scale
    and shift are bounded besides, as in a checkpoint: no data turn the order of hazards around, or
    make a likely crash look impossible.

    Args:
        logits: [E, N, H], finite, of the members.
        terminated: [N, H], whether the window ended at the step.

    Returns:
        scale, in `DONE_SCALES`, and shift, in `DONE_SHIFTS`.
    """
    logits = logits.double().clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT)
    ended = terminated.cumsum(-1).bool()
    count = ended.sum().item()
    target = torch.where(ended, (count + 1) / (count + 2), 1 / (ended.numel() - count + 2)).double()
    parameters = torch.zeros(2, device=logits.device, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scale, shift = _bounded(parameters)
        # All in logarithms: nothing is rounded to 0 or 1, where there would be no gradient.
        log_alive = -functional.softplus(scale * logits + shift).cumsum(-1)
        log_mean_alive = log_alive.logsumexp(0) - math.log(len(logits))
        log_mean_ended = (-log_alive.expm1()).mean(0).clamp_min(_SMALLEST).log()
        value = -(target * log_mean_ended + (1 - target) * log_mean_alive).mean()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    scale, shift = (x.item() for x in _bounded(parameters.detach()))
    return scale, shift


def _bounded(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift for any two numbers, 1 and 0 for (0, 0)."""
    # Both ranges are symmetric, around 1 and around 0.
    largest_scale, largest_shift = DONE_SCALES[1], DONE_SHIFTS[1]
    return largest_scale ** torch.tanh(parameters[0]), largest_shift * torch.tanh(
        parameters[1] / largest_shift
    )


@torch.no_grad()
def _member_logits(ensemble: WorldModelEnsemble, windows: Windows) -> Tensor:
    """Return uncalibrated hazard logits [E, N, H]."""
    for member in ensemble.members:
        member.set_calibration(done_scale=1.0, done_shift=0.0)
    device = next(ensemble.parameters()).device
    parts = []
    for start in range(0, len(windows), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        states = torch.tensor(windows.states[rows, 0], device=device)
        actions = torch.tensor(windows.actions[rows], device=device)
        parts.append(ensemble.rollout_members(states, actions)[2])
    return torch.cat(parts, dim=1)


def trained_ranges(*parts: Windows) -> tuple[Floats, Floats]:
    """Return the range of each feature [S] at the start of windows, a little widened."""
    low = np.min([part.states[:, 0].min(0) for part in parts], axis=0)
    high = np.max([part.states[:, 0].max(0) for part in parts], axis=0)
    margin = _RANGE_MARGIN * (high - low)
    return low - margin, high + margin
