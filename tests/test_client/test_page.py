"""`docs/client.md` and `docs/tracks.md` are true: their programs run as they say, and more."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import world_model_client
from tests.test_end_to_end.conftest import Server, Start, start
from world_model_client import AsyncClient, Client, WorldModelError, scene
from world_model_client.scene import builder, report

__all__ = ["start"]  # a fixture

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/client.md").read_text()
README = (ROOT / "client/README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"
TRACKS = (ROOT / "docs/tracks.md").read_text()
PROGRAMS = re.findall(r"```python\n(.+?)```", PAGE + TRACKS, re.DOTALL)
CALLS = ("predict", "rollout", "safety_check", "model", "ready", "close")


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start()


def output(program: str, server: Server) -> str:
    command = [sys.executable, "-W", "error", "-c", program.replace(ADDRESS, server.url)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_each_program_of_the_page_prints_what_it_says(program: str, server: Server) -> None:
    said = re.findall(r"# prints (.+)", program)
    assert said

    printed = output(program, server)

    assert printed.splitlines()[-1].startswith(said[-1]), printed


def test_the_page_about_tracks_shows_all_that_its_program_prints(server: Server) -> None:
    (program,) = re.findall(r"```python\n(.+?)```", TRACKS, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.+?)```", TRACKS, re.DOTALL)

    assert output(program, server) == shown


@pytest.mark.parametrize("name", scene.__all__)
def test_the_page_about_tracks_names_what_there_is(name: str) -> None:
    table = TRACKS.partition("## All names")[2]

    assert f"`{name}`" in table


def test_the_page_about_tracks_has_the_builders_values() -> None:
    assert f"last {builder.FILTER_S:g} s (`filter_s`)" in TRACKS
    assert f"for {builder.COAST_S:g} s (`coast_s`)" in TRACKS
    assert f"farther than {scene.RANGE_M:g} m (`range_m`)" in TRACKS
    table = TRACKS.partition("## What comes out")[2].partition("\n## ")[0]
    reasons = set(re.findall(r"^\| `(\w+)` \| ", table, re.MULTILINE))
    known = {report.BEYOND_RANGE, report.NO_SLOT, report.NOT_FINITE, report.NO_SIZE}
    assert reasons == {*known, report.REPLACED}


def test_the_program_of_the_readme_runs(server: Server) -> None:
    (program,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)

    assert output(program.replace("timeout_s=0.2", "timeout_s=5"), server) == "safe\n"


def arguments(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


@pytest.mark.parametrize("name", CALLS)
def test_the_page_names_every_argument_of_a_call(name: str) -> None:
    (shown,) = re.findall(rf"^\| `{name}\((.*?)\)`", PAGE, re.MULTILINE)

    for kind in (Client, AsyncClient):
        assert set(re.findall(r"\w+", shown)) == arguments(getattr(kind, name))
        assert getattr(kind, name).__doc__


def test_the_page_and_the_docstrings_name_every_call_and_every_argument_of_a_client() -> None:
    table = PAGE.partition("## Clients")[2].partition("\n## ")[0]
    named = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))

    for kind in (Client, AsyncClient):
        assert {name for name in dir(kind) if name[0] != "_"} == set(CALLS)
        assert named == arguments(kind)
        assert all(f"\n        {name}: " in str(kind.__doc__) for name in named)


def test_the_page_says_of_every_error_whether_a_retry_is_worth_it() -> None:
    rows = re.findall(r"^\| (`\w+Error`.*?) \| .+ \| .+ \|$", PAGE, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]

    raised = {
        name
        for name in world_model_client.__all__
        if isinstance(kind := getattr(world_model_client, name), type)
        and issubclass(kind, WorldModelError)
        and not kind.__subclasses__()
    }
    assert sorted(named) == sorted(raised)
