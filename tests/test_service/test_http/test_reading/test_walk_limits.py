"""How far a body is read: in a slice, behind a fault, outside of its arrays, in its pieces."""

from __future__ import annotations

import orjson
import pytest

from service.errors import InvalidRequestError
from service.http.contract import Contract
from service.http.reading.bodies import BodyParser, Parsed
from service.http.reading.diagnosis import detail, refuse
from service.http.reading.tokens import BrokenError, Tokens
from tests.fakes.engine import fake_spec
from tests.test_service.test_http.test_reading.test_walk import CUTTING, at_once, sliced

ONE = '"state":[1,2,3],"actions":[[0,0]]'


@pytest.mark.parametrize("digits", [24, 25, 400])
def test_a_long_number_is_named_by_its_beginning(digits: int) -> None:
    text = "9" * (digits - 4) + "e999"
    error = at_once(CUTTING[2**15], "predict", f'{{"state":[{text},2,3],"action":[0,0]}}'.encode())
    shown = text if digits == 24 else f"{text[:24]}..."

    assert isinstance(error, InvalidRequestError)
    assert error.details[0]["problem"] == f"is {shown}, not a finite number of 32 bits"


def test_faults_are_looked_for_in_so_many_tokens_behind_the_first() -> None:
    """The second of them is the 512th token, or the 514th."""
    for zeros, is_found in ((255, True), (256, False)):
        body = f'{{{ONE},"outputs":[[{",".join("0" * zeros)}],{{}}'.encode()
        error = at_once(CUTTING[2**15], "rollout", body)

        assert isinstance(error, InvalidRequestError)
        assert ("outputs[1]" in [x["field"] for x in error.details]) is is_found


@pytest.mark.parametrize(("zeros", "slices"), [(10, 1), (61, 1), (62, 2), (126, 3), (253, 4)])
def test_a_slice_ends_behind_so_many_tokens(zeros: int, slices: int) -> None:
    body = f'{{"x":[{",".join("0" * zeros)}]}}'.encode()

    assert sliced(CUTTING[2**15], "predict", body)[1] == slices


@pytest.mark.parametrize("zeros", [0, 1])
def test_bytes_outside_of_arrays_are_counted_exactly(zeros: int) -> None:
    rest = len('{"state":,"action":}')
    body = b'{"state":[1,2,3],"action":[0,0]' + b" " * (2**15 - rest + zeros) + b"}"
    result, _ = sliced(CUTTING[2**15], "predict", body)

    assert isinstance(result, InvalidRequestError if zeros else Parsed)


def test_what_ends_at_the_limit_ends_too_early() -> None:
    body = b'{"threshold":'.ljust(2**15)
    whole, _ = sliced(CUTTING[2**15], "safety_check", body)
    more, _ = sliced(CUTTING[2**15], "safety_check", body + b" ")

    assert isinstance(whole, InvalidRequestError)
    assert isinstance(more, InvalidRequestError)
    assert whole.message == "body is not JSON: ends too early, after 32768 bytes"
    assert more.message == "body has more than 32768 bytes outside of states and actions"


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (2**15 - 1, 'body is not JSON: unexpected "?" at byte 32767'),
        (2**15, 'body is not JSON: unexpected "?" at byte 32768'),
        (2**15 + 1, "body has more than 32768 bytes outside of states and actions"),
    ],
)
def test_a_fault_is_named_up_to_the_limit(at: int, message: str) -> None:
    error, _ = sliced(CUTTING[2**15], "predict", b"{" + b" " * (at - 1) + b"?" * 40)

    assert isinstance(error, InvalidRequestError)
    assert error.message == message


@pytest.mark.parametrize("size", [1, 16, 64, 2**15])
@pytest.mark.parametrize("steps", [1, 3, 20, 64])
def test_sequences_longer_than_a_piece_are_read(size: int, steps: int) -> None:
    parser = BodyParser(Contract(fake_spec(), 64, 3), piece_bytes=size)
    actions = [[[i / 200, row / 4] for i in range(steps)] for row in range(3)]
    result, _ = sliced(parser, "rollout", orjson.dumps({"state": [1, 2, 3], "actions": actions}))

    assert isinstance(result, Parsed)
    assert result.actions.shape == (3, steps, 2)
    assert abs(result.actions - actions).max() < 1e-6


def test_the_error_of_a_token_says_what_is_wrong() -> None:
    with pytest.raises(BrokenError, match=r'^is not JSON: unexpected "x" at byte 1$'):
        Tokens(b" x").read()


@pytest.mark.parametrize("rows", [1, 100, 2000])
@pytest.mark.parametrize("size", [1, 1024, 2**15])
def test_arrays_are_read_in_pieces_of_their_size(size: int, rows: int) -> None:
    """Written as densely as can be: as many rows as fit into so many bytes."""
    parser = BodyParser(Contract(fake_spec(), 4, 4096), piece_bytes=size)
    states = [[i % 10, 2, 3] for i in range(rows)]
    body = orjson.dumps({"state": states, "action": [0, 0]})
    result, slices = sliced(parser, "predict", body)
    pieces = rows if size == 1 else len(body) / (size - len("[1,2,3],"))

    assert isinstance(result, Parsed)
    assert result.states.tolist() == states
    assert len(body) / max(size, len("[1,2,3],")) - 4 <= slices <= pieces + 4


@pytest.mark.parametrize(
    ("count", "more"),
    [
        (1, ""),
        (2, ", and 1 more problem"),
        (3, ", and 2 more problems"),
        (99, ", and 15 more problems"),
    ],
)
def test_a_message_counts_the_other_problems(count: int, more: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        refuse([detail("speed", "is odd", "0 to 1")] * count)

    assert caught.value.message == f"speed is odd (allowed: 0 to 1){more}"
