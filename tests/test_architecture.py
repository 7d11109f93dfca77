"""`docs/architecture.md` is true: its files exist, and its arrows are those of the code."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
DOCUMENTS = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md"]
PACKAGES = ("service", "models", "training", "world_model_client")
OUTSIDE = ("benchmarks", "examples", "tests", "tools")

FORMER = ("models.ensemble", "models.training", "models.world_model")
"""Old names; they are in no room."""

ROOM_OF = {
    "service.__main__": "cli",
    "service.client": "client",
    "service.setting_checks": "settings",
    "world_model_client": "client",
}
"""Rooms of modules that have another name."""


def room_of(module: str) -> str:
    """Return a module's room: its folder, or one of the few files that are joined by name."""
    first, _, rest = module.partition(".")
    second = rest.partition(".")[0]
    above = f"{first}.{second}"
    if first in OUTSIDE:
        return first
    for name in (first, above):
        if name in ROOM_OF:
            return ROOM_OF[name]
    if first == "models" and above not in ("models.importing", *folders("models")):
        return "models"
    return second or first


def folders(package: str) -> Iterator[str]:
    """Yield the packages in a package's folder."""
    for path in sorted((ROOT / package).iterdir()):
        if (path / "__init__.py").exists():
            yield f"{package}.{path.name}"


@cache
def imports() -> set[tuple[str, str]]:
    """Return which room imports which, by the code.

    `service` itself is no room: it holds the release's number, which any room may tell.
    """
    graph = grimp.build_graph(*PACKAGES, *OUTSIDE, cache_dir=None)
    found = set()
    for module in graph.modules:
        if module.partition(".")[0] not in OUTSIDE and not module.startswith(FORMER):
            for imported in graph.find_modules_directly_imported_by(module) - {"service"}:
                found.add((room_of(module), room_of(imported)))
    return {(one, other) for one, other in found if one != other}


def rooms() -> dict[str, tuple[str, set[str]]]:
    """Return each room's path and the rooms it imports, by the page."""
    found = {}
    for line in PAGE.partition("## The rooms")[2].partition("## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            path = cells[0].strip("`")
            name = "client" if path.startswith("client/") else Path(path).stem
            found[name] = path, set(re.findall(r"`(\w+)`", cells[-1]))
    return found


def arrows() -> set[tuple[str, str]]:
    """Return the page's arrows, and those that follow from them."""
    block = PAGE.partition("```arrows\n")[2].partition("```")[0]
    found = set()
    for line in block.splitlines():
        for above, below in pairwise(line.split(" > ")):
            found |= set(product(above.split(", "), below.split(", ")))
    while more := {(a, d) for (a, b), (c, d) in product(found, found) if b == c} - found:
        found |= more
    return found


def test_no_room_is_above_itself() -> None:
    assert {one for one, other in arrows() if one == other} == set()


def test_every_import_between_rooms_follows_the_arrows() -> None:
    assert imports() - arrows() == set()


def test_the_table_names_exactly_the_rooms_that_each_one_imports() -> None:
    stated = {(name, other) for name, (_, others) in rooms().items() for other in others}

    assert stated == imports()


def test_every_folder_of_code_is_a_room_of_the_table() -> None:
    paths = {path.rstrip("/") for path, _ in rooms().values()}
    there = {
        name.replace(".", "/")
        for package in ("service", "models", "training")
        for name in folders(package)
        if name not in FORMER
    }

    assert there <= paths
    assert {room for arrow in arrows() for room in arrow} == set(rooms())


@pytest.mark.parametrize("package", ["service", "models"])
def test_few_files_lie_beside_the_rooms(package: str) -> None:
    modules = {f"{package}.{path.stem}" for path in (ROOT / package).glob("*.py")}

    assert len(modules - set(FORMER)) <= 10


@cache
def contracts() -> list[dict[str, Any]]:
    """Return the contracts of import-linter."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return list(table["contracts"])


def forbidden() -> set[tuple[str, str]]:
    """Return which room may not import which, by a contract of its own."""
    pairs = (
        (source, target)
        for contract in contracts()
        if contract["type"] == "forbidden"
        for source, target in product(contract["source_modules"], contract["forbidden_modules"])
        if source.startswith("service.") and target.startswith("service.")
    )
    return {(room_of(source), room_of(target)) for source, target in pairs}


def layers() -> list[list[list[str]]]:
    """Return the rooms of each layers contract of import-linter, from the top."""
    return [
        [re.findall(r"[\w.]+", layer) for layer in contract["layers"]]
        for contract in contracts()
        if contract["type"] == "layers"
    ]


def test_the_contracts_of_import_linter_say_what_the_page_says() -> None:
    allowed = arrows() | forbidden()
    for contract in layers():
        for above, below in pairwise(contract):
            pairs = {
                (room_of(one), room_of(other))
                for one, other in product(above, below)
                if one.partition(".")[0] == other.partition(".")[0]
            }
            assert {(one, other) for one, other in pairs if one != other} <= allowed

    assert layers()
    assert not forbidden() & arrows()


@pytest.mark.parametrize("name", [name for name, (path, _) in rooms().items() if path[-1] == "/"])
def test_a_room_says_what_comes_in_and_out_and_what_it_may_touch(name: str) -> None:
    path = rooms()[name][0]

    text = ast.get_docstring(ast.parse((ROOT / path / "__init__.py").read_text())) or ""

    assert re.search(r"\bIn( and out)?:", text)
    assert re.search(r"\b[Oo]ut:", text)
    assert re.search(r"\b(touch|touches)\b|only room", text, re.IGNORECASE)


TOP = "service|models|training|client|tests|tools|benchmarks|deploy|docs"
FILE = re.compile(rf"`((?:{TOP})/[^`*\s]*)`")


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    missing = {name for name in FILE.findall(page.read_text()) if not (ROOT / name).exists()}

    assert missing == set()


def test_the_eight_stops_name_their_files() -> None:
    table = PAGE.partition("## One request in eight stops")[2].partition("\n## ")[0]
    stops = re.findall(r"^\| (\d)\. .*\| (.+) \|$", table, re.MULTILINE)

    assert [number for number, _ in stops] == list("12345678")
    assert all(FILE.search(files) for _, files in stops)
