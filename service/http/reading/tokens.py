"""The tokens of JSON (RFC 8259), one at a time and each of bounded length."""

from __future__ import annotations

import re
from typing import NamedTuple

from service.errors import Detail, printable
from service.http.reading.diagnosis import detail

MOST_BYTES = 2**15
"""Most bytes of a body outside its two arrays, and of one state or action in them."""
_LOOK_AHEAD = 16
"""Bytes that are looked at beyond a limit: what the limit cuts off must not look like a fault."""

_SPACE = rb"[ \t\r\n]*+"
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+"
_UNCLOSED = rb'"[^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*+'
_TOKEN = re.compile(
    rb"%b(?:(?P<mark>[\[\]{},:])|(?P<number>%b)|(?P<string>%b\")"
    rb"|(?P<word>true|false|null)|(?P<not_finite>NaN|-?Infinity))" % (_SPACE, _NUMBER, _UNCLOSED)
)
_TEXT_BEFORE_FAULT = re.compile(rb"%b(?:%b)?" % (_SPACE, _UNCLOSED))
_NAMES = {
    b"[": "a list",
    b"{": "an object",
    b"true": "a boolean",
    b"false": "a boolean",
    b"null": "null",
}


class BrokenError(Exception):
    """The text cannot be read any further.

    Attributes:
        detail: Why.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.detail: Detail = detail("body", problem)


class TooLongError(BrokenError):
    """A part of the text is longer than what is read of it."""


class Token(NamedTuple):
    """One token.

    Attributes:
        kind: mark, number, string, word or not_finite.
        text: As it was sent.
        at: Position of its first byte.
    """

    kind: str
    text: bytes
    at: int

    @property
    def name(self) -> str:
        """What it begins, for a person."""
        if self.kind == "not_finite":
            return self.text.decode()
        return _NAMES.get(self.text, f"a {self.kind}")


class Tokens:
    """Reads a body from left to right.

    Args:
        text: The body.

    Attributes:
        text: The same.
        at: Position of the next byte.
    """

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.at = 0
        self._limit = MOST_BYTES
        self._part = "outside of states and actions"

    def skip_to(self, at: int) -> None:
        """Go on behind an array, which does not count as outside of the arrays."""
        self._limit += at - self.at
        self.at = at

    def look_into_vectors(self, at: int) -> None:
        """Read within an array from now on, as far as one state or action may reach."""
        self.at = at
        self._limit = at + MOST_BYTES
        self._part = "in one state or action"

    def read(self) -> Token:
        """Return the next token.

        Raises:
            BrokenError: There is none.
        """
        match = _TOKEN.match(self.text, self.at, self._limit + _LOOK_AHEAD)
        if match is None:
            raise self._broken()
        kind = match.lastgroup
        assert kind is not None
        start, self.at = match.span(kind)
        if self.at > self._limit:
            raise self._too_long()
        return Token(kind, match[kind], start)

    def end(self) -> None:
        """Make sure that only white space is left.

        Raises:
            BrokenError: There is something else.
        """
        rest = self.text[self.at : self._limit].lstrip(b" \t\r\n")
        if rest:
            raise self.unexpected(min(self._limit, len(self.text)) - len(rest))
        if self._limit < len(self.text):
            raise self._too_long()

    def unexpected(self, at: int) -> BrokenError:
        """Return the error of a byte that may not stand where it does."""
        character = self.text[at : at + 4].decode(errors="replace")[:1]
        return BrokenError(f'is not JSON: unexpected "{printable(character, 12)}" at byte {at}')

    def _broken(self) -> BrokenError:
        match = _TEXT_BEFORE_FAULT.match(self.text, self.at, self._limit + _LOOK_AHEAD)
        at = self.at if match is None else match.end()
        if at > self._limit:
            return self._too_long()
        if at >= len(self.text):
            return BrokenError(f"is not JSON: ends too early, after {len(self.text)} bytes")
        return self.unexpected(at)

    def _too_long(self) -> TooLongError:
        return TooLongError(f"has more than {MOST_BYTES} bytes {self._part}")
