"""Where a body in chunks ends (RFC 9112, 7.1), found before the parser reads it.

The parser goes on with the next request as soon as it is given more than one, and its callbacks
would overwrite the state of the first. So it is given no byte behind the end of a message.
"""

from __future__ import annotations

import re

_SIZE = re.compile(rb"[0-9A-Fa-f]+")
_LINE_END_BYTES = 2  # behind the data of a chunk

_TINY = re.compile(
    b"(?s:%b)*+"
    % b"|".join(b"(?>0*%x(?:[^0-9A-Fa-f\\n][^\\n]*)?\\n.{%d}\\r\\n)" % (n, n) for n in range(1, 10))
)
"""Whole chunks of a few bytes. One by one they would take ten times as long as to parse them."""

_MOST_LINES = 2**8
"""Lines that are looked at in one go, with their chunks: a third of a millisecond."""

_LINE_BYTES = 2**5
"""Tiny chunks of so many bytes count as a line."""


class Chunks:
    """Follows one body, however it is cut up on its way.

    The parser judges every line; what it refuses may be misread here.

    Attributes:
        is_over: Whether all of the body has been taken, its trailers included.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._left = 0  # bytes of a chunk, with the line end behind it
        self._line = bytearray()  # the beginning of a line whose end has not come
        self._is_last = False  # trailers follow

    @property
    def line_bytes(self) -> int:
        """Length of a line so far whose end has not come."""
        return len(self._line)

    def take(self, data: bytes | bytearray) -> int:
        """Return how many of these bytes, which come next, to parse now.

        All that is returned belongs to the body. It is less than it could be if there are very
        many lines: then ask again.

        Args:
            data: What has come behind all that was taken before.
        """
        taken, lines, count = 0, 0, len(data)
        while taken < count and lines < _MOST_LINES and not self.is_over:
            if self._left:
                step = min(self._left, count - taken)
                self._left -= step
                taken += step
                continue
            if not self._line and not self._is_last:
                most = (_MOST_LINES - lines) * _LINE_BYTES
                tiny = _TINY.match(data, taken, taken + most)
                assert tiny is not None  # it may be empty
                lines += (tiny.end() - taken) // _LINE_BYTES
                taken = tiny.end()
            lines += 1
            end = data.find(b"\n", taken) + 1
            line = data[taken : end or count]
            taken = end or count
            if not end:
                self._line += line
                break
            if self._line:
                line = self._line + line
                self._line.clear()
            self._read(line)
        return taken

    def _read(self, line: bytes | bytearray) -> None:
        if self._is_last:
            self.is_over = line in (b"\r\n", b"\n")
            return
        size = _SIZE.match(line)
        if size is None:  # the parser refuses it
            self.is_over = True
            return
        length = int(size[0], 16)
        self._left = length + _LINE_END_BYTES if length else 0
        self._is_last = not length
