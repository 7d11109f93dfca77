"""Who and what is let in, by headers alone."""

from __future__ import annotations

import hmac
import math
import re
from dataclasses import dataclass, field

from service.errors import InvalidRequestError, PayloadTooLargeError, UnauthorizedError
from service.interface import Headers

TIMEOUT_HEADER = "X-Request-Timeout-Seconds"
_SECONDS = re.compile(rb"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|\.[0-9]+([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Policy:
    """What the service lets in.

    Attributes:
        keys: One of them must come with a request; empty: all are welcome.
        open_paths: Need no key.
        max_body_bytes: Longest body.
        default_timeout_s: Deadline of requests that bring none.
        max_timeout_s: Longest deadline; requests for more get this one.
    """

    keys: tuple[str, ...] = field(repr=False)
    open_paths: frozenset[str]
    max_body_bytes: int
    default_timeout_s: float
    max_timeout_s: float

    def check(self, path: str, headers: Headers) -> None:
        """Let a request in.

        Raises:
            UnauthorizedError: It has no known key.
            PayloadTooLargeError: It says that its body is too long.
        """
        if self.keys and path not in self.open_paths:
            self._check_key(headers.get(b"authorization", b""))
        self.check_length(_declared_length(headers))

    def check_length(self, length: int) -> None:
        """Let a body of so many bytes in.

        Raises:
            PayloadTooLargeError: It is too long.
        """
        limit = self.max_body_bytes
        if length > limit:
            raise PayloadTooLargeError(f"the body is longer than the {limit} bytes that are read")

    def timeout_s(self, headers: Headers) -> float:
        """Return the time until the request's deadline.

        Raises:
            InvalidRequestError: It asks for one that is not a positive number.
        """
        given = headers.get(b"x-request-timeout-seconds")
        if given is None:
            return self.default_timeout_s
        # Python's own reader takes more: underscores, signs, words.
        timeout_s = float(given) if _SECONDS.fullmatch(given) else math.nan
        if not 0 < timeout_s < math.inf:
            raise InvalidRequestError(
                f"{TIMEOUT_HEADER} is not a positive number of seconds",
                [
                    {
                        "field": TIMEOUT_HEADER,
                        "problem": "is not a positive number of seconds",
                        "allowed": f"up to {self.max_timeout_s:g}; more is cut to that",
                    }
                ],
            )
        return min(timeout_s, self.max_timeout_s)

    def _check_key(self, authorization: bytes) -> None:
        scheme, _, given = authorization.partition(b" ")
        # All keys are compared, each in constant time: the time tells nothing about them.
        matches = [hmac.compare_digest(given.strip(), key.encode()) for key in self.keys]
        if scheme.lower() != b"bearer" or not any(matches):
            raise UnauthorizedError("a known key is needed as 'Authorization: Bearer KEY'")


def _declared_length(headers: Headers) -> int:
    given = headers.get(b"content-length", b"0")
    return int(given) if given.isdigit() else 0
