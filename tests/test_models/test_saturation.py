from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.road_users import road_users_spec
from models.saturation import Saturations
from models.spec import Feature, Saturation, Spec

SPEC = Spec(
    "x",
    0.1,
    state=tuple(Feature(name, "m", -50, 50, "") for name in "abcd"),
    action=(Feature("push", "1", 0, 1, ""),),
    saturations=(Saturation("d", -2.0, 3.0, "far"), Saturation("b", None, 16.0, "far")),
)


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([99, 16.5, 99, 3.5], [99, 16.0, 99, 3.0]),
        ([99, 16.0, 99, -2.5], [99, 16.0, 99, -2.0]),
        ([99, 17.0, 99, 0.0], [99, 16.0, 99, 0.0]),
        ([-99, -99.0, 0, np.inf], [-99, -99.0, 0, 3.0]),
        ([0, np.nan, 0, 9.0], [0, np.nan, 0, 3.0]),
    ],
    ids=str,
)
def test_a_feature_beyond_its_bound_is_the_bound(
    given: list[float], expected: list[float], shape: tuple[int, ...]
) -> None:
    """Alone it may take a quicker look, in company it does not."""
    states = np.zeros(shape, np.float32)
    states.reshape(-1, 4)[-1] = given
    before = states.copy()

    applied = Saturations(SPEC).applied(states)

    assert np.array_equal(applied.reshape(-1, 4)[-1], expected, equal_nan=True)
    assert not applied.reshape(-1, 4)[:-1].any()
    assert np.array_equal(states, before, equal_nan=True), "what was given has changed"


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("value", [16.0, -40.0, np.nan])
def test_states_within_their_bounds_come_back_as_they_are(count: int, value: float) -> None:
    states = np.full((count, 4), 3.0, np.float32)
    states[:, 1] = value

    assert Saturations(SPEC).applied(states) is states
    assert Saturations(replace(SPEC, saturations=())).applied(states) is states


def test_no_states_are_none() -> None:
    states = np.zeros((0, 4), np.float32)

    assert Saturations(SPEC).applied(states).shape == (0, 4)


def test_far_edges_of_the_layout_with_sizes_saturate() -> None:
    spec = road_users_spec()
    state = np.array([spec.example.state if spec.example else ()], np.float32)
    state[0, 3:5] = 31.0, 5.0

    assert Saturations(spec).applied(state)[0, 3:5].tolist() == [16.0, 5.0]
