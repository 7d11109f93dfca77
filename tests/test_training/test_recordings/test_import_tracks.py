"""From tables to episodes: states, actions, rewards and ends, and what is said of the rest."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from models.checkpoint import load_checkpoint
from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import Spec
from service.cli import main
from tests.test_training.toy import toy_spec
from tests.test_training.traffic import COURSE, line, road, rows, write_csv, write_roads
from training.dataset.episodes import Episodes, load_episodes
from training.recordings import egos
from training.recordings.egos import Options
from training.recordings.importing import Imported, import_tracks
from training.recordings.layouts import PRETRAINED
from training.recordings.motion import motion_of
from training.recordings.recording import RecordingError, Unused
from training.recordings.tables import read_table
from world_model_client import InvalidInputError
from world_model_client.scene import Bicycle


def imported(
    folder: Path,
    given: list[dict[str, Any]],
    *,
    roads: list[dict[str, Any]] | None = None,
    **options: Any,
) -> tuple[Imported, Episodes]:
    path = write_csv(folder / "tracks.csv", given)
    if roads is not None:
        write_roads(folder / "tracks.road.json", *roads)
    made, dt_s = import_tracks([path], folder / "out", progress=False, **options)
    assert dt_s == 0.05
    return made, load_episodes(folder / "out")


def column(found: Episodes, name: str, states: Any = None) -> np.ndarray:
    states = found.states if states is None else states
    return np.asarray(states[:, found.spec.state_index(name)])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Imported, Episodes]:
    """A car that brakes in the middle lane, and a truck ahead in the left one."""
    given = rows("car", left_m=3.0, speed=20.0, acceleration=-2.0) + rows(
        "truck", ahead_m=15.0, left_m=7.0, speed=18.0, kind="truck", length=10.0, width=2.5
    )
    folder = tmp_path_factory.mktemp("pair")
    return imported(folder, given, roads=[road()], spec="road-users")


def test_each_vehicle_is_the_ego_in_turn(pair: tuple[Imported, Episodes]) -> None:
    made, found = pair
    assert (made.egos, made.episodes, made.steps, made.endings.total()) == (2, 2, 160, 0)
    assert found.frame_count.tolist() == [81, 81]
    assert not found.terminated.any()
    assert not made.unused.names


def test_states_show_the_road_and_the_other(pair: tuple[Imported, Episodes]) -> None:
    _, found = pair
    car, states = slice(0, 81), found.states
    assert found.slot_ids is not None
    assert found.slot_ids[car, 0].tolist() == [1] * 81
    for name, value in (
        ("lane_offset", 0.5),  # 0.5 m to the right of the middle lane's centre
        ("left_edge", 5.75),
        ("right_edge", 4.75),
        ("length", 4.5),
        ("width", 1.8),
        ("neighbour_1_length", 10.0),
        ("neighbour_1_dy", -4.0),
        ("neighbour_1_speed", 18.0),
        ("neighbour_2_length", 0.0),
        ("curvature", 0.0),
    ):
        assert column(found, name)[car] == pytest.approx(value, abs=1e-3), name
    assert column(found, "speed")[car] == pytest.approx(20 - 0.1 * np.arange(81), abs=0.11)
    ahead = column(found, "neighbour_1_dx", states)[car]
    times = 0.05 * np.arange(81)
    assert ahead == pytest.approx(15 - 2 * times + times**2, abs=0.05)


def test_truth_and_actions_belong_together(pair: tuple[Imported, Episodes]) -> None:
    _, found = pair
    assert found.true_states is not None
    speed = column(found, "speed", found.true_states)[:81]
    assert speed == pytest.approx(20 - 0.1 * np.arange(81), abs=1e-3)
    steer, throttle, brake = found.actions[:80].T
    assert brake == pytest.approx(2 / 8, abs=0.01)
    assert throttle == pytest.approx(0, abs=0.01)
    assert steer == pytest.approx(0, abs=1e-3)
    by_hand = 0.6 * (20 - 0.1 * np.arange(1, 81)) / 30 + 0.4 * (1 - 0.5 / 2)
    assert found.rewards[:80] == pytest.approx(by_hand, abs=2e-3)


def test_smooth_states_are_the_truth_alone(tmp_path: Path) -> None:
    given = rows("car", left_m=3.5)
    for row, noise in zip(given, np.random.default_rng(0).normal(0, 0.5, 41), strict=True):
        row["speed"] += noise
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    _, causal = imported(tmp_path / "a", given)
    _, smooth = imported(tmp_path / "b", given, options=Options(is_causal=False))

    assert smooth.true_states is None
    assert causal.true_states is not None
    assert np.array_equal(smooth.states, causal.true_states)
    assert np.std(column(causal, "speed")) > 0.3
    assert np.std(column(smooth, "speed")) < 0.01
    # Without a road there is a straight lane, and no edge in sight.
    assert column(causal, "left_edge") == pytest.approx(16.0)
    assert not column(causal, "lane_offset").any()


def test_neighbours_are_filtered_and_the_ego_is_not(tmp_path: Path) -> None:
    given = rows("car", left_m=3.5) + rows("other", ahead_m=30.0, left_m=3.5)
    for row, noise in zip(given, np.random.default_rng(0).normal(0, 0.3, 82), strict=True):
        row["speed"] += noise
    _, found = imported(tmp_path, given, spec="road-users")

    samples = slice(0, 81, 2)  # 10 Hz
    assert column(found, "speed")[samples] == pytest.approx([row["speed"] for row in given[:41]])
    others = np.array([row["speed"] for row in given[41:]])
    seen = column(found, "neighbour_1_speed")[samples]
    assert seen[:2] == pytest.approx(others[:2])
    assert (np.abs(seen - others)[2:] > 1e-4).all()
    assert seen.std() < 0.9 * others.std()


@pytest.mark.parametrize("spec", ["highway", "road-users"])
def test_a_crash_of_true_rectangles_ends_an_episode(tmp_path: Path, spec: str) -> None:
    """A car of 4.5 m runs into a truck of 10 m: their gap is 0 at 7.25 m from centre to centre."""
    given = rows("car", speed=20.0, seconds=6.0) + rows(
        "truck", ahead_m=47.25, speed=10.0, seconds=6.0, kind="truck", length=10.0, width=2.5
    )
    made, found = imported(tmp_path, given, spec=spec)

    assert made.endings == {"crash": 2}
    assert found.terminated.tolist() == [1, 1]
    # 40 m at 10 m/s, and 0.1 m deeper.
    assert found.frame_count.tolist() == [82, 82]
    assert found.rewards[[80, 162]].tolist() == [-1, -1]
    assert (found.rewards[:80] > 0).all()


def test_how_deep_a_crash_is_can_be_said(tmp_path: Path) -> None:
    given = rows("car", left_m=0.0) + rows("beside", left_m=1.6)  # 0.2 m within each other
    with pytest.raises(RecordingError, match="apart from others") as refused:
        imported(tmp_path, given)
    assert "\n" not in str(refused.value)
    made, found = imported(tmp_path, given, options=Options(overlap_m=0.3))
    assert made.episodes == 2
    assert not found.terminated.any()


def test_who_leaves_the_road_ends_and_who_leaves_the_map_does_not(tmp_path: Path) -> None:
    given = rows("off", left_m=0.0, course=COURSE)
    for row, k in zip(given, range(41), strict=True):  # 1 m/s to the right from the lane's centre
        row["x"] += 0.1 * k * np.sin(COURSE)
        row["y"] -= 0.1 * k * np.cos(COURSE)
    short = {**road(), "centre_lines": [line(0.0, -200, 60.5)], "left_edge": None}
    short["right_edge"] = line(-1.75, -200, 60.5)
    (tmp_path / "off").mkdir()
    made, found = imported(tmp_path / "off", given, roads=[road()], options=Options(least_s=1))
    assert made.endings == {"off the road": 1}
    assert found.frame_count.tolist() == [37]  # 1.75 m at 1 m/s
    assert column(found, "right_edge")[-1] < 0

    (tmp_path / "map").mkdir()
    made, found = imported(tmp_path / "map", rows("on"), roads=[short])
    assert not made.endings
    assert found.frame_count.tolist() == [62]  # 61 m: a metre past the end still counts
    assert not found.terminated.any()


def test_two_roads_are_told_apart_by_their_directions(tmp_path: Path) -> None:
    back = {
        "name": "back",
        "centre_lines": [line(12.0)[::-1]],
        "left_edge": line(10.0),
        "right_edge": line(14.0),
    }
    given = rows("there", left_m=3.5) + rows(
        "back", ahead_m=100, left_m=11.5, speed=-20.0, acceleration=0.0
    )
    for row in given[41:]:
        row |= {"heading": row["heading"] + np.pi, "speed": 20.0}
    _, found = imported(tmp_path, given, roads=[road(), back])
    assert column(found, "left_edge") == pytest.approx([1.5] * 81 + [5.25] * 81, abs=1e-3)
    assert column(found, "lane_offset") == pytest.approx([-0.5] * 81 + [0.0] * 81, abs=1e-3)


def test_who_is_no_ego_is_named_with_the_reason_and_still_a_neighbour(tmp_path: Path) -> None:
    given = [
        *rows("ego", left_m=3.5),
        *rows("walker", ahead_m=40, left_m=-1.0, speed=1.0, kind="pedestrian", length=0.5),
        *rows("parked", ahead_m=60, speed=0.0),
        *rows("brief", ahead_m=80, left_m=7.0, seconds=1.0),
        *rows("ufo", ahead_m=20, left_m=7.0, kind="hovercraft"),
        *rows("beside", ahead_m=90, left_m=40.0),
        *rows("bare", ahead_m=95, left_m=3.5, speed=0.0),
    ]
    for row in given:
        if row["id"] == "bare":
            row["heading"] = ""
    made, found = imported(tmp_path, given, roads=[road()])

    assert (made.egos, made.episodes) == (1, 1)
    assert made.unused.names == {
        "no ego, but a pedestrian": ["tracks.csv walker"],
        "no ego, never moves": ["tracks.csv bare", "tracks.csv parked"],
        "no ego, in view for less than 2 s": ["tracks.csv brief"],
        "no ego, of the unknown class 'hovercraft'": ["tracks.csv ufo"],
        "no ego, on no road": ["tracks.csv beside"],
    }
    assert column(found, "neighbour_2_length")[0] > 0
    text = made.text(0.05)
    assert "1 episodes of 1 egos, 80 steps (0.1 minutes); 0 end" in text
    assert "- 2 x no ego, never moves: tracks.csv bare, tracks.csv parked" in text


def test_who_has_no_heading_and_no_lane_is_in_nobodys_state(tmp_path: Path) -> None:
    given = rows("ego") + [{**row, "heading": ""} for row in rows("box", ahead_m=30, speed=0.0)]
    made, found = imported(tmp_path, given)
    reason = "in nobody's state, never moves, and no heading is given"
    assert made.unused.names == {reason: ["tracks.csv box"]}
    assert not column(found, "neighbour_1_length").any()


def test_many_names_are_counted(tmp_path: Path) -> None:
    given = rows("ego")
    for k in range(8):
        given += rows(f"w{k}", ahead_m=50 + 5 * k, left_m=9, speed=1, kind="pedestrian", length=0.5)
    made, _ = imported(tmp_path, given)
    assert "- 8 x no ego, but a pedestrian: " in made.text(0.05)
    assert "tracks.csv w4 and 3 more" in made.text(0.05)


def test_a_share_of_the_vehicles_is_drawn_by_the_seed(tmp_path: Path) -> None:
    given = [row for k in range(6) for row in rows(f"c{k}", ahead_m=30.0 * k)]
    first = []
    for number, seed in enumerate((1, 1, 2, 3)):
        (tmp_path / str(number)).mkdir()
        made, found = imported(tmp_path / str(number), given, share=0.3, seed=seed)
        assert made.egos == 2
        first.append(found.states.tobytes())
    assert first[0] == first[1]
    assert len(set(first)) > 1


def test_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    sources = []
    for number, folder in enumerate(("north/1", "south/1", "south/2")):
        (tmp_path / folder).mkdir(parents=True)
        given = rows("parked", ahead_m=60, speed=0) + rows("a", speed=20.0 + number)
        sources.append(write_csv(tmp_path / folder / "tracks.csv", given))
    sources.append(write_csv(tmp_path / "other.csv", rows("a", speed=15.0)))
    made, _ = import_tracks(sources, tmp_path / "out", progress=False)
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    labels = ["north/1/tracks.csv", "south/1/tracks.csv", "2/tracks.csv", "other.csv"]
    assert manifest["recordings"] == {
        label: hashlib.sha256(source.read_bytes()).hexdigest()
        for label, source in zip(labels, sources, strict=True)
    }
    assert manifest["origin"].startswith(f"tracks of {', '.join(labels)}; ")
    parked = [f"{label} parked" for label in labels[:3]]
    assert made.unused.names == {"no ego, never moves": parked}


@pytest.mark.parametrize("other", ["tracks.csv", "sub/../tracks.csv", "link.csv", "sub/copy.csv"])
def test_the_same_recording_twice_is_refused(tmp_path: Path, other: str) -> None:
    given = write_csv(tmp_path / "tracks.csv", rows("a"))
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.csv").symlink_to(given)
    (tmp_path / "sub" / "copy.csv").write_bytes(given.read_bytes())
    second = given if other == given.name else Path(f"{tmp_path}/{other}")
    with pytest.raises(RecordingError, match=f"^{re.escape(str(second))} is given twice, or is a"):
        import_tracks([given, second], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_another_frame_gives_the_same_states(tmp_path: Path) -> None:
    given = rows("car", left_m=3.0) + rows("other", ahead_m=20, left_m=6.5, speed=18.0)
    turned = [{**row, "y": -row["y"], "heading": -row["heading"]} for row in given]
    flipped = {
        name: [[[x, -y] for x, y in each] for each in value]
        if name == "centre_lines"
        else [[x, -y] for x, y in value]
        for name, value in road().items()
        if name != "name"
    }
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    _, one = imported(tmp_path / "a", given, roads=[road()])
    _, other = imported(tmp_path / "b", turned, roads=[flipped], frame="forward-right-down")
    assert one.states == pytest.approx(other.states, abs=1e-5)
    assert one.actions == pytest.approx(other.actions, abs=1e-4)
    with pytest.raises(RecordingError, match="is on the wrong side of the centre lines"):
        import_tracks([tmp_path / "b" / "tracks.csv"], tmp_path / "c", progress=False)


def test_recorded_actions_drive_the_bicycle_along_the_track(tmp_path: Path) -> None:
    times = np.arange(61) / 10
    heading = 0.25 * np.sin(times)
    speed = 12 + np.sin(times / 2)
    x = np.concatenate([[0], np.cumsum((speed * np.cos(heading))[:-1] * 0.1)])
    y = np.concatenate([[0], np.cumsum((speed * np.sin(heading))[:-1] * 0.1)])
    given = [
        {**row, "x": x[k], "y": y[k], "heading": "", "speed": ""}
        for k, row in enumerate(rows("car", seconds=6.0, length=5.0))
    ]
    made, found = imported(tmp_path, given)
    assert made.impossible == 0
    (track,) = read_table(tmp_path / "tracks.csv", Unused()).tracks
    true = motion_of(track, 0.0, 0.05, None).true
    pose = true[0, :4]
    bicycle = Bicycle(5.0)
    for action in found.actions[:-1]:
        pose = bicycle.step(pose, action, 0.05)
    assert pose[2:] == pytest.approx(true[-1, 2:4], abs=1e-3)
    assert np.hypot(*(pose - true[-1, :4])[:2]) < 0.5  # after 74 m


def test_what_a_spec_does_not_allow_is_left_out(tmp_path: Path) -> None:
    given = rows("car", speed=44.0, acceleration=1.0, seconds=4.0)  # the spec ends at 45 m/s
    with pytest.raises(RecordingError, match="beyond the range of spec 'road-users', left out"):
        imported(tmp_path, given)
    made, _ = imported(tmp_path, given, options=Options(least_s=0.5))
    assert (made.episodes, made.steps) == (1, 20)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            toy_spec(),
            "has the actions push_x, push_y, but tracks tell steer, throttle, brake alone",
        ),
        (replace(road_users_spec(), dt_s=1e-6), r"dt_s is 1e-06 s \(allowed: 0.01 to 1 s for epi"),
        (replace(road_users_spec(), dt_s=0.0099), r"dt_s is 0.0099 s \(allowed: 0.01 to 1 s"),
        (replace(road_users_spec(), dt_s=1.1), r"dt_s is 1.1 s \(allowed: 0.01 to 1 s"),
        (replace(road_users_spec(), dt_s=1e3), r"dt_s is 1000 s \(allowed: 0.01 to 1 s"),
    ],
)
def test_a_spec_that_tracks_cannot_fill_is_refused(
    tmp_path: Path, spec: Spec, message: str
) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec.to_json()))
    given = write_csv(tmp_path / "tracks.csv", rows("a"))
    with pytest.raises(RecordingError, match=message):
        import_tracks([given], tmp_path / "out", spec=str(path), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, "1"])
@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("least_s", "a number from 0.1 to 3600"),
        ("overlap_m", "a number from 0 to 10"),
        ("share", "a number above 0, to 1"),
    ],
)
def test_options_that_are_no_such_numbers_are_refused(
    tmp_path: Path, name: str, allowed: str, value: Any
) -> None:
    given = write_csv(tmp_path / "tracks.csv", rows("a"))

    def use() -> None:
        if name == "share":
            import_tracks([given], tmp_path / "out", share=value, progress=False)
        else:
            Options(**{name: value})

    with pytest.raises(InvalidInputError, match=rf"^{name} is .* \(allowed: {allowed}\)$"):
        use()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dt_s", [0.01, 1.0])
def test_steps_of_a_spec_may_be_short_or_long(tmp_path: Path, dt_s: float) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(replace(road_users_spec(), dt_s=dt_s).to_json()))
    given = write_csv(tmp_path / "tracks.csv", rows("a"))
    made, used_s = import_tracks([given], tmp_path / "out", spec=str(path), progress=False)
    assert (made.steps, used_s) == (round(4 / dt_s), dt_s)


@pytest.mark.parametrize(
    ("name", "most", "message"),
    [
        ("MOST_MOMENTS", 150, r"has 160 moments of road users, at steps of 0.05 s .allowed: 150"),
        ("MOST_MOMENTS_EACH", 70, r"has 80 moments of one road user, at steps of 0.05 s .allowed"),
    ],
)
def test_moments_are_counted_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int, message: str
) -> None:
    given = rows("a") + rows("b", left_m=7.0)
    monkeypatch.setattr(egos, name, 160 if name == "MOST_MOMENTS" else 80)
    imported(tmp_path, given)
    monkeypatch.setattr(egos, name, most)
    with pytest.raises(RecordingError, match=message):
        import_tracks([tmp_path / "tracks.csv"], tmp_path / "more", progress=False)


def test_a_file_a_name_and_a_checkpoint_say_what_states_are_for(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(road_users_spec().to_json()))
    given = write_csv(tmp_path / "tracks.csv", rows("a"))
    for number, (spec, expected) in enumerate(
        (
            (str(path), road_users_spec()),
            ("highway", highway_spec()),
            (str(PRETRAINED), load_checkpoint(PRETRAINED).spec),
            (None, load_checkpoint(PRETRAINED).spec),
        )
    ):
        import_tracks([given], tmp_path / str(number), spec=spec, progress=False)
        assert load_episodes(tmp_path / str(number)).spec == expected


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    given = write_csv(tmp_path / "tracks.csv", rows("a") + rows("b", left_m=7.0, speed=18))
    out = tmp_path / "out"
    arguments = [str(given), str(out), "--share", "0.5", "--spec", "road-users"]
    result = CliRunner().invoke(main, ["import-tracks", *arguments])
    assert result.exit_code == 0, result.output
    assert "1 episodes of 1 egos, 80 steps (0.1 minutes); 0 end" in result.stdout
    manifest = json.loads((out / "dataset.json").read_text())
    assert manifest["origin"].startswith("tracks of tracks.csv; states as known at the moment")
    again = CliRunner().invoke(main, ["import-tracks", *arguments])
    assert again.exit_code == 1
    assert re.fullmatch("Error: .*is not empty: remove it, or name another folder\n", again.stderr)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tracks.txt", r"is no recording \(allowed: .xml of CommonRoad, or a table, .csv or .parq"),
        ("missing.csv", "is no file"),
    ],
)
def test_sources_that_are_none_are_refused_before_anything_is_written(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(RecordingError, match=message):
        import_tracks([tmp_path / name], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
