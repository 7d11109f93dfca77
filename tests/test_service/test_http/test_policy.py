"""What is let in by headers alone: keys, lengths, timeouts, request ids."""

from __future__ import annotations

import math
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequestError, PayloadTooLargeError, UnauthorizedError
from service.http.exchange import request_id_of
from service.http.policy import Policy
from service.telemetry.requests import NO_KEY, UNKNOWN_KEY

KEYS = ("first-key", "second-key", "Schlüssel")
LIMIT_BYTES, DEFAULT_S, MOST_S = 1000, 2.5, 30.0


def policy(*keys: str) -> Policy:
    return Policy(
        keys={key: f"name of {key}" for key in keys},
        open_paths=frozenset({"/livez"}),
        max_body_bytes=LIMIT_BYTES,
        default_timeout_s=DEFAULT_S,
        max_timeout_s=MOST_S,
    )


def is_known(authorization: bytes | None, keys: tuple[str, ...] = KEYS) -> bool:
    headers = {} if authorization is None else {b"authorization": authorization}
    try:
        name = policy(*keys).key_of("/predict", headers)
    except UnauthorizedError:
        return False
    assert name == NO_KEY if not keys else name.removeprefix("name of ") in keys
    return True


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "form", ["Bearer %s", "bearer %s", "BEARER %s", "Bearer   %s", "Bearer %s "]
)
def test_each_key_is_known_however_the_scheme_is_written(key: str, form: str) -> None:
    assert is_known((form % key).encode())


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "form",
    ["%s", " %s", "Basic %s", "Bearer%s", "Bearer\t%s", "Bearer: %s", "Token %s", " Bearer %s"],
)
def test_a_key_without_its_scheme_is_not_known(key: str, form: str) -> None:
    assert not is_known((form % key).encode())


@pytest.mark.parametrize("key", KEYS)
def test_what_only_resembles_a_key_is_not_known(key: str) -> None:
    wrong = [key[:-1], key[1:], key + "x", "x" + key, key.upper(), key[::-1], f"{key} {key}", ""]

    assert not any(is_known(b"Bearer " + text.encode()) for text in wrong)


@pytest.mark.parametrize("authorization", [None, b"", b" ", b"Bearer", b"Bearer ", b"Bearer \xff"])
def test_no_key_is_not_known(authorization: bytes | None) -> None:
    assert not is_known(authorization)


@given(st.binary(max_size=40))
def test_nothing_else_is_a_key(given: bytes) -> None:
    assert not is_known(b"Bearer " + given) or given.strip().decode() in KEYS


def test_without_keys_all_are_welcome() -> None:
    assert is_known(None, ())
    assert is_known(b"Bearer anything", ())


def test_an_unknown_key_is_answered_with_what_is_needed() -> None:
    with pytest.raises(UnauthorizedError) as caught:
        policy(*KEYS).key_of("/predict", {})

    assert caught.value.message == "a known key is needed as 'Authorization: Bearer KEY'"


def test_open_paths_need_no_key_and_all_others_do() -> None:
    assert policy(*KEYS).key_of("/livez", {}) == NO_KEY
    for path in ("/livez/", "/", "/metrics", "/LIVEZ"):
        with pytest.raises(UnauthorizedError):
            policy(*KEYS).key_of(path, {})


def test_keys_are_not_shown() -> None:
    assert not any(key in repr(policy(*KEYS)) for key in KEYS)


def test_a_declared_length_is_refused_above_the_limit_only() -> None:
    for length in (b"0", b"1", b"999", b"1000", b"0001000"):
        policy().check({b"content-length": length})
    for length in (b"1001", b"0001001", b"9" * 30):
        with pytest.raises(PayloadTooLargeError) as caught:
            policy().check({b"content-length": length})
        assert caught.value.message == "the body is longer than the 1000 bytes that are read"


@pytest.mark.parametrize("given", [b"", b"-1001", b"+1001", b"1001.0", b"1_001", b"x", b"\xb2000"])
def test_what_is_no_length_is_left_to_the_protocol(given: bytes) -> None:
    policy().check({b"content-length": given})


def test_no_declared_length_is_none() -> None:
    tight = Policy({}, frozenset(), 0, DEFAULT_S, MOST_S)

    tight.check({})
    tight.check({b"content-length": b"x"})
    with pytest.raises(PayloadTooLargeError):
        tight.check({b"content-length": b"1"})


def test_a_key_is_known_by_its_name() -> None:
    named = policy(*KEYS)

    assert named.key_of("/predict", {b"authorization": b"Bearer second-key"}) == (
        "name of second-key"
    )
    assert (named.unchecked_key, policy().unchecked_key) == (UNKNOWN_KEY, NO_KEY)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, False),
        ({b"x-request-timeout-seconds": b"0.001"}, True),
        ({b"x-request-timeout-seconds": b"29.9"}, True),
        ({b"x-request-timeout-seconds": b"30"}, False),  # the longest there is: not its choice
        ({b"x-request-timeout-seconds": b"500"}, False),
    ],
    ids=str,
)
def test_a_deadline_is_the_callers_choice_if_it_was_sent_and_not_cut(
    headers: dict[bytes, bytes], expected: bool
) -> None:
    assert policy().is_callers_choice(policy().timeout_s(headers), headers) == expected


def test_a_body_is_refused_above_the_limit_only() -> None:
    policy().check_length(LIMIT_BYTES)
    with pytest.raises(PayloadTooLargeError):
        policy().check_length(LIMIT_BYTES + 1)


def timeout_s(given: bytes) -> float:
    return policy().timeout_s({b"x-request-timeout-seconds": given})


def test_requests_without_a_timeout_get_the_default() -> None:
    assert policy().timeout_s({}) == DEFAULT_S
    assert policy().timeout_s({b"x-request-timeout": b"1"}) == DEFAULT_S


@pytest.mark.parametrize(
    ("given", "expected_s"),
    [
        (b"1", 1.0),
        (b"0.25", 0.25),
        (b".5", 0.5),
        (b"5.", 5.0),
        (b"007", 7.0),
        (b"1e1", 10.0),
        (b"1E+1", 10.0),
        (b".5e-3", 0.0005),
        (b".25e1", 2.5),
        (b"2.5e-3", 0.0025),
        (b"5e-324", 5e-324),
        (b"29.999", 29.999),
        (b"30", MOST_S),
        (b"30.001", MOST_S),
        (b"1e308", MOST_S),
    ],
)
def test_a_timeout_is_read_and_cut_to_the_longest(given: bytes, expected_s: float) -> None:
    assert timeout_s(given) == expected_s


@pytest.mark.parametrize(
    "given",
    [
        *(b"", b" ", b"x", b".", b"e5", b".e5", b"1e", b"1e+", b"1.5.2", b"0x10", b"1,5", b"1s"),
        *(b"+1", b"-1", b"-0", b"0", b"0.0", b"0e9", b"1e-400", b" 1", b"1 ", b"1\n", b"\n1"),
        *(b"1_0", b"1e1_0", b"inf", b"Infinity", b"+inf", b"nan", b"NaN", b"1e999", b"9" * 400),
        *(b"\xb2", "\u0661".encode(), b"\xff", b"1\0"),
    ],
)
def test_a_timeout_that_is_no_positive_number_is_refused(given: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        timeout_s(given)

    assert caught.value.message == "X-Request-Timeout-Seconds is not a positive number of seconds"
    assert caught.value.details == [
        {
            "field": "X-Request-Timeout-Seconds",
            "problem": "is not a positive number of seconds",
            "allowed": "up to 30; more is cut to that",
        }
    ]


@given(st.binary(max_size=12) | st.text("0123456789.eE+-_ infa", max_size=8).map(str.encode))
def test_no_timeout_lets_a_request_live_for_ever(given: bytes) -> None:
    try:
        found_s = timeout_s(given)
    except InvalidRequestError:
        return

    assert 0 < found_s <= MOST_S
    assert found_s == min(float(given), MOST_S)


SANE = string.ascii_letters + string.digits + "._:/+=-"


def request_id(given: bytes) -> str:
    return request_id_of({b"x-request-id": given})


@pytest.mark.parametrize("given", [*SANE, SANE, "a" * 128, "-" * 128])
def test_a_sane_request_id_stays(given: str) -> None:
    assert request_id(given.encode()) == given


@pytest.mark.parametrize(
    "given",
    [b"", b"a" * 129, b"a b", b" a", b"a ", b"a\n", b"\na", "é".encode(), b"\xff", b"a" * 10_000],
    ids=lambda given: f"{given[:6]!r} {len(given)}",
)
def test_another_request_id_is_replaced(given: bytes) -> None:
    assert re.fullmatch("[0-9a-f]{32}", request_id(given))


def test_each_character_that_is_not_sane_is_replaced() -> None:
    odd = [bytes([code]) for code in range(256) if chr(code) not in SANE]

    assert [
        one for one in odd if re.fullmatch("[0-9a-f]{32}", request_id(b"a" + one)) is None
    ] == []


def test_requests_without_an_id_get_fresh_ones() -> None:
    ids = {request_id_of({}) for _ in range(100)}

    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert request_id_of({b"request-id": b"abc"}) != "abc"


def test_a_timeout_is_finite_even_without_a_longest_one() -> None:
    endless = Policy({}, frozenset(), LIMIT_BYTES, DEFAULT_S, math.inf)

    with pytest.raises(InvalidRequestError):
        endless.timeout_s({b"x-request-timeout-seconds": b"1e999"})
