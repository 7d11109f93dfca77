"""Several world models together: mean prediction, and their disagreement as uncertainty."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.network.rows import lanewise, pad_rows
from models.network.unroll import unroll
from models.network.world_model import WorldModel

_MIN_COLUMNS = 16


@dataclass(frozen=True)
class EnsembleRollout:
    """What an ensemble predicts for B rows over H steps.

    Attributes:
        states: [B, H+1, S], mean over members, the start included.
        rewards: [B, H], mean over members.
        dones: [B, H], hazard of the members' mean survival.
        disagreement: [B, H], spread of the members' states after each step, in standard
            deviations of the training states (root mean square over features): it ranks errors.
        uncertainty: [B], largest spread along the sequence of states and reward together. Members
            are taught different rewards for wrong states (`training.fitting.outliers`), so it
            shows those.
    """

    states: Tensor
    rewards: Tensor
    dones: Tensor
    disagreement: Tensor
    uncertainty: Tensor


class WorldModelEnsemble(nn.Module):
    """E world models, each rolling out on its own; evaluated together by batched products.

    Gradients flow to states and actions. They do not flow to weights: members are trained one
    by one.

    Args:
        num_models: E.
        **model_kwargs: Arguments of every `WorldModel`.

    Raises:
        ValueError: `num_models` is below 1, or a member's arguments are invalid.
    """

    def __init__(self, num_models: int = 5, **model_kwargs: Any) -> None:
        super().__init__()
        if num_models < 1:
            raise ValueError(f"num_models must be at least 1, got {num_models}")
        self.models = nn.ModuleList(WorldModel(**model_kwargs) for _ in range(num_models))
        # Rebuilt by whoever evaluates, whenever the members' weights have changed. Outside the
        # module tree, so that checkpoints hold each weight once.
        self._stacked: list[tuple[tuple[int, ...], WorldModel]] = []

    @classmethod
    def from_members(cls, members: Sequence[WorldModel]) -> WorldModelEnsemble:
        """Return an ensemble of existing models of the same shape.

        Raises:
            ValueError: There are none.
        """
        if not members:
            raise ValueError("an ensemble needs at least one member")
        ensemble = cls.__new__(cls)
        nn.Module.__init__(ensemble)
        ensemble.models = nn.ModuleList(members)
        ensemble._stacked = []
        return ensemble

    @property
    def members(self) -> Iterator[WorldModel]:
        """The models, typed."""
        return (member for member in self.models if isinstance(member, WorldModel))

    @property
    def member_count(self) -> int:
        """E."""
        return len(self.models)

    def forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predict one step.

        Args:
            state: [B, S].
            action: [B, A].

        Returns:
            Mean next_state [B, S], mean reward [B, 1], mean done [B, 1], and disagreement
            [B, S]: the members' standard deviation (no correction) in physical units.
        """
        members = (self.member_count, *state.shape)
        states, rewards, dones = self.stacked()(
            state.expand(members), action.expand(self.member_count, *action.shape)
        )
        spread = _member_variance(states).sqrt()
        return _member_mean(states), _member_mean(rewards), _member_mean(dones), spread

    def rollout(
        self, initial_state: Tensor, actions: Tensor, *, members: int | None = None
    ) -> EnsembleRollout:
        """Roll every member out on its own, then combine.

        A row's bits depend neither on how many rows there are nor on which they are.

        Args:
            initial_state: [B, S].
            actions: [B, H, A], H >= 1.
            members: Of the first so many; None: of all.

        Raises:
            ValueError: H is 0.
        """
        if actions.shape[-2] < 1:
            raise ValueError("horizon must be at least 1, got actions with 0 steps")
        rows = initial_state.shape[0]
        step = self.step(members)
        states, log_alive = step.start(pad_rows(initial_state))
        summaries = []
        for action in pad_rows(actions, dim=-3).unbind(-2):
            states, log_alive, summary = step(states, log_alive, action)
            summaries.append(summary)
        after, *others = split_summary(torch.stack(summaries, dim=-2)[:rows])
        rewards, dones, disagreement, spread = others
        return EnsembleRollout(
            states=torch.cat([initial_state.unsqueeze(-2), after], dim=-2),
            rewards=rewards,
            dones=dones,
            disagreement=disagreement,
            uncertainty=spread.amax(-1),
        )

    def step(self, members: int | None = None) -> EnsembleStep:
        """Return what rollouts are made of, with the members' present weights.

        Args:
            members: Of the first so many, whose weights are views of those of all; None: of all.
        """
        stacked = self.stacked()
        if members is None or members == self.member_count:
            return EnsembleStep(stacked)
        return EnsembleStep(_first(stacked, members))

    def rollout_members(
        self, initial_state: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return each member's own rollout.

        Args:
            initial_state: [B, S], B a multiple of `ROW_TILE` if bits matter.
            actions: [B, H, A].

        Returns:
            states [E, B, H+1, S], rewards [E, B, H], calibrated hazard logits [E, B, H].
        """
        count = self.member_count
        stacked = self.stacked()
        states, rewards, logits = unroll(
            stacked.predict,
            initial_state.expand(count, *initial_state.shape),
            actions.expand(count, *actions.shape),
        )
        return states, rewards, stacked.done_scale * logits + stacked.done_shift

    def stacked(self) -> WorldModel:
        """Return all members as one model over tensors with a leading member dim."""
        key = tuple(x for p in self.parameters() for x in (p.data_ptr(), p._version)) + tuple(
            x for b in self.buffers() for x in (b.data_ptr(), b._version)
        )
        if not self._stacked or self._stacked[0][0] != key:
            # Inference tensors would bar gradients to states and actions ever after.
            with torch.inference_mode(False), torch.no_grad():
                self._stacked[:] = [(key, _stack(list(self.members)))]
        return self._stacked[0][1]


class EnsembleStep(nn.Module):
    """One step of some members, each on its own, and what they predict together.

    Tensors in, tensors out, no host in between: it can be compiled, or captured as a graph.

    Args:
        stacked: These members as one model, see `WorldModelEnsemble.stacked`.
    """

    def __init__(self, stacked: WorldModel) -> None:
        super().__init__()
        self.stacked = stacked

    @property
    def member_count(self) -> int:
        """E."""
        return len(self.stacked.state_scale)

    def start(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` takes at the first step, for states [B, S]."""
        states = state.expand(self.member_count, *state.shape).contiguous()
        return states, torch.zeros_like(states[..., 0])

    def forward(
        self, states: Tensor, log_alive: Tensor, action: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step.

        With S_e the survival of member e before the step and d_e its hazard, mean survival falls
        by the factor 1 - sum_e S_e d_e / sum_e S_e: the members' hazards weighted by who is still
        alive. In that form, and in log space, small hazards keep their digits.

        Args:
            states: [E, B, S], the members' states.
            log_alive: [E, B], log of their survival so far.
            action: [B, A].

        Returns:
            states and log_alive after the step, and a summary [B, S + 4]; see `split_summary`.
        """
        model = self.stacked
        after, rewards, logits = self.advance(states, action)
        weight = lanewise(torch.exp, log_alive - log_alive.amax(0))
        done = _member_mean(weight * lanewise(torch.sigmoid, logits)) / _member_mean(weight)
        squares = _member_variance(after / model.state_scale)
        reward_squares = _member_variance(rewards / model.reward_scale)
        summary = [
            _member_mean(after),
            _member_mean(rewards),
            done.unsqueeze(-1),
            # Roots are taken afterwards: that of 0 has no gradient, and padding rows have 0.
            squares.mean(-1, keepdim=True),
            torch.cat([squares, reward_squares], dim=-1).mean(-1, keepdim=True),
        ]
        log_alive = log_alive - lanewise(functional.softplus, logits)
        return after, log_alive, torch.cat(summary, dim=-1)

    def advance(self, states: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take one step of each member by itself.

        Args:
            states: [E, B, S].
            action: [B, A].

        Returns:
            states [E, B, S] and rewards [E, B, 1] after it, calibrated hazard logits [E, B].
        """
        model = self.stacked
        after, rewards, logits = model.predict(states, action.expand(len(states), *action.shape))
        return after, rewards, (model.done_scale * logits + model.done_shift).squeeze(-1)


SUMMARY_EXTRAS = 4
"""Columns of a summary after the state's."""


def split_summary(summary: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the parts of summaries [..., S + 4].

    Returns:
        Mean state [..., S]; mean reward, hazard of the mean survival, spread of the states, and
        spread of states and reward together, all [...]; spreads in standard deviations of the
        training data, root mean square over features.
    """
    reward, done, squares, both = summary[..., -SUMMARY_EXTRAS:].unbind(-1)
    return summary[..., :-SUMMARY_EXTRAS], reward, done, squares.sqrt(), both.sqrt()


def _member_mean(values: Tensor) -> Tensor:
    """Average over the first dim by plain additions, whose bits do not depend on the layout."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)


def _member_variance(values: Tensor) -> Tensor:
    return _member_mean((values - _member_mean(values)).square())


class _StackedLinear(nn.Module):
    """E linear layers as one batched product: [E, B, in] -> [E, B, out].

    Outputs narrower than a vector are computed with zero columns beside them: matrix kernels treat
    the rows of narrow products differently, and a row's bits would depend on its place.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight = torch.stack([x.weight.detach().T for x in layers])
        bias = torch.stack([x.bias.detach() for x in layers]).unsqueeze(1)
        self.width = weight.shape[-1]
        missing = max(0, _MIN_COLUMNS - self.width)
        self.register_buffer("weight", functional.pad(weight, (0, missing)))
        self.register_buffer("bias", functional.pad(bias, (0, missing)))

    weight: Tensor
    bias: Tensor

    def forward(self, rows: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, rows, self.weight)[..., : self.width]


def _stack(members: Sequence[WorldModel]) -> WorldModel:
    """Return a model whose layers and normalisers hold all members' along a leading dim."""
    stacked = copy.deepcopy(members[0])
    for name, module in list(stacked.named_modules()):
        if isinstance(module, nn.Linear):
            layers = [member.get_submodule(name) for member in members]
            parent, _, child = name.rpartition(".")
            setattr(
                stacked.get_submodule(parent),
                child,
                _StackedLinear([layer for layer in layers if isinstance(layer, nn.Linear)]),
            )
    for name in stacked.state_dict():
        if "." not in name:  # the model's own buffers, [S] or [1] each -> [E, 1, S] or [E, 1, 1]
            values = torch.stack([member.get_buffer(name) for member in members])
            setattr(stacked, name, values.unsqueeze(1))
    return stacked


def _first(stacked: WorldModel, members: int) -> WorldModel:
    """Return a model of the first members of one from `_stack`; its tensors are views of those."""
    of_members = {name for name in stacked.state_dict() if "." not in name}
    memo: dict[int, Tensor] = {}
    for path, module in stacked.named_modules():
        for name, tensor in module.named_buffers(recurse=False):
            is_stacked = isinstance(module, _StackedLinear) or (not path and name in of_members)
            memo[id(tensor)] = tensor[:members] if is_stacked else tensor
    return copy.deepcopy(stacked, memo)
