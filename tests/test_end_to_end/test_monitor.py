"""The safety monitor of the examples: its rules, its loop, and the real service's answers."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from examples import monitor_score
from examples.monitor import (
    BRAKE,
    BUDGET_S,
    CANDIDATES,
    FALLBACKS,
    PERIOD_S,
    PLAN,
    Decision,
    Judgement,
    ask,
    brake_in_lane,
    candidates,
    decide,
    is_avoidable,
    judgements_of,
    keeps_standing,
    reserve_m,
    served,
    watch,
)
from models.highway import highway_spec
from models.road_users import road_users_spec
from tests.test_end_to_end.conftest import Server, Start
from training.closed_loop import drives
from training.simulation.simulator import Simulation
from world_model_client import AsyncClient

SPEC = highway_spec()
BUNDLED = road_users_spec()
HORIZON = 16
PATIENCE_S = 30.0
"""For answers that come: a busy machine may take its time."""
FULL_BRAKE, GO_ON = [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]
Floats = NDArray[np.floating[Any]]


def state_of(speed: float = 22.0, *neighbours: dict[str, float], **ego: float) -> Floats:
    """A car on one lane of 4 m, and its neighbours."""
    features = {"speed": speed, "left_edge": 2.0, "right_edge": 2.0, **ego}
    for slot, neighbour in enumerate(neighbours, 1):
        features |= {f"neighbour_{slot}_{name}": x for name, x in neighbour.items()}
    state = np.zeros(SPEC.state_dim)
    for name, x in features.items():
        state[SPEC.state_index(name)] = x
    return state


def car(dx: float, dy: float = 0.0, speed: float = 6.0, **features: float) -> dict[str, float]:
    return {"presence": 1.0, "dx": dx, "dy": dy, "speed": speed, **features}


def with_sizes(state: Floats) -> Floats:
    """The same scene as the bundled model reads it, of cars of 4.8 x 1.9 m."""
    features = dict(zip((x.name for x in SPEC.state), state, strict=True))
    features |= {"length": 4.8, "width": 1.9}
    for slot in range(1, 5):
        is_there = features[f"neighbour_{slot}_presence"]
        features[f"neighbour_{slot}_length"] = is_there * 4.8
        features[f"neighbour_{slot}_width"] = is_there * 1.9
    return np.array([features[x.name] for x in BUNDLED.state])


def plan_of(action: list[float], horizon: int = HORIZON) -> Floats:
    return np.tile(np.array(action), (horizon, 1))


TOO_LATE = state_of(22.0, car(18.0))
"""Nothing touches within 0.8 s, and no brake helps: 13 m between bumpers, 16 m are needed."""


def test_the_reserve_before_a_standing_car_is_what_full_braking_leaves() -> None:
    assert reserve_m(state_of(20.0, car(45.0, speed=0.0))) == pytest.approx(40 - 20**2 / 16)


def test_no_brake_helps_at_22_against_6_and_18_metres() -> None:
    assert reserve_m(TOO_LATE) < 0
    # Even if the car ahead never brakes, 16 m/s are lost within 16 m.
    assert 13 - 16**2 / 16 < 0


def test_the_reserve_counts_on_the_car_ahead_braking_too() -> None:
    reserve = reserve_m(state_of(22.0, car(40.0)))

    assert reserve == pytest.approx(35 + 6**2 / 6 - 22**2 / 16)


def test_a_car_ahead_that_brakes_harder_leaves_less() -> None:
    fast = car(45.0, speed=22.0)

    assert reserve_m(state_of(22.0, fast | {"acceleration": -8.0})) == pytest.approx(40, abs=0.1)
    assert reserve_m(state_of(30.0, fast | {"acceleration": -8.0})) < reserve_m(
        state_of(30.0, fast | {"acceleration": 2.0})
    )


def test_the_reserve_is_smallest_on_the_way_not_at_its_end() -> None:
    """The car ahead goes on at 20 m/s while the ego is still faster, and is far away at the end."""
    state = state_of(30.0, car(10.0, speed=20.0))

    assert reserve_m(state) < 5 + 20**2 / 6 - 30**2 / 16


@pytest.mark.parametrize(
    "harmless",
    [
        car(10.0, dy=4.0),
        car(10.0, dy=-4.0),
        car(-10.0, speed=40.0),
        car(3.0, dy=2.2),
        car(10.0) | {"presence": 0.0},
    ],
    ids=["right lane", "left lane", "behind", "beside", "empty slot"],
)
def test_only_cars_ahead_in_the_corridor_count(harmless: dict[str, float]) -> None:
    assert reserve_m(state_of(22.0, harmless)) == np.inf
    both = state_of(22.0, harmless, car(60.0))
    assert reserve_m(both) == reserve_m(state_of(22.0, car(60.0)))


def test_an_empty_road_leaves_any_reserve() -> None:
    assert reserve_m(state_of(40.0)) == np.inf


def test_the_car_that_leaves_least_counts_whatever_its_slot() -> None:
    near_and_fast, far_and_slow = car(30.0, speed=22.0), car(40.0, speed=0.0)
    least = reserve_m(state_of(22.0, far_and_slow))

    assert reserve_m(state_of(22.0, near_and_fast)) > least
    for pair in ((near_and_fast, far_and_slow), (far_and_slow, near_and_fast)):
        assert reserve_m(state_of(22.0, *pair)) == least


def test_an_oncoming_car_takes_its_own_stopping_distance() -> None:
    oncoming = car(100.0, speed=15.0, heading=np.pi)

    assert reserve_m(state_of(20.0, oncoming)) == pytest.approx(95 - 20**2 / 16 - 15**2 / 6)


def test_a_car_that_comes_into_the_lane_counts() -> None:
    cutting_in = car(15.0, dy=4.0, speed=10.0, heading=-0.3)

    assert reserve_m(state_of(22.0, cutting_in)) < 0


def test_the_corridor_bends_with_the_road_and_turns_with_the_ego() -> None:
    on_bend = car(20.0, dy=4.0, heading=0.4)

    assert reserve_m(state_of(22.0, on_bend, curvature=0.02)) < 0
    assert reserve_m(state_of(22.0, on_bend, curvature=-0.02)) == np.inf
    # The ego points 0.1 rad to the right: a car straight ahead is 3 m to the right in the lane.
    assert reserve_m(state_of(22.0, car(30.0, heading=-0.1), sin_heading_error=0.1)) == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["speed", "curvature", "neighbour_1_dx", "neighbour_4_presence"])
def test_a_state_that_is_not_finite_leaves_no_reserve(name: str, value: float) -> None:
    states = np.stack([state_of(22.0, car(60.0)), state_of(22.0)])
    states[0, SPEC.state_index(name)] = value

    assert list(reserve_m(states)) == [-np.inf, np.inf]


def test_a_crash_is_avoidable_by_braking_after_the_reaction_or_at_the_end() -> None:
    free, blocked = state_of(22.0), TOO_LATE
    trajectory = np.stack([free, free, blocked, blocked, blocked])

    assert is_avoidable(trajectory, 0.0)
    assert is_avoidable(trajectory, 0.05)
    assert not is_avoidable(trajectory, 0.1)
    assert is_avoidable(np.concatenate([trajectory, free[None]]), 0.1)


def judged(
    verdict: str = "safe", risk: float = 0.001, state: Floats | None = None, horizon: int = HORIZON
) -> Judgement:
    state = state_of(22.0) if state is None else state
    return Judgement(verdict, risk, np.tile(state, (horizon + 1, 1)))


def judgements(plan: Judgement, fallback: Judgement, **others: Judgement) -> list[Judgement]:
    """What is judged like `plan` and `fallback`, but for fallbacks by name."""
    named = {name.replace("_", " "): judgement for name, judgement in others.items()}
    rest = [named.get(name.replace(",", ""), fallback) for name in FALLBACKS]
    return [plan, *rest]


DRIVING, GOING_ON = state_of(22.0), plan_of(GO_ON)


def test_a_safe_plan_that_leaves_room_passes() -> None:
    decision = decide(DRIVING, GOING_ON, judgements(judged(), judged("unsafe", 0.9)))

    assert decision == Decision(GOING_ON, PLAN, False, "")


@pytest.mark.parametrize("verdict", ["unsafe", "unknown"])
def test_a_plan_that_is_not_safe_gives_way_to_the_least_risk(verdict: str) -> None:
    answer = judgements(
        judged(verdict, 0.0), judged(risk=0.01), half_brake_keep_lane=judged(risk=0.005)
    )
    decision = decide(DRIVING, GOING_ON, answer)

    assert (decision.name, decision.is_alarm) == ("half brake, keep lane", True)
    assert verdict in decision.reason
    np.testing.assert_allclose(decision.actions[:, 2], 0.5)


def test_safe_fallbacks_come_before_unknown_and_unknown_before_unsafe() -> None:
    unsafe, unknown = judged("unsafe", 0.03), judged("unknown", 0.0)

    answer = judgements(unsafe, unsafe, coast_left=unknown)
    assert decide(DRIVING, GOING_ON, answer).name == "coast, left"
    answer = judgements(unsafe, unknown, coast_right=judged(risk=0.01))
    assert decide(DRIVING, GOING_ON, answer).name == "coast, right"
    answer = judgements(unsafe, unsafe, coast_right=judged("unsafe", 0.02))
    assert decide(DRIVING, GOING_ON, answer).name == "coast, right"


def test_where_all_is_unknown_the_car_brakes_in_its_lane() -> None:
    answer = judgements(judged("unknown"), judged("unknown", 0.5), coast_left=judged("unknown", 0))

    decision = decide(DRIVING, GOING_ON, answer)

    assert (decision.name, decision.is_alarm) == (BRAKE, True)


def test_silence_brakes_in_the_lane() -> None:
    decision = decide(state_of(22.0, lane_offset=1.0), GOING_ON, None)

    assert (decision.name, decision.is_alarm) == (BRAKE, True)
    assert (decision.actions[:, 2] == 1).all()
    assert decision.actions[0, 0] < 0  # back to the left


@pytest.mark.parametrize("state", [np.full(34, np.nan), state_of(np.inf)], ids=["none", "speed"])
def test_without_a_state_the_car_brakes_straight(state: Floats) -> None:
    decision = decide(state, GOING_ON, None)

    np.testing.assert_array_equal(decision.actions, plan_of(FULL_BRAKE))


@pytest.mark.parametrize("shape", [(0, 3), (16, 2), (3,)], ids=str)
@pytest.mark.parametrize("speed", [0.0, 22.0])
def test_a_plan_that_is_none_is_an_alarm(shape: tuple[int, ...], speed: float) -> None:
    decision = decide(state_of(speed), np.zeros(shape), None)

    assert decision.is_alarm
    assert decision.actions[0, 2] == 1


def test_a_safe_plan_from_which_no_brake_helps_is_an_alarm() -> None:
    """At 22 against 6 m/s and 18 m both are `safe`; the shoulder leaves room."""
    closing = judged(state=TOO_LATE)

    decision = decide(TOO_LATE, GOING_ON, judgements(closing, closing, full_brake_right=judged()))

    assert (decision.name, decision.is_alarm) == ("full brake, right", True)
    assert "no room" in decision.reason


def test_where_no_brake_helps_what_misses_least_is_taken() -> None:
    less = judged(risk=0.01, state=state_of(15.0, car(12.0)))
    assert reserve_m(less.trajectory[0]) > reserve_m(TOO_LATE)

    answer = judgements(judged(state=TOO_LATE), judged(state=TOO_LATE), full_brake_keep_lane=less)

    assert decide(TOO_LATE, GOING_ON, answer).name == BRAKE


@pytest.mark.parametrize("verdict", ["unsafe", "unknown", None])
@pytest.mark.parametrize(
    ("speed", "action"),
    [(0.8, FULL_BRAKE), (0.1, FULL_BRAKE), (0.0, [0.3, 0.0, 0.0]), (0.1, [0.0, 0.5, 0.5])],
)
def test_a_car_that_stands_and_stays_raises_no_alarm(
    verdict: str | None, speed: float, action: list[float]
) -> None:
    state = state_of(speed, car(5.5, speed=0.0))
    judgement = judged(verdict or "", 0.9, state)
    answer = judgements(judgement, judgement) if verdict else None

    decision = decide(state, plan_of(action), answer)

    assert (decision.name, decision.is_alarm) == (PLAN, False)


def test_a_standing_car_may_not_start_without_a_safe_answer() -> None:
    state, plan = state_of(0.0, car(5.5, speed=0.0)), plan_of([0.0, 0.5, 0.0])

    assert decide(state, plan, None).is_alarm
    assert decide(state, plan, judgements(judged("unknown"), judged("unknown"))).name == BRAKE


@pytest.mark.parametrize(
    ("speed", "action"),
    [
        (0.95, FULL_BRAKE),
        (22.0, FULL_BRAKE),
        (np.nan, FULL_BRAKE),
        (-0.1, FULL_BRAKE),
        (0.29, GO_ON),
        (0.01, [0.3, 0.0, 0.0]),
        (0.1, [0.0, 1.0, 0.625]),
        (0.0, [0.0, np.nan, 0.0]),
    ],
)
def test_a_car_that_moves_or_may_move_does_not_keep_standing(
    speed: float, action: list[float]
) -> None:
    assert not keeps_standing(state_of(speed), plan_of(action))


def test_a_car_that_creeps_without_brakes_is_watched() -> None:
    decision = decide(state_of(0.29, car(5.01, speed=0.0)), GOING_ON, None)

    assert (decision.name, decision.is_alarm) == (BRAKE, True)


async def test_silence_has_a_reason_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with answering(never) as client:
        await ask(client, DRIVING, GOING_ON)

    assert [record.getMessage() for record in caplog.records][-1] == "no answer: too late"


def test_candidates_are_the_plan_and_the_named_fallbacks() -> None:
    plan = plan_of([0.1, 0.2, 0.0], horizon=5)
    sequences = candidates(state_of(22.0, right_edge=10.0), plan)

    assert sequences.shape == (len(CANDIDATES), 5, 3)
    np.testing.assert_array_equal(sequences[0], plan)
    named = dict(zip(CANDIDATES, sequences, strict=True))
    assert (named[BRAKE][:, 2] == 1).all()
    assert named["coast, right"][0, 0] > 0
    np.testing.assert_array_equal(named[BRAKE], brake_in_lane(state_of(22.0, right_edge=10.0), 5))


def answer_of(**changes: Any) -> dict[str, Any]:
    """An answer of the service in which the first candidate, the plan, has other fields."""
    verdict = {
        "verdict": "safe",
        "crash_probability": 0.001,
        "trajectory": np.tile(DRIVING, (HORIZON + 1, 1)).tolist(),
    }
    return {"candidates": [verdict | changes, *[verdict] * len(FALLBACKS)], "best": 0}


def test_an_answer_is_read_as_it_is() -> None:
    read = judgements_of(answer_of(verdict="unsafe", crash_probability=1), HORIZON)

    assert [x.verdict for x in read] == ["unsafe", *["safe"] * len(FALLBACKS)]
    assert [x.risk for x in read] == [1.0, *[0.001] * len(FALLBACKS)]
    np.testing.assert_array_equal(read[0].trajectory[3], DRIVING)


@pytest.mark.parametrize("risk", [None, np.nan, np.inf, -0.1, 1.1, "0", True, [0.0]], ids=repr)
def test_safe_without_a_probability_is_unknown(risk: Any) -> None:
    read = judgements_of(answer_of(crash_probability=risk), HORIZON)[0]

    assert (read.verdict, read.risk) == ("unknown", np.inf)


@pytest.mark.parametrize("value", [None, np.nan, np.inf])
def test_safe_with_a_trajectory_that_is_not_finite_is_unknown(value: Any) -> None:
    trajectory = answer_of()["candidates"][0]["trajectory"]
    trajectory[5][7] = value

    assert judgements_of(answer_of(trajectory=trajectory), HORIZON)[0].verdict == "unknown"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"verdict": "safe", "crash_probability": 0.0},
        {"candidates": answer_of()["candidates"][1:]},
        {"candidates": ["safe"] * len(CANDIDATES)},
        answer_of(trajectory=None),
        answer_of(trajectory=[[0.0] * 34] * HORIZON),
        answer_of(trajectory=[[0.0] * 33] * (HORIZON + 1)),
        answer_of(trajectory=[["a"] * 34] * (HORIZON + 1)),
        answer_of(trajectory=[[0.0]] * HORIZON + [[]]),
    ],
    ids=lambda answer: str(answer)[:40],
)
def test_what_is_no_answer_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        judgements_of(answer, HORIZON)


@pytest.mark.parametrize("verdict", [None, "", "SAFE", 1, ["safe"]], ids=repr)
def test_another_word_is_not_safe(verdict: Any) -> None:
    read = judgements_of(answer_of(verdict=verdict), HORIZON)

    assert decide(DRIVING, GOING_ON, read).is_alarm


Reply = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


def answering(reply: Reply) -> AsyncClient:
    return AsyncClient("http://car", transport=httpx.MockTransport(reply), checks_ids=False)


def always(status: int, document: Any) -> Reply:
    async def reply(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, content=orjson.dumps(document))

    return reply


def failing(error: Exception) -> Reply:
    async def reply(request: httpx.Request) -> httpx.Response:
        raise error

    return reply


async def never(request: httpx.Request) -> httpx.Response:
    await asyncio.Event().wait()
    raise AssertionError


def error_of(code: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": "m", "details": []}}


SILENT = {
    "429": always(429, error_of("overloaded")),
    "503": always(503, error_of("unavailable")),
    "504": always(504, error_of("deadline_exceeded")),
    "422": always(422, error_of("invalid_request")),
    "refused": failing(httpx.ConnectError("refused")),
    "lost": failing(httpx.ReadError("lost")),
    "fault": failing(RuntimeError("a fault of ours")),
    "late": never,
    "list": always(200, []),
    "other": always(200, {"status": "ready"}),
}


@pytest.mark.parametrize("name", SILENT)
async def test_what_brings_no_answer_is_silence_and_stops_the_car(name: str) -> None:
    async with answering(SILENT[name]) as client:
        answer = await ask(client, DRIVING, GOING_ON, BUDGET_S if name == "late" else PATIENCE_S)

    assert answer is None
    assert decide(DRIVING, GOING_ON, answer).is_alarm


async def test_the_wait_ends_with_the_budget_however_long_the_client_would_wait() -> None:
    patient = AsyncClient(transport=httpx.MockTransport(never), margin_s=1e4)
    async with patient as client, asyncio.timeout(PATIENCE_S):
        assert await ask(client, DRIVING, GOING_ON) is None


async def test_a_fault_of_the_program_is_logged_with_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with answering(SILENT["fault"]) as client:
        await ask(client, DRIVING, GOING_ON, PATIENCE_S)

    assert any(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)


@pytest.mark.parametrize(
    ("state", "plan"),
    [(np.full(34, np.nan), GOING_ON), (DRIVING, plan_of([np.nan] * 3)), (DRIVING, np.zeros((3,)))],
    ids=["state", "plan", "shape"],
)
async def test_nothing_is_sent_that_is_no_state_or_plan(state: Floats, plan: Floats) -> None:
    async def reply(request: httpx.Request) -> httpx.Response:
        raise AssertionError

    async with answering(reply) as client:
        assert await ask(client, state, plan, PATIENCE_S) is None


async def test_one_request_asks_about_all_and_brings_its_deadline() -> None:
    seen: list[httpx.Request] = []

    async def reply(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=orjson.dumps(answer_of()))

    async with answering(reply) as client:
        answer = await ask(client, DRIVING, GOING_ON, PATIENCE_S)

    assert answer is not None
    (request,) = seen
    assert np.shape(json.loads(request.content)["actions"]) == (len(CANDIDATES), HORIZON, 3)
    assert float(request.headers["x-request-timeout-seconds"]) == PATIENCE_S


def test_an_answer_is_waited_for_less_than_a_period() -> None:
    assert 0 < BUDGET_S < PERIOD_S


class Clock:
    """Time passes where it is spent: while a state is read, and while the loop sleeps."""

    def __init__(self, spends_s: list[float]) -> None:
        self.now_s = 100.0
        self.spends_s = spends_s
        self.reads_s: list[float] = []

    def time(self) -> float:
        return self.now_s

    def read(self) -> tuple[Floats, Floats]:
        self.reads_s.append(self.now_s)
        self.now_s += self.spends_s[len(self.reads_s) - 1]
        return DRIVING, plan_of(GO_ON, HORIZON + 4)

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    async def watch(self, reply: Reply, budget_s: float = PATIENCE_S) -> list[Decision]:
        done: list[Decision] = []
        async with answering(reply) as client:
            await watch(
                client,
                self.read,
                done.append,
                horizon=HORIZON,
                budget_s=budget_s,
                ticks=len(self.spends_s),
                clock=self.time,
                sleep=self.sleep,
            )
        return done


async def test_decisions_come_once_a_period_without_drift() -> None:
    clock = Clock([0.01, 0.03, 0.0, 0.049] * 10)

    done = await clock.watch(always(200, answer_of()))

    assert not any(decision.is_alarm for decision in done)
    assert all(len(decision.actions) == HORIZON for decision in done)
    np.testing.assert_allclose(clock.reads_s, 100 + PERIOD_S * np.arange(40), atol=1e-9)


async def test_moments_that_passed_are_left_out_not_made_up_for() -> None:
    clock = Clock([0.0, 0.12, 0.0, 0.0])

    await clock.watch(always(200, answer_of()))

    passed = np.round(np.diff(clock.reads_s) / PERIOD_S, 6)
    np.testing.assert_array_equal(passed, [1, 3, 1])


async def test_a_silent_service_is_an_alarm_every_period_and_the_first_answer_ends_it() -> None:
    replies = [SILENT["late"], SILENT["503"], SILENT["refused"], always(200, answer_of())]
    left = iter([replies[0], replies[1], replies[1], replies[2], replies[2], replies[3]])

    async def reply(request: httpx.Request) -> httpx.Response:
        return await next(left)(request)  # the client sends some a second time

    done = await Clock([0.0] * 4).watch(reply, budget_s=1.0)

    assert [decision.is_alarm for decision in done] == [True, True, True, False]


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start()


async def judge(server: Server, state: Floats, plan: Floats) -> list[Judgement]:
    async with AsyncClient(server.url) as client:
        assert await served(client) == (BUNDLED, HORIZON)
        answer = await ask(client, state, plan, PATIENCE_S, BUNDLED)
    assert answer is not None
    return answer


async def test_the_service_calls_nothing_unsafe_that_cannot_be_avoided_and_the_monitor_does(
    server: Server,
) -> None:
    state = with_sizes(TOO_LATE)

    answer = await judge(server, state, GOING_ON)

    verdicts = {name: x.verdict for name, x in zip(CANDIDATES, answer, strict=True)}
    assert (verdicts[PLAN], verdicts[BRAKE]) == ("unknown", "safe")
    # The figures of docs/monitoring.md.
    assert [answer[0].risk, answer[1].risk] == pytest.approx([0.0147, 0.0053], abs=2e-4)
    decision = decide(state, GOING_ON, answer, spec=BUNDLED)
    assert decision.is_alarm
    assert decision.name.startswith("full brake")


async def test_the_service_and_the_monitor_let_a_free_road_pass(server: Server) -> None:
    state = with_sizes(state_of(22.0, car(60.0, speed=22.0)))

    answer = await judge(server, state, GOING_ON)

    assert not decide(state, GOING_ON, answer, spec=BUNDLED).is_alarm


def test_the_monitor_needs_neither_torch_nor_the_simulator() -> None:
    code = "import sys, examples.monitor; print({'torch', 'highway_env'} & set(sys.modules))"

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert shown.stdout.strip() == "set()"


async def test_a_model_without_calibration_or_of_another_spec_is_refused() -> None:
    names = [{"name": feature.name} for feature in SPEC.state]
    model = {"features": {"state": names}, "thresholds": {"evaluated_horizon": None}}
    async with answering(always(200, model)) as client:
        with pytest.raises(ValueError, match="never calibrated"):
            await served(client)
    async with answering(always(200, model | {"features": {"state": names[:3]}})) as client:
        with pytest.raises(ValueError, match="highway"):
            await served(client)


def test_the_score_compares_all_arms_and_fills_the_page(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drives, "MAX_STEPS", 3)
    page, out = tmp_path / "page.md", tmp_path / "scores.json"
    page.write_text(f"above\n{monitor_score.START}\nold\n{monitor_score.END}\nbelow\n")

    result = CliRunner().invoke(
        monitor_score.main,
        ["--url", server.url, "--drives", "1", "--out", str(out), "--page", str(page)],
    )

    assert result.exit_code == 0, result.output
    parts = json.loads(out.read_text())["parts"]
    assert len(parts) == len(monitor_score.PARTS)
    for part in monitor_score.PARTS:
        assert list(parts[part.title])[1:] == list(part.arms)
        assert part.title in page.read_text()
    assert page.read_text().startswith("above\n")
    assert page.read_text().endswith("below\n")
    assert "old" not in page.read_text()


def test_an_outage_is_silent_at_the_end_of_each_cycle() -> None:
    outage = monitor_score.Outage(steps=20)

    silent = [outage.is_now() for _ in range(200)]

    assert silent == ([False] * 80 + [True] * 20) * 2
    assert not any(replace(outage, steps=0, passed=0).is_now() for _ in range(100))


@pytest.mark.parametrize("seed", [3, 20_000_000])
def test_the_end_of_a_queue_is_in_every_lane_and_a_driver_who_sees_nothing_hits_it(
    seed: int,
) -> None:
    drive = monitor_score.into_queue(seed)
    world = drive.world
    assert isinstance(world, Simulation)
    ahead = [x for x in world.state()[7:34:7] if x]

    lanes = {vehicle.lane_index for vehicle in world.others}
    assert len(lanes) == len(world.others) == len(world.poses) - 1 >= 2
    assert ahead == pytest.approx([monitor_score.QUEUE_AHEAD_S * world.ego.speed] * len(ahead), 0.1)
    while not drive.is_over:
        world.step(drive.driver.action(world.ego))
        drive.outcome.speeds.append(world.features[0])
    assert world.cause == 1


def test_the_monitoring_page_has_the_markers() -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()

    assert page.index(monitor_score.START) < page.index(monitor_score.END)
