"""Held-out windows to hazard calibration, crash threshold, uncertainty limit, known ranges."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.checkpoint import Calibration
from models.conformal import conformal_threshold
from models.ensemble import EnsembleRollout, WorldModelEnsemble
from models.outcomes import crash_probability
from models.training.dataset import Windows
from models.training.options import TrainOptions

Floats = NDArray[np.floating]

_CHUNK_ROWS = 1024
_RANGE_MARGIN = 0.05


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
    dt_s: float,
) -> Calibration:
    """Calibrate an ensemble; sets its members' hazard calibration.

    The crash threshold is the lower of two: the one at the options' false-alarm rate, and the one
    that carries a guarantee for episodes that end, see `conformal_threshold`.

    Args:
        ensemble: The trained members.
        known_ranges: Smallest and largest trained value of each feature, [S] each.
        validation: Held-out windows that fix the hazards.
        calibration: Windows that nothing was fitted to; they fix thresholds and limits.
        options: The run's.
        dt_s: Length of a step.
    """
    known = validation.take(np.flatnonzero(validation.is_known))
    scale, shift = fit_hazard(ensemble, known)
    for member in ensemble.members:
        member.set_calibration(done_scale=scale, done_shift=shift)
    known = calibration.take(np.flatnonzero(calibration.is_known))
    prediction = predict_windows(ensemble, known)
    probability = crash_probability(prediction.dones)
    harmless = probability[~known.ends]
    at_rate = float(np.quantile(harmless, 1 - options.false_alarm_rate, method="higher"))
    scores = episode_scores(probability, known, options.lead_steps)
    guaranteed = conformal_threshold(scores, options.miss_rate)
    threshold = at_rate if guaranteed is None else min(at_rate, guaranteed)
    low, high = known_ranges
    return Calibration(
        crash_threshold=threshold,
        uncertainty_limit=float(np.quantile(prediction.uncertainty, options.uncertainty_quantile)),
        state_low=tuple(float(x) for x in low),
        state_high=tuple(float(x) for x in high),
        horizon=options.horizon,
        notes={
            "windows": len(known),
            "episodes": len(np.unique(known.episode)),
            "windows_that_end": int(known.ends.sum()),
            "false_alarm_rate": options.false_alarm_rate,
            "false_alarm_threshold": at_rate,
            "conformal": {
                "alpha": options.miss_rate,
                "lead_s": round(options.lead_steps * dt_s, 6),
                "episodes": len(scores),
                "threshold": guaranteed,
            },
            "realised_false_alarm_rate": float(np.mean(harmless >= threshold)),
            "uncertainty_quantile": options.uncertainty_quantile,
            "done_scale": scale,
            "done_shift": shift,
        },
    )


def episode_scores(
    probability: NDArray[np.floating], windows: Windows, lead_steps: int
) -> NDArray[np.float64]:
    """Return the highest crash probability that each ending episode was given in time.

    Args:
        probability: [N], of the windows.
        windows: The N windows.
        lead_steps: In time means so many steps before the end, or earlier.

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

    Platt scaling (Platt 1999) of what is served: the members' mean survival up to every step,
    against whether the window had ended by then.

    Returns:
        done_scale, done_shift.
    """
    logits = _member_logits(ensemble, windows)
    ended = torch.as_tensor(windows.terminated, device=logits.device).cumsum(-1).to(logits.dtype)
    parameters = torch.tensor([1.0, 0.0], device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_alive = -functional.softplus(parameters[0] * logits + parameters[1]).cumsum(-1)
        alive = log_alive.exp().mean(0).clamp(1e-7, 1 - 1e-7)
        value = functional.binary_cross_entropy(1 - alive, ended)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    scale, shift = parameters.detach().tolist()
    return scale, shift


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


def trained_ranges(train: Windows) -> tuple[Floats, Floats]:
    """Return the range of each feature [S] at the start of windows, a little widened."""
    low, high = train.states[:, 0].min(0), train.states[:, 0].max(0)
    margin = _RANGE_MARGIN * (high - low)
    return low - margin, high + margin
