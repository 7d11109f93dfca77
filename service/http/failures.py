"""Failed requests: what the log says of an error, and what its caller is told."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import orjson
import structlog

from service.errors import EngineError, ServiceError
from service.http.answers import JSON_HEAD, Reply

if TYPE_CHECKING:
    from service.telemetry.tracing import Trace

log = structlog.get_logger()


def failure(
    error: Exception,
    request_id: str,
    path: str,
    who: Mapping[str, str],
    trace: Trace | None = None,
    *,
    is_callers_fault: bool = False,
    is_logged: bool = True,
) -> Reply:
    """Log an error and return the reply to its caller; a stranger learns nothing of our faults.

    Args:
        error: What went wrong.
        request_id: As in the answer and in logs.
        path: What was asked for.
        who: Asks, for the log; see `Exchanges.who`.
        trace: The request's spans; None if it has none.
        is_callers_fault: Whether nothing is wrong with the service, whatever the status says.
        is_logged: Whether the request has a line in the log.
    """
    ids = {"request_id": request_id, **who, **({} if trace is None else trace.ids)}
    if not isinstance(error, ServiceError):
        log.error("unexpected error", **ids, exc_info=error)
        error = EngineError("the service has failed on this request")
    if trace is not None:
        trace.failed(error, is_servers=error.status >= 500 and not is_callers_fault)
    if is_logged:
        log.log(
            logging.INFO if is_callers_fault else _level(error),
            "request failed",
            **ids,
            code=error.code,
            status=error.status,
            path=path[:200],
            message=error.message,
        )
    body = orjson.dumps(error.body())
    extra = "".join(f"{name.lower()}: {value}\r\n" for name, value in error.headers.items())
    return Reply(error.status, JSON_HEAD % (len(body), request_id.encode()) + extra.encode(), body)


def _level(error: ServiceError) -> int:
    """Return how severe an error is for the service."""
    if error.status == 429:
        return logging.WARNING
    return logging.ERROR if error.status >= 500 else logging.INFO
