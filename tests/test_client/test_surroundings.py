"""Whatever servers answer, the client raises errors of its own tree."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import orjson
import pytest

import world_model_client.exchange
from service.errors import (
    UnreachableError,
)
from tests.fakes.misbehaving import Visit, misbehaving
from tests.test_client.test_connections import BOTH
from world_model_client import Client

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "of blanks": b"10000\r\n" + b" " * 2**16 + b"\r\n",
    "of single bytes": b"1\r\n \r\n" * 2**12,
}


@BOTH
@pytest.mark.parametrize("kind", ENDLESS)
def test_an_answer_without_end_is_given_up(
    ask: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_model_client.exchange, "MOST_ANSWER_BYTES", 2**18)
    is_over = threading.Event()

    def behave(visit: Visit) -> bytes | None:
        visit.write(CHUNKED)
        while not is_over.is_set():
            visit.write(ENDLESS[kind])
        return None

    with misbehaving(behave) as server:
        with pytest.raises(UnreachableError, match="is longer than 262144 bytes"):
            ask(server.url, 1, timeout_s=60)
        is_over.set()

    assert len(server.visits) == 1


@pytest.mark.parametrize("surplus", [0, 1])
def test_an_answer_may_be_as_long_as_the_bound(
    surplus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_model_client.exchange, "MOST_ANSWER_BYTES", 100)
    body = orjson.dumps({"x": 1}).ljust(100 + surplus)
    client = Client(
        "http://car", transport=httpx.MockTransport(lambda _: httpx.Response(200, content=body))
    )

    if surplus:
        with pytest.raises(UnreachableError, match="is longer than 100 bytes"):
            client.model()
    else:
        assert client.model() == {"x": 1}
