"""What the README shows is what happens: its curls and its Python against the real command."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_end_to_end.conftest import Server, Start

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ADDRESS = "http://127.0.0.1:8000"
CURLS = re.findall(r"^curl .+$", README, re.MULTILINE)
SHOWN = re.findall(r"```bash\n(curl [^\n]+)\n```\n+```(\w+ \w+)\n(.+?)```", README, re.DOTALL)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
PYTHON = re.findall(r"```python\n(.+?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start()


def run(command: list[str]) -> str:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    ).stdout


def assert_alike(shown: Any, got: Any, path: str = "answer") -> None:
    """Equal but for rounding: shown answers were computed on some machine's CPU."""
    if isinstance(shown, dict):
        assert shown.keys() == got.keys(), path
        for key in shown:
            assert_alike(shown[key], got[key], f"{path}.{key}")
    elif isinstance(shown, list):
        assert len(shown) == len(got), path
        for i, (x, y) in enumerate(zip(shown, got, strict=True)):
            assert_alike(x, y, f"{path}[{i}]")
    elif isinstance(shown, float):
        assert math.isclose(shown, got, rel_tol=1e-3, abs_tol=1e-4), f"{path}: {shown} and {got}"
    elif not path.endswith(".message"):
        assert shown == got, path


@needs_curl
@pytest.mark.parametrize("command", CURLS)
def test_every_curl_of_the_readme_succeeds(server: Server, command: str) -> None:
    arguments = command.replace(ADDRESS, server.url).split()

    assert run([arguments[0], "--fail", *arguments[1:]])


def test_every_curl_is_followed_by_what_it_answers() -> None:
    assert [command for command, _, _ in SHOWN] == CURLS
    assert len(CURLS) == 7


@needs_curl
@pytest.mark.parametrize(("command", "kind", "shown"), SHOWN, ids=[c.split("/")[3] for c in CURLS])
def test_the_readme_shows_the_real_answers(
    server: Server, command: str, kind: str, shown: str
) -> None:
    got = run(command.replace(ADDRESS, server.url).split())

    if kind == "text excerpt":
        assert [line for line in shown.splitlines() if line not in got] == []
    elif kind == "json excerpt":
        excerpt, whole = json.loads(shown), json.loads(got)
        assert_alike(excerpt, {key: whole[key] for key in excerpt})
    else:
        assert kind == "json answer"
        assert_alike(json.loads(shown), json.loads(got))


@pytest.mark.parametrize("code", PYTHON)
def test_the_python_of_the_readme_runs(server: Server, code: str) -> None:
    assert run([sys.executable, "-c", code.replace(ADDRESS, server.url)]).startswith("unsafe ")
