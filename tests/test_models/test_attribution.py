"""Attributions of crash probabilities: right gradients, sums that add up, found culprits."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.attribution import integrated
from models.attribution.integrated import CrashRisk, attribute
from models.attribution.scene import ALONE, TRAINING_MEAN, Known, Scene
from models.attribution.shares import Attribution
from models.checkpoint import Checkpoint, load_checkpoint
from models.highway import highway_spec
from models.network.ensemble import EnsembleStep, WorldModelEnsemble
from models.spec import Spec, anonymous_spec
from models.survival import crash_probability
from service.settings import PRETRAINED

T = TypeVar("T")
Array = NDArray[np.float64]

HORIZON = 8


def end_of(pieces: Generator[None, None, T]) -> T:
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            value: T = end.value
            return value


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    checkpoint = load_checkpoint(PRETRAINED)
    checkpoint.ensemble.eval().requires_grad_(False)
    return checkpoint


@pytest.fixture(autouse=True)
def _few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integrated, "PIECE_ROWS", 64)


def known_of(bundled: Checkpoint, step: EnsembleStep) -> Known:
    limits, model = bundled.limits, step.stacked
    mean, spread = (x.mean(0)[0].numpy() for x in (model.state_mean, model.state_scale))
    return Known(limits.state_low, limits.state_high, mean, spread)


def attributed(bundled: Checkpoint, state: Array, actions: Array, members: int = 5) -> Attribution:
    step = bundled.ensemble.step(members)
    return end_of(attribute(step, bundled.spec, known_of(bundled, step), state, actions))


def placed(spec: Spec, **others: float) -> Array:
    """Return a state on a straight road of three lanes, without neighbours."""
    state = np.zeros(spec.state_dim)
    features = {"speed": 20, "left_edge": 6, "right_edge": 6, "length": 4.8, "width": 1.9, **others}
    for name, value in features.items():
        state[spec.state_index(name)] = value
    return state


def neighbour(number: int, dx: float, dy: float, speed: float, **parts: float) -> dict[str, float]:
    of = {"dx": dx, "dy": dy, "speed": speed, "length": 4.6, "width": 1.9, **parts}
    return {f"neighbour_{number}_{name}": value for name, value in of.items()}


def on_course(rng: np.random.Generator, spec: Spec) -> tuple[Array, str]:
    """Return a state in which one neighbour will be hit within 8 steps, and its group.

    The others drive as the ego does, beside it or far behind. Slots are filled nearest first.
    """
    speed = rng.uniform(14, 28)
    slower = rng.uniform(12, speed)
    there = [
        (4.9 + (speed - slower) * rng.uniform(0.05, 0.2), rng.uniform(-0.4, 0.4), speed - slower),
        (rng.uniform(-3, 3), rng.choice([-1, 1]) * rng.uniform(3.8, 4.4), speed),
        (rng.uniform(-40, -25), rng.uniform(-4, 4), speed - rng.uniform(0, 3)),
    ]
    order = sorted(range(3), key=lambda i: math.hypot(*there[i][:2]))
    slots = [neighbour(n, *there[i]) for n, i in enumerate(order, start=1)]
    features = {name: value for slot in slots for name, value in slot.items()}
    return placed(spec, speed=speed, **features), f"neighbour_{order.index(0) + 1}"


def off_the_road(rng: np.random.Generator, spec: Spec) -> tuple[Array, str]:
    """Return a state in which the ego leaves the road within 8 steps."""
    side, edge = rng.choice([-1, 1]), rng.uniform(0.05, 0.25)
    near, far = ("left_edge", "right_edge") if side < 0 else ("right_edge", "left_edge")
    state = placed(
        spec,
        **{"speed": rng.uniform(15, 28), near: edge, far: 12 - edge},
        sin_heading_error=side * rng.uniform(0.1, 0.2),
        **neighbour(1, rng.uniform(-30, -20), -4 * side, 20),
    )
    return state, "road"


@pytest.mark.parametrize("scene", [on_course, off_the_road])
def test_the_culprit_ranks_first(bundled: Checkpoint, scene: Any) -> None:
    rng = np.random.default_rng(1)
    first: list[bool] = []
    gone: list[bool] = []
    alarms = 0
    while len(first) < 40:
        state, culprit = scene(rng, bundled.spec)
        attribution = attributed(bundled, state, np.zeros((HORIZON, 3)))
        alarms += 1
        if attribution.crash_probability < 0.2:  # the model sees no crash: nobody is to blame
            continue
        first.append(attribution.groups[0].name == culprit)
        without = {group.name: group.without for group in attribution.groups}
        gone.append(without[culprit] == min(without.values()))

    assert alarms <= 60
    assert np.mean(first) >= 0.95
    assert np.mean(gone) >= 0.9


def test_contributions_add_up_to_the_difference(bundled: Checkpoint) -> None:
    rng = np.random.default_rng(2)
    for _ in range(5):
        state, _ = on_course(rng, bundled.spec)
        actions = rng.uniform([-0.1, 0, 0], [0.1, 0.5, 0.5], (HORIZON, 3))

        attribution = attributed(bundled, state, actions)

        difference = attribution.crash_probability - attribution.baseline_probability
        assert abs(attribution.residual) <= 0.02 + 0.05 * abs(difference)
        shared_out = sum(group.contribution for group in attribution.groups)
        assert shared_out == pytest.approx(difference - attribution.residual, abs=1e-6)
        assert attribution.baseline_probability < 0.02


@pytest.mark.parametrize("members", [5, 1])
def test_the_probability_is_that_of_the_rollout(bundled: Checkpoint, members: int) -> None:
    state, _ = on_course(np.random.default_rng(3), bundled.spec)
    actions = np.full((HORIZON, 3), [0.05, 0.2, 0.1])

    attribution = attributed(bundled, state, actions, members)

    inputs = torch.tensor(state[None]).float(), torch.tensor(actions[None]).float()
    rollout = bundled.ensemble.rollout(*inputs, members=members)
    expected = crash_probability(rollout.dones.numpy())[0]
    assert attribution.crash_probability == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    ensemble = WorldModelEnsemble(3, spec=highway_spec(), kinematics=True)
    ensemble.double().eval().requires_grad_(False)
    risk, rng = CrashRisk(ensemble.step()), np.random.default_rng(0)
    state, actions = np.zeros(34), rng.uniform(0.1, 0.4, (4, 3))
    state[:6] = 20, 0.1, 0.02, 6, 6.5, 0.001
    state[6:13] = 1, 12, 0.4, 0.05, 15, -1, 0.1

    of_state, of_actions = end_of(risk.gradients(state[None], actions[None]))

    step = 1e-5
    there = [*range(6), *range(7, 13)]  # a presence is no number that may change
    for column in there:
        states = np.repeat(state[None], 2, axis=0)
        states[:, column] += -step, step
        low, high = end_of(risk.probabilities(states, np.repeat(actions[None], 2, axis=0)))
        slope = (high - low) / (2 * step)
        assert of_state[0, column] == pytest.approx(slope, rel=1e-4, abs=1e-8), column
    for place in np.ndindex(4, 3):
        changed = np.repeat(actions[None], 2, axis=0)
        changed[:, place[0], place[1]] += -step, step
        low, high = end_of(risk.probabilities(np.repeat(state[None], 2, axis=0), changed))
        slope = (high - low) / (2 * step)
        assert of_actions[0][place] == pytest.approx(slope, rel=1e-4, abs=1e-8), place
    assert np.abs(of_state[0, there]).min() > 0


def test_what_is_changed_is_computed_anew(bundled: Checkpoint) -> None:
    spec = bundled.spec
    state, culprit = on_course(np.random.default_rng(4), spec)
    actions = np.zeros((HORIZON, 3))
    attribution = attributed(bundled, state, actions)
    risk = CrashRisk(bundled.ensemble.step())

    column = spec.state_index(f"{culprit}_speed")
    value, probability = attribution.state_changed[column, 1]
    faster = state.copy()
    faster[column] = value
    emptied = state.copy()
    emptied[[i for i, x in enumerate(spec.state) if x.name.startswith(culprit)]] = 0
    braking = np.broadcast_to([0.0, 0.0, 0.5], actions.shape)  # half of the range
    states = np.stack([faster, emptied, state])
    expected = end_of(risk.probabilities(states, np.stack([actions, actions, braking])))

    assert value == pytest.approx(state[column] + attribution.state_spreads[column], rel=1e-5)
    without = {group.name: group.without for group in attribution.groups}
    seen = [probability, without[culprit], attribution.action_changed[2, 1]]
    assert seen == pytest.approx(expected.tolist(), abs=1e-5)


def test_nobody_is_blamed_who_is_not_there(bundled: Checkpoint) -> None:
    spec = bundled.spec
    state = placed(spec, **neighbour(2, -20, 4, 20))
    attribution = attributed(bundled, state, np.zeros((HORIZON, 3)))
    absent = [i for i, x in enumerate(spec.state) if x.name.startswith("neighbour_1")]

    names = {group.name for group in attribution.groups}
    assert names == {"neighbour_2", "road", "actions"}
    assert (attribution.state[absent] == 0).all()
    assert np.isnan(attribution.state_changed[absent]).all()


def test_the_baseline_is_alone_and_keeps_who_is_there(bundled: Checkpoint) -> None:
    spec, step = bundled.spec, bundled.ensemble.step()
    state = placed(spec, **neighbour(1, 9, -3, 12, heading=0.4), curvature=0.01)
    scene = Scene(state, np.ones((2, 3)), spec, known_of(bundled, step))

    def of(name: str) -> float:
        return float(scene.baseline_state[spec.state_index(name)])

    assert scene.name == ALONE
    assert (of("speed"), of("length"), of("neighbour_1_length")) == pytest.approx((20, 4.8, 4.6))
    assert (of("left_edge"), of("curvature"), of("neighbour_1_heading")) == (16, 0, 0)
    assert of("neighbour_1_speed") == 20
    assert of("neighbour_1_dx") > 80
    assert of("neighbour_1_dy") / of("neighbour_1_dx") == pytest.approx(-3 / 9, rel=1e-5)
    assert scene.baseline_action.tolist() == [0, 0, 0]


def test_a_model_without_a_geometry_is_compared_with_the_mean_of_its_training() -> None:
    torch.manual_seed(0)
    spec = anonymous_spec(34, 3, 0.05)
    ensemble = WorldModelEnsemble(1).eval().requires_grad_(False)
    unknown, mean = np.full(34, np.inf), np.full(34, 0.5)
    known = Known(-unknown, unknown, mean, np.full(34, 2.0))
    state = np.random.default_rng(0).normal(size=34)

    attribution = end_of(attribute(ensemble.step(), spec, known, state, np.zeros((3, 3))))

    assert attribution.baseline == TRAINING_MEAN
    assert attribution.baseline_state.tolist() == mean.tolist()
    assert {group.name for group in attribution.groups} == {"others", "actions"}
    assert abs(attribution.residual) < 1e-3
    assert np.isfinite(attribution.state_changed[:, :, 0]).all()


def test_what_is_not_finite_is_passed_on_as_such() -> None:
    ensemble = WorldModelEnsemble(1).eval().requires_grad_(False)
    next(ensemble.members).state_mean[0] = math.nan
    spread = np.ones(34)
    known = Known(-np.inf * spread, np.inf * spread, 0 * spread, spread)
    spec = anonymous_spec(34, 3, 0.05)

    attribution = end_of(attribute(ensemble.step(), spec, known, spread, np.zeros((2, 3))))

    assert math.isnan(attribution.crash_probability)
    assert np.isnan(attribution.state_gradients).all()
