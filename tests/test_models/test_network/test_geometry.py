from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.highway import highway_spec
from models.network.geometry import GAP_LIMIT_M, GeometryMap
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
