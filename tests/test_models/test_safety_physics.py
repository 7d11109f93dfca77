"""What physics alone foresees takes `safe` away, whatever was predicted."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.checkpoint.checkpoint import Architecture, Checkpoint, load_checkpoint
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from models.network.kinematics import KinematicStep
from models.road_users import road_users_spec
from models.safety import SAFE, UNKNOWN, UNSAFE, SafetyLimits, Verdict, assess
from models.safety.physics import PhysicalMotion
from models.spec import Spec, anonymous_spec
from tests.test_models.test_safety_possible import (
    BUNDLED,
    CAR,
    KNOWN,
    PERSON,
    SIZED,
    SIZED_SPEC,
    user,
)

State = list[float]
Floats = NDArray[np.floating[Any]]
PHYSICAL = replace(SIZED, physics=PhysicalMotion(SIZED_SPEC), horizon=16)
COAST, BRAKE, LEFT, RIGHT = (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), (-1.0, 0.0, 0.0), (1.0, 0.0, 0.0)
STEPS = 16


def scene(*users: dict[str, float], **values: float) -> State:
    for one in users:
        values |= one
    assert values.keys() <= KNOWN.keys()
    return [values.get(name, usual) for name, usual in KNOWN.items()]


def car(
    number: int, dx: float, dy: float, heading: float = 0.0, **motion: float
) -> dict[str, float]:
    named = {f"neighbour_{number}_{name}": value for name, value in motion.items()}
    return user(number, *CAR, dx, dy, heading) | named


def judged(
    state: State,
    action: tuple[float, ...] = COAST,
    limits: SafetyLimits = PHYSICAL,
    hazard: float = 0.0,
) -> Verdict:
    """The verdict on a plan of which the network says that nobody moves."""
    states = np.full((1, STEPS + 1, len(state)), state, np.float32)
    actions = np.full((1, STEPS, 3), action, np.float32)
    (verdict,) = assess(states, np.full((1, STEPS), hazard), np.zeros(1), limits, actions=actions)
    return verdict


def said(verdict: Verdict) -> list[str]:
    return [reason.message for reason in verdict.reasons if reason.rule == "physics_contact"]


@pytest.mark.parametrize(
    ("state", "action", "expected"),
    [
        (scene(car(1, 9.0, 0.0, speed=20.0), speed=20.0), COAST, None),
        # 12 m/s^2 for 0.8 s are 3.6 m; the gap is 4.35 m, then 3.35 m.
        (scene(car(1, 9.0, 0.0, speed=20.0, acceleration=-12.0), speed=20.0), COAST, None),
        (
            scene(car(1, 8.0, 0.0, speed=20.0, acceleration=-12.0), speed=20.0),
            COAST,
            "overlaps neighbour 1 by",
        ),
        (scene(car(1, 8.0, 0.0, speed=20.0, acceleration=-12.0), speed=20.0), BRAKE, None),
        (
            scene(car(2, -8.0, 0.0, speed=10.0, acceleration=12.0), speed=10.0),
            COAST,
            "overlaps neighbour 2 by",
        ),
        # A van passes a standing ego so closely that it strikes it.
        (
            scene(car(1, 12.0, 1.0, np.pi, speed=15.0)),
            COAST,
            "overlaps neighbour 1 by",
        ),
        (scene(car(1, 12.0, 2.1, np.pi, speed=15.0)), COAST, None),
        # Somebody walks in front of the ego.
        (
            scene(user(1, *PERSON, 8.0, 2.0, -np.pi / 2) | {"neighbour_1_speed": 2.0}, speed=10.0),
            COAST,
            "overlaps neighbour 1",
        ),
        (scene(speed=15.0, left_edge=1.0, right_edge=9.0), LEFT, "off the road (left_edge)"),
        (scene(speed=15.0, left_edge=9.0, right_edge=1.0), RIGHT, "off the road (right_edge)"),
        (scene(speed=15.0, left_edge=1.0, right_edge=9.0), COAST, None),
        # A road that bends to the right leaves a straight ego on its left.
        (
            scene(speed=20.0, left_edge=1.0, right_edge=9.0, curvature=0.02),
            COAST,
            "off the road (left_edge)",
        ),
        (scene(speed=20.0, left_edge=3.0, right_edge=9.0, curvature=0.02), COAST, None),
        (
            scene(speed=20.0, left_edge=9.0, right_edge=1.0, curvature=-0.02),
            COAST,
            "off the road (right_edge)",
        ),
        (
            scene(speed=10.0, left_edge=9.0, right_edge=1.0, sin_heading_error=0.3),
            COAST,
            "off the road (right_edge)",
        ),
    ],
    ids=str,
)
def test_what_physics_foresees_is_not_safe(
    state: State, action: tuple[float, ...], expected: str | None
) -> None:
    verdict = judged(state, action)

    assert verdict.verdict == (SAFE if expected is None else UNKNOWN)
    assert [reason.rule for reason in verdict.reasons] == (
        [] if expected is None else ["physics_contact"]
    )
    assert all(
        message.startswith("by physics alone the ego ") and str(expected) in message
        for message in said(verdict)
    )


@pytest.mark.parametrize(
    ("state", "action"),
    [
        # Both are there for less than a step: a motorcycle crosses the ego's corner.
        (
            scene(
                user(1, 2.2, 0.8, 9.449, -9.748, 1.569) | {"neighbour_1_speed": 29.81},
                speed=18.684,
                length=4.6,
                width=1.85,
                left_edge=16.0,
                right_edge=16.0,
            ),
            COAST,
        ),
        # 0.29 m too far by constant acceleration, 0.06 m by Euler's steps.
        (
            scene(
                user(1, 2.2, 0.8, -13.205, 0.0)
                | {"neighbour_1_speed": 10.97, "neighbour_1_acceleration": 11.829},
                speed=10.83,
                length=16.5,
                width=2.55,
            ),
            (0.0, 0.0, 0.104),
        ),
        # On the inside of a bend its arc is tighter than the lane's.
        (
            scene(
                speed=13.2572,
                lane_offset=1.6462,
                sin_heading_error=-0.0278,
                left_edge=3.1772,
                right_edge=5.1577,
                curvature=0.0686,
                length=6.0,
                width=2.1,
            ),
            (0.151, 0.0, 0.0),
        ),
        # Almost across the road.
        (
            scene(
                speed=10.9043,
                sin_heading_error=-0.9848,
                left_edge=8.2896,
                right_edge=6.4903,
                length=16.5,
                width=2.55,
            ),
            COAST,
        ),
    ],
    ids=["between steps", "acceleration", "inside of a bend", "across the road"],
)
def test_what_is_close_is_computed_closely(state: State, action: tuple[float, ...]) -> None:
    verdict = judged(state, action)

    assert verdict.verdict == UNKNOWN
    assert len(said(verdict)) == 1


def test_constant_accelerations_and_turn_rates_are_exact() -> None:
    motion, end_s = PhysicalMotion(SIZED_SPEC), STEPS * 0.05
    start = np.array(
        [scene(car(1, 50.0, 0.0, speed=20.0, acceleration=-12.0), speed=20.0, left_edge=99.0)]
    )
    places = motion(start, np.array([[BRAKE] * STEPS]))[0, -1]
    assert SIZED_SPEC.kinematics is not None
    own_m = 20.0 * end_s - SIZED_SPEC.kinematics.full_brake_mps2 * end_s**2 / 2
    assert places[0] == pytest.approx(50.0 + 20.0 * end_s - 6.0 * end_s**2 - own_m, abs=1e-6)

    stopping = np.array([scene(car(1, 9.0, 0.0, speed=3.0, acceleration=-10.0))])
    assert motion(stopping, np.zeros((1, STEPS, 3)))[0, -1, 0] == pytest.approx(9.45, abs=0.02)


def test_both_motions_are_named_and_unsafe_stays_unsafe() -> None:
    state = scene(car(1, 8.0, 0.0, speed=20.0, acceleration=-12.0), speed=20.0)
    states = np.full((1, STEPS + 1, len(state)), state, np.float32)
    states[:, 1:, SIZED_SPEC.state_index("neighbour_1_dx")] = 4.0
    actions = np.zeros((1, STEPS, 3), np.float32)
    judge = partial(assess, states, limits=PHYSICAL, actions=actions, uncertainty=np.zeros(1))

    (doubted,) = judge(dones=np.zeros((1, STEPS)))
    assert doubted.verdict == UNKNOWN
    assert [reason.rule for reason in doubted.reasons] == ["predicted_contact", "physics_contact"]
    (unsafe,) = judge(dones=np.full((1, STEPS), 0.5))
    assert unsafe.verdict == UNSAFE
    assert len(said(unsafe)) == 1


def test_each_sequence_is_judged_by_its_own_actions_and_start() -> None:
    starts = [
        scene(car(1, 8.0, 0.0, speed=20.0, acceleration=-12.0), speed=20.0),
        scene(car(1, 8.0, 0.0, speed=20.0), speed=20.0),
    ]
    pairs = list(product(starts, (COAST, BRAKE)))
    states = np.array([[start] * (STEPS + 1) for start, _ in pairs], np.float32)
    actions = np.array([[action] * STEPS for _, action in pairs], np.float32)

    verdicts = assess(states, np.zeros((4, STEPS)), np.zeros(4), PHYSICAL, actions=actions)

    assert [verdict.verdict for verdict in verdicts] == [UNKNOWN, SAFE, SAFE, SAFE]
    assert verdicts == [judged(*pair) for pair in pairs]


@pytest.mark.parametrize("shape", [None, (1, 15, 3), (2, 16, 3)], ids=str)
def test_physics_is_never_left_out_for_want_of_actions(shape: tuple[int, ...] | None) -> None:
    states = np.full((1, STEPS + 1, len(KNOWN)), scene(), np.float32)
    actions = None if shape is None else np.zeros(shape, np.float32)

    with pytest.raises(ValueError, match="do not fit states"):
        assess(states, np.zeros((1, STEPS)), np.zeros(1), PHYSICAL, actions=actions)


@pytest.mark.parametrize("value", [np.nan, 1e38, -1e38])
@pytest.mark.parametrize("column", range(3))
def test_absurd_actions_make_no_noise(value: float, column: int) -> None:
    """NumPy's warnings are errors in tests."""
    action = [0.0] * 3
    action[column] = value
    verdict = judged(scene(car(1, 9.0, 0.0, speed=20.0), speed=20.0), tuple(action))

    assert verdict.verdict == UNKNOWN or np.isfinite(value)


@pytest.mark.parametrize("column", range(3))
def test_no_action_that_is_no_number_is_safe(column: int) -> None:
    actions = np.zeros((1, STEPS, 3), np.float32)
    actions[0, 7, column] = np.nan
    states = np.full((1, STEPS + 1, len(KNOWN)), scene(speed=20.0), np.float32)
    (verdict,) = assess(states, np.zeros((1, STEPS)), np.zeros(1), PHYSICAL, actions=actions)

    assert verdict.verdict == UNKNOWN
    assert len(said(verdict)) == 1


@pytest.mark.parametrize("count", [2, 3, 8, 17, 64])
def test_a_row_has_the_same_bits_alone_and_in_company(count: int) -> None:
    rng = np.random.default_rng(count)
    starts = np.array(
        [
            scene(
                *(
                    car(
                        i, rng.uniform(-30, 30), rng.uniform(-30, 30), rng.uniform(-3, 3), speed=9.0
                    )
                    for i in (1, 2)
                ),
                speed=rng.uniform(0, 44),
                curvature=rng.uniform(-0.05, 0.05),
                sin_heading_error=rng.uniform(-0.9, 0.9),
            )
            for _ in range(count)
        ],
        np.float32,
    )
    actions = rng.uniform(-1, 1, (count, STEPS, 3)).astype(np.float32)
    actions[..., 1:] = np.abs(actions[..., 1:])
    motion = PhysicalMotion(SIZED_SPEC)

    together = motion(starts, actions)
    shared = motion(starts[:1], actions)

    for k in range(count):
        assert (motion(starts[k : k + 1], actions[k : k + 1]) == together[k]).all()
        assert (motion(starts[:1], actions[k : k + 1]) == shared[k]).all()


FINER = 20
"""So many of Euler's steps in one are nearly the motion that they stand for."""


def by_steps(spec: Spec, start: Floats, actions: Floats) -> Floats:
    """The motion by the model's own analytic step, in steps so short that they sum up to it."""
    step = KinematicStep(replace(spec, dt_s=spec.dt_s / FINER))
    state, after = torch.from_numpy(start), []
    with torch.inference_mode():
        for k in range(actions.shape[1]):
            for _ in range(FINER):
                state = step(state, torch.from_numpy(actions[:, k]))
            after.append(state.numpy())
    return np.stack(after, axis=1)


def limits_of(spec: Spec) -> tuple[list[int], int]:
    """Columns of places and headings, kind by kind, as `SafetyLimits.motion_columns`; and slots."""
    assert spec.geometry is not None
    slots = spec.geometry.slots
    names = [getattr(slot, kind) for kind in ("dx", "dy", "heading") for slot in slots]
    return [spec.state_index(name) for name in names], len(slots)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_it_is_the_motion_that_the_model_corrects(seed: int, has_sizes: bool, is_one: bool) -> None:
    """To a few centimetres: speeds change within a step, and a bend is less exact there."""
    spec = road_users_spec() if has_sizes else highway_spec()
    rng = np.random.default_rng(seed)
    low = np.array([max(feature.low, -40.0) for feature in spec.state])
    high = np.array([min(feature.high, 40.0) for feature in spec.state])
    start = rng.uniform(low, high, (1 if is_one else 5, spec.state_dim))
    car = spec.kinematics
    assert car is not None
    start[:, spec.state_index(car.curvature)] = rng.uniform(-0.004, 0.004, len(start))
    start[:, spec.state_index(car.lane_offset)] = 0.0
    start[:, spec.state_index(car.sin_heading_error)] = rng.uniform(-0.2, 0.2, len(start))
    assert spec.geometry is not None
    for slot in spec.geometry.slots:  # as if everybody was there, and drove forwards
        start[:, spec.state_index(slot.gate)] = 1.0 if slot.has_presence else 4.5
        usual = {slot.speed: (3, 30), slot.acceleration: (-7, 7), slot.yaw_rate: (-0.5, 0.5)}
        for name, bounds in usual.items():
            if name is not None:
                start[:, spec.state_index(name)] = rng.uniform(*bounds, len(start))
    low, high = np.array([[a.low, a.high] for a in spec.action]).T
    actions = rng.uniform(low, high, (5, STEPS, spec.action_dim))
    every = np.repeat(start, 5, axis=0) if is_one else start

    found = PhysicalMotion(spec)(start, actions)
    expected = by_steps(spec, every, actions)

    columns, count = limits_of(spec)
    difference = found[..., : 3 * count] - expected[..., columns]
    assert np.abs(difference).max() < 0.06
    edges = [spec.state_index(name) for name in spec.geometry.edges]
    assert np.abs(found[..., 3 * count :] - expected[..., edges]).max() < 0.06


def test_a_straight_road_makes_edges_exact_and_a_round_one_keeps_their_distance() -> None:
    motion, speed, radius = PhysicalMotion(SIZED_SPEC), 10.0, 40.0
    straight = np.array([scene(speed=speed, sin_heading_error=0.1)])
    actions = np.zeros((1, STEPS, 3))
    right = SIZED_SPEC.state_index("right_edge")

    expected = by_steps(SIZED_SPEC, straight, actions)[0, :, right]
    assert motion(straight, actions)[0, :, -1] == pytest.approx(expected, abs=1e-6)

    # It drives the road's own circle, its nose turned inwards by the slip of its centre.
    sin_slip = 4.8 / (2 * radius)
    round_road = np.array([scene(speed=speed, curvature=1 / radius, sin_heading_error=-sin_slip)])
    assert SIZED_SPEC.kinematics is not None
    grip = SIZED_SPEC.kinematics.grip_mps2 * 4.8 / speed**2
    wheel = np.arctan(2 * np.tan(np.arcsin(sin_slip)))
    actions[..., SIZED_SPEC.action_index("steer")] = wheel / np.arctan(grip)
    edges = motion(round_road, actions)[0, :, -2:]
    assert np.abs(edges - 6.0).max() < 0.05


def test_physics_is_part_of_the_limits_of_a_model_that_has_kinematics_and_a_geometry() -> None:
    limits = load_checkpoint(BUNDLED).limits
    assert limits.physics is not None
    braking = scene(car(1, 8.0, 0.0, speed=20.0, acceleration=-12.0), speed=20.0)
    assert said(judged(braking, limits=limits))
    assert not said(judged(braking, BRAKE, limits=limits))

    ensemble = WorldModelEnsemble(1, state_dim=4, action_dim=2)
    assert Checkpoint(ensemble, anonymous_spec(4, 2), Architecture()).limits.physics is None
    with pytest.raises(ValueError, match="names no kinematics and geometry"):
        PhysicalMotion(replace(SIZED_SPEC, kinematics=None))
