"""Places in ISO 8855 axes: signs, sizes, who is there, and the road's lines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.highway import highway_spec
from models.network.kinematics import KinematicStep
from models.road_users import road_users_spec
from models.spec import anonymous_spec
from service.showing.places import EGO, Places

SPEC = road_users_spec()
PLACES = Places(SPEC)


def state(**features: float) -> np.ndarray:
    """Return a state [S] of an ego of 4.5 x 1.8 m alone, with some features replaced."""
    values = {"length": 4.5, "width": 1.8, "left_edge": 6.0, "right_edge": 5.0, **features}
    found = np.zeros(SPEC.state_dim, np.float32)
    for name, value in values.items():
        found[SPEC.state_index(name)] = value
    return found


SOMEBODY = {
    "neighbour_2_length": 12.0,
    "neighbour_2_width": 2.5,
    "neighbour_2_dx": 10.0,
    "neighbour_2_dy": 3.0,
    "neighbour_2_heading": 0.1,
}


def test_right_becomes_below_and_clockwise_becomes_negative() -> None:
    ego, other = PLACES.tracks(state(**SOMEBODY)[None], np.zeros((0, 3)))

    assert (ego.name, ego.poses.tolist(), ego.sizes.round(4).tolist()) == (
        EGO,
        [[0, 0, 0]],
        [[4.5, 1.8]],
    )
    assert other.name == "neighbour_2"
    assert other.poses[0] == pytest.approx([10, -3, -0.1])
    assert other.sizes[0] == pytest.approx([12, 2.5])


def test_who_stands_still_stays_where_it_is_while_the_ego_turns() -> None:
    step = KinematicStep(SPEC)
    states = [torch.tensor(state(speed=10.0, **SOMEBODY))[None]]
    actions = np.tile(np.array([0.6, 0.2, 0.0], np.float32), (16, 1))
    for action in actions:
        states.append(step(states[-1], torch.tensor(action)[None]))

    ego, other = PLACES.tracks(torch.cat(states).numpy(), actions)

    assert np.abs(other.poses - other.poses[0]).max() < 2e-3
    assert ego.poses[-1, 0] > 5
    assert ego.poses[-1, 1] < -1  # steer > 0 is to the right
    assert ego.poses[-1, 2] < -0.3


def test_who_is_there_at_the_start_stays_in_a_prediction_but_not_in_a_recording() -> None:
    states = np.stack([state(**SOMEBODY), state()])
    actions = np.zeros((1, 3))

    _, predicted = PLACES.tracks(states, actions)
    _, recorded = PLACES.tracks(states, actions, is_recorded=True)

    assert predicted.is_there.tolist() == [True, True]
    assert predicted.sizes[1] == pytest.approx([12, 2.5])
    assert recorded.is_there.tolist() == [True, False]


def test_gaps_are_those_of_rectangles_and_of_edges_in_sight() -> None:
    features = {**SOMEBODY, "neighbour_2_dy": 0.0, "neighbour_2_heading": 0.0, "right_edge": 16.0}

    gaps = PLACES.gaps(np.stack([state(**features), state(**{**features, "neighbour_2_dx": 8.0})]))

    assert gaps["neighbour_2"] == pytest.approx([10 - 8.25, 8 - 8.25])
    assert gaps["left_edge"] == pytest.approx([6, 6])
    assert set(gaps) == {"neighbour_2", "left_edge"}


def test_lines_of_a_straight_road_lie_where_the_state_says() -> None:
    road = PLACES.road(state(lane_offset=0.5))

    assert set(road) == {"lane", "left_edge", "right_edge"}
    for name, left in (("lane", 0.5), ("left_edge", 6.0), ("right_edge", -5.0)):
        assert road[name][:, 1] == pytest.approx(left)
        assert road[name][[0, -1], 0] == pytest.approx([-30, 80])


def test_a_road_that_bends_to_the_right_does_so_by_its_curvature() -> None:
    lane = PLACES.road(state(curvature=0.01))["lane"]

    assert np.hypot(lane[:, 0], lane[:, 1] + 100) == pytest.approx(100)  # its centre: to the right
    assert lane[-1, 1] < -20


def test_an_ego_that_points_to_the_right_has_its_lane_turned_to_the_left() -> None:
    lane = PLACES.road(state(sin_heading_error=0.2))["lane"]

    assert np.diff(lane[:, 1]) / np.linalg.norm(np.diff(lane, axis=0), axis=1) == pytest.approx(0.2)


def test_a_tight_bend_ends_after_a_quarter_of_a_circle() -> None:
    lane = PLACES.road(state(curvature=0.2))["lane"]

    assert lane[-1] == pytest.approx([5, -5])


def test_an_edge_that_saturates_is_out_of_sight() -> None:
    assert set(PLACES.road(state(left_edge=16.0))) == {"lane", "right_edge"}


def test_sizes_are_the_usual_ones_where_states_have_none() -> None:
    spec = highway_spec()
    start = np.zeros(spec.state_dim, np.float32)
    start[spec.state_index("neighbour_1_presence")] = 1

    ego, other = Places(spec).tracks(start[None], np.zeros((0, 3)))

    assert ego.sizes.tolist() == other.sizes.tolist() == [[5, 2]]


def test_places_are_known_of_vehicles_that_steer_as_the_conventions_say() -> None:
    assert SPEC.kinematics is not None
    other = replace(SPEC, kinematics=replace(SPEC.kinematics, grip_mps2=4.0))

    assert Places.are_known(SPEC)
    assert not Places.are_known(other)
    assert not Places.are_known(anonymous_spec(34, 3))
