"""Structured logs: one line an event, as JSON or for eyes; other libraries' lines included.

No line holds a secret, whatever breaks: exceptions are shown without local variables, among which
headers and keys are, and each line is searched for what is left of them. Nor does a line hold
characters that a terminal obeys, or that make it look like several: what callers send is quoted in
lines. Exceptions have their line breaks.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import structlog

from service.errors import escaped
from service.telemetry.redaction import Redaction

log = structlog.get_logger()

_OF_MANY_LINES = ("exception", "stack")


def configure_logging(log_format: str, level: str, secrets: Iterable[str] = ()) -> None:
    """Send all logs to stdout, and what no code has caught with them.

    Args:
        log_format: "json" or "console".
        level: Least severe level.
        secrets: Struck out wherever they stand.
    """
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    redaction = Redaction(secrets)
    output = _Output(sys.stdout)
    output.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_as_json(redaction) if log_format == "json" else _for_eyes(redaction)),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(threshold)
    # uvicorn tells of each start and stop, which our own lines say with more.
    logging.getLogger("uvicorn").setLevel(max(threshold, logging.WARNING))
    sys.excepthook = _log_crash
    threading.excepthook = _log_crash_of_thread
    sys.unraisablehook = _log_unraisable


def _as_json(redaction: Redaction) -> list[Any]:
    without_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(without_locals),
        redaction.event,
        _escape,
        structlog.processors.JSONRenderer(),
    ]


def _for_eyes(redaction: Redaction) -> list[Any]:
    return [
        structlog.processors.ExceptionRenderer(),
        redaction.event,
        _escape,
        structlog.dev.ConsoleRenderer(
            colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
        ),
        redaction.line,
    ]


def _escape(_: object, __: str, event: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is to be logged, of characters that can be shown; a processor of structlog."""
    return {
        escaped(name): _shown(value, keeps_lines=name in _OF_MANY_LINES)
        for name, value in event.items()
    }


def _shown(value: Any, *, keeps_lines: bool) -> Any:
    if isinstance(value, str):
        return "\n".join(map(escaped, value.split("\n"))) if keeps_lines else escaped(value)
    if isinstance(value, dict):
        return {escaped(x): _shown(y, keeps_lines=keeps_lines) for x, y in value.items()}
    if isinstance(value, list):
        return [_shown(x, keeps_lines=keeps_lines) for x in value]
    return value


class _Output(logging.StreamHandler[Any]):
    """Writes lines in whatever encoding the stream has, and says so if it cannot."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, of characters that the stream can write."""
        text = super().format(record)
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Say that a line is missing, but not what was in it."""
        # logging's own shows the arguments, among which a secret may be.
        kind = sys.exc_info()[0]
        reason = "" if kind is None else f": {kind.__name__}"
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"A line of the logger {record.name} was not written{reason}\n")


def _log_crash(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    log.critical("crashed", exc_info=(kind, error, traceback))


def _log_crash_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        thread = None if args.thread is None else args.thread.name
        crash = (args.exc_type, args.exc_value, args.exc_traceback)
        log.error("thread crashed", thread=thread, exc_info=crash)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is not None:
        crash = (args.exc_type, args.exc_value, args.exc_traceback)
        log.error(args.err_msg or "exception ignored", place=repr(args.object), exc_info=crash)
