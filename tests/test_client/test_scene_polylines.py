"""Lines on maps: projections, headings and curvature."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import world_model_client.scene.polylines
from tests.test_client.scenes import Floats, racetrack_lines, straight
from world_model_client import InvalidInputError
from world_model_client.scene import Polylines

POINTS = st.lists(
    st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=12, unique=True
)


def line(points: Any) -> Polylines:
    return Polylines([points], ["line"])


def project(points: Any, x: float, y: float) -> tuple[float, float, float]:
    place = line(points).project(np.array([x]), np.array([y]))
    return float(place.along[0, 0]), float(place.lateral[0, 0]), float(place.beyond[0, 0])


def arc(radius: float, angles: Floats) -> Floats:
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def nearest_by_hand(points: Floats, x: float, y: float) -> float:
    """Return the distance to the closest of many points on the line."""
    shares = np.linspace(0, 1, 2001)[:, None]
    dense = np.concatenate([a + shares * (b - a) for a, b in pairwise(points)])
    return float(np.hypot(*(dense - [x, y]).T).min())


@settings(max_examples=150, deadline=None)
@given(POINTS, st.floats(-60, 60), st.floats(-60, 60))
def test_the_closest_place_is_that_of_a_search_of_the_whole_line(
    corners: list[tuple[int, int]], x: float, y: float
) -> None:
    points = 3.0 * np.array(corners, float)  # steps of 3 m and more: no jogs
    along, lateral, beyond = project(points, x, y)

    by_hand = nearest_by_hand(points, x, y)

    assert np.hypot(lateral, beyond) == pytest.approx(by_hand, abs=0.06)
    assert beyond >= 0
    length = float(line(points).lengths_m[0])
    assert (beyond > 0) == (along < 0 or along > length)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (3.0, 2.0, (3.0, 2.0, 0.0)),
        (3.0, -2.0, (3.0, -2.0, 0.0)),
        (-4.0, 1.0, (-4.0, 1.0, 4.0)),
        (14.0, -1.0, (14.0, -1.0, 4.0)),
    ],
)
def test_a_line_goes_straight_on_beyond_its_ends(
    x: float, y: float, expected: tuple[float, float, float]
) -> None:
    assert project([[0, 0], [5, 0], [10, 0]], x, y) == pytest.approx(expected)


def test_the_extension_of_an_end_runs_through_no_other_part_of_the_line() -> None:
    hook = [[0, 0], [20, 0], [20, 20], [-10, 20], [-10, 10]]

    # On the extension of the last piece, down x = -10, but nearest to the first point.
    along, lateral, beyond = project(hook, -1.0, 1.0)

    assert (along, lateral, beyond) == pytest.approx((-1.0, 1.0, 1.0))


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_side_of_a_point_outside_of_a_corner_is_known(side: float) -> None:
    corner = [[-50.0, 0.0], [0.0, 0.0], [-30.0, 40.0 * side]]  # turns by 127 degrees

    for angle in np.linspace(-80, 30, 12):
        x, y = np.cos(np.radians(angle)), side * np.sin(np.radians(angle))
        assert np.sign(project(corner, x, y)[1]) == -side, angle


@pytest.mark.parametrize("pieces", [8, 40, 1000])
def test_points_on_an_arc_give_its_headings_and_curvature(pieces: int) -> None:
    radius = 50.0
    shape = line(arc(radius, np.linspace(0, 2, pieces + 1)))
    inner = np.linspace(0.2, 1.8, 33)
    points = arc(radius - 1.5, inner)

    place = shape.project(points[:, 0], points[:, 1])
    chord = 2 / pieces

    np.testing.assert_allclose(place.lateral[:, 0], 1.5, atol=radius * chord**2 / 8 + 1e-9)
    headings = shape.heading_at(place.along)[:, 0]
    np.testing.assert_allclose(
        headings, inner + np.pi / 2, atol=0.02 * chord
    )  # seen from 1.5 m inside
    turn = shape.heading_at(place.along + 2) - shape.heading_at(place.along - 2)
    np.testing.assert_allclose(turn / 4, 1 / radius, rtol=chord**2)


def test_a_long_straight_piece_does_not_turn_before_its_end() -> None:
    bend = arc(20, np.linspace(-1.5, 0, 31)) + np.array([0, 20])
    shape = line([[-100, 0], [0, 0], *bend])

    headings = shape.heading_at(np.array([[0.0], [50.0], [98.0]]))

    np.testing.assert_array_equal(headings, 0.0)


def test_a_closed_line_has_no_ends_and_turns_through_its_first_point() -> None:
    circle = line(arc(30.0, np.append(np.linspace(0, 2 * np.pi, 360)[:-1], 0.0)))
    place = circle.project(np.array([31.0, 29.0]), np.array([-0.01, 0.01]))

    assert circle.is_closed.all()
    np.testing.assert_array_equal(place.beyond, 0)
    np.testing.assert_allclose(place.lateral[:, 0], [-1, 1], atol=2e-3)
    for low, high in ((-2.0, 2.0), (circle.lengths_m[0] - 2, circle.lengths_m[0] + 2)):
        turn = circle.heading_at(np.array([[high]])) - circle.heading_at(np.array([[low]]))
        assert float(np.mod(turn, 2 * np.pi)[0, 0]) / 4 == pytest.approx(1 / 30, rel=1e-3)


@pytest.mark.parametrize(
    "points",
    [
        [[0, 0], [0, 0], [10, 0], [10, 0], [20, 0]],
        [[0, 0], [10, 0], [9.7, 0.0], [20, 0]],  # the second piece begins before the first ends
        [[0, 0], [10, 0], [9.5, 0.0], [9.8, 0.0], [10.1, 0.0], [20, 0]],
        [[0, 0], [10, 0], [10, 1e-4], [20, 0]],
    ],
    ids=["repeated", "overlap", "overlap of many", "nearly repeated"],
)
def test_faults_where_pieces_are_joined_are_left_out(points: list[list[float]]) -> None:
    shape = line(points)
    along = np.linspace(0, 20, 201)[:, None]

    np.testing.assert_allclose(shape.heading_at(along), 0, atol=1e-2)
    place = shape.project(along[:, 0], np.full(201, -1.0))
    np.testing.assert_allclose(place.lateral, -1, atol=1e-2)


def test_a_closed_line_whose_end_overlaps_its_beginning_stays_closed() -> None:
    (lane, _), _, _ = racetrack_lines(0.5)  # its last arc ends 1.2 m beyond the first point
    shape = line(lane)

    assert shape.is_closed.all()
    along = np.arange(0, shape.lengths_m[0], 0.1)[:, None]
    turns = np.diff(shape.heading_at(along)[:, 0])
    assert np.abs(turns).max() < 0.5


def test_several_lines_are_each_projected_on_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    (inner, outer), left, _ = racetrack_lines(2.0)
    shapes: list[Any] = [inner, straight(3.0), outer, left, [[0, 0], [1, 1]]]
    together = Polylines(shapes, list("abcde"))
    x, y = rng.uniform(-30, 130, (2, 500))
    whole = together.project(x, y)
    monkeypatch.setattr(world_model_client.scene.polylines, "_MOST_AT_ONCE", 1000)

    parts = together.project(x, y)

    for i, points in enumerate(shapes):
        alone = line(points).project(x, y)
        for one, other, third in zip(whole, alone, parts, strict=True):
            np.testing.assert_array_equal(one[:, i], other[:, 0])
            np.testing.assert_array_equal(one[:, i], third[:, i])
        headings = together.heading_at(whole.along)[:, i]
        np.testing.assert_allclose(headings, line(points).heading_at(alone.along)[:, 0], atol=1e-12)
        there = together.positions_at(whole.along)[:, i]
        apart = np.hypot(there[:, 0] - x, there[:, 1] - y)
        is_on = whole.beyond[:, i] == 0
        np.testing.assert_allclose(apart[is_on], np.abs(whole.lateral[is_on, i]), atol=1e-9)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([[0, 0]], r"^line has no length, by 1 points \(allowed: at least 2 points that are"),
        ([[1, 1], [1, 1]], "^line has no length, by 2 points"),
        ([], r"^line holds|^line has the shape \[0\] \(allowed: finite points \[P, 2\], x and y"),
        (np.zeros((0, 2)), r"^line has the shape \[0, 2\]"),
        ([[0, 0, 0], [1, 1, 1]], r"^line has the shape \[2, 3\]"),
        ([[0, 0], [1, np.nan]], r"^line\[1\]\[1\] is nan \(allowed: finite points"),
        ([[0, 0], [np.inf, 1]], r"^line\[1\]\[0\] is inf"),
        ([[0, 0], [1]], "^line has rows that are not alike"),
        ([["0", "0"], ["1", "1"]], "^line holds values of type <U1, not numbers"),
        ([[True, False], [False, True]], "^line holds values of type bool"),
        (None, "^line holds values of type object"),
    ],
)
def test_points_that_make_no_line_are_refused_by_name(points: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        line(points)


@pytest.mark.parametrize("is_path", [True, False])
def test_many_points_are_projected_as_one_by_one(
    monkeypatch: pytest.MonkeyPatch, is_path: bool
) -> None:
    rng = np.random.default_rng(1)
    turns = np.cumsum(rng.normal(0, 0.05, 2000))
    road = np.cumsum(3 * np.stack([np.cos(turns), np.sin(turns)], axis=-1), axis=0)
    angles = np.linspace(0, 2 * np.pi, 200)
    ring = 300 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    ring[-1] = ring[0]
    lines = Polylines([road, ring, road[::-40]], ["road", "ring", "coarse"])
    points = (
        road[:900] + rng.normal(0, 2, (900, 2)) if is_path else rng.uniform(-3e3, 3e3, (900, 2))
    )
    whole = lines.project(*points.T)
    monkeypatch.setattr(world_model_client.scene.polylines, "_MOST_AT_ONCE", 4000)
    parts = lines.project(*points.T)
    for one, other in zip(whole, parts, strict=True):
        assert (one == other).all()


def test_bounds_are_those_of_all_points() -> None:
    lines = Polylines([[[0, 5], [10, 0]], [[-3, 2], [4, 9], [1, 1]]], ["a", "b"])
    low, high = lines.bounds()
    assert low == pytest.approx([-3, 0])
    assert high == pytest.approx([10, 9])
