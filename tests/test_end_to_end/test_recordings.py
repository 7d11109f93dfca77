"""docs/recordings.md is what happens: its program, its commands, its table and its limits."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from models.road_users import ROAD_USERS
from service.cli import main
from training.recordings import columns, egos, layouts, maps, roads, scenario_check, tables, units
from training.recordings.egos import Options
from training.recordings.recording import LARGEST_SIZE_M, LEAST_SIZE_M, LONGEST_GAP_S

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recordings.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [text.strip() for kind, text in BLOCKS if kind == "bash"]


@pytest.mark.slow
def test_the_page_leads_from_a_table_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = [text for kind, text in BLOCKS if kind == "python"]
    monkeypatch.chdir(tmp_path)
    Path("write.py").write_text(program)
    Path("models").symlink_to(ROOT / "models")
    assert COMMANDS[0] == "pip install -e '.[tracks]'"

    runpy.run_path("write.py")
    said = [CliRunner().invoke(main, shlex.split(command)[1:]) for command in COMMANDS[1:]]

    assert [result.exit_code for result in said] == [0, 0], said
    shown = re.findall(r"^    (\d+ episodes.*|\d+ steps.*)$", PAGE, re.MULTILINE)
    assert said[0].stdout.splitlines() == shown
    report = Path("report/report.md").read_text()
    for part in re.findall(r"^\| (\w[\w ]+) \| .*\|$", PAGE.split("## A table")[0], re.MULTILINE):
        if part != "part":
            assert f"### {part}" in report, part


def test_the_table_names_all_columns_with_their_ranges() -> None:
    rows = re.findall(r"^\| (`.*?) \|(.*?) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    told = {
        name: (unit.strip(), allowed, missing)
        for names, unit, allowed, missing in rows
        for name in re.findall("`([^`]+)`", names)
    }
    for name, (low, high, unit, is_or_0) in tables.BOUNDS.items():
        shown, allowed, missing = told[name]
        assert shown == unit.split(",")[0]
        assert [float(x) for x in re.split(" to |[,;]", allowed)[:2]] == [low, high], name
        assert is_or_0 == ("or 0 for none" in allowed), name
        assert (missing == "refused") == (name not in tables.OPTIONAL)
    assert {"id", "class"} <= told.keys()
    assert all(f"`{kind.kind}`" in PAGE for kind in ROAD_USERS)


def test_limits_are_those_of_the_code() -> None:
    for text in (
        f"At most {columns.MOST_ROWS:,} rows, {columns.MOST_BYTES // 2**30} GiB, "
        f"{tables.MOST_TRACKS:,} ids and {tables.MOST_CLASSES:,} classes a file",
        f"at most {columns.MOST_CHUNK_BYTES // 2**20} MiB of a column in a group of rows",
        f"At most {scenario_check.MOST_LANELETS:,} lanelets, each with "
        f"{scenario_check.MOST_FOLLOWERS} successors, {scenario_check.MOST_OBSTACLES:,} obstacles "
        f"and {scenario_check.MOST_ELEMENTS:,} elements",
        f"lengths and widths are {LEAST_SIZE_M:g} to {LARGEST_SIZE_M:g} m, as in tables",
        f"its steps {layouts.SHORTEST_STEP_S:g} to {layouts.LONGEST_STEP_S:g} s",
        f"a road user has {egos.MOST_MOMENTS_EACH:,} of them at most, a file {egos.MOST_MOMENTS:,}",
        f"more than {roads.REACH_M:g} m away from the box around its centre lines",
        f"{roads.MOST_PAIRS:,} positions",
        f"text or integer, 1 to {columns.MOST_TEXT} characters",
        f"At most {maps.MOST_ROADS:,} roads, {maps.MOST_LANES} lanes a road, "
        f"{maps.MOST_POINTS:,} points",
        f"at most {scenario_check.MOST_BYTES // 2**20} MiB",
        f"by more than {units.LARGEST_ANGLE_RAD:g} rad",
        "not {:g} to {:g} times".format(*units.SPEED_RATIOS),
        f"`--overlap-m` ({Options().overlap_m:g} m",
        f"`--least-s` ({Options().least_s:g} s)",
        f"a gap of more than {LONGEST_GAP_S:g} s",
    ):
        assert text in " ".join(PAGE.split()), text
