"""What the Makefile would do: its commands are those that README and docs name."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def commands(*arguments: str) -> str:
    """Return what make would run, as if nothing were installed yet, in one line."""
    result = subprocess.run(
        ["make", "--dry-run", "--always-make", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return " ".join(result.stdout.replace("\\\n", " ").split())


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["serve"], ["pip install", ".venv/bin/world-model serve"]),
        (["serve", "ARGS=--port 9000"], [".venv/bin/world-model serve --port 9000"]),
        (["test"], ["pip install", "ruff check .", "bin/mypy", "lint-imports", "-m pytest"]),
        (["train", "SEED=1"], ["world-model collect data/train --seed 1 echo"]),
        (["train", "TRANSITIONS=500"], ["world-model collect data/train --transitions 500 echo"]),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else None,
)
def test_a_target_runs_what_the_readme_says(arguments: list[str], wanted: list[str]) -> None:
    found = commands(*arguments)

    places = [found.find(command) for command in wanted]
    assert -1 not in places, found
    assert places == sorted(places)


def test_training_runs_the_commands_of_its_page() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    block = page.partition("```bash\n")[2].partition("```")[0]
    collect, train, evaluate, _ = [line.partition("#")[0].split() for line in block.splitlines()]

    found = commands("train")

    assert f"{' '.join(collect)} echo" in found
    assert f"{' '.join(train)} echo" in found
    assert f"{' '.join(evaluate[:6])} " in found
    assert evaluate[-1] in found
