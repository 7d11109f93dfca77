from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_training.interrupted import Running, still_there
from training.dataset import collect as collecting
from training.dataset import recording
from training.dataset.collect import collect
from training.dataset.overlap import collected_seeds
from training.dataset.store import MANIFEST, ShardNote, load_store, shard_path
from training.running.locks import LOCK, FolderLockedError, locked
from training.running.stopping import Stopped, stoppable
from training.simulation.behaviours import (
    BEHAVIOURS,
    SEQUENCE_KINDS,
    SHARES,
    draw_sequence,
    make_behaviour,
)
from training.simulation.rectangles import rectangle_gap
from training.simulation.roads import ENVIRONMENTS
from training.simulation.simulator import (
    CAUSES,
    MAX_VEHICLES,
    SOURCE_ROADS,
    SOURCES,
    Episode,
    Simulation,
    draw_episode,
    run_episode,
)
from training.simulation.sumo.process import is_installed
from training.simulation.worlds import reward_of

HIGHWAY = {"highway": 1.0}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three episodes of at most 12 steps a shard."""
    monkeypatch.setattr(collecting, "EPISODES_PER_SHARD", 3)
    monkeypatch.setattr(collecting, "MAX_STEPS", 12)


def run(folder: Path, transitions: int = 80, seed: int = 5, workers: int = 1) -> list[int]:
    return collect(
        folder,
        transitions=transitions,
        seed=seed,
        environments=HIGHWAY,
        workers=workers,
        progress=False,
    )


def interrupt_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the shard after the first `count` raise what Ctrl-C raises."""
    made: list[object] = []

    def make_shard(*args: object) -> ShardNote:
        if len(made) == count:
            raise KeyboardInterrupt
        made.append(args)
        return recording.make_shard(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(collecting, "make_shard", make_shard)


def test_collect_records_enough_transitions_and_no_shard_more(tmp_path: Path) -> None:
    run(tmp_path, transitions=80)
    store = load_store(tmp_path)
    steps = store.frame_count - 1
    assert store.manifest["counts"]["transitions"] == steps.sum() >= 80
    assert steps[:-3].sum() < 80
    assert store.manifest["seed"] == 5
    assert store.manifest["environment_shares"] == HIGHWAY


def test_collect_repeats_itself_with_any_number_of_workers(tmp_path: Path) -> None:
    run(tmp_path / "one", workers=1)
    run(tmp_path / "two", workers=2)
    one, two = ((tmp_path / name / MANIFEST).read_text() for name in ("one", "two"))
    assert one == two
    names = {path.name for path in (tmp_path / "two").iterdir()}
    assert names == {*json.loads(two)["shards"], MANIFEST, LOCK}


def test_collect_goes_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        with pytest.raises(KeyboardInterrupt) as stopped:
            run(tmp_path / "broken")
    (note,) = stopped.value.__notes__
    assert re.fullmatch(r"\d+ of 80 transitions kept in 1 whole shards", note)
    names = {p.name for p in (tmp_path / "broken").iterdir()}
    assert names == {"shard-00000.safetensors", LOCK}
    with pytest.raises(ValueError, match="no finished dataset"):
        load_store(tmp_path / "broken")
    run(tmp_path / "broken")
    run(tmp_path / "whole")
    broken, whole = (load_store(tmp_path / name) for name in ("broken", "whole"))
    assert broken.fingerprint == whole.fingerprint


def test_collect_keeps_shards_when_asked_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, transitions=30)
    kept = shard_path(tmp_path, 0).stat().st_mtime_ns
    interrupt_after(99, monkeypatch)
    run(tmp_path, transitions=60)
    assert shard_path(tmp_path, 0).stat().st_mtime_ns == kept
    assert load_store(tmp_path).manifest["counts"]["transitions"] >= 60


def test_collect_drops_shards_beyond_a_smaller_target(tmp_path: Path) -> None:
    run(tmp_path / "both", transitions=80)
    run(tmp_path / "both", transitions=20)
    run(tmp_path / "small", transitions=20)
    both, small = (load_store(tmp_path / name) for name in ("both", "small"))
    assert both.fingerprint == small.fingerprint


def test_collect_refuses_a_folder_of_another_seed_naming_both(tmp_path: Path) -> None:
    run(tmp_path, transitions=20, seed=5)
    with pytest.raises(ValueError, match="collected with seed=5, but seed=6 is asked for"):
        run(tmp_path, transitions=20, seed=6)
    assert load_store(tmp_path).manifest["seed"] == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"transitions": 0}, "transitions must be at least 1, got 0", id="none"),
        pytest.param({"environments": {"moon": 1.0}}, "unknown environments", id="unknown"),
        pytest.param({"environments": {"highway": -1.0}}, "must not be negative", id="negative"),
        pytest.param({"environments": {}}, "nor all 0", id="empty"),
    ],
)
def test_collect_refuses_senseless_arguments(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        collect(tmp_path, **{"transitions": 10, "seed": 0, **arguments})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_collect_refuses_a_folder_that_another_command_writes(tmp_path: Path) -> None:
    with locked(tmp_path, "collecting"), pytest.raises(FolderLockedError, match="collecting, proc"):
        run(tmp_path)


FATAL = int(collected_seeds(5, 1, 3)[1])
"""Seed of the second episode of the second shard."""


def run_falling(seed: int, *rest: Any) -> Episode:
    """Drive an episode, or die of it as a simulator does."""
    if seed == FATAL:
        os.kill(os.getpid(), signal.SIGSEGV)
    return run_episode(seed, *rest)


def run_slowly_falling(seed: int, *rest: Any) -> Episode:
    """Drive an episode; the third one of any process kills it."""
    driven.append(seed)
    if len(driven) == 3:
        os.kill(os.getpid(), signal.SIGABRT)
    return run_episode(seed, *rest)


def run_killed(seed: int, *rest: Any) -> Episode:
    """End as a process does that the kernel kills, for memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return run_episode(seed, *rest)


def run_refused(seed: int, *rest: Any) -> Episode:
    """Raise an error that belongs to whoever asked."""
    raise ValueError(f"no episode of {seed}")


driven: list[int] = []


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Episode]], None]:
    """Replace the simulator by one that may end its process, as SUMO may."""
    monkeypatch.setattr(collecting, "MAY_KILL", ("highway-env",))
    return lambda run: monkeypatch.setattr(recording, "run_episode", run)


def test_collect_leaves_out_episodes_that_kill_the_simulator_always_the_same(
    tmp_path: Path, simulator: Callable[[Callable[..., Episode]], None]
) -> None:
    simulator(run_falling)
    left_out = run(tmp_path / "fresh", transitions=50, workers=1)
    (tmp_path / "resumed").mkdir()
    shutil.copy(shard_path(tmp_path / "fresh", 0), shard_path(tmp_path / "resumed", 0))
    run(tmp_path / "resumed", transitions=50, workers=2)

    fresh, resumed = ((tmp_path / name / MANIFEST).read_text() for name in ("fresh", "resumed"))
    assert fresh == resumed
    store = load_store(tmp_path / "fresh")
    assert store.manifest["left_out"] == left_out == [FATAL]
    drawn = [int(seed) for i in range(2) for seed in collected_seeds(5, i, 3)]
    assert store.seed.tolist() == [seed for seed in drawn if seed != FATAL]
    assert store.manifest["counts"]["episodes"] == 5


def test_collect_drives_an_episode_again_that_was_not_to_blame(
    tmp_path: Path, simulator: Callable[[Callable[..., Episode]], None]
) -> None:
    run(tmp_path / "usual", transitions=60)
    simulator(run_slowly_falling)
    assert run(tmp_path / "killed", transitions=60) == []
    usual, killed = (load_store(tmp_path / name) for name in ("usual", "killed"))
    assert usual.fingerprint == killed.fingerprint


def test_collect_ends_where_the_simulator_kills_its_process_often(
    tmp_path: Path,
    simulator: Callable[[Callable[..., Episode]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recording, "_FEW", 0)
    simulator(run_falling)
    with pytest.raises(ChildProcessError, match=r"killed its process in 1 of 5 episodes, but at"):
        run(tmp_path)
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_collect_ends_where_the_system_kills_a_worker(
    tmp_path: Path, simulator: Callable[[Callable[..., Episode]], None], workers: int
) -> None:
    simulator(run_killed)
    with pytest.raises(ChildProcessError, match="SIGKILL; the kernel does that if memory runs out"):
        run(tmp_path, workers=workers)


def test_collect_raises_what_an_episode_raises_in_a_worker(
    tmp_path: Path, simulator: Callable[[Callable[..., Episode]], None]
) -> None:
    simulator(run_refused)
    with pytest.raises(ValueError, match="no episode of"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("left_out", "episodes", "is_refused"),
    [(5, 0, False), (6, 500, True), (6, 594, False), (11, 1000, True), (150, 15_000, False)],
)
def test_few_episodes_may_be_left_out(left_out: int, episodes: int, is_refused: bool) -> None:
    with pytest.raises(ChildProcessError) if is_refused else nullcontext():
        recording.check_left_out(left_out, episodes)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_collect_in_processes_stops_at_once_and_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    code = (
        "from tests.test_training.test_dataset.test_collect import collect_many; "
        f"collect_many({str(tmp_path / 'broken')!r})"
    )
    running = Running(code, tmp_path)
    running.until(lambda: len(list((tmp_path / "broken").glob("*.safetensors"))) >= 2)
    workers = running.workers()

    assert running.signal(number, to_group=True) in (130, -signal.SIGKILL)

    assert not still_there(workers)
    assert "Traceback" not in running.output
    run(tmp_path / "broken", transitions=80)
    run(tmp_path / "whole", transitions=80)
    broken, whole = (load_store(tmp_path / name) for name in ("broken", "whole"))
    assert broken.fingerprint == whole.fingerprint


def collect_many(folder: str) -> None:
    """Collect without end in two processes, as `run` does."""
    try:
        with pytest.MonkeyPatch.context() as patch, stoppable():
            patch.setattr(collecting, "EPISODES_PER_SHARD", 3)
            patch.setattr(collecting, "MAX_STEPS", 12)
            run(Path(folder), transitions=1_000_000, workers=2)
    except Stopped as exc:
        sys.exit(exc.exit_code)


def test_collect_shows_steps_and_terminations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(tmp_path, transitions=20, seed=1, environments=HIGHWAY, workers=1)
    shown = capsys.readouterr().err
    assert re.search(r"3 episodes, \d+ crash, \d+ off_road", shown)
    assert "collecting: 100 % (20 of 20 steps)" in shown


def test_collect_uses_all_roads_unless_told() -> None:
    names = {draw_episode(seed, SOURCE_ROADS["highway-env"])[0] for seed in range(100)}
    assert names == set(ENVIRONMENTS)


def test_behaviour_shares_are_those_drawn() -> None:
    drawn = [draw_episode(seed, HIGHWAY)[1] for seed in range(2000)]
    assert sum(SHARES) == pytest.approx(1)
    for name, share in zip(BEHAVIOURS, SHARES, strict=True):
        assert drawn.count(name) / len(drawn) == pytest.approx(share, abs=0.04)


def test_episode_repeats_for_its_seed() -> None:
    one, two = (run_episode(11, "merge", "aggressive", 15) for _ in range(2))
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(two, name))
    assert not np.array_equal(one.ego, run_episode(12, "merge", "aggressive", 15).ego)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_episode_frames_are_consistent(environment: str) -> None:
    episode = run_episode(2, environment, "noisy", 15)
    assert episode.environment == ENVIRONMENTS.index(environment)
    assert (episode.ego[0, :2] == 0).all()
    assert (episode.ego[:, 3] == episode.ego_features[:, 0]).all()
    assert len(episode.action) == len(episode.reward) == episode.steps + 1
    assert (episode.action[-1] == 0).all()
    assert episode.reward[-1] == 0
    assert ((episode.vehicle_id >= 0) == (episode.present[0] > 0)).all()
    assert 0 < episode.present[0].sum() <= MAX_VEHICLES
    assert np.isfinite(episode.vehicles).all()
    assert (episode.vehicles[..., 3] >= -1e-6).all()  # traffic never reverses


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_behaviour_keeps_actions_in_range(behaviour: str) -> None:
    action = run_episode(4, "highway", behaviour, 40).action
    assert (action >= [-1, 0, 0]).all()
    assert (action <= 1).all()
    assert np.ptp(action[:-1], axis=0).max() > 0


@pytest.mark.parametrize("kind", SEQUENCE_KINDS)
def test_sequences_are_in_range_and_repeat_for_their_seed(kind: str) -> None:
    one, two = (draw_sequence(kind, np.random.default_rng(3), 40) for _ in range(2))
    assert one.shape == (40, 3)
    assert one.dtype == np.float32
    assert (one >= [-1, 0, 0]).all()
    assert (one <= 1).all()
    np.testing.assert_array_equal(one, two)
    assert (one[:, 1] * one[:, 2] == 0).all()  # one pedal at a time


def test_sequence_kinds_differ_in_how_they_change() -> None:
    def changes(kind: str) -> float:
        rng = np.random.default_rng(0)
        steer = np.stack([draw_sequence(kind, rng, 32)[:, 0] for _ in range(50)])
        return float(np.abs(np.diff(steer, axis=1)).mean() / steer.std())

    assert changes("white") > 3 * changes("smooth")
    bang = draw_sequence("bang_bang", np.random.default_rng(1), 32)
    assert len(np.unique(bang[:, 0])) <= 3
    swerve = draw_sequence("evasive", np.random.default_rng(1), 32)[:, 0]
    assert swerve.min() < 0 < swerve.max()


def test_sequence_of_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind 'zigzag'"):
        draw_sequence("zigzag", np.random.default_rng(0), 8)


def test_some_drivers_brake_hard_or_change_lane_without_looking() -> None:
    kinds: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for seed in range(4):
        world = Simulation(seed, "highway", surprising_share=1.0)
        begun: dict[int, tuple[float, float]] = {}
        for _ in range(100):
            world.step(np.array([0, 0.1, 0]))
            for i, car in enumerate(world.others):
                if car.surprise is None:
                    continue
                if i not in begun and car.surprised_within(0.05):
                    begun[i] = (car.position[1], car.speed)
                elapsed = car.clock_s - car.surprise.start_s
                if i in begun and 1.45 <= elapsed < 1.5:
                    moved = (abs(car.position[1] - begun[i][0]), begun[i][1] - car.speed)
                    kinds[car.surprise.brake_mps2 > 0].append(moved)
    aside, slower = np.array(kinds[False])[:, 0], np.array(kinds[True])[:, 1]
    assert np.median(aside) > 3.0  # a lane is 4 m wide
    assert np.median(slower) > 7.0


def test_crashes_with_a_car_that_surprised_are_marked() -> None:
    episodes = [
        run_episode(seed, "highway", "aggressive", surprising_share=1.0) for seed in range(12)
    ]
    crashes = [episode.provoked for episode in episodes if episode.cause == CAUSES.index("crash")]
    others = [episode.provoked for episode in episodes if episode.cause != CAUSES.index("crash")]
    assert sum(crashes) > 0
    assert sum(others) == 0


def test_crashes_without_a_surprise_are_not_marked() -> None:
    episodes = [
        run_episode(seed, "highway", "aggressive", surprising_share=0.0) for seed in range(12)
    ]
    assert CAUSES.index("crash") in {episode.cause for episode in episodes}
    assert sum(episode.provoked for episode in episodes) == 0


def test_a_copied_simulation_has_the_same_future_and_does_not_touch_the_other() -> None:
    world = Simulation(5, "racetrack")
    for _ in range(5):
        world.step(np.array([0, 0.3, 0]))
    other, before = world.copy(), world.state()
    for _ in range(10):
        other.step(np.array([0.1, 0, 1.0]))
    np.testing.assert_array_equal(world.state(), before)
    again = world.copy()
    for _ in range(10):
        again.step(np.array([0.1, 0, 1.0]))
    np.testing.assert_array_equal(again.state(), other.state())
    assert again.road is not world.road
    assert again.road.network is world.road.network


def test_bursts_hold_full_pedals_and_steer_for_a_while() -> None:
    actions = np.concatenate([run_episode(seed, "highway", "bursts").action for seed in range(4)])
    for column in (1, 2):
        held = actions[:, column] == 1
        assert (held[3:] & held[2:-1] & held[1:-2] & held[:-3]).any()
    steer = actions[:, 0]
    assert ((steer[1:] == steer[:-1]) & (np.abs(steer[1:]) > 0.15)).any()


def test_behaviour_of_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown behaviour 'asleep'"):
        make_behaviour("asleep", np.random.default_rng(0), 20.0)


def test_careful_drivers_reach_the_end_and_reckless_ones_do_not() -> None:
    careful = [run_episode(seed, "highway", "careful", 60) for seed in range(4)]
    reckless = [run_episode(seed, "highway", "aggressive", 140) for seed in range(8)]
    assert [episode.cause for episode in careful] == [0, 0, 0, 0]
    assert sum(episode.cause > 0 for episode in reckless) >= 2


def first_ended(cause: str, behaviour: str) -> Episode:
    for seed in range(40):
        episode = run_episode(seed, "highway", behaviour)
        if CAUSES[episode.cause] == cause:
            return episode
    raise AssertionError(f"no {cause} in 40 episodes")


def smallest_gap(episode: Episode, frame: int) -> float:
    offset = episode.vehicles[frame] - episode.ego[frame]
    cos, sin = np.cos(episode.ego[frame, 2]), np.sin(episode.ego[frame, 2])
    gaps = rectangle_gap(
        cos * offset[:, 0] + sin * offset[:, 1],
        cos * offset[:, 1] - sin * offset[:, 0],
        offset[:, 2],
    )
    return float(gaps[episode.present[frame] > 0].min())


def test_episode_crashes_at_the_first_overlap() -> None:
    episode = first_ended("crash", "aggressive")
    assert smallest_gap(episode, -1) < 0 < smallest_gap(episode, -2)
    assert episode.reward[-2] == -1


def test_episode_leaves_the_road_at_the_first_negative_edge() -> None:
    episode = first_ended("off_road", "bang_bang")
    edges = episode.ego_features[:, 3:5].min(1)
    assert edges[-1] < 0 <= edges[:-1].min()
    assert episode.reward[-2] == -1


@pytest.mark.parametrize(
    ("speed", "offset", "cause", "reward"),
    [
        pytest.param(30.0, 0.0, 0, 1.0, id="best"),
        pytest.param(15.0, -1.0, 0, 0.5, id="half"),
        pytest.param(0.0, 2.0, 0, 0.0, id="standing_between_lanes"),
        pytest.param(30.0, 0.0, 1, -1.0, id="crash"),
        pytest.param(30.0, 0.0, 2, -1.0, id="off_road"),
    ],
)
def test_reward_follows_its_formula(speed: float, offset: float, cause: int, reward: float) -> None:
    assert reward_of([speed, offset, 0, 0, 0, 0], cause) == pytest.approx(reward)


@pytest.mark.skipif(not is_installed(), reason="needs SUMO: pip install eclipse-sumo libsumo")
def test_collect_records_sumo_with_any_number_of_workers(tmp_path: Path) -> None:
    for workers in (1, 2):
        collect(
            tmp_path / str(workers),
            transitions=60,
            seed=5,
            environments={"freeway": 1.0, "ring": 1.0},
            source="sumo",
            workers=workers,
            progress=False,
        )

    one, two = (load_store(tmp_path / str(workers)) for workers in (1, 2))
    assert one.fingerprint == two.fingerprint
    assert (one.source == SOURCES.index("sumo")).all()
    names = {one.environment_names[code] for code in one.environment}
    assert names <= {"freeway", "ring"}
    assert one.manifest["fleet"] == "mixed"
    assert one.manifest["simulator"] == version("eclipse-sumo")
    assert (one.size[one.kind >= 0] > 0).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"source": "carla"}, "unknown source 'carla'"),
        ({"source": "sumo", "fleet": "cars"}, "the fleet in SUMO is 'mixed', got 'cars'"),
        ({"source": "sumo", "environments": {"highway": 1.0}}, "unknown environments"),
        ({"environments": {"freeway": 1.0}}, "unknown environments"),
    ],
    ids=["source", "fleet", "road of the other", "road of sumo"],
)
def test_collect_refuses_what_a_source_has_not(
    tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        collect(tmp_path, transitions=10, seed=1, **options)
