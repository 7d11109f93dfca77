"""The page's files: their types, their logic, and what they may hold."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from models.checkpoint import load_checkpoint
from models.network.kinematics import KinematicStep
from models.road_users import road_users_spec
from models.safety import RULES
from service.http.page import ASSETS
from service.settings import PRETRAINED
from tests.conftest import lacks
from tests.test_page.conftest import HERE, ROOT, STATIC
from tools.refresh_pages import SCENES, page_episodes

MOST_BYTES = 250_000


def test_the_logic_does_what_its_tests_say(node: str) -> None:
    files = sorted(str(path) for path in (HERE / "units").glob("*.test.js"))

    done = subprocess.run([node, "--test", *files], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_modules_are_typed(node: str, modules: Path) -> None:
    command = [node, str(modules / "typescript" / "bin" / "tsc"), "-p", str(HERE)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_is_served_and_all_together_are_small() -> None:
    assert sorted(path.name for path in STATIC.iterdir()) == sorted(["index.html", *ASSETS])
    assert sum(path.stat().st_size for path in STATIC.iterdir()) < MOST_BYTES


def test_nothing_is_inline_and_no_other_host_is_named() -> None:
    page = (STATIC / "index.html").read_text()
    texts = {path.name: path.read_text() for path in STATIC.iterdir()}

    assert re.findall(r"<script[^>]*>([^<]*)</script>", page) == [""]
    assert not re.search(r"\son\w+=|<style|style=", page)
    for name, text in texts.items():
        assert set(re.findall(r"\w+://[^\"'/ ]+", text)) <= {"http://www.w3.org"}, name
        assert not re.search(r"\beval\(|new Function|innerHTML|localStorage|document\.cookie", text)


def test_the_episodes_are_those_of_the_bundled_model() -> None:
    assert SCENES.read_text() == page_episodes(load_checkpoint(PRETRAINED).spec)


def test_every_rule_has_plain_words() -> None:
    text = (STATIC / "explain.js").read_text()

    assert set(RULES) <= set(re.findall(r"^  (\w+): \{$", text, re.MULTILINE))


PLACES = """
const layout = await import(FOLDER + "layout.js");
const motion = await import(FOLDER + "motion.js");
const found = layout.layoutOf(MODEL);
const poses = motion.egoPoses(found, STATES, [ACTION], MODEL.dt_s);
const users = STATES.map((state, k) => motion.usersAt(found, state, poses[k])[0]);
console.log(JSON.stringify(users.map(({ x, y, heading }) => [x, y, heading])));
"""


@pytest.mark.parametrize("action", [[0.9, 0.3, 0.0], [-0.4, 0.0, 1.0], [0.0, 0.0, 0.0]])
def test_who_stands_stays_in_place_while_the_ego_moves_as_the_model_moves_it(
    node: str, action: list[float]
) -> None:
    spec = road_users_spec()
    state = torch.zeros(1, spec.state_dim)
    stands = {"length": 4.0, "width": 2.0, "dx": 20.0, "dy": 3.0, "heading": 0.5, "speed": 0.0}
    given = {"speed": 12.0, "length": 4.5, "width": 2.0, "left_edge": 5.0, "right_edge": 5.0}
    for name, value in {**given, **{f"neighbour_1_{x}": v for x, v in stands.items()}}.items():
        state[0, spec.state_index(name)] = value
    states = [state]
    for _ in range(16):
        states.append(KinematicStep(spec)(states[-1], torch.tensor([action])))
    model: dict[str, Any] = {
        "dt_s": spec.dt_s,
        "frame": spec.frame,
        "saturations": [],
        "features": {
            "state": [{"name": x.name} for x in spec.state],
            "action": [{"name": x.name} for x in spec.action],
        },
    }
    script = PLACES
    for name, what in {
        "FOLDER": f"{STATIC.as_uri()}/",
        "MODEL": model,
        "STATES": torch.cat(states).tolist(),
        "ACTION": action,
    }.items():
        script = script.replace(name, json.dumps(what))
    command = [node, "--input-type=module", "-e", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    places = np.array(json.loads(done.stdout))
    assert places.shape == (17, 3)
    np.testing.assert_allclose(places, np.tile([20.0, 3.0, 0.5], (17, 1)), atol=1e-3)


def test_a_contact_on_the_page_is_one_for_the_service(node: str) -> None:
    script = f"import({json.dumps((STATIC / 'motion.js').as_uri())})"
    script += ".then((x) => console.log(x.LEAST_CONTACT_M))"
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)

    text = (ROOT / "models" / "safety" / "contacts.py").read_text()
    assert [done.stdout.strip()] == re.findall(r"^LEAST_CONTACT_M = (\S+)$", text, re.MULTILINE)


@pytest.mark.parametrize(("must_run", "outcome"), [("1", "Failed"), ("", "Skipped")])
def test_where_all_must_run_a_missing_tool_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, must_run: str, outcome: str
) -> None:
    monkeypatch.setenv("TESTS_MUST_RUN", must_run)

    with pytest.raises(BaseException, match="needs a tool") as raised:
        lacks("needs a tool")

    assert type(raised.value).__name__ == outcome


RULE_FILES = ROOT / "deploy" / "prometheus" / "rules"


def rules(name: str, kind: str) -> dict[str, dict[str, Any]]:
    """Return the rules of a file of Prometheus, by name."""
    groups = yaml.safe_load((RULE_FILES / f"{name}.yml").read_text())["groups"]
    return {rule[kind]: rule for group in groups for rule in group["rules"]}


def seconds(text: str) -> int:
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[text[-1]]


def expanded(expression: str) -> str:
    """Return an alert's expression with what it is recorded from beside it."""
    recorded = rules("recording", "record")
    return expression + "".join(
        expanded(rule["expr"]) for name, rule in recorded.items() if name in expression
    )


@pytest.fixture(scope="module")
def alerts(node: str) -> Any:
    """Return what the page knows of alerts."""
    script = f"import({json.dumps((STATIC / 'alerts.js').as_uri())})"
    script += ".then((x) => console.log(JSON.stringify([x.ALERTS, x.NEED_A_DAY])))"
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_page_knows_every_alert_with_its_limit_and_times(alerts: Any) -> None:
    evaluated, need_a_day = alerts
    true = rules("alerts", "alert")

    assert sorted([x["name"] for x in evaluated] + need_a_day) == sorted(true)
    assert all("1d" in expanded(true[name]["expr"]) for name in need_a_day)
    for alert in evaluated:
        rule = true[alert["name"]]
        expression = expanded(rule["expr"])
        assert alert["for_s"] == seconds(rule.get("for", "0s")), alert["name"]
        assert alert["severity"] == rule["labels"]["severity"], alert["name"]
        windows = {seconds(found) for found in re.findall(r"\[(\w+)\]", expression)} or {0}
        assert {alert["window_s"]} == windows, alert["name"]
        compared = set(re.findall(r"(?:[=>]|vector\() ?([0-9.]+)", expression))
        assert f"{alert['limit']:g}" in compared, alert["name"]
