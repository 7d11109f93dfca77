"""Bodies field by field: big ones, unusual ones, and those with faults, to name what is wrong.

Arrays are read in pieces (`service.http.reading.pieces`). From the first fault on the text is read
token by token, but not far: so many more faults are named as can be found in a bounded time.
"""

from __future__ import annotations

import codecs
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import orjson
import simdjson

from service.errors import MAX_DETAILS, Detail
from service.http.contract import MOST_NAMES, ArrayField, Axis
from service.http.reading.arrays import Reader
from service.http.reading.diagnosis import detail, number_fault, refuse
from service.http.reading.pieces import Pieces
from service.http.reading.tokens import BrokenError, Token, Tokens, TooLongError

_BYTE_ORDER_MARKS = (
    codecs.BOM_UTF8,
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
    codecs.BOM_UTF32_LE,
    codecs.BOM_UTF32_BE,
)
_PATIENCE = 512
"""Most tokens read after the first fault."""
_TOKENS_A_SLICE = 128

Slices = Generator[None, None, None]


class _EnoughError(Exception):
    """Enough is known of what is wrong."""


class Walk:
    """Reads one body from left to right.

    Args:
        body: The body.
        arrays: Readers of the arrays that it must hold.
        names: Optional fields, and the names that each may list; none: it is a single value.
        parser: Free whenever the walk goes on, and left free.
        piece_bytes: Length of the pieces that arrays are read in.
    """

    def __init__(
        self,
        body: bytes,
        arrays: Sequence[Reader],
        names: Mapping[str, tuple[str, ...]],
        parser: simdjson.Parser,
        piece_bytes: int,
    ) -> None:
        self._tokens = Tokens(body)
        self._arrays = {reader.name: reader for reader in arrays}
        self._names = names
        self._known = ", ".join([*self._arrays, *names])
        self._parser = parser
        self._piece_bytes = piece_bytes
        self._values: dict[str, Any] = {}
        self._faults: list[Detail] = []
        self._patience = _PATIENCE
        self._slice = 0
        """Tokens read in the present slice."""
        self._first_lengths: dict[str, tuple[str, int]] = {}
        """Of lists that must have the same length: where the first one stands, and its length."""

    def fields(self) -> Generator[None, None, dict[str, Any]]:
        """Read the body; between two yields passes well under a millisecond.

        Returns:
            The fields by name: of arrays what `Pieces.array` returns, of others their values.

        Raises:
            InvalidRequestError: It breaks the contract; the first detail is the first fault.
        """
        try:
            yield from self._object()
        except BrokenError as exc:
            # The limit shows what is wrong only if nothing else does.
            if not (self._faults and isinstance(exc, TooLongError)):
                self._faults.append(exc.detail)
        except _EnoughError:
            pass
        # Not to have found a fault does not mean that there is none.
        unread = [detail(name, "cannot be read") for name in self._arrays.keys() - self._values]
        if self._faults or unread:
            refuse(self._faults or unread)
        return self._values

    def _object(self) -> Slices:
        self._check_encoding()
        opening = self._next()
        if opening.text != b"{":
            self._check_is_value(opening)
            self._fault("body", f"must be a JSON object, is {opening.name}")
            return
        seen: set[str] = set()
        while (token := self._next_entry(b"}", len(seen))) is not None:
            if token.kind != "string":
                raise self._tokens.unexpected(token.at)
            name = str(self._scalar(token))
            self._expect(self._next(), b":")
            yield from self._field(name, is_again=name in seen)
            seen.add(name)
        self._tokens.end()
        for name in self._arrays:
            if name not in seen:
                self._fault(name, "is missing")

    def _check_encoding(self) -> None:
        start = self._tokens.text[:4]
        if not start:
            raise BrokenError("is empty")
        if start.startswith(_BYTE_ORDER_MARKS):
            raise BrokenError("starts with a byte order mark; send plain UTF-8")
        if b"\0" in start:
            raise BrokenError("holds zero bytes, as UTF-16 and UTF-32 do; send plain UTF-8")

    def _field(self, name: str, *, is_again: bool) -> Slices:
        if is_again:
            self._fault(name, "is given twice")
        elif name in self._arrays:
            yield from self._array(self._arrays[name])
            return
        elif name in self._names:
            yield from self._option(name, self._names[name])
            return
        else:
            self._fault(name, "is not a known field", self._known)
        yield from self._skip(self._next())

    def _array(self, reader: Reader) -> Slices:
        tokens, field = self._tokens, reader.field
        pieces = Pieces(reader, self._parser, tokens.text, tokens.at, self._piece_bytes)
        if (yield from pieces.read()):
            self._values[reader.name] = pieces.array()
            tokens.skip_to(pieces.at)
            return
        # There is a fault in what would be the next piece, or right behind the array.
        entries = pieces.entries
        tokens.look_into_vectors(pieces.at if entries else tokens.at)
        self._first_lengths = {}
        if pieces.steps is not None:
            self._first_lengths["steps"] = f"{reader.name}[0]", pieces.steps
        if entries:
            yield from self._entries(field, pieces.axes, reader.name, entries)
        else:
            yield from self._value(self._next(), field, pieces.axes, reader.name)

    def _value(self, token: Token, field: ArrayField, axes: Sequence[Axis], path: str) -> Slices:
        """Read a list of an array.

        Args:
            token: Its first.
            field: The array's.
            axes: Levels of the list and of those in it.
            path: Where it stands.
        """
        if token.text == b"[":
            yield from self._entries(field, axes, path, [0])
            return
        self._check_is_value(token)
        self._fault(path, f"must be a list of {axes[0].entries}, is {token.name}")
        yield from self._skip(token)

    def _entries(
        self, field: ArrayField, axes: Sequence[Axis], path: str, entries: Sequence[int]
    ) -> Slices:
        """Read the rest of a list, that is open.

        Args:
            field: The array's.
            axes: Levels of the list and of those in it.
            path: Where it stands.
            entries: How many entries are read of it, and of the list in it that is open, if any.
        """
        axis, (index, *inner) = axes[0], entries
        if inner:
            yield from self._entries(field, axes[1:], f"{path}[{index}]", inner)
            index += 1
        while (token := self._next_entry(b"]", index)) is not None:
            self._check_is_value(token)
            self._check_room(axis, path, index)
            if index >= axis.high:
                yield from self._skip(token)
            elif len(axes) > 1:
                yield from self._value(token, field, axes[1:], f"{path}[{index}]")
            else:
                yield from self._number(token, field, f"{path}[{index}]", index)
            index += 1
            if self._is_long_enough():
                yield
        self._check_length(axis, path, index)

    def _check_room(self, axis: Axis, path: str, count: int) -> None:
        """Check that a list of so many entries may have another one."""
        first, most = self._first_lengths.get(axis.entries, ("", -1))
        if count == axis.high:
            self._fault(path, f"has more than {count} {axis.entries}", axis.allowed)
        elif count == most:
            self._fault(path, f"has more than {count} {axis.entries}, {first} has {most}")

    def _check_length(self, axis: Axis, path: str, count: int) -> None:
        """Check that a list of so many entries may end."""
        if count < axis.low:
            self._fault(path, f"has {count} {axis.entries}", axis.allowed)
        elif count <= axis.high:
            first, least = self._first_lengths.setdefault(axis.entries, (path, count))
            if count < least:
                self._fault(path, f"has {count} {axis.entries}, {first} has {least}")

    def _number(self, token: Token, field: ArrayField, path: str, index: int) -> Slices:
        if token.kind in ("number", "not_finite"):
            text, feature = token.text.decode(), field.features[index]
            fault = number_fault(text, path, feature, is_ranged=field.is_ranged)
            if fault is not None:
                self._faults.append(fault)
            return
        self._check_is_value(token)
        self._fault(path, f"must be a number, is {token.name}")
        yield from self._skip(token)

    def _option(self, name: str, choice: tuple[str, ...]) -> Slices:
        """Read an optional field: a list of names if there is a choice, else a single value."""
        opening = self._next()
        if opening.text == b"[" and choice:
            self._values[name] = yield from self._list_of_names(name)
        elif opening.text in (b"[", b"{"):
            expected = "a list of names" if choice else "a single value"
            self._fault(name, f"must be {expected}, is {opening.name}")
            yield from self._skip(opening)
        else:
            self._values[name] = self._scalar(opening)

    def _list_of_names(self, field: str) -> Generator[None, None, list[Any]]:
        names: list[Any] = []
        while (token := self._next_entry(b"]", len(names))) is not None:
            path = f"{field}[{len(names)}]"
            if len(names) == MOST_NAMES:
                self._fault(field, f"has more than {MOST_NAMES} names", f"1 to {MOST_NAMES} names")
                raise _EnoughError
            if token.text in (b"[", b"{"):
                self._fault(path, f"must be a name, is {token.name}")
                yield from self._skip(token)
                names.append(None)
            else:
                names.append(self._scalar(token))
        return names

    def _scalar(self, token: Token) -> Any:
        """Return the value of a string, number or word."""
        self._check_is_value(token)
        try:
            return orjson.loads(token.text)
        except orjson.JSONDecodeError as exc:
            if token.kind == "string":  # half of a surrogate pair, or not UTF-8
                problem = f"is not JSON: the string at byte {token.at} is not valid UTF-8 text"
                raise BrokenError(problem) from exc
            return float(token.text)

    def _skip(self, token: Token) -> Slices:
        """Read to the end of a value that nobody wants, of which the first token is read."""
        self._check_is_value(token)
        depth = 0
        while True:
            if token.kind == "mark":
                depth += (token.text in b"[{") - (token.text in b"]}")
            if depth <= 0:
                return
            token = self._next()
            if self._is_long_enough():
                yield

    def _next_entry(self, end: bytes, count: int) -> Token | None:
        """Return the first token of a list's next entry, if it does not end after so many."""
        token = self._next()
        if token.text == end:
            return None
        if count:
            self._expect(token, b",")
            token = self._next()
        return token

    def _next(self) -> Token:
        if self._faults:
            if len(self._faults) >= MAX_DETAILS or self._patience == 0:
                raise _EnoughError
            self._patience -= 1
        self._slice += 1
        return self._tokens.read()

    def _is_long_enough(self) -> bool:
        """Tell whether a slice should end here; the next one begins then."""
        if self._slice < _TOKENS_A_SLICE:
            return False
        self._slice = 0
        return True

    def _expect(self, token: Token, text: bytes) -> None:
        if token.text != text:
            raise self._tokens.unexpected(token.at)

    def _check_is_value(self, token: Token) -> None:
        if token.kind == "mark" and token.text not in (b"[", b"{"):
            raise self._tokens.unexpected(token.at)

    def _fault(self, field: str, problem: str, allowed: str = "") -> None:
        self._faults.append(detail(field, problem, allowed))
