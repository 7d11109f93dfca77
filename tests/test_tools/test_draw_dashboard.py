"""The command that draws the dashboard says what it needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import pytest

from tools import draw_dashboard
from tools.draw_dashboard import main, missing


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["draw_dashboard", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def lacking(*absent: str) -> Callable[[str], ModuleSpec | None]:
    return lambda name: None if name in absent else ModuleSpec(name, None)


@pytest.mark.parametrize(
    ("absent", "named"),
    [(["pytest"], "pytest"), (["matplotlib", "pytest"], "matplotlib and pytest")],
    ids=["one", "both"],
)
def test_missing_packages_are_named_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, absent: list[str], named: str
) -> None:
    monkeypatch.setattr(draw_dashboard, "find_spec", lacking(*absent))

    assert run(monkeypatch) == f"Error: drawing needs {named}: pip install -e '.[dev,training]'"


def test_a_missing_prometheus_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)

    assert run(monkeypatch) == (
        "Error: drawing needs the program prometheus: apt-get install prometheus (Debian)"
    )


def test_nothing_is_missing_where_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    assert missing() is None


@pytest.mark.parametrize("given", ["14", "3601", "-1", "nan", "soon"])
def test_too_short_a_time_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    assert run(monkeypatch, f"--seconds={given}") == 2
    assert f"'{given}' is not a number of seconds from 15 to 3600" in capsys.readouterr().err


def test_it_can_be_imported_without_what_it_needs() -> None:
    absent = "import sys; sys.modules.update(matplotlib=None, PIL=None, pytest=None)"

    subprocess.run([sys.executable, "-c", f"{absent}; import tools.draw_dashboard"], check=True)
