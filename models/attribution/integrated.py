"""Crash probabilities and their gradients, piece by piece, and what they are attributed to.

A piece is one step of a few rows, there or back, some milliseconds at most on a CPU: whoever asks
may do other work between any two. Gradients go back step by step, each computed again from the
states that were kept.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.attribution.scene import Known, Scene
from models.attribution.shares import Attribution, Floats, Group, Pieces
from models.network.ensemble import EnsembleStep
from models.spec import Spec

PIECE_ROWS = 16
"""Rows of a piece: with fewer its time hardly falls."""

_SCOUTS = 47
"""Points at which the probability is looked at first, to see where on the path it changes."""

_POINTS = 32
"""Points at which gradients are taken: where the probability changes, they are close together."""

_EVEN_SHARE = 0.2
"""Of the points, how many are spread evenly, so that no part of the path is left out."""


class CrashRisk:
    """The crash probability as a function of state and actions.

    Args:
        step: The members that answer, on a CPU, in eval mode.
    """

    def __init__(self, step: EnsembleStep) -> None:
        self._step = step
        self._dtype = step.stacked.state_scale.dtype

    def probabilities(
        self, states: NDArray[Any], actions: NDArray[Any]
    ) -> Generator[None, None, Floats]:
        """Return the crash probabilities [B] of states [B, S] and actions [B, H, A], in pieces."""
        parts = [np.empty(0)]
        for first in range(0, len(states), PIECE_ROWS):
            rows = slice(first, first + PIECE_ROWS)
            *_, log_alive = yield from self._forward(states[rows], actions[rows])
            parts.append((-torch.expm1(log_alive)).mean(0).double().numpy())
        return np.concatenate(parts)

    def gradients(
        self, states: NDArray[Any], actions: NDArray[Any]
    ) -> Generator[None, None, tuple[Floats, Floats]]:
        """Return the crash probability's derivatives by states [B, S] and actions [B, H, A]."""
        parts = []
        for first in range(0, len(states), PIECE_ROWS):
            rows = slice(first, first + PIECE_ROWS)
            parts.append((yield from self._backward(states[rows], actions[rows])))
        of_states, of_actions = zip(*parts, strict=True)
        return np.concatenate(of_states), np.concatenate(of_actions)

    def _forward(
        self, states: NDArray[Any], actions: NDArray[Any]
    ) -> Generator[None, None, tuple[list[Tensor], Tensor, Tensor]]:
        """Return each step's states [E, B, S] before it, the actions [B, H, A], log P(alive)."""
        given = torch.tensor(actions, dtype=self._dtype)
        after, log_alive = self._step.start(torch.tensor(states, dtype=self._dtype))
        before = []
        for action in given.unbind(1):
            before.append(after)
            with torch.no_grad():
                after, log_step = self._advance(after, action)
            log_alive = log_alive + log_step
            yield
        return before, given, log_alive

    def _backward(
        self, states: NDArray[Any], actions: NDArray[Any]
    ) -> Generator[None, None, tuple[Floats, Floats]]:
        before, given, log_alive = yield from self._forward(states, actions)
        # P = 1 - mean_e exp(sum_k log_step_e): the same derivative by each step's logarithm.
        of_steps = -log_alive.exp() / len(log_alive)
        of_states = torch.zeros_like(before[0])
        of_actions = []
        for state, action in zip(reversed(before), reversed(given.unbind(1)), strict=True):
            with torch.enable_grad():
                inputs = state.detach().requires_grad_(), action.detach().requires_grad_()
                outputs = self._advance(*inputs)
            yield
            of_states, of_action = torch.autograd.grad(outputs, inputs, (of_states, of_steps))
            of_actions.append(of_action)
            yield
        of_actions.reverse()
        return of_states.sum(0).double().numpy(), torch.stack(of_actions, dim=1).double().numpy()

    def _advance(self, states: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the members' states after a step, and log P(alive after it | before) [E, B]."""
        after, _, logits = self._step.advance(states, action)
        return after, -functional.softplus(logits)


def attribute(
    step: EnsembleStep, spec: Spec, known: Known, state: NDArray[Any], actions: NDArray[Any]
) -> Pieces:
    """Attribute the crash probability of one sequence to its features, in pieces.

    Integrated gradients along the straight path from the baseline of `models.attribution.scene`.
    Half of the work is finding where on it the probability changes: near contact it does within
    decimetres, and evenly spread points would miss that.

    Args:
        step: The members that answer, on a CPU.
        spec: Of the model.
        known: What else is known about its features.
        state: [S].
        actions: [H, A].

    Returns:
        The attribution, after the last piece.
    """
    scene, risk = Scene(state, actions, spec, known), CrashRisk(step)
    # Denser towards the sequence: the baseline's neighbours come from far away.
    shares = 1 - (1 - np.linspace(0, 1, _SCOUTS + 1)) ** 2
    at_shares = yield from risk.probabilities(*scene.path(shares))
    points, widths = _quadrature(shares, at_shares)
    path_states, path_actions = scene.path(np.append(points, 1.0))
    by_state, by_actions = yield from risk.gradients(path_states, path_actions)
    state_sums = (widths @ by_state[:-1]) * (scene.state - scene.baseline_state)
    mean = np.tensordot(widths, by_actions[:-1], axes=1)
    action_sums = mean * (scene.actions - scene.baseline_action)
    changed = yield from _changed_states(scene, risk)
    other_actions = np.stack([*scene.changed_actions()])
    states = np.broadcast_to(scene.state, (len(other_actions), spec.state_dim))
    of_actions = yield from risk.probabilities(states, other_actions)
    groups = yield from _groups(scene, risk, state_sums, float(action_sums.sum()))
    return Attribution(
        baseline=scene.name,
        baseline_state=scene.baseline_state,
        baseline_action=scene.baseline_action,
        crash_probability=float(at_shares[-1]),
        baseline_probability=float(at_shares[0]),
        state=state_sums,
        actions=action_sums,
        state_gradients=by_state[-1] * known.spread,
        action_gradients=by_actions[-1] * scene.action_spreads,
        state_spreads=np.asarray(known.spread, np.float64),
        action_spreads=scene.action_spreads,
        state_changed=changed,
        action_changed=of_actions.reshape(-1, 2),
        groups=groups,
    )


def _changed_states(scene: Scene, risk: CrashRisk) -> Generator[None, None, Floats]:
    """Return each feature's other values and their crash probabilities [S, 2, 2]."""
    values = scene.changed_states()
    columns, sides = np.nonzero(np.isfinite(values))
    states = np.repeat(scene.state[None], len(columns), axis=0)
    states[np.arange(len(columns)), columns] = values[columns, sides]
    actions = np.broadcast_to(scene.actions, (len(columns), *scene.actions.shape))
    changed = np.stack([values, np.full_like(values, np.nan)], axis=-1)
    changed[columns, sides, 1] = yield from risk.probabilities(states, actions)
    return changed


def _groups(
    scene: Scene, risk: CrashRisk, state_sums: Floats, action_sum: float
) -> Generator[None, None, tuple[Group, ...]]:
    names, columns, states, actions = zip(*scene.groups(), strict=True)
    without = yield from risk.probabilities(np.stack(states), np.stack(actions))
    sums = [
        action_sum if name == "actions" else state_sums[of].sum()
        for name, of in zip(names, columns, strict=True)
    ]
    groups = map(Group, names, map(float, sums), without.tolist())
    return tuple(sorted(groups, key=lambda group: -group.contribution))


def _quadrature(shares: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Return points and their weights: the middles of intervals in which a function changes alike.

    Args:
        shares: [n + 1], ascending from 0 to 1.
        values: [n + 1], of the function there.

    Returns:
        [points] each; the weights add up to 1.
    """
    changes = np.abs(np.diff(values))
    total = changes.sum()
    even = np.full(len(changes), 1 / len(changes))
    part = changes / total if np.isfinite(total) and total > 0 else even
    density = _EVEN_SHARE * even + (1 - _EVEN_SHARE) * part
    cumulated = np.append(0.0, np.cumsum(density))
    borders = np.interp(np.linspace(0, cumulated[-1], _POINTS), cumulated, shares)
    return (borders[1:] + borders[:-1]) / 2, np.diff(borders)
