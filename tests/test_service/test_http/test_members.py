"""Questions to fewer members than are served, over HTTP, against the fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from service.interface import ModelInfo
from service.scheduling.jobs import JobClass
from tests.fakes.engine import (
    ACTIONS,
    STATE,
    VERSION,
    FakeEngine,
    bits,
    error_of,
    expected,
    fake_info,
    rows,
    serving,
    until,
)

SUMMARIES = ["returns", "uncertainty", "crash_probability"]


class Ensemble(FakeEngine):
    """Of some members."""

    def __init__(self, members: int = 5, held: int | None = None) -> None:
        super().__init__()
        self.served = members
        self.held = held

    def describe(self) -> ModelInfo:
        version = VERSION if self.held is None else f"{VERSION}-{self.served}of{self.held}"
        info = fake_info()
        limits = replace(info.limits, has_disagreement=self.served > 1)
        return replace(
            info, members=self.served, held_members=self.held, version=version, limits=limits
        )


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(Ensemble()) as (_, client):
        yield client


async def asked(client: httpx.AsyncClient, path: str, **fields: Any) -> dict[str, Any]:
    answer = await client.post(path, json={"state": STATE, "actions": ACTIONS, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def test_the_first_members_answer_and_the_version_says_how_many(
    client: httpx.AsyncClient,
) -> None:
    states, actions = np.array([STATE], np.float32), np.array([ACTIONS], np.float32)

    for members in (1, 2, 3, 4):
        answer = await asked(client, "/rollout", members=members)
        truth = expected(states, actions, members)
        assert bits(answer["rewards"]) == truth.rewards[0].tobytes()
        assert answer["model_version"] == f"{VERSION}-{members}of5"
    for fields in ({}, {"members": 5}):
        answer = await asked(client, "/rollout", **fields)
        assert bits(answer["rewards"]) == expected(states, actions).rewards[0].tobytes()
        assert answer["model_version"] == VERSION


async def test_of_members_that_are_served_in_part_the_version_names_all_that_are_held() -> None:
    async with serving(Ensemble(members=3, held=5)) as (_, client):
        versions = [
            (await asked(client, "/rollout", members=k))["model_version"] for k in (1, 2, 3)
        ]

    assert versions == [f"{VERSION}-{k}of5" for k in (1, 2, 3)]


async def test_one_member_has_no_uncertainty(client: httpx.AsyncClient) -> None:
    _, actions = rows(3)
    many = {"actions": actions.tolist(), "outputs": SUMMARIES}

    single = await asked(client, "/rollout", members=1, outputs=["uncertainty"])
    batch = await asked(client, "/rollout", members=1, **many)
    check = await asked(client, "/safety-check", members=1)
    checks = await asked(client, "/safety-check", members=1, actions=actions.tolist())
    by_two = await asked(client, "/rollout", members=2, **many)

    assert single == {"uncertainty": None, "model_version": f"{VERSION}-1of5"}
    assert batch["uncertainty"] is None
    assert len(batch["returns"]) == len(batch["crash_probability"]) == 3
    assert check["uncertainty"] is None
    assert [entry["uncertainty"] for entry in checks["candidates"]] == [None] * 3
    assert len(by_two["uncertainty"]) == 3


@pytest.mark.parametrize(
    "names", [SUMMARIES, SUMMARIES[1:], SUMMARIES[:2], ["uncertainty"]], ids=str
)
async def test_a_long_answer_by_one_member_is_the_same_text_as_a_short_one(
    monkeypatch: pytest.MonkeyPatch, client: httpx.AsyncClient, names: list[str]
) -> None:
    _, actions = rows(40)
    body = {"state": STATE, "actions": actions.tolist(), "outputs": names, "members": 1}
    short = await client.post("/rollout", json=body)
    monkeypatch.setattr("service.http.answers._NUMBERS_AT_ONCE", 2)

    long = await client.post("/rollout", json=body)

    assert long.content == short.content


async def test_a_model_of_one_member_has_no_uncertainty_at_all() -> None:
    async with serving(Ensemble(members=1)) as (_, client):
        predicted = await client.post("/predict", json={"state": STATE, "action": ACTIONS[0]})
        rolled = await asked(client, "/rollout", outputs=["uncertainty"])
        same = await asked(client, "/rollout", outputs=["uncertainty"], members=1)
        check = await asked(client, "/safety-check")
        refused = await client.post(
            "/rollout", json={"state": STATE, "actions": ACTIONS, "members": 2}
        )

    assert predicted.json()["uncertainty"] is None
    assert predicted.json()["model_version"] == VERSION
    assert rolled == same == {"uncertainty": None, "model_version": VERSION}
    assert check["uncertainty"] is None
    assert error_of(refused)["details"][0]["allowed"].startswith("a whole number from 1 to 1,")


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("threshold", [None, 1.0])
async def test_fewer_members_never_say_safe(
    client: httpx.AsyncClient, members: int, threshold: float | None
) -> None:
    given = {} if threshold is None else {"threshold": threshold}
    by_all = await asked(client, "/safety-check", **given)

    answer = await asked(client, "/safety-check", members=members, **given)

    assert by_all["verdict"] == "safe"
    assert answer["verdict"] == "unknown"
    rules = {reason["rule"]: reason["message"] for reason in answer["reasons"]}
    assert "uncertainty_unavailable" in rules
    assert ("not_calibrated" in rules) == (threshold is None)
    assert answer["threshold"] == threshold
    if threshold is None:
        assert rules["not_calibrated"].startswith(f"{members} of 5 members answer")


async def test_of_fewer_members_a_crash_beyond_the_callers_threshold_is_unsafe(
    client: httpx.AsyncClient,
) -> None:
    answer = await asked(client, "/safety-check", members=1, threshold=0.001)

    assert answer["verdict"] == "unsafe"
    assert answer["uncertainty"] is None


@pytest.mark.parametrize("members", [0, 6, True, 1.5, "2", None], ids=repr)
@pytest.mark.parametrize("path", ["/rollout", "/safety-check"])
async def test_a_number_of_members_that_there_is_not_is_refused(
    client: httpx.AsyncClient, path: str, members: Any
) -> None:
    body = {"state": STATE, "actions": ACTIONS, "members": members}

    answer = await client.post(path, json=body)

    assert answer.status_code == 422
    (detail,) = error_of(answer)["details"]
    assert detail["field"] == "members"
    assert detail["allowed"] == "a whole number from 1 to 5, the members that are served"


async def test_requests_to_different_members_share_no_launch() -> None:
    engine = Ensemble()
    async with serving(engine) as (app, client):
        engine.gate.clear()
        first = asyncio.create_task(asked(client, "/rollout", members=3))
        await engine.entered()
        others = [
            asyncio.create_task(asked(client, "/rollout", members=k)) for k in (1, 5, 1, 2, 5)
        ]
        await until(lambda: app.scheduler.queues.depth(JobClass.ROLLOUT) == 5)
        engine.gate.set()
        answers = await asyncio.gather(first, *others)

    assert [answer["model_version"][-5:] for answer in answers] == [
        "-3of5", "-1of5", VERSION[-5:], "-1of5", "-2of5", VERSION[-5:]
    ]  # fmt: skip
    assert list(zip(engine.members, [rows for rows, _ in engine.launches], strict=True)) == [
        (3, 1), (1, 2), (None, 2), (2, 1)
    ]  # fmt: skip


async def test_uncertainty_of_fewer_members_is_not_counted_with_that_of_all() -> None:
    async with serving(Ensemble()) as (_, client):
        seen = []
        for members in (1, 2, 5):
            await asked(client, "/safety-check", members=members)
            await asked(client, "/rollout", members=members)
            text = (await client.get("/metrics")).text
            lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
            seen.append(
                (
                    float(lines["world_model_uncertainty_count"]),
                    float(lines["world_model_crash_probability_count"]),
                    float(lines['world_model_safety_verdicts_total{verdict="unknown"}']),
                )
            )

    assert seen == [(0, 1, 1), (0, 2, 2), (2, 3, 2)]


async def test_the_openapi_document_says_how_many_there_are(client: httpx.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]

    for name in ("RolloutRequest", "SafetyCheckRequest"):
        members = schemas[name]["properties"]["members"]
        assert (members["type"], members["minimum"], members["maximum"]) == ("integer", 1, 5)
        assert members["default"] == 5
    assert "members" not in schemas["PredictRequest"]["properties"]
