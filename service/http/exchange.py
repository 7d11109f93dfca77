"""One request, from its head to its reply, whoever brings it.

The protocol (`service.http.protocol`) brings most prediction requests, straight from the socket;
the middleware (`service.http.middleware`) brings all others. Both only bring bytes here and take
bytes from here: identity, admission, clock, trace and metrics of a request are an exchange's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from service.errors import DeadlineExceededError, OverloadedError, ServiceError
from service.http.answers import ID_LINE, JSON_HEAD, TYPE_LINE, Answers, Parts, Reply
from service.http.buffers import Intake
from service.http.endpoints import ENDPOINTS, Endpoint
from service.http.failures import failure
from service.http.long_body import LongBody
from service.http.peers import Address, Peers
from service.http.policy import Policy
from service.http.reading.bodies import AT_ONCE_BYTES, BodyParser, Parsed
from service.http.turns import Turns
from service.interface import Attribution, Headers
from service.scheduling.explanations import Explained, Question
from service.scheduling.jobs import Job, JobClass, JobResult, Outcome
from service.scheduling.scheduler import Scheduler
from service.telemetry.metrics import Metrics
from service.telemetry.requests import ATTRIBUTION, NO_KEY, OTHER

if TYPE_CHECKING:
    from service.telemetry.tracing import Trace, Tracing

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")

CLIENT_GONE = 499
"""Counted in place of a status if the caller left before the reply."""


class Head(NamedTuple):
    """What the head of an admitted prediction request says.

    Attributes:
        endpoint: What it asks for.
        headers: By name.
        length: Of the body, if the head says it.
        timeout_s: Time until the request's deadline.
        key: Name of the key that it was admitted by.
    """

    endpoint: Endpoint
    headers: Headers
    length: int
    timeout_s: float
    key: str


Respond = Callable[[Reply | None], None]
"""Takes a request's one reply; None if its caller has left."""


class Exchanges:
    """What all exchanges share.

    Args:
        parser: Reads bodies.
        scheduler: Gets the jobs.
        answers: Makes the answers.
        policy: What is let in.
        metrics: Counts requests.
        intake: Counts the bytes of requests that are not complete, and of bodies not read yet.
        peers: Names who asks.
        tracing: Makes spans of requests; None: nobody does.

    Attributes:
        endpoints: By path.
        turns: Runs long work between short requests.
    """

    def __init__(
        self,
        parser: BodyParser,
        scheduler: Scheduler,
        answers: Answers,
        policy: Policy,
        metrics: Metrics,
        intake: Intake,
        peers: Peers,
        tracing: Tracing | None = None,
    ) -> None:
        self.parser = parser
        self.scheduler = scheduler
        self.answers = answers
        self.policy = policy
        self.metrics = metrics
        self.tracing = tracing
        self.turns = Turns()
        self.intake = intake
        self.peers = peers
        self.endpoints: Mapping[str, Endpoint] = {x.path: x for x in ENDPOINTS}

    def head(self, path: str, headers: Headers, key: str, length: int = 0) -> Head:
        """Return what the head of a prediction request says.

        Args:
            path: Of an endpoint.
            headers: By name.
            key: Name of the key that it was admitted by.
            length: Of the body, if the head says it.

        Raises:
            InvalidRequestError: It asks for a deadline that cannot be.
        """
        return Head(self.endpoints[path], headers, length, self.policy.timeout_s(headers), key)

    def who(self, address: Address, headers: Headers, key: str | None = None) -> dict[str, str]:
        """Return who asks, for a log line: `peer`, and the name of its `key` if keys are needed.

        Args:
            address: Of the connection's other end.
            headers: Of the request.
            key: Its name; None if it was not looked at.
        """
        peer = self.peers.name(address, headers)
        key = key or self.policy.unchecked_key
        return {
            **({} if peer is None else {"peer": peer}),
            **({} if key == NO_KEY else {"key": key}),
        }

    def caller(self, address: Address, headers: Headers, key: str) -> str:
        """Return whose request it is, where callers share something: the key's name, or the peer.

        Args:
            address: Of the connection's other end.
            headers: Of the request.
            key: Name of the key that it was admitted by.
        """
        return key if key != NO_KEY else self.peers.name(address, headers) or ""


class Exchange:
    """One request, from its head to its reply. Its state belongs to the event loop's thread.

    Args:
        shared: With all others.
        method: Of HTTP.
        path: What was asked for.
        headers: By name.
        label: Its route's template; None: there is none.
        address: Of the connection's other end.
        key: Name of the key that it was admitted by; None: it was not looked at.

    Attributes:
        key: The same, or what stands for it.
        label: Its metric label: that of its route, but `ATTRIBUTION` if it asks for one.
        request_id: As in the answer and in logs.
        shared: With all others.
        trace: Its spans; None if it has none.
    """

    __slots__ = (
        "_address", "_head", "_headers", "_is_impossible", "_job", "_judged", "_parse_s", "_parsed",
        "_path", "_question", "_reading", "_respond", "_started_s", "key", "label", "request_id",
        "shared", "trace",
    )  # fmt: skip

    _head: Head
    _respond: Respond
    _parsed: Parsed
    _judged: JobResult

    def __init__(
        self,
        shared: Exchanges,
        method: str,
        path: str,
        headers: Headers,
        label: str | None,
        address: Address = None,
        key: str | None = None,
    ) -> None:
        self._started_s = perf_counter()
        self.shared = shared
        self._path = path
        self._headers = headers
        self._address = address
        self._is_impossible = False
        self.key = key or shared.policy.unchecked_key
        self.label = label
        self.request_id = request_id_of(headers)
        self.trace: Trace | None = None
        self._parse_s = 0.0
        self._job: Job | None = None
        self._question: Question | None = None
        self._reading: LongBody | None = None
        # Spans of probes would drown all others.
        if shared.tracing is not None and path not in shared.policy.open_paths:
            peer = shared.peers.name(address, headers)
            self.trace = shared.tracing.begin(method, path, label, headers, self.request_id, peer)

    def start(self, head: Head, body: bytes, respond: Respond) -> None:
        """Read the body, which is all there, and queue its job; a long body takes its time.

        Args:
            head: Admitted.
            body: The body.
            respond: Called exactly once, maybe before this returns.
        """
        started_s = perf_counter()
        self._head = head
        self._respond = respond
        shared, kind = self.shared, head.endpoint.kind
        if self.trace is not None:
            self.trace.parsing()
        try:
            if len(body) <= AT_ONCE_BYTES:
                parsed = shared.parser.read(kind, body)
                self._enqueue(parsed, perf_counter() - started_s, head.timeout_s)
            else:
                self._reading = LongBody(self, head, body, started_s)
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            self._respond(self.failure(exc))

    @property
    def awaits_attribution(self) -> bool:
        """Whether it waits for an answer with an attribution, which takes long."""
        if self._job is None:
            return self._question is not None
        return self._parsed.has_attribution

    def cancel(self) -> None:
        """Free the job's place; the reply is None then. After the reply, do nothing."""
        if self._reading is not None:
            self._reading.end()
            self._reading = None
            self._respond(None)
        elif self._job is not None:
            self.shared.scheduler.cancel(self._job)
        elif self._question is not None:
            self.shared.scheduler.forget(self._question)

    def finish(self, status: int) -> None:
        """Count the request and end its spans, now that its answer is sent.

        Args:
            status: Of the answer, or `CLIENT_GONE`.
        """
        seconds = perf_counter() - self._started_s
        self.shared.metrics.answered(
            self.label or OTHER, status, seconds, self.key, self._is_impossible
        )
        if self.trace is not None:
            self.trace.end(status, self.key)

    def failure(self, error: Exception, least_s: float | None = None) -> Reply:
        """Log an error and return the reply to the caller.

        Args:
            error: What went wrong.
            least_s: The shortest deadline that can be kept; None: that of the request's job.
        """
        if isinstance(error, DeadlineExceededError | OverloadedError):
            self._is_impossible = self._could_not_be_kept(least_s)
        who = self.shared.who(self._address, self._headers, self.key)
        reply = failure(
            error,
            self.request_id,
            self._path,
            who,
            self.trace,
            is_callers_fault=self._is_impossible,
        )
        return self._traced(reply)

    def _could_not_be_kept(self, least_s: float | None) -> bool:
        """Return whether the caller itself chose a deadline that no load is to blame for."""
        if least_s is None:
            rows, horizon, _ = self._parsed.actions.shape
            scheduler, members = self.shared.scheduler, self._parsed.members
            if self._parsed.has_attribution:
                least_s = scheduler.least_explained_s(horizon, members)
            else:
                least_s = scheduler.least_s(rows, horizon, members)
        timeout_s = self._head.timeout_s
        return timeout_s < least_s and self.shared.policy.is_callers_choice(
            timeout_s, self._headers
        )

    def _enqueue(self, parsed: Parsed, parse_s: float, timeout_s: float) -> None:
        endpoint = self._head.endpoint
        self._parsed, self._parse_s = parsed, parse_s
        rows, horizon, _ = parsed.actions.shape
        if parsed.has_attribution:
            self.label = ATTRIBUTION
            self.shared.scheduler.check_explain(horizon, timeout_s, parsed.members, self._caller())
        is_urgent = rows * horizon <= endpoint.urgent_work
        self._job = self.shared.scheduler.enqueue(
            parsed.states,
            parsed.actions,
            job_class=endpoint.job_class if is_urgent else JobClass.ROLLOUT,
            timeout_s=timeout_s,
            respond=self._on_outcome,
            members=parsed.members,
        )

    def read_late(self, parsed: Parsed, took_s: float) -> None:
        """Queue the job of a long body, which was read."""
        self._reading = None
        try:
            self._enqueue(parsed, took_s, max(0.0, self._head.timeout_s - took_s))
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            self._respond(self.failure(exc))

    def refuse(self, error: Exception, least_s: float | None = None) -> None:
        """End it by an error, before it has a job; see `failure`."""
        self._reading = None
        self._respond(self.failure(error, least_s))

    def _on_outcome(self, outcome: Outcome) -> None:
        # The job knows this exchange: without a cycle nothing is left to the garbage collector.
        job, self._job = self._job, None
        if self.trace is not None:
            assert job is not None
            self.trace.settled(job, outcome)
        reply = None
        try:
            if isinstance(outcome, ServiceError):
                raise outcome
            if outcome is not None:
                # Of what is no number nothing can be attributed.
                if self._parsed.has_attribution and outcome.prediction.is_finite:
                    assert job is not None
                    self._ask(outcome, job.deadline_s)
                    return
                reply = self._answered(outcome)
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            reply = self.failure(exc)
        del self._parsed  # a kept connection keeps its last exchange
        self._respond(reply)

    def _ask(self, judged: JobResult, deadline_s: float) -> None:
        """Have the crash probability attributed, once the sequence was computed."""
        parsed = self._parsed
        self._question = self.shared.scheduler.explain(
            parsed.states[0],
            parsed.actions[0],
            deadline_s=deadline_s,
            respond=self._on_explained,
            members=parsed.members,
            caller=self._caller(),
        )
        self._judged = judged

    def _caller(self) -> str:
        return self.shared.caller(self._address, self._headers, self.key)

    def _on_explained(self, outcome: Explained) -> None:
        self._question = None
        reply = None
        try:
            if isinstance(outcome, ServiceError):
                raise outcome
            if outcome is not None:
                reply = self._answered(self._judged, outcome)
        except Exception as exc:  # noqa: BLE001 (the app's last resort, see `failure`)
            reply = self.failure(exc)
        del self._parsed, self._judged
        self._respond(reply)

    def _answered(self, result: JobResult, attribution: Attribution | None = None) -> Reply:
        compose = self._head.endpoint.answer
        answer = self.shared.answers.text(compose, self._parsed, self._parse_s, result, attribution)
        return self._traced(_success(answer, self.request_id, result))

    def _traced(self, reply: Reply) -> Reply:
        if self.trace is None:
            return reply
        return reply._replace(head=reply.head + as_lines(self.trace.headers))


def request_id_of(headers: Headers) -> str:
    """Return the id that a request brings, or a new one if it brings none that is sane."""
    given = headers.get(b"x-request-id")
    if given is not None and _SANE_ID.fullmatch(given):
        return given.decode()
    return random.randbytes(16).hex()


def as_lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return headers as they are sent."""
    return b"".join(b"%b: %b\r\n" % header for header in headers)


_TIMES = b"server-timing: queue;dur=%.3f, compute;dur=%.3f\r\n"
_TIMED_HEAD = JSON_HEAD + _TIMES
_TIMED_HEAD_OF_PARTS = TYPE_LINE + ID_LINE + _TIMES


def _success(answer: bytes | Parts, request_id: str, result: JobResult) -> Reply:
    times_ms = 1e3 * result.queue_s, 1e3 * result.compute_s
    if isinstance(answer, Parts):
        return Reply(200, _TIMED_HEAD_OF_PARTS % (request_id.encode(), *times_ms), b"", answer)
    return Reply(200, _TIMED_HEAD % (len(answer), request_id.encode(), *times_ms), answer)
