from __future__ import annotations

import numpy as np
import pytest

from models.highway import highway_spec
from training.evaluation.baselines import slots_of
from training.evaluation.corruptions import CORRUPTIONS, Corruption
from training.simulation.simulator import Simulation

SPEC = highway_spec()
BY_NAME = {corruption.name: corruption for corruption in CORRUPTIONS}
PLAIN_NAMES = [name.replace(" ", "_") for name in BY_NAME]


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    """Real states of a straight road and of bends."""
    found = []
    for seed, environment in enumerate(["highway", *["racetrack"] * 5]):
        world = Simulation(seed, environment)
        for _ in range(4):
            world.step(np.array([0.1, 0.3, 0.0]))
            found.append(world.state())
    return np.array(found)


def value(states: np.ndarray, name: str) -> np.ndarray:
    return states[:, SPEC.state_index(name)]


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=PLAIN_NAMES)
def test_a_corruption_changes_states_and_leaves_its_input(
    corruption: Corruption, states: np.ndarray
) -> None:
    before = states.copy()
    wrong = corruption.apply(states, seed=3)
    assert (states == before).all()
    assert wrong.shape == states.shape
    assert wrong.dtype == np.float32
    assert np.isfinite(wrong).all()
    assert (wrong != states).any()
    assert (wrong == corruption.apply(states, seed=3)).all()


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
    slots_of(alone)[:, 2:] = 0
    wrong = BY_NAME["noise of 3 standard deviations"].apply(alone)
    assert (slots_of(wrong)[:, 2:] == 0).all()
    assert (slots_of(wrong)[:, 0, 0] == slots_of(alone)[:, 0, 0]).all()
