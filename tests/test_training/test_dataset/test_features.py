from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.highway import highway_spec
from tests.test_training.driving import drive, mixed_episodes, save_store
from training.dataset.features import tracked_states
from training.dataset.store import EpisodeStore
from training.simulation.behaviours import make_behaviour
from training.simulation.roads import (
    edges,
    ego_features,
    heading_ahead,
    lane_below,
    next_lane,
    road_network,
    wrap_angle,
)
from training.simulation.simulator import Episode, Simulation, run_episode
from training.simulation.slots import nearest_columns, slot_features, whole_turns
from training.simulation.vehicles import Ego

SPEC = highway_spec()


def features(states: np.ndarray, name: str) -> np.ndarray:
    return states[..., SPEC.state_index(name)]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    episodes = [run_episode(seed, "racetrack", "aggressive", 40) for seed in range(2)]
    return save_store(tmp_path_factory.mktemp("simulated"), episodes)


def test_tracked_states_hold_the_world_seen_from_the_ego(tmp_path: Path) -> None:
    store = save_store(tmp_path, [drive(0, ahead_m=60.0)])
    state = tracked_states(store, np.array([0]), 0)[0, 0]
    assert features(state, "speed") == store.ego[0, 3]
    assert features(state, "neighbour_1_presence") == 1
    assert features(state, "neighbour_1_dx") == pytest.approx(60.0)
    assert features(state, "neighbour_1_dy") == pytest.approx(0.0)
    assert features(state, "neighbour_1_speed") == 10.0
    assert features(state, "neighbour_1_heading") == 0
    assert (state[SPEC.state_index("neighbour_2_presence") :] == 0).all()


def test_slot_features_are_in_the_ego_frame() -> None:
    # The ego looks along +y; the other is 10 m ahead of it and 3 m to its right (-x), driving +x.
    ego = np.array([5.0, 5.0, np.pi / 2, 8.0], np.float32)
    other = np.array([[2.0, 15.0, 0.0, 4.0]], np.float32)
    before = np.array([[1.8, 15.0, -0.05, 4.1]], np.float32)
    slot = slot_features(ego, other, before, np.array([True]))[0]
    np.testing.assert_allclose(slot, [1, 10, 3, -np.pi / 2, 4, -2, 1], atol=1e-5)


def test_acceleration_and_yaw_rate_foretell_the_next_frame(simulated: EpisodeStore) -> None:
    """They are differences to the frame before, so they say where the last step led."""
    states = tracked_states(simulated, np.arange(5, 30), 1)
    there = features(states[:, 1], "neighbour_1_presence") > 0
    now, after = states[there, 0], states[there, 1]
    faster = features(after, "neighbour_1_speed") - features(now, "neighbour_1_speed")
    np.testing.assert_allclose(
        features(after, "neighbour_1_acceleration") * 0.05, faster, atol=1e-4
    )


def test_an_episodes_first_frame_has_no_acceleration_yet(simulated: EpisodeStore) -> None:
    state = tracked_states(simulated, simulated.frame_start, 0)[:, 0]
    assert (features(state, "neighbour_1_acceleration") == 0).all()
    assert (features(state, "neighbour_1_yaw_rate") == 0).all()


def test_headings_start_within_half_a_turn_and_do_not_jump(simulated: EpisodeStore) -> None:
    starts = np.arange(0, 60, 3)
    states = tracked_states(simulated, starts, 16)
    heading = np.stack([features(states, f"neighbour_{i}_heading") for i in range(1, 5)])
    assert (np.abs(heading[:, :, 0]) <= np.pi).all()
    assert np.abs(np.diff(heading, axis=2)).max() < 1.0


@pytest.mark.parametrize(
    ("heading", "turns"), [(0.0, 0), (np.pi, 1), (-np.pi, 0), (7.0, 1), (-4.0, -1)]
)
def test_whole_turns_bring_a_heading_home(heading: float, turns: int) -> None:
    assert whole_turns(np.array([heading])) == pytest.approx(2 * np.pi * turns)


def test_a_simulation_reports_the_state_that_is_recorded(tmp_path: Path) -> None:
    world = Simulation(3, "racetrack")
    driver = make_behaviour("noisy", world.rng.spawn(1)[0], world.pace)
    seen = [world.state()]
    for _ in range(20):
        world.step(driver.action(world.ego))
        seen.append(world.state())
    store = save_store(tmp_path, [run_episode(3, "racetrack", "noisy", 20)])
    recorded = tracked_states(store, np.arange(21), 0)[:, 0]
    # Recorded poses are float32: differences over a step of 0.05 s keep fewer digits.
    np.testing.assert_allclose(np.array(seen), recorded, atol=2e-3)


def test_tracked_states_do_not_depend_on_where_the_world_is(simulated: EpisodeStore) -> None:
    angle, shift = 0.7, np.array([30.0, -12.0], np.float32)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    moved = {}
    for name in ("ego", "vehicles"):
        poses = getattr(simulated, name).copy()
        poses[..., :2] = poses[..., :2] @ turn.T + shift
        poses[..., 2] += angle
        moved[name] = poses
    other = EpisodeStore(**{**vars(simulated), **moved})
    starts = np.array([0, 10, 20])
    np.testing.assert_allclose(
        tracked_states(simulated, starts, 8), tracked_states(other, starts, 8), atol=2e-4
    )


def test_tracked_states_follow_the_vehicles_chosen_at_the_start(simulated: EpisodeStore) -> None:
    start, horizon = 5, 20
    states = tracked_states(simulated, np.array([start]), horizon)[0]
    columns, near = nearest_columns(
        simulated.ego[[start]], simulated.vehicles[[start]], simulated.present[[start]]
    )
    for slot in np.flatnonzero(near[0]):
        offset = (
            simulated.vehicles[start : start + horizon + 1, columns[0, slot], :2]
            - simulated.ego[start : start + horizon + 1, :2]
        )
        name = f"neighbour_{slot + 1}"
        distance = np.hypot(features(states, f"{name}_dx"), features(states, f"{name}_dy"))
        np.testing.assert_allclose(distance, np.linalg.norm(offset, axis=1), atol=1e-3)


def test_tracked_states_start_with_the_nearest_vehicle(simulated: EpisodeStore) -> None:
    states = tracked_states(simulated, np.arange(30), 0)[:, 0]
    distances = np.stack(
        [
            np.where(
                features(states, f"neighbour_{i}_presence") > 0,
                np.hypot(
                    features(states, f"neighbour_{i}_dx"), features(states, f"neighbour_{i}_dy")
                ),
                np.inf,
            )
            for i in range(1, 5)
        ]
    )
    assert (np.sort(distances, axis=0) == distances).all()


def test_tracked_states_repeat_the_last_frame_beyond_the_end(tmp_path: Path) -> None:
    store = save_store(tmp_path, mixed_episodes(4))
    last = int(store.frame_start[1] + store.frame_count[1] - 1)
    states = tracked_states(store, np.array([last - 2]), 6)[0]
    assert (states[3:] == states[2]).all()
    assert not (states[1] == states[2]).all()


def test_tracked_states_of_a_shorter_horizon_are_a_prefix(simulated: EpisodeStore) -> None:
    starts = np.arange(0, 30, 7)
    long, short = (tracked_states(simulated, starts, h) for h in (12, 5))
    assert (long[:, :6] == short).all()


def test_tracked_states_leave_out_vehicles_beyond_sensor_range(tmp_path: Path) -> None:
    store = save_store(tmp_path, [drive(0, ahead_m=100.5), drive(1, ahead_m=99.5)])
    states = tracked_states(store, store.frame_start, 0)[:, 0]
    assert features(states, "neighbour_1_presence").tolist() == [0, 1]


def test_tracked_states_become_zero_where_a_vehicle_left(tmp_path: Path) -> None:
    episode = drive(0)
    present = episode.present.copy()
    present[3:] = 0
    store = save_store(tmp_path, [Episode(**{**vars(episode), "present": present})])
    states = tracked_states(store, np.array([0]), 4)[0]
    assert features(states, "neighbour_1_presence").tolist() == [1, 1, 1, 0, 0]
    assert (states[3:, SPEC.state_index("neighbour_1_presence") :] == 0).all()


def test_tracked_states_are_float32_of_the_spec_s_size(simulated: EpisodeStore) -> None:
    states = tracked_states(simulated, np.array([0, 1]), 3)
    assert states.shape == (2, 4, SPEC.state_dim)
    assert states.dtype == np.float32


def test_ego_features_on_a_straight_road() -> None:
    network = road_network("highway")
    ego = Ego(_road(network), [300.0, 5.0], heading=0.1, speed=20.0)
    speed, offset, sine, left, right, curvature = ego_features(network, ego)
    assert (speed, curvature) == (20.0, 0.0)
    assert offset == pytest.approx(1.0)  # lanes are 4 m wide, centred on 0, 4, 8, 12
    assert sine == pytest.approx(np.sin(0.1))
    assert left == pytest.approx(7.0)
    assert right == pytest.approx(9.0)


def test_ego_features_see_a_curve_ahead() -> None:
    network = road_network("racetrack")
    straight = network.get_lane(("a", "b", 0))
    ego = Ego(_road(network), straight.position(54.0, 0), heading=0.0, speed=20.0)
    assert ego_features(network, ego)[5] == pytest.approx(-1 / 20, rel=0.02)  # radius 20 m, left
    ego = Ego(_road(network), straight.position(20.0, 0), heading=0.0, speed=20.0)
    assert ego_features(network, ego)[5] == pytest.approx(0.0)


def test_edges_are_negative_exactly_off_the_road() -> None:
    network = road_network("highway")
    assert edges(network, ("0", "1", 0), np.array([300.0, -2.5]))[0] == pytest.approx(-0.5)
    assert edges(network, ("0", "1", 0), np.array([300.0, 14.5]))[1] == pytest.approx(-0.5)
    assert min(edges(network, ("0", "1", 3), np.array([300.0, 13.9]))) > 0


def test_lane_below_prefers_a_lane_that_the_point_is_on() -> None:
    network = road_network("merge")
    on_highway = np.array([250.0, 0.0])
    assert lane_below(network, ("k", "b", 0), on_highway) == ("b", "c", 0)
    nowhere = np.array([250.0, -60.0])
    assert lane_below(network, ("b", "c", 0), nowhere) == ("b", "c", 0)


def test_next_lane_ends_with_the_road() -> None:
    network = road_network("merge")
    assert next_lane(network, ("j", "k", 0)) == ("k", "b", 0)
    assert next_lane(network, ("b", "c", 2)) == ("c", "d", 1)
    assert next_lane(network, ("c", "d", 1)) is None


def test_heading_ahead_goes_straight_on_after_the_last_lane() -> None:
    assert heading_ahead(road_network("merge"), ("c", "d", 0), 1e4) == 0.0


def test_wrap_angle_keeps_angles_in_one_turn() -> None:
    assert wrap_angle(3 * np.pi / 2) == pytest.approx(-np.pi / 2)
    assert wrap_angle(0.3) == pytest.approx(0.3)


def test_road_network_refuses_an_unknown_environment() -> None:
    with pytest.raises(ValueError, match="unknown environment 'moon'"):
        road_network("moon")


def _road(network: object) -> object:
    from highway_env.road.road import Road

    return Road(network=network)
