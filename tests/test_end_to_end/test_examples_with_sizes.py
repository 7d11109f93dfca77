"""The examples with a model that knows how big road users are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from examples import imagined_policy, monitor_score, mppi_planner
from examples.driving import drive, recorded_states
from examples.monitor import MARGIN_M, PLAN, Judgement, brake_in_lane, decide, reserve_m
from examples.outlook import braking_strain, neighbours
from examples.scene import SceneSight, fleet_of, others_of, sight_of
from examples.spec import HIGHWAY, known_spec
from models.checkpoint import Architecture, Checkpoint
from models.highway import highway_spec
from models.network.ensemble import WorldModelEnsemble
from models.road_users import road_users_spec
from training.closed_loop.comparison import TRAINED_ROADS
from training.simulation.behaviours import make_behaviour
from training.simulation.simulator import Simulation
from training.simulation.worlds import World

SPEC = road_users_spec()
ROADS = ("highway", "merge", "racetrack", "roundabout")


def state_of(*others: dict[str, float], **ego: float) -> np.ndarray:
    """A car of 5 x 2 m on one lane of 4 m, and others."""
    given = {"speed": 20.0, "left_edge": 2.0, "right_edge": 2.0, "length": 5.0, "width": 2.0}
    features = given | ego
    for slot, other in enumerate(others, 1):
        features |= {f"neighbour_{slot}_{name}": x for name, x in other.items()}
    state = np.zeros(SPEC.state_dim)
    for name, x in features.items():
        state[SPEC.state_index(name)] = x
    return state


def car(dx: float, length: float = 5.0, **features: float) -> dict[str, float]:
    return {"dx": dx, "length": length, "width": 2.0, **features}


def as_highway(state: np.ndarray) -> np.ndarray:
    """The same scene for a model of cars of one size."""
    found = np.zeros(HIGHWAY.state_dim)
    for i, feature in enumerate(HIGHWAY.state):
        name = feature.name
        if name.endswith("_presence"):
            length = name.replace("_presence", "_length")
            found[i] = float(state[SPEC.state_index(length)] > 0)
        elif name in {f.name for f in SPEC.state}:
            found[i] = state[SPEC.state_index(name)]
    return found


@pytest.mark.parametrize(
    "spec",
    [highway_spec(), SPEC, road_users_spec(["neighbour_1_yaw_rate", "neighbour_2_yaw_rate"])],
    ids=["highway", "road-users", "other extras"],
)
def test_specs_are_known_by_their_features(spec: Any) -> None:
    assert known_spec([feature.name for feature in spec.state]) == spec
    with pytest.raises(ValueError, match=r"puck.*'highway'.*'road-users'"):
        known_spec(["puck", *(feature.name for feature in spec.state[1:])])


@pytest.mark.parametrize("road", ROADS)
def test_built_states_are_those_of_the_simulator(road: str) -> None:
    built, true = [], []
    for seed in range(2):
        world, see = Simulation(seed, road, fleet="mixed"), SceneSight(SPEC)
        driver = make_behaviour("careful", world.rng.spawn(1)[0], world.pace)
        for _ in range(40):
            built.append(see(world))
            true.append(world.state(SPEC))
            world.step(driver.action(world.ego))
    error = np.abs(np.array(built) - np.array(true))
    ego = error[:, :8]
    # The lane is another one, now and then, where lanes meet.
    assert (np.quantile(ego, 0.95, axis=0) < [1e-3, 0.02, 0.01, 0.02, 0.02, 0.01, 1e-3, 1e-3]).all()
    places = [SPEC.state_index(f"neighbour_{i}_{x}") for i in range(1, 5) for x in ("dx", "dy")]
    assert error[:, places].max() < 1e-3


def test_a_model_of_one_size_sees_what_it_did() -> None:
    world = Simulation(3, "highway")
    assert np.array_equal(sight_of(HIGHWAY)(world), world.state())
    assert (fleet_of(HIGHWAY), fleet_of(SPEC)) == ("cars", "mixed")


def test_who_is_not_there_is_not_reported() -> None:
    world = Simulation(3, "highway", fleet="mixed")
    world.present = world.present.copy()
    world.present[2] = False
    assert [user.id for user in others_of(world)] == [1, *range(3, len(world.poses))]


def test_the_reserve_ends_at_the_bumper_of_a_truck() -> None:
    short, long = (reserve_m(state_of(car(45.0, x)), SPEC) for x in (5.0, 17.0))
    assert short == pytest.approx(40 - 20**2 / 16)
    assert long == pytest.approx(short - 6)


@pytest.mark.parametrize("dx", [20.0, 45.0])
def test_cars_of_the_usual_size_leave_the_reserve_and_strain_they_did(dx: float) -> None:
    state = state_of(car(dx, speed=5.0), car(30.0, dy=4.0, speed=10.0))
    assert reserve_m(state, SPEC) == pytest.approx(reserve_m(as_highway(state)), abs=0.05)
    ours, theirs = (torch.tensor(x[None]) for x in (state, as_highway(state)))
    assert braking_strain(ours, SPEC).item() == pytest.approx(braking_strain(theirs).item(), 0.01)


def test_the_side_of_a_truck_across_the_lane_is_in_the_way() -> None:
    """Its centre is 6 m aside, and it is 16 m long."""
    across = car(30.0, 16.0, dy=6.0, heading=np.pi / 2)
    along = car(30.0, 16.0, dy=6.0)
    assert np.isinf(reserve_m(state_of(along), SPEC))
    assert reserve_m(state_of(across), SPEC) == pytest.approx(30 - 3.5 - 20**2 / 16, abs=0.1)
    strains = [braking_strain(torch.tensor(state_of(x)[None]), SPEC) for x in (along, across)]
    assert strains[0] < 0.05 < 0.5 < strains[1]


def test_a_narrow_road_user_beside_is_not_in_the_way() -> None:
    bicycle = car(30.0, 1.8, dy=1.9) | {"width": 0.6}
    assert np.isinf(reserve_m(state_of(bicycle), SPEC))
    assert np.isfinite(reserve_m(state_of(bicycle | {"width": 2.0}), SPEC))


def test_a_plan_that_is_safe_but_too_late_for_a_truck_is_not_taken() -> None:
    state, plan = state_of(car(36.0, 17.0)), np.zeros((16, 3))
    judged = Judgement("safe", 0.0, np.repeat(state[None], 17, axis=0))
    decision = decide(state, plan, [judged] * 7, SPEC)
    assert decision.is_alarm
    assert decision.reason == "the plan leaves no room to brake"
    assert reserve_m(state_of(car(36.0)), SPEC) > MARGIN_M
    nearer = Judgement("safe", 0.0, np.repeat(state_of(car(36.0))[None], 17, axis=0))
    assert decide(state_of(car(36.0)), plan, [nearer] * 7, SPEC).name == PLAN


def test_a_bus_steers_back_to_its_lane_by_its_own_length() -> None:
    short, long = (
        brake_in_lane(state_of(lane_offset=0.5, length=x, speed=5.0), 4, SPEC) for x in (5.0, 12.0)
    )
    assert (short[:, 0] < 0).all()
    assert not np.allclose(short, long)


def test_the_end_of_a_queue_is_seen_with_its_sizes() -> None:
    one = monitor_score.into_queue(3, SPEC)
    state = one.see(one.world)
    ahead = state[[SPEC.state_index(f"neighbour_{i}_dx") for i in range(1, 5)]]
    assert len(one.world.sizes) == len(one.world.poses) == len(one.world.present)
    speed = one.world.ego.speed
    assert ahead[0] == pytest.approx(monitor_score.QUEUE_AHEAD_S * speed, rel=0.1)


def test_reckless_drives_of_a_score_are_in_the_traffic_of_the_model() -> None:
    cars, mixed = (monitor_score.reckless(5, spec) for spec in (HIGHWAY, SPEC))
    assert np.ptp(cars.world.sizes, axis=0).max() == 0
    assert np.ptp(mixed.world.sizes, axis=0).max() > 0
    assert mixed.see(mixed.world).shape == (SPEC.state_dim,)


class FakeService:
    """Answers rollouts: every candidate ends where it begins."""

    def __init__(self) -> None:
        self.states: list[np.ndarray] = []
        self.asked: list[tuple[int | None, np.ndarray]] = []

    def rollout(
        self,
        state: np.ndarray,
        actions: np.ndarray,
        outputs: Sequence[str],
        members: int | None = None,
    ) -> Any:
        self.states.append(state)
        self.asked.append((members, actions))
        count = len(actions)
        numbers: dict[str, Any] = {name: [0.0] * count for name in outputs}
        numbers["returns"] = actions[:, 0, 0].tolist()  # the more to the right, the better
        if members == 1:
            numbers["uncertainty"] = None
        return numbers | {"final_state": np.repeat(state[None], count, axis=0).tolist()}


def test_the_planner_is_asked_about_states_with_sizes() -> None:
    service = FakeService()
    policy = mppi_planner.planner(service, SPEC)  # type: ignore[arg-type]
    done = drive(7_000_000, policy, steps=4, fleet="mixed")
    assert done.time_s == pytest.approx(0.2)
    world, see = Simulation(7_000_000, next(iter(TRAINED_ROADS)), fleet="mixed"), sight_of(SPEC)
    assert len(service.states) == 2
    assert service.states[0].shape == see(world).shape
    assert (service.states[0][SPEC.state_index("length")]) > 0


def test_one_member_screens_and_all_confirm_the_best_and_the_candidates_without_noise() -> None:
    service = FakeService()
    mind = mppi_planner.Planner(
        service,  # type: ignore[arg-type]
        np.random.default_rng(0),
        SPEC,
        count=100,
        confirmed=8,
    )

    mind.action(np.zeros(SPEC.state_dim, np.float32))

    (screened, many), (confirmed, few) = service.asked
    assert (screened, len(many), confirmed, len(few)) == (1, 100, None, 8)
    assert np.array_equal(few[:3], many[:3])
    assert np.array_equal(few[3:, 0, 0], np.sort(many[3:, 0, 0])[:-6:-1])


def test_the_planner_sees_every_step_of_its_drive() -> None:
    """A sight has the history of tracks: it must not miss a step."""
    seen: list[float] = []

    class Counted(SceneSight):
        def __call__(self, world: World) -> np.ndarray:
            seen.append(world.ego.speed)
            return super().__call__(world)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mppi_planner, "sight_of", Counted)
        drive(7_000_000, mppi_planner.planner(FakeService(), SPEC), 5, "mixed")  # type: ignore[arg-type]
    assert len(seen) == 5


def test_a_policy_trains_and_drives_with_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagined_policy, "BATCH", 8)
    monkeypatch.setattr("examples.driving.MAX_STEPS", 12)
    torch.manual_seed(0)
    architecture = Architecture((32,), kinematics=True)
    members = [architecture.build(SPEC)]
    members[0].set_normalisers(
        state_mean=torch.zeros(SPEC.state_dim),
        state_scale=torch.full((SPEC.state_dim,), 10.0),
        delta_scale=torch.zeros(SPEC.state_dim),
        reward_mean=0.5,
        reward_scale=1e-3,
    )
    ensemble = WorldModelEnsemble.from_members(members)
    checkpoint = Checkpoint(ensemble, SPEC, architecture)
    states = [torch.from_numpy(x) for x in recorded_states(2, SPEC)]
    assert all(x.shape[1] == SPEC.state_dim for x in states)
    policy, history = imagined_policy.train(checkpoint, states, updates=2)
    assert len(history) == 3
    done = drive(7_000_000, imagined_policy.as_driver(policy), 3, "mixed")
    assert done.time_s == pytest.approx(0.15)


def test_neighbours_are_there_where_they_have_a_length() -> None:
    found = neighbours(torch.tensor(state_of(car(30.0), car(40.0, 0.0))[None]), SPEC)
    assert found.presence.tolist() == [[1.0, 0.0, 0.0, 0.0]]
    assert neighbours(torch.zeros(1, 34), HIGHWAY).length.tolist() == [[5.0] * 4]
