"""Spans as a collector gets them, by both paths of a request, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
import structlog
from opentelemetry import trace as api
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from models.checkpoint import save_checkpoint
from service import __version__
from service.errors import StartupError
from service.http.exchange import Exchange
from service.http.protocol import Protocol
from service.scheduling.jobs import JobClass
from service.server import serve
from service.settings import Settings
from service.telemetry.tracing import Trace, Tracing
from tests.fakes.engine import DIVERGE, POISON, STATE, VERSION, FakeEngine, serving, until
from tests.fakes.sockets import BODY, LIMIT, LongPath, listening, request
from tests.test_service.test_engine.test_engine import checkpoint
from tests.test_service.test_server import in_thread, wait_ready
from world_model_client import AsyncClient, Client

ROOT = Path(__file__).parents[3]
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"traceparent: 00-{TRACE_ID}-{SPAN_ID}-01"
UNSAMPLED = f"traceparent: 00-{TRACE_ID}-{SPAN_ID}-00"
STAGES = ["parse", "queue", "launch", "respond"]

both_paths = pytest.mark.parametrize("protocol", [Protocol, LongPath], ids=["short", "long"])


class Collector:
    """A tracing, and the spans that it made."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self.tracing = Tracing(SimpleSpanProcessor(self._spans))

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._spans.get_finished_spans())

    @property
    def servers(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.kind is SpanKind.SERVER]

    def server(self) -> ReadableSpan:
        (span,) = self.servers
        return span

    def stages(self, server: ReadableSpan) -> dict[str, ReadableSpan]:
        """Return a request's children by name, in order of their start."""
        children = [span for span in self.spans if parent(span) == ids(server)[1]]
        assert all(ids(child)[0] == ids(server)[0] for child in children)
        return {s.name: s for s in sorted(children, key=times)}


@pytest.fixture
def collector() -> Collector:
    return Collector()


def ids(span: ReadableSpan) -> tuple[str, str]:
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def parent(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def told_caller(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"00-{ids(span)[0]}-{ids(span)[1]}-{context.trace_flags:02x}"


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def of_rows(count: int, horizon: int = 2) -> bytes:
    return orjson.dumps({"state": STATE, "actions": [[[0.5, 0.5]] * horizon] * count})


@both_paths
async def test_a_request_is_a_span_with_its_stages_one_after_the_other(
    engine: FakeEngine, collector: Collector, protocol: type[Protocol]
) -> None:
    async with listening(engine, protocol, collector.tracing) as served:
        caller = await served.caller()
        _, headers, _ = await caller.ask(request(of_rows(3), "X-Request-Id: car-7"))

    server = collector.server()
    assert server.name == "POST /rollout"
    assert server.parent is None
    assert server.status.status_code is StatusCode.UNSET
    assert facts(server) == {
        "http.request.method": "POST",
        "http.route": "/rollout",
        "http.response.status_code": 200,
        "url.path": "/rollout",
        "url.scheme": "http",
        "client.address": "127.0.0.1",
        "world_model.key": "key-1",
        "world_model.request_id": "car-7",
        "world_model.version": VERSION,
    }
    stages = collector.stages(server)
    assert list(stages) == STAGES
    bounds = [times(span) for span in stages.values()]
    assert all(began <= ended for began, ended in bounds)
    assert [began for began, _ in bounds[1:]] == [ended for _, ended in bounds[:-1]]
    assert times(server)[0] <= bounds[0][0]
    assert bounds[-1][1] <= times(server)[1]
    assert len(collector.spans) == 5
    assert headers["traceresponse"] == told_caller(server)


@both_paths
async def test_a_launch_tells_its_batch_and_each_request_its_part(
    engine: FakeEngine, collector: Collector, protocol: type[Protocol]
) -> None:
    async with listening(engine, protocol, collector.tracing) as served:
        engine.gate.clear()
        (await served.caller()).send(request(of_rows(1, horizon=5)))
        await engine.entered()
        callers = [await served.caller() for _ in range(2)]
        for caller, count in zip(callers, (3, 4), strict=True):
            caller.send(request(of_rows(count)))
        await until(lambda: served.app.scheduler.queues.depth(JobClass.ROLLOUT) == 2)
        engine.gate.set()
        for caller in callers:
            await caller.answer()

    launches = [collector.stages(server)["launch"] for server in collector.servers]
    sizes = [
        tuple(facts(span)[f"world_model.{name}"] for name in ("batch.rows", "rows", "horizon"))
        for span in launches
    ]
    assert sorted(sizes) == [(1, 1, 5), (7, 3, 2), (7, 4, 2)]
    for span in launches:
        began, ended = times(span)
        assert 0 <= facts(span)["world_model.compute_s"] <= 1e-9 * (ended - began)


@both_paths
async def test_a_callers_trace_goes_on(
    engine: FakeEngine, collector: Collector, protocol: type[Protocol]
) -> None:
    async with listening(engine, protocol, collector.tracing) as served:
        caller = await served.caller()
        _, headers, _ = await caller.ask(request(BODY, SAMPLED, "tracestate: vendor=value"))

    server = collector.server()
    assert parent(server) == SPAN_ID
    assert ids(server)[0] == TRACE_ID
    assert {ids(span)[0] for span in collector.spans} == {TRACE_ID}
    context = server.get_span_context()
    assert context is not None
    assert context.trace_state.get("vendor") == "value"
    assert headers["traceresponse"] == f"00-{TRACE_ID}-{ids(server)[1]}-01"


@both_paths
async def test_a_trace_that_the_caller_does_not_sample_is_not_exported(
    engine: FakeEngine, collector: Collector, protocol: type[Protocol]
) -> None:
    async with listening(engine, protocol, collector.tracing) as served:
        caller = await served.caller()
        status, headers, _ = await caller.ask(request(BODY, UNSAMPLED))

    assert status == 200
    assert collector.spans == []
    assert headers["traceresponse"].startswith(f"00-{TRACE_ID}-")
    assert headers["traceresponse"].endswith("-00")


@pytest.mark.parametrize(
    "traceparent",
    [
        "nonsense",
        "",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        "\xff" * 40,
        "\xff" * 55,
        "0" * 2000,
        f"00-{TRACE_ID}-{SPAN_ID}-01-{'a' * 2000}",
        f"01-{TRACE_ID}-{SPAN_ID}-01-{'a' * 2000}",
    ],
    ids=[
        "no form", "empty", "cut short", "no trace", "version", "no ascii", "no ascii of 55",
        "long", "long of version 00", "long of a later version",
    ],
)  # fmt: skip
async def test_a_wrong_traceparent_is_ignored_without_a_word(
    engine: FakeEngine, collector: Collector, traceparent: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(engine, tracing=collector.tracing) as served:
        caller = await served.caller()
        raw = request(BODY, "traceparent: REPLACE", "tracestate: vendor=value")
        assert (await caller.ask(raw.replace(b"REPLACE", traceparent.encode("latin-1"))))[0] == 200

    assert collector.server().parent is None
    assert ids(collector.server())[0] != TRACE_ID
    assert not caplog.records


@pytest.mark.parametrize(
    "tracestate",
    [
        "a" * 20_000,
        "a=b," * 1_000,
        "a=" + "b" * 511,
        ",".join(f"a{i}=b" for i in range(33)),
        "nonsense",
        "a=b,A=b",
        "1=b",
        "a=b=c",
        "a=",
        "a=\xff",
        "a@b@c=d",
        "a=b,a=c",
    ],
    ids=lambda text: text[:12],
)
async def test_a_wrong_tracestate_is_left_out_without_a_word(
    engine: FakeEngine, collector: Collector, tracestate: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(engine, tracing=collector.tracing) as served:
        caller = await served.caller()
        raw = request(BODY, SAMPLED, "tracestate: REPLACE")
        assert (await caller.ask(raw.replace(b"REPLACE", tracestate.encode("latin-1"))))[0] == 200

    assert parent(collector.server()) == SPAN_ID
    context = collector.server().get_span_context()
    assert context is not None
    assert not context.trace_state
    assert not caplog.records


@pytest.mark.parametrize(
    ("tracestate", "expected"),
    [
        ("a=b", {"a": "b"}),
        ("a=b ,\t ,c-1*/_=d e", {"a": "b", "c-1*/_": "d e"}),
        ("1tenant@vendor=x", {"1tenant@vendor": "x"}),
        ("a=" + "b" * 256, {"a": "b" * 256}),
        (",".join(f"a{i}=b" for i in range(32)), {f"a{i}": "b" for i in range(32)}),
    ],
    ids=lambda value: str(value)[:12],
)
async def test_a_valid_tracestate_goes_on(
    engine: FakeEngine, collector: Collector, tracestate: str, expected: dict[str, str]
) -> None:
    async with listening(engine, tracing=collector.tracing) as served:
        caller = await served.caller()
        await caller.ask(request(BODY, SAMPLED, f"tracestate: {tracestate}"))

    context = collector.server().get_span_context()
    assert context is not None
    assert dict(context.trace_state) == expected


async def test_a_traceparent_of_a_later_version_goes_on(
    engine: FakeEngine, collector: Collector
) -> None:
    async with listening(engine, tracing=collector.tracing) as served:
        caller = await served.caller()
        await caller.ask(request(BODY, f"traceparent: 01-{TRACE_ID}-{SPAN_ID}-01-more"))

    assert parent(collector.server()) == SPAN_ID


@pytest.mark.parametrize(("sampler", "count"), [("always_off", 0), ("always_on", 5)])
async def test_the_sampler_is_opentelemetrys_own_setting(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, sampler: str, count: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    collector = Collector()
    async with listening(engine, tracing=collector.tracing) as served:
        caller = await served.caller()
        await caller.ask(request(BODY, UNSAMPLED))

    assert len(collector.spans) == count


async def test_a_disabled_sdk_leaves_answers_alone(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    collector = Collector()
    async with listening(engine, tracing=collector.tracing) as served:
        caller = await served.caller()
        status, headers, _ = await caller.ask(request())

    assert (status, collector.spans) == (200, [])
    assert "traceresponse" not in headers


def start_of(*state: float) -> bytes:
    return orjson.dumps({"state": state, "actions": [[0.5, 0.5]]})


CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (LIMIT + 1, b" " * (LIMIT + 1))
FAILURES = {
    "broken body": (request(b"{"), "POST /rollout", "invalid_request", ["parse"]),
    "bad deadline": (
        request(BODY, "X-Request-Timeout-Seconds: soon"),
        "POST /rollout",
        "invalid_request",
        [],
    ),
    "unknown key": (request(key="beta"), "POST /rollout", "unauthorized", []),
    "too long": (request(b" " * (LIMIT + 1)), "POST /rollout", "payload_too_large", []),
    "too many chunks": (
        request(CHUNKS, "Transfer-Encoding: chunked", length=-1),
        "POST /rollout",
        "payload_too_large",
        [],
    ),
    "get": (request(b"", method="GET"), "GET /rollout", "method_not_allowed", []),
    "no route": (request(path="/nowhere"), "POST", "not_found", []),
    "engine fault": (request(start_of(POISON, 0, 0)), "POST /rollout", "engine_error", STAGES),
    "diverged": (request(start_of(DIVERGE, 0, 0)), "POST /rollout", "engine_error", STAGES),
}
STATUSES = {
    "invalid_request": 422,
    "unauthorized": 401,
    "payload_too_large": 413,
    "method_not_allowed": 405,
    "not_found": 404,
    "engine_error": 500,
}


@both_paths
@pytest.mark.parametrize("case", FAILURES)
async def test_failures_have_spans_and_logs_that_name_them(
    engine: FakeEngine, collector: Collector, protocol: type[Protocol], case: str
) -> None:
    raw, name, code, stages = FAILURES[case]
    with structlog.testing.capture_logs() as logs:
        async with listening(engine, protocol, collector.tracing) as served:
            caller = await served.caller()
            status, headers, _ = await caller.ask(raw)

    server = collector.server()
    is_ours = status >= 500
    assert (server.name, status) == (name, STATUSES[code])
    assert facts(server)["http.response.status_code"] == status
    assert facts(server)["world_model.error.code"] == code
    assert facts(server).get("error.type") == (code if is_ours else None)
    assert server.status.status_code is (StatusCode.ERROR if is_ours else StatusCode.UNSET)
    assert list(collector.stages(server)) == stages
    trace_id, span_id = ids(server)
    (line,) = [line for line in logs if line["event"] == "request failed"]
    assert (line["trace_id"], line["span_id"]) == (trace_id, span_id)
    assert line["request_id"] == headers["x-request-id"]
    assert facts(server)["world_model.request_id"] == headers["x-request-id"]
    assert headers["traceresponse"] == told_caller(server)


@both_paths
async def test_overload_and_a_deadline_have_spans(
    collector: Collector, protocol: type[Protocol], engine: FakeEngine
) -> None:
    async with listening(engine, protocol, collector.tracing) as served:
        engine.gate.clear()
        (await served.caller()).send(request())
        await engine.entered()
        waiting, refused = await served.caller(), await served.caller()
        waiting.send(request(BODY, "X-Request-Timeout-Seconds: 0.2"))
        await until(lambda: served.app.scheduler.queues.depth(JobClass.ROLLOUT) == 1)
        served.app.scheduler.queues.lanes[JobClass.ROLLOUT].capacity = 0
        refused.send(request())
        statuses = [(await caller.answer())[0] for caller in (refused, waiting)]
        engine.gate.set()

    assert statuses == [429, 504]
    overload, late = (
        span
        for span in sorted(collector.servers, key=times)
        if facts(span)["http.response.status_code"] in statuses
    )
    if facts(overload)["http.response.status_code"] != 429:
        overload, late = late, overload
    assert facts(overload)["world_model.error.code"] == "overloaded"
    assert overload.status.status_code is StatusCode.UNSET
    assert list(collector.stages(overload)) == ["parse"]
    assert facts(late)["error.type"] == "deadline_exceeded"
    assert late.status.status_code is StatusCode.ERROR
    assert list(collector.stages(late)) == ["parse", "queue", "respond"]


@both_paths
async def test_a_caller_that_leaves_has_a_span(
    engine: FakeEngine, collector: Collector, protocol: type[Protocol]
) -> None:
    async with listening(engine, protocol, collector.tracing) as served:
        engine.gate.clear()
        leaver, cut = await served.caller(), await served.caller()
        leaver.send(request())
        await engine.entered()
        cut.send(request()[:-5])
        await until(lambda: served.busy == 2)
        leaver.reset()
        cut.reset()
        await until(lambda: served.count("499") == 2)
        engine.gate.set()

    assert [facts(span)["http.response.status_code"] for span in collector.servers] == [
        499,
        499,
    ]
    assert {span.status.status_code for span in collector.servers} == {StatusCode.UNSET}
    assert [list(collector.stages(s)) for s in sorted(collector.servers, key=times)] == [
        ["parse", "queue", "launch"],
        [],
    ]


async def test_other_routes_have_one_span_and_probes_none(
    engine: FakeEngine, collector: Collector
) -> None:
    async with listening(engine, tracing=collector.tracing) as served:
        caller = await served.caller()
        for path in ("/healthz", "/readyz", "/metrics", "/model"):
            status, headers, _ = await caller.ask(request(b"", SAMPLED, method="GET", path=path))
            assert status == 200
            assert ("traceresponse" in headers) is (path == "/model")

    (span,) = collector.spans
    assert (span.name, span.kind) == ("GET /model", SpanKind.SERVER)
    assert facts(span)["http.route"] == "/model"
    assert ids(span)[0] == TRACE_ID


async def test_an_answer_that_is_cut_off_is_an_error(
    engine: FakeEngine, collector: Collector
) -> None:
    async with listening(engine, tracing=collector.tracing) as served:

        async def broken(scope: Any, receive: Any, send: Any) -> None:
            start = {"type": "http.response.start", "status": 200, "headers": []}
            await send(start)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            raise ValueError("a bug")

        served.app.mount("/broken", broken)
        caller = await served.caller()
        caller.send(request(b"", method="GET", path="/broken/"))
        await caller.rest()

    assert collector.server().status.status_code is StatusCode.ERROR
    assert facts(collector.server())["world_model.error.code"] == "engine_error"


@both_paths
async def test_traced_requests_leave_no_garbage(
    engine: FakeEngine, collector: Collector, protocol: type[Protocol]
) -> None:
    async with listening(engine, protocol, collector.tracing) as served:
        caller = await served.caller()
        gc.collect()
        gc.disable()
        try:
            before = requests_in_memory()
            for _ in range(20):
                await caller.ask(request())
            left = requests_in_memory() - before
        finally:
            gc.enable()

    assert left <= 4, "more than the connection's last request is left"


def requests_in_memory() -> int:
    return sum(issubclass(type(x), Trace | Exchange) for x in gc.get_objects())


async def test_without_tracing_nothing_is_told(engine: FakeEngine) -> None:
    async with listening(engine) as served:
        for path in ("/rollout", "/model"):
            caller = await served.caller()
            assert "traceresponse" not in (await caller.ask(request(BODY, SAMPLED, path=path)))[1]


def python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_off_by_default_the_sdk_is_not_loaded() -> None:
    """The framework may load OpenTelemetry's API by itself."""
    assert not Settings().tracing
    loaded = python(
        "import asyncio, sys\n"
        "from tests.fakes.engine import ACTIONS, STATE, FakeEngine, serving\n"
        "import service.server\n"
        "async def ask():\n"
        "    async with serving(FakeEngine()) as (_, client):\n"
        "        body = {'state': STATE, 'actions': ACTIONS}\n"
        "        assert (await client.post('/rollout', json=body)).status_code == 200\n"
        "asyncio.run(ask())\n"
        "print([m for m in sys.modules if m.startswith(\n"
        "    ('opentelemetry.sdk', 'opentelemetry.exporter', 'service.telemetry.tracing'))])"
    )

    assert loaded == "[]"


def test_the_client_loads_nothing_of_opentelemetry() -> None:
    loaded = python(
        "import sys, httpx\n"
        "from world_model_client import Client\n"
        "answer = httpx.MockTransport(lambda request: httpx.Response(200, content=b'{}'))\n"
        "Client('http://car', transport=answer).model()\n"
        "print([m for m in sys.modules if m.startswith(('opentelemetry', 'torch'))])"
    )

    assert loaded == "[]"


@pytest.mark.parametrize(
    "module", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"]
)
def test_a_missing_extra_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(StartupError, match=r"not installed: install the extra `otel`"):
        serve(Settings(port=0, tracing=True, checkpoint=tmp_path / "absent"))


def test_a_bad_variable_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    with pytest.raises(StartupError, match=r"OpenTelemetry refuses a variable .*max_queue_size"):
        serve(Settings(port=0, tracing=True, checkpoint=tmp_path / "absent"))


async def test_the_clients_requests_are_children_of_the_active_span(
    engine: FakeEngine, collector: Collector
) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("a planner")
    async with listening(engine, tracing=collector.tracing) as served:
        url = f"http://127.0.0.1:{served.port}"
        with tracer.start_as_current_span("plan") as plan, Client(url, api_key="alpha") as client:
            await asyncio.to_thread(client.predict, STATE, [0.5, 0.5])
            async with AsyncClient(url, api_key="alpha") as other:
                await other.model()
        with Client(url, api_key="alpha") as client:
            await asyncio.to_thread(client.predict, STATE, [0.5, 0.5])

    own = f"{plan.get_span_context().span_id:016x}"
    assert [parent(span) for span in collector.servers] == [own, own, None]


async def test_the_framework_makes_no_spans_of_its_own(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer versions do, if somebody has set a global provider."""
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(api, "get_tracer_provider", lambda: provider)
    async with serving(engine) as (_, client):
        assert (await client.get("/model")).status_code == 200

    assert spans.get_finished_spans() == ()


class _Receiver(BaseHTTPRequestHandler):
    """Keeps what it is sent."""

    seen: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_the_server_exports_its_last_spans_by_otlp_as_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_checkpoint(checkpoint(), tmp_path / "checkpoint")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def visit() -> None:
        with wait_ready(port) as client:
            client.rollout([0.0] * 4, [[0.1, 0.2]] * 3)
            os.kill(os.getpid(), signal.SIGTERM)

    _Receiver.seen = []
    with HTTPServer(("127.0.0.1", 0), _Receiver) as receiver:
        in_thread(receiver.serve_forever)
        endpoint = f"http://127.0.0.1:{receiver.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "crash-oracle")
        visitor = in_thread(visit)
        options: dict[str, Any] = {"compile": False, "threads": 1, "drain_delay_s": 0.0}
        serve(Settings(port=port, checkpoint=tmp_path / "checkpoint", tracing=True, **options))
        visitor.join()
        receiver.shutdown()

    ((path, body),) = _Receiver.seen
    assert path == "/v1/traces"
    own = (b"service.version", __version__.encode())
    for text in (b"crash-oracle", b"POST /rollout", b"parse", b"respond", *own):
        assert text in body
    assert b"readyz" not in body


def test_a_collector_that_is_down_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.telemetry.tracing._LAST_SPANS_S", 0.01)
    release = threading.Event()

    class Stuck(SimpleSpanProcessor):
        def shutdown(self) -> None:
            release.wait(20)

    closing = threading.Thread(target=Tracing(Stuck(InMemorySpanExporter())).close)
    closing.start()
    closing.join(10)
    is_held_up = closing.is_alive()
    release.set()

    assert not is_held_up
