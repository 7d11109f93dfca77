"""Who and what is let in, by headers alone."""

from __future__ import annotations

import hmac
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from service.errors import InvalidRequestError, PayloadTooLargeError, UnauthorizedError
from service.interface import Headers
from service.telemetry.requests import NO_KEY, UNKNOWN_KEY

TIMEOUT_HEADER = "X-Request-Timeout-Seconds"
_SECONDS = re.compile(rb"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|\.[0-9]+([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Policy:
    """What the service lets in.

    Attributes:
        keys: Names of keys, by the key; one must come with a request. Empty: all are welcome.
        open_paths: Need no key.
        max_body_bytes: Longest body.
        default_timeout_s: Deadline of requests that bring none.
        max_timeout_s: Longest deadline; requests for more get this one.
    """

    keys: Mapping[str, str] = field(repr=False)
    open_paths: frozenset[str]
    max_body_bytes: int
    default_timeout_s: float
    max_timeout_s: float

    @property
    def unchecked_key(self) -> str:
        """What the key of a request is called as long as it was not looked at."""
        return UNKNOWN_KEY if self.keys else NO_KEY

    def key_of(self, path: str, headers: Headers) -> str:
        """Let a request in by its key; return the key's name.

        Raises:
            UnauthorizedError: It has no known key.
        """
        if not self.keys or path in self.open_paths:
            return NO_KEY
        return self._known_key(headers.get(b"authorization", b""))

    def check(self, headers: Headers) -> None:
        """Let a request in by all else that its head says.

        Raises:
            PayloadTooLargeError: It says that its body is too long.
        """
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

    def is_callers_choice(self, timeout_s: float, headers: Headers) -> bool:
        """Return whether a deadline is the caller's own: neither the default nor the longest one.

        Args:
            timeout_s: Time until the deadline, as `timeout_s` returned it.
            headers: Of its request.
        """
        return b"x-request-timeout-seconds" in headers and timeout_s < self.max_timeout_s

    def _known_key(self, authorization: bytes) -> str:
        scheme, _, given = authorization.partition(b" ")
        # All keys are compared, each in constant time: the time tells nothing about them.
        given = given.strip()
        known = [n for key, n in self.keys.items() if hmac.compare_digest(given, key.encode())]
        if scheme.lower() != b"bearer" or not known:
            raise UnauthorizedError("a known key is needed as 'Authorization: Bearer KEY'")
        return known[0]


def _declared_length(headers: Headers) -> int:
    given = headers.get(b"content-length", b"0")
    return int(given) if given.isdigit() else 0
