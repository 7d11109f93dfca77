"""The specification's tests of the model in our words, and those of the rulings on it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.highway import highway_spec
from models.network.rows import ROW_TILE, pad_rows
from models.network.unroll import unroll
from models.network.world_model import NORMALISERS, WorldModel
from models.road_users import road_users_spec


@pytest.fixture(params=["plain", "geometry", "kinematics"])
def model(request: pytest.FixtureRequest) -> WorldModel:
    torch.manual_seed(0)
    spec = None if request.param == "plain" else highway_spec()
    return WorldModel(
        state_dim=34, action_dim=3, spec=spec, kinematics=request.param == "kinematics"
    ).eval()


def real_looking_states(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, 34, generator=generator)
    states[:, 6::7] = (torch.rand(rows, 4, generator=generator) > 0.3).float()
    return states


def test_forward_has_the_specified_shapes(model: WorldModel) -> None:
    next_state, reward, done = model(torch.randn(32, 34), torch.randn(32, 3))

    assert next_state.shape == (32, 34)
    assert reward.shape == (32, 1)
    assert done.shape == (32, 1)
    assert ((done >= 0) & (done <= 1)).all()


def test_rollout_has_the_specified_shapes(model: WorldModel) -> None:
    start = torch.randn(16, 34)
    states, rewards, dones = model.rollout(start, torch.randn(16, 10, 3))

    assert states.shape == (16, 11, 34)
    assert rewards.shape == (16, 10)
    assert dones.shape == (16, 10)
    assert torch.equal(states[:, 0], start)


def test_forward_is_deterministic_in_every_output(model: WorldModel) -> None:
    state, action = torch.randn(1, 34), torch.randn(1, 3)

    for first, second in zip(model(state, action), model(state, action), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13, 31, 64, 100])
def test_a_row_has_the_same_bits_whatever_shares_its_batch(model: WorldModel, rows: int) -> None:
    states, actions = real_looking_states(128), torch.rand(128, 16, 3)
    full = model.rollout(states, actions)
    first = 128 - rows

    part = model.rollout(states[first:], actions[first:])

    for whole, some in zip(full, part, strict=True):
        assert torch.equal(whole[first:], some)


@pytest.mark.parametrize("horizon", [1, 5, 15])
def test_a_rollouts_prefix_equals_the_shorter_rollout(model: WorldModel, horizon: int) -> None:
    states, actions = real_looking_states(7), torch.rand(7, 16, 3)
    full_states, full_rewards, full_dones = model.rollout(states, actions)

    short_states, short_rewards, short_dones = model.rollout(states, actions[:, :horizon])

    assert torch.equal(full_states[:, : horizon + 1], short_states)
    assert torch.equal(full_rewards[:, :horizon], short_rewards)
    assert torch.equal(full_dones[:, :horizon], short_dones)


def test_rollout_of_one_step_equals_forward(model: WorldModel) -> None:
    states, action = real_looking_states(5), torch.rand(5, 3)
    next_state, reward, done = model(states, action)

    rolled, rewards, dones = model.rollout(states, action.unsqueeze(1))

    assert torch.equal(rolled[:, 1], next_state)
    assert torch.equal(rewards, reward)
    assert torch.equal(dones, done)


def test_gradients_flow_to_state_and_actions(model: WorldModel) -> None:
    state = real_looking_states(8).requires_grad_()
    actions = torch.rand(8, 4, 3, requires_grad=True)

    states, rewards, dones = model.rollout(state, actions)
    (states.sum() + rewards.sum() + dones.sum()).backward()  # type: ignore[no-untyped-call]

    for gradient in (state.grad, actions.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0


def test_parameters_fit_the_budget(model: WorldModel) -> None:
    count = sum(p.numel() for p in model.parameters())

    assert count < 1_000_000
    assert count * 4 * 2 / 1e6 < 100  # weights and gradients in MB


def test_default_plain_model_has_the_known_parameter_count() -> None:
    assert sum(p.numel() for p in WorldModel().parameters()) == 206_116


def test_rollout_calls_the_module_so_that_hooks_see_every_step(model: WorldModel) -> None:
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))

    model.rollout(torch.zeros(2, 34), torch.zeros(2, 6, 3))

    assert len(calls) == 6


def test_rollout_refuses_horizon_zero(model: WorldModel) -> None:
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        model.rollout(torch.zeros(2, 34), torch.zeros(2, 0, 3))


@pytest.mark.parametrize("latent", [31, 129, 256])
def test_a_latent_outside_the_bounds_is_refused_unless_opted_out(latent: int) -> None:
    with pytest.raises(ValueError, match=rf"\[32, 128\], got {latent}"):
        WorldModel(hidden_dims=(64, latent))

    assert WorldModel(hidden_dims=(64, latent), check_latent=False).latent_dim == latent


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="'elu', 'relu', 'tanh'"):
        WorldModel(activation="gelu")


def test_empty_hidden_dims_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_dims"):
        WorldModel(hidden_dims=())


def test_dims_that_differ_from_the_spec_are_refused() -> None:
    with pytest.raises(ValueError, match="5/2 differ from spec 'highway' dims 34/3"):
        WorldModel(5, 2, spec=highway_spec())


def test_normalisers_are_identity_by_default_and_part_of_the_state_dict() -> None:
    model = WorldModel()

    assert set(NORMALISERS) <= model.state_dict().keys()
    assert torch.equal(model.state_mean, torch.zeros(34))
    assert torch.equal(model.delta_scale, torch.ones(34))


def test_normalisers_make_the_model_equivariant_to_units() -> None:
    """The same weights give the same physics whether lengths are in metres or centimetres."""
    model = WorldModel(4, 2, (32,)).double()
    state, action = torch.randn(8, 4).double(), torch.randn(8, 2).double()
    next_state, reward, done = model(state, action)

    model.set_normalisers(
        state_mean=torch.zeros(4),
        state_scale=torch.full((4,), 100.0),
        delta_scale=torch.full((4,), 100.0),
        reward_mean=1.0,
        reward_scale=2.0,
    )
    scaled = model(state * 100, action)

    assert torch.allclose(scaled[0], next_state * 100)
    assert torch.allclose(scaled[1], 1 + 2 * reward)
    assert torch.allclose(scaled[2], done)


def test_calibration_shifts_hazard_odds() -> None:
    model = WorldModel()
    state, action = torch.randn(8, 34), torch.randn(8, 3)
    before = model(state, action)[2]

    model.set_calibration(done_scale=1.0, done_shift=-torch.tensor(10.0).log().item())
    after = model(state, action)[2]

    assert torch.allclose(after / (1 - after), before / (1 - before) / 10, rtol=1e-4)


def test_features_of_absent_neighbours_and_presences_never_change() -> None:
    model = WorldModel(spec=highway_spec())
    states = real_looking_states(64)
    absent = states[:, 6::7] == 0

    rolled, _, _ = model.rollout(states, torch.rand(64, 16, 3))

    slots = rolled[:, :, 6:].reshape(64, 17, 4, 7)
    start = slots[:, :1].expand_as(slots)
    still = absent[:, None, :, None].expand_as(slots)
    assert torch.equal(slots[still], start[still])
    assert torch.equal(slots[..., 0], start[..., 0])
    assert not torch.equal(slots, start)


def test_sizes_and_features_of_who_has_no_length_never_change() -> None:
    spec = road_users_spec()
    model = WorldModel(spec=spec, kinematics=True)
    states = torch.rand(64, 34)
    of_second = [i for i, x in enumerate(spec.state) if x.name.startswith("neighbour_2")]
    gone = torch.arange(64) % 2 == 0
    states[gone, spec.state_index("neighbour_2_length")] = 0.0
    sizes = [i for i, x in enumerate(spec.state) if x.name.endswith(("length", "width"))]

    rolled, _, _ = model.rollout(states, torch.rand(64, 16, 3))

    assert len(sizes) == 10
    start = states[:, None].expand_as(rolled)
    assert torch.equal(rolled[..., sizes], start[..., sizes])
    assert torch.equal(rolled[gone][..., of_second], start[gone][..., of_second])
    moves = spec.state_index("neighbour_2_dx")
    assert (rolled[~gone, -1, moves] != states[~gone, moves]).all()


def test_absolute_models_decode_the_state_itself() -> None:
    model = WorldModel(residual=False)
    for parameter in model.decoder.parameters():
        torch.nn.init.zeros_(parameter)

    next_state, _, _ = model(torch.randn(3, 34), torch.randn(3, 3))

    assert torch.equal(next_state, torch.zeros(3, 34))


def test_pad_rows_appends_zero_rows_up_to_a_tile() -> None:
    padded = pad_rows(torch.ones(3, 5))

    assert padded.shape == (ROW_TILE, 5)
    assert torch.equal(padded[3:], torch.zeros(ROW_TILE - 3, 5))
    assert pad_rows(padded) is padded


def test_unroll_feeds_each_prediction_back() -> None:
    def step(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return state + action, state[..., :1], action[..., :1]

    states, firsts, actions = unroll(step, torch.zeros(1, 2), torch.ones(1, 3, 2))

    assert states[0, :, 0].tolist() == [0, 1, 2, 3]
    assert firsts[0].tolist() == [0, 1, 2]
    assert actions[0].tolist() == [1, 1, 1]
