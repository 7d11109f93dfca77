"""What a connection may take before a request is complete, and what its head must look like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import BadRequestError, ServiceError, UnsupportedMediaTypeError


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections, most of them before any key is known; see `service.settings`.

    Attributes:
        max_connections: At once.
        max_head_bytes: Of a request's line and headers, or of its trailers.
        head_timeout_s: From a request's first byte to the end of its head.
        body_timeout_s: From there to the end of its body.
        idle_timeout_s: Between requests.
        answer_timeout_s: In which a caller reads nothing of its answer.
        max_buffered_bytes: Of all incomplete requests together, and of all unread answers.
    """

    max_connections: int = 1024
    max_head_bytes: int = 2**15
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    answer_timeout_s: float = 30.0
    max_buffered_bytes: int = 2**24


HEAD_END = re.compile(rb"\n\r?\n")
"""The end of a head, or of trailers; only `CRLF CRLF` is valid, the parser refuses others."""

_UPGRADE = re.compile(rb"\r\n[Uu][Pp][Gg][Rr][Aa][Dd][Ee][ \t]*:[^\n]*(?=\r\n)")
_INVALID_IN_HOST = re.compile(rb"[\s/?#@\\,]")
_SINGLE = frozenset(
    {b"host", b"authorization", b"content-length", b"x-request-id", b"x-request-timeout-seconds"}
)
"""Fields that say something different to different readers if they come twice."""


def without_upgrade(head: bytes) -> bytes:
    """Return a head that asks for no other protocol (RFC 9110, 7.8: a server may ignore it).

    The parser would take all that follows for that protocol, the body too.
    """
    return _UPGRADE.sub(b"", head) if b"pgrade" in head.lower() else head


def fault_of(version: str, fields: Sequence[tuple[bytes, bytes]]) -> ServiceError | None:
    """Return why a request cannot be taken whatever it asks for; None if it can.

    Args:
        version: Of HTTP, as the request says: "1.1".
        fields: Names in lower case, and values.
    """
    if version not in ("1.0", "1.1"):
        return BadRequestError(f"HTTP/{version} is not spoken here (allowed: HTTP/1.1, HTTP/1.0)")
    names = [name for name, _ in fields]
    for name in _SINGLE.intersection(names):
        if names.count(name) > 1:
            return BadRequestError(f"the header {name.decode()} came more than once")
    given = dict(fields)
    host = given.get(b"host")
    if host is None and version == "1.1":
        return BadRequestError("the header host is missing")
    if host is not None and _INVALID_IN_HOST.search(host):
        return BadRequestError("the header host is not a host with an optional port")
    if b"transfer-encoding" in given:
        if version == "1.0":
            return BadRequestError("HTTP/1.0 knows no transfer-encoding")
        if given[b"transfer-encoding"].strip().lower() != b"chunked":
            return _unsupported(b"transfer-encoding", "chunked")
    codings = [value.strip().lower() for name, value in fields if name == b"content-encoding"]
    if any(coding not in (b"", b"identity") for coding in codings):
        return _unsupported(b"content-encoding", "none: send the body as it is")
    return None


def _unsupported(name: bytes, allowed: str) -> ServiceError:
    return UnsupportedMediaTypeError(
        f"the body's {name.decode()} is not one that is read (allowed: {allowed})"
    )
