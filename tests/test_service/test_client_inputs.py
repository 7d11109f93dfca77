"""What the client refuses to send, and that it sends nothing then."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import torch

from service.client import AsyncClient, Client
from service.errors import ClosedClientError, InvalidInputError, UnreachableError

NAN, INF = float("nan"), float("inf")


def sending(**arguments: Any) -> tuple[Client, list[httpx.Request]]:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=b"{}")

    return Client("http://car", transport=httpx.MockTransport(answer), **arguments), seen


def state(value: Any) -> Callable[[Client], object]:
    return lambda client: client.predict(value, [0.0])


def check(**options: Any) -> Callable[[Client], object]:
    return lambda client: client.safety_check([0.0], [[0.0]], **options)


NOT_SENT: dict[str, tuple[Callable[[Client], object], str]] = {
    "NaN": (state([0.0, 1.0, 2.0, NAN]), r"^state\[3\] is nan \(allowed: finite as a 32-bit"),
    "infinity": (state(np.array([[0.0, 1.0], [-INF, 0.0]])), r"^state\[1\]\[0\] is -inf "),
    "NaN of 32 bits": (state(np.array([NAN], np.float32)), r"^state\[0\] is nan"),
    "beyond 32 bits": (state([1e39]), r"^state\[0\] is 1e\+39 "),
    "integer beyond 32 bits": (state([10**60]), r"^state\[0\] is 1e\+60 "),
    "integer beyond all": (state([10**400]), "^state is not an array of numbers: int too large"),
    "dictionary": (state({"x": 1.0}), r"^state is \{'x': 1.0\}, not a number"),
    "text": (state("fast"), "^state is not an array of numbers: it holds text"),
    "text among numbers": (state([1.0, "2"]), "^state is not an array of numbers: it holds text"),
    "bytes": (state(b"12"), "it holds bytes"),
    "nothing": (state(None), "^state is None, not a number"),
    "nothing among numbers": (state([1.0, None]), r"^state\[1\] is None, not a number"),
    "decimal": (state([Decimal("0.1")]), r"^state\[0\] is Decimal\('0.1'\), not a number"),
    "ragged": (state([[1.0, 2.0], [3.0]]), "^state is not an array of numbers: .*inhomogeneous"),
    "generator": (state(x for x in [1.0]), r"^state is <generator .*>, not a number"),
    "set": (state({1.0}), r"^state is \{1.0\}, not a number"),
    "complex": (state([1j]), "^state is not an array of numbers: it holds complex numbers"),
    "booleans": (state([True, False]), "it holds booleans"),
    "dates": (state(np.array(["2024-01-01"], "M8[D]")), "it holds dates"),
    "masked": (state(np.ma.masked_invalid([1.0, NAN])), "^state has masked values"),
    "needs gradients": (
        state(torch.zeros(3, requires_grad=True)),
        "^state is not an array of numbers: Can't call numpy",
    ),
    "one number": (state(1.0), r"^state has 0 dimensions \(allowed: 1 or 2\)"),
    "three dimensions": (state(np.zeros((1, 2, 3))), "^state has 3 dimensions"),
    "action": (lambda c: c.predict([0.0], [[NAN]]), r"^action\[0\]\[0\] is nan"),
    "actions": (lambda c: c.rollout([0.0], [[[NAN]]]), r"^actions\[0\]\[0\]\[0\] is nan"),
    "one action": (
        lambda c: c.rollout([0.0], [0.0]),
        r"^actions has 1 dimensions \(allowed: 2 or 3\)",
    ),
    "several states": (
        lambda c: c.safety_check([[0.0]], [[0.0]]),
        r"^state has 2 dimensions \(allowed: 1\)",
    ),
    "threshold NaN": (check(threshold=NAN), r"^threshold is nan \(allowed: a finite number\)"),
    "threshold text": (check(threshold="0.1"), "^threshold is '0.1'"),
    "threshold yes": (check(threshold=True), "^threshold is True"),
    "threshold complex": (check(threshold=1j), "^threshold is 1j, not a number"),
    "thresholds": (check(threshold=[0.1]), r"^threshold is \[0.1\]"),
    "include text": (check(include="trajectory"), r"^include is 'trajectory' \(allowed: a list"),
    "include numbers": (check(include=[1]), r"^include is \[1\]"),
    "outputs no text": (
        lambda c: c.rollout([0.0], [[0.0]], outputs=["\ud800"]),
        "^the request cannot be written as JSON",
    ),
    "deadline 0": (check(timeout_s=0), r"^timeout_s is 0 \(allowed: a positive number of seconds"),
    "deadline negative": (check(timeout_s=-1.5), "^timeout_s is -1.5"),
    "deadline NaN": (check(timeout_s=NAN), "^timeout_s is nan"),
    "deadline infinite": (check(timeout_s=INF), "^timeout_s is inf"),
    "deadline text": (check(timeout_s="1"), "^timeout_s is '1'"),
}


@pytest.mark.parametrize("case", NOT_SENT)
def test_what_cannot_be_right_is_refused_by_name_and_not_sent(case: str) -> None:
    make, message = NOT_SENT[case]
    client, seen = sending()

    with pytest.raises(InvalidInputError, match=message) as caught:
        make(client)

    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 300
    assert seen == []


async def test_the_async_client_refuses_when_it_is_awaited() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=b"{}"))
    async with AsyncClient("http://car", transport=transport) as client:
        call = client.predict([NAN], [0.0])
        with pytest.raises(InvalidInputError, match=r"state\[0\] is nan"):
            await call


SENT: dict[str, tuple[Any, list[Any]]] = {
    "float16": (np.array([0.1], np.float16), [0.0999755859375]),
    "float32": (np.array([0.1], np.float32), [0.1]),
    "float64": (np.array([0.1]), [0.1]),
    "other byte order": (np.array([0.1], ">f8"), [0.1]),
    "float32 of other byte order": (np.array([0.5], ">f4"), [0.5]),
    "integers": ([1, 2], [1.0, 2.0]),
    "large integers": (np.array([2**62], np.int64), [float(2**62)]),
    "huge integers": ([10**30], [1e30]),
    "fractions": ([Fraction(1, 4)], [0.25]),
    "every second": (np.arange(6.0)[::2], [0.0, 2.0, 4.0]),
    "columns first": (np.asfortranarray([[1.0, 2.0], [3.0, 4.0]]), [[1.0, 2.0], [3.0, 4.0]]),
    "torch": (torch.tensor([0.5, 1.5]), [0.5, 1.5]),
    "unmasked": (np.ma.array([1.0, 2.0]), [1.0, 2.0]),
    "tuples": (((1.0,), (2.0,)), [[1.0], [2.0]]),
    "largest": ([3.4028234e38], [3.4028234e38]),
    "empty": ([], []),
}


@pytest.mark.parametrize("case", SENT)
def test_numbers_of_any_type_and_layout_are_sent_as_they_are(case: str) -> None:
    given, written = SENT[case]
    client, seen = sending()

    client.predict(given, [0])

    assert orjson.loads(seen[0].content) == {"state": written, "action": [0.0]}


def test_large_arrays_are_sent_bit_for_bit() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (64, 50, 3))
    client, seen = sending()

    client.rollout(np.zeros(34), actions, outputs=("returns",))

    body = orjson.loads(seen[0].content)
    assert np.array(body["actions"]).tobytes() == actions.tobytes()
    assert body["outputs"] == ["returns"]


@pytest.mark.parametrize(
    "base_url",
    [
        "localhost:8000",
        "127.0.0.1:8000",
        "car",
        "",
        "ftp://car",
        "http://",
        "http://:8000",
        "http://car:port",
        "http://car:99999",
        "http://car:0",
        "http://a..b",
        "http://car?x=1",
        "//car",
        None,
        8000,
    ],
    ids=repr,
)
def test_an_address_that_is_none_is_refused(base_url: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^base_url is "):
        Client(base_url)


def test_an_address_is_named_without_its_password() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(InvalidInputError) as caught:
        Client("anna:hush@car:8000")
    with pytest.raises(UnreachableError) as lost:
        Client("http://anna:hush@car", transport=httpx.MockTransport(refuse)).model()

    assert "hush" not in f"{caught.value} {lost.value}"


@pytest.mark.parametrize("timeout_s", [0, -1, NAN, INF, "1", None, True], ids=repr)
def test_a_clients_timeout_that_is_none_is_refused(timeout_s: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^timeout_s is "):
        Client(timeout_s=timeout_s)


@pytest.mark.parametrize("key", ["hush\n", "", "hush hush", "schlüssel", b"hush"], ids=repr)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^api_key is empty or has characters") as caught:
        Client(api_key=key)
    assert "hush" not in str(caught.value)


async def test_a_closed_client_says_so() -> None:
    client, _ = sending()
    client.close()
    client.close()
    other = AsyncClient("http://car")
    await other.close()

    with pytest.raises(ClosedClientError, match="the client of http://car is closed") as caught:
        client.model()
    with pytest.raises(ClosedClientError):
        client.ready()
    with pytest.raises(ClosedClientError):
        await other.model()
    assert isinstance(caught.value, RuntimeError)
