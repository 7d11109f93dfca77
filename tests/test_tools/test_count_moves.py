"""A warm request passes few of our files, and control does not go back and forth between them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.count_moves import ROOT, Tracer

MOST = {"/predict": (23, 97), "/safety-check": (29, 117)}
"""Files and moves, of requests that name `dt_s` and `frame`; see `tools/count_moves.py`. What
can be and what cannot, features that saturate, predicted contacts, expected errors and questions
why have files of their own. Counting how long its rows waited takes two moves a launch."""


@pytest.fixture(scope="module")
def counted(library: Path) -> dict[str, tuple[int, int]]:
    """Files and moves of each request, as the command prints them."""
    environment = {**os.environ, "WORLD_MODEL_CACHE_DIR": str(library.parent)}
    command = [sys.executable, "-m", "tools.count_moves"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr + run.stdout
    heads = re.findall(r"^(/\S+): (\d+) files, (\d+) moves$", run.stdout, re.MULTILINE)
    return {path: (int(files), int(moves)) for path, files, moves in heads}


@pytest.mark.parametrize("path", MOST)
def test_a_warm_request_passes_few_files_in_few_moves(
    counted: dict[str, tuple[int, int]], path: str
) -> None:
    files, moves = counted[path]

    assert files <= MOST[path][0]
    assert moves <= MOST[path][1]


def function_of(file: str, source: str, **known: Callable[[], object]) -> Callable[[], object]:
    """Return the function `f` of a source as if it stood in a file."""
    names: dict[str, Callable[[], object]] = {**known}
    exec(compile(source, str(ROOT / file), "exec"), names)
    return names["f"]


def test_a_move_is_control_coming_into_another_of_our_files() -> None:
    inner = function_of("models/inner.py", "def f(): g(); g()\ndef g(): pass")
    foreign = function_of("tests/foreign.py", "def f(): inner()", inner=inner)
    outer = function_of(
        "service/outer.py", "def f(): inner(); foreign(); f2()\ndef f2(): pass",
        inner=inner, foreign=foreign,
    )  # fmt: skip
    tracer = Tracer()
    before = sys.getprofile()
    sys.setprofile(tracer)
    try:
        outer()
        tracer.is_on = True
        outer()
        tracer.is_on = False
        outer()
    finally:
        sys.setprofile(before)

    passage = tracer.take()

    assert passage.files == {"service/outer.py": 3, "models/inner.py": 2}
    assert passage.moves == {
        ("service/outer.py", "models/inner.py"): 2,
        ("models/inner.py", "service/outer.py"): 2,
    }
    assert passage.move_count == 4
    assert tracer.take().move_count == 0
