"""Spans of requests, for OpenTelemetry. The only importer of opentelemetry.

It is imported only where tracing is on. A request's stages become spans when it is over, from times
noted as they pass: no context has to follow it through the queue, to the engine's thread, or into a
launch that it shares with others.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from time import perf_counter, time_ns
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.trace import (
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import __version__
from service.errors import ServiceError
from service.interface import Headers
from service.scheduling.jobs import Job, JobResult, Outcome

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

_PACKAGE = "world-model-service"
_W3C = TraceContextTextMapPropagator()
_PARENT_LENGTH, _LONGEST_PARENT = 55, 512
"""Of a traceparent: later versions than 00 may add fields."""
_LONGEST_STATE, _MOST_MEMBERS = 512, 32
"""The length up to which W3C Trace Context asks to keep a tracestate, and its members."""
_MEMBER = re.compile(
    rb"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    rb"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
"""Of a tracestate, as the standard has it."""
_LAST_SPANS_S = 1.0
"""How long the end of the service waits for a collector to take the last spans."""

Attributes = Mapping[str, str | int | float]


def exporting() -> Tracing:
    """Return a tracing that exports by OTLP over HTTP, as the variables OTEL_* say.

    Raises:
        ImportError: The SDK or its exporter is not installed.
        ValueError: A variable is not what OpenTelemetry expects.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return Tracing(BatchSpanProcessor(OTLPSpanExporter()))


class Tracing:
    """Begins traces, or goes on with those of callers.

    Args:
        processor: Gets the spans.

    Attributes:
        model_version: Of the served model; the app says it before the first request.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider

        own = {"service.name": _PACKAGE, "service.version": __version__}
        # What is given to `create` wins over the environment, which should win over our own.
        resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
        # Not the global provider: with one, the framework makes spans as well. The sampler is that
        # of OTEL_TRACES_SAMPLER; by default it does as the caller does.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(_PACKAGE, __version__)
        self.model_version = ""

    def begin(
        self,
        method: str,
        path: str,
        route: str | None,
        headers: Headers,
        request_id: str,
        peer: str | None = None,
    ) -> Trace:
        """Begin the span of a request.

        Args:
            method: Of HTTP.
            path: What was asked for.
            route: Its route's template; None if no route has this path.
            headers: May name the caller's span.
            request_id: As in the answer and in logs.
            peer: Address of whoever asks, if it has one.
        """
        attributes = {
            **({} if peer is None else {"client.address": peer}),
            "http.request.method": method,
            "url.path": path[:200],
            "url.scheme": "http",  # TLS ends before the service
            "world_model.request_id": request_id,
            "world_model.version": self.model_version,
        }
        if route is None:
            return Trace(self._tracer, method, headers, attributes)
        return Trace(
            self._tracer, f"{method} {route}", headers, {**attributes, "http.route": route}
        )

    def close(self) -> None:
        """Export the last spans, if a collector takes them soon."""
        # By itself the exporter would go on trying for much longer than a container has to stop.
        last = threading.Thread(target=self._provider.shutdown, daemon=True)
        last.start()
        last.join(_LAST_SPANS_S)


class Trace:
    """The spans of one request. Its state belongs to the event loop's thread.

    Args:
        tracer: Makes the spans.
        name: Of the request's own span.
        headers: May name the caller's span, whose child it becomes.
        attributes: Of the request's own span, and seen by the sampler.

    Attributes:
        ids: `trace_id` and `span_id`, for log lines; empty if OpenTelemetry is disabled.
        headers: Of the answer.
    """

    __slots__ = (
        "_began_ns", "_began_s", "_error", "_is_servers", "_job", "_outcome", "_parse_s",
        "_settled_s", "_span", "_tracer", "headers", "ids",
    )  # fmt: skip

    def __init__(self, tracer: Tracer, name: str, headers: Headers, attributes: Attributes) -> None:
        # All times are read on one clock, so that spans nest whatever happens to the other.
        self._began_ns, self._began_s = time_ns(), perf_counter()
        self._tracer = tracer
        self._span = tracer.start_span(
            name,
            context=_context(headers),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=self._began_ns,
        )
        self._parse_s: float | None = None
        self._settled_s: float | None = None
        self._job: Job | None = None
        self._outcome: Outcome = None
        self._error: ServiceError | None = None
        self._is_servers = False
        self.ids: dict[str, str] = {}
        self.headers: list[tuple[bytes, bytes]] = []
        known = self._span.get_span_context()
        if known.is_valid:
            trace_id, span_id = format_trace_id(known.trace_id), format_span_id(known.span_id)
            self.ids = {"trace_id": trace_id, "span_id": span_id}
            value = f"00-{trace_id}-{span_id}-{known.trace_flags:02x}"
            self.headers = [(b"traceresponse", value.encode())]

    def parsing(self) -> None:
        """Note that the body is complete."""
        self._parse_s = perf_counter()

    def settled(self, job: Job, outcome: Outcome) -> None:
        """Note how the request's job ended."""
        self._settled_s = perf_counter()
        self._job = job
        self._outcome = outcome

    def failed(self, error: ServiceError, *, is_servers: bool) -> None:
        """Note what the request is answered instead of a result, and whether the server failed."""
        self._error = error
        self._is_servers = is_servers

    def end(self, status: int, key: str) -> None:
        """Make the spans, now that the answer is sent.

        Args:
            status: Of the answer.
            key: Name of the key that the request was admitted by, or what stands for it.
        """
        ended_s = perf_counter()
        if self._span.is_recording():
            self._span.set_attribute("world_model.key", key)
            self._describe(status)
            self._stages(ended_s)
        self._span.end(self._ns(ended_s))
        self._job = None  # it refers to the request, which refers to this: no cycle is left

    def _describe(self, status: int) -> None:
        self._span.set_attribute("http.response.status_code", status)
        error = self._error
        if error is None:
            return
        self._span.set_attribute("world_model.error.code", error.code)
        if self._is_servers:  # by convention, others are the caller's errors and not a server's
            self._span.set_attribute("error.type", error.code)
            self._span.set_status(StatusCode.ERROR, error.message)

    def _stages(self, ended_s: float) -> None:
        job = self._job
        if self._parse_s is None:
            return
        if job is None:  # refused
            self._stage("parse", self._parse_s, ended_s)
            return
        assert self._settled_s is not None
        size: Attributes = {
            "world_model.rows": job.rows,
            "world_model.horizon": job.horizon,
            **({} if job.members is None else {"world_model.members": job.members}),
        }
        self._stage("parse", self._parse_s, job.submitted_s, size)
        launched_s = self._settled_s if job.started_s is None else job.started_s
        self._stage("queue", job.submitted_s, launched_s, {"world_model.class": job.job_class})
        if job.started_s is not None:
            self._stage("launch", launched_s, self._settled_s, {**size, **self._shared()})
        if self._outcome is not None:  # else its caller had left
            self._stage("respond", self._settled_s, ended_s)

    def _shared(self) -> Attributes:
        """Return what is known of the launch, which others may have shared."""
        if not isinstance(self._outcome, JobResult):
            return {}
        return {
            "world_model.batch.rows": self._outcome.launch_rows,
            "world_model.compute_s": self._outcome.compute_s,
        }

    def _stage(
        self, name: str, began_s: float, ended_s: float, attributes: Attributes | None = None
    ) -> None:
        self._tracer.start_span(
            name,
            context=set_span_in_context(self._span, Context()),
            attributes=attributes,
            start_time=self._ns(began_s),
        ).end(self._ns(ended_s))

    def _ns(self, moment_s: float) -> int:
        return self._began_ns + round(1e9 * (moment_s - self._began_s))


def _context(headers: Headers) -> Context:
    """Return a context with the caller's span; an empty one if it named none that can be."""
    parent = headers.get(b"traceparent")
    if parent is None or not _is_parent(parent):
        return Context()
    given = {"traceparent": parent.decode()}
    state = headers.get(b"tracestate", b"")
    if _is_state(state):
        given["tracestate"] = state.decode()
    return _W3C.extract(given, Context())


def _is_parent(value: bytes) -> bool:
    """Return whether a traceparent can be valid: OpenTelemetry warns of some that cannot."""
    is_later = not value.startswith(b"00") and _PARENT_LENGTH < len(value) <= _LONGEST_PARENT
    return value.isascii() and (len(value) == _PARENT_LENGTH or is_later)


def _is_state(value: bytes) -> bool:
    """Return whether a tracestate is valid: OpenTelemetry warns of each that is not."""
    if not value or len(value) > _LONGEST_STATE:
        return False
    members = [member for x in value.split(b",") if (member := x.strip(b" \t"))]
    return len(members) <= _MOST_MEMBERS and all(map(_MEMBER.fullmatch, members))
