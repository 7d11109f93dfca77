"""What Ray is told and told by: routing, scaling, targets, and requests that pass its proxy."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import socket
import subprocess
import time
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml
from starlette.types import Receive, Scope, Send

from service.errors import StartupError
from tests.test_ray.running import CONFIG, ROOT

if not os.environ.get("TESTS_MUST_RUN"):
    pytest.importorskip("ray", reason="needs Ray (extra `ray`)")

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from service.ray import scaling
from service.ray.app import Options, app
from service.ray.load import Load
from service.ray.replica import TARGETS_PATH, behind_proxy, serve_metrics
from service.ray.routing import BEFORE_ALL_S, BEFORE_SAFETY_S, ShortestWait, Waits
from service.ray.targets import Targets, keep_reporting


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# Routing.


def report(before_safety_s: float, before_all_s: float) -> dict[str, float]:
    return {BEFORE_SAFETY_S: before_safety_s, BEFORE_ALL_S: before_all_s}


def test_each_class_goes_where_it_waits_least() -> None:
    reports = {"a": report(0.2, 0.2), "b": report(0.0, 3.0), "c": report(0.5, 0.9)}

    assert Waits(Clock()).split(reports, BEFORE_SAFETY_S) == (["b"], ["a", "c"])
    assert Waits(Clock()).split(reports, BEFORE_ALL_S) == (["a"], ["c", "b"])


def test_waits_that_hardly_differ_and_new_replicas_are_alike() -> None:
    near, far = Waits(Clock()).split(
        {"a": report(0.01, 0.01), "b": report(0, 0), "c": {}}, BEFORE_ALL_S
    )

    assert (set(near), far) == ({"a", "b", "c"}, [])


def test_a_report_loses_what_was_computed_since() -> None:
    clock, reports = Clock(), {"a": report(0, 1.0), "b": report(0, 0.4)}
    waits = Waits(clock)
    assert waits.split(reports, BEFORE_ALL_S) == (["b"], ["a"])

    clock.now += 0.99
    assert set(waits.split(reports, BEFORE_ALL_S)[0]) == {"a", "b"}
    assert waits.split({**reports, "a": report(0, 0.5)}, BEFORE_ALL_S) == (["b"], ["a"])


def test_a_replica_that_is_not_ready_is_the_last() -> None:
    reports = {"a": report(math.inf, math.inf), "b": report(5, 5)}

    assert Waits(Clock()).split(reports, BEFORE_SAFETY_S) == (["b"], ["a"])
    assert Waits(Clock()).split({"a": reports["a"]}, BEFORE_SAFETY_S) == (["a"], [])


@pytest.mark.parametrize(
    ("head", "first"), [(b"..X\x0d/safety-check..", "b"), (b"../rollout..", "a")]
)
async def test_the_router_knows_safety_checks_by_their_path(head: bytes, first: str) -> None:
    router = ShortestWait.__new__(ShortestWait)
    router._waits = Waits(Clock())
    reports = {"a": report(0.2, 0.2), "b": report(0.0, 3.0)}
    replicas = [SimpleNamespace(replica_id=x, routing_stats=reports[x]) for x in reports]
    request = SimpleNamespace(args=(head,), routing_context=SimpleNamespace(should_backoff=False))

    (best,), *_ = await router.choose_replicas(replicas, request)

    assert best.replica_id == first
    assert request.routing_context.should_backoff


# Scaling.


def context(
    waits: list[float], busy: list[float], *, target: int | None = None, age_s: float = 1e3
) -> Any:
    return SimpleNamespace(
        current_num_replicas=len(waits),
        target_num_replicas=len(waits) if target is None else target,
        aggregated_metrics={
            scaling.WAIT_S: dict(enumerate(waits)),
            scaling.BUSY: dict(enumerate(busy)),
        },
        last_scale_up_time=1e6 - age_s,
        last_scale_down_time=None,
        current_time=1e6,
        config=SimpleNamespace(look_back_period_s=20),
    )


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (context([0.06], [1.0]), 2),
        (context([0.3, 0.0, 0.0, 0.0], [1.0] * 4), 6),
        (context([0.04, 0.04], [0.9, 0.9]), 2),
        (context([0.0, 0.0, 0.0], [0.3, 0.3, 0.3]), 2),
        (context([0.0, 0.0, 0.0], [0.4, 0.4, 0.4]), 3),
        (context([0.0], [0.0]), 1),
        (context([0.3], [1.0], target=2), 2),
        (context([0.0, 0.0], [0.0, 0.0], target=3), 1),
        (context([0.0, 0.0, 0.0], [0.0] * 3, target=1), 1),
        (context([0.3], [1.0], age_s=10), 1),
        (context([0.0, 0.0], [0.0]), 2),
        (context([], [], target=1), 1),
    ],
    ids=[
        "long waits",
        "long waits of one",
        "busy and quick",
        "others have room",
        "others would be too busy",
        "the last one",
        "one is starting",
        "one does not start, and none is needed",
        "two are ending",
        "means of before",
        "one has not reported",
        "none has reported",
    ],
)
def test_replicas_follow_waits_up_and_idleness_down(given: Any, wanted: int) -> None:
    assert scaling.replicas(given) == (wanted, {})


async def test_a_load_is_the_queue_and_the_busy_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"safety": 0.25, "rollout": 0.75}
    scheduler = SimpleNamespace(backlog_s=lambda job_class: seconds[job_class])
    health = SimpleNamespace(is_ready=True)
    spent = iter([(0.0, 0.0, 0.0), (10.0, 3.0, 4.0), (20.0, 9.0, 5.0)])
    monkeypatch.setattr(Load, "_spent", lambda _: next(spent))
    one: Any = SimpleNamespace(
        scheduler=scheduler,
        health=health,
        metrics=SimpleNamespace(engine_busy_s=lambda: 0.0),
    )
    load = Load(one)

    assert load.waits() == report(0.25, 0.75)
    assert load.sample() == {scaling.WAIT_S: 0.75, scaling.BUSY: 0.4}
    assert load.sample() == {scaling.WAIT_S: 0.75, scaling.BUSY: 0.6}
    health.is_ready = False
    assert load.waits() == report(math.inf, math.inf)


async def test_a_late_event_loop_is_a_wait() -> None:
    scheduler = SimpleNamespace(backlog_s=lambda job_class: 0.0)
    one: Any = SimpleNamespace(
        scheduler=scheduler,
        health=SimpleNamespace(is_ready=True),
        metrics=SimpleNamespace(engine_busy_s=lambda: 0.0),
    )
    load = Load(one)
    watch = asyncio.create_task(load.watch())
    await asyncio.sleep(0.01)

    asyncio.get_running_loop().call_soon(time.sleep, 0.5)
    await asyncio.sleep(0.01)  # which is over when the loop was blocked
    await asyncio.sleep(0.01)

    watch.cancel()
    assert load.sample()[scaling.WAIT_S] > 0.05


# Targets of Prometheus.


def test_targets_are_forgotten_when_they_report_no_more() -> None:
    clock = Clock()
    targets = Targets(clock)
    assert targets.groups() == []

    targets.report("10.0.0.2:1")
    clock.now += 10
    targets.report("10.0.0.1:1")
    assert targets.groups() == [{"targets": ["10.0.0.1:1", "10.0.0.2:1"]}]

    clock.now += 10
    assert targets.groups() == [{"targets": ["10.0.0.1:1"]}]


@pytest.mark.parametrize("error", [RayError("gone"), RayServeException("gone")], ids=str)
async def test_a_report_that_fails_is_made_again(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("service.ray.targets._REPORT_EVERY_S", 0.001)
    done, calls = asyncio.Event(), 0

    async def remote(address: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        assert address == "10.0.0.1:1"
        done.set()

    handle = SimpleNamespace(report=SimpleNamespace(remote=remote))
    task = asyncio.create_task(keep_reporting(handle, "10.0.0.1:1"))
    await asyncio.wait_for(done.wait(), 10)
    task.cancel()


# Requests that pass the proxy.


class Seen:
    """An app that remembers what reached it, and answers with a request's id."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.headers: dict[bytes, bytes] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        self.headers = dict(scope["headers"])
        headers = [(b"x-request-id", b"one"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"answer"})


async def ask(seen: Seen, path: str, groups: Any = None, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(behind_proxy(seen, groups))
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        return await client.get(path, headers=headers)


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ("10", "9.900000"),
        ("0.5", "0.450000"),
        ("0.01", "0.008000"),
        ("0.001", "0.001"),
        ("-1", "-1"),
        ("nan", "nan"),
        ("soon", "soon"),
    ],
)
async def test_a_deadline_comes_before_that_of_the_proxy(given: str, passed: str) -> None:
    seen = Seen()

    await ask(seen, "/predict", **{"X-Request-Timeout-Seconds": given})

    assert seen.headers[b"x-request-timeout-seconds"] == passed.encode()


async def test_the_request_id_is_left_to_the_proxy() -> None:
    answer = await ask(Seen(), "/predict")

    assert (answer.text, answer.headers["content-type"]) == ("answer", "text/plain")
    assert "x-request-id" not in answer.headers


@pytest.mark.parametrize("error", [RayError("gone"), RayServeException("gone")], ids=str)
async def test_targets_are_listed_and_metrics_of_any_replica_are_not(error: Exception) -> None:
    seen, listed = Seen(), [{"targets": ["10.0.0.1:1"]}]

    async def groups() -> Any:
        return listed

    async def fail() -> Any:
        raise error

    assert (await ask(seen, TARGETS_PATH, groups)).json() == listed
    assert (await ask(seen, TARGETS_PATH, fail)).json()["error"]["code"] == "unavailable"
    assert (await ask(seen, "/metrics")).json()["error"]["code"] == "not_found"
    assert seen.paths == []


async def test_the_port_of_metrics_answers_nothing_else() -> None:
    seen = Seen()
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    task = asyncio.create_task(serve_metrics(seen, listener))
    async with httpx.AsyncClient() as client:
        await client.get(f"{url}/metrics")
        await client.post(f"{url}/predict")
    task.cancel()
    await asyncio.wait([task])
    listener.close()

    assert seen.paths == ["/metrics", "/-"]


# Configuration.


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ({"replicas": 3}, {}, "'replicas'.*there are min_replicas, max_replicas"),
        ({"num_gpus": -1}, {}, "'num_gpus'"),
        ({"min_replicas": 5}, {}, "'min_replicas'.*must not exceed"),
        ({}, {"WORLD_MODEL_QUEUE_ROW_SAFETY": "1"}, "WORLD_MODEL_QUEUE_ROWS_SAFETY"),
        ({}, {"WORLD_MODEL_MEMBERS": "none"}, "WORLD_MODEL_MEMBERS"),
        ({}, {"WORLD_MODEL_CHECKPOINT": "/nowhere"}, "cannot load the checkpoint"),
    ],
    ids=["no argument", "bad argument", "bounds", "no setting", "bad setting", "no checkpoint"],
)
def test_what_is_refused_stops_the_deployment_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, arguments: Any, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(StartupError, match=message):
        app(arguments)


def test_the_configuration_is_what_ray_and_the_application_take() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(CONFIG.read_text())

    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == "service.ray.app:app"
    Options.model_validate(application.args)


def test_prometheus_takes_its_configuration() -> None:
    path = ROOT / "deploy" / "ray" / "prometheus.yml"
    jobs = {x["job_name"]: x for x in yaml.safe_load(path.read_text())["scrape_configs"]}
    ours = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())

    assert set(jobs) == {x["job_name"] for x in ours["scrape_configs"]}
    (discovery,) = jobs["world-model"]["http_sd_configs"]
    assert discovery["url"].endswith(TARGETS_PATH)
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian's package prometheus)")
    subprocess.run(["promtool", "check", "config", path], check=True, capture_output=True)
