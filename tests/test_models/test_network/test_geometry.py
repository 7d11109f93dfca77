from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.highway import highway_spec
from models.network.geometry import GAP_LIMIT_M, GeometryMap
from models.road_users import road_users_spec
from models.spec import anonymous_spec

SPEC = highway_spec()


def state_with_neighbour(dx: float, dy: float, heading: float = 0.0) -> Tensor:
    state = torch.zeros(1, 34)
    values = {
        "left_edge": 6.0,
        "right_edge": 2.5,
        "neighbour_2_presence": 1.0,
        "neighbour_2_dx": dx,
        "neighbour_2_dy": dy,
        "neighbour_2_heading": heading,
    }
    for name, value in values.items():
        state[0, SPEC.state_index(name)] = value
    return state


@pytest.mark.parametrize(
    ("dx", "dy", "heading", "gap_m"),
    [
        (8.0, 0.0, 0.0, 3.0),  # bumper to bumper: 8 - 5
        (-8.0, 0.0, math.pi, 3.0),  # behind, facing the other way
        (0.0, 3.0, 0.0, 1.0),  # side by side: 3 - 2
        (4.0, 0.0, 0.0, -1.0),  # 1 m of overlap
        (6.0, 0.0, math.pi / 2, 2.5),  # crosswise in front: 6 - 2.5 - 1
    ],
    ids=["ahead", "behind", "beside", "overlap", "crosswise"],
)
def test_gap_is_the_distance_between_rectangles(
    dx: float, dy: float, heading: float, gap_m: float
) -> None:
    gaps = GeometryMap(SPEC).gaps(state_with_neighbour(dx, dy, heading))

    assert gaps[0, 1].item() == pytest.approx(gap_m, abs=1e-5)


def test_absent_neighbours_are_at_the_limit_and_the_minimum_and_edge_follow() -> None:
    gaps = GeometryMap(SPEC).gaps(state_with_neighbour(8.0, 0.0))[0]

    assert gaps[[0, 2, 3]].tolist() == [GAP_LIMIT_M] * 3
    assert gaps[4] == gaps[1]
    assert gaps[5].item() == 2.5


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-math.pi, math.pi), st.integers(-1, 1))
def test_gap_is_symmetric_between_the_two_cars(
    dx: float, dy: float, heading: float, turns: int
) -> None:
    """Seen from the other car the gap is the same, after whole turns too."""
    geometry = GeometryMap(SPEC)
    there = state_with_neighbour(dx, dy, heading)
    cos_h, sin_h = math.cos(heading), math.sin(heading)
    back = state_with_neighbour(
        -dx * cos_h - dy * sin_h, dx * sin_h - dy * cos_h, 2 * math.pi * turns - heading
    )

    assert torch.allclose(geometry.gaps(there), geometry.gaps(back), atol=1e-3)


SIZED = road_users_spec()


def sized_state(values: dict[str, float]) -> Tensor:
    state = torch.zeros(1, SIZED.state_dim)
    for name, value in {"left_edge": 6.0, "right_edge": 2.5, **values}.items():
        state[0, SIZED.state_index(name)] = value
    return state


def corners(x: float, y: float, heading: float, length: float, width: float) -> list[complex]:
    """Return a rectangle's corners, counterclockwise for x to the right and y up."""
    turn = complex(math.cos(heading), math.sin(heading))
    return [
        complex(x, y) + turn * complex(a * length / 2, b * width / 2)
        for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))
    ]


def overlap_m2(one: list[complex], other: list[complex]) -> float:
    """Return the area that two convex polygons share, by clipping one at the other's sides."""
    left = other
    for begin, end in zip(one, one[1:] + one[:1], strict=True):
        side = end - begin

        def depth(p: complex, begin: complex = begin, side: complex = side) -> float:
            return (side.conjugate() * (p - begin)).imag

        kept = []
        for p, q in zip(left, left[1:] + left[:1], strict=True):
            a, b = depth(p), depth(q)
            if a >= 0:
                kept.append(p)
            if a * b < 0:
                kept.append(p + (q - p) * (a / (a - b)))
        left = kept
    return sum((p.conjugate() * q).imag for p, q in zip(left, left[1:] + left[:1], strict=True)) / 2


lengths, widths = st.floats(0.3, 19.0), st.floats(0.3, 2.6)


@settings(max_examples=400, deadline=None)
@given(
    st.floats(-15, 15),
    st.floats(-6, 6),
    st.floats(-math.pi, math.pi),
    lengths,
    widths,
    lengths,
    widths,
)
def test_gaps_of_any_sizes_say_as_clipping_does_whether_rectangles_overlap(
    dx: float, dy: float, heading: float, length: float, width: float, own: float, wide: float
) -> None:
    names = ("length", "width", "dx", "dy", "heading")
    given = zip(names, (length, width, dx, dy, heading), strict=True)
    state = sized_state(
        {"length": own, "width": wide, **{f"neighbour_3_{name}": x for name, x in given}}
    )

    gap = GeometryMap(SIZED).gaps(state)[0, 2].item()

    def shared(shrunk: float) -> float:
        return overlap_m2(
            corners(0, 0, 0, own - shrunk, wide - shrunk),
            corners(dx, dy, heading, length - shrunk, width - shrunk),
        )

    if gap < -0.01:
        assert shared(0.0) > 0
    elif gap > 0.01:
        assert shared(0.0) == 0
    if -0.2 < gap < -0.01:
        # By that much they must move: smaller by more than it all around, they are apart.
        assert shared(-2 * gap + 0.01) < 1e-9 or min(length, width, own, wide) < -2 * gap + 0.02


def test_the_gap_to_a_truck_is_measured_to_its_own_bumper() -> None:
    truck = {"neighbour_1_length": 16.5, "neighbour_1_width": 2.5, "neighbour_1_dx": 13.0}
    person = {"neighbour_2_length": 0.5, "neighbour_2_width": 0.6, "neighbour_2_dy": -4.0}

    gaps = GeometryMap(SIZED).gaps(
        sized_state({"length": 4.5, "width": 1.8, **truck, **person}).expand(8, -1)
    )

    assert gaps[0, 0].item() == pytest.approx(13.0 - 8.25 - 2.25)
    assert gaps[0, 1].item() == pytest.approx(4.0 - 0.9 - 0.3)
    assert gaps[0, 2:4].tolist() == [GAP_LIMIT_M] * 2


@pytest.mark.parametrize("length", [0.0, -1.0])
def test_who_has_no_length_is_not_there(length: float) -> None:
    near = {"neighbour_1_length": length, "neighbour_1_width": 2.0, "neighbour_1_dx": 1.0}

    assert GeometryMap(SIZED).gaps(sized_state(near))[0, 0].item() == GAP_LIMIT_M


def test_without_edges_or_slots_nothing_is_near() -> None:
    assert SPEC.geometry is not None
    bare = replace(
        SPEC, geometry=replace(SPEC.geometry, slots=(), edges=()), kinematics=None, example=None
    )

    assert GeometryMap(bare).gaps(torch.zeros(8, 34)).tolist() == [[GAP_LIMIT_M] * 2] * 8


def test_squashed_gaps_are_monotone_and_bounded() -> None:
    geometry = GeometryMap(SPEC)
    values = torch.cat([geometry(state_with_neighbour(x, 0.0)) for x in (2.0, 5.0, 6.0, 20.0)])

    assert (values.abs() < 1).all()
    assert (values[1:, 1] > values[:-1, 1]).all()


def test_gaps_are_differentiable_at_empty_slots() -> None:
    state = torch.zeros(2, 34, requires_grad=True)

    GeometryMap(SPEC)(state).sum().backward()

    assert state.grad is not None
    assert torch.isfinite(state.grad).all()


def test_a_spec_without_geometry_is_refused() -> None:
    with pytest.raises(ValueError, match="names no geometry"):
        GeometryMap(anonymous_spec(5, 2))
