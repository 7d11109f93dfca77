"""One version for all, which is that of the newest section of CHANGELOG.md."""

from __future__ import annotations

import datetime
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

import service
from service.cli import main as world_model
from tools import release as tool
from tools.release import CHANGELOG, ROOT, STATED, UNRELEASED, parsed, release, sections, stated

TODAY = datetime.date(2030, 1, 31)
CHANGES = f"# Changelog\n\n{UNRELEASED}\n- One.\n- Two.\n\n## 0.1.0 - 2026-11-26\n\n- All.\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that state the version, at release 0.1.0 and with two lines to release."""
    for path in STATED:
        copy = tmp_path / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / path).read_text().replace(service.__version__, "0.1.0"))
    (tmp_path / CHANGELOG).write_text(CHANGES)
    return tmp_path


def texts(root: Path) -> dict[str, str]:
    return {path: (root / path).read_text() for path in (CHANGELOG, *STATED)}


def test_the_version_is_that_of_the_newest_section() -> None:
    newest = sections((ROOT / CHANGELOG).read_text())[0]

    assert parsed(service.__version__) == newest.version


def test_sections_go_down_in_version_and_in_date() -> None:
    found = sections((ROOT / CHANGELOG).read_text())

    assert all(newer.version > older.version for newer, older in pairwise(found))
    assert all(newer.date >= older.date for newer, older in pairwise(found))
    assert len({section.version for section in found}) == len(found)


@pytest.mark.parametrize("path", STATED)
def test_every_file_that_states_the_version_states_the_same(path: str) -> None:
    assert set(stated(path, (ROOT / path).read_text())) == {service.__version__}


def test_the_distribution_takes_its_version_from_the_code() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert project["project"]["dynamic"] == ["version"]
    assert ROOT / project["tool"]["hatch"]["version"]["path"] == Path(service.__file__)


def test_the_command_tells_its_version() -> None:
    result = CliRunner().invoke(world_model, ["--version"], prog_name="world-model")

    assert result.output == f"world-model, version {service.__version__}\n"


@pytest.mark.parametrize("version", ["0.1.1", "0.2.0", "1.0.0"])
def test_a_release_names_its_section_and_raises_the_version_everywhere(
    checkout: Path, version: str
) -> None:
    changed = release(checkout, version, TODAY)

    after = texts(checkout)
    assert changed == list(after)
    assert after[CHANGELOG] == CHANGES.replace(
        UNRELEASED, f"{UNRELEASED}\n## {version} - 2030-01-31\n"
    )
    assert all(set(stated(path, after[path])) == {version} for path in STATED)


def test_a_release_changes_no_other_number(checkout: Path) -> None:
    path = checkout / "docs/deployment.md"
    path.write_text(path.read_text() + "Since 0.1.0, on 127.0.0.1:\n")

    release(checkout, "0.2.0", TODAY)

    assert path.read_text().endswith("Since 0.1.0, on 127.0.0.1:\n")


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("0.1.0", "does not follow 0.1.0: give one of 0.1.1, 0.2.0, 1.0.0"),
        ("0.3.0", "does not follow"),
        ("0.0.9", "does not follow"),
        ("v0.2.0", "'v0.2.0' is no version"),
        ("0.2", "'0.2' is no version"),
        ("0.02.0", "is no version"),
        ("0.2.0\n", "is no version"),
        ("", "is no version"),
    ],
)
def test_a_version_that_does_not_follow_is_refused(
    checkout: Path, version: str, reason: str
) -> None:
    before = texts(checkout)

    with pytest.raises(ValueError, match=reason):
        release(checkout, version, TODAY)

    assert texts(checkout) == before


@pytest.mark.parametrize(
    ("changelog", "reason"),
    [
        (CHANGES.replace("- One.\n- Two.\n", ""), "nothing under '## Unreleased'"),
        (CHANGES.replace(UNRELEASED, ""), "CHANGELOG.md begins with '## 0.1.0"),
        (CHANGES.replace("2026-11-26", "soon"), "'## 0.1.0 - soon' is not of the form"),
        ("# Changelog\n", "CHANGELOG.md begins with ''"),
        (f"{UNRELEASED}\n- One.\n", "CHANGELOG.md has no release"),
    ],
    ids=["nothing to release", "no section for it", "no date", "no section", "no release"],
)
def test_a_changelog_that_is_not_ready_is_refused(
    checkout: Path, changelog: str, reason: str
) -> None:
    (checkout / CHANGELOG).write_text(changelog)
    before = texts(checkout)

    with pytest.raises(ValueError, match=reason):
        release(checkout, "0.2.0", TODAY)

    assert texts(checkout) == before


@pytest.mark.parametrize("path", STATED)
@pytest.mark.parametrize(("other", "places"), [("0.0.9", 1), ("unknown", 0)])
def test_a_file_that_states_another_version_is_named_and_nothing_is_changed(
    checkout: Path, path: str, other: str, places: int
) -> None:
    wrong = checkout / path
    text = tool.pattern(path).sub(
        lambda match: match[0].replace("0.1.0", other), wrong.read_text(), places
    )
    wrong.write_text(text)
    before = texts(checkout)

    with pytest.raises(ValueError, match=path):
        release(checkout, "0.2.0", TODAY)

    assert texts(checkout) == before


def test_the_tool_says_what_is_left_to_do_or_what_is_wrong(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tool, "ROOT", checkout)

    good = CliRunner().invoke(tool.main, ["0.2.0"])
    bad = CliRunner().invoke(tool.main, ["0.2.0"])

    assert good.exit_code == 0
    assert "git commit -am 'Release 0.2.0'" in good.output
    assert (bad.exit_code, bad.output.partition(":")[0]) == (1, "Error")
