"""The service on a cluster of Ray: the same answers, whatever happens to replicas and nodes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from models.checkpoint import save_checkpoint
from service.app import create_app
from service.server import loaded_engine
from service.settings import Settings
from service.telemetry.metrics import Registry
from tests.test_models.test_checkpoint import small_checkpoint
from tests.test_ray.running import Clients, RayCluster

pytestmark = pytest.mark.slow

QUICK = {
    "num_cpus": 1,
    "max_replicas": 3,
    "upscale_delay_s": 1,
    "downscale_delay_s": 2,
    "look_back_s": 3,
    "health_check_period_s": 1,
}
STATE = [0.1, -0.2, 0.3, -0.4, 0.5]
BODIES: dict[str, Any] = {
    "/predict": {"state": STATE, "action": [0.5, -0.5]},
    "/rollout": {"state": STATE, "actions": [[0.5, -0.5]] * 8},
    "/safety-check": {"state": STATE, "actions": [[0.5, -0.5], [0.1, 0.2]]},
}
CHECK = json.dumps(BODIES["/safety-check"]).encode()
LONG = json.dumps(
    {"state": STATE, "actions": [[[0.5, -0.5]] * 64] * 256, "outputs": ["returns"]}
).encode()


class Models:
    """Two checkpoints, and what one process answers with each.

    Attributes:
        folders: Of the checkpoints.
        answers: By checkpoint and path.
    """

    def __init__(self, folder: Path) -> None:
        self.folders = [str(folder / name) for name in ("first", "second")]
        first, second = small_checkpoint(), small_checkpoint()
        with torch.no_grad():
            for parameter in second.ensemble.parameters():
                parameter.mul_(1.01)
        save_checkpoint(first, Path(self.folders[0]))
        save_checkpoint(second, Path(self.folders[1]))
        self.answers = [self._alone(folder) for folder in self.folders]

    @staticmethod
    def _alone(folder: str) -> dict[str, bytes]:
        settings = Settings(checkpoint=Path(folder), threads=1, compile=False)
        engine = loaded_engine(settings)
        engine.start()

        async def ask() -> dict[str, bytes]:
            app = create_app(settings, engine, Registry())
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
                    return {
                        path: (await client.post(path, json=body)).content
                        for path, body in BODIES.items()
                    }

        try:
            return asyncio.run(ask())
        finally:
            engine.close()


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def served(cluster: RayCluster, known: Models) -> RayCluster:
    """The first model, on one replica."""
    deploy(cluster, known.folders[0], min_replicas=1)
    cluster.wait_until_running()
    return cluster


def deploy(cluster: RayCluster, folder: str, **arguments: Any) -> None:
    cluster.deploy(
        {**QUICK, **arguments}, WORLD_MODEL_CHECKPOINT=folder, WORLD_MODEL_COMPILE="false"
    )


@pytest.fixture(scope="module")
def client(served: RayCluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("path", BODIES)
def test_answers_have_the_bits_of_one_process(
    client: httpx.Client, known: Models, path: str
) -> None:
    answer = client.post(path, json=BODIES[path], headers={"X-Request-Id": "mine"})

    assert answer.status_code == 200
    assert answer.content == known.answers[0][path]
    assert answer.headers.get_list("x-request-id") == ["mine"]


def test_a_body_in_chunks_is_read(client: httpx.Client, known: Models) -> None:
    answer = client.post("/safety-check", content=iter([CHECK[:20], CHECK[20:]]))

    assert answer.content == known.answers[0]["/safety-check"]


@pytest.mark.parametrize(
    ("path", "content", "headers", "status", "code"),
    [
        ("/predict", b"{}", {}, 422, "invalid_request"),
        ("/nothing", b"{}", {}, 404, "not_found"),
        ("/predict", b" " * (8 * 2**20 + 1), {}, 413, "payload_too_large"),
        ("/rollout", LONG, {"X-Request-Timeout-Seconds": "nan"}, 422, "invalid_request"),
    ],
    ids=["bad body", "no path", "long body", "bad deadline"],
)
def test_failures_have_the_bodies_of_the_service(
    client: httpx.Client, path: str, content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = client.post(path, content=content, headers=headers)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code


def test_prometheus_finds_each_replica_on_its_own_port(
    served: RayCluster, client: httpx.Client
) -> None:
    (group,) = served.wait_for(lambda: client.get("/metrics/targets").json())
    (target,) = group["targets"]

    text = httpx.get(f"http://{target}/metrics").text

    assert "\nworld_model_ready 1.0\n" in text
    assert httpx.get(f"http://{target}/predict").status_code == 404
    assert client.get("/metrics").json()["error"]["code"] == "not_found"


def test_replicas_come_with_load_and_go_without(served: RayCluster) -> None:
    assert len(served.running()) == 1

    with Clients(served.url, "/rollout", LONG, 6) as clients:
        served.wait_for(lambda: len(served.running()) == 3)
    served.wait_for(lambda: len(served.running()) == 1)

    assert {status for status, _ in clients.answers} <= {200, 429, 504}
    assert len({body for status, body in clients.answers if status == 200}) == 1


def test_a_new_model_replaces_the_old_one_under_load(served: RayCluster, known: Models) -> None:
    before = ids(served.running())
    old, new = (answers["/safety-check"] for answers in known.answers)

    with Clients(served.url, "/safety-check", CHECK, 4, 0.02) as clients:
        deploy(served, known.folders[1], min_replicas=2)
        served.wait_for(lambda: clients.answers[-1:] == [(200, new)])
        served.wait_until_running()
        served.wait_for(lambda: not before & ids(served.ask("replicas")))

    assert set(clients.answers) == {(200, old), (200, new)}


def ids(replicas: list[dict[str, Any]]) -> set[str]:
    return {replica["replica_id"] for replica in replicas}


@pytest.mark.parametrize("what", ["replica", "node"])
def test_what_is_killed_gives_no_wrong_answer_and_is_replaced(
    served: RayCluster, known: Models, what: str
) -> None:
    served.wait_for(lambda: len(served.running()) == 2)
    victim = served.running()[0]
    gone = {victim["replica_id"]}

    with Clients(served.url, "/safety-check", CHECK, 4, 0.02) as clients:
        served.wait_for(lambda: len(clients.answers) > 20)
        if what == "replica":
            os.kill(victim["pid"], signal.SIGKILL)
        else:
            gone = ids([x for x in served.running() if x["node_id"] == victim["node_id"]])
            served.ask("remove_node", node=victim["node_id"])
        served.wait_for(lambda: len(ids(served.running()) - gone) == 2)
        count = len(clients.answers)
        served.wait_for(lambda: len(clients.answers) > count + 20)

    right = known.answers[1]["/safety-check"]
    statuses = Counter(status for status, _ in clients.answers)
    assert {body for status, body in clients.answers if status == 200} == {right}
    assert set(statuses) <= {200, 500, 503}
    assert statuses[200] > 0.9 * statuses.total()
    assert {status for status, _ in clients.answers[-20:]} == {200}
