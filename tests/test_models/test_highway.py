"""The conventions of the layout without sizes: in the spec and in the physics."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from models.highway import highway_spec
from models.network.kinematics import KinematicStep

SPEC = highway_spec()
NAMES = [feature.name for feature in SPEC.state]
TEXTS = {convention.about: convention.text for convention in SPEC.conventions}
TURNED = ("lane_offset", "sin_heading_error", "curvature")
TURNED_OF_SLOTS = ("dy", "heading", "yaw_rate")


def moved(state: dict[str, float], *actions: tuple[float, float, float]) -> dict[str, float]:
    """Return the state after actions; features that are not named are 0, edges are far."""
    full = {**dict.fromkeys(NAMES, 0.0), "left_edge": 6.0, "right_edge": 6.0, **state}
    rows = torch.tensor([[full[name] for name in NAMES]], dtype=torch.float64)
    step = KinematicStep(SPEC)
    for action in actions:
        rows = step(rows, torch.tensor([action], dtype=torch.float64))
    return dict(zip(NAMES, rows[0].tolist(), strict=True))


def test_positive_steer_takes_the_car_to_the_right() -> None:
    ahead = {"neighbour_1_presence": 1.0, "neighbour_1_dx": 30.0, "neighbour_1_speed": 20.0}

    after = moved({"speed": 20.0, **ahead}, *[(0.5, 0.0, 0.0)] * 4)

    assert after["lane_offset"] > 0
    assert after["left_edge"] > 6.0 > after["right_edge"]
    assert after["sin_heading_error"] > 0
    # Whoever is straight ahead is now to the left of where the ego points, and points to the left.
    assert after["neighbour_1_dy"] < 0
    assert after["neighbour_1_heading"] < 0


def test_a_lane_of_positive_curvature_bends_to_the_right() -> None:
    after = moved({"speed": 20.0, "curvature": 0.01}, *[(0.0, 0.0, 0.0)] * 4)

    assert after["lane_offset"] < 0
    assert after["sin_heading_error"] < 0


def test_a_neighbour_of_positive_heading_and_turn_rate_goes_to_the_right() -> None:
    there = {"neighbour_1_presence": 1.0, "neighbour_1_dx": 30.0, "neighbour_1_speed": 20.0}

    by_heading = moved({**there, "neighbour_1_heading": 0.1}, (0.0, 0.0, 0.0))
    by_turning = moved({**there, "neighbour_1_yaw_rate": 0.5}, *[(0.0, 0.0, 0.0)] * 4)

    assert by_heading["neighbour_1_dy"] > 0
    assert by_turning["neighbour_1_heading"] > 0
    assert by_turning["neighbour_1_dy"] > 0


def test_the_features_that_a_mirror_turns_are_those_that_the_frame_names() -> None:
    """A mirrored scene goes on mirrored only if each sign that depends on the side is turned."""
    rng = np.random.default_rng(3)
    state = dict(zip(NAMES, rng.uniform(-0.3, 0.3, len(NAMES)), strict=True))
    for slot in range(1, 5):
        state |= {f"neighbour_{slot}_presence": 1.0, f"neighbour_{slot}_speed": 10.0 + slot}
    state |= {"speed": 20.0, "curvature": 0.01, "left_edge": 3.0, "right_edge": 5.0}

    after = moved(state, (0.3, 0.2, 0.0), (-0.1, 0.0, 0.4))
    mirrored = moved(in_mirror(state), (-0.3, 0.2, 0.0), (0.1, 0.0, 0.4))

    assert mirrored == pytest.approx(in_mirror(after), abs=1e-12)
    named = re.search(r"turn the signs of (.*?)\. Distances", TEXTS["frame"])
    assert named is not None
    words = set(re.findall(r"\w+", named[1]))
    assert words - {"of", "each", "and"} == {*TURNED, *TURNED_OF_SLOTS, "steer"}


def in_mirror(state: dict[str, float]) -> dict[str, float]:
    turned = {n: -x if n.endswith((*TURNED, *TURNED_OF_SLOTS)) else x for n, x in state.items()}
    turned["sin_heading_error"] = -state["sin_heading_error"]
    return turned | {"left_edge": state["right_edge"], "right_edge": state["left_edge"]}


@pytest.mark.parametrize("speed", [0.5, 5.0, 8.0, 9.0, 25.0])
def test_the_formula_of_steering_is_the_model_s(speed: float) -> None:
    angle = 0.4 * min(0.5, math.atan(8 * 5 / max(speed, 1) ** 2))
    slip = math.atan(math.tan(angle) / 2)

    after = moved({"speed": speed}, (0.4, 0.0, 0.0))

    assert after["lane_offset"] == pytest.approx(speed * math.sin(slip) * 0.05)
    turned = speed * math.sin(slip) / 2.5 * 0.05
    assert after["sin_heading_error"] == pytest.approx(math.sin(turned), rel=1e-6)


@pytest.mark.parametrize(
    ("speed", "throttle", "brake", "after"),
    [(20, 1, 0, 20.25), (20, 0, 1, 19.6), (20, 1, 1, 19.85), (0.1, 0, 1, 0), (39.9, 1, 0, 40)],
)
def test_the_formula_of_pedals_is_the_model_s(
    speed: float, throttle: float, brake: float, after: float
) -> None:
    assert moved({"speed": speed}, (0, throttle, brake))["speed"] == pytest.approx(after)


def test_each_feature_s_meaning_names_its_sign() -> None:
    sided = [f for f in (*SPEC.state, *SPEC.action) if f.low < 0]

    assert len(sided) > 20
    for feature in sided:
        assert re.search(r"positive|negative beyond", feature.meaning), feature.name
