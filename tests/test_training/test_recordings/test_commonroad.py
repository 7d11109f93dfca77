"""CommonRoad scenarios: obstacles and lanelets to recordings, and what is refused by line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_training.traffic import COURSE, lanelet, place, rows, write_scenario
from training.dataset.episodes import load_episodes
from training.recordings import commonroad, scenario_check
from training.recordings.commonroad import read_commonroad
from training.recordings.egos import Options, Scene
from training.recordings.importing import import_tracks
from training.recordings.layouts import target_of
from training.recordings.recording import RecordingError, Unused
from world_model_client.scene import Road

LANES = (
    lanelet(100, 3.5, right=101),
    lanelet(101, 0.0, left=100, end_m=100.0, after=102),
    lanelet(102, 0.0, start_m=100.0, before=101),
)


def traffic() -> list[dict[str, Any]]:
    return rows("1", left_m=0.5) + rows(
        "2", ahead_m=30.0, left_m=3.5, speed=18.0, kind="truck", length=9.0, width=2.5
    )


def test_obstacles_are_tracks_and_lanelets_side_by_side_are_roads(tmp_path: Path) -> None:
    recording = read_commonroad(
        write_scenario(tmp_path / "a.xml", traffic(), lanes=LANES), Unused()
    )

    car, truck = recording.tracks
    assert (car.id, car.kind, truck.kind, truck.length) == ("1", "car", "truck", 9.0)
    assert car.times_s == pytest.approx(np.arange(41) / 10)
    assert (car.x[0], car.y[0]) == pytest.approx(place(0.0, 0.5))
    assert car.heading == pytest.approx([COURSE] * 41)
    assert car.speed == pytest.approx([20.0] * 41)
    assert recording.has_roads
    names = [each.name for each in recording.carriageways]
    assert names == ["lanelets 100, 101", "lanelets 102"]
    x, y = place(150.0, 0.5)
    poses = np.array([[x, y, COURSE, 20.0]])
    found, is_on, _ = recording.carriageways[1].place(poses, recording.frame)
    assert is_on.all()
    assert found.lane_offset == pytest.approx([0.5])
    assert found.left_edge == pytest.approx([1.25])
    assert found.right_edge == pytest.approx([2.25])


def test_a_scenario_becomes_episodes_like_a_table(tmp_path: Path) -> None:
    path = write_scenario(tmp_path / "a.xml", traffic(), lanes=LANES)
    made, dt_s = import_tracks([path], tmp_path / "out", spec="road-users", progress=False)
    found = load_episodes(tmp_path / "out")
    assert (made.egos, made.steps, dt_s) == (2, 160, 0.05)
    offset = found.states[:81, found.spec.state_index("lane_offset")]
    assert offset == pytest.approx(-0.5, abs=1e-3)
    other = found.states[0, found.spec.state_index("neighbour_1_length")]
    assert other == 9.0


def test_who_stands_all_the_time_is_there_all_the_time(tmp_path: Path) -> None:
    parked = rows("7", ahead_m=50.0, left_m=-1.0, speed=0.0, seconds=0.0)
    path = write_scenario(tmp_path / "a.xml", rows("1", left_m=3.5), standing=parked)
    import_tracks([path], tmp_path / "out", spec="road-users", progress=False)
    found = load_episodes(tmp_path / "out")
    gap = found.states[:, found.spec.state_index("neighbour_1_dx")]
    assert gap == pytest.approx(50.0 - np.arange(81), abs=1e-2)


def test_without_lanelets_everybody_is_on_a_straight_lane_without_edges(tmp_path: Path) -> None:
    recording = read_commonroad(write_scenario(tmp_path / "a.xml", traffic()), Unused())
    assert not recording.has_roads
    scene = Scene(recording, target_of("highway"), Options(), Unused())
    assert [len(list(scene.episodes(x))) for x in scene.candidates()] == [1, 1]


def test_lanelets_that_make_no_road_are_named_and_nobody_is_on_them(tmp_path: Path) -> None:
    swapped = (
        lanelet(100, 0.0).replace("leftB", "X").replace("rightB", "leftB").replace("X", "rightB")
    )
    path = write_scenario(tmp_path / "a.xml", traffic(), lanes=[swapped])
    with pytest.raises(RecordingError, match=r"1 x lanelets that make no road: a\.xml lanelets"):
        import_tracks([path], tmp_path / "out", progress=False)


def test_states_of_one_time_step_are_told(tmp_path: Path) -> None:
    given = traffic()
    given.insert(5, {**given[4], "x": 0.0})
    path = write_scenario(tmp_path / "a.xml", given)
    recording = read_commonroad(path, unused := Unused())
    assert unused.names == {"states of a time step that has one already": ["1"]}
    assert len(recording.tracks[0].times_s) == 41


def test_centre_lines_of_maps_with_kinks_are_evened() -> None:
    rng = np.random.default_rng(0)
    jagged = np.stack([np.arange(0, 300, 4.5), rng.normal(0, 0.04, 67)], axis=1)
    poses = np.stack([np.linspace(20, 270, 500), *np.zeros((2, 500)), np.full(500, 10.0)], axis=1)
    raw, even = (
        np.abs(Road([line]).locate(poses).curvature)
        for line in (jagged, commonroad._evened(jagged))
    )
    assert raw.max() > 0.01
    assert even.max() < 0.3 * raw.max()

    angle = np.linspace(0, np.pi, 30)
    bend = 12 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert np.hypot(*commonroad._evened(bend).T) == pytest.approx(12, abs=0.1)


def test_centre_lines_of_few_points_are_left_as_they_are() -> None:
    for line in (np.array([[0.0, 0], [8, 1]]), np.array([[0.0, 0], [1e9, 3], [2e9, 0]])):
        assert commonroad._evened(line) is line


def test_sets_are_not_taken_for_places(tmp_path: Path) -> None:
    text = write_scenario(tmp_path / "a.xml", traffic()).read_text()
    at = text.index("<point>")
    circle = text[:at] + "<circle><radius>1</radius></circle>" + text[text.index("</point>") + 8 :]
    (tmp_path / "a.xml").write_text(circle)
    recording = read_commonroad(tmp_path / "a.xml", unused := Unused())
    assert [track.id for track in recording.tracks] == ["2"]
    assert unused.names == {"uncertain states, of sets or intervals": ["1"]}


def polygon(*points: tuple[float, float]) -> str:
    inner = "".join(f"<point><x>{x}</x><y>{y}</y></point>" for x, y in points)
    return f"<polygon>{inner}</polygon>"


def with_shape(path: Path, shape: str) -> Path:
    """Write traffic whose first obstacle, number 1, has a shape."""
    text = write_scenario(path, traffic()).read_text()
    path.write_text(re.sub("<rectangle>.*?</rectangle>", shape, text, count=1, flags=re.S))
    return path


def rectangle(more: str) -> str:
    return f"<rectangle><length>4</length><width>2</width>{more}</rectangle>"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (polygon((0, 0), (4, 0), (4, 2), (0, 2)), "does not have its centre at the obstacle's pos"),
        (polygon((1e8, 0), (1e8 + 4, 0), (1e8 + 4, 2)), "does not have its centre at"),
        (polygon((-1e8, -1), (1e8, -1), (1e8, 1), (-1e8, 1)), "has no area, or is not 0.2 to 100"),
        (polygon((-2, -0.02), (2, -0.02), (2, 0.02), (-2, 0.02)), "has no area, or is not 0.2 to"),
        (polygon((-2, -1), (0, 0), (2, 1)), "has no area"),
        (polygon((0, 0), (0, 0), (0, 0)), "has no area"),
        (polygon((-2, -1), (2, 1), (2, -1), (-2, 1)), "has no area"),
        (rectangle("<center><x>3</x><y>0</y></center>"), "does not have its centre at"),
        (rectangle("<orientation>1.57</orientation>"), "points elsewhere than its obstacle"),
        ("<circle><radius>1</radius><center><x>0</x><y>9</y></center></circle>", "does not have"),
        (rectangle("") + "<circle><radius>1</radius></circle>", "has several parts"),
    ],
)
def test_who_has_a_shape_that_is_no_rectangle_around_him_is_not_used(
    tmp_path: Path, shape: str, reason: str
) -> None:
    recording = read_commonroad(with_shape(tmp_path / "a.xml", shape), unused := Unused())
    assert [track.id for track in recording.tracks] == ["2"]
    ((told, names),) = unused.names.items()
    assert told.startswith(f"a shape that {reason}")
    assert names == ["1"]


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (polygon((-2, -1), (2, -1), (2.1, 0), (2, 1), (-2, 1)), (4.1, 2.0)),
        (rectangle("<orientation>3.14159</orientation><center><x>0.05</x><y>0</y></center>"), None),
        ("<circle><radius>0.3</radius></circle>", (0.6, 0.6)),
    ],
)
def test_other_shapes_are_the_boxes_around_them(
    tmp_path: Path, shape: str, size: tuple[float, float] | None
) -> None:
    recording = read_commonroad(with_shape(tmp_path / "a.xml", shape), unused := Unused())
    track = recording.tracks[0]
    assert (track.length, track.width) == pytest.approx(size or (4.0, 2.0))
    assert not unused.names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("<x>[^<]*", "<x>nan"), r", line \d+: x is 'nan' \(allowed: -1e\+09 to 1e\+09 m\)"),
        (("<y>[^<]*", "<y>1e400"), r", line \d+: y is '1e400' \(allowed"),
        (("<x>[^<]*", "<x>left"), r", line \d+: x is 'left' \(allowed"),
        (("<length>[^<]*", "<length>-4"), r", line \d+: length is '-4' \(allowed: 0.2 to 100 m"),
        (
            ("<length>[^<]*", "<length>0.04"),
            r"length is '0.04' .*m, not cm, feet or km",
        ),
        (("<width>[^<]*", "<width>1e-9"), r", line \d+: width is '1e-9' \(allowed: 0.2 to 100 m"),
        (
            ("<rectangle>.*?</rectangle>", "<circle><radius>0.05</radius></circle>"),
            r", line \d+: radius is '0.05' \(allowed: 0.1 to 50 m, not cm, feet or km\)",
        ),
        (("<width>[^<]*", "<width>"), r", line \d+: width is missing \(allowed"),
        (("<time>\n<exact>0", "<time>\n<exact>1.5"), r"time/exact is '1.5' \(allowed: whole numb"),
        (("<time>\n<exact>0", "<time>\n<exact>9999999"), r"time/exact is '9999999' \(allowed"),
        (("<exact>0.5", "<exact>90.5"), r"orientation/exact is '90.5.*' \(allowed: .*not degrees"),
        (('Size="0.1"', 'Size="0"'), r", line 2: timeStepSize is '0' \(allowed: above 0 to 0.5 s"),
        (('Size="0.1"', 'Size="nan"'), "line 2: timeStepSize is 'nan'"),
        (('timeStepSize="0.1"', ""), "line 2: timeStepSize is missing"),
        (("<rectangle>.*?</rectangle>", polygon((0, 0), (1, 1))), "line .*: polygon has 2 points"),
        (("2018b", "1999"), "is no whole CommonRoad scenario: .*not supported"),
        (('obstacle id="2"', 'obstacle id="1"'), "line .*: <obstacle> has the id 1 of line 3"),
        (('obstacle id="2"', 'obstacle id="01"'), "line .*: <obstacle> has the id 01 of line 3"),
        (('obstacle id="2"', 'obstacle id="1_0"'), r"<obstacle> has the id '1_0' .allowed: whole"),
        (('obstacle id="2"', 'obstacle id=" 2"'), r"<obstacle> has the id ' 2' .allowed: whole"),
        (('obstacle id="2"', 'obstacle id="\u0662"'), r"has the id '.*' .allowed: whole numb"),
        (('obstacle id="2"', f'obstacle id="{"1" * 5000}"'), "has the id '1111.*allowed: .*18 fig"),
        (("<x>[^<]*", "<x>1_0"), r", line \d+: x is '1_0' \(allowed: -1e\+09 to 1e\+09 m\)"),
        (("<x>[^<]*", "<x>\u0661"), r", line \d+: x is .* \(allowed: -1e\+09 to 1e\+09 m\)"),
        (("<x>[^<]*", "<x>0x10"), r", line \d+: x is '0x10' \(allowed: -1e\+09 to 1e\+09 m\)"),
        (("<x>[^<]*", f"<x>{'1' * 200}"), r", line \d+: x has more than 100 characters"),
        (("<time>\n<exact>0", "<time>\n<exact>0.0"), r"time/exact is '0.0' \(allowed: whole num"),
        (
            ("<velocity>.*?</velocity>", "<velocity></velocity>"),
            "velocity holds no value .*exact",
        ),
        (
            ("<position>.*?</position>", "<position></position>"),
            "position holds no value .*poin",
        ),
        (('author=""', f'author="{"a" * 20_000}"'), "has an attribute author of 20000 characters"),
        (("<role>", "<role " + " ".join(f'a{k}=""' for k in range(70)) + ">"), "has 70 attributes"),
        (("<role>", f"<!--{'a' * 2**21}--><role>"), "has a tag or comment of more than 1048576 by"),
        (("</commonRoad>", ""), "is no whole XML file: no element found"),
        (("commonRoad ", "osm "), "line 2: begins with <osm> .allowed: <commonRoad>"),
        (
            ("<commonRoad", '<!-- <commonRoad --><!DOCTYPE a [<!ENTITY b "c">]><commonRoad'),
            "line 2: has a DOCTYPE",
        ),
        (("<type>car</type>", "<type>" + "<a>" * 70 + "</a>" * 70 + "</type>"), "64 levels"),
        (("<orientation>[^/]*/exact>\n</orientation>", ""), "is no whole CommonRoad scenario: "),
        (("<obstacle.*</obstacle>", ""), "has no obstacle with a trajectory"),
    ],
)
def test_what_cannot_be_is_refused_by_line_and_element(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = write_scenario(tmp_path / "a.xml", traffic())
    text = re.sub(change[0], change[1].replace("\\", ""), path.read_text(), count=1, flags=re.S)
    assert text != path.read_text()
    path.write_text(text)
    with pytest.raises(RecordingError, match=f"^{path}.*{message}") as refused:
        read_commonroad(path, Unused())
    assert "\n" not in str(refused.value)


def test_lanelets_refer_to_whole_numbers(tmp_path: Path) -> None:
    lanes = [lanelet(100, 0.0, after=101).replace('ref="101"', 'ref="1_01"')]
    path = write_scenario(tmp_path / "a.xml", traffic(), lanes=lanes)
    with pytest.raises(RecordingError, match=r"<successor> has the ref '1_01' .allowed: whole"):
        read_commonroad(path, Unused())


@pytest.mark.parametrize(
    ("name", "most", "message"),
    [
        ("MOST_LANELETS", 2, r"line \d+: has more lanelets than are allowed \(2\)"),
        ("MOST_OBSTACLES", 1, r"line \d+: has more obstacles than are allowed \(1\)"),
        ("MOST_ELEMENTS", 100, r"line \d+: has more elements than are allowed \(100\)"),
        ("MOST_FOLLOWERS", 1, r"line \d+: has more successors of a lanelet than are allowed \(1\)"),
    ],
)
def test_elements_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int, message: str
) -> None:
    more = '<successor ref="1"/>\n' * 2
    lanes = [*LANES[:2], LANES[2].replace("<predecessor", f"{more}<predecessor")]
    path = write_scenario(tmp_path / "a.xml", traffic(), lanes=lanes)
    monkeypatch.setattr(scenario_check, name, most)
    with pytest.raises(RecordingError, match=f"^{path}, {message}"):
        read_commonroad(path, Unused())


def chain(count: int, step_m: float) -> list[str]:
    """Return lanelets that follow on each other."""
    return [
        lanelet(
            1000 + k,
            0.0,
            start_m=k * step_m,
            end_m=(k + 1) * step_m,
            after=1001 + k if k < count - 1 else None,
            before=999 + k if k else None,
        )
        for k in range(count)
    ]


def test_lines_of_many_short_lanelets_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scenario(tmp_path / "a.xml", traffic(), lanes=chain(120, 0.1))
    seen: list[int] = []

    def counted(lines: Any, *edges: Any) -> Road:
        seen.extend(map(len, lines))
        return Road(lines, *edges)

    monkeypatch.setattr(commonroad, "Road", counted)
    assert len(read_commonroad(path, Unused()).carriageways) == 120
    assert max(seen) <= (40 + 1 + 40) * 41
    monkeypatch.setattr(commonroad, "MOST_POINTS", 100_000)
    with pytest.raises(RecordingError, match=r"are \d+ points or more \(allowed: 100000\)"):
        read_commonroad(path, Unused())


def test_lines_go_on_for_forty_metres_and_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_scenario(tmp_path / "a.xml", traffic(), lanes=chain(3, 100.0))
    seen: list[float] = []

    def measured(lines: Any, *edges: Any) -> Road:
        seen.append(float(np.hypot(*np.diff(lines[0], axis=0).T).sum()))
        return Road(lines, *edges)

    monkeypatch.setattr(commonroad, "Road", measured)
    read_commonroad(path, Unused())
    assert seen == pytest.approx([140.0, 150.0, 110.0], abs=2.6)  # whole pieces


def test_headings_in_degrees_are_refused(tmp_path: Path) -> None:
    degrees = [{**row, "heading": math.degrees(COURSE)} for row in traffic()]
    path = write_scenario(tmp_path / "a.xml", degrees)
    with pytest.raises(RecordingError, match=r"a.xml, orientation: .*in rad, not in degrees"):
        read_commonroad(path, Unused())


def test_large_scenarios_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parked = rows("7", ahead_m=50.0, speed=0.0, seconds=0.0)
    path = write_scenario(tmp_path / "a.xml", traffic(), standing=parked)
    monkeypatch.setattr(commonroad, "MOST_STATIC_STATES", 40)
    with pytest.raises(RecordingError, match=r"these are 41 states \(allowed: 40"):
        read_commonroad(path, Unused())
    monkeypatch.setattr(scenario_check, "MOST_BYTES", 100)
    with pytest.raises(RecordingError, match=r"bytes \(allowed: 100\)"):
        read_commonroad(path, Unused())
    with pytest.raises(RecordingError, match="cannot be read: No such file"):
        read_commonroad(tmp_path / "b.xml", Unused())
