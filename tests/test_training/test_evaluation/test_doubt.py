from __future__ import annotations

import numpy as np
import pytest

from models.road_users import road_users_spec
from training.evaluation.doubt import doubt_of_errors, impossible

SPEC = road_users_spec()
assert SPEC.example is not None
EXAMPLE = np.array([SPEC.example.state], np.float32)


def changed(**features: float) -> np.ndarray:
    state = EXAMPLE.copy()
    for name, value in features.items():
        state[0, SPEC.state_index(name)] = value
    return state


@pytest.mark.parametrize(
    ("state", "is_impossible"),
    [
        pytest.param(EXAMPLE, False, id="as_it_is"),
        pytest.param(changed(neighbour_1_dx=3.0, neighbour_1_dy=0.5), True, id="in_the_ego"),
        pytest.param(changed(neighbour_1_dx=4.6, neighbour_1_dy=0.0), False, id="touching"),
        # The truck is 16.5 m long: its front is 10 m nearer than its centre.
        pytest.param(changed(neighbour_2_dx=-10.0, neighbour_2_dy=0.0), True, id="long"),
        pytest.param(changed(neighbour_3_dx=13.0, neighbour_3_dy=-4.2), True, id="in_another"),
        pytest.param(changed(left_edge=2.0, right_edge=10.0), True, id="beside_the_left_edge"),
        pytest.param(changed(right_edge=2.0), True, id="beside_the_right_edge"),
        pytest.param(changed(right_edge=2.0, neighbour_2_heading=np.pi), False, id="comes_towards"),
        pytest.param(changed(right_edge=2.0, neighbour_2_speed=0.0), False, id="is_parked"),
        pytest.param(changed(neighbour_1_dy=-20.0, left_edge=16.0), False, id="no_edge_in_sight"),
    ],
)
def test_impossible_states_are_those_that_physics_can_tell(
    state: np.ndarray, is_impossible: bool
) -> None:
    assert impossible(state, SPEC).tolist() == [is_impossible]


def test_a_road_that_bends_takes_others_with_it() -> None:
    # In a bend to the right with a radius of 100 m the road is 1.6 m farther right after 18 m.
    ahead = {"neighbour_1_dx": 18.0, "neighbour_1_dy": 6.8, "neighbour_1_heading": 0.18}
    assert impossible(changed(curvature=0.01, **ahead), SPEC).tolist() == [False]
    assert impossible(changed(**ahead), SPEC).tolist() == [True]


def test_large_errors_are_doubted_as_often_as_counted() -> None:
    error = np.array([0.1, 0.1, 0.1, 0.1, 5.0, 5.0, 5.0])
    is_doubted = np.array([1, 0, 0, 0, 1, 1, 0], bool)
    found = doubt_of_errors(error, is_doubted, 1.0, np.array([0, 1, 2, 3, 0, 1, 2]), 50)
    assert found["beyond"]["windows"] == 3
    assert found["within"]["windows"] == 4
    assert found["beyond"]["share"] == pytest.approx(2 / 3)
    assert found["within"]["share"] == pytest.approx(1 / 4)
    assert found["ratio"] == pytest.approx(8 / 3)
    assert found["interval"][0] < found["ratio"] < found["interval"][1]


@pytest.mark.parametrize("limit", [1.0, 100.0])
def test_a_ratio_of_no_doubt_is_none(limit: float) -> None:
    found = doubt_of_errors(np.arange(9.0), np.zeros(9, bool), limit, np.arange(9), 5)
    assert found["ratio"] is None
