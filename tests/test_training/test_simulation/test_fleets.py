from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from models.highway import highway_spec
from models.road_users import EDGE_LIMIT_M, ROAD_USERS, road_users_spec
from models.spec import Feature, Spec
from training.simulation.behaviours import LaneDriver, as_action
from training.simulation.bicycle import DT_S, bicycle_step
from training.simulation.fleets import (
    CAR,
    EGO_SHARES,
    KINDS,
    TIGHT_LENGTH_M,
    TRAFFIC_SHARES,
    Build,
    draw_build,
)
from training.simulation.rectangles import rectangle_gap
from training.simulation.simulator import CAUSES, Episode, Simulation, run_episode
from training.simulation.states import StateEncoder
from training.simulation.vehicles import Traffic
from training.simulation.walkers import Cyclist, Pedestrian
from world_model_client.scene import gap

SPEC = road_users_spec()
TRUCK = Build(KINDS.index("truck"), 11.0, 2.5)


def feature(state: np.ndarray, name: str, spec: Spec = SPEC) -> float:
    return float(state[..., spec.state_index(name)])


@pytest.fixture(scope="module")
def worlds() -> list[Simulation]:
    roads = ("highway", "merge", "racetrack", "roundabout")
    return [Simulation(seed, roads[seed % 4], fleet="mixed") for seed in range(60)]


def test_a_fleet_of_cars_drives_as_before_there_were_others() -> None:
    """Models of the layout `highway` were trained on these episodes: a seed must stay theirs."""
    digest = hashlib.sha256()
    for seed, road in enumerate(("highway", "merge", "racetrack", "roundabout")):
        world = Simulation(seed, road, fleet="cars")
        assert (world.sizes == CAR[1:]).all()
        for _ in range(5):
            world.step(np.array([0.02, 0.1, 0.0]))
        digest.update(np.round(world.poses, 6).tobytes())
    assert digest.hexdigest()[:16] == "255e55e5289076a8"


def test_a_mixed_fleet_has_all_kinds_in_their_sizes(worlds: list[Simulation]) -> None:
    seen = {kind for world in worlds for kind in world.kinds[1:]}
    assert seen == set(range(len(KINDS)))
    assert {KINDS[world.kinds[0]] for world in worlds} <= set(EGO_SHARES)
    for world in worlds:
        assert len(world.sizes) == len(world.kinds) == len(world.poses)
        for kind, (length, width) in zip(world.kinds, world.sizes, strict=True):
            user = ROAD_USERS[kind]
            is_stopped = (length, width) == CAR[
                1:
            ]  # what is parked at the ramp's end is a usual car
            assert is_stopped or user.length_m[0] <= length <= user.length_m[1]
            assert is_stopped or user.width_m[0] <= width <= user.width_m[1]


def test_most_of_a_mixed_fleet_are_cars(worlds: list[Simulation]) -> None:
    kinds = np.concatenate([world.kinds[1:] for world in worlds])
    assert 0.4 < (kinds == CAR.kind).mean() < 0.7
    assert np.mean([world.kinds[0] == CAR.kind for world in worlds]) > 0.5


def test_nobody_is_long_where_bends_are_narrow(worlds: list[Simulation]) -> None:
    for world in worlds:
        if world.environment in ("racetrack", "roundabout"):
            assert world.sizes[:, 0].max() <= TIGHT_LENGTH_M


def test_highways_of_a_mixed_fleet_have_2_to_8_lanes() -> None:
    lanes = {
        len(Simulation(seed, "highway", fleet="mixed").road.network.graph["0"]["1"])
        for seed in range(60)
    }
    assert lanes == set(range(2, 9))


def test_nobody_overlaps_the_ego_at_the_start(worlds: list[Simulation]) -> None:
    for world in worlds:
        ego, others = world.poses[0], world.poses[1:]
        dx, dy = (others[:, :2] - ego[:2]).T
        cos, sin = np.cos(ego[2]), np.sin(ego[2])
        gaps = rectangle_gap(
            cos * dx + sin * dy,
            cos * dy - sin * dx,
            others[:, 2] - ego[2],
            tuple(world.sizes[0]),
            tuple(world.sizes[1:].T),
        )
        assert gaps.min(initial=1.0) > 0


def test_a_mixed_episode_repeats_for_its_seed_and_records_who_was_there() -> None:
    one, two = (run_episode(4, "highway", "noisy", 20, fleet="mixed") for _ in range(2))
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(two, name))
    world = Simulation(4, "highway", fleet="mixed")
    count = len(world.others)
    np.testing.assert_array_equal(one.size[:count], world.sizes[1:].astype(np.float32))
    np.testing.assert_array_equal(one.kind[:count], world.kinds[1:])
    assert (one.kind[count:] == -1).all()
    assert (one.size[count:] == 0).all()
    np.testing.assert_array_equal(one.ego_size, world.sizes[0].astype(np.float32))


def test_an_unknown_fleet_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown fleet 'boats'; known: \\['cars', 'mixed'\\]"):
        Simulation(0, "highway", fleet="boats")


def test_kinds_that_are_too_long_are_not_drawn() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_build(rng, TRAFFIC_SHARES, TIGHT_LENGTH_M) for _ in range(300)]
    assert max(build.length_m for build in drawn) <= TIGHT_LENGTH_M
    # A trailer is 12 m at least: none but exactly that length.
    assert {"bus", "truck", "van"} <= {KINDS[build.kind] for build in drawn}


def crashed() -> tuple[Episode, int]:
    for seed in range(200):
        episode = run_episode(seed, "highway", "aggressive", fleet="mixed")
        if episode.cause == CAUSES.index("crash"):
            gaps = gaps_of(episode, -1)
            hit = int(gaps.argmin())
            if abs(episode.size[hit, 0] - 5) > 2:
                return episode, hit
    raise AssertionError("no crash with anybody but a car")


def gaps_of(episode: Episode, frame: int) -> np.ndarray:
    there = episode.present[frame] > 0
    offset = episode.vehicles[frame, there] - episode.ego[frame]
    cos, sin = np.cos(episode.ego[frame, 2]), np.sin(episode.ego[frame, 2])
    dx, dy = cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0]
    size = episode.size[there]
    return np.asarray(gap(dx, dy, offset[:, 2], tuple(episode.ego_size), (size[:, 0], size[:, 1])))


@pytest.mark.slow
def test_a_crash_is_the_first_overlap_of_true_rectangles() -> None:
    episode, hit = crashed()
    assert gaps_of(episode, -1)[hit] < 0 < gaps_of(episode, -2).min()


@pytest.mark.parametrize("build", [CAR, TRUCK, Build(KINDS.index("motorcycle"), 2.0, 0.8)])
def test_the_ego_turns_by_its_own_length(build: Build) -> None:
    world = Simulation(1, "highway")
    world.ego.become(build)
    action = np.array([0.5, 0.2, 0.0])
    expected = bicycle_step(world.poses[0], action, length=build.length_m)
    world.step(action)
    np.testing.assert_allclose(world.poses[0], expected, atol=1e-9)


def test_full_steer_of_a_long_ego_is_as_much_as_its_grip_allows() -> None:
    world = Simulation(1, "highway")
    world.ego.become(TRUCK)
    angle = math.atan(8.0 * TRUCK.length_m / world.ego.speed**2)
    assert as_action(world.ego, angle, 0.0)[0] == pytest.approx(1.0)


def test_a_driver_keeps_its_distance_to_the_rear_of_a_long_vehicle() -> None:
    """The same gap between bumpers is the same to a driver, whoever is ahead."""

    def wanted(build: Build) -> float:
        world = Simulation(2, "highway")
        ego, ahead = world.ego, next(x for x in world.others if isinstance(x, Traffic))
        ahead.become(build)
        lane = world.road.network.get_lane(ego.lane_index)
        along, _ = lane.local_coordinates(ego.position)
        ahead.position = lane.position(along + 12 + (ego.LENGTH + ahead.LENGTH) / 2, 0)
        ego.position = lane.position(along, 0)
        ahead.heading, ahead.speed, ahead.lane_index = 0.0, ego.speed, ego.lane_index
        world.road.vehicles = [ego, ahead]
        drivers = LaneDriver(np.random.default_rng(0), 30.0).acceleration(ego)
        ahead.target_speed = ego.target_speed = 30.0
        libraries = ahead.acceleration(ego, ahead)
        return drivers + 1000 * round(float(libraries), 9)

    assert wanted(TRUCK) == pytest.approx(wanted(CAR))


def test_long_vehicles_accelerate_less_and_keep_more_distance() -> None:
    worlds = [Simulation(seed, "highway", fleet="mixed") for seed in range(30)]
    drivers = [x for world in worlds for x in world.others if isinstance(x, Traffic)]
    heavy = [x for x in drivers if x.build.is_heavy]
    light = [x for x in drivers if not x.build.is_heavy]
    assert np.mean([x.COMFORT_ACC_MAX for x in heavy]) < 0.6 * np.mean(
        [x.COMFORT_ACC_MAX for x in light]
    )
    assert np.mean([x.TIME_WANTED for x in heavy]) > 1.15 * np.mean([x.TIME_WANTED for x in light])


def walkers_of(kind: type) -> list[tuple[Simulation, int]]:
    found = []
    for seed in range(60):
        world = Simulation(seed, "racetrack", fleet="mixed")
        found += [(world, i) for i, x in enumerate(world.others) if isinstance(x, kind)]
    return found


def test_cyclists_ride_along_the_road_at_its_right_edge() -> None:
    for world, i in walkers_of(Cyclist)[:4]:
        cyclist, poses = world.others[i], []
        for _ in range(60):
            world.step(np.array([0.0, 0.0, 1.0]))
            poses.append(world.poses[1 + i])
        way = np.linalg.norm(np.diff(np.array(poses)[:, :2], axis=0), axis=1)
        assert way.min() > 0.6 * cyclist.speed * DT_S
        assert way.max() < 2.0 * cyclist.speed * DT_S
        lane = world.road.network.get_lane(cyclist.index)
        assert 0 < cyclist.offset_m < lane.width / 2
        assert np.abs(np.diff(np.array(poses)[:, 2])).max() < 0.5


def test_pedestrians_cross_stand_or_walk_beside_the_road() -> None:
    moved = []
    for world, i in walkers_of(Pedestrian)[:12]:
        before = world.poses[1 + i]
        for _ in range(100):
            world.step(np.array([0.0, 0.0, 1.0]))
        after = world.poses[1 + i]
        moved.append(float(np.linalg.norm(after[:2] - before[:2])))
        assert moved[-1] <= 2.5 * 5.0 + 1e-6
        assert after[3] in (0.0, world.others[i].target_speed)
    assert max(moved) > 2.0


def test_a_state_of_road_users_holds_their_sizes() -> None:
    world = Simulation(3, "highway", fleet="mixed")
    state, cars = world.state(SPEC), world.state()
    assert state.shape == (SPEC.state_dim,)
    assert feature(state, "length") == pytest.approx(world.sizes[0, 0])
    assert feature(state, "width") == pytest.approx(world.sizes[0, 1])
    for name in ("speed", "lane_offset", "curvature", "left_edge"):
        assert feature(state, name) == feature(cars, name, highway_spec())
    sizes = {(round(length, 4), round(width, 4)) for length, width in world.sizes[1:]}
    for i in range(1, 5):
        slot = tuple(round(feature(state, f"neighbour_{i}_{x}"), 4) for x in ("length", "width"))
        assert slot in sizes


def test_a_state_of_road_users_saturates_its_edges() -> None:
    worlds = (Simulation(seed, "highway", fleet="mixed") for seed in range(40))
    wide = next(world for world in worlds if max(world.features[3:5]) > EDGE_LIMIT_M)
    edges = [feature(wide.state(SPEC), name) for name in ("left_edge", "right_edge")]
    assert edges == pytest.approx(np.minimum(wide.features[3:5], EDGE_LIMIT_M), rel=1e-6)


def test_slots_of_road_users_are_filled_by_the_nearest_rectangles() -> None:
    """A trailer's end may be beside the ego while four cars' centres are nearer than its own."""
    world = Simulation(2, "highway")
    world.others = world.others[:5]
    ego = world.poses[0]
    places = np.array([[9.5, 4], [-9.5, 4], [9.5, -4], [-9.5, -4], [10.9, 3.5]])
    world.poses = np.vstack([ego, *([*(ego[:2] + xy), ego[2], 20.0] for xy in places)])
    world.poses_before = world.poses
    world.present = np.ones(len(world.poses), np.bool_)
    world.sizes = np.array([CAR[1:]] * 5 + [(19.0, 2.5)])
    state, cars = world.state(SPEC), world.state()
    lengths = [feature(state, f"neighbour_{i}_length") for i in range(1, 5)]
    assert lengths == [5.0, 5.0, 5.0, 19.0]  # by centres, it is the fifth
    near = [feature(cars, f"neighbour_{i}_dx", highway_spec()) for i in range(1, 5)]
    assert max(np.abs(near)) < 10


def test_an_encoder_refuses_a_feature_that_the_simulator_does_not_know() -> None:
    spec = highway_spec()
    rain = Feature("rain", "mm", 0, 1, "of the last hour")
    wetter = Spec(
        spec.name, spec.dt_s, (*spec.state, rain), spec.action, spec.geometry, spec.kinematics
    )
    with pytest.raises(ValueError, match="the simulator knows no 'rain'"):
        StateEncoder(wetter)
