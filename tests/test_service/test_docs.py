"""The documentation names all there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.safety import RULES
from service.errors import SERVICE_ERRORS
from service.http.contract import OUTPUTS
from service.http.endpoints import PATHS
from service.settings import PREFIX, Settings
from tests.test_service.test_telemetry.test_metrics import VRAM, Read

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "SECURITY.md")), *(ROOT / "docs").rglob("*.md")]


def text_of(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def everything() -> str:
    return "\n".join(path.read_text() for path in PAGES)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{PREFIX}{name.upper()}`" in text_of("settings.md")


def test_no_setting_is_documented_that_is_not_there() -> None:
    named = set(re.findall(rf"{PREFIX}([A-Z_]+)", everything()))

    assert named <= {name.upper() for name in Settings.model_fields}


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of all tables' rows, titles included."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


def quoted(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


FAMILIES = {
    f"{family.name}_total" if family.type == "counter" else family.name: family
    for family in Read(VRAM).registry.collect()
}


METRIC = r"`(world_model|process)_\w+`$"


def values_of(label: str, metric: str) -> set[str]:
    return {sample.labels[label] for sample in FAMILIES[metric].samples if label in sample.labels}


def test_the_table_of_metrics_lists_all_with_type_labels_unit_and_question() -> None:
    rows = [row for row in rows_of(text_of("metrics.md")) if re.match(METRIC, row[0])]

    documented = {name.strip("`"): (kind, quoted(labels)) for name, kind, _, labels, _ in rows}
    true = {
        name: (family.type, {label for s in family.samples for label in s.labels} - {"le"})
        for name, family in FAMILIES.items()
    }
    assert documented == true
    assert len(rows) == len(FAMILIES)
    assert all(unit and question.endswith("?") for _, _, unit, _, question in rows)


@pytest.mark.parametrize(
    ("title", "label", "metric"),
    [
        ("`endpoint`", "endpoint", "world_model_requests_total"),
        ("`code`", "code", "world_model_requests_total"),
        ("`endpoint` of outcomes", "endpoint", "world_model_outcomes_total"),
        ("`outcome`", "outcome", "world_model_outcomes_total"),
        ("`stage`", "stage", "world_model_stage_seconds"),
        ("`class`", "class", "world_model_queue_depth"),
        ("`reason`", "reason", "world_model_rejected_total"),
        ("`kind` of engine errors", "kind", "world_model_engine_errors_total"),
        ("`kind` of memory", "kind", "world_model_vram_bytes"),
        ("`component`", "component", "world_model_vram_budget_bytes"),
        ("`verdict`", "verdict", "world_model_safety_verdicts_total"),
    ],
    ids=lambda given: given.strip("`"),
)
def test_the_tables_of_labels_list_exactly_the_values_there_are(
    title: str, label: str, metric: str
) -> None:
    table = text_of("metrics.md").partition(f"\n| {title} | |\n")[2].partition("\n\n")[0]

    documented = [value for row in rows_of(table) for value in quoted(row[0])]

    assert sorted(documented) == sorted(values_of(label, metric))


def test_no_metric_is_documented_that_is_not_there() -> None:
    names = {family.name for family in FAMILIES.values()}
    packages = {"world_model_client", "world_model_service"}
    named = set(re.findall(r"\b(world_model_[a-z_]+)", everything())) - packages

    suffixes = ("_total", "_bucket", "_sum", "_count", "")
    known = {f"{name}{suffix}" for name in names for suffix in suffixes}
    assert named <= known


@pytest.mark.parametrize("path", PATHS)
def test_every_endpoint_is_documented(path: str) -> None:
    assert re.search(rf"`(GET|POST) {path}`", text_of("http.md"))


@pytest.mark.parametrize("error", SERVICE_ERRORS, ids=lambda error: error.code)
def test_every_error_code_is_documented_with_its_status(error: type) -> None:
    row = rf"\| `{error.code}` \| {error.status} \|"  # type: ignore[attr-defined]
    assert re.search(row, text_of("http.md"))


def test_every_output_and_every_rule_is_documented() -> None:
    for name in (*OUTPUTS, *RULES):
        assert f"`{name}`" in text_of("http.md"), name


def heading_links(page: Path) -> set[str]:
    """Return what links to the headings of a page end in."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not heading or heading in heading_links(linked), target


def test_every_page_of_decisions_is_in_their_index() -> None:
    folder = ROOT / "docs" / "decisions"
    named = re.findall(r"\]\((\w+\.md)\)", (folder / "README.md").read_text())

    assert sorted(named) == sorted(path.name for path in folder.iterdir() if path.stem != "README")
