"""Tables of tracks: what is read, and what is refused by file, row and column."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.test_training.traffic import COLUMNS, line, place, road, rows, write_csv, write_roads
from training.recordings import columns, maps, tables
from training.recordings.maps import read_roads
from training.recordings.recording import RecordingError, Unused, kind_of
from training.recordings.tables import read_table


def write_parquet(path: Path, given: list[dict[str, Any]]) -> Path:
    pa.parquet.write_table(pa.Table.from_pylist(given), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tracks_are_read_whatever_the_order_of_rows(tmp_path: Path, suffix: str) -> None:
    given = rows("a", seconds=0.3) + rows("7", left_m=3.5, kind="Truck", length=9.0, seconds=0.2)
    write = write_csv if suffix == ".csv" else write_parquet
    path = write(tmp_path / f"tracks{suffix}", given[::-1])

    recording = read_table(path, unused := Unused())

    first, second = recording.tracks
    assert (first.id, first.kind, first.length) == ("7", "truck", 9.0)
    assert (second.id, second.kind, second.width) == ("a", "car", 1.8)
    assert second.times_s == pytest.approx([0, 0.1, 0.2, 0.3])
    assert second.x == pytest.approx([row["x"] for row in given[:4]])
    assert second.speed is not None
    assert second.speed == pytest.approx([20.0] * 4)
    assert not recording.has_roads
    assert not unused.names


def test_numbers_as_ids_are_ids_in_parquet(tmp_path: Path) -> None:
    given = [{**row, "id": 12} for row in rows("x", seconds=0.2)]
    recording = read_table(write_parquet(tmp_path / "tracks.parquet", given), Unused())
    assert [track.id for track in recording.tracks] == ["12"]


def test_what_is_optional_may_be_missing_in_a_row_or_as_a_column(tmp_path: Path) -> None:
    given = rows("a", seconds=0.3)
    given[1] |= {"heading": "", "length": ""}
    given[2] |= {"length": 0}
    some = write_csv(tmp_path / "some.csv", given)
    none = write_csv(tmp_path / "none.csv", given, ["time_s", "id", "class", "x", "y"])

    (track,) = read_table(some, Unused()).tracks
    assert (track.heading, track.length) == (None, 4.5)  # a heading of some rows is derived for all
    assert track.speed is not None
    (track,) = read_table(none, Unused()).tracks
    assert (track.heading, track.speed, track.length, track.width) == (None, None, 4.6, 1.9)


def test_who_has_no_size_and_a_class_without_one_is_left_out_by_name(tmp_path: Path) -> None:
    given = [{**row, "length": ""} for row in rows("cow-1", kind="cow", seconds=0.2)]
    path = write_csv(tmp_path / "tracks.csv", given + rows("a", seconds=0.2))
    recording = read_table(path, unused := Unused())
    assert [track.id for track in recording.tracks] == ["a"]
    assert unused.names == {"no size, and none is usual for the class 'cow'": ["cow-1"]}


def test_the_most_frequent_class_counts_and_others_are_told(tmp_path: Path) -> None:
    given = rows("a", seconds=0.4)
    given[0]["class"] = "bus"
    (track,) = read_table(write_csv(tmp_path / "t.csv", given), unused := Unused()).tracks
    assert track.kind == "car"
    assert unused.names == {"classes that only some rows have, the most frequent one taken": ["a"]}


def test_columns_of_no_use_are_told(tmp_path: Path) -> None:
    given = [{**row, "heading_deg": 30} for row in rows("a", seconds=0.2)]
    read_table(write_csv(tmp_path / "t.csv", given, [*COLUMNS, "heading_deg"]), unused := Unused())
    assert unused.names == {"a column of no use here": ["heading_deg"]}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Car", "car"),
        ("motorbike", "motorcycle"),
        ("truck_trailer", "truck with trailer"),
        ("Pedestrian", "pedestrian"),
        ("hovercraft", "hovercraft"),
    ],
)
def test_classes_have_usual_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def with_value(column: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda given: given[2].__setitem__(column, value)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_value("x", math.nan), r"row 3, column x: is missing or NaN \(allowed: -1e\+09 to"),
        (with_value("y", math.inf), "row 3, column y: is inf"),
        (with_value("time_s", None), "row 3, column time_s: is missing or NaN"),
        (with_value("heading", 90.0), r"row 3, column heading: is 90 .*rad, not degrees"),
        (with_value("length", -1.0), r"row 3, column length: is -1 \(allowed: 0.2 to 100 m"),
        (
            with_value("length", 0.04),
            r"row 3, column length: is 0.04 .*, not cm, feet or km; or 0",
        ),
        (
            with_value("width", 0.0018),
            r"row 3, column width: is 0.0018 \(allowed: 0.2 to 100",
        ),
        (with_value("width", 5e-324), r"row 3, column width: is 4.94066e-324 \(allowed: 0.2 to"),
        (with_value("speed", 400.0), "row 3, column speed: is 400"),
        (with_value("id", ""), r"row 3, column id: is empty \(allowed: 1 to 200 characters"),
        (with_value("class", "x" * 300), "row 3, column class: has 300 characters"),
        (with_value("time_s", 0.1), r"row 3, column time_s: is 0.1 once more for the id 'a'"),
    ],
)
def test_a_wrong_value_is_named_by_row_and_column(
    tmp_path: Path, suffix: str, change: Callable[[list[dict[str, Any]]], None], message: str
) -> None:
    given = rows("a", seconds=0.4)
    change(given)
    path = tmp_path / f"tracks{suffix}"
    (write_csv if suffix == ".csv" else write_parquet)(path, given)
    with pytest.raises(RecordingError, match=f"^{path}, {message}"):
        read_table(path, Unused())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time_s,id,class,x,y\n0,a,car,1,2\n0.1,a,car,one,2\n", "row 2, column x: is 'one', no"),
        ("time_s,id,class,x,y\n0,a,car,1,2\n0.1,a,car,1\n", "row 2: has 4 columns, the header 5"),
        ("time_s,id,class,x\n0,a,car,1\n", r"lacks the column y .needed: id, class, time_s, x, y"),
        ("time_s,id,class,x,y,x\n0,a,car,1,2,3\n", "has the column x 2 times"),
        ("time_s,id,class,x,y\n", "has no rows"),
        ("", "cannot be read|lacks the column|has no rows|Empty"),
        ("\x00\x01\x02", "is no CSV"),
        ("time_s;id;class;x;y\n0;a;car;1;2\n", r"separated by semicolons \(allowed: commas\)"),
        ("time_s,id,class,x,y\n\n0,a,car,10,2\n0,a,car,,z\n", "row 2, column y: is 'z', no n"),
        ("time_s,id,class,x,y\n0,a,car,1,'2'\n", "row 1, column y: is \"'2'\", no number"),
        ("time_s,id,class,x,y\n0,a,car," + "1" * 200_000 + ",z\n", "a line has more than 100000"),
        ("x" * 200_000, "a line has more than 100000 characters"),
    ],
)
def test_a_csv_that_is_none_is_refused_in_one_sentence(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "tracks.csv"
    path.write_text(text)
    with pytest.raises(RecordingError, match=message) as refused:
        read_table(path, Unused())
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["tracks.parquet", "tracks.csv"])
def test_bytes_and_missing_files_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(RecordingError, match="is no file"):
        read_table(path, Unused())
    path.write_bytes(b"PAR1 and then nothing \xff\xfe" * 10)
    with pytest.raises(RecordingError, match=f"^{path}") as refused:
        read_table(path, Unused())
    assert "\n" not in str(refused.value)


def test_types_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    given = [{**row, "x": str(row["x"])} for row in rows("a", seconds=0.2)]
    path = write_parquet(tmp_path / "tracks.parquet", given)
    with pytest.raises(RecordingError, match=r"column x: is string \(allowed: numbers\)"):
        read_table(path, Unused())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_are_counted_before_they_are_kept(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MOST_ROWS", 3)
    path = tmp_path / f"tracks{suffix}"
    (write_csv if suffix == ".csv" else write_parquet)(path, rows("a", seconds=0.3))
    with pytest.raises(RecordingError, match=r"has 4 rows or more \(allowed: 3; split it by time"):
        read_table(path, Unused())


def test_a_large_csv_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MOST_BYTES", 10)
    path = write_csv(tmp_path / "tracks.csv", rows("a", seconds=0.3))
    with pytest.raises(RecordingError, match=r"bytes to read \(allowed: 10; split it by time"):
        read_table(path, Unused())


def test_ids_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_TRACKS", 2)
    given = [{**row, "id": k} for k, row in enumerate(rows("a", seconds=0.2))]
    path = write_csv(tmp_path / "tracks.csv", given)
    with pytest.raises(RecordingError, match=r"row 3, column id: is one more than 2 diff"):
        read_table(path, Unused())


def test_a_parquet_that_unpacks_to_much_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [{**row, "note": "x" * 1000} for row in rows("a", seconds=0.2)]
    path = write_parquet(tmp_path / "tracks.parquet", given)
    monkeypatch.setattr(columns, "MOST_BYTES", 1500)
    assert len(read_table(path, Unused()).tracks) == 1  # a column of no use does not count
    monkeypatch.setattr(columns, "MOST_BYTES", 100)
    with pytest.raises(RecordingError, match=r"bytes to read \(allowed: 100; split it by time"):
        read_table(path, Unused())


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_batches_and_groups_of_rows_make_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(columns, "_BATCH_ROWS", batch)
    given = rows("b", seconds=0.5) + rows("a", seconds=0.5, left_m=3.5, kind="bus", length=12.0)
    given = [row for pair in zip(given[:6], given[6:], strict=True) for row in pair]
    path = tmp_path / "tracks.parquet"
    pa.parquet.write_table(pa.Table.from_pylist(given), path, row_group_size=5)
    first, second = read_table(path, Unused()).tracks
    assert (first.id, first.kind, len(first.x)) == ("a", "bus", 6)
    assert (second.id, second.kind, len(second.x)) == ("b", "car", 6)
    assert second.x == pytest.approx([row["x"] for row in given[::2]])
    for name, value in (("x", math.nan), ("id", ""), ("class", "x" * 300)):
        wrong = [{**row, name: value} if at >= 8 else row for at, row in enumerate(given)]
        pa.parquet.write_table(pa.Table.from_pylist(wrong), path, row_group_size=5)
        with pytest.raises(RecordingError, match=f"row 9, column {name}: "):
            read_table(path, Unused())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", "1" * 20_000),
        ("id", ["1" * 20_000]),
        ("class", {"of": "1" * 20_000}),
        ("time_s", [1.0] * 2_000),
    ],
    ids=["text", "list", "struct", "numbers"],
)
def test_a_small_parquet_that_unpacks_to_gigabytes_is_refused_unread(
    tmp_path: Path, name: str, value: Any
) -> None:
    count = 10_000
    given = pa.Table.from_pylist(rows("a", seconds=0.0)).take(pa.array([0] * count))
    column = pa.array([value]).take(pa.array([0] * count))
    given = given.set_column(given.column_names.index(name), name, column)
    path = tmp_path / "tracks.parquet"
    pa.parquet.write_table(given, path)
    del given, column
    pool = pa.system_memory_pool()  # none else uses it: its peak is what this read takes
    before, default = pool.max_memory(), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(RecordingError, match=f"^{path}, column {name}: is .* .allowed: "):
            read_table(path, Unused())
        assert pool.max_memory() - before < 2**20
    finally:
        pa.set_memory_pool(default)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_long_texts_are_refused_by_their_bytes(tmp_path: Path, suffix: str) -> None:
    given = rows("a", seconds=0.4)
    given[1]["id"] = "\u00e9" * 25_000
    write = write_csv if suffix == ".csv" else write_parquet
    path = write(tmp_path / f"tracks{suffix}", given)
    with pytest.raises(RecordingError, match=r"row 2, column id: has 50000 bytes .allowed: 1 to"):
        read_table(path, Unused())


def test_large_groups_of_rows_and_footers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "tracks.parquet", rows("a", seconds=0.2))
    monkeypatch.setattr(columns, "MOST_CHUNK_BYTES", 10)
    with pytest.raises(RecordingError, match=r"column time_s: has \d+ bytes in one group of rows"):
        read_table(path, Unused())
    monkeypatch.setattr(columns, "_MOST_FOOTER_BYTES", 100)
    with pytest.raises(RecordingError, match=r"has a footer of \d+ bytes \(allowed: 100"):
        read_table(path, Unused())


def test_gaps_and_jumps_cut_a_track_and_are_named(tmp_path: Path) -> None:
    given = rows("a", seconds=3.0)
    del given[10:16]
    lifted = rows("b", seconds=2.0, left_m=3.5)
    for row in lifted[10:]:
        row["x"] += 40.0
    swapped = rows("c", seconds=2.0, left_m=7.0)
    for row in swapped[10:]:
        row["y"] += 4.0  # slow enough for any car, but at once
    path = write_csv(tmp_path / "tracks.csv", given + lifted + swapped)

    recording = read_table(path, unused := Unused())

    ids = {track.id: len(track.times_s) for track in recording.tracks}
    assert (ids["a"], ids["a from 1.60 s"]) == (10, 15)
    assert (ids["b"], ids["b from 1.00 s"]) == (10, 11)
    assert (ids["c"], ids["c from 1.00 s"]) == (10, 11)
    assert unused.names["a gap of more than 0.5 s, cut there"] == ["a at 0.90 s"]
    assert unused.names["an impossible jump, cut there"] == ["b at 0.90 s", "c at 0.90 s"]


def test_hard_braking_is_no_jump(tmp_path: Path) -> None:
    given = rows("a", speed=30.0, acceleration=-10.0, seconds=3.0, rate_hz=4.0)
    recording = read_table(write_csv(tmp_path / "t.csv", given), unused := Unused())
    assert len(recording.tracks) == 1
    assert not unused.names


def test_roads_are_found_beside_the_table_or_where_they_are_said_to_be(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "tracks.csv", rows("a", seconds=0.2))
    assert not read_table(path, Unused()).has_roads
    other = write_roads(tmp_path / "other.json", road(), road())
    assert len(read_table(path, Unused(), road=other).carriageways) == 2
    write_roads(tmp_path / "tracks.road.json", road())
    (carriageway,) = read_table(path, Unused()).carriageways
    assert carriageway.name == "motorway"


def test_a_table_of_points_is_a_road_too(tmp_path: Path) -> None:
    path = tmp_path / "tracks.road.csv"
    lines = {"lane 1": 0.0, "left_edge": 5.25, "right_edge": -1.75, "lane 2": 3.5}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["road", "line", "x", "y"])
        for name, left in lines.items():
            writer.writerows(["A", name, x, y] for x, y in line(left))

    (carriageway,) = read_roads(path)

    x, y = place(10.0, 3.0)
    found = carriageway.road.locate(np.array([[x, y, math.radians(30), 10.0]]))
    assert found.lane_offset == pytest.approx([-0.5])
    assert found.left_edge == pytest.approx([2.25])
    assert found.right_edge == pytest.approx([4.75])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", 'lacks a list "roads" with at least one road'),
        ('{"roads": []}', 'lacks a list "roads" with at least one road'),
        ('{"roads": [{"left_edge": [[0, 0], [1, 0]]}]}', r"roads\[0\]: lacks a list centre_lines"),
        ('{"roads": [{"centre_lines": [], "edge": 1}]}', r"roads\[0\]: has 'edge', which is unkn"),
        ('{"roads": [{"centre_lines": []}]}', "road '0': centre_lines is"),
        ('{"roads": [{"centre_lines": [[[0, 0]]]}]}', r"road '0': centre_lines\[0\] has no length"),
        ('{"roads": [{"centre_lines": [[["a", 0], [1, 0]]]}]}', "holds values of type"),
        (
            '{"roads": [{"name": "A", "centre_lines": [[[0, 0], [9, 0]]],'
            ' "left_edge": [[0, -2], [9, -2]]}]}',
            "road 'A': left_edge is on the wrong side",
        ),
    ],
)
def test_a_road_that_is_none_is_refused_in_one_sentence(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "road.json"
    path.write_text(text)
    with pytest.raises(RecordingError, match=message) as refused:
        read_roads(path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


def test_roads_and_their_lanes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "MOST_ROADS", 1)
    with pytest.raises(RecordingError, match=r"has 2 roads or more \(allowed: 1\)"):
        read_roads(write_roads(tmp_path / "road.json", road(), road()))
    monkeypatch.setattr(maps, "MOST_LANES", 2)
    with pytest.raises(RecordingError, match=r"'motorway' has 3 centre lines \(allowed: 2\)"):
        read_roads(write_roads(tmp_path / "road.json", road()))
    monkeypatch.setattr(maps, "MOST_POINTS", 100)
    with pytest.raises(RecordingError, match=r"has 205 points \(allowed: 100\)"):
        read_roads(write_roads(tmp_path / "road.json", road()))


def test_large_road_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "MOST_JSON_BYTES", 5)
    monkeypatch.setattr(maps, "MOST_POINTS", 1)
    with pytest.raises(RecordingError, match=r"bytes \(allowed: 5\)"):
        read_roads(write_roads(tmp_path / "road.json", road()))
    path = tmp_path / "road.csv"
    path.write_text("road,line,x,y\nA,1,0,0\nA,1,1,0\n")
    with pytest.raises(RecordingError, match=r"has 2 points \(allowed: 1\)"):
        read_roads(path)
    with pytest.raises(RecordingError, match="is no road description"):
        read_roads(tmp_path / "road.txt")
