"""Reading in slices, against reading at once and against the declared contract."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.errors import InvalidRequestError
from service.http.contract import Contract, Kind
from service.http.reading.bodies import BodyParser, Parsed
from tests.fakes.engine import fake_spec
from tests.test_service.test_http.test_reading.test_bodies import (
    ACTION,
    READERS,
    STATE,
    bodies,
    declared,
)

CUTTING = {
    size: BodyParser(Contract(fake_spec(), 4, 3, 5), piece_bytes=size)
    for size in (1, 16, 64, 2**15)
}
NARROW = replace(fake_spec(), state=fake_spec().state[:1], action=fake_spec().action[:1])
"""With vectors of one number, `[]` and `[1]` look alike."""

Result = Parsed | InvalidRequestError


def sliced(parser: BodyParser, kind: Kind, body: bytes) -> tuple[Result, int]:
    """Return what reading in slices comes to, and the number of slices."""
    slices = parser.in_slices(kind, body)
    count = 1
    while True:
        try:
            next(slices)
        except StopIteration as stop:
            return stop.value, count
        except InvalidRequestError as error:
            return error, count
        count += 1


def at_once(parser: BodyParser, kind: Kind, body: bytes) -> Result:
    try:
        parsed: Parsed = parser.read(kind, body)
    except InvalidRequestError as error:
        return error
    return parsed


def assert_same(one: Result, other: Result) -> None:
    if isinstance(one, InvalidRequestError) or isinstance(other, InvalidRequestError):
        assert isinstance(one, InvalidRequestError)
        assert isinstance(other, InvalidRequestError)
        assert one.details[0] == other.details[0]
        return
    for a, b in zip((one.states, one.actions), (other.states, other.actions), strict=True):
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())
    assert one[2:] == other[2:]


def without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(name)
        fields[name] = value
    return fields


def finite(text: str) -> float:
    value = float(text)
    if abs(value) == float("inf") or value != value:
        raise ValueError(text)
    return value


def is_declared(kind: Kind, body: bytes) -> bool:
    """Tell whether a body is strict JSON without repeated names, and what pydantic accepts."""
    try:
        document = json.loads(
            body.decode(),
            object_pairs_hook=without_repeats,
            parse_constant=finite,
            parse_float=finite,
            parse_int=lambda text: finite(text) if len(text) > 15 else int(text),
        )
        json.dumps(document, ensure_ascii=False).encode()
        members = document.get("members") if isinstance(document, dict) else None
        if isinstance(members, float) and members.is_integer():
            document["members"] = int(members)  # as JSON Schema has it, but not strict pydantic
        READERS[kind][1].model_validate_json(json.dumps(document))
    except (ValueError, RecursionError, ValidationError):
        return False
    return True


NASTY = [
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b" ", b"\n\t", b"0", b"1", b"-", b".", b"e"),
    *(
        b"[]",
        b"{}",
        b"null",
        b"true",
        b"NaN",
        b"-Infinity",
        b"1e400",
        b"-1e39",
        b"01",
        b"1.",
        b".5",
    ),
    *(b'"state":', b'"actions":[[0,0]],', b'"x":1,', b',"state":[1,2,3]', b',"outputs":["states"]'),
    *(
        b"\xff",
        b"\xef\xbb\xbf",
        b"\0",
        b"\x01",
        b"\\",
        b"\\u0041",
        b'"\\ud800"',
        b"'",
        b"//",
        b"/**/",
    ),
    *(
        b"18446744073709551616",
        b"-0",
        b"0.5e-1",
        b"0.00000000000000000000000001",
        b"[[0,0]],",
        b"],[",
    ),
]


@st.composite
def texts(draw: st.DrawFn) -> tuple[Kind, bytes]:
    """The text of a body that may be spoilt as JSON is, and as text is."""
    kind, body = draw(bodies())
    if draw(st.booleans()):
        body = json.dumps(json.loads(body), indent=draw(st.sampled_from([None, 0, 3]))).encode()
    if draw(st.booleans()):
        body = body.replace(b'"state"', b'"\\u0073tate"').replace(b'"action', b'"a\\u0063tion')
    if draw(st.booleans()):
        body = body.replace(b"0.0", draw(st.sampled_from([b"-0", b"0e5", b"0." + b"0" * 30])))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(body)))
        gone = draw(st.sampled_from([0, 0, 1, 2, 5]))
        body = body[:at] + draw(st.sampled_from([*NASTY, b""])) + body[at + gone :]
    return kind, body  # type: ignore[return-value]


@settings(max_examples=400, deadline=None)
@given(texts())
@example(("rollout", b'{"state":[1,2,3],"actions":[[0,0]],"members":2.0}'))
@example(("predict", b'{"state":[NaN],"state":[1,2,3],"action":[0,0]}'))
@example(("rollout", b'{"state":[1,2,3],"actions":[[0,0].5,[0,0]]}'))
@example(("rollout", b'{"state":[1,2,3],"actions":[[[0,0]],[[0,0]],]}'))
@example(("rollout", b'{"state":[1,2,3],"actions":[[[0,0]],[[0,0]]]]}'))
@example(
    ("rollout", b'{"state":[[100000000000000000000,2,3]],"outputs":["states"],"actions":[[0,0]]}')
)
@example(("rollout", b'{"state":[1,2,3],"state":[1,2,3],"actions":[[0,0]]}'))
@example(("safety_check", b'{"state":[1,2,3],"actions":[[0,0]],"threshold":1e400}'))
@example(("safety_check", b'{"state":[1,2,3],"actions":[[0,0]],"include":[["trajectory"]]}'))
def test_slices_reading_at_once_and_the_declared_contract_agree(case: tuple[Kind, bytes]) -> None:
    kind, body = case
    whole = at_once(CUTTING[2**15], kind, body)
    is_accepted = not isinstance(whole, InvalidRequestError)
    event(f"{kind} {'accepted' if is_accepted else 'refused'}")

    assert is_accepted is is_declared(kind, body)
    for parser in CUTTING.values():
        assert_same(sliced(parser, kind, body)[0], whole)
    assert_same(at_once(CUTTING[2**15], kind, body), whole)  # what is learned changes nothing


LONG = BodyParser(Contract(fake_spec(), 64, 4096))


def text_of_rows(count: int) -> str:
    rng = np.random.default_rng(1)
    return json.dumps(rng.uniform(0, 1, (count, 20, 2)).tolist())


def test_a_long_body_is_read_in_many_slices_to_the_same_bits() -> None:
    rows = json.loads(text_of_rows(300))
    body = json.dumps({"state": STATE, "actions": rows, "outputs": ["returns"]}, indent=2).encode()
    result, count = sliced(LONG, "rollout", body)

    assert isinstance(result, Parsed)
    assert np.array_equal(result.actions, np.array(rows, np.float32))
    assert result.states.tolist() == [STATE] * 300
    assert result.outputs == ("returns",)
    assert count >= len(body) / 2**15
    assert_same(at_once(LONG, "rollout", body), result)


@pytest.mark.parametrize(
    "value", ["NaN", "1.0000001", "1e400", '"x"', "[0]", "null", "{}", "0,0", "x"]
)
def test_the_first_fault_of_a_long_body_is_found_where_it_is(value: str) -> None:
    text = text_of_rows(300)
    at = text.rfind(", ") + 2
    spoilt = f"{text[:at]}{value}]]]"
    body = f'{{"state": [1, 2, 3], "actions": {spoilt}, "extra": 1}}'.encode()
    result, _ = sliced(LONG, "rollout", body)

    assert isinstance(result, InvalidRequestError)
    where = "body" if value == "x" else "actions[299][19]"
    assert result.details[0]["field"].startswith(where)
    assert_same(at_once(LONG, "rollout", body), result)


def test_a_sequence_of_another_length_is_found_in_a_long_body() -> None:
    rows = json.loads(text_of_rows(300))
    rows[250] = rows[250][:-1]
    result, _ = sliced(LONG, "rollout", json.dumps({"state": STATE, "actions": rows}).encode())

    assert isinstance(result, InvalidRequestError)
    assert result.message == "actions[250] has 19 steps, actions[0] has 20"


def test_whole_numbers_beyond_64_bits_are_read_in_all_pieces() -> None:
    state = f"[{10**25}, -{10**19}, 1e5]"
    body = f'{{"state": [{", ".join([state] * 2000)}], "action": [0, 0]}}'.encode()
    result, _ = sliced(LONG, "predict", body)

    assert isinstance(result, Parsed)
    assert np.array_equal(result.states, np.array([[1e25, -1e19, 1e5]] * 2000, np.float32))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"state": [1, %b 2, 3], "action": [0, 0]}', "in one state or action"),
        (b'{"state": [1, 2, 3], %b "action": [0, 0]}', "outside of states and actions"),
        (b'{"state": [1, 2, 3], "action": [0, 0]} %b', "outside of states and actions"),
        (b'%b{"state": [1, 2, 3], "action": [0, 0]}', "outside of states and actions"),
    ],
    ids=["in a state", "between fields", "behind", "before"],
)
def test_parts_beyond_a_limit_are_refused_in_long_bodies(body: bytes, problem: str) -> None:
    result, _ = sliced(LONG, "predict", body % (b" " * 2**15))
    short, _ = sliced(LONG, "predict", body % (b" " * 30_000))

    assert isinstance(result, InvalidRequestError)
    assert result.message == f"body has more than 32768 bytes {problem}"
    assert isinstance(short, Parsed)


def test_bodies_read_by_turns_do_not_disturb_each_other() -> None:
    good = f'{{"state": [1, 2, 3], "actions": {text_of_rows(100)}}}'.encode()
    bad = good[:-4] + b'"x"]]]}'
    unusual = good.replace(b"[1, 2, 3]", b"[%d, 2, 3]" % 10**20)
    slices = [LONG.in_slices("rollout", body) for body in (good, bad, unusual, good)]
    results: dict[int, Result] = {}
    while len(results) < len(slices):
        for i, one in enumerate(slices):
            if i in results:
                continue
            try:
                next(one)
            except StopIteration as stop:
                results[i] = stop.value
            except InvalidRequestError as error:
                results[i] = error
            # Between slices short bodies are read by the same parser, without any detour.
            plain = b'{"state":[1,2,3],"action":[0,0]}'
            assert LONG._read_plain(plain, LONG._bodies["predict"]).is_one_state

    for i, body in enumerate((good, bad, unusual, good)):
        assert_same(at_once(LONG, "rollout", body), results[i])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-32-be"])
@pytest.mark.parametrize("is_known", [True, False])
def test_other_encodings_are_named(encoding: str, is_known: bool) -> None:
    text = '{"state": [1, 2, 3], "action": [0, 0]}'
    parser = BodyParser(Contract(fake_spec(), 4, 3))
    if is_known:
        parser.read("predict", text.encode())
    with pytest.raises(InvalidRequestError, match="send plain UTF-8") as caught:
        parser.read("predict", text.encode(encoding))

    assert ("byte order mark" in caught.value.message) is (encoding[-2:] not in ("le", "be"))


def test_a_field_given_twice_is_refused_by_name() -> None:
    for body in (
        b'{"state": [9, 9, 9], "state": [1, -2.5, 3], "action": [0.5, 1]}',
        b'{"state": [1, -2.5, 3], "action": [0.5, 1], "st\\u0061te": [1, -2.5, 3]}',
    ):
        error = at_once(LONG, "predict", body)

        assert isinstance(error, InvalidRequestError)
        assert error.details == [{"field": "state", "problem": "is given twice"}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body is empty"),
        (b"[1]", "body must be a JSON object, is a list"),
        (b"'", 'body is not JSON: unexpected "\'" at byte 0'),
        (b'{"state": [1, 2', "body is not JSON: ends too early, after 15 bytes"),
        (b'{"state": [1, 2, 3],}', 'body is not JSON: unexpected "}" at byte 20'),
        (b'{"state": [1, 2, 3,], "action": [0, 0]}', 'body is not JSON: unexpected "]" at byte 19'),
        (b'{"state": [01, 2, 3]}', 'body is not JSON: unexpected "1" at byte 12'),
        (b'{"\\ud800": 1}', "body is not JSON: the string at byte 1 is not valid UTF-8 text"),
        (b'{"a\nb": 1}', 'body is not JSON: unexpected "\\n" at byte 3'),
        (b'{"state": NaN, "action": 1}', "state must be a list of state features, is NaN"),
    ],
    ids=str,
)
def test_what_is_not_json_is_named_with_its_place(body: bytes, message: str) -> None:
    error = at_once(LONG, "predict", body)

    assert isinstance(error, InvalidRequestError)
    assert error.message.split(", and ")[0] == message


def test_lists_of_one_number_and_of_none_are_kept_apart() -> None:
    parser = BodyParser(Contract(NARROW, 4, 3), piece_bytes=1)
    model = declared(Contract(NARROW, 4, 3), "rollout")
    for actions in (
        "[[1],[0]]",
        "[[],[0]]",
        "[[1],[]]",
        "[]",
        "[[]]",
        "[[[0]],[[1]]]",
        "[[[0]],[[]]]",
    ):
        body = f'{{"state":[1],"actions":{actions}}}'.encode()
        try:
            model.model_validate_json(body)
            is_valid = True
        except ValidationError:
            is_valid = False

        assert isinstance(sliced(parser, "rollout", body)[0], Parsed) is is_valid


def test_more_names_than_a_list_may_hold_are_refused() -> None:
    body = {"state": STATE, "actions": [ACTION], "outputs": ["states"] * 17}
    error = at_once(LONG, "rollout", json.dumps(body).encode())
    body["outputs"] = ["states"] * 16

    assert isinstance(error, InvalidRequestError)
    assert error.message == "outputs has more than 16 names (allowed: 1 to 16 names)"
    assert isinstance(at_once(LONG, "rollout", json.dumps(body).encode()), Parsed)
