"""Who asks: told by log lines, metrics and spans, with and without keys, on both paths."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.http.peers import Peers
from service.http.protocol import Protocol
from service.telemetry.logs import configure_logging
from service.telemetry.tracing import Tracing
from tests.fakes.engine import FakeEngine, slow_costs, until
from tests.fakes.registry import counted
from tests.fakes.sockets import BODY, BOTH_PATHS, Listening, listening, request

KEYS = "planner:alpha-of-sixteen,beta-of-sixteen"
HASTY = "X-Request-Timeout-Seconds: 0.001"


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Return the lines of failed requests."""
    lines = [orjson.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [line for line in lines if line["event"] == "request failed"]


def outcomes(served: Listening) -> dict[tuple[str, ...], float]:
    return counted(served.registry, "outcomes_total")


@BOTH_PATHS
async def test_failures_tell_the_peer_and_the_name_of_its_key(
    engine: FakeEngine, protocol: type[Protocol], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("json", "info", ["alpha-of-sixteen", "beta-of-sixteen"])
    async with listening(engine, protocol, api_keys=KEYS) as served:
        for key in ("alpha-of-sixteen", "beta-of-sixteen", "gamma-of-sixteen"):
            await served.ask(request(b"{}", key=key), request(BODY, "Connection: close", key=key))

    lines = logged(capsys)
    assert [(line["code"], line["peer"], line["key"]) for line in lines] == [
        ("invalid_request", "127.0.0.1", "planner"),
        ("invalid_request", "127.0.0.1", "key-2"),
        *[("unauthorized", "127.0.0.1", "unknown")] * 2,
    ]
    assert outcomes(served) == {
        ("/rollout", "planner", "refused"): 1,
        ("/rollout", "planner", "answered"): 1,
        ("/rollout", "key-2", "refused"): 1,
        ("/rollout", "key-2", "answered"): 1,
        ("/rollout", "unknown", "refused"): 2,
    }


async def test_without_keys_only_the_peer_is_told(
    engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("json", "info")
    async with listening(engine, api_keys=None) as served:
        await served.ask(request(b"{}"), b"nonsense\r\n\r\n")

    assert [(line["peer"], "key" in line) for line in logged(capsys)] == [("127.0.0.1", False)] * 2
    assert outcomes(served) == {("/rollout", "none", "refused"): 1, ("other", "none", "refused"): 1}


@BOTH_PATHS
@pytest.mark.parametrize(
    ("proxies", "forwarded", "peer"),
    [
        ("127.0.0.1", "203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "198.51.100.1, 203.0.113.7", "203.0.113.7"),
        ("127.0.0.1", "not an address", "127.0.0.1"),
        ("10.0.0.1", "203.0.113.7", "127.0.0.1"),
    ],
)
async def test_a_proxy_is_believed_only_if_it_is_trusted(
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    protocol: type[Protocol],
    proxies: str,
    forwarded: str,
    peer: str,
) -> None:
    configure_logging("json", "info")
    async with listening(engine, protocol, proxies=proxies) as served:
        forwarding = f"X-Forwarded-For: {forwarded}"
        await served.ask(
            request(b"{}", forwarding), request(b"{}", forwarding, "Connection: close")
        )

    assert [line["peer"] for line in logged(capsys)] == [peer] * 2


@pytest.mark.parametrize(
    ("address", "headers", "name"),
    [
        (None, {}, None),
        (("::1", 5), {}, "::1"),
        (("10.0.0.9", 5), {b"x-forwarded-for": b"203.0.113.7"}, "10.0.0.9"),
        (("10.1.0.9", 5), {b"x-forwarded-for": b"203.0.113.7:80"}, "203.0.113.7"),
        (("10.1.0.9", 5), {b"x-forwarded-for": b"[2001:db8::1]:80"}, "2001:db8::1"),
        (("10.1.0.9", 5), {b"x-forwarded-for": b"\xff\n" * 100}, "10.1.0.9"),
        (("10.1.0.9", 5), {b"x-forwarded-for": b""}, "10.1.0.9"),
        (("10.1.0.9", 5), {b"x-forwarded-for": b"fe80::1%any text of any length"}, "10.1.0.9"),
        (("10.1.0.9", 5), {b"x-forwarded-for": b"[::1%eth0]:80, 10.1.0.8"}, "10.1.0.9"),
    ],
)
def test_a_peer_is_named_by_its_address(
    address: tuple[str, int] | None, headers: dict[bytes, bytes], name: str | None
) -> None:
    assert Peers("10.1.0.0/16").name(address, headers) == name


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_proxy_on_this_machine_is_believed(address: str) -> None:
    assert Peers().name((address, 5), {b"x-forwarded-for": b"203.0.113.7"}) == "203.0.113.7"


@BOTH_PATHS
async def test_spans_tell_the_peer_and_the_key(
    engine: FakeEngine, protocol: type[Protocol]
) -> None:
    spans = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(spans))
    async with listening(engine, protocol, tracing, api_keys=KEYS) as served:
        await served.ask(request(BODY, "Connection: close", key="alpha-of-sixteen"))

    facts = next(span.attributes for span in spans.get_finished_spans() if span.parent is None)
    assert facts is not None
    assert (facts["client.address"], facts["world_model.key"]) == ("127.0.0.1", "planner")


async def miss(served: Listening, engine: FakeEngine, *headers: str) -> None:
    """Have a request miss its deadline while the engine is held."""
    engine.gate.clear()
    caller = await served.caller()
    caller.send(request(BODY, *headers))
    assert (await caller.answer())[0] in (429, 504)
    engine.gate.set()


@BOTH_PATHS
@pytest.mark.parametrize(
    ("headers", "given", "outcome", "level"),
    [
        ([HASTY], {}, "impossible_deadline", "info"),
        (["X-Request-Timeout-Seconds: 0.05"], {}, "late", "error"),
        ([], {"default_timeout_s": 0.001}, "late", "error"),
        (["X-Request-Timeout-Seconds: 9"], {"max_timeout_s": 0.001}, "late", "error"),
    ],
    ids=["impossible", "possible", "the operator's default", "the operator's maximum"],
)
async def test_only_a_callers_own_impossible_deadline_is_no_failure(
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    protocol: type[Protocol],
    headers: list[str],
    given: dict[str, Any],
    outcome: str,
    level: str,
) -> None:
    configure_logging("json", "info")
    given = {"default_timeout_s": 0.001, **given} if "max_timeout_s" in given else given
    async with listening(engine, protocol, **given) as served:
        await miss(served, engine, *headers)
        await until(lambda: bool(outcomes(served)))

    assert outcomes(served) == {("/rollout", "key-1", outcome): 1}
    assert counted(served.registry, "requests_total") == {("/rollout", "504"): 1}
    assert counted(served.registry, "rejected_total") == {("expired",): 1}
    assert [line["level"] for line in logged(capsys)] == [level]


@pytest.mark.parametrize(
    ("timeout_s", "outcome", "level"),
    [("1.5", "impossible_deadline", "info"), ("2.5", "rejected", "warning")],
)
async def test_work_that_is_not_tried_is_the_callers_fault_if_nothing_could_have_helped(
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    timeout_s: str,
    outcome: str,
    level: str,
) -> None:
    """The model alone takes two seconds for it, and as much waits before it."""
    configure_logging("json", "info")
    engine.costs = slow_costs(1.0)
    async with listening(engine) as served:
        await served.hold(engine)
        caller = await served.caller()
        caller.send(request(BODY, f"X-Request-Timeout-Seconds: {timeout_s}"))
        assert (await caller.answer())[0] == 429
        seen = outcomes(served)
        engine.gate.set()
        await asyncio.sleep(0)

    assert seen == {("/rollout", "key-1", outcome): 1}
    assert [line["level"] for line in logged(capsys)] == [level]
