"""Action sequences that nobody recorded, to see whether rollouts stay sane under them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.network.ensemble import WorldModelEnsemble
from models.network.kinematics import KinematicStep
from models.spec import Spec
from training.dataset.windows import Windows
from training.simulation.behaviours import SEQUENCE_KINDS, draw_sequence

_POOL = 512
_STEP_SHARE = 0.2
"""Share of an action's range that one step of the ascent moves it by."""


def random_actions(windows: Windows, seed: int = 0) -> tuple[Windows, NDArray[np.int64]]:
    """Replace recorded actions by sequences of `SEQUENCE_KINDS`, in turn.

    Args:
        windows: N windows.
        seed: Of the sequences.

    Returns:
        The windows; [N] which kind each got.
    """
    rng = np.random.default_rng(seed)
    count, horizon = windows.actions.shape[:2]
    pools = np.stack(
        [[draw_sequence(kind, rng, horizon) for _ in range(_POOL)] for kind in SEQUENCE_KINDS]
    )
    kinds = np.arange(count) % len(SEQUENCE_KINDS)
    return replace(windows, actions=pools[kinds, rng.integers(_POOL, size=count)]), kinds


def adversarial_actions(
    ensemble: WorldModelEnsemble,
    spec: Spec,
    windows: Windows,
    scale: NDArray[np.float32],
    *,
    steps: int = 8,
    seed: int = 0,
) -> Windows:
    """Replace actions by those that drive the model away from physics.

    Projected gradient ascent by the gradient's sign (Madry et al. 2018, "Towards deep learning
    models resistant to adversarial attacks") from random actions, on the squared distance between
    the predicted states and those of `KinematicStep`, within the actions' ranges.

    Args:
        ensemble: Weights need no gradients.
        spec: Ranges of the actions; names kinematics.
        windows: Only their first states matter.
        scale: [S] unit of each feature.
        steps: Of the ascent.
        seed: Of the start.
    """
    device = next(ensemble.parameters()).device
    start = torch.as_tensor(np.array(windows.states[:, 0]), device=device)
    unit = torch.as_tensor(scale, dtype=start.dtype, device=device)
    low, high = (
        torch.tensor([getattr(feature, end) for feature in spec.action], device=device)
        for end in ("low", "high")
    )
    physics = KinematicStep(spec).to(device)
    rng = torch.Generator().manual_seed(seed)
    uniform = torch.rand(windows.actions.shape, generator=rng).to(device)
    actions = low + (high - low) * uniform
    for _ in range(steps):
        actions = actions.detach().requires_grad_()
        assumed = _roll_out(physics, start, actions)
        distance = (ensemble.rollout(start, actions).states[:, 1:] - assumed) / unit
        (gradient,) = torch.autograd.grad(distance.square().sum(), actions)
        # A gradient that is not finite means the attack has won; stay there.
        moved = actions + _STEP_SHARE * (high - low) * gradient.nan_to_num().sign()
        actions = torch.minimum(torch.maximum(moved, low), high)
    return replace(windows, actions=actions.detach().cpu().numpy())


def _roll_out(step: KinematicStep, state: Tensor, actions: Tensor) -> Tensor:
    """Return the states [B, H, S] after each of the actions [B, H, A]."""
    states = []
    for action in actions.unbind(1):
        state = step(state, action)
        states.append(state)
    return torch.stack(states, dim=1)
