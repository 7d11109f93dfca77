"""Headings, speeds, places and times in other units than those that are documented."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_training.traffic import COURSE, rows, write_csv
from training.recordings.recording import RecordingError, Unused
from training.recordings.tables import read_table

Row = dict[str, Any]


def traffic() -> list[Row]:
    return rows("a") + rows("b", ahead_m=30.0, left_m=3.5, speed=18.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"heading": math.degrees(COURSE)}, "column heading: is off .*not in degrees"),
        (lambda row: {"heading": math.pi / 2 - COURSE}, "column heading: .*towards the y axis"),
        (lambda row: {"heading": -COURSE}, r"column heading: .* by 1\.05 rad .*\(allowed: 0\.35"),
        (lambda row: {"speed": row["speed"] * 3.6}, "column speed: has the median .*in m/s"),
        (lambda row: {"speed": row["speed"] * 2.237}, "column speed: has the median"),
        (lambda row: {"time_s": row["time_s"] * 1000}, "column speed: .*times in s"),
        (lambda row: {"x": row["x"] / 1e5, "y": row["y"] / 1e5}, "column speed: .*positions in m"),
    ],
)
def test_other_units_are_refused_by_column(
    tmp_path: Path, change: Callable[[Row], Row], message: str
) -> None:
    path = write_csv(tmp_path / "t.csv", [{**row, **change(row)} for row in traffic()])
    with pytest.raises(RecordingError, match=f"^{path}, {message}") as refused:
        read_table(path, Unused())
    assert "\n" not in str(refused.value)


def test_noise_turns_reversing_and_standing_are_no_other_units(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = traffic() + rows("parked", ahead_m=60.0, speed=0.0)
    back = rows("back", ahead_m=90.0, speed=-5.0)
    for row in given + back:
        row["x"] += rng.normal(0, 0.3)
        row["y"] += rng.normal(0, 0.3)
        row["heading"] += rng.normal(0, 0.05) + 2 * math.pi * (row["id"] == "b")
        row["speed"] += rng.normal(0, 0.5)
    for name, some in (("all", given + back), ("back", back)):
        path = write_csv(tmp_path / f"{name}.csv", some)
        assert len(read_table(path, Unused()).tracks) == len({row["id"] for row in some})


def test_a_few_wrong_values_do_not_condemn_a_table(tmp_path: Path) -> None:
    given = traffic()
    for row in given[:10]:
        row["heading"] = 30.0
    assert len(read_table(write_csv(tmp_path / "t.csv", given), Unused()).tracks) == 2


def test_who_hardly_moves_tells_no_units(tmp_path: Path) -> None:
    slow = [{**row, "heading": 3.0} for row in rows("a", speed=1.0)]
    assert len(read_table(write_csv(tmp_path / "t.csv", slow), Unused()).tracks) == 1
