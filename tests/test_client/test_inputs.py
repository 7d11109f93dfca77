"""What the client refuses to send, and that it sends nothing then."""

from __future__ import annotations

import asyncio
import copy
import ctypes
import mmap
import pickle
import traceback
from array import array
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from itertools import repeat
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import world_model_client.inputs
from service.errors import (
    ClosedClientError,
    InvalidInputError,
    NotFoundError,
    UnreachableError,
    WrongLoopError,
)
from service.http import contract
from tests.test_client.test_client import answering
from world_model_client import AsyncClient, Client

NAN, INF = float("nan"), float("inf")


def state(value: Any) -> Callable[[Client], object]:
    return lambda client: client.predict(value, [0.0])


def check(**options: Any) -> Callable[[Client], object]:
    return lambda client: client.safety_check([0.0], [[0.0]], **options)


def asked(outputs: Any) -> Callable[[Client], object]:
    return lambda client: client.rollout([0.0], [[0.0]], outputs=outputs)


WITH: dict[str, Callable[..., object]] = {
    "predict": lambda client, **options: client.predict([0.0], [0.0], **options),
    "rollout": lambda client, **options: client.rollout([0.0], [[0.0]], **options),
    "safety_check": lambda client, **options: client.safety_check([0.0], [[0.0]], **options),
}


class Broken:
    def __array__(self, *arguments: Any) -> Any:
        raise KeyError("lost")


class RaisingArray:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __array__(self, *arguments: Any) -> Any:
        raise self.error


class RaisingList(list[float]):
    def __init__(self, error: Exception) -> None:
        super().__init__([0.0])
        self.error = error

    def __iter__(self) -> Any:
        raise self.error


class RaisingNumber(Fraction):
    error: Exception

    def __new__(cls, error: Exception) -> Any:
        made = super().__new__(cls, 1)
        made.error = error
        return made

    def __float__(self) -> float:
        raise self.error


class RaisingNature:
    """Not even what it is can be asked."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    @property
    def __array_interface__(self) -> Any:
        raise self.error


class SilentError(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")


ERRORS = (KeyError("k"), SystemError("s"), RuntimeError(""), OSError(5, "o"), SilentError())
ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)

NOT_SENT: dict[str, tuple[Callable[[Client], object], str]] = {
    "NaN": (state([0.0, 1.0, 2.0, NAN]), r"^state\[3\] is nan \(allowed: finite as a 32-bit"),
    "infinity": (state(np.array([[0.0, 1.0], [-INF, 0.0]])), r"^state\[1\]\[0\] is -inf "),
    "NaN of 32 bits": (state(np.array([NAN], np.float32)), r"^state\[0\] is nan"),
    "beyond 32 bits": (state([1e39]), r"^state\[0\] is 1e\+39 "),
    "integer beyond 32 bits": (state([10**60]), r"^state\[0\] is 1e\+60 "),
    "integer beyond all": (state([1.0, 10**400]), r"^state\[1\] is 1000\d*\.\.\.\d*, too large a"),
    "integer beyond Python's digits": (
        state([10**5000]),
        r"^state\[0\] is a huge integer, too large",
    ),
    "long double": (state(np.array([1.0, np.longdouble("1e400")])), r"^state\[1\] is inf"),
    "dictionary": (state({"x": 1.0}), r"^state is \{'x': 1.0\}, not a number"),
    "text": (state("fast"), "^state is 'fast', not a number"),
    "text among numbers": (state([1.0, "2"]), r"^state\[1\] is '2', not a number"),
    "array of text": (state(np.array(["2"])), "^state is not an array of numbers: it holds text"),
    "bytes": (state(b"12"), "^state is b'12', not a number"),
    "bytes among numbers": (state([1.0, b"2"]), r"^state\[1\] is b'2', not a number"),
    "byte array": (state(bytearray(b"12")), "^state is not an array of numbers: it holds bytes"),
    "byte arrays": (state([[1.0, 2.0], bytearray(b"12")]), r"^state\[1\] is .* it holds bytes"),
    "memory": (state(memoryview(b"12")), "^state is not an array of numbers: it holds bytes"),
    "memory of numbers": (state(memoryview(array("d", [0.5]))), "^state is .* it holds bytes"),
    "memory among numbers": (state([[1.0], memoryview(b"1")]), r"^state\[1\] is .* it holds bytes"),
    "mapped memory": (state(mmap.mmap(-1, 2)), "^state is not .* it holds bytes"),
    "nothing": (state(None), "^state is None, not a number"),
    "nothing among numbers": (state([1.0, None]), r"^state\[1\] is None, not a number"),
    "decimal": (state([Decimal("0.1")]), r"^state\[0\] is Decimal\('0.1'\), not a number"),
    "object": (state([1.0, object()]), r"^state\[1\] is <object .*>, not a number"),
    "array of objects": (
        state(np.array([1.0, 2.0], object)),
        "^state is not an array of numbers: it holds Python objects",
    ),
    "arrays of objects": (
        state([np.ones(2), np.array([1.0, True], object)]),
        r"^state\[1\] is not an array of numbers: it holds Python objects",
    ),
    "array of records": (state(np.zeros(2, "f4,f4")), "^state is .* it holds records"),
    "ragged": (
        state([[1.0, 2.0], [3.0, 4.0], [5.0]]),
        r"^state has rows that are not alike: state\[0\] has the shape \[2\] and state\[2\] has "
        r"the shape \[1\] \(allowed: finite numbers, \[S\] or \[N, S\]\)$",
    ),
    "ragged within": (
        lambda c: c.rollout([0.0], [[[1.0]], [[1.0], [1.0, 2.0]]]),
        r"^actions .* alike: actions\[1\]\[0\] has the shape \[1\] and actions\[1\]\[1\] has ",
    ),
    "ragged depth": (
        state([[1.0], 2.0]),
        r"alike: state\[0\] has the shape \[1\] and state\[1\] is a number ",
    ),
    "ragged arrays": (
        state([np.ones(2), np.ones(3)]),
        r"alike: state\[0\] has the shape \[2\] and state\[1\] has the shape \[3\] ",
    ),
    "array among numbers": (
        state([1.0, np.ones(1)]),
        r"alike: state\[0\] is a number and state\[1\] has the shape \[1\] ",
    ),
    "rows of text": (state([["a"], "b"]), r"^state\[0\]\[0\] is 'a', not a number"),
    "endless": (state(ENDLESS), "^state has more than 3 dimensions"),
    "generator": (state(x for x in [1.0]), r"^state is <generator .*>, not a number"),
    "generators": (state([(x for x in [1.0])]), r"^state\[0\] is <generator .*>, not a number"),
    "set": (state({1.0}), r"^state is \{1.0\}, not a number"),
    "dictionary's values": (state({"x": 1.0}.values()), r"^state is dict_values.*, not a number"),
    "complex": (state([0.0, 1j]), r"^state\[1\] is 1j, not a number"),
    "complex of NumPy": (state([np.complex64(1)]), r"^state\[0\] is .*, not a number"),
    "array of complex": (state(np.ones(1, complex)), "^state is .* it holds complex numbers"),
    "booleans": (state([True, False]), r"^state\[0\] is True, not a number"),
    "boolean among numbers": (state([0.0, True]), r"^state\[1\] is True, not a number"),
    "boolean among integers": (state([[0, 1], [2, False]]), r"^state\[1\]\[1\] is False, not a nu"),
    "boolean in a tuple": (state(((0.0,), (True,))), r"^state\[1\]\[0\] is True, not a number"),
    "boolean of NumPy": (state([0.0, np.True_]), r"^state\[1\] is np.True_, not a number"),
    "boolean array of one": (state([0.0, np.array(True)]), r"^state\[1\] is array\(True\), not a"),
    "boolean of torch": (state([0.0, torch.tensor(True)]), r"^state\[1\] is tensor\(True\), not a"),
    "array of booleans": (state(np.array([True])), "^state is not .* it holds booleans"),
    "tensor of booleans": (
        state(torch.ones(2, dtype=torch.bool)),
        "^state is .* it holds booleans",
    ),
    "booleans of ctypes": (state((ctypes.c_bool * 2)()), "^state is .* it holds b"),
    "booleans in an array": (
        state([[1.0, 2.0], np.array([True, False])]),
        r"^state\[1\] is not an array of numbers: it holds booleans",
    ),
    "date": (state([1.0, np.datetime64("2024-01-01")]), r"^state\[1\] is .*, not a number"),
    "dates": (state(np.array(["2024-01-01"], "M8[D]")), "it holds dates"),
    "duration": (state([np.timedelta64(1, "s")]), r"^state\[0\] is .*, not a number"),
    "durations": (state(np.array([1], "m8[s]")), "it holds durations"),
    "masked": (state(np.ma.masked_invalid([1.0, NAN])), "^state has masked values"),
    "masked row": (
        state([[1.0, 2.0], np.ma.array([1.0, 2.0], mask=[False, True])]),
        r"^state\[1\] has masked values",
    ),
    "masked constant": (state([1.0, np.ma.masked]), r"^state\[1\] has masked values"),
    "needs gradients": (
        state(torch.zeros(3, requires_grad=True)),
        "^state is not an array of numbers: Can't call numpy",
    ),
    "one needs gradients": (
        state([0.0, torch.zeros((), requires_grad=True)]),
        r"^state\[1\] is not an array of numbers: Can't call numpy",
    ),
    "on another device": (
        state(torch.zeros(3, device="meta")),
        "^state is not an array of numbers: .*meta",
    ),
    "half of torch": (
        state(torch.zeros(3, dtype=torch.bfloat16)),
        "^state is not an array of numbers: .*BFloat16",
    ),
    "broken array": (state(Broken()), "^state is not an array of numbers: 'lost'"),
    **{
        f"{type(error).__name__} of {kind.__name__}": (state(kind(error)), "^state (is|cannot) ")
        for error in ERRORS
        for kind in (RaisingArray, RaisingList, RaisingNumber, RaisingNature)
    },
    "broken number in a list": (
        state([0.0, RaisingNumber(KeyError("k"))]),
        r"^state\[1\] is not an array of numbers: 'k'",
    ),
    "broken threshold": (check(threshold=RaisingNumber(KeyError("k"))), "^threshold is not .* 'k'"),
    "broken names": (check(include=RaisingList(KeyError("k"))), "^include cannot be read: 'k'"),
    "broken time": (check(timeout_s=RaisingNumber(KeyError("k"))), "^timeout_s is not .* 'k'"),
    "long reason": (state(RaisingArray(KeyError("k" * 999))), r"numbers: 'k{150,160}\.\.\. \("),
    "one number": (state(1.0), r"^state is one number \(allowed: \[S\] or \[N, S\]\)$"),
    "three dimensions": (
        state(np.zeros((1, 34, 1))),
        r"^state has the shape \[1, 34, 1\] \(allowed: \[S\] or \[N, S\]\)$",
    ),
    "four dimensions": (
        lambda c: c.rollout([0.0], np.zeros((1, 2, 3, 4))),
        r"^actions has the shape \[1, 2, 3, 4\] \(allowed: \[H, A\] or \[K, H, A\]\)$",
    ),
    "action holds a boolean": (
        lambda c: c.predict([0.0], [0.0, True]),
        r"^action\[1\] is True, not a number",
    ),
    "actions hold a boolean": (
        lambda c: c.safety_check([0.0], [[0.0, 0.0], [0.0, True]]),
        r"^actions\[1\]\[1\] is True, not a number",
    ),
    "action": (lambda c: c.predict([0.0], [[NAN]]), r"^action\[0\]\[0\] is nan"),
    "actions": (lambda c: c.rollout([0.0], [[[NAN]]]), r"^actions\[0\]\[0\]\[0\] is nan"),
    "one action": (
        lambda c: c.rollout([0.0], [0.0]),
        r"^actions has the shape \[1\] \(allowed: \[H, A\] or \[K, H, A\]\)",
    ),
    "several states": (
        lambda c: c.safety_check([[0.0]], [[0.0]]),
        r"^state has the shape \[1, 1\] \(allowed: \[S\]\)",
    ),
    "threshold NaN": (check(threshold=NAN), r"^threshold is nan \(allowed: a number from 0 to 1\)"),
    "threshold above 1": (check(threshold=5), r"^threshold is 5 \(allowed: a number from 0 to 1\)"),
    "threshold below 0": (check(threshold=-0.1), r"^threshold is -0\.1 \(allowed: a number from 0"),
    "threshold text": (check(threshold="0.1"), "^threshold is '0.1'"),
    "threshold yes": (check(threshold=True), "^threshold is True"),
    "threshold complex": (check(threshold=1j), "^threshold is 1j, not a number"),
    "threshold yes of NumPy": (
        check(threshold=np.array(True)),
        r"^threshold is array\(True\), not",
    ),
    "threshold yes of torch": (
        check(threshold=torch.tensor(True)),
        r"^threshold is tensor\(True\)",
    ),
    "threshold decimal": (
        check(threshold=Decimal("0.1")),
        r"^threshold is Decimal\('0.1'\), not a",
    ),
    "threshold bytes": (check(threshold=b"1"), "^threshold is b'1', not a number"),
    **{
        f"members {text}": (
            check(members=value),
            rf"^members is {text} \(allowed: a whole number from 1 to 10000\)",
        )
        for text, value in {"0": 0, "-1": -1, "1.5": 1.5, "10001": 10_001}.items()
    },
    "members yes": (check(members=True), "^members is True, not a number"),
    "members text": (check(members="2"), "^members is '2', not a number"),
    "threshold masked": (check(threshold=np.ma.masked), "^threshold has masked values"),
    "threshold duration": (check(threshold=np.timedelta64(1, "s")), "^threshold is .*, not a num"),
    "threshold huge": (check(threshold=10**400), "^threshold is 10000.*, too large a number"),
    "threshold array": (
        check(threshold=np.ones(1)),
        r"^threshold is array\(\[1.\]\), not a number",
    ),
    "thresholds of booleans": (check(threshold=[True]), r"^threshold is \[True\], not a number"),
    "thresholds": (check(threshold=[0.1]), r"^threshold is \[0.1\]"),
    "include text": (check(include="trajectory"), r"^include is 'trajectory' \(allowed: a list"),
    "include numbers": (
        check(include=[1]),
        r"^include\[0\] is 1 \(allowed: a list with any of tra",
    ),
    "include unknown": (
        check(include=["trajectory", "path"]),
        r"^include\[1\] is 'path' \(allowed:",
    ),
    "include nothing": (check(include=[]), r"^include is empty \(allowed: a list with any of traj"),
    "outputs unknown": (
        asked(["stats"]),
        r"^outputs\[0\] is 'stats' \(allowed: .* returns, crash_pr",
    ),
    "outputs table": (asked({"states": True}), r"^outputs is \{'states': True\} \(allowed: a list"),
    "outputs yes": (asked(True), r"^outputs is True \(allowed: a list with any of states, rew"),
    "outputs bytes": (asked([b"states"]), r"^outputs\[0\] is b'states' \(allowed: a list"),
    "outputs without end": (asked(repeat("states")), "^outputs has more than 16 names"),
    "outputs in lists": (asked([["states"]]), r"^outputs\[0\] is \['states'\] \(allowed: a list"),
    "outputs no text": (
        lambda c: c.rollout([0.0], [[0.0]], outputs=["\ud800"]),
        r"^outputs\[0\] is '\\ud800' \(allowed: a list with any of states, ",
    ),
    "deadline 0": (check(timeout_s=0), r"^timeout_s is 0 \(allowed: a positive number of seconds"),
    "deadline negative": (check(timeout_s=-1.5), "^timeout_s is -1.5"),
    "deadline NaN": (check(timeout_s=NAN), r"^timeout_s is nan \(allowed: a positive number of s"),
    "deadline infinite": (check(timeout_s=INF), "^timeout_s is inf"),
    "deadline yes": (check(timeout_s=True), "^timeout_s is True, not a number"),
    "deadline text": (check(timeout_s="1"), r"^timeout_s is '1', not a number \(allowed: a pos"),
    **{
        f"{field} of {call} is {value!r:.20}": (
            partial(WITH[call], **{field: value}),
            rf"^{field} is .*\(allowed: {allowed}",
        )
        for call in ("predict", "rollout", "safety_check")
        for field, allowed, values in (
            ("dt_s", "a positive number of seconds", (0, -0.1, NAN, INF, True, "0.1", [0.1])),
            (
                "frame",
                "text of 1 to 64 characters",
                ("", "x" * 65, 1, True, b"iso", ["iso"], "\ud800"),
            ),
        )
        for value in values
    },
}


@pytest.mark.parametrize("case", NOT_SENT)
def test_what_cannot_be_right_is_refused_by_name_and_not_sent(case: str) -> None:
    make, message = NOT_SENT[case]
    client, seen = answering(200, b"{}")

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
    "tensors": ([torch.tensor([0.5, 1.5]), torch.tensor([2.5, 3.5])], [[0.5, 1.5], [2.5, 3.5]]),
    "tensors of one": ([torch.tensor(0.5), 1], [0.5, 1.0]),
    "scalars": ([np.float32(0.1), np.float32(0.5)], [0.1, 0.5]),
    "scalars of several types": ([np.float16(0.5), np.int8(-1), np.uint64(2), 3], [0.5, -1, 2, 3]),
    "arrays in lists": ([np.array([1, 2]), [3.5, np.float64(4)]], [[1.0, 2.0], [3.5, 4.0]]),
    "rows of float32": (list(np.array([[0.1], [0.2]], np.float32)), [[0.1], [0.2]]),
    "rows unmasked": ([np.ma.array([1.0, 2.0], mask=[False, False])], [[1.0, 2.0]]),
    "range": (range(3), [0.0, 1.0, 2.0]),
    "queue": (deque([0.5, 1]), [0.5, 1.0]),
    "array of Python": (array("d", [0.5, 1.5]), [0.5, 1.5]),
    "small integers": (array("B", [1, 2]), [1.0, 2.0]),
    "bytes of NumPy": (np.array([1, 2], np.uint8), [1.0, 2.0]),
    "ctypes": ((ctypes.c_double * 2)(0.5, 1.5), [0.5, 1.5]),
    "no rows": ([[], []], [[], []]),
    "long double": (np.array([0.5], np.longdouble), [0.5]),
    "tuples": (((1.0,), (2.0,)), [[1.0], [2.0]]),
    "largest": ([3.4028234e38], [3.4028234e38]),
    "empty": ([], []),
}


@pytest.mark.parametrize("case", SENT)
def test_numbers_of_any_type_and_layout_are_sent_as_they_are(case: str) -> None:
    given, written = SENT[case]
    client, seen = answering(200, b"{}")

    client.predict(given, [0])

    assert orjson.loads(seen[0].content) == {"state": written, "action": [0.0]}


PLAIN_FAULTS = [True, 1j, "1", b"1", bytearray(b"1"), memoryview(b"1"), None, {}, set(), NAN, INF]
FAULTS_OF_TYPES = [Decimal(1), np.False_, np.datetime64(1, "s"), np.timedelta64(1, "s"), object()]
FAULTY_ARRAYS = [
    np.array(True),
    np.ma.masked,
    np.array([1.0], object),
    torch.tensor(True),
    Broken(),
]
FAULTS_OF_SHAPE = [[], [[[[1.0]]]], np.ones(2)]
NO_NUMBERS = st.sampled_from([*PLAIN_FAULTS, *FAULTS_OF_TYPES, *FAULTY_ARRAYS, *FAULTS_OF_SHAPE])
ROW = st.lists(
    st.one_of(
        st.integers(-(10**30), 10**30),
        st.floats(-1e30, 1e30),
        st.fractions(-9, 9),
        st.sampled_from([np.float32(0.5), np.int8(1), np.array(2.0), torch.tensor(3.0)]),
    ),
    min_size=2,
    max_size=2,
)


@given(st.lists(ROW, min_size=2, max_size=3), NO_NUMBERS, st.data())
def test_one_thing_that_is_no_number_is_refused_wherever_it_stands(
    rows: list[list[Any]], wrong: object, data: st.DataObject
) -> None:
    client, seen = answering(200, b"{}")
    client.rollout([0.0], rows)
    assert len(seen) == 1

    i = data.draw(st.integers(0, len(rows) - 1))
    rows[i][data.draw(st.integers(0, 1))] = wrong
    shape = data.draw(st.sampled_from([list, tuple, deque]))
    with pytest.raises(InvalidInputError, match=r"^actions"):
        client.rollout([0.0], shape(map(shape, rows)))
    assert len(seen) == 1


def test_large_arrays_are_sent_bit_for_bit() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (64, 50, 3))
    client, seen = answering(200, b"{}")

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
        "http:car",
        "http:/car:80",
        "http://car?",
        "http://car#here",
        "http://car#",
        "http://car/a?b",
        " http://car",
        "http://car ",
        "http://ca r",
        "http://car\n",
        "http://car:8000/predict",
        "http://car/below/safety-check/",
        "ws://car",
        None,
        True,
        8000,
        b"http://car",
        ["http://car"],
    ],
    ids=repr,
)
def test_an_address_that_is_none_is_refused(base_url: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^base_url is .*\(allowed: http://HOST:PORT or"):
        Client(base_url)


@pytest.mark.parametrize(
    ("base_url", "path"),
    [
        ("http://car", "/predict"),
        ("http://car/", "/predict"),
        ("HTTP://CAR//", "/predict"),
        ("http://car/a/b//", "/a/b/predict"),
        ("http://car/model", "/model/predict"),
        ("http://[::1]:8000/", "/predict"),
        (httpx.URL("http://car/%C3%BC/"), "/%C3%BC/predict"),
    ],
    ids=str,
)
def test_slashes_at_an_addresss_end_make_no_difference(base_url: Any, path: str) -> None:
    client, seen = answering(200, b"{}", base_url=base_url)

    client.predict([0.0], [0.0])

    assert seen[0].url.raw_path.decode() == path


def test_a_user_name_in_the_address_takes_no_keys_place() -> None:
    with pytest.raises(
        InvalidInputError, match=r"^base_url is .*\.\.\.@car.* in place of api_key"
    ) as it:
        Client("http://anna:hush@car", api_key="k3y")
    assert "hush" not in str(it.value)
    assert "k3y" not in str(it.value)


def test_an_address_is_named_without_its_password() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(InvalidInputError) as caught:
        Client("anna:hush@car:8000")
    with pytest.raises(UnreachableError) as lost:
        Client("http://anna:hush@car", transport=httpx.MockTransport(refuse)).model()

    assert "hush" not in f"{caught.value} {lost.value}"


@pytest.mark.parametrize(
    "base_url",
    [
        "http://anna:hush/hush@car",
        "http://anna:hush?hush@car",
        "http://anna:hush#hush@car",
        "http://anna:hush@hush@car:port",
        "http://anna:hush@" + "a" * 300,
        "http://anna:" + "hush" * 100 + "@car:port",
        "http://anna:hush'\"@car:port",
        "http://anna:hush\n@car",
        "http://anna:hush%40car:port",
        "http://anna:hush\uff20car:port",
        "ftp://anna:hush@car",
        "//hush:hush@car",
        "hush:@car",
        "anna:hush@car/" + "b" * 300,
        b"http://anna:hush@car",
        ["http://anna:hush@car"],
        httpx.URL("ftp://anna:hush@car"),
    ],
    ids=lambda given: repr(given)[:40],
)
def test_no_part_of_a_password_is_shown_whatever_is_wrong_with_the_address(base_url: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^base_url is ") as caught:
        Client(base_url)

    text = "".join(traceback.format_exception(caught.value, limit=0))
    assert "hush" not in text.lower()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["timeout_s", "margin_s"])
@pytest.mark.parametrize("given", [0, -1, NAN, INF, "1", None, True, [1.0]], ids=repr)
def test_a_clients_time_that_is_none_is_refused(name: str, given: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"^{name} is .*\(allowed: a positive number of s"):
        Client(**{name: given})


@pytest.mark.parametrize(
    "key", ["hush\n", "", "hush hush", "schlüssel", b"hush", ["hush"], True], ids=repr
)
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^api_key is (empty or|of type)") as caught:
        Client(api_key=key)
    assert "hush" not in str(caught.value)


async def test_a_closed_client_says_so() -> None:
    client, _ = answering(200, b"{}")
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


def test_a_client_says_what_it_is_without_a_password() -> None:
    client = Client("http://anna:hush@car/below/")
    assert repr(client) == "<Client of http://car/below>"
    client.close()
    assert repr(client) == "<Client of http://car/below, closed>"
    assert repr(AsyncClient()) == "<AsyncClient of http://127.0.0.1:8000>"


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_client_says_that_it_cannot_be_pickled(kind: Any, take: Any) -> None:
    with pytest.raises(TypeError, match=r"Client of http://car> cannot be pickled or copied: make"):
        take(kind("http://car"))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("given", ["no", 0, None], ids=repr)
def test_whether_ids_are_checked_is_yes_or_no(kind: Any, given: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^checks_ids is .*\(allowed: True or False\)"):
        kind(checks_ids=given)


@pytest.mark.parametrize(
    ("kind", "transport"),
    [
        (Client, "http"),
        (Client, httpx.ASGITransport(lambda: None)),  # type: ignore[arg-type, misc]
        (AsyncClient, httpx.WSGITransport(lambda: None)),  # type: ignore[arg-type, misc]
    ],
    ids=["text", "async", "sync"],
)
def test_a_transport_of_the_other_kind_is_refused(kind: Any, transport: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^transport is of type .* that has handle_"):
        kind(transport=transport)


async def test_each_client_says_which_with_it_is_for() -> None:
    blocking: Any = Client()
    other: Any = AsyncClient()
    with pytest.raises(TypeError, match=r"^AsyncClient is for 'async with', its calls for"), other:
        pass
    with pytest.raises(TypeError, match=r"^Client is for 'with', its calls without 'await'"):
        async with blocking:
            pass


def test_an_async_client_of_another_event_loop_says_so() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=b"{}"))
    client = AsyncClient("http://car", transport=transport)

    async def ask() -> None:
        await client.model()
        assert await client.ready()

    asyncio.run(ask())
    for call in (client.model, client.ready, client.close):
        with pytest.raises(WrongLoopError, match=r"^the client of http://car belongs to"):
            asyncio.run(call())
    with pytest.raises(WrongLoopError, match=r"^the client of http://car needs a "):
        AsyncClient("http://car", transport=transport).model().send(None)


def test_closing_an_async_client_on_another_event_loop_takes_nothing_away() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=b"{}"))
    client = AsyncClient("http://car", transport=transport)

    with asyncio.Runner() as its_own, asyncio.Runner() as other:
        its_own.run(client.model())
        with pytest.raises(WrongLoopError, match=r"^the client of http://car belongs to"):
            other.run(client.close())
        assert its_own.run(client.model()) == {}
        its_own.run(client.close())
        with pytest.raises(ClosedClientError):
            its_own.run(client.model())


def test_readiness_below_a_wrong_path_is_an_error() -> None:
    body = orjson.dumps(NotFoundError("there is no /below/readyz").body())
    transport = httpx.MockTransport(lambda request: httpx.Response(404, content=body))

    with pytest.raises(NotFoundError, match="there is no /below/readyz"):
        Client("http://car/below", transport=transport).ready()
    with pytest.raises(NotFoundError, match="there is no /below/readyz"):
        asyncio.run(AsyncClient("http://car/below", transport=transport).ready())


@pytest.mark.parametrize("call", WITH)
def test_what_is_counted_on_is_sent_if_it_is_given(call: str) -> None:
    client, seen = answering(200, b"{}")

    WITH[call](client, dt_s=np.float32(0.25), frame="iso8855")
    WITH[call](client)

    given, plain = (orjson.loads(request.content) for request in seen)
    assert given == {**plain, "dt_s": 0.25, "frame": "iso8855"}
    assert not {"dt_s", "frame"} & plain.keys()


def test_the_client_knows_the_names_that_the_service_knows() -> None:
    assert world_model_client.inputs.OUTPUTS == contract.OUTPUTS
    assert world_model_client.inputs.INCLUDES == contract.INCLUDES
