"""Structured logs: one line per event, as JSON or for people; other libraries' lines included.

No line holds a secret, whatever breaks: exceptions are shown without local variables, among which
headers and keys are, and each line is searched for what is left of them. Nor does a line hold
characters that a terminal obeys, or that make it look like several: what callers send is quoted in
lines. Exceptions have their line breaks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import sys
import threading
from collections.abc import Iterable, Mapping, MutableMapping
from types import TracebackType
from typing import Any

import structlog

from service.errors import escaped

log = structlog.get_logger()

_OF_MANY_LINES = ("exception", "stack")

STRUCK_OUT = "***"
_SHORTEST = 4
"""Shorter secrets would strike out parts of ordinary words; the start warns of short keys."""

_MOST_DEEP = 12
_PLAIN = (int, bool, type(None))
_CREDENTIALS = (
    # Also of keys that are not ours: of a typing error, or of yesterday.
    r"(?P<bearer>\bbearer(?:\s|%20|\\[trn])+)[^\s\"'\\,;)\]}>]+",
    r"(?P<header>\bauthorization(?:[\"']*\s*[:=]|[\"']\s*,)\s*(?:b?[\"'])?)"
    r"(?!bearer\b)[^\s\"'][^\"'\r\n]*",
    r"(?P<url>://)[^\s/@\"']+@",
)


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
                *(_as_json(redaction) if log_format == "json" else _for_people(redaction)),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(threshold)
    # uvicorn logs each start and stop, of which our own lines say more.
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


def _for_people(redaction: Redaction) -> list[Any]:
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


class Redaction:
    """Strikes out given secrets, and what looks like credentials.

    Args:
        secrets: As they are; texts in which they stand as `repr` or JSON writes them are found too.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        written = {form for secret in secrets for form in _forms(secret)}
        self._signs = (*(form.lower() for form in written), "bearer", "authorization", "://")
        literal = map(re.escape, sorted(written, key=len, reverse=True))
        self._pattern = re.compile("|".join([*literal, *_CREDENTIALS]), re.IGNORECASE)

    def text(self, text: str) -> str:
        """Return a text without secrets."""
        return self._pattern.sub(_struck_out, text) if self._is_suspect(text) else text

    def _is_suspect(self, text: str) -> bool:
        """Return whether a text has any sign of a secret: a quick search, as most have none."""
        folded = text.lower()
        for sign in self._signs:  # noqa: SIM110 (a generator takes twice as long)
            if sign in folded:
                return True
        return False

    def line(self, _: object, __: str, line: str) -> str:
        """Return a finished line without secrets; a processor of structlog."""
        return self.text(line)

    def event(self, _: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """Return what is to be logged, of JSON's types alone; a processor of structlog.

        Searching the finished line could break JSON, where a secret is a number or a word of it.
        Most events are flat and hold no secret: those are searched in one go, and stay.
        """
        texts = [*event]
        for value in event.values():
            if type(value) is str:
                texts.append(value)
            elif type(value) not in _PLAIN:
                break
        else:
            if not self._is_suspect("\n".join(texts)):
                return event
        return self._members(event, 0)

    def _members(self, members: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        return {
            self.text(str(name)): STRUCK_OUT if _is_header(name) else self._value(x, depth + 1)
            for name, x in members.items()
        }

    def _value(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, str):
            return self.text(value)
        if depth < _MOST_DEEP:
            if isinstance(value, dict):
                return self._members(value, depth)
            if isinstance(value, list | tuple):
                if len(value) == 2 and _is_header(value[0]):
                    return [str(value[0]), STRUCK_OUT]
                return [self._value(x, depth + 1) for x in value]
        return self.text(repr(value))


def _is_header(name: object) -> bool:
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    return isinstance(name, str) and name.lower().endswith("authorization")


def _struck_out(found: re.Match[str]) -> str:
    kept = next((part for part in found.groupdict().values() if part), "")
    return f"{kept}{STRUCK_OUT}{'@' if found.lastgroup == 'url' else ''}"


def _forms(secret: str) -> list[str]:
    if len(secret) < _SHORTEST:
        return []
    shown = repr(secret)[1:-1]
    return [form for text in (secret, shown) for form in (text, json.dumps(text)[1:-1])]
