from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.highway import highway_spec
from models.network.kinematics import KinematicStep
from models.road_users import road_users_spec
from models.spec import Feature
from tests.test_training.driving import drive, mixed_episodes, save_store
from training.dataset.windows import Windows, make_windows
from training.evaluation import baselines
from training.evaluation.baselines import (
    BASELINES,
    FULL_PHYSICS,
    LONGEST_TTC_S,
    baselines_of,
    bicycle,
    bicycle_and_turn_rate,
    constant_velocity,
    margin,
    persistence,
    physics_rollout,
    slots_of,
    time_to_collision,
)
from training.simulation.bicycle import DT_S, bicycle_step, command, steering_limit
from training.simulation.rectangles import rectangle_gap
from training.simulation.simulator import Simulation, run_episode

SPEC = highway_spec()


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Windows:
    store = save_store(tmp_path_factory.mktemp("store"), mixed_episodes(12))
    cut = make_windows(store, np.arange(12), 8, 3)
    return cut.take(np.flatnonzero(cut.is_known))


def state(**values: float) -> np.ndarray:
    """One state on a wide straight road, nobody about, save what is named."""
    row = np.zeros(SPEC.state_dim)
    for name, value in {"left_edge": 50.0, "right_edge": 50.0, **values}.items():
        row[SPEC.state_index(name)] = value
    return row


def neighbour(dx: float, dy: float, **values: float) -> dict[str, float]:
    given = {"presence": 1.0, "dx": dx, "dy": dy, **values}
    return {f"neighbour_1_{name}": value for name, value in given.items()}


def start_windows(*states: np.ndarray, horizon: int = 4) -> Windows:
    """Windows of which only the first state matters."""
    rows = np.repeat(np.array(states, np.float32)[:, None], horizon + 1, axis=1)
    count = len(rows)
    return Windows(
        states=rows,
        actions=np.zeros((count, horizon, 3), np.float32),
        rewards=np.zeros((count, horizon), np.float32),
        terminated=np.zeros((count, horizon), bool),
        valid=np.ones((count, horizon), bool),
        episode=np.arange(count),
        environment=np.zeros(count, np.uint8),
        behaviour=np.zeros(count, np.uint8),
        start_step=np.zeros(count, np.int64),
    )


@pytest.mark.parametrize(
    ("dx", "dy", "heading", "gap"),
    [
        pytest.param(10.0, 0.0, 0.0, 5.0, id="behind_each_other"),
        pytest.param(0.0, 3.0, 0.0, 1.0, id="side_by_side"),
        pytest.param(4.0, 0.0, 0.0, -1.0, id="overlapping"),
        pytest.param(6.0, 0.0, np.pi / 2, 2.5, id="across"),
        pytest.param(-10.0, 0.0, np.pi, 5.0, id="opposite"),
    ],
)
def test_rectangle_gap_matches_hand_computation(
    dx: float, dy: float, heading: float, gap: float
) -> None:
    assert float(rectangle_gap(dx, dy, heading)) == pytest.approx(gap)


def test_rectangle_gap_is_the_same_from_either_car() -> None:
    rng = np.random.default_rng(0)
    dx, dy, heading = rng.uniform(-8, 8, 100), rng.uniform(-8, 8, 100), rng.uniform(-3, 3, 100)
    cos, sin = np.cos(heading), np.sin(heading)
    other = rectangle_gap(-(cos * dx + sin * dy), -(cos * dy - sin * dx), -heading)
    np.testing.assert_allclose(rectangle_gap(dx, dy, heading), other, atol=1e-12)


@pytest.mark.parametrize("environment", ["highway", "racetrack"])
def test_bicycle_step_moves_as_the_simulator_does(environment: str) -> None:
    episode = run_episode(3, environment, "bursts", 30)
    predicted = bicycle_step(episode.ego[:-1], episode.action[:-1])
    np.testing.assert_allclose(predicted, episode.ego[1:], atol=5e-5)


def test_command_neither_reverses_nor_exceeds_the_top_speed() -> None:
    acceleration, _ = command(np.array([[0, 0, 1], [0, 1, 0], [0, 1, 0.5]]), [0.1, 39.99, 20.0])
    np.testing.assert_allclose(acceleration, [-0.1 / DT_S, 0.01 / DT_S, 1.0])


def test_steering_limit_narrows_with_speed() -> None:
    assert float(steering_limit(0.0)) == 0.5
    # v^2 tan(delta) / length is the lateral acceleration that grip allows.
    assert 25.0**2 * np.tan(float(steering_limit(25.0))) / 5.0 == pytest.approx(8.0)


def test_margin_is_the_smallest_gap_or_edge() -> None:
    states = np.array(
        [
            state(**neighbour(10.0, 0.0)),
            state(**neighbour(10.0, 0.0), left_edge=2.0),
            state(**{**neighbour(3.0, 0.0), "neighbour_1_presence": 0.0}),
            state(right_edge=-0.5),
        ]
    )
    np.testing.assert_allclose(margin(states), [5.0, 2.0, 50.0, -0.5])


def test_persistence_changes_nothing(windows: Windows) -> None:
    predicted = persistence(windows).states
    assert predicted is not None
    assert (predicted == windows.states[:, :1]).all()


def test_constant_velocity_ignores_actions(windows: Windows) -> None:
    other = replace(windows, actions=-windows.actions)
    assert (constant_velocity(windows).score == constant_velocity(other).score).all()


def test_constant_velocity_keeps_the_start_speed(windows: Windows) -> None:
    predicted = constant_velocity(windows).states
    assert predicted is not None
    assert (predicted[..., 0] == predicted[:, :1, 0]).all()


def test_constant_velocity_meets_a_car_ahead_when_it_should() -> None:
    ahead = state(speed=20.0, **neighbour(7.0, 0.0))
    # 20 m/s for 4 steps of 0.05 s: the gap of 2 m becomes -2 m.
    assert constant_velocity(start_windows(ahead)).score[0] == pytest.approx(2.0, abs=1e-5)


def test_bicycle_predicts_a_straight_road_exactly(windows: Windows) -> None:
    prediction = bicycle(windows)
    assert prediction.states is not None
    held = windows.valid[..., None] * np.ones(SPEC.state_dim, bool)
    np.testing.assert_allclose(
        prediction.states[:, 1:][held], windows.states[:, 1:][held], atol=5e-4
    )


def test_bicycle_score_separates_what_ends_from_what_does_not(windows: Windows) -> None:
    score, ends = bicycle(windows).score, windows.ends
    assert score[ends].min() > 0 >= score[~ends].max()


def test_bicycle_follows_a_bending_road() -> None:
    speed, curvature, steps = 10.0, 0.02, 20
    # The wheel angle whose turn rate is that of the road: sin(beta) / (L / 2) = curvature.
    slip = np.arcsin(curvature * 2.5)
    steer = np.arctan(2 * np.tan(slip)) / float(steering_limit(speed))
    start = state(speed=speed, curvature=curvature, left_edge=3.0, right_edge=3.0)
    bend = start_windows(start, horizon=steps)
    actions = np.zeros((1, steps, 3), np.float32)
    actions[..., 0] = steer
    predicted = bicycle(replace(bend, actions=actions)).states
    assert predicted is not None
    heading_error = predicted[0, :, SPEC.state_index("sin_heading_error")]
    np.testing.assert_allclose(heading_error, 0, atol=1e-5)
    # The centre moves along heading + slip, so it drifts by v sin(slip) t at most.
    assert abs(predicted[0, -1, 3] - 3.0) <= speed * np.sin(slip) * steps * DT_S


def test_bicycle_turns_neighbours_the_other_way() -> None:
    start = start_windows(state(speed=10.0, **neighbour(20.0, 0.0)))
    turned = replace(start, actions=np.tile(np.array([1, 0, 0], np.float32), (1, 4, 1)))
    predicted = bicycle(turned).states
    assert predicted is not None
    assert predicted[0, -1, SPEC.state_index("neighbour_1_dy")] < 0  # steering right: now left
    assert predicted[0, -1, SPEC.state_index("neighbour_1_heading")] < 0


def test_turning_neighbours_drive_the_circle_of_their_turn_rate() -> None:
    # 10 m/s at 0.5 rad/s: after a quarter turn, 20 m further and 20 m to the right, save for the
    # slip of a bicycle's centre (sin = 0.5 * 2.5 / 10) and the length of an Euler step.
    steps = round(np.pi / 2 / 0.5 / DT_S)
    start = state(**neighbour(10.0, 0.0, speed=10.0, yaw_rate=0.5))[None]
    slot = slots_of(physics_rollout(start, np.zeros((1, steps, 3))))[0, -1, 0]
    assert slot[3] == pytest.approx(np.pi / 2, abs=0.03)
    slip = np.arcsin(0.125)
    assert slot[1] - 10 == pytest.approx(20 * (np.cos(slip) - np.sin(slip)), abs=0.4)
    assert slot[2] == pytest.approx(20 * (np.cos(slip) + np.sin(slip)), abs=0.4)


def test_braking_neighbours_stop_and_stay() -> None:
    start = state(**neighbour(10.0, 0.0, speed=1.0, acceleration=-8.0, yaw_rate=0.01))[None]
    slots = slots_of(physics_rollout(start, np.zeros((1, 8, 3))))[0, :, 0]
    # 1 m/s at 8 m/s^2 lasts three steps: 0.05 s at 1, 0.6 and 0.2 m/s.
    np.testing.assert_allclose(slots[3:, 1], 10 + 0.05 * (1 + 0.6 + 0.2), atol=1e-3)
    assert (slots[3:, 4:] == 0).all()


def test_neighbours_without_acceleration_and_turn_move_alike_in_both_bicycles() -> None:
    start = start_windows(state(speed=15.0, **neighbour(20.0, 3.0, heading=0.3, speed=12.0)))
    straight, turning = bicycle(start).states, bicycle_and_turn_rate(start).states
    assert straight is not None
    assert turning is not None
    np.testing.assert_allclose(straight, turning, atol=1e-5)


@pytest.mark.parametrize("environment", ["highway", "merge"])
def test_physics_agrees_with_the_model_s_analytic_step(environment: str) -> None:
    world = Simulation(5, environment)
    for _ in range(3):
        world.step(np.zeros(3))
    start, rng = world.state()[None], np.random.default_rng(0)
    actions = rng.uniform([-0.3, 0, 0], [0.3, 1, 1], (1, 16, 3))
    step, value = KinematicStep(SPEC), torch.as_tensor(start)
    for action in torch.as_tensor(actions[0], dtype=torch.float32):
        value = step(value, action[None])
    np.testing.assert_allclose(physics_rollout(start, actions)[0, -1], value[0].numpy(), atol=0.03)


@pytest.mark.parametrize("name", ["constant velocity", "bicycle + constant velocity", FULL_PHYSICS])
def test_absent_neighbours_stay_zero(name: str, windows: Windows) -> None:
    predicted = BASELINES[name](windows).states
    assert predicted is not None
    assert (slots_of(predicted)[..., 1:, :] == 0).all()


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        pytest.param({"speed": 20.0, **neighbour(25.0, 0.0, speed=10.0)}, 2.0, id="closing"),
        pytest.param(
            {"speed": 10.0, **neighbour(25.0, 0.0, speed=20.0)}, LONGEST_TTC_S, id="opening"
        ),
        pytest.param(
            {"speed": 20.0, **neighbour(25.0, 4.0, speed=10.0)}, LONGEST_TTC_S, id="another_lane"
        ),
        pytest.param(neighbour(0.0, 4.0, heading=-np.pi / 2, speed=2.0), 1.0, id="from_the_side"),
        pytest.param(neighbour(3.0, 0.0), 0.0, id="touching"),
        pytest.param({"speed": 10.0, **neighbour(-25.0, 0.0, speed=20.0)}, 2.0, id="from_behind"),
        pytest.param(
            {"speed": 10.0, **neighbour(25.0, 0.0, heading=np.pi, speed=10.0)}, 1.0, id="oncoming"
        ),
        pytest.param(
            {"speed": 20.0, "sin_heading_error": 0.1, "right_edge": 3.0}, 1.5, id="right_edge"
        ),
        pytest.param(
            {"speed": 20.0, "sin_heading_error": -0.1, "left_edge": 5.0}, 2.5, id="left_edge"
        ),
        pytest.param({"speed": 20.0}, LONGEST_TTC_S, id="alone"),
    ],
)
def test_time_to_collision_matches_hand_computation(
    values: dict[str, float], seconds: float
) -> None:
    assert time_to_collision(start_windows(state(**values))).score[0] == pytest.approx(
        -seconds, abs=1e-5
    )


def test_time_to_collision_forgets_a_car_that_was_passed() -> None:
    passed = {"speed": 20.0, **neighbour(-10.0, 0.0, speed=10.0)}
    assert time_to_collision(start_windows(state(**passed))).score[0] == -LONGEST_TTC_S


def test_predictions_do_not_depend_on_the_chunk(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bicycle(windows)
    monkeypatch.setattr(baselines, "_CHUNK_WINDOWS", 5)
    parts = bicycle(windows)
    assert (whole.score == parts.score).all()
    assert whole.states is not None
    assert (whole.states == parts.states).all()


def test_scores_rise_as_a_crash_comes_nearer(tmp_path: Path) -> None:
    store = save_store(tmp_path, [drive(1, ahead_m=24.0, other_speed=5.0)])
    cut = make_windows(store, np.array([0]), 4, 4)
    for name, predict in BASELINES.items():
        score = predict(cut).score
        assert (np.diff(score) > 0).all(), name


# Everybody of his own size, and roads without edges.

USERS = road_users_spec()
AT = USERS.state_index


def users_state(**values: float) -> np.ndarray:
    """One state of road users: a car on a road whose edges are far, save what is named."""
    row = np.zeros(USERS.state_dim)
    wide = {"left_edge": 16.0, "right_edge": 16.0, "length": 5.0, "width": 2.0}
    for name, value in {**wide, **values}.items():
        row[AT(name)] = value
    return row


def user(dx: float, dy: float, size: tuple[float, float], **values: float) -> dict[str, float]:
    given = {"length": size[0], "width": size[1], "dx": dx, "dy": dy, **values}
    return {f"neighbour_1_{name}": value for name, value in given.items()}


@pytest.mark.parametrize(
    ("place", "size", "own", "expected"),
    [
        ((20.0, 0.0), (5.0, 2.0), (5.0, 2.0), 15.0),
        ((20.0, 0.0), (18.0, 2.5), (5.0, 2.0), 8.5),
        ((20.0, 0.0), (18.0, 2.5), (12.0, 2.5), 5.0),
        ((0.0, 3.0), (0.5, 0.5), (5.0, 2.0), 1.75),
        ((0.0, 3.0), (0.0, 0.0), (5.0, 2.0), 100.0),  # a length of 0 is nobody
    ],
)
def test_the_margin_is_that_of_true_rectangles(
    place: tuple[float, float],
    size: tuple[float, float],
    own: tuple[float, float],
    expected: float,
) -> None:
    row = users_state(**user(*place, size), length=own[0], width=own[1])
    assert float(margin(row[None], USERS)[0]) == pytest.approx(expected)


def test_an_edge_that_saturates_is_none() -> None:
    far, near = users_state(), users_state(right_edge=15.5)
    assert margin(np.array([far, near]), USERS).tolist() == [100.0, 15.5]
    drifting = {"speed": 20.0, "sin_heading_error": 0.5}
    score = time_to_collision(
        start_windows(users_state(**drifting), users_state(**drifting, right_edge=10.0)), USERS
    ).score
    np.testing.assert_allclose(score, [-LONGEST_TTC_S, -1.0])


def test_an_edge_that_saturates_stays_where_it_is() -> None:
    """The bicycle crosses 8 m to the left of a road that ends nowhere."""
    start = users_state(speed=20.0, sin_heading_error=-0.5, right_edge=12.0)[None]
    states = physics_rollout(start, np.zeros((1, 16, 3)), USERS)[0]
    assert (states[:, AT("left_edge")] == 16.0).all()
    moved = 20 * 0.5 * 16 * DT_S
    assert states[-1, AT("right_edge")] == min(12.0 + moved, 16.0)
    assert margin(states, USERS)[-1] == 100.0


def test_a_long_ego_turns_by_its_own_length() -> None:
    actions = np.tile([0.3, 0.1, 0.0], (1, 10, 1))
    for length in (5.0, 12.0):
        start = users_state(speed=12.0, length=length)[None]
        pose = np.array([0.0, 0.0, 0.0, 12.0])
        for action in actions[0]:
            pose = bicycle_step(pose, action, length=length)
        found = physics_rollout(start, actions, USERS)[0, -1]
        assert found[AT("sin_heading_error")] == pytest.approx(np.sin(pose[2]))
        assert found[AT("lane_offset")] == pytest.approx(pose[1], abs=0.02)


def test_physics_of_road_users_is_that_of_the_layout_highway_among_cars() -> None:
    """The same traffic in both layouts; a truck in place of a car is nearer."""
    world = Simulation(5, "highway")
    for _ in range(3):
        world.step(np.array([0.0, 0.2, 0.0]))
    actions = np.random.default_rng(0).uniform([-1, 0, 0], [1, 1, 1], (1, 12, 3)) * 0.2
    states = {spec.name: world.state(spec)[None] for spec in (SPEC, USERS)}
    found = [
        margin(physics_rollout(states[spec.name], actions, spec, turning=False), spec)
        for spec in (SPEC, USERS)
    ]
    is_edge = found[0] > 11  # the layout highway knows edges beyond 16 m
    np.testing.assert_allclose(found[0][~is_edge], found[1][~is_edge], atol=1e-4)
    longer = states[USERS.name].copy()
    for i in range(1, 5):
        longer[0, AT(f"neighbour_{i}_length")] *= 2
    assert (margin(longer, USERS) <= margin(states[USERS.name], USERS)).all()


def test_baselines_know_layouts_of_the_simulated_ego_alone() -> None:
    assert set(baselines_of(SPEC)) == set(baselines_of(USERS)) == set(BASELINES)
    car = USERS.kinematics
    assert car is not None
    stronger = replace(USERS, kinematics=replace(car, full_brake_mps2=9.0))
    slower = replace(USERS, dt_s=0.1)
    rain = replace(
        USERS, state=(*USERS.state, Feature("rain", "mm", 0, 1, "of an hour")), example=None
    )
    for other in (stronger, slower, rain, replace(USERS, kinematics=None)):
        assert baselines_of(other) == {}


def test_a_baseline_of_road_users_predicts_their_states() -> None:
    row = users_state(**user(30.0, 0.0, (12.0, 2.5), speed=10.0), speed=20.0)
    windows = start_windows(row, horizon=8)
    for name, predict in baselines_of(USERS).items():
        prediction = predict(windows)
        assert np.isfinite(prediction.score).all(), name
        if prediction.states is not None:
            assert prediction.states.shape == windows.states.shape
            lengths = prediction.states[..., AT("neighbour_1_length")]
            assert (lengths == 12.0).all()
    alone = baselines_of(USERS)["bicycle + constant velocity"](windows)
    assert alone.score[0] == pytest.approx(-(30 - 8.5 - 10 * 8 * DT_S), abs=1e-5)
