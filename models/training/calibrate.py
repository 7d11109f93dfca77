"""Validation windows to hazard calibration, crash threshold, uncertainty limit, known ranges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.checkpoint import Calibration
from models.ensemble import EnsembleRollout, WorldModelEnsemble
from models.outcomes import crash_probability
from models.training.dataset import Windows
from models.training.options import TrainOptions

_CHUNK_ROWS = 1024
_RANGE_MARGIN = 0.05


@dataclass(frozen=True)
class Prediction:
    """What an ensemble predicts for N windows.

    Attributes:
        states: [N, H+1, S].
        rewards: [N, H].
        dones: [N, H].
        uncertainty: [N].
    """

    states: NDArray[np.float32]
    rewards: NDArray[np.float32]
    dones: NDArray[np.float32]
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

    return Prediction(*(joined(n) for n in ("states", "rewards", "dones", "uncertainty")))


def calibrate(
    ensemble: WorldModelEnsemble, train: Windows, validation: Windows, options: TrainOptions
) -> Calibration:
    """Calibrate an ensemble on validation windows; sets its members' hazard calibration.

    Args:
        ensemble: The trained members.
        train: Its first states say what the model knows.
        validation: Held-out windows.
        options: The run's.
    """
    known = validation.take(np.flatnonzero(validation.is_known))
    scale, shift = fit_hazard(ensemble, known)
    for member in ensemble.members:
        member.set_calibration(done_scale=scale, done_shift=shift)
    prediction = predict_windows(ensemble, known)
    probability = crash_probability(prediction.dones)
    harmless = probability[~known.ends]
    threshold = float(np.quantile(harmless, 1 - options.false_alarm_rate, method="higher"))
    limit = float(np.quantile(prediction.uncertainty, options.uncertainty_quantile))
    low, high = _known_ranges(train.states)
    return Calibration(
        crash_threshold=threshold,
        uncertainty_limit=limit,
        state_low=tuple(float(x) for x in low),
        state_high=tuple(float(x) for x in high),
        horizon=options.horizon,
        notes={
            "windows": len(known),
            "episodes": len(np.unique(known.episode)),
            "windows_that_end": int(known.ends.sum()),
            "false_alarm_rate": options.false_alarm_rate,
            "uncertainty_quantile": options.uncertainty_quantile,
            "done_scale": scale,
            "done_shift": shift,
        },
    )


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


def _known_ranges(
    states: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the trained range of each feature, a little widened."""
    low, high = states[:, 0].min(0), states[:, 0].max(0)
    margin = _RANGE_MARGIN * (high - low)
    return low - margin, high + margin
