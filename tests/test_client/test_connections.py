"""The client over real sockets: forks, threads, lost connections, other requests' answers, time."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpcore
import httpx
import numpy as np
import orjson
import pytest

import world_model_client.exchange
import world_model_client.network
from service.errors import (
    DeadlineExceededError,
    EngineError,
    UnavailableError,
    UnreachableError,
    WorldModelError,
)
from tests.fakes.engine import FakeEngine, expected, rows
from tests.fakes.misbehaving import Visit, answer_to, answered, misbehaving
from tests.fakes.sockets import listening
from world_model_client import AsyncClient, Client, ClosedClientError
from world_model_client.network import _Stream as Stream

FORKING = """
import asyncio, os, sys
from world_model_client import AsyncClient, Client

def is_own(answer, number):
    return answer["echo"]["state"] == [float(number)]

def spread(work):
    "Return how many of 8 children did not get all of their own answers."
    children = []
    for child in range(8):
        if not (pid := os.fork()):
            try:
                os._exit(0 if work(1000 * (child + 1)) else 1)
            finally:
                os._exit(2)
        children.append(pid)
    return children

def reap(children):
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in children)

url = sys.argv[1]
with Client(url) as client:
    assert is_own(client.predict([1], [0]), 1)
    def ask(first):
        good = all(is_own(client.predict([first + i], [0]), first + i) for i in range(10))
        client.close()
        return good
    children = spread(ask)
    wrong = sum(not is_own(client.predict([i], [0]), i) for i in range(10))
    assert (wrong, reap(children)) == (0, 0), "sync"
    assert is_own(client.predict([2], [0]), 2)

async def main():
    async with AsyncClient(url) as client:
        assert is_own(await client.predict([1], [0]), 1)
        async def ask(first):
            numbers = range(first, first + 10)
            answers = await asyncio.gather(*(client.predict([n], [0]) for n in numbers))
            await client.close()
            return all(map(is_own, answers, numbers))
        children = spread(lambda first: asyncio.run(ask(first)))
        answers = [await client.predict([i], [0]) for i in range(10)]
        assert all(map(is_own, answers, range(10)))
        assert await asyncio.to_thread(reap, children) == 0, "async"
        assert is_own(await client.predict([2], [0]), 2)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_children_of_a_fork_get_their_own_answers_and_leave_the_parents_connection() -> None:
    with misbehaving(answer_to) as server:
        command = [sys.executable, "-c", FORKING, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert len(server.visits) == 2 * (8 * 10 + 10 + 2)
    first, last = server.visits[0], [v for v in server.visits if b"[2.0]" in v.body]
    assert first.connection == last[0].connection  # the parent's, through all of it


async def test_a_hundred_threads_share_one_client(engine: FakeEngine) -> None:
    states, actions = rows(100)

    def ask(i: int) -> list[Any]:
        return [client.rollout(states[i], actions[i], outputs=["states"]) for _ in range(2)]

    async with listening(engine) as server:
        url = f"http://127.0.0.1:{server.port}"
        with Client(url, api_key="alpha") as client, ThreadPoolExecutor(100) as threads:
            loop = asyncio.get_running_loop()
            asked = [loop.run_in_executor(threads, ask, i) for i in range(100)]
            answers = await asyncio.gather(*asked)

    for i, answer in enumerate(answers):
        true = expected(states[i : i + 1], actions[i : i + 1]).states[0]
        assert all(np.array(x["states"], np.float32).tobytes() == true.tobytes() for x in answer)


def test_more_threads_than_connections_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most, limits = 20, world_model_client.network.LIMITS
    fewer = httpx.Limits(max_connections=most, max_keepalive_connections=most)
    lock, open_now, counts = threading.Lock(), set[object](), list[int]()
    has_all = threading.Event()

    class Counted(Stream):
        def __init__(self, stream: httpcore.NetworkStream) -> None:
            super().__init__(stream)
            with lock:
                open_now.add(self)
                counts.append(len(open_now))

        def close(self) -> None:
            super().close()
            with lock:
                open_now.discard(self)

    def answer_together(visit: Visit) -> bytes:
        if len(server.visits) >= most:
            has_all.set()
        has_all.wait(60)
        return answer_to(visit)

    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)  # no connection is idle for too long
    monkeypatch.setattr(world_model_client.network, "_Stream", Counted)
    monkeypatch.setattr(world_model_client.network, "LIMITS", fewer)
    with misbehaving(answer_together) as server, Client(server.url, timeout_s=120) as client:
        barrier = threading.Barrier(2 * most)

        def ask(i: int) -> bool:
            barrier.wait()
            answers = [client.predict([i], [k]) for k in range(2)]
            return all(
                answer["echo"] == {"state": [i], "action": [k]} for k, answer in enumerate(answers)
            )

        with ThreadPoolExecutor(2 * most) as threads:
            assert all(threads.map(ask, range(2 * most)))

    assert max(counts) == most
    assert not open_now
    assert len(server.visits) == 4 * most
    page = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
    assert f"At most {limits.max_connections} connections are open" in page


Ask = Callable[[str], Any]


def ask_sync(url: str, calls: int = 2, *, action: Any = (0.0,), **options: Any) -> list[Any]:
    with Client(url, **options) as client:
        return [client.predict([i], action) for i in range(calls)]


def ask_async(url: str, calls: int = 2, *, action: Any = (0.0,), **options: Any) -> list[Any]:
    async def ask() -> list[Any]:
        async with AsyncClient(url, **options) as client:
            return [await client.predict([i], action) for i in range(calls)]

    return asyncio.run(ask())


BOTH = pytest.mark.parametrize("ask", [ask_sync, ask_async], ids=["sync", "async"])


@BOTH
def test_a_kept_connection_that_ends_as_the_request_arrives_costs_no_answer(ask: Any) -> None:
    def behave(visit: Visit) -> bytes | None:
        return None if visit.number else answer_to(visit)

    with misbehaving(behave) as server:
        answers = ask(server.url, 3)

    assert [answer["echo"]["state"] for answer in answers] == [[0.0], [1.0], [2.0]]
    # The second call meets the end of a connection; those of retries are for one request each.
    assert [(v.connection, v.number) for v in server.visits] == [(0, 0), (0, 1), (1, 0), (2, 0)]
    assert server.visits[1].request_id == server.visits[2].request_id


@pytest.mark.parametrize(("idle_s", "connections"), [(2.5, [0, 0]), (3.5, [0, 1])])
def test_idle_connections_are_left_before_a_server_closes_them(
    monkeypatch: pytest.MonkeyPatch, idle_s: float, connections: list[int]
) -> None:
    clock = time.monotonic
    with misbehaving(answer_to) as server, Client(server.url) as client:
        client.predict([0.0], [0.0])
        monkeypatch.setattr(time, "monotonic", lambda: clock() + idle_s)  # httpcore's
        client.predict([1.0], [0.0])

    assert [visit.connection for visit in server.visits] == connections


@BOTH
def test_a_new_connection_that_ends_as_the_request_arrives_is_not_tried_again(ask: Any) -> None:
    with (
        misbehaving(lambda visit: None) as server,
        pytest.raises(UnreachableError, match=r"no answer from http://127\.0\.0\.1:\d+: Server"),
    ):
        ask(server.url)

    assert len(server.visits) == 1


@BOTH
def test_an_answer_that_breaks_off_is_not_asked_for_again(ask: Any) -> None:
    def behave(visit: Visit) -> bytes | None:
        if visit.number == 0:
            return answer_to(visit)
        visit.write(answer_to(visit)[:-3])
        return None

    with misbehaving(behave) as server, pytest.raises(UnreachableError, match="no answer from"):
        ask(server.url)

    assert len(server.visits) == 2


@BOTH
def test_another_requests_answer_is_refused_and_its_connection_dropped(ask: Any) -> None:
    def behave(visit: Visit) -> bytes:
        return answered(b'{"verdict": "safe"}', "f" * 32)

    with misbehaving(behave) as server, pytest.raises(UnreachableError, match="not this request's"):
        ask(server.url)
    assert len(server.visits) == 1

    connections = []
    with misbehaving(behave) as server, Client(server.url) as client:
        for _ in range(2):
            with pytest.raises(UnreachableError, match=r"X-Request-Id 'f{32}' in place of '"):
                client.model()
        assert not client.ready()
        connections = [visit.connection for visit in server.visits]
    assert connections == [0, 1, 2]


@BOTH
def test_answers_that_are_one_behind_are_refused(ask: Any) -> None:
    """As after a fork, or behind a proxy that loses count: the first answer comes twice."""

    def behave(visit: Visit) -> bytes:
        return answer_to(visit) * 2 if visit.number == 0 else answer_to(visit)

    with misbehaving(behave) as server, pytest.raises(UnreachableError, match="not this request's"):
        ask(server.url)


@BOTH
def test_a_proxy_that_sets_ids_can_be_allowed_for(ask: Any) -> None:
    with misbehaving(lambda visit: answered(b"{}", "proxy-7")) as server:
        assert ask(server.url, checks_ids=False) == [{}, {}]


@BOTH
@pytest.mark.parametrize("kind", ["refused", "lost"])
def test_an_error_names_its_request(ask: Any, kind: str) -> None:
    def behave(visit: Visit) -> bytes | None:
        body = orjson.dumps(EngineError("a fault").body())
        return answered(body, visit.request_id, "500 Oh") if kind == "refused" else None

    with misbehaving(behave) as server, pytest.raises(WorldModelError) as caught:
        ask(server.url)
    assert caught.value.request_id == server.visits[0].request_id

    with pytest.raises(WorldModelError) as caught:
        ask(server.url, action=None)
    assert caught.value.request_id == ""


@BOTH
def test_an_answer_without_an_id_is_taken(ask: Any) -> None:
    with misbehaving(lambda v: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as server:
        assert ask(server.url) == [{}, {}]


def unavailable(visit: Visit) -> bytes:
    body = orjson.dumps(UnavailableError("shutting down").body())
    return answered(body, visit.request_id, "503 Service Unavailable")


@BOTH
def test_unavailable_is_asked_once_more_on_a_new_connection(ask: Any) -> None:
    with misbehaving(lambda v: answer_to(v) if v.connection else unavailable(v)) as server:
        assert ask(server.url, 1)[0]["echo"]["state"] == [0.0]
    with misbehaving(unavailable) as server, pytest.raises(UnavailableError, match="shutting down"):
        ask(server.url, 1)

    assert [visit.connection for visit in server.visits] == [0, 1]


def test_readiness_is_asked_for_once() -> None:
    with misbehaving(unavailable) as server, Client(server.url) as client:
        assert not client.ready()

    assert len(server.visits) == 1


HINTS = b"HTTP/1.1 103 Early Hints\r\n\r\n"
DRIPS = {
    "nothing": (b"", b""),
    "a head": (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
    "a line": (b"", b"H"),
    "hints": (b"", HINTS),
    "many hints": (b"", HINTS * 1000),
    "a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n", b" "),
    "much of a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", b" " * 2**11),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "a chunk's size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
}


def visits_until_late(
    ask: Any, behave: Callable[[Visit], bytes | None], calls: int, is_over: threading.Event
) -> list[Visit]:
    """Return what came to a server that keeps the last call waiting beyond its deadline."""
    with misbehaving(behave) as server:
        started = time.monotonic()
        with pytest.raises(UnreachableError, match=r"no answer from .* after 0\.4 s"):
            ask(server.url, calls, timeout_s=0.4)
        assert 0.4 <= time.monotonic() - started < 10  # without its deadline it would not end
        is_over.set()
    return server.visits


def check_sync(url: str) -> None:
    with Client(url, margin_s=0.15) as client:
        client.safety_check([0.0], [[0.0]], timeout_s=0.05)


def check_async(url: str) -> None:
    async def ask() -> None:
        async with AsyncClient(url, margin_s=0.15) as client:
            await client.safety_check([0.0], [[0.0]], timeout_s=0.05)

    asyncio.run(ask())


@pytest.mark.parametrize("call", [check_sync, check_async], ids=["sync", "async"])
def test_silence_is_waited_for_no_longer_than_the_margin(call: Ask) -> None:
    is_over = threading.Event()

    def behave(visit: Visit) -> None:
        is_over.wait()

    with misbehaving(behave) as server:
        with pytest.raises(UnreachableError, match=r"no answer from .*, after 0\.2 s$"):
            call(server.url)
        is_over.set()


@BOTH
@pytest.mark.parametrize("drip", DRIPS)
def test_a_calls_deadline_ends_the_wait_whatever_drips(ask: Any, drip: str) -> None:
    is_over = threading.Event()
    first, more = DRIPS[drip]

    def behave(visit: Visit) -> bytes | None:
        visit.write(first)
        while not is_over.wait(0 if len(more) > 1000 else 0.05):
            visit.write(more)
        return None

    visits = visits_until_late(ask, behave, 1, is_over)

    assert len(visits) == 1


@BOTH
def test_a_compressed_answer_is_not_expanded(ask: Any) -> None:
    """A small one may fill the memory; nobody asked for it."""
    content = gzip.compress(b"[" + b"0," * 5_000_000 + b"0]")

    def behave(visit: Visit) -> bytes:
        answer = answered(content, visit.request_id)
        return answer.replace(b"\r\n", b"\r\nContent-Encoding: gzip\r\n", 1)

    with misbehaving(behave) as server:
        with pytest.raises(UnreachableError, match="is compressed"):
            ask(server.url, 1)
        assert server.visits[0].headers["accept-encoding"] == "identity"


@BOTH
def test_a_second_call_on_a_connection_ends_in_time_too(ask: Any) -> None:
    is_over = threading.Event()

    def behave(visit: Visit) -> bytes | None:
        if visit.number == 0:
            return answer_to(visit)
        while not is_over.wait(0.05):
            visit.write(HINTS)
        return None

    visits = visits_until_late(ask, behave, 2, is_over)

    assert [visit.connection for visit in visits] == [0, 0]


@BOTH
def test_a_server_that_reads_nothing_is_not_waited_for(ask: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(UnreachableError, match=r"no answer from .* after 0\.4 s"):
            ask(
                f"http://127.0.0.1:{server.getsockname()[1]}",
                1,
                timeout_s=0.4,
                action=np.zeros((2_000_000, 2), np.float32),
            )
        took_s = time.monotonic() - started

    assert 0.4 <= took_s < 4  # most of it to write the body


def test_addresses_of_a_host_share_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[tuple[str, float]] = []

    def refuse(address: tuple[str, int], timeout: float, **_: Any) -> socket.socket:
        waits.append((address[0], timeout))
        raise TimeoutError("timed out")

    found = [(0, 0, 0, "", (address, 80)) for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", refuse)

    with Client("http://car") as client, pytest.raises(UnreachableError, match="timed out, after"):
        client.predict([1.0], [2.0], timeout_s=1.5)

    assert [address for address, _ in waits] == ["192.0.2.1", "192.0.2.2"] * 2
    assert [wait_s for _, wait_s in waits] == pytest.approx([1, 2, 1, 2], abs=0.2)


def test_a_host_that_has_no_address_is_named() -> None:
    said = r"no answer from http://car\.invalid: \[Errno"
    with Client("http://car.invalid") as client, pytest.raises(UnreachableError, match=said):
        client.model()


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(world_model_client.exchange, "monotonic", lambda: self.now)


def test_a_calls_deadline_is_the_transports_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    waits: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        for step in ("pool", "connect", "write", "read"):
            waits.append(request.extensions["timeout"].get(step))
            clock.now += 1
        return httpx.Response(200, content=b"{}")

    client = Client("http://car", transport=httpx.MockTransport(answer), timeout_s=10)
    client.predict([1.0], [2.0], timeout_s=20)
    client.predict([1.0], [2.0])

    assert waits == [20.5, 19.5, 18.5, 17.5, 10, 9, 8, 7]


@pytest.mark.parametrize(("took_s", "deadlines"), [(0.3, ["0.5", "0.2"]), (0.6, ["0.5"])])
def test_both_tries_share_one_deadline(
    monkeypatch: pytest.MonkeyPatch, took_s: float, deadlines: list[str]
) -> None:
    clock = Clock(monkeypatch)
    seen: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["x-request-timeout-seconds"])
        clock.now += took_s
        raise httpx.ConnectError("refused")

    client = Client("http://car", transport=httpx.MockTransport(refuse))
    with pytest.raises(UnreachableError, match="no answer from http://car: refused"):
        client.predict([1.0], [2.0], timeout_s=0.5)

    assert seen == deadlines


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (httpx.ConnectError(""), 2),
        (httpx.ConnectTimeout(""), 2),
        (httpx.ReadError(""), 2),
        (httpx.RemoteProtocolError(""), 2),
        (httpx.ReadTimeout(""), 1),
        (httpx.PoolTimeout(""), 1),
        (httpx.LocalProtocolError(""), 1),
        (httpx.DecodingError(""), 1),
        (httpx.UnsupportedProtocol(""), 1),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_tried_again_and_that_every_failure_is_named(
    error: httpx.RequestError, tries: int
) -> None:
    seen: list[httpx.Request] = []

    def fail(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        raise error

    with pytest.raises(
        UnreachableError, match=f"no answer from http://car: {type(error).__name__}"
    ):
        Client("http://car", transport=httpx.MockTransport(fail)).model()
    assert len(seen) == tries


ODD_ANSWERS = {
    "no object": (200, b"[]"),
    "null": (200, b"null"),
    "no JSON": (200, b"ready"),
    "error as text": (400, b'{"error": "bad"}'),
    "error without code": (400, b'{"error": {"message": "m", "details": []}}'),
    "code is a list": (400, b'{"error": {"code": [], "message": "m", "details": []}}'),
    "details are a number": (400, b'{"error": {"code": "x", "message": "m", "details": 1}}'),
    "moved": (301, b""),
}


@pytest.mark.parametrize("case", ODD_ANSWERS)
def test_what_is_not_the_services_answer_is_unreachable(case: str) -> None:
    status, content = ODD_ANSWERS[case]
    transport = httpx.MockTransport(lambda request: httpx.Response(status, content=content))

    with pytest.raises(UnreachableError, match=f"http://car/model answered {status}"):
        Client("http://car", transport=transport).model()


@pytest.mark.parametrize("given", ["Wed, 21 Oct 2026 07:28:00 GMT", "nan", "-1", "inf", ""])
def test_a_retry_after_that_is_no_number_is_a_second(given: str) -> None:
    body = b'{"error": {"code": "overloaded", "message": "full", "details": []}}'
    transport = httpx.MockTransport(
        lambda request: httpx.Response(429, content=body, headers={"retry-after": given})
    )

    with pytest.raises(WorldModelError, match="full") as caught:
        Client("http://car", transport=transport).model()
    assert getattr(caught.value, "retry_after_s", None) == 1.0


async def test_the_services_own_deadline_reaches_the_caller(engine: FakeEngine) -> None:
    engine.gate.clear()
    async with listening(engine) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with AsyncClient(url, api_key="alpha", timeout_s=0.01) as client:
            with pytest.raises(DeadlineExceededError):
                await client.predict([1.0, 2.0, 3.0], [0.5, 0.5], timeout_s=0.1)
        engine.gate.set()


def test_nothing_listens() -> None:
    with misbehaving(answer_to) as server:
        url = server.url
    with Client(url) as client:
        with pytest.raises(UnreachableError, match=r"no answer from http://127.*refused"):
            client.model()
        assert not client.ready()


def test_closing_ends_the_calls_that_other_threads_wait_for() -> None:
    came = threading.Event()

    def never(server: socket.socket) -> None:
        with server.accept()[0] as connection:
            connection.recv(2**16)
            came.set()
            connection.recv(1)  # until the client is gone

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(2) as threads:
        threads.submit(never, server)
        client = Client(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=20.0)
        call = threads.submit(client.model)
        assert came.wait(10)
        client.close()

        with pytest.raises((UnreachableError, ClosedClientError)):
            call.result(timeout=5)


def test_a_client_that_is_closed_as_a_call_begins_says_so() -> None:
    class Hasty(Client):
        def _http(self, *, fresh: bool) -> httpx.Client:
            found = super()._http(fresh=fresh)
            self.close()  # as another thread may do now
            return found

    with pytest.raises(ClosedClientError, match="is closed: make another"):
        Hasty("http://127.0.0.1:1").model()
