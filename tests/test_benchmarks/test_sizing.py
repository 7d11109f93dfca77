from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import sizing
from benchmarks.serving.candidates import Files
from benchmarks.serving.report import markers
from benchmarks.sizing import (
    CANDIDATES,
    CORES,
    MARKERS,
    MEMBERS,
    PAGE,
    RATES_HZ,
    Cost,
    Fit,
    Sized,
    first_try,
    fitted,
    main,
    most_that_fit,
    report,
    service_of,
)

COST = Cost(fixed_s=0.002, row_steps_per_s=32_000)


def plan_s(cost: Cost, candidates: int) -> float:
    return cost.fixed_s + candidates * 16 / cost.row_steps_per_s


def sized(fits: Mapping[tuple[int, float], Fit]) -> Sized:
    return Sized({k: plan_s(COST, k) for k, _ in fits}, fits)


def test_the_cost_is_the_line_through_what_plans_took() -> None:
    found = fitted({k: plan_s(COST, k) for k in (16, 64, 1024)})

    assert found is not None
    assert found.fixed_s == pytest.approx(COST.fixed_s)
    assert found.row_steps_per_s == pytest.approx(COST.row_steps_per_s)


@pytest.mark.parametrize("times", [{16: 0.1}, {16: 0.2, 64: 0.1}], ids=["one point", "falling"])
def test_times_that_do_not_rise_have_no_cost(times: dict[int, float]) -> None:
    assert fitted(times) is None


def test_a_fixed_time_is_never_below_zero() -> None:
    found = fitted({16: 0.001, 64: 0.1})

    assert found is not None
    assert found.fixed_s == 0


@pytest.mark.parametrize(
    ("candidates", "rate_hz", "planners"),
    [(60, 10.0, 2), (60, 20.0, 1), (60, 30.0, 0), (1024, 10.0, 0), (16, 10.0, 8)],
)
def test_the_formula_keeps_four_fifths_of_the_time_busy(
    candidates: int, rate_hz: float, planners: int
) -> None:
    assert COST.planners(candidates, rate_hz) == planners


def test_the_search_goes_down_from_more_than_can_fit() -> None:
    assert first_try(0.020, 10.0) == 8  # five plans fill a period
    assert first_try(0.099, 10.0) == 2
    assert first_try(0.101, 10.0) == 0


def test_the_first_number_that_fits_is_found_and_no_smaller_one_tried() -> None:
    tried = []

    def measure(planners: int) -> Fit | None:
        tried.append(planners)
        return Fit(planners, 90.0, 5.0) if planners <= 6 else None

    assert most_that_fit(10, measure) == Fit(6, 90.0, 5.0)
    assert tried == [10, 8, 6]


def test_every_number_is_tried_before_none_fits() -> None:
    tried = []

    assert most_that_fit(3, lambda planners: tried.append(planners)) == Fit(0)
    assert tried == [3, 2, 1]
    assert most_that_fit(0, lambda planners: Fit(planners, 1.0, 1.0)) == Fit(0)


def test_the_report_shows_costs_and_planners_by_cores_and_members() -> None:
    fits = {(16, 10.0): Fit(7, 81.2, 4.567), (1024, 10.0): Fit(0)}

    text = report({(1, 1): sized(fits), (1, 5): sized(fits), (2, 5): sized(fits)}, 10.0, 0.1)

    assert "| 1 | 5 | 10.0 | 514 | 2.0 | 32,000 |" in text
    assert "| 16 at 10 Hz | **7** / 8 (81.2; 4.57) | **7** / 8 (81.2; 4.57) |" in text
    assert "| 1024 at 10 Hz | **0** / 0 |" in text
    assert text.count("**Planners that fit on") == 2


@pytest.mark.parametrize(("busy", "is_told"), [(0.2, False), (7.0, True)])
def test_the_report_tells_whether_other_programs_ran_beside_it(busy: float, is_told: bool) -> None:
    text = report({(1, 1): sized({(16, 10.0): Fit(0)})}, 10.0, busy)

    assert f"before the start: {busy}" in text
    assert ("other programs ran beside it" in text) is is_told


def test_the_service_is_started_with_what_is_sized() -> None:
    command = service_of(3, 2).command(Files(Path("model"), Path(), {}), 8123)

    options = dict(zip(command[4::2], command[5::2], strict=True))
    assert (options["--members"], options["--threads"]) == ("3", "2")
    assert (options["--port"], options["--checkpoint"]) == ("8123", "model")


def test_only_a_full_run_writes_into_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page, (start, end) = tmp_path / "planning.md", markers(MARKERS)
    page.write_text(f"{start}\n{end}\n")
    monkeypatch.setattr(sizing, "PAGE", page)
    monkeypatch.setattr(sizing, "ROOT", tmp_path)
    asked = []

    def measured(
        candidates: list[int], rates_hz: list[float], members: int, cores: int, seconds: float
    ) -> Sized:
        asked.append((members, cores))
        return sized({(k, rate): Fit(1, 1.0, 1.0) for k in candidates for rate in rates_hz})

    monkeypatch.setattr(sizing, "measured", measured)
    part = CliRunner().invoke(main, ["--members", "5", "--cores", "1"])
    assert (part.exit_code, asked) == (0, [(5, 1)])
    assert page.read_text() == f"{start}\n{end}\n"

    whole = CliRunner().invoke(main, [])

    assert whole.exit_code == 0, whole.output
    assert asked[1:] == [(members, cores) for cores in CORES for members in MEMBERS]
    assert page.read_text().count("**1** / ") == len(CANDIDATES) * len(RATES_HZ) * len(asked[1:])


def test_the_page_has_the_markers() -> None:
    start, end = markers(MARKERS)

    assert PAGE.read_text().count(start) == PAGE.read_text().count(end) == 1
