"""Make the next release: name its section in CHANGELOG.md, and raise the version everywhere.

    python -m tools.release 0.2.0

What stood under "Unreleased" becomes the section of the release, with today's date (UTC). Then
the version is replaced in the files that state it, and what is left to do is printed. If anything
is wrong, nothing is changed. What a release is, and what its number means: docs/versions.md.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
CHANGELOG = "CHANGELOG.md"
UNRELEASED = "## Unreleased\n"

STATED = {
    "service/__init__.py": r'^__version__ = "{}"$',
    "client/world_model_client/__init__.py": r'^__version__ = "{}"$',
    "Dockerfile": r"world-model:{}-|VERSION={}$",
    "docker-compose.cpu.yml": r"IMAGE_TAG:-{}\}}",
    "docker-compose.override.yml": r"IMAGE_TAG:-{}\}}",
    "deploy/kubernetes/overlays/cpu/kustomization.yaml": r"newTag: {}-",
    "deploy/kubernetes/overlays/gpu/kustomization.yaml": r"newTag: {}-",
    "docs/deployment.md": r"world-model:{}-|IMAGE_TAG={}-",
    "docs/versions.md": r"world_model_(?:service|client)-{}-|IMAGE_TAG={}-\$",
}
"""By file, how it states the version of the release: a pattern, with `{}` for the number."""

_NUMBER = r"(?:0|[1-9]\d*)"
_VERSION = rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}"
_SECTION = re.compile(rf"^## ({_VERSION}) - (\d{{4}}-\d\d-\d\d)$")

Version = tuple[int, int, int]


@dataclass(frozen=True)
class Section:
    """A release as CHANGELOG.md has it."""

    version: Version
    date: datetime.date


def parsed(version: str) -> Version:
    """Return major, minor and patch.

    Raises:
        ValueError: It is not of the form 1.2.3, without leading zeros.
    """
    if not re.fullmatch(_VERSION, version):
        raise ValueError(f"{version!r} is no version: give three numbers, such as 1.2.3")
    major, minor, patch = map(int, version.split("."))
    return major, minor, patch


def written(version: Version) -> str:
    """Return the version as text."""
    return ".".join(map(str, version))


def sections(changelog: str) -> list[Section]:
    """Return the releases, in the order of the file.

    Raises:
        ValueError: The first section is not "Unreleased", or another heading is not a version with
            its date.
    """
    first, *others = re.findall(r"^## .*$", changelog, re.MULTILINE) or [""]
    if first != UNRELEASED.strip():
        raise ValueError(f"{CHANGELOG} begins with {first!r}, not with {UNRELEASED.strip()!r}")
    found = []
    for heading in others:
        match = _SECTION.match(heading)
        if match is None:
            raise ValueError(f"{CHANGELOG}: {heading!r} is not of the form '## 1.2.3 - 2026-01-31'")
        found.append(Section(parsed(match[1]), datetime.date.fromisoformat(match[2])))
    return found


def stated(path: str, text: str) -> list[str]:
    """Return the versions that a file of `STATED` states, in its order."""
    found = pattern(path).finditer(text)
    return [version for match in found for version in re.findall(_VERSION, match[0])]


def release(root: Path, version: str, today: datetime.date) -> list[str]:
    """Write the release into the files below `root`; return their names.

    Raises:
        ValueError: The version does not follow the last release's, there is nothing to release, or
            a file does not state the last release's version.
    """
    new = parsed(version)
    changelog = (root / CHANGELOG).read_text()
    releases = sections(changelog)
    if not releases:
        raise ValueError(f"{CHANGELOG} has no release that {version} could follow")
    last = releases[0].version
    if new not in _successors(last):
        allowed = ", ".join(map(written, _successors(last)))
        raise ValueError(f"{version} does not follow {written(last)}: give one of {allowed}")
    before, _, rest = changelog.partition(UNRELEASED)
    if rest.lstrip().startswith("## "):
        raise ValueError(f"{CHANGELOG} has nothing under {UNRELEASED.strip()!r}")
    texts = {CHANGELOG: f"{before}{UNRELEASED}\n## {version} - {today}\n{rest}"}
    for path in STATED:
        texts[path] = _raised(path, (root / path).read_text(), written(last), version)
    for path, text in texts.items():
        (root / path).write_text(text)
    return list(texts)


def _raised(path: str, text: str, old: str, new: str) -> str:
    found = stated(path, text)
    if set(found) != {old}:
        shown = ", ".join(sorted(set(found))) or "none"
        raise ValueError(f"{path} states {shown} as the version of the release, not {old}")
    return pattern(path).sub(lambda match: match[0].replace(old, new), text)


def pattern(path: str) -> re.Pattern[str]:
    """Return what a file of `STATED` states the version by, whatever version it is."""
    return re.compile(STATED[path].format(*[_VERSION] * STATED[path].count("{}")), re.MULTILINE)


def _successors(last: Version) -> tuple[Version, Version, Version]:
    major, minor, patch = last
    return (major, minor, patch + 1), (major, minor + 1, 0), (major + 1, 0, 0)


@click.command()
@click.argument("version")
def main(version: str) -> None:
    """Make VERSION the release of this checkout."""
    try:
        changed = release(ROOT, version, datetime.datetime.now(datetime.UTC).date())
    except ValueError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(f"{version} is in {', '.join(changed)}. What is left to do:")
    click.echo(f"  make test\n  git commit -am 'Release {version}'")


if __name__ == "__main__":
    main()
