"""What a learned model must beat: predictions that need no training.

Each takes windows and predicts their states, a termination score (higher is riskier), or both.
Every baseline is given the same features as the model, sizes too. A road edge that is so far that
the feature saturates, or that a source does not have, is none to a baseline either.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.layout import MOST_SIN, SLOWEST_MPS
from models.spec import FORWARD_RIGHT_DOWN, Spec
from training.dataset.windows import Windows
from training.simulation.bicycle import DT_S, bicycle_step
from training.simulation.rectangles import Sizes, rectangle_gap
from training.simulation.simulator import HIGHWAY
from training.simulation.states import Decoded, encoder_of

Floats = NDArray[np.floating[Any]]

LONGEST_TTC_S = 10.0
FAR_M = 100.0
STRAIGHT_PHYSICS = "bicycle + constant velocity"
FULL_PHYSICS = "bicycle + constant rates"
"""The rival that uses all the model's features and the simulator's own equation of the ego.

Neighbours keep their accelerations and turn rates, where the spec has them."""

_CHUNK_WINDOWS = 8192


@dataclass(frozen=True)
class BaselinePrediction:
    """What a baseline predicts for N windows of H steps.

    Attributes:
        states: [N, H+1, S], or None if it predicts none.
        score: [N], higher means termination is likelier.
    """

    states: NDArray[np.float32] | None
    score: NDArray[np.float64]


def slots_of(states: Floats, spec: Spec = HIGHWAY) -> Floats:
    """Return the neighbours of states [..., S] as [..., slots, 7], see `Decoded.slots`."""
    return encoder_of(spec).decode(states).slots


def slot_velocity(slots: Floats) -> tuple[Floats, Floats]:
    """Return the velocity of slots [..., 7] over ground, forward and right in the ego frame."""
    heading, speed = slots[..., 3], slots[..., 4]
    return speed * np.cos(heading), speed * np.sin(heading)


def edges_of(states: Floats, spec: Spec = HIGHWAY) -> Floats:
    """Return the distances to both road edges [..., 2] in m; `FAR_M` to one that saturates."""
    edges = encoder_of(spec).decode(states).ego[..., 3:5]
    return np.where(_is_no_edge(edges, spec), FAR_M, edges).astype(edges.dtype)


def _is_no_edge(edges: Floats, spec: Spec) -> NDArray[np.bool_]:
    """Return whether distances to edges [..., 2] are where they saturate, or no numbers."""
    assert spec.kinematics is not None
    highest = {each.feature: each.high for each in spec.saturations}
    names = (spec.kinematics.left_edge, spec.kinematics.right_edge)
    limits = [highest.get(name) for name in names]
    far = np.array([np.inf if limit is None else limit for limit in limits], np.float32)
    return np.asarray((edges >= far) | ~np.isfinite(edges))


def margin(states: Floats, spec: Spec = HIGHWAY) -> Floats:
    """Return how far states [..., S] are from a crash or the road's edge, in m [...].

    The smallest of the rectangle gaps to present neighbours and the distances to both edges;
    negative once it happened.
    """
    nearest: Floats = np.minimum(gaps_of(states, spec).min(-1), edges_of(states, spec).min(-1))
    return nearest


def gaps_of(states: Floats, spec: Spec = HIGHWAY) -> Floats:
    """Return how far the ego is from its neighbours [..., slots] in m; `FAR_M` if nobody is there.

    Negative where rectangles overlap.
    """
    seen = encoder_of(spec).decode(states)
    slots = seen.slots
    gaps = rectangle_gap(slots[..., 1], slots[..., 2], slots[..., 3], *_sizes(seen))
    return np.where(slots[..., 0] > 0.5, gaps, FAR_M)


def _sizes(seen: Decoded) -> tuple[Sizes, Sizes]:
    """Return the ego's length and width [..., 1], and those of the neighbours [..., slots]."""
    own, theirs = seen.ego_size[..., None, :], seen.sizes
    return (own[..., 0], own[..., 1]), (theirs[..., 0], theirs[..., 1])


def persistence(windows: Windows, spec: Spec = HIGHWAY) -> BaselinePrediction:
    """Nothing changes; the nearer something is now, the riskier."""
    start = windows.states[:, 0]
    states = np.repeat(start[:, None], windows.horizon + 1, axis=1)
    return BaselinePrediction(states, -margin(start, spec).astype(np.float64))


def time_to_collision(windows: Windows, spec: Spec = HIGHWAY) -> BaselinePrediction:
    """The classic score: minus the seconds until contact at constant relative velocity.

    Contact of axis-parallel rectangles by the slab method (Kay and Kajiya 1986), or of the
    centre with a road edge; at most `LONGEST_TTC_S`. It predicts no states.
    """
    start = windows.states[:, 0].astype(np.float64)
    seen = encoder_of(spec).decode(start)
    slots, speed_now, sin_error = seen.slots, seen.ego[:, 0], seen.ego[:, 2]
    forward, right = slot_velocity(slots)
    reach = (seen.ego_size[:, None] + seen.sizes) / 2
    enter = np.zeros(slots.shape[:-1])
    leave = np.full(slots.shape[:-1], np.inf)
    for place, velocity, touching in (
        (slots[..., 1], forward - speed_now[:, None], reach[..., 0]),
        (slots[..., 2], right, reach[..., 1]),
    ):
        # A speed of exactly 0 would divide 0 by 0 at the slab's border.
        speed = np.where(np.abs(velocity) < 1e-9, 1e-9, velocity)
        one, other = (-touching - place) / speed, (touching - place) / speed
        enter = np.maximum(enter, np.minimum(one, other))
        leave = np.minimum(leave, np.maximum(one, other))
    meets = (slots[..., 0] > 0.5) & (enter <= leave)
    contact = np.where(meets, enter, LONGEST_TTC_S).min(-1)
    sideways = speed_now * sin_error  # m/s to the right
    left_edge, right_edge = np.moveaxis(seen.ego[:, 3:5], -1, 0)
    edge = np.where(sideways > 0, right_edge, left_edge) / np.maximum(np.abs(sideways), 1e-9)
    no_left, no_right = np.moveaxis(_is_no_edge(seen.ego[:, 3:5], spec), -1, 0)
    edge = np.where(np.where(sideways > 0, no_right, no_left), LONGEST_TTC_S, edge)
    return BaselinePrediction(None, -np.minimum(np.minimum(contact, edge), LONGEST_TTC_S))


def constant_velocity(windows: Windows, spec: Spec = HIGHWAY) -> BaselinePrediction:
    """Everyone goes straight on at the present speed, whatever the actions."""
    return _by_physics(windows, np.zeros_like(windows.actions), spec, turning=False)


def bicycle(windows: Windows, spec: Spec = HIGHWAY) -> BaselinePrediction:
    """The ego moves exactly as the actions have it, the others straight on."""
    return _by_physics(windows, windows.actions, spec, turning=False)


def bicycle_and_turn_rate(windows: Windows, spec: Spec = HIGHWAY) -> BaselinePrediction:
    """The ego moves exactly as the actions have it, the others keep acceleration and turn rate.

    It uses everything that the model is given, see `FULL_PHYSICS`.
    """
    return _by_physics(windows, windows.actions, spec, turning=True)


Baseline = Callable[[Windows], BaselinePrediction]

_OF_ANY_SPEC: dict[str, Callable[..., BaselinePrediction]] = {
    "persistence": persistence,
    "constant velocity": constant_velocity,
    "time to collision": time_to_collision,
    STRAIGHT_PHYSICS: bicycle,
    FULL_PHYSICS: bicycle_and_turn_rate,
}

BASELINES: dict[str, Baseline] = {**_OF_ANY_SPEC}
"""Of the features of `HIGHWAY`."""


def baselines_of(spec: Spec) -> dict[str, Baseline]:
    """Return the baselines of a spec's windows, by name.

    None of a spec whose ego does not move as the simulated one does, or whose slots physics cannot
    read.
    """
    assumed, car = HIGHWAY.kinematics, spec.kinematics
    if car is None or assumed is None or spec.dt_s != DT_S:
        return {}
    is_alike = replace(car, length=None) == assumed and spec.frame in (None, FORWARD_RIGHT_DOWN)
    actions = [feature.name for feature in spec.action]
    if not is_alike or actions != [*car.action_features]:
        return {}
    try:
        encoder_of(spec)
    except ValueError:  # it has features that the simulator does not know
        return {}
    return {name: partial(each, spec=spec) for name, each in _OF_ANY_SPEC.items()}


def _by_physics(
    windows: Windows, actions: NDArray[np.float32], spec: Spec, *, turning: bool
) -> BaselinePrediction:
    """Predict by `physics_rollout`; the risk is minus the smallest margin on the way."""
    start = windows.states[:, 0]
    states = np.empty((len(start), windows.horizon + 1, start.shape[1]), np.float32)
    score = np.empty(len(start))
    # In chunks, to bound the memory of double precision intermediates.
    for first in range(0, len(start), _CHUNK_WINDOWS):
        rows = slice(first, first + _CHUNK_WINDOWS)
        part = physics_rollout(start[rows], actions[rows], spec, turning=turning)
        score[rows] = -margin(part[:, 1:], spec).min(1)
        states[rows] = part
    return BaselinePrediction(states, score)


def physics_rollout(
    start: Floats, actions: Floats, spec: Spec = HIGHWAY, *, turning: bool = True
) -> Floats:
    """Roll out the ego as a bicycle, and its neighbours without knowing what they want.

    The road is taken to bend evenly, by the curvature given at the start. Neighbours keep
    acceleration and turn rate (CTRA: Schubert, Richter, Wanielik 2008), or go straight on at their
    speed. All of it is explicit Euler in double precision, as in the simulator. An edge that
    saturates at the start stays where it is.

    Args:
        start: [N, S].
        actions: [N, H, A].
        spec: Of the states, one that `baselines_of` knows.
        turning: Whether neighbours accelerate and turn.

    Returns:
        float64 [N, H+1, S], the start included.
    """
    encoder, start = encoder_of(spec), np.asarray(start, np.float64)
    seen = encoder.decode(start)
    poses = np.zeros((len(start), actions.shape[1] + 1, 4))  # in the ego frame of the start
    poses[:, 0, 3] = seen.ego[:, 0]
    for k in range(actions.shape[1]):
        length = seen.ego_size[:, 0]
        poses[:, k + 1] = bicycle_step(poses[:, k], actions[:, k], length=length)
    ego = _road_features(seen.ego, poses)
    ego[..., 3:5] = np.where(
        _is_no_edge(seen.ego[:, None, 3:5], spec), seen.ego[:, None, 3:5], ego[..., 3:5]
    )
    count = poses.shape[1]
    own_size, sizes = (np.repeat(x[:, None], count, axis=1) for x in (seen.ego_size, seen.sizes))
    states = encoder.encode(ego, own_size, _neighbours(seen, poses, turning=turning), sizes)
    states[:, 0] = start
    return states


def _road_features(start: Floats, poses: Floats) -> Floats:
    """Return the ego features [N, H+1, 6] of poses [N, H+1, 4] on an evenly bending road."""
    curvature = start[:, 5:6]
    step = np.diff(poses[..., :2], axis=1)
    travelled = np.linalg.norm(step, axis=-1)
    # The lane's heading relative to the ego's first, at every step; its turn follows the path.
    turned = np.cumsum(np.pad(travelled, ((0, 0), (1, 0))), axis=1) * curvature
    lane = turned - np.arcsin(np.clip(start[:, 2:3], -1, 1))
    halfway = (lane[:, :-1] + lane[:, 1:]) / 2
    moved = np.cos(halfway) * step[..., 1] - np.sin(halfway) * step[..., 0]
    right = np.cumsum(np.pad(moved, ((0, 0), (1, 0))), axis=1)
    return np.stack(
        [
            poses[..., 3],
            start[:, 1:2] + right,
            np.sin(poses[..., 2] - lane),
            start[:, 3:4] + right,
            start[:, 4:5] - right,
            np.broadcast_to(curvature, right.shape),
        ],
        axis=-1,
    )


def _neighbours(start: Decoded, poses: Floats, *, turning: bool) -> Floats:
    """Return the slots [N, H+1, slots, 7] seen from the ego's poses [N, H+1, 4]."""
    slots = start.slots
    x, y, heading, speed, acceleration, turn_rate = np.moveaxis(slots[..., 1:], -1, 0)
    if not turning:
        acceleration, turn_rate = np.zeros_like(speed), np.zeros_like(speed)
    seen = []
    for k in range(poses.shape[1]):
        if k:
            # A turning car's centre slips sideways: sin(slip) = turn rate * half length / speed.
            slip = turn_rate * (start.sizes[..., 0] / 2) / np.maximum(speed, SLOWEST_MPS)
            course = heading + np.arcsin(np.clip(slip, -MOST_SIN, MOST_SIN))
            x, y = x + speed * np.cos(course) * DT_S, y + speed * np.sin(course) * DT_S
            heading = heading + turn_rate * DT_S
            speed = speed + acceleration * DT_S
            # A braking car stops; it neither reverses nor turns any more.
            goes_on = speed > 0
            speed, acceleration, turn_rate = (
                np.where(goes_on, value, 0.0) for value in (speed, acceleration, turn_rate)
            )
        ego_x, ego_y, ego_heading, _ = np.moveaxis(poses[:, k, None], -1, 0)
        cos, sin = np.cos(ego_heading), np.sin(ego_heading)
        ahead, aside = x - ego_x, y - ego_y
        moved = [cos * ahead + sin * aside, cos * aside - sin * ahead, heading - ego_heading]
        seen.append(np.stack([slots[..., 0], *moved, speed, acceleration, turn_rate], axis=-1))
    return np.where(slots[:, None, :, :1] > 0.5, np.stack(seen, axis=1), 0.0)
