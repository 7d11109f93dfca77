"""The planner and the imagined policy in miniature, in a world that is physics and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from examples import imagined_policy, mppi_planner, report
from examples.driving import (
    Drive,
    MakePolicy,
    Policy,
    drive,
    drive_all,
    recorded_behaviour,
    recorded_states,
    score,
)
from examples.outlook import (
    braking_strain,
    crash_probability,
    expected_return,
    steering_strain,
    value,
)
from examples.spec import known_spec
from models import survival as outcomes
from models.checkpoint import Architecture, Checkpoint, load_checkpoint, save_checkpoint
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from models.network.kinematics import KinematicStep
from tests.test_end_to_end.conftest import Start
from training.closed_loop.comparison import TRAINED_ROADS
from training.simulation.simulator import Simulation, draw_episode, run_episode
from world_model_client import Client

SPEC = highway_spec()
ROAD = {"speed": 20.0, "left_edge": 6.0, "right_edge": 6.0}


def state_of(**values: float) -> Tensor:
    state = torch.zeros(1, SPEC.state_dim)
    for name, x in {**ROAD, **values}.items():
        state[0, SPEC.state_index(name)] = x
    return state


def neighbour(dx: float, dy: float = 0.0, speed: float = 0.0, heading: float = 0.0) -> Any:
    features = {"presence": 1.0, "dx": dx, "dy": dy, "speed": speed, "heading": heading}
    return {f"neighbour_1_{name}": x for name, x in features.items()}


@pytest.fixture(scope="module")
def physics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose states are the analytic step's, with a speed reward and small hazards."""
    torch.manual_seed(0)
    architecture = Architecture(hidden_dims=(32,), kinematics=True)
    members = [architecture.build(SPEC) for _ in range(2)]
    for member in members:
        member.set_normalisers(
            state_mean=torch.zeros(SPEC.state_dim),
            state_scale=torch.full((SPEC.state_dim,), 10.0),
            delta_scale=torch.zeros(SPEC.state_dim),
            reward_mean=0.5,
            reward_scale=1e-3,
        )
        torch.nn.init.constant_(member.done_head[-1].get_parameter("bias"), -80.0)
        member.set_calibration(done_scale=0.1, done_shift=0.0)
    folder = tmp_path_factory.mktemp("physics")
    ensemble = WorldModelEnsemble.from_members(members)
    save_checkpoint(Checkpoint(ensemble=ensemble, spec=SPEC, architecture=architecture), folder)
    return folder


@pytest.fixture(scope="module")
def url(start: Start, physics: Path) -> str:
    return start("--checkpoint", str(physics)).url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout_s=30) as client:
        yield client


def test_expected_return_and_crash_probability_are_those_of_the_service() -> None:
    rewards, dones = torch.rand(2, 5, 16, dtype=torch.float64)

    returns, crash = expected_return(rewards, dones), crash_probability(dones)

    wanted = outcomes.expected_returns(rewards.numpy(), dones.numpy())
    np.testing.assert_allclose(returns.numpy(), wanted)
    np.testing.assert_allclose(crash.numpy(), outcomes.crash_probability(dones.numpy()))


def test_braking_strain_is_the_share_of_full_braking_that_stops_before_a_standing_car() -> None:
    strain = braking_strain(state_of(**neighbour(dx=45.0)))

    # 20 m/s over the 40 m between bumpers: 5 m/s^2 of 8.
    assert strain.item() == pytest.approx(20**2 / (2 * 40) / 8, rel=1e-3)


@pytest.mark.parametrize(
    ("near", "far"),
    [
        (neighbour(dx=15.0, speed=15.0), neighbour(dx=25.0, speed=15.0)),
        (neighbour(dx=20.0, speed=10.0), neighbour(dx=20.0, speed=18.0)),
        (neighbour(dx=20.0, speed=10.0), neighbour(dx=20.0, dy=4.0, speed=10.0)),
        (neighbour(dx=-10.0, speed=30.0), neighbour(dx=-10.0, speed=15.0)),
        (
            neighbour(dx=15.0, dy=4.0, speed=15.0, heading=-0.2),
            neighbour(dx=15.0, dy=4.0, speed=15.0),
        ),
        (neighbour(dx=15.0), {}),
    ],
    ids=["closer", "slower", "same lane", "faster behind", "cutting in", "there at all"],
)
def test_braking_strain_is_larger_where_the_ego_is_in_more_danger(near: Any, far: Any) -> None:
    assert braking_strain(state_of(**near)) > braking_strain(state_of(**far)) + 0.05


def test_braking_strain_follows_the_bend_of_the_road() -> None:
    """On a bend to the right of radius 50 m, the car 20 m ahead in the lane is 4 m to the right."""
    on_bend = neighbour(dx=20.0, dy=4.0, heading=0.4)

    assert braking_strain(state_of(curvature=0.02, **on_bend)) > 1
    assert braking_strain(state_of(curvature=-0.02, **on_bend)) < 0.01


def test_steering_strain_is_the_share_of_grip_for_the_bend_and_the_edge() -> None:
    bend = steering_strain(state_of(curvature=-0.01))
    edge = steering_strain(state_of(sin_heading_error=-0.2, left_edge=2.0))
    away = steering_strain(state_of(sin_heading_error=0.2, left_edge=2.0))

    assert bend.item() == pytest.approx(20**2 * 0.01 / 8)
    assert edge.item() == pytest.approx((20 * 0.2) ** 2 / (2 * 2.0) / 8)
    assert away < edge


def test_value_falls_with_crash_probability_and_strain_and_rises_with_speed() -> None:
    def worth(crash: float = 0.0, **features: float) -> float:
        return value(torch.ones(1), torch.tensor([crash]), state_of(**features)).item()

    assert worth(crash=0.1) < worth()
    assert worth(**neighbour(dx=12.0)) < worth()
    assert worth(speed=25.0) > worth()


def test_another_spec_is_refused_with_both_sides_named() -> None:
    with pytest.raises(ValueError, match=r"puck.*neighbour_1_dx"):
        known_spec(["puck"])


def some_drive(cause: int = 0, distance_m: float = 140.0) -> Drive:
    return Drive(cause, time_s=7.0, distance_m=distance_m, reward=100.0)


def test_scores_count_every_episode_the_same() -> None:
    scores = score([some_drive(), some_drive(1, 70.0), some_drive(2), some_drive()])

    assert scores["terminated_share"] == 0.5
    assert scores["terminations_per_km"] == pytest.approx(2 / 0.49)
    assert scores["mean_speed_mps"] == pytest.approx((20 + 10 + 20 + 20) / 4)
    assert (scores["crash"], scores["off_road"]) == (1, 1)


def test_intervals_hold_the_score_and_narrow_with_more_episodes() -> None:
    drives = [some_drive(), some_drive(1, 70.0), some_drive(2), some_drive()]

    few, many = score(drives), score(drives * 16)

    for name in ("terminated_share", "terminations_per_km", "mean_speed_mps"):
        (low, high), (lower, higher) = many[f"{name}_interval"], few[f"{name}_interval"]
        assert lower < low < few[name] < high < higher


def test_no_terminations_leave_some_doubt() -> None:
    scores = score([some_drive()] * 10)

    assert scores["terminated_share_interval"][1] > 0.2
    assert scores["terminations_per_km_interval"] == [None, None]


def test_no_drives_have_no_score() -> None:
    with pytest.raises(ValueError, match="no drives"):
        score([])


FULL_STEER = np.array([1.0, 0.0, 0.0], np.float32)


def test_a_drive_sums_what_the_simulator_says_until_it_ends() -> None:
    result = drive(1, lambda world: lambda world: FULL_STEER)

    world, rewards, metres = Simulation(1, draw_episode(1, TRAINED_ROADS)[0]), [], 0.0
    while not world.cause:
        before = world.ego.position.copy()
        rewards.append(world.step(FULL_STEER)[0])
        metres += float(np.linalg.norm(world.ego.position - before))
    assert result.cause == world.cause
    assert result.reward == pytest.approx(sum(rewards))
    assert result.time_s == pytest.approx(0.05 * len(rewards))
    assert result.distance_m == pytest.approx(metres)


def test_every_policy_meets_the_same_traffic_in_any_order() -> None:
    first: dict[str, list[Any]] = {"one": [], "two": []}

    def swerve(name: str) -> MakePolicy:
        def make(world: Simulation) -> Policy:
            world.rng.spawn(1)
            first[name].append(world.poses)
            return lambda world: FULL_STEER

        return make

    alone = drive_all("one", swerve("one"), range(3))
    together = drive_all("two", swerve("two"), range(3), at_once=3)

    assert alone == together
    for one in first["one"]:
        assert any(np.array_equal(one, two) for two in first["two"])


def test_a_recorded_behaviour_drives_as_in_the_data_set() -> None:
    result = drive(3, recorded_behaviour("careful"), steps=40)

    episode = run_episode(3, draw_episode(3, TRAINED_ROADS)[0], "careful", steps=40)
    assert result.reward == pytest.approx(float(episode.reward.sum()), rel=1e-5)


def plan_through(client: Client, state: Tensor, steps: int) -> Tensor:
    """Drive by plan in a world that moves as the served model says; return states [steps, S]."""
    mind = mppi_planner.Planner(client, np.random.default_rng(0))
    world, states = KinematicStep(SPEC), []
    for _ in range(steps):
        action = mind.action(state[0].numpy())
        state = world(state, torch.from_numpy(action)[None])
        states.append(state[0])
    return torch.stack(states)


def feature(states: Tensor, name: str) -> Tensor:
    return states[:, SPEC.state_index(name)]


def test_the_planner_stops_before_a_standing_car(client: Client) -> None:
    narrow = {"left_edge": 1.5, "right_edge": 1.5}

    states = plan_through(client, state_of(**narrow, **neighbour(dx=40.0)), 60)

    assert feature(states, "neighbour_1_dx").min() > 5  # the length of a car
    assert feature(states, "speed")[-1] < 8


def test_the_planner_speeds_up_on_a_free_road(client: Client) -> None:
    states = plan_through(client, state_of(), 20)

    assert feature(states, "speed")[-1] > 23  # 25 with full throttle all the way


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_planner_steers_away_from_a_near_edge(client: Client, side: str) -> None:
    away = {"left": 1.0, "right": -1.0}[side]
    mind = mppi_planner.Planner(client, np.random.default_rng(0))
    state = state_of(**{f"{side}_edge": 1.5, "sin_heading_error": -0.2 * away})

    mind.action(state[0].numpy())

    assert away * mind.plan[:10, 0].mean() > 0.1


def test_candidates_stay_in_range_and_hold_the_plan_and_both_pedals(client: Client) -> None:
    mind = mppi_planner.Planner(client, np.random.default_rng(0))
    mind.plan[:] = [0.3, 0.2]

    actions = mppi_planner.to_actions(mind.draw())

    assert actions.shape == (64, 16, 3)
    assert (actions.min(axis=(0, 1)) >= [-1, 0, 0]).all()
    assert actions.max() <= 1
    assert (actions[..., 1] * actions[..., 2] == 0).all()
    assert actions[:3, :, 0] == pytest.approx(np.full((3, 16), 0.3))
    assert actions[:3, 0, 1:] == pytest.approx(np.array([[0.2, 0], [0, 1], [1, 0]]))


def test_a_plan_is_the_mean_of_the_best_candidates() -> None:
    candidates = np.arange(4.0)[:, None, None] * np.ones((4, 16, 2))

    plan = mppi_planner.average(candidates, np.array([-50.0, 7.0, 7.0, 2.0]))

    assert plan == pytest.approx(np.full((16, 2), 1.5))


@pytest.mark.parametrize(
    ("car", "pedal"), [({}, 1), (neighbour(dx=0.0), 2)], ids=["free road", "standing car"]
)
def test_training_raises_what_the_model_expects_and_leaves_the_model_alone(
    physics: Path, monkeypatch: pytest.MonkeyPatch, car: Any, pedal: int
) -> None:
    for name, x in {"LEARNING_RATE": 5e-3, "BATCH": 32, "LOOKS": 1}.items():
        monkeypatch.setattr(imagined_policy, name, x)
    checkpoint = load_checkpoint(physics)
    weights = {name: x.clone() for name, x in checkpoint.ensemble.state_dict().items()}
    states = state_of(**car).repeat(400, 1)
    states[:, SPEC.state_index("speed")] = torch.linspace(15, 25, 400)
    if car:
        states[:, SPEC.state_index("neighbour_1_dx")] = torch.linspace(60, 30, 400)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    starts = torch.split(states[order], 20)

    policy, history = imagined_policy.train(checkpoint, list(starts), updates=20)

    assert history[-1]["value"] > history[0]["value"] + 0.5
    for name, x in checkpoint.ensemble.state_dict().items():
        assert torch.equal(x, weights[name]), name
    assert (policy(states)[:, pedal] > 0.5).all()


def test_the_policy_acts_within_range_and_never_with_both_pedals(physics: Path) -> None:
    policy = imagined_policy.DrivingPolicy(next(load_checkpoint(physics).ensemble.members))
    with torch.no_grad():
        for x in policy.parameters():
            x.normal_(std=3.0)

    actions = policy(torch.randn(500, 34) * 20).detach()

    assert (actions.amin(0) >= torch.tensor([-1.0, 0.0, 0.0])).all()
    assert actions.max() <= 1
    assert (actions[:, 1] * actions[:, 2] == 0).all()
    assert min(actions[:, 1].max(), actions[:, 2].max()) > 0.5


def test_recorded_states_do_not_depend_on_the_simulators_reward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (states,) = recorded_states(1)
    monkeypatch.setattr("training.simulation.simulator.reward_of", lambda features, cause: np.nan)

    (again,) = recorded_states(1)

    assert states.shape[1] == 34
    assert np.array_equal(states, again)


def run(command: Any, *arguments: Any) -> Any:
    return CliRunner().invoke(command, [str(x) for x in arguments])


@pytest.fixture(scope="module")
def documents(url: str, physics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where both commands wrote their results of one episode."""
    folder = tmp_path_factory.mktemp("documents")
    for result in (
        run(mppi_planner.main, "--url", url, "--episodes", 1, "--out", folder / "planner.json"),
        run(
            imagined_policy.main,
            *("--checkpoint", physics, "--starts", 2, "--updates", 3, "--episodes", 1),
            *("--out", folder / "policy.json"),
        ),
    ):
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("name", ["planner", "policy"])
def test_a_command_scores_beside_recorded_behaviours(
    documents: Path, physics: Path, name: str
) -> None:
    document = json.loads((documents / f"{name}.json").read_text())

    assert document["model_version"] == load_checkpoint(physics).version
    assert list(document["scores"])[1:] == ["aggressive", "careful"]
    assert [score["episodes"] for score in document["scores"].values()] == [1, 1, 1]


def test_the_policys_history_goes_from_before_the_first_update_to_the_last(documents: Path) -> None:
    history = json.loads((documents / "policy.json").read_text())["history"]

    assert [entry["update"] for entry in history] == [0, 1, 2, 3]


def test_the_report_replaces_results_and_plots_and_nothing_else(
    documents: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{report.START}\nold\n{report.END}\nbelow\n")

    for _ in range(2):
        files = (documents / "planner.json", documents / "policy.json")
        assert run(report.main, *files, "--page", page).exit_code == 0

    text = page.read_text()
    assert text.startswith(f"above\n{report.START}\n")
    assert text.endswith(f"{report.END}\nbelow\n")
    assert "old" not in text
    assert text.count("| MPPI planner | 1 |") == text.count("| imagined policy | 1 |") == 1
    assert text.count("| aggressive | 1 |") == 2
    for name in ("speed_and_safety.png", "imagined_policy.png"):
        plot = (tmp_path / "plots" / name).read_bytes()
        assert plot.startswith(b"\x89PNG")
        assert len(plot) < 100_000


def test_the_report_refuses_results_of_different_models(documents: Path, tmp_path: Path) -> None:
    planner = json.loads((documents / "planner.json").read_text())
    other = tmp_path / "planner.json"
    other.write_text(json.dumps(planner | {"model_version": "another"}))
    page = tmp_path / "page.md"
    page.write_text(f"{report.START}\n{report.END}\n")

    result = run(report.main, other, documents / "policy.json", "--page", page)

    assert result.exit_code == 1
    assert "another" in result.output
    assert page.read_text() == f"{report.START}\n{report.END}\n"


def test_the_report_refuses_a_page_without_markers(documents: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine\n")

    result = run(report.main, documents / "planner.json", documents / "policy.json", "--page", page)

    assert result.exit_code == 1
    assert report.START in result.output
    assert page.read_text() == "mine\n"


def test_the_planning_page_has_the_markers_and_the_plots() -> None:
    page = (Path(__file__).parents[2] / "docs" / "planning.md").read_text()

    assert page.index(report.START) < page.index(report.END)
    for name in ("speed_and_safety.png", "imagined_policy.png"):
        assert f"plots/{name}" in page
