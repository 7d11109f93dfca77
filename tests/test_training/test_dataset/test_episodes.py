"""Episodes of any spec: what is written is read, what does not fit is named."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file

from models.checkpoint import CheckpointError
from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import Spec
from tests.test_training.toy import toy_spec
from training.dataset import writer as writer_module
from training.dataset.collect import collect
from training.dataset.episodes import EpisodeError, load_episodes
from training.dataset.sources import Own, Simulated, open_dataset
from training.dataset.store import shards_fingerprint
from training.dataset.windows import Windows
from training.dataset.writer import EpisodeWriter
from training.fitting.check import check
from training.running.locks import FolderLockedError, locked

SPEC = toy_spec()


def episode(steps: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "states": rng.uniform(-9, 9, (steps + 1, 4)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": rng.normal(size=steps).astype(np.float32),
    }


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    collect(folder, transitions=1, seed=1, workers=1, progress=False)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven episodes of 1 to 7 steps in several shards; every second one ended."""
    monkeypatch.setattr(writer_module, "_SHARD_FRAMES", 10)
    with EpisodeWriter(tmp_path / "data", SPEC, origin="made up") as writer:
        for i in range(7):
            writer.add(**episode(i + 1, seed=i), ended=i % 2 == 0)
    return tmp_path / "data"


def test_what_is_written_is_read(folder: Path) -> None:
    read = load_episodes(folder)

    assert len(list(folder.glob("shard-*"))) > 2
    assert read.spec == SPEC
    assert read.manifest["counts"] == {"episodes": 7, "steps": 28, "ended": 4}
    assert read.manifest["origin"] == "made up"
    assert read.terminated.tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert read.frame_count.tolist() == list(range(2, 9))
    for i in range(7):
        given, rows = (
            episode(i + 1, seed=i),
            slice(read.frame_start[i], read.frame_start[i] + i + 2),
        )
        assert np.array_equal(read.states[rows], given["states"])
        assert np.array_equal(read.actions[rows][:-1], given["actions"])
        assert np.array_equal(read.rewards[rows][:-1], given["rewards"])
        assert not read.actions[rows][-1].any()


def test_either_format_is_opened(folder: Path, dataset_folder: Path) -> None:
    own, simulated = open_dataset(folder), open_dataset(dataset_folder)

    assert isinstance(own, Own)
    assert isinstance(simulated, Simulated)
    assert (own.spec, len(own)) == (SPEC, 7)
    assert simulated.spec == highway_spec()
    for data in (own, simulated):
        parts = data.split(0)
        everyone = np.sort(np.concatenate(list(parts.values())))
        assert everyone.tolist() == list(range(len(data)))
        assert isinstance(data.windows(parts["train"], 4, 2), Windows)


def test_windows_show_the_episode_and_how_it_ended(folder: Path) -> None:
    windows = open_dataset(folder).windows(np.array([4, 5]), horizon=3, stride=2)

    # Episode 4 has 5 steps and ended, episode 5 has 6 and did not.
    assert windows.episode.tolist() == [4, 4, 4, 5, 5, 5]
    assert windows.start_step.tolist() == [0, 2, 4, 0, 2, 4]
    assert windows.terminated.tolist() == [
        [False, False, False],
        [False, False, True],
        [True, False, False],
        *[[False] * 3] * 3,
    ]
    assert windows.valid.sum(1).tolist() == [3, 3, 1, 3, 3, 2]
    given = episode(5, seed=4)
    assert np.array_equal(windows.states[1], given["states"][2:6])
    assert np.array_equal(windows.states[2], given["states"][[4, 5, 5, 5]])
    assert np.array_equal(windows.actions[1], given["actions"][2:5])
    assert np.array_equal(windows.rewards[0], given["rewards"][:3])


def broken(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    given = {name: np.array(x) for name, x in episode(3).items()}
    change(given)
    return given


def put(name: str, place: Any, value: float) -> Callable[[dict[str, Any]], Any]:
    return lambda given: given[name].__setitem__(place, value)


def set_to(name: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda given: given.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("states", (2, 1), 11), r"states\[2\]: y is 11, but the spec allows -10 to 10 m"),
        (put("states", (0, 0), np.nan), r"states\[0\]: x is nan, but the spec allows"),
        (put("states", (3, 3), np.inf), r"states\[3\]: vy is inf, but the spec allows"),
        (
            put("actions", (1, 0), 1.5),
            r"actions\[1\]: push_x is 1.5, but the spec allows -1 to 1$",
        ),
        (put("actions", (2, 1), np.nan), r"actions\[2\]: push_y is nan"),
        (put("rewards", 1, np.nan), r"rewards\[1\]: is nan, but must be finite"),
        (set_to("rewards", [1.0, 2.0]), "rewards has 2 rows, but 3 belong to 3 actions"),
        (set_to("states", np.zeros((3, 4))), "states has 3 rows, but 4 belong to 3 actions"),
        (set_to("states", np.zeros((4, 5))), r"states are float64 of shape \[4, 5\], but must be"),
        (set_to("states", [[1, 2], [3]]), r"states are no numbers of shape \[T, 4\]"),
        (set_to("states", [["a"] * 4] * 4), r"states are <U1 of shape \[4, 4\], but must be num"),
        (set_to("states", np.ones((4, 4), bool)), "states are bool of shape"),
        (set_to("states", np.full((4, 4), 1e300)), r"states\[0\]: x is inf, but"),
        (set_to("actions", None), "actions are object of shape"),
        (
            set_to("slot_ids", np.zeros((4, 1), int)),
            "slot_ids are given, but the spec has no neighbour slots",
        ),
    ],
)
def test_an_episode_that_does_not_fit_is_named_and_not_added(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with EpisodeWriter(tmp_path / "data", SPEC) as writer:
        writer.add(**episode(2), ended=True)
        with pytest.raises(EpisodeError, match=rf"^episode 1: {message}"):
            writer.add(**broken(change), ended=False)

    assert load_episodes(tmp_path / "data").frame_count.tolist() == [3]


def test_an_episode_without_a_step_is_refused(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "data", SPEC) as writer:
        with pytest.raises(EpisodeError, match="episode 0: it has no step"):
            writer.add(np.zeros((1, 4)), np.zeros((0, 2)), np.zeros(0), ended=True)
        writer.add(**episode(1), ended=True)


def test_an_action_whose_range_excludes_zero_is_compared_where_steps_begin(tmp_path: Path) -> None:
    action = (replace(SPEC.action[0], low=0.5), SPEC.action[1])
    spec, given = replace(SPEC, action=action), episode(2)
    given["actions"][:, 0] = 0.7

    with EpisodeWriter(tmp_path / "data", spec) as writer:
        writer.add(**given, ended=True)
        given["actions"][1, 0] = 0.0
        with pytest.raises(EpisodeError, match=r"actions\[1\]: push_x is 0, but"):
            writer.add(**given, ended=True)

    assert len(load_episodes(tmp_path / "data").frame_count) == 1


def test_a_writer_takes_an_empty_folder_only_and_finishes_only_what_went_well(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"

    def stop_midway() -> None:
        with EpisodeWriter(folder, SPEC) as writer:
            writer.add(**episode(2), ended=True)
            raise KeyError

    with pytest.raises(KeyError):
        stop_midway()
    with pytest.raises(ValueError, match="holds no finished dataset"):
        open_dataset(folder)
    (folder / "note.txt").write_text("x")
    with pytest.raises(EpisodeError, match="holds an unfinished data set or other files"):
        EpisodeWriter(folder, SPEC)
    with (
        pytest.raises(EpisodeError, match="no episode was added"),
        EpisodeWriter(tmp_path / "empty", SPEC),
    ):
        pass


def test_a_second_writer_is_refused_and_the_first_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    early = EpisodeWriter(folder, SPEC)
    with EpisodeWriter(folder, SPEC) as first:
        first.add(**episode(2), ended=True)
        with pytest.raises(FolderLockedError, match=r"is being written by .*writing episodes"):
            EpisodeWriter(folder, SPEC)
        with pytest.raises(FolderLockedError, match="is being written by "), early:
            pass
        first.add(**episode(3, seed=1), ended=True)

    assert load_episodes(folder).frame_count.tolist() == [3, 4]
    with pytest.raises(EpisodeError, match="is not empty"), early:
        pass
    assert load_episodes(folder).frame_count.tolist() == [3, 4]


def test_a_folder_that_another_command_writes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with locked(folder, "collecting"):
        (folder / "shard").touch()
        with pytest.raises(FolderLockedError, match="by another command: collecting"):
            EpisodeWriter(folder, SPEC)


def test_a_writer_that_failed_without_an_episode_leaves_an_empty_folder(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            pytest.raises(EpisodeError, match="no episode was added"),
            EpisodeWriter(tmp_path / "data", SPEC),
        ):
            pass


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "dataset.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return apply


def rewrite(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the first shard's arrays, and the fingerprint with it."""

    def apply(folder: Path) -> None:
        path = folder / "shard-00000.safetensors"
        arrays = load_file(path)
        change(arrays)
        save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
        total = hashlib.sha256()
        for shard in sorted(folder.glob("shard-*")):
            total.update(hashlib.sha256(shard.read_bytes()).digest())
        edit(lambda document: document.update(fingerprint=total.hexdigest()))(folder)

    return apply


def overflow(arrays: dict[str, Any]) -> None:
    """Make counts that are 64-bit numbers, and whose sum is right by 64-bit arithmetic."""
    frames = len(arrays["rewards"])
    counts = np.array([2**62 + 2, 2**62, 2**62, 2**62, frames - 2], np.int64)
    starts = np.cumsum(counts) - counts
    arrays.update(frame_count=counts, frame_start=starts, terminated=np.ones(5, np.uint8))


def retype(folder: Path) -> None:
    """Store rewards in a type that NumPy does not have."""
    path = folder / "shard-00000.safetensors"
    arrays = load_torch_file(path)
    save_torch_file({**arrays, "rewards": arrays["rewards"].bfloat16()}, path)
    paths = [folder / name for name in json.loads((folder / "dataset.json").read_text())["shards"]]
    edit(lambda document: document.update(fingerprint=shards_fingerprint(paths)))(folder)


FAULTS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("no manifest", lambda f: (f / "dataset.json").unlink(), "holds no finished dataset"),
    ("no JSON", lambda f: (f / "dataset.json").write_text("{"), "is not JSON"),
    ("a list", lambda f: (f / "dataset.json").write_text("[]"), "does not hold a JSON object"),
    ("version", edit(lambda d: d.update(version=2)), "version 2; this code reads"),
    ("no spec", edit(lambda d: d.pop("spec")), "lacks the spec"),
    ("bad spec", edit(lambda d: d["spec"].update(dt_s=-1)), "dt_s is -1"),
    ("no shards", edit(lambda d: d.update(shards=[])), "shards must be a list of file names"),
    ("elsewhere", edit(lambda d: d.update(shards=["../x"])), "shards must be a list of file n"),
    ("lost shard", lambda f: (f / "shard-00001.safetensors").unlink(), "lacks the shard shard-00"),
    (
        "changed",
        lambda f: (f / "shard-00001.safetensors").write_bytes(b"x" * 99),
        "changed: its shards have the fingerprint",
    ),
    ("no array", rewrite(lambda a: a.pop("actions")), "lacks the array actions"),
    ("extra", rewrite(lambda a: a.update(mass=a["rewards"])), "holds mass, which is unknown"),
    ("type", rewrite(lambda a: a.update(rewards=a["rewards"].astype(float))), "rewards is float64"),
    ("shape", rewrite(lambda a: a.update(states=a["states"][:, :3])), "states is float32"),
    ("counts", rewrite(lambda a: put("frame_count", 0, 1)(a)), "frame_count must be 2 or more"),
    ("starts", rewrite(lambda a: put("frame_start", 1, 3)(a)), "frame_start must be where"),
    ("no print", edit(lambda d: d.pop("fingerprint")), "lacks the fingerprint"),
    ("ended", rewrite(lambda a: put("terminated", 0, 2)(a)), "terminated must be 0 or 1"),
    (
        "one number",
        rewrite(lambda a: a.update(rewards=a["rewards"][0])),
        "rewards is float32 [1]",
    ),
    (
        "one episode's number",
        rewrite(lambda a: a.update(frame_start=a["frame_start"][0])),
        "but must be int64 [1]",
    ),
    ("sum beyond 64 bits", rewrite(lambda a: overflow(a)), "frame_count must be 2 or more"),
    ("unknown type", lambda f: retype(f), "rewards is BF16"),
    ("shard twice", edit(lambda d: d["shards"].append(d["shards"][0])), "more than once"),
    ("shards", edit(lambda d: d.update(shards=[f"{i}" for i in range(10_001)])), "at most 10000"),
    ("long name", edit(lambda d: d.update(shards=["x" * 999])), "shards must be a list of file n"),
    ("no number", edit(lambda d: d.update(note=float("nan"))), "note is nan, but numbers must be"),
    ("no text", edit(lambda d: d.update(origin="\ud800")), "which is no text"),
    (
        "deep",
        lambda f: (f / "dataset.json").write_text('{"a": ' + "[" * 900 + "]" * 900 + "}"),
        "nested too deeply",
    ),
    (
        "value",
        rewrite(lambda a: put("states", (3, 1), 99)(a)),
        "episode 1, states[1]: y is 99, but the spec allows",
    ),
]


@pytest.mark.parametrize(("change", "message"), [x[1:] for x in FAULTS], ids=[x[0] for x in FAULTS])
def test_a_broken_data_set_is_named_by_loading_and_by_the_check(
    folder: Path, change: Callable[[Path], Any], message: str
) -> None:
    change(folder)

    with pytest.raises((EpisodeError, CheckpointError, ValueError), match=re.escape(message)):
        open_dataset(folder)
    report = check(folder)
    assert len(report.faults) >= 1
    assert any(message.replace("\\", "") in fault.replace("\\", "") for fault in report.faults)


def test_the_check_tells_what_is_there(folder: Path) -> None:
    report = check(folder)

    assert report.faults == (
        "7 episodes are too few: the split leaves none for validation; 13 are always enough",
    )
    for part in (
        "4 episodes end, after 1 to 7 steps",
        "3 episodes do not end, after 2 to 6 steps",
        "Record about 550 more episodes that end",
        "Spec 'toy': 4 state and 2 action features, steps of 0.1 s",
        "Origin: made up",
        "7 episodes of 1 to 7 steps, 28 steps (3 s) in all; 4 end",
        "of -10 to 10 m/s",
        "99 are needed to guarantee a miss rate of 0.01",
        "Too few: there would be no crash threshold",
    ):
        assert part in report.text


def test_the_check_lists_many_faults_and_what_is_constant(folder: Path) -> None:
    def spoil(arrays: dict[str, Any]) -> None:
        arrays["states"][:, 0] = 50
        arrays["states"][:, 1] = 2
        arrays["rewards"][0] = np.nan

    rewrite(spoil)(folder)
    edit(lambda document: document.update(fingerprint="0" * 64))(folder)

    report = check(folder)

    assert len(report.faults) == 4
    assert "changed: its shards have" in report.faults[0]
    assert "x is 50" in report.faults[1]
    assert "rewards[0]: is nan" in report.faults[2]


def test_the_check_says_what_a_recording_of_the_simulator_holds(dataset_folder: Path) -> None:
    report = check(dataset_folder)

    assert not report.faults
    assert report.text.startswith("Recorded by world-model collect: ")


def neighbours(spec: Spec, places: list[list[tuple[int, float]]]) -> tuple[Any, Any]:
    """States [T, 34] in which each frame's slots hold (identity, dx), and the identities."""
    states = np.zeros((len(places), spec.state_dim), np.float32)
    ids = np.full((len(places), 4), -1)
    states[:, 3:5] = 6.0
    for frame, slots in enumerate(places):
        for slot, (who, dx) in enumerate(slots):
            if who >= 0:
                states[frame, 6 + 7 * slot : 8 + 7 * slot] = 1.0, dx
                ids[frame, slot] = who
    return states, ids


def test_windows_follow_a_neighbour_through_the_slots(tmp_path: Path) -> None:
    spec = highway_spec()
    places = [
        [(7, 10.0), (9, 20.0)],
        [(9, 15.0), (7, 17.0)],
        [(9, 12.0)],
        [(5, 1.0), (9, 9.0), (7, 30.0)],
    ]
    states, ids = neighbours(spec, places)
    given = {"states": states, "actions": np.zeros((3, 3)), "rewards": np.zeros(3)}

    with EpisodeWriter(tmp_path / "data", spec) as writer:
        writer.add(**given, ended=False, slot_ids=ids)
        with pytest.raises(EpisodeError, match="slot_ids must be given for all episodes or for no"):
            writer.add(**given, ended=False)
    windows = open_dataset(tmp_path / "data").windows(np.array([0]), horizon=3, stride=9)

    presence = windows.states[0][:, [6, 13, 20]]
    distance = windows.states[0][:, [7, 14, 21]]
    assert presence.tolist() == [[1, 1, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0]]
    assert distance.tolist() == [[10, 20, 0], [17, 15, 0], [0, 12, 0], [30, 9, 0]]


def test_what_a_slot_holds_of_nobody_is_kept_for_who_moves_into_it(tmp_path: Path) -> None:
    """The first two slots have an acceleration, the third has none."""
    spec = road_users_spec()

    def slot(number: int, dx: float, acceleration: float | None = None) -> dict[str, float]:
        values = {"length": 4.0 + dx / 100, "width": 2.0, "dx": dx}
        if acceleration is not None:
            values["acceleration"] = acceleration
        return {f"neighbour_{number}_{name}": value for name, value in values.items()}

    scenes: list[tuple[dict[str, float], list[int]]] = [
        ({**slot(1, 10, -1.0), **slot(2, 20, -2.0), **slot(3, 40)}, [7, 9, 5, -1]),
        ({**slot(1, 15, -3.0), **slot(2, 17, -5.0), **slot(3, 20)}, [5, 9, 7, -1]),
        ({**slot(1, 18, -4.0)}, [9, -1, -1, -1]),
    ]
    states = np.zeros((3, spec.state_dim), np.float32)
    for state, (values, _) in zip(states, scenes, strict=True):
        for name, value in {"left_edge": 30.0, "length": 5.0, "width": 2.0, **values}.items():
            state[spec.state_index(name)] = value
    with EpisodeWriter(tmp_path / "data", spec) as writer:
        ids = np.array([ids for _, ids in scenes])
        writer.add(states, np.zeros((2, 3)), np.zeros(2), ended=False, slot_ids=ids)

    windows = open_dataset(tmp_path / "data").windows(np.array([0]), horizon=2, stride=9)

    def column(name: str) -> list[float]:
        return [round(float(x), 3) for x in windows.states[0][:, spec.state_index(name)]]

    assert column("neighbour_1_dx") == [10.0, 20.0, 0.0]
    assert column("neighbour_1_length") == [4.1, 4.2, 0.0]
    assert column("neighbour_1_acceleration") == [-1.0, -1.0, 0.0]
    assert column("neighbour_2_dx") == [20.0, 17.0, 18.0]
    assert column("neighbour_2_acceleration") == [-2.0, -5.0, -4.0]
    assert column("neighbour_3_dx") == [40.0, 15.0, 0.0]
    assert column("left_edge") == [16.0, 16.0, 16.0]


def test_a_length_without_a_width_is_refused(tmp_path: Path) -> None:
    spec = road_users_spec()
    states = np.zeros((2, spec.state_dim))
    states[1, spec.state_index("neighbour_2_length")] = 4.0
    with EpisodeWriter(tmp_path / "data", spec) as writer:
        with pytest.raises(
            EpisodeError, match=r"states\[1\]: neighbour_2_width is 0, but must be above 0 where"
        ):
            writer.add(states, np.zeros((1, 3)), np.zeros(1), ended=False)
        states[1, spec.state_index("neighbour_2_width")] = 2.0
        writer.add(states, np.zeros((1, 3)), np.zeros(1), ended=False)


def test_headings_do_not_jump_within_a_window(tmp_path: Path) -> None:
    spec = highway_spec()
    states, ids = neighbours(spec, [[(7, 10.0)]] * 4)
    states[:, 9] = [3.1, -3.1, 3.0, -3.1]
    with EpisodeWriter(tmp_path / "data", spec) as writer:
        writer.add(states, np.zeros((3, 3)), np.zeros(3), ended=False, slot_ids=ids)

    windows = open_dataset(tmp_path / "data").windows(np.array([0]), horizon=3, stride=9)

    turned = [3.1, 2 * np.pi - 3.1, 3.0, 2 * np.pi - 3.1]
    assert windows.states[0][:, 9] == pytest.approx(turned, abs=1e-6)


def test_a_half_presence_is_refused_and_an_empty_slot_cleared(tmp_path: Path) -> None:
    spec = highway_spec()
    states, _ = neighbours(spec, [[(7, 10.0)]] * 2)
    rest = np.zeros((1, 3)), np.zeros(1)
    with EpisodeWriter(tmp_path / "data", spec) as writer:
        states[0, 6] = 0.5
        with pytest.raises(EpisodeError, match=r"states\[0\]: neighbour_1_presence is 0.5, but"):
            writer.add(states, *rest, ended=False)
        states[0, 6] = 0.0
        writer.add(states, *rest, ended=False)

    assert not load_episodes(tmp_path / "data").states[0, 6:13].any()


@pytest.mark.parametrize("ended", ["no", None, 1, [True], np.array([True, False]), np.nan])
def test_an_end_is_one_truth(tmp_path: Path, ended: Any) -> None:
    with EpisodeWriter(tmp_path / "data", SPEC) as writer:
        with pytest.raises(
            EpisodeError, match=r"episode 0: ended is .*, but must be one True or Fa"
        ):
            writer.add(**episode(1), ended=ended)
        writer.add(**episode(1), ended=np.True_)


def test_a_writer_that_is_not_open_loses_nothing_in_silence(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path / "data", SPEC)
    with pytest.raises(EpisodeError, match="the writer is not open"):
        writer.add(**episode(1), ended=True)
    with writer:
        writer.add(**episode(1), ended=True)
    with pytest.raises(EpisodeError, match="the writer is not open"):
        writer.add(**episode(1), ended=True)
    with pytest.raises(EpisodeError, match="data is not empty: remove it, or name another folder"):
        EpisodeWriter(tmp_path / "data", SPEC)
    with pytest.raises(EpisodeError, match="spec is a str, but must be a Spec"):
        EpisodeWriter(tmp_path / "other", "spec.json")  # type: ignore[arg-type]


def test_the_check_says_that_no_episode_ends(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "data", SPEC) as writer:
        for i in range(20):
            writer.add(**episode(3, seed=i), ended=False)

    assert check(tmp_path / "data").faults == (
        "no episode ends: there is nothing to learn an end from",
    )


def test_windows_start_in_what_was_measured_and_aim_at_the_truth(tmp_path: Path) -> None:
    spec = road_users_spec()
    column, ids = spec.state_index, np.array([[7, 8, -1, -1], [8, 7, -1, -1], [8, 7, -1, -1]])
    true = np.zeros((3, spec.state_dim), np.float32)
    for frame, order in enumerate(ids.tolist()):
        for slot, who in enumerate(order[:2], 1):
            true[frame, column(f"neighbour_{slot}_length")] = 4.0
            true[frame, column(f"neighbour_{slot}_width")] = 2.0
            true[frame, column(f"neighbour_{slot}_dx")] = who + frame
            true[frame, column(f"neighbour_{slot}_heading")] = 3.1
    measured = true.copy()
    measured[:, column("speed")] = [1, 2, 3]
    measured[:, column("neighbour_1_dx")] += 0.5
    measured[:, column("neighbour_2_heading")] = -3.1

    with EpisodeWriter(tmp_path / "data", spec) as writer:
        steps = np.zeros((2, 3)), np.zeros(2)
        writer.add(measured, *steps, ended=False, slot_ids=ids, true_states=true)
    windows = open_dataset(tmp_path / "data").windows(np.array([0]), horizon=2, stride=1)

    assert windows.states[:, :, column("speed")].tolist() == [[1, 0, 0], [2, 0, 0]]
    # Number 7 is first in the first frame, and second afterwards.
    assert windows.states[0, :, column("neighbour_1_dx")].tolist() == [7.5, 8, 9]
    assert windows.states[1, :, column("neighbour_1_dx")].tolist() == [9.5, 10, 10]
    turned = 3.1 - 2 * np.pi
    assert windows.states[0, :, column("neighbour_2_heading")] == pytest.approx(
        [-3.1] + [turned] * 2
    )


@pytest.mark.parametrize(
    ("true_states", "message"),
    [
        (np.zeros((2, 4)), "true_states has 2 rows, but 4 belong to 3 actions"),
        (np.full((4, 4), 11.0), r"true_states\[0\]: x is 11, but the spec allows -10 to 10 m"),
        (None, "true_states must be given for all episodes or for none"),
    ],
    ids=["short", "beyond", "missing"],
)
def test_true_states_that_do_not_fit_are_named(
    tmp_path: Path, true_states: Any, message: str
) -> None:
    with EpisodeWriter(tmp_path / "data", SPEC) as writer:
        writer.add(**episode(2), ended=True, true_states=np.zeros((3, 4)))
        with pytest.raises(EpisodeError, match=message):
            writer.add(**episode(3), ended=False, true_states=true_states)

    report = check(tmp_path / "data")
    assert "true_states are what predictions are compared with" in report.text
    read = load_episodes(tmp_path / "data").true_states
    assert read is not None
    assert read.shape == (3, 4)


def test_empty_slots_are_cleared_in_the_truth_too_and_its_slots_are_checked(tmp_path: Path) -> None:
    spec = road_users_spec()
    states = np.zeros((2, spec.state_dim), np.float32)
    left, half = states.copy(), states.copy()
    left[:, spec.state_index("neighbour_3_dx")] = 5.0
    half[1, spec.state_index("neighbour_2_length")] = 4.0
    steps = np.zeros((1, 3)), np.zeros(1)
    with EpisodeWriter(tmp_path / "data", spec) as writer:
        writer.add(states, *steps, ended=False, true_states=left)
        with pytest.raises(EpisodeError, match=r"true_states\[1\]: neighbour_2_width is 0, but"):
            writer.add(states, *steps, ended=False, true_states=half)

    read = load_episodes(tmp_path / "data").true_states
    assert read is not None
    assert not read.any()
