from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.road_users import road_users_spec
from models.safety import Reason, Verdict, safest
from tests.test_training.driving import mixed_episodes, save_store
from training.closed_loop import drives
from training.closed_loop.arms import (
    TRAINED,
    TUNING,
    Arm,
    Course,
    Driving,
    drive_all,
    drive_course,
    monitor_of,
)
from training.closed_loop.comparison import (
    FIRST_SEED,
    FIRST_TUNING_SEED,
    TRAINED_ROADS,
    DrivePool,
    check_unseen,
    compare_monitors,
    most_drives,
    seeds_of,
    tune_shield,
)
from training.closed_loop.drives import RECKLESS, Drive, Outcome, Setup, draw_reckless
from training.closed_loop.log import DriveLog, Tally
from training.closed_loop.manoeuvres import MANOEUVRES, manoeuvres
from training.closed_loop.monitors import (
    BrakeMonitor,
    FallbackMonitor,
    Floats,
    Judge,
    Monitor,
    NoMonitor,
    Opinion,
    PhysicsJudge,
    Shield,
)
from training.closed_loop.results import MODEL, NO_MONITOR, PHYSICS, compare_arms, plot_closed_loop
from training.dataset import tracker_models
from training.dataset.tracker_models import Tracker
from training.dataset.trackers import Tracking
from training.dataset.windows import UNSEEN_ENVIRONMENT
from training.evaluation.closed_loop_tables import closed_loop_table
from training.simulation.behaviours import BEHAVIOURS
from training.simulation.simulator import trained_roads
from training.simulation.sumo import process

HORIZON = 16
PHYSICS_THRESHOLD = -0.2
WANTED = np.array([[0.3, 0.6, 0.0]], np.float32)
"""No manoeuvre's pedal."""


@dataclass
class FakeJudge:
    """Gives sequences of a car the same risks each time, whatever they are."""

    risks: list[float]
    unknown: tuple[int, ...] = ()
    own_threshold: float = 0.5

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Judge]:
        yield self

    async def judge(self, states: Floats, sequences: Floats, threshold: float | None) -> Opinion:
        assert sequences.shape[1] == len(self.risks)
        threshold = self.own_threshold if threshold is None else threshold
        risk = np.tile(self.risks, (len(states), 1))
        verdict = np.where(risk < threshold, "safe", "unsafe").astype("<U7")
        verdict[:, list(self.unknown)] = "unknown"
        return Opinion(verdict, risk, np.full(len(states), 0.01))


def road_state(speed: float = 20.0) -> np.ndarray:
    state = np.zeros((1, 34))
    state[0, :6] = speed, 0.0, 0.0, 6.0, 6.0, 0.0
    return state


def behind_a_parked_car(gap_m: float) -> np.ndarray:
    state = road_state()
    state[0, 6:13] = 1.0, gap_m + 5.0, 0.0, 0.0, 0.0, 0.0, 0.0
    return state


def choose(monitor: Monitor, state: np.ndarray | None = None) -> Any:
    return asyncio.run(monitor.choose(road_state() if state is None else state, WANTED))


def drive(
    monitor: Monitor, seeds: list[int], source: str = "highway-env", setup: Setup | None = None
) -> list[Drive]:
    done: list[Drive] = []
    course = Course(source, TRAINED, seeds)
    asyncio.run(drive_all(monitor, course, setup or Setup(), done.append))
    return sorted(done, key=lambda one: one.seed)


def outcomes(made: list[Drive]) -> list[Outcome]:
    return [one.outcome for one in made]


def test_the_safest_sequence_is_the_one_the_service_calls_best() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        names = rng.choice(["safe", "unknown", "unsafe"], 6)
        risks = rng.permutation(6) / 10
        verdicts = [
            Verdict(name, risk, [risk], None, 0.0, None, 0.5, (Reason("x", ""),), 0.8)
            for name, risk in zip(names, risks, strict=True)
        ]
        opinion = Opinion(names[None], risks[None], np.empty(0))
        assert opinion.safest()[0] == safest(verdicts)
        assert opinion.safest(2)[0] == 2 + safest(verdicts[2:])


def test_without_a_monitor_the_driver_has_its_way() -> None:
    choice = choose(NoMonitor())
    assert (choice.actions == WANTED).all()
    assert not choice.is_overridden.any()


@pytest.mark.parametrize(
    ("judge", "is_overridden"),
    [
        (FakeJudge([0.4]), False),
        (FakeJudge([0.6]), True),
        (FakeJudge([0.1], unknown=(0,)), True),
    ],
    ids=["safe", "unsafe", "unknown"],
)
def test_the_brake_monitor_brakes_unless_holding_on_is_safe(
    judge: FakeJudge, is_overridden: bool
) -> None:
    choice = choose(BrakeMonitor(judge, HORIZON))
    assert choice.is_overridden.tolist() == [is_overridden]
    expected = [0.0, 0.0, 1.0] if is_overridden else WANTED[0]
    assert choice.actions[0] == pytest.approx(expected, abs=1e-6)


def risks_with(lowest: int, count: int) -> list[float]:
    return [0.6 if i != lowest else 0.2 for i in range(count)]


def test_the_fallback_monitor_takes_the_safest_manoeuvre() -> None:
    state, third = road_state(), 1 + 3
    choice = choose(FallbackMonitor(FakeJudge(risks_with(third, 13)), HORIZON), state)
    assert choice.is_overridden.all()
    assert (choice.actions[0] == manoeuvres(state, HORIZON)[0, 3, 0]).all()


def test_the_fallback_monitor_lets_pass_what_is_safe_or_not_to_be_bettered() -> None:
    safe = FakeJudge([0.4, *[0.1] * 12])
    least_bad = FakeJudge([0.6, *[0.7] * 12])
    for judge in (safe, least_bad):
        choice = choose(FallbackMonitor(judge, HORIZON))
        assert (choice.actions == WANTED).all()
        assert not choice.is_overridden.any()


def test_the_shield_lets_pass_what_leaves_one_way_out() -> None:
    choice = choose(Shield(FakeJudge(risks_with(7, 24)), HORIZON, 0.5))
    assert (choice.actions == WANTED).all()
    assert not choice.is_overridden.any()


def test_the_shield_takes_the_safest_manoeuvre_where_no_way_out_is_left() -> None:
    state = road_state()
    judge = FakeJudge([*[0.55] * 12, *risks_with(5, 12)])
    choice = choose(Shield(judge, HORIZON, 0.5), state)
    assert choice.is_overridden.all()
    assert (choice.actions[0] == manoeuvres(state, HORIZON)[0, 5, 0]).all()


def test_the_shield_judges_by_its_own_threshold() -> None:
    judge = FakeJudge([0.3] * 24)
    assert not choose(Shield(judge, HORIZON, 0.31)).is_overridden.any()
    assert choose(Shield(judge, HORIZON, 0.3)).is_overridden.all()


def test_physics_sees_the_parked_car_and_the_way_around_it() -> None:
    monitor = BrakeMonitor(PhysicsJudge(PHYSICS_THRESHOLD), HORIZON)
    assert choose(monitor, behind_a_parked_car(12.0)).is_overridden.all()
    assert not choose(monitor, behind_a_parked_car(40.0)).is_overridden.any()


def test_reckless_drives_are_drawn_in_their_shares() -> None:
    drawn = [draw_reckless(seed, TRAINED_ROADS) for seed in range(3000)]
    assert draw_reckless(7, TRAINED_ROADS) == drawn[7]
    assert set(RECKLESS) < set(BEHAVIOURS)
    assert sum(RECKLESS.values()) == pytest.approx(1)
    for name, share in RECKLESS.items():
        assert np.mean([behaviour == name for _, behaviour in drawn]) == pytest.approx(
            share, abs=0.03
        )
    assert UNSEEN_ENVIRONMENT not in {environment for environment, _ in drawn}


@pytest.fixture(scope="module")
def unmonitored() -> list[Drive]:
    return drive(NoMonitor(), list(range(FIRST_SEED + 10, FIRST_SEED + 20)))


def test_drives_depend_on_their_seed_alone(unmonitored: list[Drive]) -> None:
    some = drive(NoMonitor(), [FIRST_SEED + 17, FIRST_SEED + 12])
    for one in some:
        (same,) = (d for d in unmonitored if d.seed == one.seed)
        assert (one.environment, one.behaviour) == (same.environment, same.behaviour)
        assert one.outcome == same.outcome
    assert [d.seed for d in some] == [FIRST_SEED + 12, FIRST_SEED + 17]


def test_monitors_that_ask_physics_prevent_terminations(unmonitored: list[Drive]) -> None:
    ended = [d.seed for d in unmonitored if d.world.cause]
    assert len(ended) >= 2
    judge = PhysicsJudge(PHYSICS_THRESHOLD)
    arms: dict[str, Monitor] = {
        "fallbacks, physics": FallbackMonitor(judge, HORIZON),
        "shield, physics": Shield(judge, HORIZON, -0.5),
    }
    base = [d.outcome for d in unmonitored if d.world.cause]
    driven = {
        NO_MONITOR: base,
        **{name: outcomes(drive(arm, ended)) for name, arm in arms.items()},
    }
    results = compare_arms(driven)
    for name in arms:
        assert results[name]["prevented"] >= 0.5
        assert 0 < results[name]["overridden"] < 0.7
        assert results[name]["unknown"] == 0
    assert results[NO_MONITOR]["terminated"] == 1
    assert results[NO_MONITOR]["prevented"] == 0
    assert results[NO_MONITOR]["speed_kept"] == 1
    judged = driven["shield, physics"][0]
    assert judged.judged == 2 * len(MANOEUVRES) * len(judged.speeds)


def finished(seed: int, cause: int, speeds: list[float]) -> Outcome:
    return Outcome(seed, cause, speeds=speeds, rewards=[0.5] * len(speeds))


def test_arms_are_compared_seed_by_seed() -> None:
    base = [finished(i, cause, [20.0] * 10) for i, cause in enumerate((1, 2, 1, 0))]
    model = [finished(i, cause, [16.0] * 20) for i, cause in enumerate((0, 2, 0, 0))]
    physics = [finished(i, cause, [10.0] * 10) for i, cause in enumerate((1, 2, 0, 0))]
    model[0].overridden, model[0].round_trips_s = 8, [0.01, 0.03]

    results = compare_arms({NO_MONITOR: base, "x, model": model, "x, physics": physics})

    ours = results["x, model"]
    assert (ours["terminated"], ours["crash"], ours["off_road"]) == (0.25, 0, 0.25)
    assert ours["prevented"] == pytest.approx(2 / 3)
    assert ours["above_physics"] == pytest.approx(-0.25)
    assert ours["speed_kept"] == pytest.approx(0.8)
    assert ours["mean_speed_mps"] == pytest.approx(16)
    assert ours["per_km"] == pytest.approx(1000 / (16 * 80 * 0.05))
    assert ours["overridden"] == pytest.approx(0.1)
    assert ours["reward_per_episode"] == pytest.approx(10)
    assert (ours["requests"], ours["p50_ms"]) == (2, pytest.approx(20))
    low, high = ours["prevented_interval"]
    assert low <= 2 / 3 <= high
    assert results["x, physics"]["speed_kept"] == pytest.approx(0.5)
    assert "above_physics" not in results["x, physics"]
    assert results[NO_MONITOR]["unknown"] is None


def test_arms_on_different_seeds_are_not_compared() -> None:
    base, other = ([finished(i, 1, [1.0])] for i in (1, 2))
    with pytest.raises(AssertionError):
        compare_arms({NO_MONITOR: base, "x, model": other})


def test_a_data_set_that_holds_a_drive_is_refused(tmp_path: Path) -> None:
    save_store(tmp_path, mixed_episodes(9))  # seeds 0 to 8, in two shards
    check_unseen(tmp_path, seeds_of(300))
    with pytest.raises(ValueError, match="seeds \\[8\\]"):
        check_unseen(tmp_path, [FIRST_SEED, 8])


def test_tuning_and_reported_drives_share_no_seed() -> None:
    seeds = seeds_of(300)
    assert len(set(seeds)) == len(seeds) == 360
    assert sum(FIRST_SEED <= seed < FIRST_TUNING_SEED for seed in seeds) == 300


def test_the_strictest_threshold_that_overrides_little_is_chosen(tmp_path: Path) -> None:
    judge = FakeJudge([0.02] * 24)
    courses = [Course("highway-env", TUNING, [FIRST_TUNING_SEED])]
    found, tried = tune_shield(Driving(tmp_path, Setup(), HORIZON), MODEL, judge, courses)
    assert found == 0.03
    assert [row["threshold"] for row in tried] == [0.003, 0.01, 0.03]
    assert [row["overridden"] for row in tried] == [1, 1, 0]


def test_the_comparison_is_plain_json_and_can_be_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drives, "MAX_STEPS", 30)
    judges = {PHYSICS: PhysicsJudge(PHYSICS_THRESHOLD)}
    ticks: list[int] = []

    results = compare_monitors(judges, HORIZON, 1, DrivePool(tmp_path, 1, ticks.append))

    json.dumps(results, allow_nan=False)
    assert 8 < ticks[-1] <= most_drives(1, judges=[PHYSICS])
    assert set(results["results"]) == {"highway-env"}
    assert set(results["results"]["highway-env"]) == {"trained", "unseen"}
    text = closed_loop_table(results)
    for arm in (NO_MONITOR, "brake, physics", "fallbacks, physics", "shield, physics"):
        assert f"| {arm} |" in text
    plot_closed_loop(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert MODEL not in results["tuning"]["judges"]


@pytest.mark.slow
def test_processes_drive_what_one_does(tmp_path: Path) -> None:
    course, arms = Course("highway-env", TRAINED, range(FIRST_SEED, FIRST_SEED + 2)), [Arm()]
    driving = Driving(tmp_path, Setup(), HORIZON)
    drive_course("here", driving, arms, course)
    ticks: list[int] = []
    pool = DrivePool(tmp_path, 2, ticks.append)
    pool.run(
        drive_course,
        [(f"there-{i}", driving, arms, replace(course, seeds=course.seeds[i::2])) for i in (0, 1)],
    )
    here, *there = (DriveLog(tmp_path, x) for x in ("here", "there-0", "there-1"))
    of = NO_MONITOR, "highway-env", TRAINED
    assert here.of(*of) == there[0].of(*of) | there[1].of(*of)
    assert Tally(tmp_path).count() == 4


def test_a_comparison_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drives, "MAX_STEPS", 10)
    course = Course("highway-env", TRAINED, range(FIRST_SEED, FIRST_SEED + 3))
    arms = [Arm(), Arm("brake, x", "brake", FakeJudge([0.1]))]
    driving = Driving(tmp_path, Setup(), HORIZON)
    drive_course("some", driving, arms, course)
    log = tmp_path / "some.jsonl"
    whole = log.read_text()
    assert Tally(tmp_path).count() == 6
    lines = whole.splitlines(keepends=True)
    changed = lines[0].replace('"overridden": 0', '"overridden": 77')
    log.write_text("".join([changed, *lines[1:4], lines[4][:50]]))  # killed while it wrote

    drive_course("some", driving, arms, course)

    again = log.read_text().splitlines(keepends=True)
    # What was driven was not driven again, what was cut off was.
    assert again[:4] == [changed, *lines[1:4]]
    assert sorted(again[1:]) == sorted(lines[1:])


def test_finished_drives_are_kept_by_arm_source_and_part(tmp_path: Path) -> None:
    log = DriveLog(tmp_path, "some")
    log.add(Outcome(7, speeds=[1.5]), "a", "sumo", "trained")
    log.add(Outcome(7, cause=1), "a", "sumo", "unseen")
    read = DriveLog(tmp_path, "some")
    assert read.of("a", "sumo", "trained") == {7: Outcome(7, speeds=[1.5])}
    assert read.of("a", "sumo", "unseen") == {7: Outcome(7, cause=1)}
    assert read.of("b", "sumo", "trained") == {}


MIXED = Setup(road_users_spec(), "mixed", Tracking(model="reference"))


@pytest.mark.parametrize("turning", [True, False])
@pytest.mark.parametrize("kind", ["brake", "fallbacks", "shield"])
def test_physics_monitors_mixed_fleets_through_a_tracker(
    monkeypatch: pytest.MonkeyPatch, kind: str, turning: bool
) -> None:
    monkeypatch.setattr(drives, "MAX_STEPS", 15)
    judge = PhysicsJudge(PHYSICS_THRESHOLD, MIXED.spec, turning)
    monitor = monitor_of(Arm(kind, kind, judge, -0.3), judge, MIXED, HORIZON)
    (one,) = drive(monitor, [FIRST_SEED + 2], setup=MIXED)
    assert one.world.environment in TRAINED_ROADS
    assert len({*map(tuple, one.world.sizes.tolist())}) > 2
    assert one.outcome.judged > 0
    assert one.outcome.unknown == 0


def test_physics_takes_a_truck_for_as_long_as_it_is() -> None:
    """Its end is 4 m ahead, its centre 14 m: a car there would be 9 m away."""
    spec = MIXED.spec
    state = np.zeros((1, spec.state_dim), np.float32)

    def put(**values: float) -> None:
        for name, value in values.items():
            state[0, spec.state_index(name)] = value

    put(speed=14.0, left_edge=6.0, right_edge=6.0, length=5.0, width=2.0)
    put(neighbour_1_dx=14.0, neighbour_1_speed=6.0, neighbour_1_width=2.0)
    monitor = BrakeMonitor(PhysicsJudge(PHYSICS_THRESHOLD, spec), HORIZON, spec)
    put(neighbour_1_length=5.0)
    assert not choose(monitor, state).is_overridden.any()
    put(neighbour_1_length=15.0)
    assert choose(monitor, state).is_overridden.all()


def test_crashes_are_judged_by_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [FIRST_SEED + 1]
    blind = Tracker(late_share=1.0, drops_per_s=20.0, drop_s=100.0, coast_s=0.0)
    monkeypatch.setitem(tracker_models.TRACKERS, "tried", blind)
    seen = drive(NoMonitor(), seeds, setup=Setup(MIXED.spec, "mixed"))
    unseen = drive(NoMonitor(), seeds, setup=Setup(MIXED.spec, "mixed", Tracking(model="tried")))
    assert outcomes(seen) == outcomes(unseen)
    assert any(one.outcome.cause == 1 for one in seen)


@pytest.mark.skipif(not process.is_installed(), reason="needs SUMO")
def test_sumo_is_driven_one_drive_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drives, "MAX_STEPS", 15)
    seeds = [FIRST_SEED, FIRST_SEED + 1, FIRST_SEED + 2]
    judge = PhysicsJudge(PHYSICS_THRESHOLD, MIXED.spec)
    made = drive(BrakeMonitor(judge, HORIZON, MIXED.spec), seeds, "sumo", MIXED)
    assert [one.seed for one in made] == seeds
    assert {one.environment for one in made} <= set(trained_roads("sumo"))
    for one in made:
        assert one.world.cause or one.world.is_cut or len(one.outcome.speeds) == 15
    (again,) = drive(BrakeMonitor(judge, HORIZON, MIXED.spec), seeds[1:2], "sumo", MIXED)
    assert again.outcome == made[1].outcome


@dataclass
class CutWorld:
    """Is cut in its third step."""

    world: Any
    steps: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def step(self, action: Any) -> tuple[float, int]:
        self.steps += 1
        self.world.is_cut = self.steps == 3
        return 0.5, 0


def test_what_comes_of_the_step_that_cuts_a_drive_does_not_count() -> None:
    one = Drive.start(1, TRAINED_ROADS)
    one.world = CutWorld(one.world)  # type: ignore[assignment]
    choice = choose(NoMonitor())
    while not one.is_over:
        one.step(choice, 0)
    assert len(one.outcome.speeds) == len(one.outcome.rewards) == 2
    assert one.outcome.cause == 0
