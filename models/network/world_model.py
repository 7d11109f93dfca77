"""The world model: a deterministic MLP that predicts a car's next state, reward and end."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.network.columns import StateColumns, open_gates
from models.network.geometry import GeometryMap
from models.network.kinematics import KinematicStep
from models.network.rows import LANES, ROW_TILE, PaddedActivation, lanewise, pad_rows
from models.network.unroll import unroll
from models.spec import Spec

MIN_LATENT_DIM = 32
MAX_LATENT_DIM = 128
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "elu": nn.ELU, "tanh": nn.Tanh}

NORMALISERS = (
    "state_mean",
    "state_scale",
    "delta_scale",
    "reward_mean",
    "reward_scale",
    "done_scale",
    "done_shift",
)
"""Names of the buffers that a `state_dict` of the specification's own class lacks."""


class WorldModel(nn.Module):
    """Predict next state, reward and termination from state and action.

    encoder: state -> latent; dynamics: latent, action -> next latent; decoder: next latent ->
    state change; reward head: latent, action -> reward; done head: next latent (and, with a
    geometry, the predicted state's near-range geometry) -> hazard logit.

    Normalisers are buffers, identity by default: states enter as `(state - state_mean) /
    state_scale`, the decoder's output leaves as `base + delta_scale * output` (base: the state, or
    with `kinematics` the state after an analytic step), rewards as
    `reward_mean + reward_scale * output`, hazards as
    `sigmoid(done_scale * logit + done_shift)`.

    Args:
        state_dim: S.
        action_dim: A.
        hidden_dims: Widths of encoder and dynamics; the last one is the latent's.
        activation: "relu", "elu" or "tanh".
        spec: Meaning of the features. If it names a geometry, the done head reads it, and
            features of absent neighbours, presences and sizes stay as they are.
        residual: Whether the decoder predicts the change of state rather than the state.
        kinematics: Whether the decoder predicts the change from an analytic step instead, see
            `KinematicStep`; needs a spec that names kinematics and a geometry.
        check_latent: Whether a latent outside the allowed bounds is refused. Only weights
            trained elsewhere have reason to opt out.

    Raises:
        ValueError: Dims do not fit the spec, the activation is unknown, or the latent is
            outside [`MIN_LATENT_DIM`, `MAX_LATENT_DIM`].
    """

    def __init__(
        self,
        state_dim: int = 34,
        action_dim: int = 3,
        hidden_dims: Sequence[int] = (256, 256, 64),
        activation: str = "elu",
        *,
        spec: Spec | None = None,
        residual: bool = True,
        kinematics: bool = False,
        check_latent: bool = True,
    ) -> None:
        super().__init__()
        _check_arguments(state_dim, action_dim, hidden_dims, activation, spec, check_latent)
        if kinematics and (spec is None or not residual):
            raise ValueError("kinematics needs a spec that names them, and residual=True")
        self.state_dim = state_dim
        self.action_dim = action_dim
        self.hidden_dims = tuple(hidden_dims)
        self.latent_dim = self.hidden_dims[-1]
        self.activation = activation
        self.residual = residual
        has_geometry = spec is not None and spec.geometry is not None
        self.geometry = GeometryMap(spec) if spec is not None and has_geometry else None
        self.kinematics = KinematicStep(spec) if spec is not None and kinematics else None
        self.columns = StateColumns.of(spec) if spec is not None else None

        act = ACTIVATIONS[activation]
        latent, with_action = self.latent_dim, self.latent_dim + action_dim
        self.encoder = _mlp(state_dim, self.hidden_dims, act)
        self.dynamics = _mlp(with_action, self.hidden_dims, act)
        self.decoder = nn.Linear(latent, state_dim)
        self.reward_head = nn.Sequential(nn.Linear(with_action, 128), act(), nn.Linear(128, 1))
        done_inputs = latent
        if self.geometry is not None:
            done_inputs += state_dim + self.geometry.feature_count
        self.done_head = nn.Sequential(nn.Linear(done_inputs, 64), act(), nn.Linear(64, 1))
        self._register_normalisers(spec)
        self._init_weights()

    state_mean: Tensor
    state_scale: Tensor
    delta_scale: Tensor
    reward_mean: Tensor
    reward_scale: Tensor
    done_scale: Tensor
    done_shift: Tensor
    gate_always: Tensor
    gate_if_present: Tensor
    gate_index: Tensor
    gate_is_length: Tensor

    def _register_normalisers(self, spec: Spec | None) -> None:
        self.register_buffer("state_mean", torch.zeros(self.state_dim))
        self.register_buffer("state_scale", torch.ones(self.state_dim))
        self.register_buffer("delta_scale", torch.ones(self.state_dim))
        self.register_buffer("reward_mean", torch.zeros(1))
        self.register_buffer("reward_scale", torch.ones(1))
        self.register_buffer("done_scale", torch.ones(1))
        self.register_buffer("done_shift", torch.zeros(1))
        # A feature may change always, never (a presence, a size), or if its neighbour is there.
        always = torch.ones(self.state_dim)
        if_present = torch.zeros(self.state_dim)
        gate_index = torch.zeros(self.state_dim, dtype=torch.int64)
        is_length = torch.zeros(self.state_dim, dtype=torch.bool)
        if spec is not None and spec.geometry is not None:
            always[[spec.state_index(name) for name in spec.geometry.size_features]] = 0.0
            for slot in spec.geometry.slots:
                constant = [spec.state_index(name) for name in slot.constants]
                columns = [spec.state_index(name) for name in slot.features]
                always[[*constant, *columns]] = 0.0
                if_present[columns] = 1.0
                if_present[constant] = 0.0
                gate_index[columns] = spec.state_index(slot.gate)
                is_length[columns] = not slot.has_presence
        self.has_length_gates = bool(is_length.any())
        self.register_buffer("gate_always", always, persistent=False)
        self.register_buffer("gate_if_present", if_present, persistent=False)
        self.register_buffer("gate_index", gate_index, persistent=False)
        self.register_buffer("gate_is_length", is_length, persistent=False)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, gain=1.0)
                nn.init.zeros_(module.bias)

    def set_normalisers(
        self,
        *,
        state_mean: Tensor,
        state_scale: Tensor,
        delta_scale: Tensor,
        reward_mean: float,
        reward_scale: float,
    ) -> None:
        """Set input and target normalisers, in physical units.

        Args:
            state_mean: [S].
            state_scale: [S], positive.
            delta_scale: [S], size of a one-step change; 0 makes a feature constant.
            reward_mean: Mean reward.
            reward_scale: Standard deviation of rewards, positive.
        """
        self.state_mean.copy_(state_mean)
        self.state_scale.copy_(state_scale)
        self.delta_scale.copy_(delta_scale)
        self.reward_mean.fill_(reward_mean)
        self.reward_scale.fill_(reward_scale)

    def set_calibration(self, *, done_scale: float, done_shift: float) -> None:
        """Set the affine map of hazard logits; `done_shift=-ln w` undoes a positive weight w."""
        self.done_scale.fill_(done_scale)
        self.done_shift.fill_(done_shift)

    def predict(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict one step, the end as a logit before calibration: what training needs.

        Leading dims broadcast; nothing is padded.

        Args:
            state: [..., B, S].
            action: [..., B, A].

        Returns:
            next_state [..., B, S], reward [..., B, 1], done logit [..., B, 1].
        """
        latent = self.encoder((state - self.state_mean) / self.state_scale)
        latent_action = torch.cat([latent, action], dim=-1)
        next_latent = self.dynamics(latent_action)
        decoded = self.decoder(next_latent)
        next_state = self.base_step(state, action)
        next_state = next_state + self._gated(state, self.delta_scale * decoded)
        if not self.residual:
            next_state = decoded
        reward = self.reward_mean + self.reward_scale * self.reward_head(latent_action)
        done_input = next_latent
        if self.geometry is not None:
            normalised = (next_state - self.state_mean) / self.state_scale
            done_input = torch.cat([next_latent, normalised, self.geometry(next_state)], dim=-1)
        return next_state, reward, self.done_head(done_input)

    def base_step(self, state: Tensor, action: Tensor) -> Tensor:
        """Return what the decoder's change is added to: the state, or its analytic next one.

        Args:
            state: [..., B, S].
            action: [..., B, A].
        """
        return state if self.kinematics is None else self.kinematics(state, action)

    def _gated(self, state: Tensor, delta: Tensor) -> Tensor:
        """Hold presences, sizes, and all features of neighbours that are not there constant."""
        if self.geometry is None:
            return delta
        there = state.index_select(-1, self.gate_index)
        if self.has_length_gates:
            there = open_gates(there, self.gate_is_length)
        return delta * (self.gate_always + self.gate_if_present * there)

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict one step.

        A row's bits do not depend on how many rows there are or which they are.

        Args:
            state: [B, S], physical units.
            action: [B, A].

        Returns:
            next_state [B, S]; reward [B, 1]; done [B, 1], the probability that the episode
            ends at this step if it has not ended before.
        """
        rows = state.shape[-2]
        next_state, reward, logit = self.predict(pad_rows(state), pad_rows(action))
        done = lanewise(torch.sigmoid, self.done_scale * logit + self.done_shift)
        return next_state[..., :rows, :], reward[..., :rows, :], done[..., :rows, :]

    def rollout(self, initial_state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict H steps, each from the last prediction; rows after a predicted end go on.

        Args:
            initial_state: [B, S].
            actions: [B, H, A], H >= 1.

        Returns:
            states [B, H+1, S], the start included; rewards [B, H]; dones [B, H].

        Raises:
            ValueError: H is 0.
        """
        rows = initial_state.shape[-2]
        initial_state, actions = pad_rows(initial_state), pad_rows(actions, dim=-3)
        states, rewards, dones = unroll(self, initial_state, actions)
        return states[..., :rows, :, :], rewards[..., :rows, :], dones[..., :rows, :]


def _mlp(inputs: int, widths: Sequence[int], act: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        # A tile of rows must fill whole vectors, or its last elements are rounded otherwise.
        is_whole = ROW_TILE * width % LANES == 0
        layers += [nn.Linear(inputs, width), act() if is_whole else PaddedActivation(act())]
        inputs = width
    return nn.Sequential(*layers)


def _check_arguments(
    state_dim: int,
    action_dim: int,
    hidden_dims: Sequence[int],
    activation: str,
    spec: Spec | None,
    check_latent: bool,
) -> None:
    if spec is not None and (spec.state_dim, spec.action_dim) != (state_dim, action_dim):
        raise ValueError(
            f"model dims {state_dim}/{action_dim} differ from spec {spec.name!r} dims "
            f"{spec.state_dim}/{spec.action_dim}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    if not hidden_dims or min(hidden_dims) < 1 or math.inf in hidden_dims:
        raise ValueError(f"hidden_dims must be positive widths, got {tuple(hidden_dims)}")
    latent = hidden_dims[-1]
    if check_latent and not MIN_LATENT_DIM <= latent <= MAX_LATENT_DIM:
        raise ValueError(
            f"latent dim (last of hidden_dims) must be in [{MIN_LATENT_DIM}, {MAX_LATENT_DIM}], "
            f"got {latent}; pass check_latent=False for weights trained elsewhere"
        )
