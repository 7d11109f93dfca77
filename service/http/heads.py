"""What the bytes of a request's head must look like. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from service.errors import (
    BadRequestError,
    HeadersTooLargeError,
    MethodNotAllowedError,
    ServiceError,
    UnsupportedMediaTypeError,
    UriTooLongError,
)
from service.interface import Headers

_LONGEST_KEPT = 2**12

_LONGEST_LINE = 2**13
"""Of a request: what RFC 9112 (3) asks for at least. Longer ones take long to decode."""

_MOST_FIELDS = 100
"""Thousands of tiny ones would hold the event loop for milliseconds."""

_LONGEST_LENGTH = 18
"""Digits of a body's length: no number of them needs more than 64 bits."""

_HTTP_LINE = re.compile(rb" HTTP/\d\.\d\r?$")

HEAD_END = re.compile(rb"\n\r?\n")
"""The end of a head, or of trailers; only `CRLF CRLF` is valid, the parser refuses others."""

_UPGRADE = re.compile(rb"\r\n[Uu][Pp][Gg][Rr][Aa][Dd][Ee][ \t]*:[^\n]*(?=\r\n)")
_INVALID_IN_HOST = re.compile(rb"[\s/?#@\\,]")
_SINGLE = frozenset(
    {
        b"authorization",
        b"content-length",
        b"host",
        b"transfer-encoding",
        b"x-request-id",
        b"x-request-timeout-seconds",
    }
)
"""Fields that say something different to different readers if they come twice."""


def without_upgrade(head: bytes) -> bytes:
    """Return a head that asks for no other protocol (RFC 9110, 7.8: a server may ignore it).

    The parser would take all that follows for that protocol, the body too.
    """
    return _UPGRADE.sub(b"", head) if b"pgrade" in head.lower() else head


def fault_of_lines(head: bytes, limit: int) -> ServiceError | None:
    """Return why a head cannot be taken, by its lines; None if it can.

    Args:
        head: A whole one, or as much of it as is read.
        limit: Bytes of a head that are read.
    """
    line, end, _ = head.partition(b"\n")
    longest = min(limit, _LONGEST_LINE)
    if len(line) > longest or not end:
        return UriTooLongError(f"the request line is longer than the {longest} bytes read")
    if line.startswith(b"CONNECT "):
        return MethodNotAllowedError("this server is no proxy", allow="GET, HEAD, POST")
    if line.startswith(b"PRI "):
        return BadRequestError("HTTP/2 is not spoken here (allowed: HTTP/1.1, HTTP/1.0)")
    if _HTTP_LINE.search(line) is None:  # the parser takes RTSP and others as well
        return BadRequestError("this is not HTTP/1.1: the request line does not end in HTTP/1.1")
    if head.count(b"\n") > _MOST_FIELDS + 2:
        return HeadersTooLargeError(f"the head has more than {_MOST_FIELDS} fields")
    return None


def fault_of(
    version: str, fields: Sequence[tuple[bytes, bytes]], headers: Headers
) -> ServiceError | None:
    """Return why a request cannot be taken whatever it asks for; None if it can.

    Args:
        version: Of HTTP, as the request says: "1.1".
        fields: Names in lower case, and values.
        headers: The same by name.
    """
    if version not in ("1.0", "1.1"):
        return BadRequestError(f"HTTP/{version} is not spoken here (allowed: HTTP/1.1, HTTP/1.0)")
    names = [name for name, _ in fields]
    for name in _SINGLE.intersection(names):
        if names.count(name) > 1:
            return BadRequestError(f"the header {name.decode()} came more than once")
    host = headers.get(b"host")
    if host is None and version == "1.1":
        return BadRequestError("the header host is missing")
    if host is not None and _INVALID_IN_HOST.search(host):
        return BadRequestError("the header host is not a host with an optional port")
    if len(headers.get(b"content-length", b"")) > _LONGEST_LENGTH:
        return BadRequestError(f"content-length has more than {_LONGEST_LENGTH} digits")
    if b"transfer-encoding" in headers:
        if version == "1.0":
            return BadRequestError("HTTP/1.0 knows no transfer-encoding")
        if headers[b"transfer-encoding"].strip().lower() != b"chunked":
            return _unsupported(b"transfer-encoding", "chunked")
    codings = [value.strip().lower() for name, value in fields if name == b"content-encoding"]
    if any(coding not in (b"", b"identity") for coding in codings):
        return _unsupported(b"content-encoding", "none: send the body as it is")
    return None


def _unsupported(name: bytes, allowed: str) -> ServiceError:
    return UnsupportedMediaTypeError(
        f"the body's {name.decode()} is not one that is read (allowed: {allowed})"
    )


def is_one_head(raw: bytes) -> bool:
    """Whether input up to its first empty line is the head of one POST, by any reading of HTTP.

    A parser that takes less than CRLF for the end of a line might see the head's end elsewhere.
    """
    lines = raw.count(b"\r\n")
    is_plain = lines == raw.count(b"\n") == raw.count(b"\r")
    return len(raw) <= _LONGEST_KEPT and raw.startswith(b"POST ") and is_plain


def path_of(target: bytes) -> bytes:
    """Return the path and query of a target that may be a whole address (RFC 9112, 3.2.2)."""
    if not target.lower().startswith((b"http://", b"https://")):
        return target
    rest = target[target.index(b"//") + 2 :]
    begin = next((k for k, byte in enumerate(rest) if byte in b"/?"), len(rest))
    return rest[begin:] if rest[begin : begin + 1] == b"/" else b"/" + rest[begin:]
