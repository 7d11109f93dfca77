"""One call of the client, from its request to its answer, without sending anything itself."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import httpx
import orjson

from world_model_client.errors import (
    MAX_DETAILS,
    SERVICE_ERRORS,
    TEXT_BYTES,
    Detail,
    EngineError,
    OverloadedError,
    ServiceError,
    UnavailableError,
    UnreachableError,
    printable,
)
from world_model_client.inputs import READINESS, Call, seconds

_BY_CODE = {error.code: error for error in SERVICE_ERRORS}

_LATE_S = 0.05
"""Each wait ends in time; where only their sum does not, so much later."""
MOST_ANSWER_BYTES = 2**27
"""Five times the largest answer by the service's defaults (1,024 sequences of 64 states: 25 MB). A
server that writes without end would fill the memory long before a deadline ends the call."""
_LONGEST_WAIT_S = 1e6
"""Sockets take no longer timeouts."""


class Exchange:
    """One call: its tries, and what came back.

    Args:
        call: What to send.
        place: The service's address, for errors.
        wait_s: Longest wait for an answer if the call has no deadline.
        margin_s: Longest wait after the deadline: the service's own 504 has to travel.
        checks_ids: Whether an answer with another request's id is refused.

    Attributes:
        is_retry: Whether the call was sent before.
        is_over: Whether there is an answer.
        answer: The answer's fields, once there is one.
    """

    def __init__(
        self, call: Call, place: str, wait_s: float, margin_s: float, checks_ids: bool
    ) -> None:
        self._started = monotonic()
        self._call = call
        self._place = place
        self._body = call.body()
        self._wait_s = wait_s
        self._deadline: float | None = None
        if call.timeout_s is not None:
            timeout_s = seconds("timeout_s", call.timeout_s)
            self._wait_s, self._deadline = timeout_s + margin_s, self._started + timeout_s
        self._ends = self._started + self._wait_s
        self._id = os.urandom(16).hex()
        self._checks_ids = checks_ids
        self.is_retry = self.is_over = False
        self.answer: dict[str, Any] = {}

    def request(self, trace: Callable[..., object]) -> dict[str, Any]:
        """Return the request of the next try, as the arguments of `httpx.Client.stream`.

        Args:
            trace: `notice`, or a coroutine function that calls it.
        """
        self._is_connected_anew = self._has_head = False
        self._status, self._retry_after = 0, ""
        self._text = bytearray()  # not a list: parts of one byte each would take fifty times it
        headers = {"x-request-id": self._id}
        if self.is_retry:  # so that no other retry is the second request of this connection
            headers["connection"] = "close"
        if self._deadline is not None:
            left_s = self._deadline - (monotonic() if self.is_retry else self._started)
            left_s = max(left_s, 1e-6)
            headers["x-request-timeout-seconds"] = f"{left_s:.6f}".rstrip("0").rstrip(".")
        # Where nobody has imported OpenTelemetry, no span is active; then it need not be there.
        if "opentelemetry.trace" in sys.modules:
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

            TraceContextTextMapPropagator().inject(headers)
        return {
            "method": "GET" if self._body is None else "POST",
            "url": self._call.path,
            "content": self._body,
            "headers": headers,
            "extensions": {"timeout": _TimeLeft(self._ends), "trace": trace},
        }

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Be around one try: what ends it is left out if the call is to be sent again.

        Raises:
            ServiceError: It is not, and the service said so.
            UnreachableError: It is not, and no answer came.
        """
        try:
            try:
                yield
            except TimeoutError:  # of `asyncio.timeout`
                self._check_retry(httpx.ReadTimeout("the answer came too slowly"))
            except (httpx.RequestError, UnavailableError) as exc:
                self._check_retry(exc)
                self.is_retry = True
        except (ServiceError, UnreachableError) as exc:
            exc.request_id = self._id
            raise

    def left_s(self) -> float:
        """Return how long the call may still take, whatever is waited for."""
        return min(self._ends + _LATE_S - monotonic(), _LONGEST_WAIT_S)

    def notice(self, event: str, info: object = None) -> None:
        """Take note of what the transport does (the events of httpcore)."""
        if event == "connection.connect_tcp.started":
            self._is_connected_anew = True

    def take_head(self, response: httpx.Response) -> None:
        """Take the head of an answer.

        Raises:
            UnreachableError: It is another request's answer, or a compressed one, which was not
                asked for: a small one may fill the memory.
        """
        self._has_head = True
        self._status = response.status_code
        self._retry_after = response.headers.get("retry-after", "")
        others = {x for x in response.headers.get_list("x-request-id") if x != self._id}
        coding = response.headers.get("content-encoding", "identity")
        if coding.strip().lower() != "identity":
            raise UnreachableError(f"the answer from {self._place} is compressed ({coding[:64]!r})")
        if self._checks_ids and others:
            raise UnreachableError(
                f"the answer from {self._place} is not this request's: it has the X-Request-Id "
                f"{min(others)[:128]!r} in place of {self._id!r} (if a proxy sets that header, use "
                "checks_ids=False)"
            )

    def take_part(self, part: bytes) -> None:
        """Take a part of an answer's body.

        Raises:
            UnreachableError: It is longer than `MOST_ANSWER_BYTES`.
            httpx.ReadTimeout: There is no time left for the rest.
        """
        if len(self._text) + len(part) > MOST_ANSWER_BYTES:
            raise UnreachableError(
                f"the answer from {self._place} is longer than {MOST_ANSWER_BYTES} bytes (ask for "
                "fewer sequences or outputs at a time)"
            )
        self._text += part
        if monotonic() > self._ends:
            raise httpx.ReadTimeout("the answer came too slowly")

    def finish(self) -> None:
        """Make the answer of what was taken.

        Raises:
            ServiceError: The service refused or failed.
            UnreachableError: What answered is not the service.
        """
        try:
            fields = orjson.loads(self._text)
        except orjson.JSONDecodeError:
            fields = None
        if self._status == 200 and isinstance(fields, dict):
            self.answer, self.is_over = fields, True
            return
        error = _error(fields, self._retry_after)
        if error is None:
            raise UnreachableError(f"{self._place}{self._call.path} answered {self._status}")
        raise error

    def _check_retry(self, error: httpx.RequestError | UnavailableError) -> None:
        ends = self._ends if self._deadline is None else self._deadline
        if self._may_retry(error) and not self.is_retry and monotonic() < ends:
            return
        if isinstance(error, UnavailableError):
            raise error
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.TimeoutException):
            reason = f"{reason}, after {self._wait_s:g} s"
        raise UnreachableError(f"no answer from {self._place}: {reason}") from error

    def _may_retry(self, error: httpx.RequestError | UnavailableError) -> bool:
        if isinstance(error, UnavailableError):
            return self._call.path != READINESS  # there, it is the answer
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return True
        is_lost = isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError)
        return is_lost and not self._is_connected_anew and not self._has_head


class Remaining(float):
    """Seconds that a request has left, and when they end.

    Attributes:
        ends: By `time.monotonic`.
    """

    ends: float

    def __new__(cls, left_s: float, ends: float) -> Remaining:
        """Return `left_s` as a number that knows its end."""
        made = super().__new__(cls, left_s)
        made.ends = ends
        return made


class _TimeLeft(dict[str, float]):
    """Timeouts of a transport that all end at one time, whichever step is begun when."""

    def __init__(self, ends: float) -> None:
        super().__init__(dict.fromkeys(("connect", "read", "write", "pool"), 0.0))
        self._ends = ends
        self.update((name, self.get(name)) for name in self)

    def get(self, name: str, default: Any = None) -> float:
        """Return the seconds left; never 0, which means "do not wait" to sockets."""
        left_s = min(max(self._ends - monotonic(), 0.001), _LONGEST_WAIT_S)
        return Remaining(left_s, self._ends)


def _error(fields: Any, retry_after: str) -> ServiceError | None:
    """Return the error in a body, or None if it is not the service's."""
    inner = fields.get("error") if isinstance(fields, dict) else None
    texts = [inner.get(x) if isinstance(inner, dict) else None for x in ("code", "message")]
    details = inner.get("details") if isinstance(inner, dict) else None
    if not all(isinstance(x, str) for x in texts) or not isinstance(details, list):
        return None
    code, message = texts
    details = [detail for given in details[:MAX_DETAILS] if (detail := _detail(given))]
    kind: type[ServiceError] = _BY_CODE.get(str(code), EngineError)
    if kind is not OverloadedError:
        return kind(str(message), details)
    try:
        retry_after_s = float(retry_after)
    except ValueError:  # a date, from a proxy
        retry_after_s = math.nan
    is_known = 0 <= retry_after_s < math.inf
    return OverloadedError(str(message), details, retry_after_s=retry_after_s if is_known else 1.0)


def _detail(given: Any) -> Detail:
    """Return an entry of an error's details as the contract has it; empty if it is none."""
    if not isinstance(given, dict) or not all(
        isinstance(given.get(name), str) for name in ("field", "problem")
    ):
        return {}
    texts = {name: given.get(name) for name in ("field", "problem", "allowed")}
    return {
        name: printable(text, TEXT_BYTES) for name, text in texts.items() if isinstance(text, str)
    }
