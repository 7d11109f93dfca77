"""docs/own-data.md is what happens: its files, its commands and its questions, in order."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.test_end_to_end.conftest import Start

PAGE = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [text.strip() for kind, text in BLOCKS if kind == "bash"]
SERVE = "world-model serve --checkpoint checkpoint --port 8000"


def run(command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files."""
    folder = tmp_path_factory.mktemp("own")
    (spec,) = [text for kind, text in BLOCKS if kind == "json"]
    (script,) = [text for kind, text in BLOCKS if kind == "python"]
    (folder / "spec.json").write_text(spec)
    (folder / "write.py").write_text(script)
    return folder


@pytest.mark.slow
def test_the_page_leads_from_arrays_to_a_verdict(folder: Path, start: Start) -> None:
    before, after = COMMANDS[: COMMANDS.index(SERVE)], COMMANDS[COMMANDS.index(SERVE) + 1 :]
    assert [x.split()[:2] for x in before[1:]] == [
        ["world-model", "check-data"],
        ["world-model", "train"],
        ["world-model", "evaluate"],
    ]
    run(f"{sys.executable} write.py", folder)
    said = [run(command, folder) for command in before[1:]]  # the first one installs

    server = start("--checkpoint", str(folder / "checkpoint"))
    answers = [asked(command, server.url) for command in after]

    assert "1500 episodes of" in said[0]
    assert "keeps that guarantee" in said[1]
    assert "| model |" in said[2]
    assert "| gap | m |" in (folder / "report" / "report.md").read_text()
    assert [answer["verdict"] for answer in answers] == ["safe", "unsafe"]
    assert httpx.get(f"{server.url}/model").json()["thresholds"]["guarantee"]["holds"]


def asked(command: str, url: str) -> dict[str, Any]:
    """Return the answer to the question of a curl."""
    path, body = re.findall(r"http://127.0.0.1:8000(\S+) -d '(.*)'", command)[0]
    answer = httpx.post(url + path, json=json.loads(body))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())
