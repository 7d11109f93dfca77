"""The losses that the specification allows: MSE, Huber, binary cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.network.unroll import Step, unroll
from models.network.world_model import WorldModel

REWARD_WEIGHT = 0.5
DONE_WEIGHT = 0.1
POSITIVE_WEIGHT = 10.0
ROLLOUT_DONE_WEIGHT = 1.0
"""The specification's 0.1 times the weight 10 that its loss gives to every element."""
TAIL = 5.0
"""Standard deviations beyond which a state error of a rollout counts linearly."""


def state_prediction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error of states of equal shape.

    Raises:
        ValueError: Shapes differ.
    """
    _check_shapes(predicted, target)
    return functional.mse_loss(predicted, target)


def reward_prediction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the Huber loss (delta 1) of rewards of equal shape; meant for normalised rewards.

    Raises:
        ValueError: Shapes differ.
    """
    _check_shapes(predicted, target)
    return functional.huber_loss(predicted, target, delta=1.0)


def termination_loss(
    logits: Tensor, target: Tensor, positive_weight: float = POSITIVE_WEIGHT
) -> Tensor:
    """Return the binary cross-entropy of termination logits.

    `positive_weight` multiplies the loss of positives only, which multiplies the learned odds by
    it; whoever reads the logits as probabilities must subtract its logarithm.

    Raises:
        ValueError: Shapes differ.
    """
    _check_shapes(logits, target)
    weight = torch.tensor(positive_weight, dtype=logits.dtype, device=logits.device)
    return functional.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)


def world_model_loss(
    model: WorldModel,
    states: Tensor,
    actions: Tensor,
    next_states: Tensor,
    rewards: Tensor,
    dones: Tensor,
    *,
    positive_weight: float = POSITIVE_WEIGHT,
) -> dict[str, Tensor]:
    """Return the one-step losses, in normalised units.

    Args:
        model: The model; its normalisers define the units of the losses.
        states: [B, S].
        actions: [B, A].
        next_states: [B, S].
        rewards: [B].
        dones: [B], 1 where the episode terminated.
        positive_weight: See `termination_loss`.

    Returns:
        Scalars `total`, `state`, `reward`, `done`; total = state + 0.5 reward + 0.1 done.

    Raises:
        ValueError: Shapes differ.
    """
    predicted_state, predicted_reward, logit = model.predict(states, actions)
    # A feature that may not change has scale 0 and no error to learn from.
    scale = torch.where(model.delta_scale > 0, model.delta_scale, 1.0)
    state = state_prediction_loss(predicted_state / scale, next_states / scale)
    reward = reward_prediction_loss(
        (predicted_reward.squeeze(-1) - model.reward_mean) / model.reward_scale,
        (rewards - model.reward_mean) / model.reward_scale,
    )
    done = termination_loss(logit.squeeze(-1), dones.to(logit.dtype), positive_weight)
    total = state + REWARD_WEIGHT * reward + DONE_WEIGHT * done
    return {"total": total, "state": state, "reward": reward, "done": done}


def _check_shapes(predicted: Tensor, target: Tensor) -> None:
    if predicted.shape != target.shape:
        raise ValueError(
            f"predicted and target shapes differ: {tuple(predicted.shape)} and "
            f"{tuple(target.shape)}"
        )


@dataclass(frozen=True)
class WindowBatch:
    """B recorded windows of H steps, as tensors; see `training.dataset.windows.Windows`.

    Attributes:
        states: [B, H+1, S].
        actions: [B, H, A].
        rewards: [B, H].
        terminated: [B, H], bool.
        valid: [B, H], bool.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    valid: Tensor


def rollout_loss(
    model: WorldModel,
    batch: WindowBatch,
    change_scale: Tensor,
    *,
    positive_weight: float = 1.0,
    done_weight: float = ROLLOUT_DONE_WEIGHT,
    reward_shift: Tensor | None = None,
    step: Step | None = None,
) -> dict[str, Tensor]:
    """Return the losses of H steps rolled out from each window's first state.

    The state error of step k is measured in standard deviations of the change over k steps, so
    that every step and feature weighs alike, and grows linearly beyond `TAIL`: features that jump
    (a lane offset at a lane change) must not drown the others. A step that terminated teaches no
    state: the simulator moves a colliding car by an impulse.

    Args:
        model: The model.
        batch: Recorded windows.
        change_scale: [H, S], positive.
        positive_weight: See `termination_loss`.
        done_weight: Weight of the termination loss in the total.
        reward_shift: [B], in standard deviations, by which all rewards of a window are taught to
            differ from the recorded ones; 0 without it.
        step: The model's `predict`, or what computes the same faster.

    Returns:
        Scalars `total`, `state`, `reward`, `done`.
    """
    states, rewards, logits = unroll(step or model.predict, batch.states[:, 0], batch.actions)
    error = (states[:, 1:] - batch.states[:, 1:]) / change_scale
    # Twice the Huber loss is the squared error up to the tail.
    per_step = 2 * functional.huber_loss(
        error, torch.zeros_like(error), delta=TAIL, reduction="none"
    )
    teaches_state = batch.valid & ~batch.terminated
    state = _masked_mean(per_step.mean(-1), teaches_state)
    valid = batch.valid
    taught = (batch.rewards - model.reward_mean) / model.reward_scale
    if reward_shift is not None:
        taught = taught + reward_shift[:, None]
    reward = reward_prediction_loss(
        ((rewards - model.reward_mean) / model.reward_scale)[valid], taught[valid]
    )
    done = termination_loss(
        logits[valid], batch.terminated[valid].to(logits.dtype), positive_weight
    )
    total = state + REWARD_WEIGHT * reward + done_weight * done
    return {"total": total, "state": state, "reward": reward, "done": done}


def outlier_loss(
    model: WorldModel,
    states: Tensor,
    actions: Tensor,
    reward_sd: float,
    *,
    step: Step | None = None,
) -> Tensor:
    """Return how far the rewards of wrong states are from what a member is taught for them.

    Args:
        model: A member of an ensemble.
        states: [B, S], wrong ones.
        actions: [B, A].
        reward_sd: The member's own reward, in standard deviations from the mean.
        step: The model's `predict`, or what computes the same faster.
    """
    _, rewards, _ = (step or model.predict)(states, actions)
    normalised = (rewards.squeeze(-1) - model.reward_mean) / model.reward_scale
    return reward_prediction_loss(normalised, torch.full_like(normalised, reward_sd))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp_min(1)
