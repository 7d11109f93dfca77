"""Mutation testing finds what no test notices, and its plan speaks of what there is."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tools import mutants
from tools.mutants import ROOT, Group, main, read_plan
from tools.survivors import Equivalent, undecorated

GROUPS, EQUIVALENTS = read_plan(ROOT / "tools" / "mutants.toml")

MODULE = '''"""Two gaps."""


class Gap:
    def __init__(self, metres):
        self.metres = metres

    @property
    def is_wide(self):
        return self.metres >= 2


def gap(one, other):
    return abs(one - other)
'''
TESTS = """from models.gaps import Gap, gap

WIDE, NARROW = Gap(9), Gap(1)


def test_gap():
    assert gap(5, 3) == 2


def test_width():
    assert WIDE.is_wide
    assert not NARROW.is_wide
"""
PLAN = """
[groups.gaps]
modules = ["models/gaps.py"]
tests = ["tests/test_gaps.py"]

[[equivalent]]
file = "models/gaps.py"
function = "Gap.is_wide"
before = "return self.metres >= 2"
after = "return self.metres >= 3"
reason = "an example"

[[equivalent]]
file = "models/gaps.py"
function = "gap"
before = "return 1"
after = "return 2"
reason = "it was there once"
"""


@pytest.mark.parametrize("group", GROUPS.values(), ids=lambda group: group.name)
def test_the_plan_names_modules_that_there_are(group: Group) -> None:
    assert [name for name in group.modules if not (ROOT / name).is_file()] == []
    assert [name for name in group.deselect if not (ROOT / name.split("::")[0]).is_file()] == []
    assert any((ROOT / name).is_file() for name in group.tests)


@pytest.mark.parametrize("known", EQUIVALENTS, ids=lambda x: f"{x.function}: {x.after}")
def test_the_plan_excuses_lines_that_there_are(known: Equivalent) -> None:
    lines = [line.strip() for line in (ROOT / known.file).read_text().splitlines()]

    assert known.before in " ".join(lines)
    assert known.reason
    assert any(known.file in group.modules for group in GROUPS.values())


def test_properties_are_written_so_that_they_can_be_changed() -> None:
    changed = undecorated(MODULE)
    names: dict[str, Any] = {}
    exec(changed, names)

    assert "@property" not in changed
    assert names["Gap"](2).is_wide is True


@pytest.mark.slow
def test_survivors_are_listed_and_counted_and_excused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "models/__init__.py": "",
        "models/gaps.py": MODULE,
        "service/__init__.py": "",
        "tests/test_gaps.py": TESTS,
        "tools/mutants.toml": PLAN,
        "pyproject.toml": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    monkeypatch.setattr(mutants, "WORK", tmp_path / "work")

    outcome = CliRunner().invoke(main, ["--minutes", "2"], catch_exceptions=False)

    assert "models/gaps.py:10 in Gap.is_wide: survived\n- return self.metres >= 2" in outcome.output
    assert "+ return self.metres > 2\n" in outcome.output
    assert "return self.metres >= 3" not in outcome.output
    assert "there is no such change any more: Equivalent(file='models/gaps.py', function='gap'" in (
        outcome.output
    )
    assert "| `models/gaps.py` | 3 | 4 | 75.0% | 0 | 1 | 0 |" in outcome.output
    assert (tmp_path / "models" / "gaps.py").read_text() == MODULE
