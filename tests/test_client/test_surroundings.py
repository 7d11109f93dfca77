"""Whatever servers answer and environments name, the client raises errors of its own tree."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import world_model_client.exchange
from service.errors import (
    EngineError,
    InvalidInputError,
    UnreachableError,
    WorldModelError,
)
from tests.fakes.misbehaving import Visit, answer_to, misbehaving
from tests.test_client.test_connections import BOTH
from world_model_client import AsyncClient, Client

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "of blanks": b"10000\r\n" + b" " * 2**16 + b"\r\n",
    "of single bytes": b"1\r\n \r\n" * 2**12,
}


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no proxies."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


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


PROXIES = {
    "another scheme": "ftp://user:s3same@car",
    "a port in letters": "http://user:s3same@car:port",
    "a port that is too high": "http://user:s3same@car:99999",
    "port 0": "http://user:s3same@car:0",
    "no host": "http://user:s3same@:80",
    "half an IPv6 address": "http://user:s3same@[::1",
    "an empty label": "http://user:s3same@a..b:80",
    "a label that is too long": f"http://user:s3same@{'a' * 64}.car:80",
    "a host that is none": "http://user:s3same@\N{SNOWMAN}:80",
    "a control character": "http://user:s3same@car\x01:80",
}


@BOTH
@pytest.mark.parametrize("proxy", PROXIES.values(), ids=PROXIES)
def test_a_proxy_that_is_none_is_refused_without_its_password(
    ask: Any, proxy: str, surroundings: pytest.MonkeyPatch
) -> None:
    surroundings.setenv("http_proxy", proxy)

    with pytest.raises(InvalidInputError, match="environment names for http has no") as refused:
        ask("http://car", 1)

    assert "s3same" not in "".join(traceback.format_exception(refused.value))


@BOTH
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_needs_a_package(
    ask: Any, scheme: str, surroundings: pytest.MonkeyPatch
) -> None:
    surroundings.setenv("ALL_PROXY", f"{scheme}://user:s3same@car:1080")
    surroundings.setitem(sys.modules, "socksio", None)

    with pytest.raises(InvalidInputError, match=f"one of {scheme}, .* package socksio"):
        ask("http://car", 1)


@BOTH
@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_a_proxy_of_the_environment_is_used(
    ask: Any, name: str, surroundings: pytest.MonkeyPatch
) -> None:
    with misbehaving(answer_to) as server:
        surroundings.setenv(name, server.url.replace("//", "//user:pass@"))
        ask("http://car:8000", 1)
        surroundings.setenv("no_proxy", "car")
        with pytest.raises(UnreachableError, match="no answer"):
            ask("http://car:8000", 1)

    (visit,) = server.visits
    assert visit.headers["host"] == "car:8000"
    assert visit.headers["proxy-authorization"].startswith("Basic ")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_certificates_that_cannot_be_read_are_refused(
    kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for path in (broken, tmp_path / "absent.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        with pytest.raises(InvalidInputError, match="certificates that SSL_CERT_FILE"):
            kind("https://car")


GOOD = {"field": "state", "problem": "is bad", "allowed": "0 to 1"}
DETAILS: dict[str, tuple[list[Any], list[dict[str, str]]]] = {
    "none": ([], []),
    "good ones": ([GOOD, {"field": "a", "problem": "b"}], [GOOD, {"field": "a", "problem": "b"}]),
    "no objects": ([1, None, "text", [GOOD], GOOD], [GOOD]),
    "no texts": ([{**GOOD, "field": 1}, {**GOOD, "problem": None}, GOOD], [GOOD]),
    "no text where none is needed": (
        [{**GOOD, "allowed": [1]}],
        [{"field": "state", "problem": "is bad"}],
    ),
    "a part missing": ([{"field": "state"}, {"problem": "is bad"}, {}], []),
    "another part": ([{**GOOD, "more": {"deep": [1]}}], [GOOD]),
    "too many": ([GOOD] * 1000, [GOOD] * 16),
    "what a terminal obeys": (
        [{"field": "\x1b[2J", "problem": "a\nb"}],
        [{"field": "\\x1b[2J", "problem": "a\\nb"}],
    ),
}


@pytest.mark.parametrize("case", DETAILS)
def test_details_of_an_error_are_texts_whatever_was_sent(case: str) -> None:
    sent, expected = DETAILS[case]
    body = orjson.dumps({"error": {"code": "engine_error", "message": "m", "details": sent}})
    transport = httpx.MockTransport(lambda _: httpx.Response(500, content=body))

    with pytest.raises(EngineError) as caught:
        Client("http://car", transport=transport).model()

    assert caught.value.details == expected
    assert orjson.loads(orjson.dumps(caught.value.body()))["error"]["details"] == expected


def test_a_long_detail_is_cut() -> None:
    details = [{"field": "f" * 10_000, "problem": "\u202e" * 10_000}]
    body = orjson.dumps({"error": {"code": "engine_error", "message": "m", "details": details}})
    transport = httpx.MockTransport(lambda _: httpx.Response(500, content=body))

    with pytest.raises(EngineError) as caught:
        Client("http://car", transport=transport).model()

    assert all(len(text) <= 160 for text in caught.value.details[0].values())


PLACES = st.sampled_from(
    ["", "/", "//", "http://", "http://a:b", "http://[", "//a..b", "ftp://\x7f", "?\u2603", "\xff"]
)
TEXTS = st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=20)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "code", "message", "details", "field", "problem"]), inner
        )
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@example(301, b"", {"location": "", "set-cookie": "\xff"})
@given(
    st.integers(100, 999),
    st.binary(max_size=30) | JSON.map(orjson.dumps),
    st.dictionaries(
        st.sampled_from(
            ["location", "set-cookie", "content-type", "retry-after", "x-request-id", "allow"]
        ),
        PLACES | TEXTS,
    ),
)
def test_an_answer_is_a_dictionary_or_an_error_of_the_tree(
    status: int, content: bytes, headers: dict[str, str]
) -> None:
    """Also where an address to go on at, or a cookie, makes no sense."""
    raw = [(name.encode(), text.encode("latin-1", "replace")) for name, text in headers.items()]
    transport = httpx.MockTransport(lambda _: httpx.Response(status, headers=raw, content=content))

    def sync() -> Any:
        with Client("http://car", transport=transport) as client:
            return client.model()

    async def other() -> Any:
        async with AsyncClient("http://car", transport=transport) as client:
            return await client.model()

    for call in (sync, lambda: asyncio.run(other())):
        try:
            assert isinstance(call(), dict)
        except WorldModelError as error:
            assert str(error)  # noqa: PT017 (an answer is right as well)
