"""The bundled held-out episodes, replayed through the real command with the bundled model."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from models.checkpoint import Checkpoint, load_checkpoint
from models.survival import crash_probability, expected_returns
from service.engine import Engine
from service.server import loaded_engine
from service.settings import PRETRAINED, Settings
from tests.test_end_to_end.conftest import Server, Start

EPISODES = sorted((PRETRAINED / "episodes").glob("*.json"))
HORIZON = 16


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start()


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(PRETRAINED)


@pytest.fixture(scope="module")
def engine(server: Server) -> Iterator[Engine]:
    """What the served process computes with, called directly."""
    threads = torch.get_num_threads()
    engine = loaded_engine(Settings(device="cpu"))
    engine.start()
    yield engine
    engine.close()
    torch.set_num_threads(threads)


def test_the_engine_says_what_the_ensemble_says(engine: Engine, checkpoint: Checkpoint) -> None:
    document = episode(EPISODES[0])
    states = float32(document["states"][:20])
    actions = float32([document["actions"][t : t + HORIZON] for t in range(20)])

    seen = engine.rollout(states, actions)

    truth = checkpoint.ensemble.rollout(torch.from_numpy(states), torch.from_numpy(actions))
    np.testing.assert_allclose(seen.states, truth.states, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(seen.rewards, truth.rewards, atol=1e-3)
    np.testing.assert_allclose(seen.dones, truth.dones, rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(seen.uncertainty, truth.uncertainty, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("path", ["/predict", "/rollout", "/safety-check"])
def test_what_is_left_in_an_empty_slot_changes_no_answer(client: httpx.Client, path: str) -> None:
    document = episode(EPISODES[0])
    empty = list(document["states"][0])
    empty[26:32] = [0.0] * 6  # the fourth neighbour, whose length comes first
    left = [*empty[:27], 1.8, 5.0, 0.5, 0.1, 20.0, *empty[32:]]
    name, action = ("action", 0) if path == "/predict" else ("actions", slice(HORIZON))
    body = {"state": empty, name: document["actions"][action]}
    if path == "/safety-check":
        body["include"] = ["trajectory"]
    answers = [client.post(path, json={**body, "state": x}) for x in (empty, left)]

    assert [x.status_code for x in answers] == [200, 200]
    assert answers[0].content == answers[1].content


@cache
def episode(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [episode(path) for path in EPISODES if path.name.rpartition("-")[0] in kinds]


def starts(document: dict[str, Any], stride: int) -> range:
    """Steps from which a full horizon was recorded."""
    return range(0, len(document["actions"]) - HORIZON + 1, stride)


def float32(values: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(values, np.float32)


def test_the_bundle_holds_crashing_off_road_and_careful_episodes() -> None:
    for kind in ("crash", "off-road", "careful"):
        assert len(of_kind(kind)) >= 4, kind


@pytest.mark.parametrize("path", EPISODES, ids=lambda path: path.stem)
def test_rollouts_over_http_equal_the_model_called_directly(
    client: httpx.Client, checkpoint: Checkpoint, engine: Engine, path: Path
) -> None:
    document = episode(path)
    for t in starts(document, 40):
        state, actions = document["states"][t], document["actions"][t : t + HORIZON]
        answer = client.post(
            "/rollout",
            json={
                "state": state,
                "actions": actions,
                "outputs": [
                    "states",
                    "rewards",
                    "dones",
                    "returns",
                    "crash_probability",
                    "uncertainty",
                    "final_state",
                ],
            },
        ).json()
        direct = engine.rollout(float32([state]), float32([actions]))

        assert np.array_equal(float32(answer["states"]), direct.states[0])
        assert np.array_equal(float32(answer["rewards"]), direct.rewards[0])
        assert np.array_equal(float32(answer["dones"]), direct.dones[0])
        assert np.array_equal(float32(answer["final_state"]), direct.states[0, -1])
        assert np.float32(answer["uncertainty"]) == direct.uncertainty[0]
        dones, rewards = direct.dones, direct.rewards
        assert answer["crash_probability"] == pytest.approx(crash_probability(dones)[0], rel=1e-6)
        assert answer["returns"] == pytest.approx(expected_returns(rewards, dones)[0], rel=1e-6)
        assert answer["model_version"] == checkpoint.version


def test_a_batched_predict_equals_the_model_called_directly(
    client: httpx.Client, engine: Engine
) -> None:
    document = episode(EPISODES[0])
    states, actions = document["states"][:33], document["actions"][:33]
    answer = client.post("/predict", json={"state": states, "action": actions}).json()

    direct = engine.rollout(float32(states), float32(actions)[:, None])

    assert np.array_equal(float32(answer["next_state"]), direct.states[:, 1])
    assert np.array_equal(float32(answer["reward"]), direct.rewards[:, 0])
    assert np.array_equal(float32(answer["done"]), direct.dones[:, 0])
    assert np.array_equal(float32(answer["uncertainty"]), direct.uncertainty)


def verdicts(client: httpx.Client, document: dict[str, Any], steps: range) -> list[dict[str, Any]]:
    return [
        client.post(
            "/safety-check",
            json={
                "state": document["states"][t],
                "actions": document["actions"][t : t + HORIZON],
            },
        ).json()
        for t in steps
    ]


def test_crashing_episodes_are_called_unsafe_before_they_crash(
    client: httpx.Client, checkpoint: Checkpoint
) -> None:
    warned = []
    for document in of_kind("crash", "off-road"):
        steps = len(document["actions"])
        # Every step of the last horizon, the last one before the end included.
        answers = verdicts(client, document, range(max(0, steps - HORIZON), steps))
        warned.append(any(answer["verdict"] == "unsafe" for answer in answers))
        for answer in answers:
            if answer["verdict"] == "unsafe":
                assert answer["time_to_crash_s"] is not None
                assert answer["reasons"][0]["rule"] == "crash_probability"
    causes = checkpoint.metrics["verdicts"]["causes"].values()
    episodes = sum(cause["warned"]["episodes"] for cause in causes)
    missed = sum(cause["warned"]["missed"] * cause["warned"]["episodes"] for cause in causes)
    reported = 1 - missed / episodes
    # Within what so few episodes allow: three standard errors below the report's rate.
    slack = 3 * np.sqrt(reported * (1 - reported) / len(warned)) + 1 / len(warned)
    assert np.mean(warned) >= reported - slack


def test_careful_episodes_are_left_safe(client: httpx.Client, checkpoint: Checkpoint) -> None:
    answers = [
        answer
        for document in of_kind("careful")
        for answer in verdicts(client, document, starts(document, 10))
    ]
    unsafe = np.mean([answer["verdict"] == "unsafe" for answer in answers])
    safe = np.mean([answer["verdict"] == "safe" for answer in answers])
    reported = checkpoint.metrics["verdicts"]["behaviours"]["careful"]["unsafe_of_harmless"]

    assert unsafe <= reported + 3 * np.sqrt(0.01 / len(answers))
    assert safe >= 0.95


def test_64_concurrent_clients_get_their_own_answers_and_share_launches(
    server: Server, engine: Engine
) -> None:
    pool = [
        (state, action)
        for document in of_kind("crash", "careful")
        for state, action in zip(document["states"], document["actions"], strict=False)
    ][: 64 * 8]
    answers = predict_at_once(server, pool)

    states, actions = (float32(column) for column in zip(*pool, strict=True))
    direct = engine.rollout(states, actions[:, None])
    for row, answer in enumerate(answers):
        assert np.array_equal(float32(answer["next_state"]), direct.states[row, 1]), row
    text = httpx.get(f"{server.url}/metrics").text
    launches = metric(text, "world_model_batch_requests_count")
    requests = metric(text, "world_model_batch_requests_sum")
    assert requests > 1.1 * launches


def predict_at_once(
    server: Server, pool: list[tuple[list[float], list[float]]]
) -> list[dict[str, Any]]:
    """64 clients with a connection each; the server stands still while they all send."""
    answers = []
    address = server.url.removeprefix("http://")
    with contextlib.ExitStack() as stack:
        clients = [HTTPConnection(address, timeout=30) for _ in range(64)]
        for client in clients:
            stack.callback(client.close)
            client.connect()
        for first in range(0, len(pool), len(clients)):
            server.process.send_signal(signal.SIGSTOP)
            for client, (state, action) in zip(clients, pool[first:], strict=False):
                body = json.dumps({"state": state, "action": action})
                client.request("POST", "/predict", body)
            server.process.send_signal(signal.SIGCONT)
            for client in clients:
                answer = client.getresponse()
                assert answer.status == 200
                answers.append(json.load(answer))
    return answers


def metric(text: str, name: str) -> float:
    """Sum of a metric over its labels."""
    lines = [line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    assert lines, f"{name} is not exported"
    return sum(float(line.rpartition(" ")[2]) for line in lines)
