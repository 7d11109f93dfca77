"""Where packing numbers could differ from what the contract says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import orjson
import pytest

from service.errors import InvalidRequestError
from service.http.contract import Contract
from service.http.reading.bodies import BodyParser
from tests.fakes.engine import fake_spec
from tests.test_service.test_http.test_reading.test_bodies import (
    ACTION,
    PARSER,
    STATE,
    parsed,
    refused,
)

RAGGED = [
    b'{"state":[1,2,3],"actions":[[0,0],[0],[0,0,0]]}',
    b'{"state":[1,2,3],"actions":[[[0,0],[0,0,0]],[[0],[0,0]]]}',
]
LARGEST = 3.4028235677973362e38  # of those that round to the largest float32


def test_states_reach_to_the_largest_float32_and_no_further() -> None:
    call = parsed("predict", state=[LARGEST, -LARGEST, 2**63], action=ACTION)
    beyond = [0.0, math.nextafter(LARGEST, math.inf), 0.0]
    error = refused("predict", {"state": beyond, "action": ACTION})

    assert call.states.tolist() == [[np.finfo(np.float32).max, np.finfo(np.float32).min, 2.0**63]]
    assert error.details[0]["field"] == "state[1]"


@pytest.mark.parametrize("count", [1, 200], ids=["few", "many"])
def test_huge_numbers_are_refused_without_a_warning(count: int) -> None:
    parser = BodyParser(Contract(fake_spec(), max_horizon=4, max_rows=200))
    body = f'{{"state":[{",".join(["[1,1e300,3]"] * count)}],"action":[0,0]}}'.encode()
    large = body.replace(b"1e300", b"%r" % LARGEST)

    assert parser.read("predict", large).states[0, 1] == np.finfo(np.float32).max
    with pytest.raises(InvalidRequestError, match=r"state\[0\]\[1\] is 1e\+300"):
        parser.read("predict", body)


@pytest.mark.parametrize("count", [1, 2], ids=["one row", "many rows"])
def test_ranges_are_those_of_doubles(count: int) -> None:
    body = {"state": STATE, "actions": [ACTION] * (count - 1) + [[0.5, 1.00000001]]}

    assert refused("rollout", body).details[0]["field"] == f"actions[{count - 1}][1]"


@pytest.mark.parametrize(
    "body",
    [
        b'{"state":[1,-2.5,3],"action":[0.5,1]}',
        b'{ "state" : [ 1 , -2.5e0 ,\n 3.0 ] , "action" : [ 0.5 , 1 ] }',
        b'{"action": [[0.5, 1], [0.5, 1]], "state": [[1, -2.5, 3], [1, -2.5, 3]]}',
    ],
    ids=["dense", "blanks", "batch"],
)
def test_plain_bodies_are_never_read_slowly(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setattr("service.http.reading.walk.Walk.fields", None)

    for _ in range(3):  # a parser must be free again
        assert PARSER.read("predict", body).states[0].tolist() == [1.0, -2.5, 3.0]


@pytest.mark.parametrize(
    "body",
    [
        b'{"st\\u0061te": [1, -2.5, 3], "action": [0.5, 1]}',
        b'{"state": [1.0000000000000000000000000, -2.5, 3], "action": [0.5, 1]}',
    ],
    ids=["an escaped name", "many digits"],
)
def test_unusual_bodies_say_what_json_says(body: bytes) -> None:
    parsed = PARSER.read("predict", body)

    assert (parsed.states.tolist(), parsed.actions.tolist()) == ([[1.0, -2.5, 3.0]], [[[0.5, 1.0]]])


def test_whole_numbers_of_any_size_are_read() -> None:
    parsed = PARSER.read("predict", b'{"state": [%d, 2, 3], "action": [0.5, 1]}' % 10**30)

    assert parsed.states[0, 0] == np.float32(1e30)


@pytest.mark.parametrize("body", RAGGED, ids=str)
def test_lists_of_other_lengths_that_add_up_are_refused(body: bytes) -> None:
    """Their numbers alone would fill the right shape."""
    with pytest.raises(InvalidRequestError, match=r"has 1 action features|has more than 2 action"):
        PARSER.read("rollout", body)


def test_lists_of_no_number_are_not_taken_for_lists_of_one() -> None:
    """Without what numbers are written with, both look the same."""
    spec = replace(fake_spec(), action=fake_spec().action[:1])
    parser = BodyParser(Contract(spec, max_horizon=4, max_rows=3))

    for actions in ("[[1],[0]]", "[[],[0]]", "[[1],[]]"):
        body = f'{{"state":[1,2,3],"actions":{actions}}}'.encode()
        if "[]" not in actions:
            assert parser.read("rollout", body).actions.tolist() == [[[1.0], [0.0]]]
            continue
        with pytest.raises(InvalidRequestError, match="action features"):
            parser.read("rollout", body)


def test_equal_numbers_and_many_names_are_read_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.http.reading.walk.Walk.fields", None)
    parser = BodyParser(Contract(fake_spec(), max_horizon=4, max_rows=200))
    rows = orjson.dumps({"state": [[LARGEST] * 3] * 200, "action": ACTION})
    names = orjson.dumps({"state": STATE, "actions": [ACTION], "outputs": ["states"] * 16})

    assert parser.read("predict", rows).states.shape == (200, 3)
    assert parser.read("rollout", names).outputs == ("states",) * 16


@pytest.mark.parametrize(
    "other", [b"3", b"3e-00000000000000000000", b"-3", b"3.0000000000000000000000"]
)
def test_long_whole_numbers_are_read_fast(monkeypatch: pytest.MonkeyPatch, other: bytes) -> None:
    monkeypatch.setattr("service.http.reading.walk.Walk.fields", None)
    body = b'{"state":[1%b, -1%b,%b],"action":[0,0]}' % (b"0" * 30, b"0" * 25, other)

    assert PARSER.read("predict", body).states.tolist() == [
        [np.float32(1e30), np.float32(-1e25), float(other)]
    ]


def test_a_body_that_took_the_long_way_takes_the_short_one_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parser = BodyParser(Contract(fake_spec(), max_horizon=4, max_rows=3))
    body = b'{"st\\u0061te": [1, -2.5, 3], "action": [0.5, 1]}'
    before = parser.read("predict", body)
    monkeypatch.setattr("service.http.reading.walk.Walk.fields", None)
    after = parser.read("predict", body)

    assert after.states.tolist() == before.states.tolist() == [[1.0, -2.5, 3.0]]
    assert after.is_single is before.is_single is True


def test_few_layouts_are_remembered() -> None:
    parser = BodyParser(Contract(fake_spec(), max_horizon=40, max_rows=3))
    kept = []
    for horizon in range(1, 41):
        parser.read("rollout", orjson.dumps({"state": STATE, "actions": [ACTION] * horizon}))
        kept.append(len(parser._layouts))

    assert max(kept) == 32


def test_more_layouts_than_are_remembered_can_come() -> None:
    parser = BodyParser(Contract(fake_spec(), max_horizon=40, max_rows=3))
    for horizon in (*range(1, 41), 1):
        body = f'{{"state":{STATE},"actions":{[ACTION] * horizon}}}'.encode()

        assert parser.read("rollout", body).actions.shape == (1, horizon, 2)


def test_a_name_that_looks_like_a_field_hides_nothing() -> None:
    fields = rb'"state":[1,2,3],"actions":[[0,0],[0],[0,0,0]]'
    body = rb'{"outputs":["\"actions\":[[,],[,],[,]]"],' + fields + b"}"

    assert refused("rollout", body).details[0]["field"] == "actions[1]"
