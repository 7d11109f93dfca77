"""Curvatures and accelerations to actions, and back: as the simulator moves its car."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.highway import highway_spec
from tests.test_client.scenes import Floats, cars_document, document, sized_names
from training.simulation.bicycle import bicycle_step, steering_limit
from world_model_client import InvalidInputError
from world_model_client.scene import (
    FORWARD_RIGHT_DOWN,
    ISO8855,
    Bicycle,
    Ego,
    StateBuilder,
    bicycle,
)

CAR = Bicycle(frame=FORWARD_RIGHT_DOWN)
DT_S = 0.05


def actions(count: int, seed: int = 0) -> Floats:
    """Return actions [count, 3] that push one pedal at a time."""
    rng = np.random.default_rng(seed)
    pedal = rng.uniform(-1, 1, count)
    steer = rng.uniform(-1, 1, count)
    return np.stack([steer, np.maximum(pedal, 0), np.maximum(-pedal, 0)], axis=1)


def drive(car: Bicycle, steps: Floats, speed: float = 15.0) -> Floats:
    poses = [np.array([3.0, -2.0, 3.0, speed])]
    for step in steps:
        poses.append(car.step(poses[-1], step, DT_S))
    return np.array(poses)


def test_the_constants_are_those_of_the_model() -> None:
    car = highway_spec().kinematics
    assert car is not None
    assert car.full_throttle_mps2 == bicycle.FULL_THROTTLE_MPS2
    assert car.full_brake_mps2 == bicycle.FULL_BRAKE_MPS2
    assert car.grip_mps2 == bicycle.GRIP_MPS2
    assert car.max_steering_rad == bicycle.MAX_STEERING_RAD
    assert car.max_speed_mps == bicycle.MAX_SPEED_MPS
    assert car.length_m == CAR.length


@pytest.mark.parametrize("speed", [0.0, 0.5, 8.0, 15.0, 39.9])
def test_a_step_is_that_of_the_simulator(speed: float) -> None:
    poses = np.tile([1.0, 2.0, 0.4, speed], (200, 1))

    ours, theirs = CAR.step(poses, actions(200), DT_S), bicycle_step(poses, actions(200), DT_S)

    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    np.testing.assert_allclose(CAR.largest_angle(speed), steering_limit(speed), rtol=1e-12)


def test_an_iso_8855_world_is_the_same_one_mirrored() -> None:
    flip = np.array([1, -1, -1, 1])
    plain = drive(CAR, actions(50))
    car, pose = Bicycle(frame=ISO8855), plain[0] * flip
    for action, expected in zip(actions(50), plain[1:], strict=True):
        pose = car.step(pose, action, DT_S)
        np.testing.assert_allclose(pose, expected * flip, atol=1e-9)

    # To the left in ISO 8855 is negative steer.
    assert car.steer_for_curvature(0.02, 10.0) == -CAR.steer_for_curvature(0.02, 10.0) < 0


@given(st.floats(-1, 1), st.floats(0.5, 40), st.floats(1.5, 19))
def test_steer_gives_the_curvature_that_it_was_made_for(
    steer: float, speed: float, length: float
) -> None:
    car = Bicycle(length)

    curvature = car.curvature_of_steer(steer, speed)

    assert car.steer_for_curvature(curvature, speed) == pytest.approx(steer, abs=1e-9)
    after = car.step([0, 0, 0, speed], [steer, 0, 0], DT_S)
    assert after[2] == pytest.approx(curvature * speed * DT_S, abs=1e-12)


def test_the_steer_of_the_convention() -> None:
    # slip = asin(2.5 k), angle = atan(2 tan(slip)), largest = 0.5 rad up to 8.6 m/s.
    slip = np.arcsin(2.5 * 0.1)
    assert CAR.steer_for_curvature(0.1, 5.0) == pytest.approx(np.arctan(2 * np.tan(slip)) / 0.5)
    assert CAR.steer_for_curvature([5.0, -5.0], 5.0).tolist() == [1, -1]  # no car turns so


@pytest.mark.parametrize(
    ("acceleration", "throttle", "brake"),
    [(0, 0, 0), (2.5, 0.5, 0), (-4.0, 0, 0.5), (9, 1, 0), (-20, 0, 1)],
)
def test_pedals_give_the_acceleration(acceleration: float, throttle: float, brake: float) -> None:
    pedals = CAR.pedals_for_acceleration(acceleration)

    np.testing.assert_array_equal(pedals, (throttle, brake))
    assert CAR.acceleration_of_pedals(*pedals) == np.clip(acceleration, -8, 5)


@pytest.mark.parametrize("frame", [ISO8855, FORWARD_RIGHT_DOWN])
@pytest.mark.parametrize("length", [4.5, 5.0, 12.0])
def test_actions_are_inferred_from_the_motion_that_they_gave(frame: str, length: float) -> None:
    car = Bicycle(length, frame)
    poses = np.stack([drive(car, actions(40, seed)) for seed in range(3)])
    poses[..., 2] = np.mod(poses[..., 2] + np.pi, 2 * np.pi) - np.pi

    found = car.actions_from_motion(poses, DT_S)

    assert found.actions.shape == (3, 40, 3)
    assert found.is_possible.all()
    known = np.stack([actions(40, seed) for seed in range(3)])
    np.testing.assert_allclose(found.actions, known, atol=1e-5)


def test_motion_that_no_bicycle_does_is_told() -> None:
    still = [[0, 0, 0, 10.0], [0.5, 0, 0, 10.0]]
    for after, is_possible, action in (
        ([0.5, 0, 0.0, 10.0], True, (0, 0, 0)),
        ([0.5, 0, 0.5, 10.0], False, (1, 0, 0)),
        ([0.5, 0, -0.2, 10.0], False, (-1, 0, 0)),
        ([0.5, 0, 0.0, 10.6], False, (0, 1, 0)),
        ([0.5, 0, 0.0, 9.5], False, (0, 0, 1)),
    ):
        found = CAR.actions_from_motion([still[0], after], DT_S)
        assert found.is_possible.tolist() == [is_possible], after
        assert tuple(found.actions[0].tolist()) == action


def test_a_car_that_stands_has_straight_wheels() -> None:
    found = CAR.actions_from_motion([[0, 0, 0, 0.05], [0, 0, 0.3, 0.05], [0, 0, 0.6, 0.0]], DT_S)

    assert found.is_possible.all()
    np.testing.assert_allclose(found.actions, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.125]], atol=1e-6)


def test_a_builder_has_the_bicycle_of_its_model() -> None:
    truck = Ego(0, 0, 0, 10, 12.0, 2.5, "truck")

    assert StateBuilder(cars_document()).bicycle(truck) == Bicycle(5.0)
    sized = StateBuilder(document(sized_names()), FORWARD_RIGHT_DOWN)
    assert sized.bicycle(truck) == Bicycle(12.0, FORWARD_RIGHT_DOWN)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Bicycle(0), r"^length is 0 \(allowed: a number above 0, to 1000\)"),
        (lambda: Bicycle(frame="iso"), r"^frame is 'iso' \(allowed: iso8855 or forward-right-down"),
        (lambda: Bicycle(model_frame=""), "^model_frame is ''"),
        (lambda: CAR.actions_from_motion([[0, 0, 0, 1]], 0.1), "^poses has one pose"),
        (lambda: CAR.actions_from_motion([0, 0, 0, 1], 0.1), r"^poses has the shape \[4\]"),
        (lambda: CAR.actions_from_motion(np.zeros((0, 4)), 0.1), r"^poses has the shape \[0, 4\]"),
        (lambda: CAR.actions_from_motion([[0, 0, 0, 1], [0, 0, 1]], 0.1), "^poses has rows that"),
        (
            lambda: CAR.actions_from_motion(np.full((2, 2, 4), np.nan), 0.1),
            r"^poses\[0\]\[0\]\[0\] is nan \(allowed: finite numbers",
        ),
        (lambda: CAR.actions_from_motion(np.zeros((2, 4)), 0), "^dt_s is 0 .allowed: a finite nu"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(call: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call()
