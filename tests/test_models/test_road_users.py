"""The layout with sizes: its features, its kinds, and what it says of a scene."""

from __future__ import annotations

import math

import pytest
import torch

from models.highway import highway_spec
from models.network.geometry import GeometryMap
from models.network.kinematics import KinematicStep
from models.road_users import ROAD_USERS, road_users_spec

SPEC = road_users_spec()
MIRRORED = ("lane_offset", "sin_heading_error", "curvature", "_dy", "_heading", "_yaw_rate")


def example() -> torch.Tensor:
    assert SPEC.example is not None
    return torch.tensor([SPEC.example.state], dtype=torch.float64)


def test_the_layout_has_34_state_and_3_action_features() -> None:
    names = [feature.name for feature in SPEC.state]

    assert (SPEC.state_dim, SPEC.action_dim) == (34, 3)
    assert names[6:8] == ["length", "width"]
    assert [name for name in names if name.startswith("neighbour_4")] == [
        f"neighbour_4_{part}" for part in ("length", "width", "dx", "dy", "heading", "speed")
    ]
    assert names[-2:] == ["neighbour_1_acceleration", "neighbour_2_acceleration"]
    assert SPEC.action == highway_spec().action
    assert SPEC.difference_to(highway_spec())


def test_extras_move_by_name_and_reach_their_slots() -> None:
    spec = road_users_spec(["neighbour_2_yaw_rate", "neighbour_4_acceleration"])

    assert [feature.name for feature in spec.state[-2:]] == [
        "neighbour_2_yaw_rate",
        "neighbour_4_acceleration",
    ]
    assert spec.geometry is not None
    assert [(slot.acceleration, slot.yaw_rate) for slot in spec.geometry.slots] == [
        (None, None),
        (None, "neighbour_2_yaw_rate"),
        (None, None),
        ("neighbour_4_acceleration", None),
    ]
    assert spec.signature != SPEC.signature


def test_every_kind_fits_the_features() -> None:
    by_name = {feature.name: feature for feature in SPEC.state}

    assert SPEC.road_users == ROAD_USERS
    for user in ROAD_USERS:
        assert user.length_m[1] <= by_name["neighbour_1_length"].high
        assert user.width_m[1] <= by_name["neighbour_1_width"].high


def test_edges_saturate() -> None:
    assert [(x.feature, x.low, x.high) for x in SPEC.saturations] == [
        ("left_edge", None, 16.0),
        ("right_edge", None, 16.0),
    ]


def test_the_examples_gaps_are_those_of_its_sizes() -> None:
    gaps = GeometryMap(SPEC).gaps(example().float().expand(8, -1))[0].tolist()

    # Ahead: 12 - (4.8 + 4.5) / 2, and 0.02 rad more; behind: 18 - (4.8 + 16.5) / 2.
    assert gaps[0] == pytest.approx(12 - 4.65 - 0.9 * 0.02, abs=2e-3)
    assert gaps[1] == pytest.approx(18 - 10.65, abs=1e-5)
    assert gaps[3] == 12.0
    assert gaps[5] == pytest.approx(5.7)


@pytest.mark.parametrize("steer", [0.0, 0.7, -0.4])
def test_a_mirrored_scene_moves_as_the_mirrored_one(steer: float) -> None:
    """Left and right have the same physics, whoever is how big."""
    signs = torch.tensor(
        [-1.0 if feature.name.endswith(MIRRORED) else 1.0 for feature in SPEC.state],
        dtype=torch.float64,
    )
    places = torch.arange(SPEC.state_dim)
    left, right = SPEC.state_index("left_edge"), SPEC.state_index("right_edge")
    places[[left, right]] = places[[right, left]]

    def mirrored(states: torch.Tensor) -> torch.Tensor:
        return (states * signs)[:, places]

    step, one, other = KinematicStep(SPEC), example(), mirrored(example())
    assert not torch.equal(one, other)
    for _ in range(16):
        one = step(one, torch.tensor([[steer, 0.1, 0.0]], dtype=torch.float64))
        other = step(other, torch.tensor([[-steer, 0.1, 0.0]], dtype=torch.float64))

    torch.testing.assert_close(mirrored(one), other)


def moved(spec_state: torch.Tensor, steps: int, steer: float) -> torch.Tensor:
    step = KinematicStep(SPEC)
    for _ in range(steps):
        spec_state = step(spec_state, torch.tensor([[steer, 0.0, 0.0]], dtype=torch.float64))
    return spec_state


@pytest.mark.parametrize("length_m", [2.2, 5.0, 16.5])
def test_the_conventions_give_the_steer_of_a_path_for_an_ego_of_any_length(length_m: float) -> None:
    """As the text on steering says: slip = asin(k L / 2), angle = atan(2 tan(slip))."""
    state = torch.zeros(1, 34, dtype=torch.float64)
    for name, value in {"speed": 4.0, "length": length_m, "left_edge": 9, "right_edge": 9}.items():
        state[0, SPEC.state_index(name)] = value
    curvature = 0.02
    angle = math.atan(2 * math.tan(math.asin(curvature * length_m / 2)))
    largest = min(0.5, math.atan(8.0 * length_m / 4.0**2))

    after = moved(state, 10, angle / largest)

    turned = math.asin(after[0, SPEC.state_index("sin_heading_error")].item())
    assert turned == pytest.approx(4.0 * 0.5 * curvature, rel=1e-6)


def test_an_ego_of_no_length_moves_by_finite_numbers() -> None:
    state = torch.zeros(1, 34, dtype=torch.float64)
    state[0, SPEC.state_index("speed")] = 45.0

    assert torch.isfinite(moved(state, 16, 1.0)).all()
