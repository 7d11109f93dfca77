from __future__ import annotations

import math

import pytest
import torch

from models.network.world_model import WorldModel
from training.fitting.losses import (
    TAIL,
    WindowBatch,
    reward_prediction_loss,
    rollout_loss,
    state_prediction_loss,
    termination_loss,
    world_model_loss,
)


def test_state_loss_is_the_mean_squared_error() -> None:
    loss = state_prediction_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))

    assert loss.item() == pytest.approx((1 + 4) / 2)


def test_reward_loss_is_huber_with_delta_one() -> None:
    loss = reward_prediction_loss(torch.tensor([0.5, 3.0]), torch.zeros(2))

    assert loss.item() == pytest.approx((0.5 * 0.25 + (3.0 - 0.5)) / 2)


def test_termination_loss_weighs_positives_only() -> None:
    logits = torch.zeros(2)

    assert termination_loss(logits, torch.tensor([1.0, 1.0]), 10.0).item() == pytest.approx(
        10 * math.log(2)
    )
    assert termination_loss(logits, torch.tensor([0.0, 0.0]), 10.0).item() == pytest.approx(
        math.log(2)
    )


def test_termination_loss_is_finite_for_sure_and_wrong_logits() -> None:
    assert torch.isfinite(termination_loss(torch.tensor([500.0, -500.0]), torch.tensor([0.0, 1.0])))


@pytest.mark.parametrize("loss", [state_prediction_loss, reward_prediction_loss, termination_loss])
def test_losses_refuse_shapes_that_would_broadcast(loss: object) -> None:
    assert callable(loss)
    with pytest.raises(ValueError, match=r"\(1,\) and \(1, 1\)"):
        loss(torch.zeros(1), torch.zeros(1, 1))


def one_step_batch(rows: int) -> tuple[torch.Tensor, ...]:
    return (
        torch.randn(rows, 34),
        torch.rand(rows, 3),
        torch.randn(rows, 34),
        torch.randn(rows),
        torch.zeros(rows),
    )


@pytest.mark.parametrize("rows", [1, 7])
def test_combined_loss_is_the_specified_weighted_sum(rows: int) -> None:
    losses = world_model_loss(WorldModel(), *one_step_batch(rows))

    expected = losses["state"] + 0.5 * losses["reward"] + 0.1 * losses["done"]
    assert torch.allclose(losses["total"], expected)
    assert all(loss.dim() == 0 for loss in losses.values())


def test_training_on_the_combined_loss_lowers_it() -> None:
    torch.manual_seed(0)
    model, batch = WorldModel(), one_step_batch(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    first = world_model_loss(model, *batch)["total"].item()

    for _ in range(30):
        optimizer.zero_grad()
        world_model_loss(model, *batch)["total"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    assert world_model_loss(model, *batch)["total"].item() < 0.7 * first


def window_batch(model: WorldModel, rows: int = 8, horizon: int = 4) -> WindowBatch:
    """Windows that the model itself predicts exactly."""
    start, actions = torch.randn(rows, 34), torch.rand(rows, horizon, 3)
    with torch.no_grad():
        states, rewards, _ = model.rollout(start, actions)
    return WindowBatch(
        states=states,
        actions=actions,
        rewards=rewards,
        terminated=torch.zeros(rows, horizon, dtype=torch.bool),
        valid=torch.ones(rows, horizon, dtype=torch.bool),
    )


def test_rollout_loss_of_a_perfect_prediction_is_its_termination_part() -> None:
    model = WorldModel()
    losses = rollout_loss(model, window_batch(model), torch.ones(4, 34))

    assert losses["state"].item() == pytest.approx(0, abs=1e-8)
    assert losses["reward"].item() == pytest.approx(0, abs=1e-8)
    assert losses["total"].item() == pytest.approx(losses["done"].item(), abs=1e-6)


def test_rewards_are_taught_shifted_by_so_many_standard_deviations() -> None:
    model = WorldModel()
    model.reward_mean.fill_(3.0)
    model.reward_scale.fill_(4.0)
    batch = window_batch(model)
    shift = torch.linspace(-0.5, 0.5, len(batch.states))

    losses = rollout_loss(model, batch, torch.ones(4, 34), reward_shift=shift)

    assert losses["reward"].item() == pytest.approx((shift**2).mean().item() / 2, rel=1e-4)


def test_rollout_loss_counts_big_errors_linearly() -> None:
    model = WorldModel()
    batch = window_batch(model, rows=1, horizon=1)
    batch.states[:, 1, 0] += 100.0

    loss = rollout_loss(model, batch, torch.ones(1, 34))["state"].item()

    assert loss == pytest.approx((2 * TAIL * 100 - TAIL**2) / 34, rel=1e-4)


def test_rollout_loss_learns_no_state_from_terminal_or_unrecorded_steps() -> None:
    model = WorldModel()
    batch = window_batch(model)
    batch.terminated[:, 2] = True
    batch.valid[:, 3] = False
    batch.states[:, 3:] += 1000.0
    batch.rewards[:, 3] += 1000.0

    losses = rollout_loss(model, batch, torch.ones(4, 34))

    assert losses["state"].item() == pytest.approx(0, abs=1e-8)
    assert losses["reward"].item() == pytest.approx(0, abs=1e-8)


def test_rollout_loss_without_a_recorded_state_step_is_finite() -> None:
    model = WorldModel()
    batch = window_batch(model, horizon=1)
    batch.terminated[:] = True

    assert torch.isfinite(rollout_loss(model, batch, torch.ones(1, 34))["total"])
