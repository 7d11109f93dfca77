"""A real Prometheus with the repository's files beside the real service, under real traffic."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
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
IMPOSSIBLE = 40
KEY = "the-monitors-own-key"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
QUERIES = queries()
DOCS = Path(__file__).parents[2] / "docs"
RUNBOOK = (DOCS / "operations.md").read_text()
RUNBOOK_QUERIES = sorted(set(re.findall(r"ask\s+'([^']+)'", RUNBOOK)))
BLOCKS = re.findall(r"^```bash\n(.*?)^```", RUNBOOK, re.MULTILINE | re.DOTALL)
FUNCTIONS = [block for block in BLOCKS if "ask() {" in block]
ELSEWHERE = ("nvidia-smi", "sudo dmesg")
"""Commands of a machine with a GPU, and of its kernel's log."""
COMMANDS = [
    line.partition(" # ")[0].strip()
    for block in BLOCKS
    if block not in FUNCTIONS
    for line in block.splitlines()
    if not line.startswith(ELSEWHERE)
]


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
            answer = response.json()
            for judged in answer.get("candidates", [answer]):
                self.verdicts[judged["verdict"]] += 1
        return response.status_code


@dataclass(frozen=True)
class Watched:
    """A service that was asked, and the Prometheus that saw it.

    Attributes:
        prometheus: Still running.
        service: Still running, with the key `KEY`.
        gpu: `host:port` of what pretends to be a service on a GPU.
        asked: The traffic.
        seen_at_s: When all of it had been scraped and all rules evaluated.
    """

    prometheus: Prometheus
    service: Server
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
    for _ in range(IMPOSSIBLE):
        late = client.post("/safety-check", json=example("safety-check"), headers=hasty)
        assert asked.note(late) in {429, 504}
    for name, steps in (("rollout", 64), ("safety-check", 16)):
        body = {**example(name), "actions": [[[0.0, 0.5, 0.0]] * steps] * 64}
        with ThreadPoolExecutor(16) as pool:
            post = partial(client.post, json=body, headers={"X-Request-Timeout-Seconds": "60"})
            answers = list(pool.map(post, [f"/{name}"] * 64))
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in answers:
            asked.note(answer)


def gpu_text() -> bytes:
    """Return what a service on a GPU with 95 % of its budget taken would say of the GPU alone.

    And that it is ready: without that it is taken for something else.
    """
    lines = Read(VRAM | {"reserved": VRAM["budget"] * 95 // 100}).metrics.render().splitlines(True)
    kept = (b"_vram_", b"_device_", b"_ready")
    return b"".join(line for line in lines if any(name in line for name in kept))


@pytest.fixture(scope="module")
def watched(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    narrow = ("--max-rows", "64", "--queue-rows-rollout", "64", "--queue-rows-safety", "64")
    service = start(*narrow, WORLD_MODEL_API_KEYS=f"monitor:{KEY}", WORLD_MODEL_LOG_FORMAT="json")
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
    seen = "world_model_load_seconds"
    prometheus.wait_until("zeros are seen", lambda: prometheus.query(seen) != [])
    asked = Asked()
    with httpx.Client(base_url=service.url, timeout=60, headers=AUTHORIZED) as client:
        ask(client, asked)
    asked_until_s = time.time()
    prometheus.wait_until(
        "all traffic is seen",
        lambda: prometheus.query(f"timestamp({seen}) > {asked_until_s}") != [],
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
    return Watched(prometheus, service, gpu, asked, time.time())


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
    assert not names & {
        *("WorldModelDown", "WorldModelNotReady", "WorldModelEngineErrors", "WorldModelRestarts")
    }


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
    rejected = sum(count for (_, code), count in asked.codes.items() if code in {429, 504})
    assert refused == {(): rejected}
    outcomes = watched.count(
        'sum by (outcome) (world_model_outcomes_total{outcome=~"late|rejected|impossible.*"})'
    )
    assert outcomes == {
        ("impossible_deadline",): IMPOSSIBLE,
        ("rejected",): rejected - IMPOSSIBLE,
    }


def test_requests_are_counted_by_the_name_of_their_key(watched: Watched) -> None:
    by_key = watched.count(
        'sum by (key) (world_model_outcomes_total{endpoint!="other"})',
    )

    assert by_key == {
        ("monitor",): sum(
            count for (path, _), count in watched.asked.codes.items() if path != "other"
        )
    }


def test_the_devices_panels_show_what_the_gpu_says(watched: Watched) -> None:
    ratio = watched.count("instance:world_model_vram_bytes:budget_ratio")

    assert ratio == {
        ("instance:world_model_vram_bytes:budget_ratio", watched.gpu, "world-model"): pytest.approx(
            0.95, abs=1e-6
        )
    }
    assert watched.count("sum(world_model_vram_budget_bytes)") == {(): 16 * 2**30}


def in_runbooks_shell(watched: Watched, folder: Path, functions: str, command: str) -> str:
    """Return what a command of the runbook prints, after one of its blocks of functions.

    What this machine lacks is put in its place: Compose's and systemd's commands for the log and
    the state, and the root's rights to read the file of keys. Ports are those of the test.
    """
    (folder / ".env").write_text(f"WORLD_MODEL_API_KEYS=monitor:{KEY},other:key\n")
    stand_ins = {
        "docker": 'case "$*" in *promtool*) shift 4; exec "$@";; *logs*) cat "$LOG";; esac',
        "sudo": 'exec "$@"',
        "systemctl": "echo active",
        "journalctl": 'cat "$LOG"',
    }
    for name, script in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    text = f"{functions}\n{command}\n".replace("/etc/world-model.env", ".env")
    for port, url in ((8000, watched.service.url), (9090, watched.prometheus.url)):
        text = text.replace(f"http://127.0.0.1:{port}", url)
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "LOG": str(watched.service.log),
    }
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail\n{text}"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # grep ends with 1 where nothing happened that it looks for.
    assert result.returncode == 0 or ("grep" in command and result.returncode == 1), result.stderr
    assert result.stderr == ""
    return result.stdout


def test_the_runbook_has_functions_for_both_ways_to_run_the_service() -> None:
    names = [re.findall(r"^(\w+)(?:=|\(\))", block, re.MULTILINE) for block in FUNCTIONS]

    assert names == [["key", "state", "logs", "restart", "ask"]] * 2


@pytest.mark.parametrize("functions", FUNCTIONS, ids=["docker", "systemd"])
@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_of_the_runbook_works(
    watched: Watched, tmp_path: Path, functions: str, command: str
) -> None:
    printed = in_runbooks_shell(watched, tmp_path, functions, command)

    assert "unauthorized" not in printed.partition("request failed")[0]


@pytest.mark.parametrize("functions", FUNCTIONS, ids=["docker", "systemd"])
def test_the_runbook_finds_out_who_asks(watched: Watched, tmp_path: Path, functions: str) -> None:
    by_key, by_peer = (
        next(command for command in COMMANDS if part in command)
        for part in ("sum by (key, endpoint, outcome)", "peer")
    )
    model = next(command for command in COMMANDS if command.endswith("/model"))

    assert 'key="monitor"' in in_runbooks_shell(watched, tmp_path, functions, by_key)
    assert "127.0.0.1" in in_runbooks_shell(watched, tmp_path, functions, by_peer)
    assert '"spec":"34x3-' in in_runbooks_shell(watched, tmp_path, functions, model)


def test_prometheus_is_set_up_without_docker_as_the_documents_say(tmp_path: Path) -> None:
    """With another folder in place of /etc/prometheus, and without starting it."""
    text = (DOCS / "deployment.md").read_text()
    block = next(b for b in re.findall(r"```bash\n(.*?)```", text, re.S) if "promtool check" in b)
    script = block.replace("sudo systemctl reload prometheus", "").replace("sudo ", "")
    assert script.count("/etc/prometheus") == 4
    script = script.replace("/etc/prometheus", str(tmp_path))

    subprocess.run(["bash", "-ec", script], cwd=DOCS.parent, check=True, capture_output=True)

    made = (tmp_path / "prometheus.yml").read_text()
    assert "targets: [127.0.0.1:8000]" in made
    jobs = next(b for b in re.findall(r"```yaml\n(.*?)```", text, re.S) if "rule_files" in b)
    (tmp_path / "own.yml").write_text(jobs.replace("/etc/prometheus", str(tmp_path)))
    check = ["promtool", "check", "config", str(tmp_path / "own.yml")]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("rules found") == 2
