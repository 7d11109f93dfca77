from __future__ import annotations

import numpy as np
import pytest

from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import Spec
from training.evaluation.baselines import slots_of
from training.evaluation.corruptions import CORRUPTIONS, Corruption
from training.simulation.fleets import CARS, MIXED
from training.simulation.simulator import Simulation

SPEC = highway_spec()
SPECS = [SPEC, road_users_spec()]
WITHOUT_EFFECT = {
    "highway": {"lengths and widths swapped"},
    "road-users": {"presence one half", "a neighbour spinning ahead"},
}
"""Ways to be wrong that a layout has no features for."""
BY_NAME = {corruption.name: corruption for corruption in CORRUPTIONS}
PLAIN_NAMES = [name.replace(" ", "_") for name in BY_NAME]


def real_states(spec: Spec) -> np.ndarray:
    """Real states of a straight road and of bends."""
    fleet = CARS if spec == SPEC else MIXED
    found = []
    for seed, environment in enumerate(["highway", *["racetrack"] * 5]):
        world = Simulation(seed, environment, fleet=fleet)
        for _ in range(4):
            world.step(np.array([0.1, 0.3, 0.0]))
            found.append(world.state(spec))
    return np.array(found)


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    return real_states(SPEC)


@pytest.fixture(scope="module")
def states_by_spec(states: np.ndarray) -> dict[str, np.ndarray]:
    return {SPEC.name: states, SPECS[1].name: real_states(SPECS[1])}


def value(states: np.ndarray, name: str) -> np.ndarray:
    return states[:, SPEC.state_index(name)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=PLAIN_NAMES)
def test_a_corruption_changes_states_and_leaves_its_input(
    corruption: Corruption, spec: Spec, states_by_spec: dict[str, np.ndarray]
) -> None:
    states = states_by_spec[spec.name]
    before = states.copy()
    wrong = corruption.apply(states, 3, spec)
    assert (states == before).all()
    assert wrong.shape == states.shape
    assert wrong.dtype == np.float32
    assert np.isfinite(wrong).all()
    assert (wrong != states).any() == (corruption.name not in WITHOUT_EFFECT[spec.name])
    assert (wrong == corruption.apply(states, 3, spec)).all()


def test_corruptions_find_features_by_name(states_by_spec: dict[str, np.ndarray]) -> None:
    spec = SPECS[1]
    states = states_by_spec[spec.name]
    expected = states.copy()
    for slot in spec.geometry.slots if spec.geometry else ():
        columns = [spec.state_index(slot.dx), spec.state_index(slot.dy)]
        expected[:, columns] = states[:, columns[::-1]]
    assert (BY_NAME["dx and dy swapped"].apply(states, spec=spec) == expected).all()

    expected = states.copy()
    edges = [spec.state_index(name) for name in ("left_edge", "right_edge")]
    expected[:, edges] = states[:, edges[::-1]]
    assert (BY_NAME["road edges swapped"].apply(states, spec=spec) == expected).all()

    wrong = BY_NAME["left and right mirrored for neighbours"].apply(states, spec=spec)
    is_turned = np.array([f.name.endswith(("_dy", "_heading", "_yaw_rate")) for f in spec.state])
    assert (wrong == np.where(is_turned, -states, states)).all()


def test_a_neighbour_that_is_put_into_an_empty_slot_has_a_size() -> None:
    spec = SPECS[1]
    empty = np.zeros((3, spec.state_dim), np.float32)
    wrong = BY_NAME["a neighbour inside the ego"].apply(empty, spec=spec)
    assert (wrong[:, spec.state_index("neighbour_1_length")] == 5).all()
    assert (wrong[:, spec.state_index("neighbour_1_width")] == 2).all()
    assert (wrong[:, spec.state_index("neighbour_2_length")] == 0).all()


def test_names_are_unique() -> None:
    assert len(BY_NAME) == len(CORRUPTIONS)
    assert sum(corruption.plausible for corruption in CORRUPTIONS) > 0


def test_units_change_by_their_factors(states: np.ndarray) -> None:
    kmh = BY_NAME["all speeds in km/h"].apply(states)
    feet = BY_NAME["all distances in feet"].apply(states)
    np.testing.assert_allclose(value(kmh, "speed"), 3.6 * value(states, "speed"))
    np.testing.assert_allclose(
        value(kmh, "neighbour_2_speed"), 3.6 * value(states, "neighbour_2_speed"), rtol=1e-6
    )
    np.testing.assert_allclose(
        value(feet, "neighbour_1_dx") * 0.3048, value(states, "neighbour_1_dx"), rtol=1e-5
    )
    np.testing.assert_allclose(
        value(feet, "left_edge") * 0.3048, value(states, "left_edge"), rtol=1e-5
    )


def test_neighbours_in_the_world_frame_keep_their_distance(states: np.ndarray) -> None:
    slots = slots_of(states)
    wrong = slots_of(BY_NAME["neighbours in the world frame"].apply(states))
    np.testing.assert_allclose(
        np.hypot(wrong[..., 1], wrong[..., 2]), np.hypot(slots[..., 1], slots[..., 2]), rtol=1e-5
    )
    assert np.abs(wrong[..., 1] - slots[..., 1]).max() > 1


def test_a_neighbour_inside_the_ego_overlaps_it(states: np.ndarray) -> None:
    slot = slots_of(BY_NAME["a neighbour inside the ego"].apply(states))[:, 0]
    assert (slot[:, 0] == 1).all()
    assert (np.abs(slot[:, 1]) < 2).all()
    assert (np.abs(slot[:, 2]) < 1).all()


def test_off_road_states_keep_the_road_s_width(states: np.ndarray) -> None:
    wrong = BY_NAME["the ego far off the road"].apply(states)
    assert (value(wrong, "right_edge") <= -4).all()
    width = value(states, "left_edge") + value(states, "right_edge")
    np.testing.assert_allclose(
        value(wrong, "left_edge") + value(wrong, "right_edge"), width, rtol=1e-5
    )


def test_noise_leaves_empty_slots_empty(states: np.ndarray) -> None:
    alone = states.copy()
    alone[:, SPEC.state_index("neighbour_3_presence") :] = 0
    wrong = BY_NAME["noise of 3 standard deviations"].apply(alone)
    assert (slots_of(wrong)[:, 2:] == 0).all()
    assert (slots_of(wrong)[:, 0, 0] == slots_of(alone)[:, 0, 0]).all()
