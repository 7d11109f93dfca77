"""Bodies sent to take the service's time, memory or answers: cost and words stay in proportion."""

from __future__ import annotations

import tracemalloc
from time import thread_time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import SERVICE_ERRORS, InvalidRequestError
from service.http.contract import Contract, Kind
from service.http.reading.bodies import BodyParser
from tests.fakes.engine import FakeEngine, error_of, fake_spec, serving

KIB = 2**10
ANY_TEXT = st.text(st.characters(exclude_categories=[]), max_size=2000)


@given(
    ANY_TEXT,
    st.lists(st.fixed_dictionaries({"field": ANY_TEXT, "problem": ANY_TEXT, "allowed": ANY_TEXT})),
    st.sampled_from(SERVICE_ERRORS),
)
def test_an_error_can_always_be_sent_and_is_short(
    message: str, details: list[dict[str, str]], kind: type[InvalidRequestError]
) -> None:
    error = kind(message, details)
    body = orjson.dumps(error.body())

    assert len(body) < 16 * KIB
    assert len(orjson.loads(body)["error"]["details"]) <= 16
    f"{error}{error.message}".encode()  # as a log's file does


@pytest.mark.parametrize("character", ['"', "\\", "\0", "\ud800", "😀", "é", " ", "a"], ids=ascii)
def test_an_error_that_quotes_a_long_text_stays_below_its_limit(character: str) -> None:
    text = character * 100_000
    details = [{"field": text, "problem": text, "allowed": text}] * 1000

    assert len(orjson.dumps(InvalidRequestError(text, details).body())) < 16 * KIB


def test_readable_names_are_quoted_as_they_were_sent() -> None:
    error = InvalidRequestError("größe 大小", [{"field": "größe", "problem": "is odd\n"}])

    assert error.body()["error"] == {
        "code": "invalid_request",
        "message": "größe 大小",
        "details": [{"field": "größe", "problem": "is odd\\n"}],
    }


@pytest.mark.parametrize(
    "body",
    [
        b'{"\\ud800":NaN}',
        b'{"\\udfff":1}',
        b'{"state":["\\ud800"]}',
        b'{"x\\u0000\\n":1}',
        b"\xed\xa0\x80",
    ],
    ids=str,
)
async def test_names_that_cannot_be_sent_back_are_answered(body: bytes) -> None:
    async with serving(FakeEngine()) as (_, client):
        response = await client.post("/predict", content=body)

    assert response.status_code == 422
    assert error_of(response)["code"] == "invalid_request"


SIZE = 4 * 2**20
FLOODS = {
    "objects": b'{"state":[' + b"{}," * (SIZE // 3),
    "lists": b'{"actions":[' + b"[]," * (SIZE // 3),
    "deep lists": b'{"actions":' + b"[" * SIZE,
    "lists alone": b"[" * SIZE,
    "nulls": b'{"state":[' + b"null," * (SIZE // 5) + b"0]}",
    "numbers in one vector": b'{"state":[' + b"0," * (SIZE // 2) + b"0]}",
    "digits": b'{"state":[' + b"1" * SIZE + b"]}",
    "digits of an option": b'{"threshold":' + b"1" * SIZE + b"}",
    "blanks": b" " * SIZE,
    "blanks in an array": b'{"state":[' + b" " * SIZE + b"]}",
    "blanks behind": b'{"state":[1,2,3],"actions":[[0,0]]}' + b" " * SIZE + b"x",
    "a long name": b'{"' + b"a" * SIZE + b'":1}',
    "a long string": b'{"state":"' + b"a" * SIZE + b'"}',
    "an open string": b'{"' + b"\\n" * (SIZE // 2),
    "quotes": b'"' * SIZE,
    "names": b'{"outputs":[' + b'"a",' * (SIZE // 4) + b'"a"]}',
    "good names": b'{"outputs":[' + b'"states",' * (SIZE // 9) + b'"states"]}',
    "lists of names": b'{"include":[' + b'["a"],' * (SIZE // 6) + b'"a"]}',
    "fields": b"{" + b",".join(b'"%d":1' % i for i in range(SIZE // 11)) + b"}",
    "objects in a field": b'{"x":' + b'{"y":' * (SIZE // 5),
    "one field many times": b'{"state":[1,2,3]' + b',"state":[1,2,3]' * (SIZE // 16) + b"}",
    "rows without end": b'{"state":[1,2,3],"actions":[' + b"[[0,0]]," * (SIZE // 8) + b"[[0,0]]]}",
    "a fault at the end": b'{"state":[' + b"[1,2,3]," * 250_000 + b"[1,2,NaN]]}",
    "commas": b'{"state":[[1,2,3]' + b"," * SIZE + b"]}",
    "closing": b'{"state":[[1,2,3]' + b"]" * SIZE + b"}",
    "zeros": b"\0" * SIZE,
}
PATIENT = BodyParser(Contract(fake_spec(), max_horizon=64, max_rows=300_000))


REPEATS = 3
"""What a slice takes without others on the machine is the least of so many times."""


def refused_in_slices(kind: Kind, body: bytes) -> tuple[InvalidRequestError, list[float]]:
    """Return the error, and the seconds that each slice took."""
    slices = PATIENT.in_slices(kind, body)
    times_s: list[float] = []
    while True:
        started = thread_time()
        try:
            next(slices)
        except InvalidRequestError as error:
            return error, [*times_s, thread_time() - started]
        times_s.append(thread_time() - started)


@pytest.mark.parametrize("kind", ["rollout", "safety_check"])
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_is_refused_in_short_slices(flood: str, kind: Kind) -> None:
    runs = [refused_in_slices(kind, FLOODS[flood]) for _ in range(REPEATS)]
    error = runs[0][0]
    times_s = [min(same) for same in zip(*(times for _, times in runs), strict=True)]

    assert len(orjson.dumps(error.body())) < 16 * KIB
    assert "cannot be read" not in error.message
    assert max(times_s) < 0.03  # less than a millisecond, where nobody else computes


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_that_is_short_is_refused_at_once(flood: str) -> None:
    body = FLOODS[flood][: 2**14] + FLOODS[flood][-(2**14) :]
    times_s = []
    for _ in range(REPEATS):
        started = thread_time()
        with pytest.raises(InvalidRequestError):
            PATIENT.read("rollout", body)
        times_s.append(thread_time() - started)

    assert min(times_s) < 0.03


def test_a_first_row_that_is_longer_than_the_others_takes_no_memory() -> None:
    parser = BodyParser(Contract(fake_spec(), max_horizon=10_000, max_rows=1_000_000))
    row = b"[" + b",".join([b"[0,0]"] * 2500) + b"]"
    body = b'{"state":[1,2,3],"actions":[' + row + b",0" * 8000 + b"]}"
    tracemalloc.start()
    with pytest.raises(InvalidRequestError, match=r"actions\[1\] must be a list of steps"):
        parser.read("rollout", body)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most_bytes < 4 * 2**20
