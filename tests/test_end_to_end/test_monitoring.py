"""A real Prometheus with the repository's files beside the real service, under real traffic."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.http.endpoints import PATHS
from tests.monitoring import (
    Prometheus,
    Query,
    exposing,
    launch_prometheus,
    queries,
    rules,
    selectors,
)
from tests.test_end_to_end.conftest import Server, Start, free_port
from tests.test_service.test_telemetry.test_metrics import VRAM, Read

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs Debian's package prometheus"
)

EXAMPLES = Path(__file__).parents[2] / "examples"
ROUNDS = 20
QUERIES = queries()
RUNBOOK = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
RUNBOOK_QUERIES = sorted(set(re.findall(r"ask\s+'([^']+)'", RUNBOOK)))


@dataclass
class Asked:
    """What was sent and answered.

    Attributes:
        codes: Requests by endpoint and status.
        verdicts: Of safety checks.
    """

    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)

    def note(self, response: httpx.Response) -> int:
        path = response.request.url.path
        self.codes[path if path in PATHS else "other", response.status_code] += 1
        if "verdict" in response.text:
            self.verdicts[response.json()["verdict"]] += 1
        return response.status_code


@dataclass(frozen=True)
class Watched:
    """A service that was asked, and the Prometheus that saw it.

    Attributes:
        prometheus: Still running.
        gpu: `host:port` of what pretends to be a service on a GPU.
        asked: The traffic.
        seen_at_s: When all of it had been scraped and all rules evaluated.
    """

    prometheus: Prometheus
    gpu: str
    asked: Asked
    seen_at_s: float

    def query(self, expression: str) -> list[dict[str, Any]]:
        return self.prometheus.query(expression, self.seen_at_s)

    def count(self, expression: str) -> dict[tuple[str, ...], float]:
        """Return an expression's values that are not zero, by labels."""
        found = {tuple(s["metric"].values()): float(s["value"][1]) for s in self.query(expression)}
        return {labels: value for labels, value in found.items() if value}


def example(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((EXAMPLES / f"{name}.json").read_text())
    return document


def ask(client: httpx.Client, asked: Asked) -> None:
    """Send what works, what is wrong, what cannot be in time, and more than there is room for."""
    for _ in range(ROUNDS):
        for name in ("predict", "rollout", "safety-check"):
            assert asked.note(client.post(f"/{name}", json=example(name))) == 200
    assert asked.note(client.post("/predict", json={"state": []})) == 422
    assert asked.note(client.get("/nowhere")) == 404
    hasty = {"X-Request-Timeout-Seconds": "0.000001"}
    for _ in range(ROUNDS):
        late = client.post("/safety-check", json=example("safety-check"), headers=hasty)
        assert asked.note(late) in {429, 504}
    rollout = example("rollout")
    rollout["actions"] = [[[0.0, 0.5, 0.0]] * 64] * 64
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(lambda _: client.post("/rollout", json=rollout), range(64))
    assert {asked.note(answer) for answer in answers} == {200, 429}


def gpu_text() -> bytes:
    """Return what a service on a GPU with 95 % of its budget taken would say of the GPU alone."""
    lines = Read(VRAM | {"reserved": VRAM["budget"] * 95 // 100}).metrics.render().splitlines(True)
    return b"".join(line for line in lines if b"_vram_" in line or b"_device_" in line)


@pytest.fixture(scope="module")
def watched(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    service = start("--max-rows", "64", "--queue-rows-rollout", "64")
    with exposing(gpu_text()) as gpu:
        target = service.url.removeprefix("http://")
        folder = tmp_path_factory.mktemp("prometheus")
        prometheus = launch_prometheus(folder, free_port(), target, gpu)
        try:
            yield watch(prometheus, service, gpu)
        finally:
            prometheus.stop()


def watch(prometheus: Prometheus, service: Server, gpu: str) -> Watched:
    """Let Prometheus see a service before, during and after its traffic."""
    prometheus.wait_until_ready()
    # Rates need what was before: the zeros that series start with.
    prometheus.wait_until("zeros are seen", lambda: prometheus.query("world_model_ready") != [])
    asked = Asked()
    with httpx.Client(base_url=service.url, timeout=60) as client:
        ask(client, asked)
    asked_until_s = time.time()
    prometheus.wait_until(
        "all traffic is seen",
        lambda: prometheus.query(f"timestamp(world_model_ready) > {asked_until_s}") != [],
    )
    scraped_until = datetime.now(UTC)
    prometheus.wait_until(
        "all rules have been evaluated since",
        lambda: all(
            datetime.fromisoformat(rule["lastEvaluation"]) > scraped_until
            for rule in evaluated(prometheus)
        ),
    )
    # The alerts may have been evaluated just before what they look at was recorded.
    shed = 'ALERTS{alertname="WorldModelSafetyChecksShed"}'
    prometheus.wait_until("an alert is set off", lambda: prometheus.query(shed) != [])
    return Watched(prometheus, gpu, asked, time.time())


def evaluated(prometheus: Prometheus) -> list[dict[str, Any]]:
    """Return all rules as Prometheus tells of them."""
    return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]


def has_data(series: list[dict[str, Any]]) -> bool:
    return any(math.isfinite(float(one["value"][1])) for one in series)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
def test_every_panel_shows_what_happened(watched: Watched, query: Query) -> None:
    assert has_data(watched.query(query.expression))


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.name)
def test_every_legend_names_labels_that_its_series_have(watched: Watched, query: Query) -> None:
    named = set(re.findall(r"{{(\w+)}}", query.legend))

    for one in watched.query(query.expression):
        assert named <= set(one["metric"])


@pytest.mark.parametrize("name", rules("record"))
def test_every_recording_rule_records(watched: Watched, name: str) -> None:
    assert has_data(watched.query(name))


@pytest.mark.parametrize("name", rules("alert"))
def test_every_alert_watches_series_that_are_there(watched: Watched, name: str) -> None:
    for selector in selectors(rules("alert")[name]):
        assert has_data(watched.query(selector)), selector


def test_no_rule_fails(watched: Watched) -> None:
    found = evaluated(watched.prometheus)

    assert [rule["name"] for rule in found if rule["health"] != "ok"] == []
    assert {rule["name"] for rule in found} == {*rules("record"), *rules("alert")}


@pytest.mark.parametrize("query", RUNBOOK_QUERIES)
def test_every_query_of_the_runbook_is_understood(watched: Watched, query: str) -> None:
    """Some rightly find nothing: a fault that did not happen, a day that was not yet."""
    watched.query(query)


def test_the_traffic_sets_off_the_alerts_it_should(watched: Watched) -> None:
    alerts = watched.prometheus.get("alerts")["alerts"]

    names = {alert["labels"]["alertname"] for alert in alerts}
    assert names >= {"WorldModelSafetyChecksShed", "WorldModelOverloaded", "WorldModelVramHigh"}
    assert not names & {"WorldModelDown", "WorldModelNotReady", "WorldModelEngineErrors"}


def test_requests_and_verdicts_are_counted_to_the_last_one(watched: Watched) -> None:
    asked = watched.asked
    requests = watched.count(
        'sum by (endpoint, code) (world_model_requests_total{endpoint!~"/metrics|/readyz"})'
    )
    verdicts = watched.count("sum by (verdict) (world_model_safety_verdicts_total)")
    refused = watched.count(
        'sum(world_model_rejected_total{reason=~"queue_full|too_late|expired"})'
    )

    assert requests == {(str(code), path): count for (path, code), count in asked.codes.items()}
    assert verdicts == {(verdict,): count for verdict, count in asked.verdicts.items()}
    turned_away = [count for (_, code), count in asked.codes.items() if code in {429, 504}]
    assert refused == {(): sum(turned_away)}


def test_the_devices_panels_show_what_the_gpu_says(watched: Watched) -> None:
    ratio = watched.count("instance:world_model_vram_bytes:budget_ratio")

    assert ratio == {
        ("instance:world_model_vram_bytes:budget_ratio", watched.gpu, "world-model"): pytest.approx(
            0.95, abs=1e-6
        )
    }
    assert watched.count("sum(world_model_vram_budget_bytes)") == {(): 16 * 2**30}
