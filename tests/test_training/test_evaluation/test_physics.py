"""Physics of any spec: what each kind keeps, and how errors of neighbours are counted."""

from __future__ import annotations

import numpy as np
import pytest

from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import Spec
from tests.test_training.toy import toy_spec
from training.dataset.windows import Windows
from training.evaluation.physics import (
    CONSTANT_RATES,
    CONSTANT_VELOCITY,
    has_neighbours,
    neighbour_errors,
    rollout,
)

HORIZON = 4


def scene(spec: Spec, **features: float) -> np.ndarray:
    state = np.zeros(spec.state_dim)
    gate = "length" if spec.name == "road-users" else "presence"
    values = {"speed": 10.0, f"neighbour_1_{gate}": 1.0, "neighbour_1_dx": 20.0, **features}
    if gate == "length":
        values |= {"length": 5.0, "width": 2.0, "neighbour_1_width": 2.0}
    for name, value in values.items():
        state[spec.state_index(name)] = value
    return state


def test_only_specs_with_neighbours_and_kinematics_have_physics() -> None:
    assert has_neighbours(highway_spec())
    assert has_neighbours(road_users_spec())
    assert not has_neighbours(toy_spec())


@pytest.mark.parametrize("spec", [highway_spec(), road_users_spec()], ids=lambda spec: spec.name)
def test_rates_are_kept_or_not(spec: Spec) -> None:
    start = scene(spec, neighbour_1_speed=10.0, neighbour_1_acceleration=2.0)[None]
    actions = np.zeros((1, HORIZON, 3))
    dx = spec.state_index("neighbour_1_dx")

    still, faster = (rollout(spec, start, actions, keeps_rates=x)[0, :, dx] for x in (False, True))

    assert still == pytest.approx([20.0] * (HORIZON + 1))
    # Explicit Euler: step k + 1 is made with the speed after k.
    assert faster == pytest.approx(
        [20.0 + 0.05 * 0.1 * k * (k - 1) / 2 for k in range(HORIZON + 1)]
    )
    assert start[0, spec.state_index("neighbour_1_acceleration")] == 2.0


def test_errors_are_of_neighbours_that_are_there_by_episode() -> None:
    spec = highway_spec()
    dx, there = spec.state_index("neighbour_1_dx"), spec.state_index("neighbour_1_presence")
    start = np.stack([scene(spec, neighbour_1_speed=10.0)] * 3)
    states = np.repeat(start[:, None], HORIZON + 1, axis=1).astype(np.float32)
    states[2, -1, there] = 0.0  # gone at the end: not counted
    predicted = states.copy()
    predicted[:, -1, dx] += [1.0, 3.0, 50.0]
    windows = Windows(
        states=states,
        actions=np.zeros((3, HORIZON, 3), np.float32),
        rewards=np.zeros((3, HORIZON), np.float32),
        terminated=np.zeros((3, HORIZON), np.bool_),
        valid=np.ones((3, HORIZON), np.bool_),
        episode=np.array([4, 4, 9]),
        environment=np.zeros(3, np.uint8),
        behaviour=np.zeros(3, np.uint8),
        start_step=np.arange(3),
    )

    found = neighbour_errors(spec, windows, predicted, draws=20)

    assert found["model"]["mean"] == pytest.approx(2.0)
    assert found["model"]["by_step"] == pytest.approx([0, 0, 0, 0, 2.0])
    for name in (CONSTANT_VELOCITY, CONSTANT_RATES):
        assert found[name]["mean"] == pytest.approx(0.0, abs=1e-5)
        assert found[name]["lead"] == pytest.approx(2.0, abs=1e-5)
