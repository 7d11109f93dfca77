"""Draw the dashboard into docs/, from a real Prometheus that watches the real service.

    python -m tools.draw_dashboard [--seconds 120]

Cars replay the bundled held-out episodes and have every step checked, others ask for single steps,
and planners send more and more sequences until some are turned away. Needs the program prometheus
(Debian's package of that name) and what `pip install -e '.[dev,training]'` brings, matplotlib above
all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from service.settings import PRETRAINED
from tests.monitoring import Prometheus, Series, launch_prometheus, queries

if TYPE_CHECKING:
    from tests.test_end_to_end.conftest import Server

PICTURE = Path(__file__).parents[1] / "docs" / "plots" / "dashboard.png"
KINDS = ("careful", "crash", "off-road")
HORIZON = 16
RATE_RANGE = "10s"
NAME = "world-model:8000"
"""What the scraped address is called in the picture, as in the Compose file."""

Ask = Callable[[httpx.Client, float], float]
"""Sends one request, given which part of the time has passed; returns the pause after it."""


def episodes(kind: str) -> list[dict[str, Any]]:
    """Return the bundled episodes of a kind."""
    paths = sorted((PRETRAINED / "episodes").glob(f"{kind}-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def replay(kind: str) -> Ask:
    """Have every step of a kind's episodes checked, in real time."""
    bodies = cycle(
        {"state": episode["states"][t], "actions": episode["actions"][t : t + HORIZON]}
        for episode in episodes(kind)
        for t in range(len(episode["actions"]) - HORIZON)
    )

    def ask(client: httpx.Client, part: float) -> float:
        client.post("/safety-check", json=next(bodies))
        return 0.05

    return ask


def step() -> Ask:
    """Ask for single steps, one in fifty of them nonsense."""
    controls = cycle([[0.0, 0.5, 0.0]] * 49 + [[9.0, 0.0, 0.0]])
    states = cycle(state for episode in episodes("careful") for state in episode["states"])

    def ask(client: httpx.Client, part: float) -> float:
        client.post("/predict", json={"state": next(states), "action": next(controls)})
        return 0.02

    return ask


def plan() -> Ask:
    """Ask for more and more candidate sequences, in the last third with little time."""
    episode = episodes("careful")[0]
    windows = [
        episode["actions"][t : t + HORIZON] for t in range(len(episode["actions"]) - HORIZON)
    ]

    def ask(client: httpx.Client, part: float) -> float:
        candidates = list(islice(cycle(windows), round(16 + 240 * part)))
        body = {"state": episode["states"][0], "actions": candidates, "outputs": ["returns"]}
        timeout_s = 5.0 if part < 0.66 else 0.15
        client.post("/rollout", json=body, headers={"X-Request-Timeout-Seconds": f"{timeout_s}"})
        return 0.15

    return ask


@contextlib.contextmanager
def traffic(url: str, seconds: float) -> Iterator[None]:
    """Have all callers ask at once; end them at the end."""
    started, is_over = time.monotonic(), threading.Event()

    def go_on(ask: Ask) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            pause_s = 0.0
            while not is_over.wait(pause_s):
                pause_s = ask(client, min(1.0, (time.monotonic() - started) / seconds))

    callers = [*map(replay, KINDS * 2), step(), step(), plan(), plan(), plan()]
    threads = [threading.Thread(target=go_on, args=(ask,)) for ask in callers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def seen(prometheus: Prometheus, start_s: float, end_s: float) -> list[tuple[Any, list[Series]]]:
    """Return each panel with what its queries found, a value a second."""
    found: dict[str, tuple[Any, list[Series]]] = {}
    for query in queries(RATE_RANGE):
        _, series = found.setdefault(query.panel["title"], (query.panel, []))
        result = prometheus.get(
            "query_range", query=query.expression, start=start_s, end=end_s, step=1
        )["result"]
        for one in result:
            labels = one["metric"] | {"instance": NAME}
            times = [float(at) - start_s for at, _ in one["values"]]
            values = [float(value) for _, value in one["values"]]
            series.append(Series.named(query.legend, labels, times, values))
    return list(found.values())


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[tuple[Server, Prometheus]]:
    """Run the service and a Prometheus that scrapes it."""
    from tests.test_end_to_end.conftest import free_port, launch

    server = launch(folder / "service.log")
    prometheus = launch_prometheus(folder, free_port(), server.url.removeprefix("http://"))
    try:
        server.wait_until_ready()
        prometheus.wait_until_ready()
        prometheus.wait_until("scraped", lambda: prometheus.query("world_model_ready") != [])
        yield server, prometheus
    finally:
        prometheus.stop()
        server.stop()


def missing() -> str | None:
    """Return what is needed and is not there, in one sentence; None if all is there."""
    needed = [package for package in ("matplotlib", "pytest") if find_spec(package) is None]
    if needed:
        return f"drawing needs {' and '.join(needed)}: pip install -e '.[dev,training]'"
    if shutil.which("prometheus") is None:
        return "drawing needs the program prometheus: apt-get install prometheus (Debian)"
    return None


def seconds(text: str) -> float:
    """Return a number of seconds that is enough for a rate.

    Raises:
        argparse.ArgumentTypeError: It is not.
    """
    try:
        given = float(text)
    except ValueError:
        given = 0.0
    if not 15 <= given <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 15 to 3600")
    return given


def main() -> None:
    """Run, ask, draw."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.draw_dashboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=seconds, default=120.0, help="how long there is traffic")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the PNG to write")
    given = parser.parse_args()
    if problem := missing():
        sys.exit(f"Error: {problem}")
    from tools.panels import draw

    with (
        tempfile.TemporaryDirectory() as folder,
        watched(Path(folder)) as (server, prometheus),
    ):
        start_s = time.time()
        with traffic(server.url, given.seconds):
            time.sleep(given.seconds)
        panels = seen(prometheus, start_s, time.time())
    title = f"World model: {given.seconds:g} s of traffic; times in minutes:seconds"
    draw(panels, given.out, title)
    print(f"{given.out}: {given.out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
