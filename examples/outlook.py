"""What an imagined sequence is worth, with what its last state promises beyond it.

A horizon of 0.8 s is shorter than a car needs to brake. Who looks no further drives into places
from which every way out is a crash, so the last state is judged by how hard the ego would have to
brake and steer from there. Values are in units of one step's reward; all functions take float
tensors of any leading shape and are differentiable.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from examples.spec import HIGHWAY, has_sizes
from models.spec import Spec
from training.simulation.bicycle import FULL_BRAKE_MPS2, GRIP_MPS2

CRASH_COST = 100.0
STRAIN_COST = 40.0
BRAKING_COMFORT = 0.5
"""Share of full braking that costs nothing."""
STEERING_COMFORT = 0.7
"""Share of grip that costs nothing."""

WANTED_MPS = 36.0
"""Going faster brings no more."""
SPEED_GAIN = 9.6
"""Of `WANTED_MPS` at the end: as much as the simulator's reward pays for 16 fast steps."""

ASSUMED_BRAKING_MPS2 = 6.0
"""The car in front may brake this hard at any time."""

_ROOM_M = 0.4
"""Who leaves less room than this beside the ego is in its path."""
_IN_PATH_BLUR_M = 0.15
_LOOK_AHEAD_S = 1.0
_LEAST_GAP_M = 0.5
_LEAST_EDGE_M = 0.3
_BEND_REACH_M = 40.0
_MOST_STRAIN = 2.0


class Neighbours(NamedTuple):
    """Who is around, [B, slots] each, as `models.spec.Slot` has it."""

    presence: Tensor
    dx: Tensor
    dy: Tensor
    heading: Tensor
    speed: Tensor
    length: Tensor
    width: Tensor


def value(returns: Tensor, crash: Tensor, final_state: Tensor, spec: Spec = HIGHWAY) -> Tensor:
    """Return what sequences are worth [B].

    Args:
        returns: [B], expected sums of rewards.
        crash: [B], P(ended within the sequence).
        final_state: [B, S].
        spec: Of the states, one that `known_spec` returns.
    """
    braking = (braking_strain(final_state, spec) - BRAKING_COMFORT).clamp_min(0)
    steering = (steering_strain(final_state) - STEERING_COMFORT).clamp_min(0)
    speed = (final_state[..., 0] / WANTED_MPS).clamp(0, 1)
    strain = braking.square() + steering.square()
    return returns + SPEED_GAIN * (1 - crash) * speed - CRASH_COST * crash - STRAIN_COST * strain


def expected_return(rewards: Tensor, dones: Tensor) -> Tensor:
    """Return the expected sum of rewards [B]: a step counts if alive before it.

    The torch form of `models.survival.expected_returns`.

    Args:
        rewards: [B, H].
        dones: [B, H], hazards.
    """
    alive = torch.cumprod(1 - dones, dim=-1)
    before = torch.cat([torch.ones_like(alive[..., :1]), alive[..., :-1]], dim=-1)
    return (before * rewards).sum(-1)


def crash_probability(dones: Tensor) -> Tensor:
    """Return P(ended within the sequence) [B] for hazards [B, H]."""
    return 1 - torch.prod(1 - dones, dim=-1)


def braking_strain(state: Tensor, spec: Spec = HIGHWAY) -> Tensor:
    """Return the share of full braking that the worst pair of cars in one path needs [B].

    The rear car of a pair, at speed v with a gap g to a car at speed u that brakes with b, stops
    in time if it brakes with v^2 / (2 g + u^2 / b) at once (both stopping distances set equal, as
    in the safe distance of Shalev-Shwartz, Shammah, Shashua 2017, without response time). The ego
    is the rear car of cars ahead, and the front car of cars behind.

    Args:
        state: [B, S].
        spec: Of the states.
    """
    speed, _, sin_error, _, _, curvature = (x.unsqueeze(-1) for x in _ego(state))
    around = neighbours(state, spec)
    dx, heading, other = around.dx, around.heading, around.speed
    cos_error = (1 - sin_error.square()).clamp_min(0.01).sqrt()
    # The lane straightened: how far across it a car is from the ego, now and a moment later.
    reach = dx.clamp(-_BEND_REACH_M, _BEND_REACH_M)
    across = dx * sin_error + around.dy * cos_error - 0.5 * curvature * reach.square()
    turned = heading + torch.asin(sin_error.clamp(-0.99, 0.99)) - curvature * reach
    later = across + _LOOK_AHEAD_S * other * torch.sin(turned)
    crosses = (across * later < 0).to(state.dtype)
    nearest = torch.minimum(across.abs(), later.abs()) * (1 - crosses)
    length, width = _touching(state, around, turned, spec)
    in_path = around.presence * torch.sigmoid((width + _ROOM_M - nearest) / _IN_PATH_BLUR_M)
    gap = (dx.abs() - length).clamp_min(_LEAST_GAP_M)
    rear, front = torch.where(dx > 0, speed, other), torch.where(dx > 0, other, speed)
    needed = rear.square() / (2 * gap + front.square() / ASSUMED_BRAKING_MPS2)
    return (in_path * needed / FULL_BRAKE_MPS2).clamp_max(_MOST_STRAIN).amax(-1)


def steering_strain(state: Tensor) -> Tensor:
    """Return the share of grip that the bend and the nearer road edge need [B].

    Lateral acceleration v^2 k to follow a curvature k, and w^2 / (2 d) to lose the speed w towards
    an edge d away.

    Args:
        state: [B, S].
    """
    speed, _, sin_error, left, right, curvature = _ego(state)
    drift = speed * sin_error
    to_right = drift.clamp_min(0).square() / (2 * right.clamp_min(_LEAST_EDGE_M))
    to_left = drift.clamp_max(0).square() / (2 * left.clamp_min(_LEAST_EDGE_M))
    needed = speed.square() * curvature.abs() + to_left + to_right
    return (needed / GRIP_MPS2).clamp_max(_MOST_STRAIN)


def _ego(state: Tensor) -> tuple[Tensor, ...]:
    """Return the first features of both specs."""
    return torch.unbind(state[..., :6], -1)


def neighbours(state: Tensor, spec: Spec = HIGHWAY) -> Neighbours:
    """Return who is around, by states [B, S]; who has no size is as big as the spec assumes."""
    assert spec.geometry is not None
    slots, parts = spec.geometry.slots, []
    usual = {"length": spec.geometry.length_m, "width": spec.geometry.width_m}
    for part in Neighbours._fields:
        names = [getattr(slot, part) for slot in slots]
        if names[0] is not None:
            parts.append(state[..., [spec.state_index(name) for name in names]])
        elif part in usual:
            parts.append(torch.full_like(parts[-1], usual[part]))
        else:
            lengths = [spec.state_index(str(slot.length)) for slot in slots]
            parts.append((state[..., lengths] > 0).to(state.dtype))
    return Neighbours(*parts)


def _touching(
    state: Tensor, around: Neighbours, turned: Tensor, spec: Spec
) -> tuple[Tensor, Tensor]:
    """Return how far along and across the lane centres are where rectangles touch, [B, slots].

    Args:
        state: [B, S].
        around: Who is around.
        turned: [B, slots] rad, headings in the lane straightened.
        spec: Of the states; cars of one size count as if along the lane.
    """
    geometry = spec.geometry
    assert geometry is not None
    length, width = around.length, around.width
    if not has_sizes(spec):
        return (geometry.length_m + length) / 2, (geometry.width_m + width) / 2
    own = [state[..., spec.state_index(name), None] for name in geometry.size_features]
    cos, sin = torch.cos(turned).abs(), torch.sin(turned).abs()
    along, across = cos * length + sin * width, sin * length + cos * width
    return (own[0] + along) / 2, (own[1] + across) / 2
