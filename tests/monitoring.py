"""The monitoring files of `deploy/`, read for tests, and a real Prometheus that works by them."""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import httpx

from service.telemetry.metrics import CONTENT_TYPE

PROMETHEUS = Path(__file__).parents[1] / "deploy" / "prometheus"
GRAFANA = Path(__file__).parents[1] / "deploy" / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "world-model.json"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))

TIMEOUT_S = 60.0
# A name with an underscore that is no function, and what stands in braces behind it.
SELECTOR = re.compile(r"(?<![\w:])([a-z][\w:]*_[\w:]*)(?![\w:]|\s*\()(\{[^}]*\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')


@dataclass(frozen=True)
class Query:
    """One line of a panel.

    Attributes:
        panel: The panel, as in the dashboard's JSON.
        expression: PromQL, with Grafana's variables filled in.
        legend: What a series is called, with `{{label}}`.
    """

    panel: dict[str, Any]
    expression: str
    legend: str

    @property
    def name(self) -> str:
        return f"{self.panel['title']}: {self.legend}"


@dataclass(frozen=True)
class Series:
    """One line of a panel.

    Attributes:
        name: As in the legend.
        labels: Prometheus's.
        times: Seconds since the start.
        values: One a time.
    """

    name: str
    labels: dict[str, str]
    times: list[float]
    values: list[float]

    @classmethod
    def named(
        cls, legend: str, labels: dict[str, str], times: list[float], values: list[float]
    ) -> Self:
        """Return a series whose legend's `{{label}}` are filled in."""
        name = re.sub(r"{{(\w+)}}", lambda match: labels[match.group(1)], legend)
        return cls(name, labels, times, values)

    @property
    def last(self) -> float:
        return next((v for v in reversed(self.values) if math.isfinite(v)), math.nan)


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def queries(rate_interval: str = "1m") -> list[Query]:
    """Return every query of every panel, over this range where the panel's follows the zoom."""
    return [
        Query(
            panel,
            target["expr"].replace("$__rate_interval", rate_interval),
            "" if target["legendFormat"] == "__auto" else target["legendFormat"],
        )
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    ]


def selectors(expression: str) -> dict[str, list[tuple[str, str, str]]]:
    """Return what an expression selects: its text by the matchers (label, operator, value)."""
    return {
        match.group(0): MATCHER.findall(match.group(2) or "")
        for match in SELECTOR.finditer(expression)
    }


def rules(kind: str) -> dict[str, str]:
    """Return the expressions of all rules of a kind ("alert" or "record") by name."""
    text = "\n".join(path.read_text() for path in RULES)
    rule = re.compile(rf"- {kind}: (\S+)\n +expr: (?:\|\n((?: {{10}}.*\n)+)|(.+)\n)")
    return {name: block or line for name, block, line in rule.findall(text)}


@contextlib.contextmanager
def exposing(text: bytes) -> Iterator[str]:
    """Answer every scrape with a text; yield the `host:port`."""

    class Exposition(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the library's name)
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Exposition) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Prometheus:
    """A running Prometheus, asked through its HTTP API."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.url = url
        self._process = process
        self._client = httpx.Client(base_url=url, timeout=10)

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the answer's `data`; what Prometheus says against a query is the error."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer["error"]
        return answer["data"]

    def query(self, expression: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """Return the series that an expression has, now or at a time."""
        moment = {} if at_s is None else {"time": at_s}
        result: list[dict[str, Any]] = self.get("query", query=expression, **moment)["result"]
        return result

    def wait_until(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, "Prometheus ended"
            try:
                if is_so():
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"waited {TIMEOUT_S:g} s in vain until {what}")

    def wait_until_ready(self) -> None:
        self.wait_until("it is ready", lambda: self._client.get("/-/ready").status_code == 200)

    def stop(self) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait(30)


def launch_prometheus(folder: Path, port: int, *services: str) -> Prometheus:
    """Start Prometheus on the repository's files; it may not be ready yet.

    Args:
        folder: For its configuration, data and log.
        port: To listen on.
        services: Each `host:port` to scrape, every second.
    """
    text = (PROMETHEUS / "prometheus.yml").read_text()
    for written, wanted in (
        ("[world-model:8000]", str(list(services))),
        ("[localhost:9090]", f"['127.0.0.1:{port}']"),
        ("scrape_interval: 5s", "scrape_interval: 1s"),
        ("scrape_timeout: 4s", "scrape_timeout: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
    ):
        assert text.count(written) == 1, written
        text = text.replace(written, wanted)
    (folder / "rules").symlink_to(PROMETHEUS / "rules")
    return start_prometheus(folder, port, text)


def start_prometheus(folder: Path, port: int, configuration: str) -> Prometheus:
    """Start Prometheus on a configuration; it may not be ready yet.

    Args:
        folder: For its configuration, data and log.
        port: To listen on.
        configuration: As YAML; it finds rules relative to the folder.
    """
    (folder / "prometheus.yml").write_text(configuration)
    command = (
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
    return Prometheus(process, f"http://127.0.0.1:{port}")
