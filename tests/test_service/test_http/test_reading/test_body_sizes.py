"""Whatever is wrong with a body, a big one is refused with the same details as a small one."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from service.errors import InvalidRequestError
from service.http.contract import Contract, Kind
from service.http.reading.bodies import AT_ONCE_BYTES, BodyParser, Parsed
from service.http.reading.tokens import MOST_BYTES
from tests.fakes.engine import fake_spec
from tests.test_service.test_http.test_reading.test_walk import at_once, sliced, texts

PARSER = BodyParser(Contract(fake_spec(), max_horizon=64, max_rows=8192))
FEW = 3
MANY = {"predict": 5000, "rollout": 2000}
"""Rows of somewhat more than 32 KiB."""
STEPS = 2

NUMBERS = [
    *(b"NaN", b"-Infinity", b"null", b"true", b'"x"', b'"\\ud800"', b'"\xff"', b'"open', b'"\\q"'),
    *(b"{}", b'{"a":[1]}', b"[]", b"[0]", b"", b"1e39", b"1e400", b"1.0000001", b"-7", b"1" * 40),
    *(b"01", b"1.", b"-", b".5", b"+1", b"0x1", b"tru", b"'x'", b"1 1", b"1:1", b"1,1", b"1,,1"),
    *(b"1]", b"1}", b"1],[1", b"\xef\xbb\xbf1", b"1\0", b"1\x0b", b"1/**/", b"0,0,0,0,0,0,0,0"),
]
VECTORS = [
    *(
        b"",
        b"[]",
        b"[0]",
        b"[0,0,0]",
        b"[[0,0]]",
        b"[0,[0]]",
        b"5",
        b"null",
        b"{}",
        b'"a"',
        b"[0,0",
    ),
    *(b"0,0]", b"[0,0]]", b"[0,0]}", b"[0,0] [0,0]", b"[0,0],", b",[0,0]", b"[0,0],[0,NaN]"),
    *(b"[0,0]x", b"x[0,0]", b'[0,0],"x":1,[0]'),
]
AFTER = [
    *(b',"x":1', b',"x":{"y":[1,{"z":null}]},"w":NaN', b',"\\u0073tate":[1,2]', b',"\\ud800":1'),
    *(b',"actio\\u006e":{}', b',"actio\\u006es":0', b',"outputs":["states","q"]', b',"outputs":[]'),
    *(b',"outputs":{}', b',"outputs":[["a"]]', b',"x"', b',"x":', b",1", b",", b" x", b'"x":1'),
    *(b"]", b"}", b"},{}", b'}"', b'}"s"', b"}7"),
]
BETWEEN = [
    *(b'"x":1,', b'"\\u0073tate":[1,2],"outputs":["a"],', b'"outputs":["states"]', b"1,", b","),
    *(b'"x",', b'"x":,', b'"x":nul,', b'"\\ud800":1,', b'"outputs":[1,{}],'),
]
PLACES = {"number": NUMBERS, "vector": VECTORS, "after": AFTER, "between": BETWEEN}


def faulty(kind: Kind, place: str, fault: bytes, rows: int, blanks: int, *, is_last: bool) -> bytes:
    """Return a body with one fault, in the last row of its actions or outside of them.

    Args:
        kind: Of which endpoint.
        place: One of `PLACES`.
        fault: What stands there.
        rows: How many rows of actions there are.
        blanks: How many of them stand before each of these but the first.
        is_last: Whether the actions come last.
    """
    vector = {"number": b"[0,%b]" % fault, "vector": fault}.get(place, b"[0,0]")
    if kind == "predict":
        name, row, last = "action", b"[0.5,1]", vector
    else:
        name, row = "actions", b"[%b]" % b",".join([b"[0.5,1]"] * STEPS)
        last = b"[%b]" % b",".join([b"[0.5,1]"] * (STEPS - 1) + [vector])
    actions = b'"%b":[%b]' % (
        name.encode(),
        (b"," + b" " * blanks).join([row] * (rows - 1) + [last]),
    )
    fields = [b'"state":[1,2,3]', actions] if is_last else [actions, b'"state":[1,2,3]']
    between, after = (fault if place == x else b"" for x in ("between", "after"))
    return b"{%b,%b%b%b}" % (fields[0], between, fields[1], after)


def details_of(body: bytes, result: object, rows: int = 0) -> list[tuple[str, ...]]:
    """Return an error's details with places that do not depend on the size of the body.

    Args:
        body: The body.
        result: What came of it.
        rows: Rows of actions that another body has less.
    """
    assert isinstance(result, InvalidRequestError)

    def row(match: re.Match[str]) -> str:
        index = int(match[2])
        return f"{match[1]}[{index - rows if index else 0}]"

    def byte(match: re.Match[str]) -> str:
        return "before " + b"".join(body[int(match[1]) :].split())[:8].decode("latin-1")

    def words(text: str) -> str:
        text = re.sub(r"(actions?)\[(\d+)\]", row, text)
        text = text.replace(f"after {len(body)} bytes", "at the end")
        return re.sub(r"(?:at|at byte) (\d+)", byte, text)

    return [tuple(words(text) for text in detail.values()) for detail in result.details]


@pytest.mark.parametrize("growth", ["rows", "blanks"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["predict", "rollout"])
def test_big_and_small_bodies_have_the_same_details(kind: Kind, place: str, growth: str) -> None:
    rows, blanks = (MANY[kind], 0) if growth == "rows" else (FEW, 20_000)
    differing = {}
    for fault, is_last in itertools.product(PLACES[place], (True, False)):
        small = faulty(kind, place, fault, FEW, 0, is_last=is_last)
        big = faulty(kind, place, fault, rows, blanks, is_last=is_last)
        assert len(small) < AT_ONCE_BYTES < len(big)
        expected = details_of(small, at_once(PARSER, kind, small))
        found = details_of(big, sliced(PARSER, kind, big)[0], rows - FEW)
        if found != expected:
            differing[fault, is_last] = found, expected

    assert differing == {}


TOKENS = (
    b'[1.5,-2.25e+1,3E0,0.5e-10,true,false,null,NaN,-Infinity,"\\u0061\\n\\"",{"\\\\":-7}]',
    b'{"a":[[],{}],"b":"\xe2\x82\xac \\ud800"}',
)


@pytest.mark.parametrize("name", [b"state", b"\\u0073tate", b"stat\\u0065"])
@pytest.mark.parametrize("value", TOKENS)
def test_a_token_at_the_limit_is_no_fault(value: bytes, name: bytes) -> None:
    rest = b'"%b":%b,"threshold":0.25e-1}' % (name, value)
    body = b'{"state":[1,2,3],%b"actions":[[0,0]],' + rest
    outside = len(body % b"") - len("[1,2,3][[0,0]]")
    for beyond in range(len(rest)):
        blanks = b" " * (MOST_BYTES - outside + beyond)
        result, _ = sliced(PARSER, "safety_check", body % blanks)

        assert isinstance(result, InvalidRequestError)
        field, problem = result.details[0].values()
        if field == "body":  # the limit is within the name already
            assert beyond >= len(rest) - len(name) - 2
            assert problem == f"has more than {MOST_BYTES} bytes outside of states and actions"
        else:
            assert (field, problem) == ("state", "is given twice")
        assert len(result.details) == 1


@pytest.mark.parametrize("text", ["1e-1", "0.25", "1.0E-0", "NaN", "true"])
def test_an_option_at_the_limit_is_no_fault(text: str) -> None:
    body = f'{{"state":[1,2,3],"actions":[[0,0]],"threshold":{text}}}'.encode()
    for cut in range(1, len(text) + 2):
        blanks = b" " * (MOST_BYTES - (len(body) - len("[1,2,3][[0,0]]")) + cut)
        result, _ = sliced(PARSER, "safety_check", body[:1] + blanks + body[1:])

        assert isinstance(result, InvalidRequestError)
        assert (
            result.message == f"body has more than {MOST_BYTES} bytes outside of states and actions"
        )


@pytest.mark.parametrize("blanks", [0, 8_000, 9_000, 32_000])
@pytest.mark.parametrize("number", [10**25, -(10**30), 2**64, 1.5])
def test_numbers_are_read_however_many_blanks_are_beside_them(number: float, blanks: int) -> None:
    state = b"[%b,%b2,3]" % (str(number).encode(), b" " * blanks)
    actions = b",".join([b"[0.25,0.75]"] * 3000)
    result, _ = sliced(PARSER, "predict", b'{"state":%b,"action":[%b]}' % (state, actions))

    assert isinstance(result, Parsed)
    assert result.states[0].tolist() == [np.float32(number), 2, 3]


@settings(max_examples=300, deadline=None)
@given(texts(), st.data())
def test_blanks_add_no_faults_but_their_number(
    case: tuple[Kind, bytes], data: st.DataObject
) -> None:
    """With more blanks than are read, fewer faults may be found; none is made up."""
    kind, body = case
    assume(b"\0" not in body[:4])  # another encoding is told by them, blanks or not
    small = at_once(PARSER, kind, body)
    # In front of marks that are not in a string, as far as there are strings.
    marks = [
        m.start() for m in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[\]{},:]', body) if m[0][:1] != b'"'
    ]
    assume(marks)
    at = data.draw(st.sampled_from(marks))
    count = data.draw(st.integers(MOST_BYTES - len(body) - 1, MOST_BYTES + 1))
    big = body[:at] + b" " * count + body[at:]
    result, _ = sliced(PARSER, kind, big)
    event(f"{type(small).__name__} {type(result).__name__}")

    if isinstance(result, Parsed):
        assert isinstance(small, Parsed)
        return
    details = details_of(big, result)
    if re.match(rf"has more than {MOST_BYTES} bytes", details[0][1]):
        assert len(details) == 1
    else:
        assert details == details_of(body, small)[: len(details)]
