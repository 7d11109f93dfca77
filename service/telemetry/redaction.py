"""Secrets are struck out of whatever is logged: of lines, exceptions, and objects' texts."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

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
