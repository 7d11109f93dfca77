"""Predictions over HTTP, against the fake engine."""

from __future__ import annotations

import re
from dataclasses import replace

import httpx
import numpy as np
import pytest

from models.prediction import Prediction
from models.survival import crash_probability, expected_returns
from tests.fakes.engine import (
    ACTIONS,
    DIVERGE,
    POISON,
    STATE,
    VERSION,
    FakeEngine,
    bits,
    error_of,
    expected,
    fake_info,
    rows,
    serving,
)


async def test_predict_answers_one_step_bit_for_bit(client: httpx.AsyncClient) -> None:
    states, actions = rows(1, 1, seed=7)
    body = {"state": states[0].tolist(), "action": actions[0, 0].tolist()}

    answer = (await client.post("/predict", json=body)).json()

    truth = expected(states, actions)
    assert bits(answer["next_state"]) == truth.states[0, 1].tobytes()
    assert bits(answer["reward"]) == truth.rewards[0, 0].tobytes()
    assert bits(answer["done"]) == truth.dones[0, 0].tobytes()
    assert bits(answer["uncertainty"]) == truth.uncertainty[0].tobytes()
    assert answer["model_version"] == VERSION
    assert set(answer) == {"next_state", "reward", "done", "uncertainty", "model_version"}
    assert {type(answer[name]) for name in ("reward", "done", "uncertainty")} == {float}


async def test_predict_answers_a_batch(client: httpx.AsyncClient) -> None:
    states, actions = rows(5, 1)
    body = {"state": states.tolist(), "action": actions[:, 0].tolist()}

    answer = (await client.post("/predict", json=body)).json()

    assert bits(answer["next_state"]) == expected(states, actions).states[:, 1].tobytes()
    assert [len(answer[name]) for name in ("reward", "done", "uncertainty")] == [5, 5, 5]


async def test_one_row_is_written_as_it_is_in_a_batch(client: httpx.AsyncClient) -> None:
    states, actions = rows(2, 1, seed=3)
    body = {"state": states.tolist(), "action": actions[:, 0].tolist()}
    batch = (await client.post("/predict", json=body)).json()

    for k in range(2):
        body = {"state": states[k].tolist(), "action": actions[k, 0].tolist()}
        one = (await client.post("/predict", json=body)).json()
        for name in ("next_state", "reward", "done", "uncertainty"):
            assert one[name] == batch[name][k], name


async def test_rollout_answers_states_rewards_and_dones(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/rollout", json={"state": STATE, "actions": ACTIONS})).json()

    truth = expected(np.array([STATE], np.float32), np.array([ACTIONS], np.float32))
    assert bits(answer["states"]) == truth.states[0].tobytes()
    assert bits(answer["rewards"]) == truth.rewards[0].tobytes()
    assert bits(answer["dones"]) == truth.dones[0].tobytes()
    assert set(answer) == {"states", "rewards", "dones", "model_version"}


async def test_rollout_answers_the_outputs_asked_for(client: httpx.AsyncClient) -> None:
    _, actions = rows(3, 4)
    outputs = ["returns", "crash_probability", "uncertainty", "final_state"]
    body = {"state": STATE, "actions": actions.tolist(), "outputs": outputs}

    answer = (await client.post("/rollout", json=body)).json()

    truth = expected(np.array([STATE] * 3, np.float32), actions)
    assert set(answer) == {*outputs, "model_version"}
    assert answer["returns"] == expected_returns(truth.rewards, truth.dones).tolist()
    assert answer["crash_probability"] == crash_probability(truth.dones).tolist()
    assert bits(answer["uncertainty"]) == truth.uncertainty.tobytes()
    assert bits(answer["final_state"]) == truth.states[:, -1].tobytes()


async def test_outputs_of_one_sequence_are_scalars(client: httpx.AsyncClient) -> None:
    body = {"state": STATE, "actions": ACTIONS, "outputs": ["returns", "uncertainty"]}

    answer = (await client.post("/rollout", json=body)).json()

    assert [type(answer["returns"]), type(answer["uncertainty"])] == [float, float]


@pytest.mark.parametrize(
    ("state", "threshold", "verdict", "rule"),
    [
        ([1.0, 2.0, 3.0], 0.9, "safe", None),
        ([1.0, 2.0, 3.0], 0.01, "unsafe", "crash_probability"),
        ([1.0, 40.0, 3.0], 0.9, "unknown", "uncertain"),
        ([99.0, 2.0, 3.0], 0.9, "unknown", "input_out_of_range"),
        ([DIVERGE, 2.0, 3.0], 0.9, "unknown", "not_finite"),
    ],
)
async def test_safety_check_judges(
    client: httpx.AsyncClient, state: list[float], threshold: float, verdict: str, rule: str | None
) -> None:
    body = {"state": state, "actions": ACTIONS, "threshold": threshold}

    answer = (await client.post("/safety-check", json=body)).json()

    assert (answer["verdict"], answer["threshold"]) == (verdict, threshold)
    assert rule in ([reason["rule"] for reason in answer["reasons"]] or [None])
    assert len(answer["crash_probability_by_step"]) == 2
    assert answer["horizon_s"] == pytest.approx(0.2)
    assert answer["model_version"] == VERSION
    assert "trajectory" not in answer


async def test_safety_check_uses_the_checkpoints_threshold(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/safety-check", json={"state": STATE, "actions": ACTIONS})).json()

    assert answer["threshold"] == 0.5


async def test_safety_check_doubts_what_is_nearly_unsafe_and_what_leaves_the_road(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = fake_info()
    info = replace(info, limits=replace(info.limits, safe_below=0.02, edges=(0,)))
    monkeypatch.setattr(engine, "describe", lambda: info)
    aside, along = [[-1.0, 0.0]], [[0.0, 0.0]]

    async with serving(engine) as (_, client):
        found = {}
        for name, x, actions in (("near", 3.0, along), ("off", 0.5, aside), ("fine", 1.0, along)):
            body = {"state": [x, 0.0, 0.0], "actions": actions, "threshold": 0.9}
            answer = (await client.post("/safety-check", json=body)).json()
            found[name] = answer["verdict"], [reason["rule"] for reason in answer["reasons"]]

    assert found == {
        "near": ("unknown", ["crash_not_excluded"]),
        "off": ("unknown", ["predicted_contact"]),
        "fine": ("safe", []),
    }


async def test_safety_check_includes_the_trajectory(client: httpx.AsyncClient) -> None:
    body = {"state": STATE, "actions": ACTIONS, "include": ["trajectory"]}

    answer = (await client.post("/safety-check", json=body)).json()

    assert np.shape(answer["trajectory"]) == (3, 3)


async def test_safety_check_of_candidates_names_the_best(client: httpx.AsyncClient) -> None:
    actions = [[[1.0, 0.0]] * 3, [[-1.0, 0.0]] * 3, [[0.0, 0.0]] * 3]
    body = {"state": [5.0, 0.0, 0.0], "actions": actions, "include": ["trajectory"]}

    answer = (await client.post("/safety-check", json=body)).json()

    probabilities = [entry["crash_probability"] for entry in answer["candidates"]]
    assert answer["best"] == probabilities.index(min(probabilities)) == 1
    assert set(answer) == {"candidates", "best", "model_version"}
    assert all("trajectory" in entry for entry in answer["candidates"])


async def test_a_diverged_prediction_is_an_engine_error(client: httpx.AsyncClient) -> None:
    body = {"state": [STATE, [DIVERGE, 2.0, 3.0]], "actions": ACTIONS}

    response = await client.post("/rollout", json=body)

    assert response.status_code == 500
    assert error_of(response)["message"].startswith("non-finite prediction in row 1")


@pytest.mark.parametrize("name", ["states", "rewards", "dones", "uncertainty"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_a_number_that_is_not_finite_is_never_answered(
    client: httpx.AsyncClient, engine: FakeEngine, name: str, value: float
) -> None:
    def broken(prediction: Prediction) -> Prediction:
        getattr(prediction, name)[-1] = value
        return prediction

    engine.change = broken
    one = {"state": STATE, "action": ACTIONS[0]}
    many = {"state": [STATE] * 3, "action": [ACTIONS[0]] * 3}
    for path, body in (
        ("/predict", one),
        ("/predict", many),
        ("/rollout", {"state": STATE, "actions": ACTIONS, "outputs": ["uncertainty"]}),
    ):
        assert (await client.post(path, json=body)).status_code == 500
    check = await client.post("/safety-check", json={"state": STATE, "actions": ACTIONS})
    assert check.json()["verdict"] == "unknown"


async def test_an_engine_fault_is_an_engine_error(client: httpx.AsyncClient) -> None:
    response = await client.post("/rollout", json={"state": [POISON, 0, 0], "actions": ACTIONS})

    assert (response.status_code, error_of(response)["code"]) == (500, "engine_error")


async def test_answers_tell_what_they_took(client: httpx.AsyncClient) -> None:
    response = await client.post("/rollout", json={"state": STATE, "actions": ACTIONS})

    timing = response.headers["server-timing"]
    assert re.fullmatch(r"queue;dur=\d+\.\d{3}, compute;dur=\d+\.\d{3}", timing)
