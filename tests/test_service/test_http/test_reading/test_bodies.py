from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Self, cast

import numpy as np
import orjson
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError, create_model, model_validator

from models.highway import highway_spec
from models.road_users import road_users_spec
from models.spec import Saturation, anonymous_spec
from service.errors import InvalidRequestError
from service.http.contract import Contract, Kind
from service.http.reading.bodies import BodyParser, Parsed
from service.http.reading.bodies import _result as result
from service.http.schemas import request_model
from tests.fakes.engine import fake_spec

CONTRACT = Contract(fake_spec(), max_horizon=4, max_rows=3, members=5)
PARSER = BodyParser(CONTRACT)
KINDS: tuple[Kind, ...] = ("predict", "rollout", "safety_check")


class Paired(BaseModel):
    """What schemas cannot say: as many states as actions, or one of them bare."""

    @model_validator(mode="after")
    def rows_match(self) -> Self:
        actions = getattr(self, "actions", None)
        action_rows = row_count(getattr(self, "action", actions), 2 if actions is None else 3)
        state_rows = row_count(getattr(self, "state", None), 2)
        if None not in (state_rows, action_rows) and state_rows != action_rows:
            raise ValueError(f"{action_rows} action rows for {state_rows} states")
        if row_count(actions, 3) is not None and len({len(x) for x in actions or ()}) > 1:
            raise ValueError("sequences have different numbers of steps")
        return self


def row_count(value: Any, batch_depth: int) -> int | None:
    """Return the number of rows of nested lists, or None if they have no batch level."""
    depth, inner = 0, value
    while isinstance(inner, list | tuple):
        depth += 1
        inner = inner[0]
    return len(value) if depth == batch_depth else None


def declared(contract: Contract, kind: Kind) -> type[BaseModel]:
    return create_model(kind, __base__=(request_model(contract, kind, kind), Paired))


READERS: dict[str, tuple[Callable[[bytes], Parsed], type[BaseModel]]] = {
    kind: (partial(PARSER.read, kind), declared(CONTRACT, kind)) for kind in KINDS
}

STATE, ACTION = [1.0, -2.5, 3], [0.5, 1]
FRAME = "forward-left-up"


def refused(kind: str, body: Any) -> InvalidRequestError:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    with pytest.raises(InvalidRequestError) as caught:
        READERS[kind][0](raw)
    return caught.value


def parsed(kind: str, **fields: Any) -> Parsed:
    return READERS[kind][0](orjson.dumps(fields))


@pytest.mark.parametrize(
    ("state", "action", "is_single", "count"),
    [
        (STATE, ACTION, True, 1),
        ([STATE], [ACTION], False, 1),
        ([STATE] * 3, [ACTION] * 3, False, 3),
        (STATE, [ACTION] * 2, False, 2),
        ([STATE] * 2, ACTION, False, 2),
    ],
    ids=["single", "batch of one", "batch", "one state", "one action"],
)
def test_predict_broadcasts(state: Any, action: Any, is_single: bool, count: int) -> None:
    call = parsed("predict", state=state, action=action)

    assert call.is_single is is_single
    assert np.array_equal(call.states, np.array([STATE] * count, np.float32))
    assert np.array_equal(call.actions, np.array([[ACTION]] * count, np.float32))
    assert {call.states.dtype, call.actions.dtype} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("state", "actions", "is_single", "shape"),
    [
        (STATE, [ACTION] * 4, True, (1, 4, 2)),
        (STATE, [[ACTION] * 2] * 3, False, (3, 2, 2)),
        ([STATE] * 3, [[ACTION] * 2] * 3, False, (3, 2, 2)),
        ([STATE] * 3, [ACTION] * 2, False, (3, 2, 2)),
        ([STATE], [[ACTION]], False, (1, 1, 2)),
    ],
    ids=["single", "one state", "batch", "one sequence", "batch of one"],
)
def test_rollout_broadcasts(
    state: Any, actions: Any, is_single: bool, shape: tuple[int, ...]
) -> None:
    call = parsed("rollout", state=state, actions=actions)

    assert (call.is_single, call.actions.shape, len(call.states)) == (is_single, shape, shape[0])
    assert call.outputs == ("states", "rewards", "dones")


def test_options_are_read() -> None:
    rollout = parsed("rollout", state=STATE, actions=[ACTION], outputs=["returns", "states"])
    check = parsed(
        "safety_check", state=STATE, actions=[ACTION], threshold=0.25, include=["trajectory"]
    )
    bare = parsed("safety_check", state=STATE, actions=[ACTION])

    assert rollout.outputs == ("returns", "states")
    assert (check.threshold, check.has_trajectory) == (0.25, True)
    assert (bare.threshold, bare.has_trajectory) == (None, False)


@pytest.mark.parametrize("kind", sorted(READERS))
@pytest.mark.parametrize("dt_s", [0.1, "1e-1", float(np.float32(0.1)), 0.1 * (1 + 9e-7)])
def test_conventions_that_are_the_models_change_nothing(kind: str, dt_s: Any) -> None:
    fields = {
        "state": STATE,
        **({"action": ACTION} if kind == "predict" else {"actions": [ACTION]}),
    }
    text = orjson.dumps({**fields, "frame": FRAME, "dt_s": 0}).replace(
        b":0}", f":{dt_s}}}".encode()
    )

    bare, given = parsed(kind, **fields), READERS[kind][0](text)

    assert given[0].tobytes() == bare[0].tobytes()
    assert given[2:] == bare[2:]


@pytest.mark.parametrize("kind", sorted(READERS))
@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("dt_s", 0.05, "is 0.05"),
        ("dt_s", 0.10001, "is 0.10001"),
        ("dt_s", 0, "is 0"),
        ("dt_s", -0.1, "is -0.1"),
        ("dt_s", "0.1", 'is "0.1"'),
        ("dt_s", None, "is null"),
        ("dt_s", True, "is true"),
        ("frame", "forward-right-down", 'is "forward-right-down"'),
        ("frame", "", 'is ""'),
        ("frame", None, "is null"),
        ("frame", 3, "is 3"),
        ("frame", "x" * 9999, f'is "{"x" * 39}...'),
    ],
)
def test_conventions_that_are_not_the_models_are_refused(
    kind: str, name: str, value: Any, problem: str
) -> None:
    fields = {
        "state": STATE,
        **({"action": ACTION} if kind == "predict" else {"actions": [ACTION]}),
    }
    allowed = {
        "dt_s": "0.1, the length of this model's steps in seconds",
        "frame": f"{FRAME}, the axes of this model",
    }[name]

    error = refused(kind, {**fields, name: value})

    assert error.details == [{"field": name, "problem": problem, "allowed": allowed}]


@pytest.mark.parametrize("kind", ["rollout", "safety_check"])
def test_members_are_those_asked_for_and_all_of_them_are_none_in_particular(kind: str) -> None:
    fields: dict[str, Any] = {"state": STATE, "actions": [ACTION]}

    seen = [parsed(kind, **fields, members=k).members for k in range(1, 6)]

    assert seen == [1, 2, 3, 4, None]
    assert parsed(kind, **fields).members is None


@pytest.mark.parametrize("text", ["2.0", "2e0"])
@pytest.mark.parametrize("is_long", [False, True], ids=["short", "long"])
def test_a_whole_number_may_be_written_with_a_point(text: str, is_long: bool) -> None:
    """An integer of JSON Schema is any number without a fraction."""
    body = f'{{"state":[1,2,3],"members":{text},"actions":[[0.5,1]]}}'.encode()
    kind: Kind = "rollout"
    read = (lambda body: result(PARSER.in_slices(kind, body))) if is_long else READERS[kind][0]

    members = read(body).members

    assert (members, type(members)) == (2, int)


@pytest.mark.parametrize("kind", ["rollout", "safety_check"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0", "is 0"),
        ("-0", "is 0"),
        ("-1", "is -1"),
        ("6", "is 6"),
        ("1.5", "is 1.5"),
        ("true", "is true"),
        ("false", "is false"),
        ('"2"', 'is "2"'),
        ("null", "is null"),
        ("9" * 30, "is 1e+30"),
        ("[2]", "must be a single value, is a list"),
        ("{}", "must be a single value, is an object"),
    ],
)
@pytest.mark.parametrize("is_long", [False, True], ids=["short", "long"])
def test_members_that_there_are_not_are_refused(
    kind: Kind, text: str, problem: str, is_long: bool
) -> None:
    body = f'{{"state":[1,2,3],"members":{text},"actions":[[0.5,1]]}}'.encode()
    read = (lambda body: result(PARSER.in_slices(kind, body))) if is_long else READERS[kind][0]

    with pytest.raises(InvalidRequestError) as caught:
        read(body)

    allowed = {"allowed": "a whole number from 1 to 5, the members that are served"}
    is_value = text[0] not in "[{"
    assert caught.value.details == [
        {"field": "members", "problem": problem, **(allowed if is_value else {})}
    ]


def test_one_step_is_predicted_by_all_members() -> None:
    error = refused("predict", {"state": STATE, "action": ACTION, "members": 1})

    assert error.details[0]["problem"] == "is not a known field"


def test_a_model_without_a_frame_knows_no_such_field() -> None:
    parser = BodyParser(Contract(replace(fake_spec(), frame=None), max_horizon=4, max_rows=3))
    body = orjson.dumps({"state": STATE, "action": ACTION, "frame": FRAME})

    with pytest.raises(InvalidRequestError, match=r"frame is not a known field .*dt_s\)"):
        parser.read("predict", body)


def actions_with(value: Any) -> list[Any]:
    actions: list[Any] = [[list(ACTION) for _ in range(2)] for _ in range(2)]
    actions[1][0][1] = value
    return actions


@pytest.mark.parametrize(
    ("value", "problem", "allowed"),
    [
        (1.5, "lift is 1.5", "0 to 1"),
        (-0.0001, "lift is -0.0001", "0 to 1"),
        ("1", "must be a number, is a string", None),
        (True, "must be a number, is a boolean", None),
        (None, "must be a number, is null", None),
        ([1], "must be a number, is a list", None),
        ({}, "must be a number, is an object", None),
        (1e39, "is 1e+39, not a finite number of 32 bits", "up to 3.4028235677973362e+38"),
        (1.0000001, "lift is 1.0000001", "0 to 1"),
        (123456789012345680, "lift is 1.2345678901234568e+17", "0 to 1"),
    ],
    ids=[
        "above",
        "below",
        "string",
        "boolean",
        "null",
        "list",
        "object",
        "overflow",
        "close to its bound",
        "long",
    ],
)
def test_a_bad_number_is_named_with_its_path(value: Any, problem: str, allowed: str | None) -> None:
    error = refused("rollout", {"state": STATE, "actions": actions_with(value)})

    entry = {"field": "actions[1][0][1]", "problem": problem}
    assert error.details == [entry if allowed is None else {**entry, "allowed": allowed}]
    assert error.message.startswith("actions[1][0][1] ")


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e400"])
def test_a_non_finite_literal_is_named_with_its_path(literal: bytes) -> None:
    body = b'{"state": [1, %s, 2], "action": [0, 0]}' % literal

    assert refused("predict", body).details[0]["field"] == "state[1]"


@pytest.mark.parametrize(
    ("state", "actions", "field", "problem"),
    [
        (STATE, [], "actions", "has 0 steps"),
        (STATE, [[]], "actions[0]", "has 0 action features"),
        (STATE, [[[]]], "actions[0][0]", "has 0 action features"),
        (STATE, [ACTION] * 5, "actions", "has more than 4 steps"),
        (STATE, [[ACTION]] * 4, "actions", "has more than 3 sequences"),
        (STATE, [[ACTION] * 5], "actions[0]", "has more than 4 steps"),
        (STATE, [[ACTION], [ACTION] * 2], "actions[1]", "has more than 1 steps, actions[0] has 1"),
        (STATE, [[ACTION] * 2, [ACTION]], "actions[1]", "has 1 steps, actions[0] has 2"),
        (STATE, [ACTION, 1], "actions[1]", "must be a list of action features, is a number"),
        (STATE, 1, "actions", "must be a list of steps, is a number"),
        (STATE, "1", "actions", "must be a list of steps, is a string"),
        (STATE, [[[[1.0]]]], "actions[0][0][0]", "must be a number, is a list"),
        (STATE, [ACTION, [0.5]], "actions[1]", "has 1 action features"),
        ([1, 2], [ACTION], "state", "has 2 state features"),
        ([], [ACTION], "state", "has 0 state features"),
        ([*STATE, 4], [ACTION], "state", "has more than 3 state features"),
        ([STATE] * 4, [ACTION], "state", "has more than 3 rows"),
        ([STATE, [1]], [ACTION], "state[1]", "has 1 state features"),
        ([STATE] * 2, [[ACTION]] * 3, "actions", "has 3 rows, state has 2"),
    ],
)
def test_wrong_shapes_are_named(state: Any, actions: Any, field: str, problem: str) -> None:
    error = refused("rollout", {"state": state, "actions": actions})

    assert (error.details[0]["field"], error.details[0]["problem"]) == (field, problem)


def test_limits_are_named() -> None:
    long = refused("rollout", {"state": STATE, "actions": [ACTION] * 5})
    wide = refused("rollout", {"state": STATE, "actions": [[ACTION]] * 4})

    assert long.details[0]["allowed"] == "1 to 4 steps"
    assert wide.details[0]["allowed"] == "1 to 3 sequences"


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        ("predict", b"", "body"),
        ("predict", b"{", "body"),
        ("predict", b'{"state": "\xff"}', "state"),
        ("predict", b'{"\xff": 1}', "body"),
        ("predict", b"[" * 100_000, "body"),
        ("predict", b"[NaN]", "body"),
        ("predict", [], "body"),
        ("predict", None, "body"),
        ("predict", {"state": STATE}, "action"),
        ("predict", {"state": STATE, "action": ACTION, "x" * 500: 1}, "x" * 500),
        ("rollout", {"state": STATE, "actions": [ACTION], "outputs": []}, "outputs"),
        ("rollout", {"state": STATE, "actions": [ACTION], "outputs": "states"}, "outputs"),
        ("rollout", {"state": STATE, "actions": [ACTION], "outputs": ["q"]}, "outputs[0]"),
        ("rollout", {"state": STATE, "actions": [ACTION], "outputs": [[1]]}, "outputs[0]"),
        ("safety_check", {"state": [STATE], "actions": [[ACTION]]}, "state"),
        ("safety_check", {"state": STATE, "actions": [ACTION], "threshold": 2}, "threshold"),
        ("safety_check", {"state": STATE, "actions": [ACTION], "threshold": None}, "threshold"),
        ("safety_check", {"state": STATE, "actions": [ACTION], "threshold": True}, "threshold"),
        ("safety_check", {"state": STATE, "actions": [ACTION], "include": ["x"]}, "include[0]"),
    ],
)
def test_broken_bodies_name_the_field(kind: str, body: Any, field: str) -> None:
    assert refused(kind, body).details[0]["field"] == field


def test_many_faults_are_listed_up_to_a_bound() -> None:
    error = refused("rollout", {"state": ["x"] * 3, "actions": [[[9, 9]] * 4] * 3})

    assert [x["field"] for x in error.details[:4]] == [f"state[{i}]" for i in range(3)] + [
        "actions[0][0][0]"
    ]
    assert len(error.details) == 16
    assert error.message.endswith("and 15 more problems")


def test_booleans_elsewhere_do_not_matter() -> None:
    body = b'{"state": [1, 2, 3], "actions": [[0.5, 1]], "outputs": ["true"]}'

    assert refused("rollout", body).details[0]["field"] == "outputs[0]"


STRANGE: st.SearchStrategy[Any] = st.one_of(
    st.floats(-1.5, 1.5),
    st.sampled_from([0, 1, -1, 2, 2.0, 1e39, -3.5e38, 3.4028234663852886e38, 2.0**70, -(2**63)]),
    st.sampled_from([None, True, False, "0.5", {}, [], [[]], [0.5], [0.5, 0.5], [[0.5, 0.5]]]),
)


def nested(draw: st.DrawFn, *shape: int) -> Any:
    """Return nested lists of this shape, of numbers that every feature allows."""
    if not shape:
        return draw(st.one_of(st.floats(0, 1), st.sampled_from([0, 1])))
    return [nested(draw, *shape[1:]) for _ in range(shape[0])]


def spoil(draw: st.DrawFn, value: Any) -> Any:
    """Replace, drop or repeat an entry at some depth."""
    if not isinstance(value, list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(STRANGE)
    place = draw(st.integers(0, len(value) - 1))
    how = draw(st.sampled_from(["deeper", "deeper", "deeper", "drop", "repeat"]))
    if how == "drop":
        return value[:place] + value[place + 1 :]
    if how == "repeat":
        return [*value, value[place]]
    return [*value[:place], spoil(draw, value[place]), *value[place + 1 :]]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid body, spoilt in none, one or two places."""
    kind = draw(st.sampled_from(sorted(READERS)))
    rows, steps = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    state_batch = [] if kind == "safety_check" else draw(st.sampled_from([[], [rows]]))
    batch = draw(st.sampled_from([[], [rows]]))
    body: dict[str, Any] = {"state": nested(draw, *state_batch, 3)}
    if kind == "predict":
        body["action"] = nested(draw, *batch, 2)
    else:
        body["actions"] = nested(draw, *batch, steps, 2)
    if kind == "rollout" and draw(st.booleans()):
        body["outputs"] = draw(st.lists(st.sampled_from(["states", "returns"]), min_size=1))
    if kind == "safety_check" and draw(st.booleans()):
        body |= {"threshold": draw(st.floats(0, 1)), "include": ["trajectory"]}
    if kind != "predict" and draw(st.booleans()):
        body["members"] = draw(st.sampled_from([1, 4, 5, 6]))
    if draw(st.booleans()):
        body |= {"dt_s": draw(st.sampled_from([0.1, 0.1000000001, 0.2])), "frame": FRAME}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*body, *body, "state", "extra"]))
        body[name] = spoil(draw, body.get(name))
    if draw(st.integers(0, 15)) == 0:
        body.pop(draw(st.sampled_from(sorted(body))))
    return kind, orjson.dumps(body)


@settings(max_examples=300, deadline=None)
@given(bodies())
def test_fast_parsing_and_the_declared_contract_agree(case: tuple[str, bytes]) -> None:
    kind, body = case
    parse, model = READERS[kind]
    try:
        parse(body)
        is_accepted = True
    except InvalidRequestError:
        is_accepted = False
    event(f"{kind} {'accepted' if is_accepted else 'refused'}")
    try:
        model.model_validate_json(body)
        is_declared = True
    except ValidationError:
        is_declared = False

    assert is_accepted is is_declared


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3))
def test_float32_states_arrive_with_their_bits(state: list[float]) -> None:
    sent = np.array(state, np.float32)
    body = orjson.dumps({"state": sent, "action": ACTION}, option=orjson.OPT_SERIALIZE_NUMPY)

    arrived = cast(Any, PARSER.read("predict", body).states)[0]

    assert arrived.tobytes() == sent.tobytes()


@pytest.mark.parametrize(
    ("state", "actions"),
    [
        ([STATE] * 2, [[ACTION]] * 3),
        (STATE, [[ACTION], [ACTION] * 2]),
    ],
    ids=["other number of rows", "other number of steps"],
)
def test_reader_and_schema_refuse_what_no_single_field_shows(state: Any, actions: Any) -> None:
    body = orjson.dumps({"state": state, "actions": actions})

    refused("rollout", body)
    with pytest.raises(ValidationError):
        READERS["rollout"][1].model_validate_json(body)


HIGHWAY = BodyParser(Contract(highway_spec(), max_horizon=4, max_rows=300))


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("predict", 1),
        ("predict", 3),
        ("predict", 300),
        ("rollout", 1),
        ("rollout", 300),
        ("safety_check", 1),
    ],
)
@pytest.mark.parametrize("is_sliced", [False, True], ids=["at once", "in slices"])
def test_numbers_left_in_empty_slots_are_zeroed(kind: Kind, count: int, is_sliced: bool) -> None:
    rng = np.random.default_rng(0)
    sent = rng.uniform(0.5, 1.5, (count, 34)).astype(np.float32)
    sent[-1, [6, 20]] = 0.0, -0.0  # presences of the first and the third neighbour
    expected = sent.copy()
    expected[-1, [*range(6, 13), *range(20, 27)]] = 0.0
    states = sent.tolist() if count > 1 else sent[0].tolist()
    action = {"action": [0, 0, 0]} if kind == "predict" else {"actions": [[0, 0, 0]]}
    body = orjson.dumps({"state": states, **action})

    parsed = result(HIGHWAY.in_slices(kind, body)) if is_sliced else HIGHWAY.read(kind, body)

    assert parsed.states.tobytes() == expected.tobytes()


LEAST = float(np.finfo(np.float32).tiny)


@pytest.mark.parametrize("count", [1, 3, 300])
@pytest.mark.parametrize("is_sliced", [False, True], ids=["at once", "in slices"])
@pytest.mark.parametrize(
    ("presence", "read"),
    [(1e-46, LEAST), (-1e-46, -LEAST), (5e-324, LEAST), (1e-44, 9.809089e-45), (0.0, 0.0)],
)
def test_a_presence_that_is_not_0_does_not_become_0(
    presence: float, read: float, count: int, is_sliced: bool
) -> None:
    """A car that is there would be judged as absent, and its other features be zeroed."""
    sent = np.full((count, 34), 0.5)
    sent[0, 6], sent[-1, 13] = 0.0, presence
    expected = sent.astype(np.float32)
    expected[0, 6:13] = 0.0
    expected[-1, 13:20] = 0.5 if presence else 0.0
    expected[-1, 13] = read
    states = sent.tolist() if count > 1 else sent[0].tolist()
    body = orjson.dumps({"state": states, "action": [0, 0, 0]})

    kind: Kind = "predict"
    parsed = result(HIGHWAY.in_slices(kind, body)) if is_sliced else HIGHWAY.read(kind, body)

    assert parsed.states.tobytes() == expected.tobytes()


SIZED_SPEC = road_users_spec()
SIZED = BodyParser(Contract(SIZED_SPEC, max_horizon=4, max_rows=300))


@pytest.mark.parametrize("count", [1, 3, 300])
@pytest.mark.parametrize("is_sliced", [False, True], ids=["at once", "in slices"])
def test_far_edges_saturate_and_slots_without_length_are_zeroed(
    count: int, is_sliced: bool
) -> None:
    sent = np.random.default_rng(0).uniform(0.5, 1.5, (count, 34)).astype(np.float32)
    left, length = SIZED_SPEC.state_index("left_edge"), SIZED_SPEC.state_index("neighbour_2_length")
    sent[-1, [left, length]] = 30.0, 0.0
    expected = sent.copy()
    expected[-1, left] = 16.0
    of_second = [i for i, x in enumerate(SIZED_SPEC.state) if x.name.startswith("neighbour_2")]
    expected[-1, of_second] = 0.0
    states = sent.tolist() if count > 1 else sent[0].tolist()
    body = orjson.dumps({"state": states, "action": [0, 0, 0]})

    kind: Kind = "predict"
    parsed = result(SIZED.in_slices(kind, body)) if is_sliced else SIZED.read(kind, body)

    assert len(of_second) == 7
    assert parsed.states.tobytes() == expected.tobytes()


def test_features_saturate_without_a_geometry_too() -> None:
    spec = replace(
        anonymous_spec(2, 1), saturations=(Saturation("state_1", -1.0, None, "no lower"),)
    )
    parser = BodyParser(Contract(spec, max_horizon=4, max_rows=3))

    parsed = parser.read("predict", b'{"state": [-5, -5], "action": [0]}')

    assert parsed.states.tolist() == [[-5.0, -1.0]]
