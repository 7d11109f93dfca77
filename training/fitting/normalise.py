"""Input and target normalisers from training windows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.network.world_model import WorldModel
from models.slots import is_filled
from models.spec import Spec
from training.dataset.windows import Windows

_SAMPLE_WINDOWS = 50_000
_CLIP_QUANTILE = 0.995
_RELATIVE_FLOOR = 1e-3
_CONSTANT_SHARE = 1e-5
"""Changes below this share of a feature's spread are float32 noise."""


@dataclass(frozen=True)
class Normalisers:
    """Statistics of training windows; features of absent neighbours are left out.

    Attributes:
        state_mean: [S].
        state_scale: [S], standard deviations.
        delta_scale: [S], size of what the decoder adds in one step; 0 if it never adds anything.
        change_scale: [H, S], size of what it adds over 1..H steps, positive.
        reward_mean: Mean reward.
        reward_scale: Standard deviation of rewards.
    """

    state_mean: NDArray[np.float32]
    state_scale: NDArray[np.float32]
    delta_scale: NDArray[np.float32]
    change_scale: NDArray[np.float32]
    reward_mean: float
    reward_scale: float

    def apply(self, model: WorldModel) -> None:
        """Set a model's normalisers."""
        model.set_normalisers(
            state_mean=torch.as_tensor(self.state_mean),
            state_scale=torch.as_tensor(self.state_scale),
            delta_scale=torch.as_tensor(self.delta_scale),
            reward_mean=self.reward_mean,
            reward_scale=self.reward_scale,
        )


def fit_normalisers(windows: Windows, spec: Spec, model: WorldModel, seed: int = 0) -> Normalisers:
    """Measure normalisers on a sample of windows.

    Sizes are robust: errors are clipped at their 99.5 % quantile, because lane offsets and
    collisions jump.

    Args:
        windows: For training.
        spec: Meaning of their features.
        model: What its decoder adds to, `WorldModel.base_step`, decides the sizes.
        seed: Of the sample.
    """
    rows = np.random.default_rng(seed).permutation(len(windows))[:_SAMPLE_WINDOWS]
    sample = windows.take(np.sort(rows))
    start = sample.states[:, 0]
    base = _base_states(model, sample)
    counts = present_features(start, spec)
    mean = _mean(start, counts)
    scale = np.sqrt(_mean((start - mean) ** 2, counts))
    # A constant feature (no spread) keeps its unit.
    scale = np.where(scale > 1e-6, scale, 1.0)
    smooth = sample.valid & ~sample.terminated
    change = np.stack(
        [
            _robust_size(sample.states[:, k + 1] - base[:, k], counts & smooth[:, k, None])
            for k in range(sample.horizon)
        ]
    )
    is_constant = change.max(0) <= _CONSTANT_SHARE * scale
    rewards = sample.rewards[sample.valid]
    return Normalisers(
        state_mean=mean.astype(np.float32),
        state_scale=scale.astype(np.float32),
        delta_scale=np.where(is_constant, 0.0, np.maximum(change[0], _RELATIVE_FLOOR * scale))
        .astype(np.float32),
        change_scale=np.where(is_constant, 1.0, np.maximum(change, _RELATIVE_FLOOR * scale))
        .astype(np.float32),
        reward_mean=float(rewards.mean()),
        reward_scale=float(max(rewards.std(), 1e-6)),
    )  # fmt: skip


@torch.no_grad()
def _base_states(model: WorldModel, windows: Windows) -> NDArray[np.float32]:
    """Return [N, H, S]: what the decoder's contributions over 1..H steps are added to."""
    state, states = torch.as_tensor(windows.states[:, 0]), []
    for k in range(windows.horizon):
        state = model.base_step(state, torch.as_tensor(windows.actions[:, k]))
        states.append(state)
    return torch.stack(states, dim=1).numpy()


def present_features(states: NDArray[np.float32], spec: Spec) -> NDArray[np.bool_]:
    """Return [N, S]: whether a feature means something, its neighbour being there."""
    present = np.ones(states.shape, bool)
    if spec.geometry is not None:
        for slot in spec.geometry.slots:
            is_there = is_filled(states, slot, spec)
            for name in slot.features:
                present[:, spec.state_index(name)] = is_there
    return present


def _mean(values: NDArray[np.floating], counts: NDArray[np.bool_]) -> NDArray[np.float64]:
    total = np.sum(values, axis=0, where=counts, dtype=np.float64)
    return np.asarray(total / np.maximum(counts.sum(0), 1))


def _robust_size(change: NDArray[np.float32], counts: NDArray[np.bool_]) -> NDArray[np.float64]:
    sizes = np.zeros(change.shape[1])
    for i in range(change.shape[1]):
        column = np.abs(change[counts[:, i], i])
        if len(column):
            limit = np.quantile(column, _CLIP_QUANTILE)
            sizes[i] = np.sqrt(np.mean(np.minimum(column, limit) ** 2, dtype=np.float64))
    return sizes
