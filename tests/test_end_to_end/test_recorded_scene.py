"""`examples/recorded_scene.py` prints what docs/tracks.md shows, and of made-up traffic what is so.

The page's scene is not part of the repository: COMMONROAD_SCENES names the folder that holds it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_end_to_end.conftest import Server, Start
from tests.test_training.traffic import lanelet, rows, write_scenario

FOLDER = Path(os.environ.get("COMMONROAD_SCENES") or "/nowhere")
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tracks.md").read_text().partition("## A recorded scene")[2]
COMMAND, SHOWN = re.findall(r"```(?:bash)?\n(.+?)```", PAGE.partition("\n## ")[0], re.DOTALL)

VERDICT = r"(safe|unsafe|unknown), risk (0\.\d{4}|none), threshold (0\.\d{4}|none)"
REASON = r"  \w+: .+"


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start()


def printed(server: Server, *arguments: str, fails: bool = False) -> list[str]:
    """Return the lines of the program; of its error if it has to fail."""
    command = [sys.executable, "-m", "examples.recorded_scene", *arguments, "--url", server.url]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode != 0) == fails, done.stderr
    return (done.stderr if fails else done.stdout).splitlines()


def split(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return what is said of the scene, and of the plans."""
    at = next(i for i, line in enumerate(lines) if line.startswith("go on: "))
    return lines[:at], lines[at:]


@pytest.mark.skipif(
    not FOLDER.is_dir(), reason="COMMONROAD_SCENES names no folder of recorded scenes"
)
def test_the_page_shows_the_scene_and_the_form_of_the_verdicts(server: Server) -> None:
    python, _, program, scene, *options = shlex.split(COMMAND)
    assert (python, program) == ("python", "examples.recorded_scene")

    said, judged = split(printed(server, str(FOLDER / scene), *options))

    shown, shown_verdicts = split(SHOWN.splitlines())
    assert said == shown
    for lines in (judged, shown_verdicts):
        assert re.fullmatch(
            rf"go on: {VERDICT}(\n{REASON})*\nbrake fully: {VERDICT}(\n{REASON})*", "\n".join(lines)
        )


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A car at 20 m/s on the right one of two lanes, a truck ahead that brakes, five cars aside."""
    truck = rows("2", ahead_m=35.0, speed=18.0, acceleration=-3.0, length=9.0, width=2.5)
    aside = [rows(str(i), ahead_m=20.0 * i - 98, left_m=3.5) for i in range(3, 8)]
    gone = rows("8", ahead_m=-8.0, left_m=3.5, seconds=1.0)
    lanes = (lanelet(100, 3.5, right=101), lanelet(101, 0.0, left=100))
    given = [*rows("1"), *truck, *sum(aside, []), *gone]  # noqa: RUF017
    return write_scenario(tmp_path / "made.xml", given, lanes=lanes)


def test_the_scene_is_told_as_it_was_known_at_the_moment(server: Server, scenario: Path) -> None:
    said, judged = split(printed(server, str(scenario), "--ego", "1", "--at", "2"))

    assert said[0] == "made.xml at 2.0 s: 1 among 6 others"
    assert said[1].startswith("ego: speed 20, lane_offset 0, ")
    (truck,) = [line for line in said if "'2'" in line]
    # 35 + 18 x 2 - 3 x 2 - 20 x 2 m ahead, at 18 - 3 x 2 m/s.
    assert re.fullmatch(r"slot \d, '2': length 9, width 2.5, dx 25, dy 0, .*speed 12\b.*", truck)
    left_out = [line for line in said if line.startswith("left out, ")]
    assert [re.findall("'(.)'", line) for line in left_out] == [["3"], ["7"]]
    assert all(line.endswith("others are in all slots") for line in left_out)
    assert not any("'8'" in line for line in said)
    assert [line.partition(":")[0] for line in judged if line[0] != " "] == ["go on", "brake fully"]


@pytest.mark.parametrize(
    ("ego", "at", "error"),
    [
        ("9", "2", r"--ego 9 is nobody in this scene \(there: 1, 2, .*\)"),
        ("8", "2", "8 is in view from 0.0 to 1.0 s, not then"),
    ],
    ids=["nobody", "gone"],
)
def test_who_is_not_there_cannot_ask(
    server: Server, scenario: Path, ego: str, at: str, error: str
) -> None:
    lines = printed(server, str(scenario), "--ego", ego, "--at", at, fails=True)

    assert re.fullmatch(f"Error: {error}", lines[-1])
