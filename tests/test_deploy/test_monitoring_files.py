"""Rules and dashboard: valid, tested, and about metrics that exist."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.monitoring import (
    DASHBOARD,
    PROMETHEUS,
    RULES,
    Series,
    dashboard,
    queries,
    rules,
    selectors,
)
from tests.test_service.test_telemetry.test_metrics import VRAM, Read
from tools.panels import draw

DOCS = Path(__file__).parents[2] / "docs"
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool (Debian's package prometheus)"
)


ALERTS = rules("alert")
RECORDED = rules("record")
SELECTED = {
    selector: matchers
    for expression in [
        *ALERTS.values(),
        *RECORDED.values(),
        *(query.expression for query in queries()),
    ]
    for selector, matchers in selectors(expression).items()
}


def promtool(*arguments: str | Path) -> None:
    result = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_the_configuration_is_valid() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yml")


@needs_promtool
def test_the_rules_are_valid() -> None:
    promtool("check", "rules", *RULES)


@needs_promtool
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_the_rules_do_what_their_tests_say(path: Path) -> None:
    promtool("test", "rules", path)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_seen_firing_in_a_test(alert: str) -> None:
    text = "\n".join(path.read_text() for path in RULE_TESTS)

    assert re.search(rf"alertname: {alert}\n +eval_time: \w+\n +exp_alerts:", text)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_leads_to_its_heading_in_the_runbook(alert: str) -> None:
    headings = re.findall(r"^## (\w+)$", (DOCS / "operations.md").read_text(), re.MULTILINE)
    text = (PROMETHEUS / "rules" / "alerts.yml").read_text()

    assert alert in headings
    assert f"runbook: docs/operations.md#{alert.lower()}\n" in text.partition(f"{alert}\n")[2]


def test_every_rule_was_read_by_these_tests() -> None:
    text = "\n".join(path.read_text() for path in RULES)

    assert len(ALERTS) + len(RECORDED) == len(
        re.findall(r"^ +- (alert|record): ", text, re.MULTILINE)
    )


def test_the_runbook_has_no_alert_that_is_not_there() -> None:
    named = set(re.findall(r"WorldModel[A-Z]\w+", (DOCS / "operations.md").read_text()))

    assert named <= set(ALERTS)


def selects(labels: dict[str, str], matchers: list[tuple[str, str, str]]) -> bool:
    for label, operator, wanted in matchers:
        pattern = wanted if "~" in operator else re.escape(wanted)
        if (re.fullmatch(pattern, labels[label]) is None) != operator.startswith("!"):
            return False
    return True


@pytest.mark.parametrize("selector", [s for s in SELECTED if s.startswith("world_model_")])
def test_every_selector_finds_series_that_exist_from_the_start(selector: str) -> None:
    families = Read(VRAM).registry.collect()
    name = selector.partition("{")[0]

    found = [s.labels for family in families for s in family.samples if s.name == name]

    assert any(selects(labels, SELECTED[selector]) for labels in found)


@pytest.mark.parametrize("selector", [s for s in SELECTED if s.startswith("world_model_")])
def test_every_selected_metric_is_documented(selector: str) -> None:
    name = re.sub(r"_(bucket|sum|count)$", "", selector.partition("{")[0])

    assert f"| `{name}` |" in (DOCS / "metrics.md").read_text()


def test_every_other_selected_metric_is_recorded_or_of_the_process() -> None:
    names = {selector.partition("{")[0] for selector in SELECTED}
    ours = {sample.name for family in Read().registry.collect() for sample in family.samples}

    assert {name for name in names if not name.startswith("world_model_")} - ours <= set(RECORDED)


DOWN = """
      - series: up{job="world-model", instance="well"}
        values: 1x20
      - series: world_model_ready{job="world-model", instance="well"}
        values: 1x20
      - series: up{job="world-model", instance="other"}
        values: 1x4 0x16
      - series: world_model_ready{job="world-model", instance="other"}
        values: 1x4 stale
"""


def asked(*series: tuple[str, str, int]) -> str:
    """Return outcomes by instance, outcome and requests every 15 s."""
    return "".join(
        "\n      - series: world_model_outcomes_total"
        f'{{job="world-model", instance="{instance}", outcome="{outcome}"}}'
        f"\n        values: 0+{count}x20"
        for instance, outcome, count in series
    )


FAILS = asked(
    ("well", "answered", 10_000),
    ("other", "answered", 50),
    ("other", "late", 25),
    ("other", "failed", 25),
    ("other", "rejected", 100),
    ("other", "impossible_deadline", 9_000),
)
IMPOSSIBLE = asked(("a", "impossible_deadline", 10), ("a", "answered", 10), ("a", "late", 0))
LOADED = """
      - series: safety_check:p99_bound_seconds
        values: 0.05x20
"""
FIRING = """
      - series: ALERTS{alertname="WorldModelDown", alertstate="firing"}
        values: 1x20
      - series: ALERTS{alertname="WorldModelNotReady", alertstate="pending"}
        values: 1x20
      - series: ALERTS{alertname="OfSomebodyElse", alertstate="firing"}
        values: 1x20
"""


@needs_promtool
@pytest.mark.parametrize(
    ("title", "series", "expected"),
    [
        ("Ready", DOWN, 0),
        ("Ready", DOWN.replace("1x4 0x16", "1x20").replace("1x4 stale", "0x20"), 0),
        ("Ready", DOWN.replace("1x4 0x16", "1x20").replace("1x4 stale", "1x20"), 1),
        ("Ready", DOWN.replace("up{", "up_of_others{").replace("ready{", "ready_of_others{"), 0),
        ("Failed requests", FAILS, 0.25),
        ("Failed requests", IMPOSSIBLE, 0),
        ("Firing alerts", LOADED, 0),
        ("Firing alerts", LOADED + FIRING, 1),
        ("Firing alerts", DOWN, None),
    ],
    ids=[
        *("one is down", "one is not ready", "all are ready", "none is there"),
        *("one of two fails", "impossible deadlines"),
        *("none fires", "one fires", "no rules are loaded"),
    ],
)
def test_a_panel_at_the_top_hides_no_instance_that_fails(
    tmp_path: Path, title: str, series: str, expected: float | None
) -> None:
    (query,) = [query for query in queries() if query.panel["title"] == title]
    samples = "[]" if expected is None else f"[{{labels: '{{}}', value: {expected}}}]"
    # Prometheus adds in any order, so that the last bits differ from run to run.
    expression = f"round({query.expression}, 0.0078125)".replace("'", "''")
    text = f"""
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:{series}
    promql_expr_test:
      - expr: '{expression}'
        eval_time: 4m
        exp_samples: {samples}
"""
    (tmp_path / "test.yml").write_text(text)

    promtool("test", "rules", tmp_path / "test.yml")


def test_every_alternative_of_a_pattern_is_a_value_that_exists() -> None:
    """`a|typo` would find series all the same."""
    families = list(Read(VRAM).registry.collect())
    values = {v for family in families for s in family.samples for v in s.labels.values()}

    wanted = {
        alternative
        for selector, matchers in SELECTED.items()
        if selector.startswith("world_model_")
        for _, operator, value in matchers
        for alternative in (value.split("|") if "~" in operator else [value])
    }

    assert [w for w in wanted if not any(re.fullmatch(w, value) for value in values)] == []


def test_the_parts_of_the_dashboard_are_those_that_operators_ask_for() -> None:
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]

    assert rows == ["Traffic and errors", "Latency", "Batching", "Device", "Safety", "Model"]


def test_no_two_panels_overlap() -> None:
    cells = [
        (x, y)
        for panel in dashboard()["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(cells) == len(set(cells))


def test_every_panel_says_what_it_shows() -> None:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]

    assert [panel["title"] for panel in panels if not panel["description"].endswith(".")] == []


@pytest.mark.parametrize("count", [0, 3], ids=["empty", "full"])
def test_every_panel_can_be_drawn(tmp_path: Path, count: int) -> None:
    labels = [
        {"le": bound, "checkpoint": "c", "version": "v", "device": "cpu", "instance": "i"}
        for bound in ("0.5", "1.0", "+Inf")[:count]
    ]
    series = [Series("name", one, [0.0, 1.0, 2.0], [0.0, 0.5, math.nan]) for one in labels]
    ready = Series("", {}, [0.0, 1.0], [0.0, 1.0])
    panels = [
        (panel, series or ([ready] if panel["title"] == "Ready" else []))
        for panel in dashboard()["panels"]
        if panel["type"] != "row"
    ]

    draw(panels, tmp_path / "new" / "dashboard.png", "Title")

    assert (tmp_path / "new" / "dashboard.png").read_bytes().startswith(b"\x89PNG")


def test_the_drawn_dashboard_is_in_the_docs_and_not_heavy() -> None:
    assert "](plots/dashboard.png)" in (DOCS / "operations.md").read_text()
    assert (DOCS / "plots" / "dashboard.png").stat().st_size < 300_000


def test_the_dashboard_names_no_data_source_of_one_machine() -> None:
    uids = set(re.findall(r'"uid": "([^"]+)"', DASHBOARD.read_text()))

    assert uids == {"${datasource}", "world-model"}
