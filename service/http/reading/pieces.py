"""Arrays of big bodies, read in pieces: each takes well under a millisecond, whatever it holds.

An array is a vector (a state or an action), a list of vectors, or a list of sequences of them. It
is cut behind the last `]` of every so many bytes, so that pieces hold whole vectors. What was open
at the cut is closed, and opened again before the next piece: each piece is JSON of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator
from typing import NamedTuple

import numpy as np
import simdjson

from service.http.reading.arrays import (
    SIMDJSON_ERRORS,
    Reader,
    UnfitError,
    brackets,
    list_brackets,
    with_points,
)
from service.http.reading.tokens import MOST_BYTES
from service.interface import Array

_OPENING = re.compile(rb"(?:[ \t\r\n]*+\[){1,3}+")
_LEAST_BYTES = 2**9
_POINTED_BYTES = 2**13
"""Longest piece in which any number of long whole numbers is looked for: there may be hundreds."""


class _Place(NamedTuple):
    """A place behind a vector.

    Attributes:
        vectors: Number of vectors before it.
        steps: Length of the first sequence, if it ends before this place.
        phase: How many brackets and commas of the outermost list's present entry are before it.
    """

    vectors: int = 0
    steps: int | None = None
    phase: int = 0


class Pieces:
    """Reads the array that begins at a place of a body.

    Args:
        reader: Of the array's field.
        parser: Free whenever a piece is read, and left free.
        body: The body.
        start: Position of the array, or of white space before it.
        piece_bytes: Length of a piece; one vector may be longer.

    Attributes:
        axes: Levels of the array, outermost first.
        at: Position of the first byte that is not read yet.
    """

    def __init__(
        self, reader: Reader, parser: simdjson.Parser, body: bytes, start: int, piece_bytes: int
    ) -> None:
        self._reader = reader
        self._parser = parser
        self._body = body
        self._piece_bytes = self._size = piece_bytes
        self._width = len(reader.field.features)
        self._vector = list_brackets(b"", self._width)
        opening = _OPENING.match(body, start, start + MOST_BYTES)
        depth = 0 if opening is None else opening[0].count(b"[")
        self.axes = reader.field.axes[depth < len(reader.field.axes) :]
        self._levels = len(self.axes)
        self._is_list = opening is not None
        self.at = start
        if opening is not None and self._levels > 1:
            self.at += opening[0].index(b"[") + 1
        self._place = _Place()
        self._pattern: tuple[int | None, int, bytes] | None = None
        most = [axis.high for axis in self.axes[:-1]]
        # Each number takes two bytes, at least.
        capacity = min(math.prod(most), (len(body) - start) // (2 * self._width) + 1)
        self._rows = np.empty((capacity, self._width), np.float32)

    def read(self) -> Generator[None, None, bool]:
        """Read the array, one piece between two yields, until its end or the first fault.

        Returns:
            Whether all of it is read.
        """
        while piece := self._piece():
            is_last = self._try(piece)
            if is_last:
                return True
            if is_last is None:
                if self._size <= _LEAST_BYTES:
                    return False
                # What is wrong, or just unusual, is looked for in shorter pieces.
                self._size = max(self._size // 4, _LEAST_BYTES)
            yield
        return False

    def _try(self, piece: bytes) -> bool | None:
        """Read a piece if it can be read; return whether it is the last one, None if it cannot."""
        try:
            is_last = self._take(piece, piece)
        except (UnfitError, *SIMDJSON_ERRORS):
            pass
        else:
            self._size = min(2 * self._size, self._piece_bytes)
            return is_last
        # One vector may be longer, by blanks.
        is_quick = len(piece) <= _POINTED_BYTES or piece.count(b",") <= self._width
        pointed = with_points(piece) if is_quick else piece
        if pointed is piece:
            return None
        try:
            return self._take(piece, pointed)
        except (UnfitError, *SIMDJSON_ERRORS):
            return None

    def array(self) -> tuple[Array, bool]:
        """Return what `Reader.read` would, and whether there was no list around the rows."""
        vectors, steps, _ = self._place
        rows = self._rows[:vectors]
        lengths = {1: (), 2: (vectors,), 3: (vectors // (steps or 1), steps or 1)}[self._levels]
        layout = self._reader.layout_of((*lengths, self._width))
        return rows.reshape(layout.shape), layout.is_bare

    @property
    def steps(self) -> int | None:
        """Length of the first sequence of a list of them, if all of it is read."""
        return self._place.steps

    @property
    def entries(self) -> list[int]:
        """How many entries are read of each list that is open, outermost first."""
        vectors, steps, _ = self._place
        if not vectors:
            return []
        if self._levels < 3:
            return [vectors]
        if steps is None:
            return [0, vectors]
        if not self._is_within_sequence(self._place):
            return [vectors // steps]
        sequences = (vectors - 1) // steps
        return [sequences, vectors - sequences * steps]

    def _piece(self) -> bytes:
        """Return whole vectors, as many as fit into a piece or else one; nothing if there is none.

        Quotes and braces belong to the next field, or are faults.
        """
        if not self._is_list:
            return b""
        body, at = self._body, self.at
        end = min(at + MOST_BYTES, len(body))
        for mark in (b'"', b"{", b"}"):
            found = body.find(mark, at, end)
            end = end if found < 0 else found
        cut = -1
        if self._levels > 1:
            cut = body.rfind(b"]", at, min(at + self._size, end))
        if cut < 0:
            cut = body.find(b"]", at, end)
        return body[at : cut + 1]

    def _take(self, piece: bytes, plain: bytes) -> bool:
        """Read a piece, or rather the same plainly written; return whether it is the last one.

        Raises:
            UnfitError: It breaks the contract, or is written in an unusual way.
            ValueError: Likewise, like the others of `SIMDJSON_ERRORS`; or a vector is empty.
        """
        before = self._place
        after, is_last = self._behind(brackets(piece))
        # An empty list stands for the vectors before the piece, which begins with a comma then.
        opening = b"[" * self._open_lists(before) + (b"[]" if before.vectors else b"")
        closing = b"]" * (self._open_lists(after) if self._levels == 1 or not is_last else 0)
        document = self._parser.parse(b"%b%b%b" % (opening, plain, closing))
        count = after.vectors - before.vectors
        if count:  # else it only closes lists
            rows = self._rows[before.vectors : after.vectors]
            numbers = self._reader.numbers(document).reshape(rows.shape)
            rows[:] = numbers
            if self._reader.finish is not None:
                rows[:] = self._reader.finish(rows, numbers)
        self._place = after
        self.at += len(piece)
        return is_last

    def _behind(self, bracketed: bytes) -> tuple[_Place, bool]:
        """Return the place behind brackets, and whether the array ends there.

        Raises:
            UnfitError: The array would have a wrong shape, or not the same all over.
        """
        vectors, steps, phase = self._place
        if self._levels == 1:
            if bracketed != self._vector:
                raise UnfitError
            return _Place(1), True
        if self._levels == 3 and steps is None:
            steps = self._first_steps(bracketed)
        entry_length, stream = self._expected(steps)
        end = phase + len(bracketed)
        is_last = not stream.startswith(bracketed, phase)
        if is_last:
            # Behind a whole entry the list itself may end.
            end -= 1
            is_whole = end % entry_length == entry_length - 1
            if not (is_whole and stream[phase:end] + b"]" == bracketed):
                raise UnfitError
        vectors += bracketed.count(self._vector)
        if vectors > self.axes[0].high * (1 if self._levels == 2 else steps or vectors):
            raise UnfitError
        return _Place(vectors, steps, end % entry_length), is_last

    def _first_steps(self, bracketed: bytes) -> int | None:
        """Return the length of the first sequence, if it ends within brackets that follow.

        Raises:
            UnfitError: It is too long or has no steps.
        """
        vectors = self._place.vectors
        ahead = b"]" + bracketed if vectors else bracketed
        end = ahead.find(b"]]")
        if end < 0:
            return None
        steps = vectors + ahead.count(self._vector, 0, end + 1)
        if not 1 <= steps <= self.axes[1].high:
            raise UnfitError
        return steps

    def _expected(self, steps: int | None) -> tuple[int, bytes]:
        """Return the length of an entry's brackets with a comma, and those of many entries."""
        if self._pattern is None or self._pattern[0] != steps:
            entry = self._vector
            if self._levels == 3:
                entry = list_brackets(entry, steps or self.axes[1].high)
            entry += b","
            self._pattern = steps, len(entry), entry * (2 + MOST_BYTES // len(entry))
        return self._pattern[1:]

    def _open_lists(self, place: _Place) -> int:
        """Return how many lists are open at a place within the array."""
        return 2 if self._is_within_sequence(place) else 1

    def _is_within_sequence(self, place: _Place) -> bool:
        return self._levels == 3 and 0 < place.phase < self._expected(place.steps)[0] - 1
