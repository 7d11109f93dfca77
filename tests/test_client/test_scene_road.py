"""Where the ego is on the road: lane, offset, edges, curvature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.test_client.scenes import Floats, highway_lines, motorway, racetrack_lines, straight
from training.simulation.behaviours import BEHAVIOURS, make_behaviour
from training.simulation.roads import CURVATURE_SPAN_M, MAX_CURVATURE, PREVIEW_S
from training.simulation.simulator import Simulation
from world_model_client import InvalidInputError
from world_model_client.scene import FORWARD_RIGHT_DOWN, ISO8855, Place, Road, road

EGO = np.array([[0.0, 0.0, 0.0, 20.0]])


def locate(place: Road, frame: str = ISO8855, **ego: float) -> Place:
    row = {"x": 0.0, "y": 0.0, "heading": 0.0, "speed": 20.0, **ego}
    return place.locate(np.array([list(row.values())]), frame)


def test_the_constants_are_those_of_the_simulator() -> None:
    ours = road.CURVATURE_SPAN_M, road.MAX_CURVATURE, road.PREVIEW_S
    assert ours == (CURVATURE_SPAN_M, MAX_CURVATURE, PREVIEW_S)


def test_an_ego_is_placed_in_the_signs_of_iso_8855() -> None:
    place = locate(motorway(), y=4.5, heading=0.1)

    assert place.lane.tolist() == [1]
    assert place.lane_offset.tolist() == [0.5]  # left of the lane's centre
    assert place.sin_heading_error.tolist() == [np.sin(0.1)]
    assert (place.left_edge.tolist(), place.right_edge.tolist()) == ([5.5], [6.5])
    assert not place.is_against.any()


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
def test_edges_may_run_against_the_lanes(flips: tuple[bool, bool]) -> None:
    left, right = (
        straight(y)[:: -1 if flip else 1] for y, flip in zip((6, -2), flips, strict=True)
    )

    place = locate(Road([straight(0), straight(4)], left, right), y=1.0)

    assert (place.left_edge.tolist(), place.right_edge.tolist()) == ([5.0], [3.0])


@pytest.mark.parametrize("y", [-5.0, 9.0])
def test_distances_to_edges_are_negative_beyond_them(y: float) -> None:
    place = locate(Road([straight(0), straight(4)], straight(6), straight(-2)), y=y)

    assert (place.left_edge.tolist(), place.right_edge.tolist()) == ([6 - y], [y + 2])


def test_an_edge_that_is_not_known_is_infinitely_far() -> None:
    place = locate(Road([straight(0)], right_edge=straight(-2)))

    assert (place.left_edge.tolist(), place.right_edge.tolist()) == ([np.inf], [2.0])


@pytest.mark.parametrize(
    "given",
    [
        Road([straight(0)], straight(-2), straight(2)),
        Road([straight(0)], left_edge=straight(-2)),
        Road([straight(0)], right_edge=straight(2)),
        Road([straight(0)[::-1], straight(4)[::-1]], straight(6), straight(-2)),
        Road(*highway_lines()),
        Road(*racetrack_lines(1.0)),
    ],
    ids=["exchanged", "only left", "only right", "lanes reversed", "down", "closed and down"],
)
def test_edges_on_the_wrong_side_are_refused(given: Road) -> None:
    message = r"^(left|right)_edge is on the wrong side .* in the frame iso8855 .* forward-right-d"
    with pytest.raises(InvalidInputError, match=message):
        given.locate(EGO)
    given.locate(EGO, FORWARD_RIGHT_DOWN)


def test_at_a_crossing_the_ego_is_on_the_lane_that_goes_its_way() -> None:
    east, north = straight(0.0), straight(0.0)[:, ::-1]
    crossing = Road([east, north])

    assert locate(crossing, y=0.3, x=0.2, heading=0.1).lane.tolist() == [0]
    assert locate(crossing, y=0.2, x=0.3, heading=np.pi / 2).lane.tolist() == [1]
    assert locate(crossing, y=0.2, x=0.3, heading=np.pi / 2 + 6 * np.pi).lane.tolist() == [1]


def test_a_lane_that_has_ended_is_no_longer_the_closest() -> None:
    ramp = Road([straight(0.0), np.array([[-200.0, 3.0], [-30.0, 3.0]])])

    assert locate(ramp, y=2.0).lane.tolist() == [0]
    assert locate(ramp, y=2.0, x=-40).lane.tolist() == [1]


def test_an_ego_against_the_traffic_is_told() -> None:
    assert locate(motorway(), heading=3.0).is_against.all()


@pytest.mark.parametrize(("radius", "expected"), [(50.0, 0.02), (3.0, 0.2)])
@pytest.mark.parametrize("turn", [1.0, -1.0], ids=["left", "right"])
def test_the_curvature_is_that_of_the_lane_ahead(
    radius: float, expected: float, turn: float
) -> None:
    angles = np.linspace(-np.pi / 2, 0, 60)
    bend = np.stack([radius * np.cos(angles), turn * radius * (1 + np.sin(angles))], axis=1)
    lane = np.concatenate([[[-100.0, 0.0]], bend])

    for x, frame, known in (
        (-30.0, ISO8855, 0.0),  # 8 m ahead it is still straight
        (-4.0, ISO8855, turn * expected),
        (-4.0, FORWARD_RIGHT_DOWN, turn * expected),  # signs are those of the coordinates
    ):
        place = locate(Road([lane]), frame, x=x)
        assert place.curvature[0] == pytest.approx(known, rel=0.02), (x, frame)


def drive(environment: str, seed: int, steps: int) -> tuple[Floats, Floats]:
    """Return poses [T, 4] and the six features [T, 6] of a simulated drive."""
    world = Simulation(seed, environment)
    driver = make_behaviour(BEHAVIOURS[0], world.rng.spawn(1)[0], world.pace)
    poses, features = [world.poses[0]], [world.features]
    while len(poses) < steps and not world.cause:
        world.step(driver.action(world.ego))
        poses.append(world.poses[0])
        features.append(world.features)
    return np.array(poses), np.array(features)


def features_of(place: Place, poses: Floats) -> Floats:
    columns = [place.lane_offset, place.sin_heading_error, place.left_edge, place.right_edge]
    return np.stack([poses[:, 3], *columns, place.curvature], axis=1)


@pytest.mark.parametrize(
    ("environment", "seed", "lines"),
    [
        ("highway", 3, highway_lines()),
        ("highway", 8, highway_lines()),
        ("racetrack", 1, racetrack_lines(0.02)),
        ("racetrack", 5, racetrack_lines(0.02)),
    ],
)
def test_features_are_those_of_the_simulator(environment: str, seed: int, lines: Any) -> None:
    poses, known = drive(environment, seed, 100)
    assert len(poses) > 30
    assert (environment == "racetrack") == bool(np.abs(known[:, 5]).max() > 0.03)

    place = Road(*lines).locate(poses, FORWARD_RIGHT_DOWN)

    np.testing.assert_allclose(features_of(place, poses), known, atol=1e-5)


def test_a_mirrored_world_has_the_same_distances_and_opposite_signs() -> None:
    poses, known = drive("racetrack", 1, 60)
    lanes, left, right = racetrack_lines(0.1)
    turned = np.array([1.0, -1.0])

    mirrored = Road([lane * turned for lane in lanes], left * turned, right * turned)
    place = mirrored.locate(poses * [1, -1, -1, 1])

    signs = [1, -1, -1, 1, 1, -1]
    np.testing.assert_allclose(features_of(place, poses), known * signs, atol=2e-4)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (([],), r"^centre_lines is \[\] \(allowed: a list of at least one line\)"),
        ((None,), "^centre_lines is None"),
        ((straight(0.0),), r"^centre_lines\[0\] has the shape \[2\] \(allowed: finite points"),
        (([[[0, 0], [1, 1]], [[0, 0]]],), r"^centre_lines\[1\] has no length"),
        (([[[0, 0], [1, 1]]], [[0, 0], [0, np.nan]]), r"^left_edge\[1\]\[1\] is nan"),
        (([[[0, 0], [1, 1]]], None, [0, 1]), r"^right_edge has the shape \[2\]"),
    ],
)
def test_lines_that_are_none_are_refused_by_name(lines: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Road(*lines)
