"""Steps one after the other, each from what the last one predicted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def unroll(step: Step, state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a step function H times, feeding each next state back.

    Args:
        step: (state [..., B, S], action [..., B, A]) -> next state, x [..., B, 1],
            y [..., B, 1].
        state: [..., B, S].
        actions: [..., B, H, A].

    Returns:
        states [..., B, H+1, S], xs [..., B, H], ys [..., B, H].

    Raises:
        ValueError: H is 0.
    """
    if actions.shape[-2] < 1:
        raise ValueError("horizon must be at least 1, got actions with 0 steps")
    states, xs, ys = [state], [], []
    for action in actions.unbind(-2):
        state, x, y = step(state, action)
        states.append(state)
        xs.append(x)
        ys.append(y)
    return torch.stack(states, dim=-2), torch.cat(xs, dim=-1), torch.cat(ys, dim=-1)
