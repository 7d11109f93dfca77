"""Bodies sent to take the service's time, memory or answers: cost and words stay in proportion."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import SERVICE_ERRORS, InvalidRequestError
from tests.test_service.fakes import FakeEngine, error_of, serving

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
