from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from models.network.world_model import WorldModel
from tests.test_models.test_network.test_world_model import real_looking_states


@pytest.fixture
def ensemble() -> WorldModelEnsemble:
    torch.manual_seed(0)
    return WorldModelEnsemble(5, spec=highway_spec()).eval().requires_grad_(False)


def test_forward_returns_member_means_and_uncorrected_spread(ensemble: WorldModelEnsemble) -> None:
    states, actions = real_looking_states(16), torch.rand(16, 3)
    each = [member(states, actions) for member in ensemble.members]

    next_state, reward, done, disagreement = ensemble(states, actions)

    for got, part in ((next_state, 0), (reward, 1), (done, 2)):
        expected = torch.stack([x[part] for x in each]).mean(0)
        assert torch.allclose(got, expected, atol=1e-5)
    spread = torch.stack([x[0] for x in each]).std(0, correction=0)
    assert torch.allclose(disagreement, spread, atol=1e-4)


def test_rollout_rolls_members_out_on_their_own(ensemble: WorldModelEnsemble) -> None:
    states, actions = real_looking_states(16), torch.rand(16, 8, 3)
    each = [member.rollout(states, actions) for member in ensemble.members]

    rollout = ensemble.rollout(states, actions)

    scale = 1 + torch.stack([x[0] for x in each]).abs().amax().item()
    assert torch.allclose(
        rollout.states, torch.stack([x[0] for x in each]).mean(0), atol=1e-5 * scale
    )
    assert torch.allclose(
        rollout.rewards, torch.stack([x[1] for x in each]).mean(0), atol=1e-5 * scale
    )


def test_dones_are_the_hazard_of_mean_survival(ensemble: WorldModelEnsemble) -> None:
    states, actions = real_looking_states(16), torch.rand(16, 8, 3)
    each = [member.rollout(states, actions)[2].double() for member in ensemble.members]
    mean_survival = torch.stack([torch.cumprod(1 - dones, -1) for dones in each]).mean(0)

    dones = ensemble.rollout(states, actions).dones.double()

    assert torch.allclose(torch.cumprod(1 - dones, -1), mean_survival, atol=1e-5)


def test_certain_ends_give_finite_hazards(ensemble: WorldModelEnsemble) -> None:
    for member in ensemble.members:
        member.set_calibration(done_scale=1.0, done_shift=300.0)

    dones = ensemble.rollout(real_looking_states(8), torch.rand(8, 16, 3)).dones

    assert torch.equal(dones, torch.ones_like(dones))


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [1, 3, 8, 17, 64, 130])
def test_a_row_has_the_same_bits_whatever_shares_its_batch(
    ensemble: WorldModelEnsemble, rows: int
) -> None:
    states, actions = real_looking_states(160), torch.rand(160, 16, 3)
    full = ensemble.rollout(states, actions)
    first = 160 - rows

    part = ensemble.rollout(states[first:], actions[first:])

    for name in ("states", "rewards", "dones", "disagreement", "uncertainty"):
        assert torch.equal(getattr(full, name)[first:], getattr(part, name)), name


@pytest.mark.parametrize("state_dim", [1, 2, 3, 5, 7, 10, 34])
@pytest.mark.parametrize("hidden_dims", [(32,), (50, 33)], ids=str)
def test_rows_keep_their_bits_in_models_of_any_dims(
    state_dim: int, hidden_dims: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    ensemble = WorldModelEnsemble(
        3, state_dim=state_dim, action_dim=2, hidden_dims=hidden_dims
    ).eval()
    states, actions = torch.randn(48, state_dim), torch.rand(48, 4, 2)
    full = ensemble.rollout(states, actions)

    for first, rows in ((0, 1), (3, 8), (5, 17), (20, 24)):
        part = ensemble.rollout(states[first : first + rows], actions[first : first + rows])
        for name in ("states", "rewards", "dones", "uncertainty"):
            whole = getattr(full, name)[first : first + rows]
            assert torch.equal(whole, getattr(part, name)), (name, first, rows)


def test_uncertainty_grows_with_the_horizon(ensemble: WorldModelEnsemble) -> None:
    states, actions = real_looking_states(8), torch.rand(8, 16, 3)
    rollout = ensemble.rollout(states, actions)

    assert (rollout.uncertainty >= ensemble.rollout(states, actions[:, :8]).uncertainty).all()
    assert (rollout.uncertainty > 0).all()


def test_disagreement_is_about_states_and_uncertainty_about_rewards_too(
    ensemble: WorldModelEnsemble,
) -> None:
    states, actions = real_looking_states(8), torch.rand(8, 3, 3)
    predicted, rewards, _ = ensemble.rollout_members(states, actions)
    member = next(iter(ensemble.members))
    variance = (predicted[:, :, 1:] / member.state_scale).var(0, correction=0)
    of_rewards = (rewards / member.reward_scale).var(0, correction=0)
    both = ((variance.sum(-1) + of_rewards) / (variance.shape[-1] + 1)).sqrt()
    rollout = ensemble.rollout(states, actions)

    assert torch.allclose(rollout.disagreement, variance.mean(-1).sqrt(), rtol=1e-3)
    assert torch.allclose(rollout.uncertainty, both.amax(-1), rtol=1e-3)


def test_one_member_does_not_disagree_with_itself() -> None:
    ensemble = WorldModelEnsemble(1)
    rollout = ensemble.rollout(torch.randn(4, 34), torch.rand(4, 5, 3))

    assert torch.equal(rollout.uncertainty, torch.zeros(4))
    assert torch.equal(ensemble(torch.randn(4, 34), torch.rand(4, 3))[3], torch.zeros(4, 34))


def test_changed_weights_are_seen_by_the_next_rollout(ensemble: WorldModelEnsemble) -> None:
    states, actions = real_looking_states(4), torch.rand(4, 2, 3)
    before = ensemble.rollout(states, actions)

    next(ensemble.members).decoder.bias.add_(1.0)

    assert not torch.equal(ensemble.rollout(states, actions).states, before.states)


def test_gradients_flow_to_states_and_actions(ensemble: WorldModelEnsemble) -> None:
    actions = torch.rand(4, 3, 3, requires_grad=True)

    ensemble.rollout(real_looking_states(4), actions).rewards.sum().backward()  # type: ignore[no-untyped-call]

    assert actions.grad is not None
    assert actions.grad.abs().sum() > 0


def test_gradients_flow_after_predictions_in_inference_mode() -> None:
    ensemble = WorldModelEnsemble(num_models=2)
    with torch.inference_mode():
        ensemble.rollout(torch.randn(4, 34), torch.rand(4, 2, 3))
    actions = torch.rand(4, 2, 3, requires_grad=True)

    ensemble.rollout(torch.randn(4, 34), actions).states.sum().backward()  # type: ignore[no-untyped-call]

    assert actions.grad is not None
    assert actions.grad.abs().sum() > 0


@pytest.mark.parametrize("members", [1, 3])
def test_the_first_members_answer_with_the_weights_of_all(
    ensemble: WorldModelEnsemble, members: int
) -> None:
    states, actions = real_looking_states(16), torch.rand(16, 4, 3)
    alone = WorldModelEnsemble.from_members(list(ensemble.members)[:members])

    seen, truth = ensemble.rollout(states, actions, members=members), alone.rollout(states, actions)

    for name in ("states", "rewards", "dones", "disagreement", "uncertainty"):
        assert torch.equal(getattr(seen, name), getattr(truth, name)), name
    of_all = dict(ensemble.stacked().named_buffers())
    for name, tensor in ensemble.step(members).stacked.named_buffers():
        assert tensor.data_ptr() == of_all[name].data_ptr(), name


def test_the_state_dict_holds_each_member_once(ensemble: WorldModelEnsemble) -> None:
    ensemble.rollout(torch.zeros(1, 34), torch.zeros(1, 1, 3))

    names = set(ensemble.state_dict())

    assert names == {
        f"models.{i}.{n}" for i in range(5) for n in next(ensemble.members).state_dict()
    }


def test_no_members_are_refused() -> None:
    with pytest.raises(ValueError, match="num_models must be at least 1"):
        WorldModelEnsemble(0)
    with pytest.raises(ValueError, match="at least one member"):
        WorldModelEnsemble.from_members([])


def test_members_may_come_ready_made() -> None:
    members = [WorldModel(5, 2, (32,)), WorldModel(5, 2, (32,))]

    rollout = WorldModelEnsemble.from_members(members).rollout(
        torch.randn(3, 5), torch.rand(3, 4, 2)
    )

    assert rollout.states.shape == (3, 5, 5)
