from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving.report import (
    MISSING,
    SERVING,
    comparison,
    markers,
    shown,
    write_between_markers,
)
from benchmarks.serving.workloads import NAMES

ROOT = Path(__file__).parents[2]
START, END = markers(SERVING)
FIGURES = {
    "ours": {"W1 @ 1": 3000.0, "alone p99": 4.0, "flood p99": 8.0, "flood rate": 30.0},
    "echo": {"W1 @ 1": 6000.0},
    "engine": {"W1 @ 1": 4000.0},
    "fastapi": {"W1 @ 1": 2000.0, "flood rate": 25.0},
    "mosec": {"W1 @ 1": 1000.0, "flood rate": 20.0},
}


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, MISSING), (12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (0.987, "0.99")],
)
def test_numbers_show_the_digits_that_count(value: float | None, text: str) -> None:
    assert shown(value) == text


def test_comparison_names_the_best_rival_and_the_shares_of_the_limits() -> None:
    rows = rows_of(comparison("Title", FIGURES, NAMES, {}, {}))

    assert ["W1 @ 1", "FastAPI", "1.50", "0.50", "0.75"] in rows
    assert ["W3 @ 4 while polled", "FastAPI", "1.20", MISSING, MISSING] in rows


def test_comparison_shows_how_much_a_flood_delays_safety_checks() -> None:
    rows = rows_of(comparison("Title", FIGURES, NAMES, {}, {}))

    assert ["this service", MISSING, "4.00", MISSING, "8.00", "2.00", "30.0"] in rows


def test_comparison_says_who_is_missing_and_why() -> None:
    text = comparison("Title", FIGURES, NAMES, {"Ray Serve": "no room"}, {"FastAPI": "1 late"})

    assert "- Ray Serve: not measured: no room." in text
    assert "- FastAPI: incomplete: 1 late." in text


def test_report_replaces_what_is_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    path.write_text(f"before\n{START}\nold\n{END}\nafter\n")

    write_between_markers(path, "new")

    assert path.read_text() == f"before\n{START}\n\nnew\n\n{END}\nafter\n"


def test_a_file_without_markers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    path.write_text(f"before\n{START}\n")

    with pytest.raises(ValueError, match="lacks the markers"):
        write_between_markers(path, "new")

    assert path.read_text() == f"before\n{START}\n"


def test_the_documentation_has_the_markers() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()

    assert text.count(START) == text.count(END) == 1
