"""Every error of a call: what the service answers with, and what goes wrong before or without that.

The service raises the same classes, and answers with their `status`, `headers` and `body`. So there
is one tree, and it is here, since the client must not import the service.

WorldModelError
├── UnreachableError          no answer came back, or not the request's own
├── InvalidInputError         refused before it was sent; also a ValueError
├── ClosedClientError         the client was used after it was closed; also a RuntimeError
├── WrongLoopError            an AsyncClient of another event loop; also a RuntimeError
└── ServiceError              has an HTTP status, a code and details
    ├── BadRequestError           400  bad_request
    ├── UnauthorizedError         401  unauthorized
    ├── ForbiddenError            403  forbidden
    ├── NotFoundError             404  not_found
    ├── MethodNotAllowedError     405  method_not_allowed
    ├── RequestTimeoutError       408  request_timeout
    ├── PayloadTooLargeError      413  payload_too_large
    ├── UriTooLongError           414  uri_too_long
    ├── UnsupportedMediaTypeError 415  unsupported_media_type
    ├── InvalidRequestError       422  invalid_request
    ├── OverloadedError           429  overloaded, with retry_after_s
    ├── HeadersTooLargeError      431  headers_too_large
    ├── EngineError               500  engine_error
    ├── UnavailableError          503  unavailable
    └── DeadlineExceededError     504  deadline_exceeded
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "SERVICE_ERRORS",
    "BadRequestError",
    "ClosedClientError",
    "DeadlineExceededError",
    "EngineError",
    "ForbiddenError",
    "HeadersTooLargeError",
    "InvalidInputError",
    "InvalidRequestError",
    "MethodNotAllowedError",
    "NotFoundError",
    "OverloadedError",
    "PayloadTooLargeError",
    "RequestTimeoutError",
    "ServiceError",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
    "UnsupportedMediaTypeError",
    "UriTooLongError",
    "WorldModelError",
    "WrongLoopError",
]

Detail = dict[str, str]
"""What is wrong with one field: `field`, `problem` and, where it helps, `allowed`."""

MAX_DETAILS = 16
"""Most details of one error, whatever was sent."""
_MESSAGE_BYTES = 512
FIELD_BYTES = 96
TEXT_BYTES = 160
"""A body of 16 details stays below 16 KiB, even if each character of them is escaped in JSON."""


def escaped(text: str) -> str:
    """Return a text of one line whose characters can all be shown, and none of which is obeyed.

    Terminals obey control characters; other line breaks, and marks that turn the direction of
    writing, make a line look like another.
    """
    if text.isprintable():
        return text
    return "".join(x if x.isprintable() else x.encode("unicode_escape").decode() for x in text)


def printable(text: str, most_bytes: int) -> str:
    """Return a text in which strange characters are escaped, cut to a length in UTF-8.

    Texts quote what callers send: control characters, halves of surrogate pairs, megabytes.
    """
    text = escaped(text[: most_bytes + 1])
    encoded = text.encode()
    if len(encoded) <= most_bytes:
        return text
    return encoded[: most_bytes - 3].decode(errors="ignore") + "..."


class WorldModelError(Exception):
    """Base of all errors of the service and its client.

    Attributes:
        request_id: X-Request-Id of the call, by which the service's log names it; empty if nothing
            was sent.
    """

    request_id: str = ""


class UnreachableError(WorldModelError):
    """The client got no answer: connection refused, lost, timed out, or another request's."""


class InvalidInputError(WorldModelError, ValueError):
    """The client cannot send what it was given; the message names the argument."""


class ClosedClientError(WorldModelError, RuntimeError):
    """The client was closed before this call."""


class WrongLoopError(WorldModelError, RuntimeError):
    """An `AsyncClient` was used in another event loop than before, or without one."""


class ServiceError(WorldModelError):
    """An error with an HTTP answer.

    Attributes:
        status: HTTP status.
        code: Stable name of the error in bodies and logs.
        message: One sentence for a person, fit for logs and JSON whatever it quotes.
        details: One entry a faulty field, at most `MAX_DETAILS`; empty where no field is at fault.
    """

    status: ClassVar[int]
    code: ClassVar[str]

    def __init__(self, message: str, details: Sequence[Detail] = ()) -> None:
        self.message = printable(message, _MESSAGE_BYTES)
        super().__init__(self.message)
        self.details = list(details[:MAX_DETAILS])

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that belong to the answer."""
        return {}

    def body(self) -> dict[str, object]:
        """Return the one error body of the contract: less than 16 KiB that JSON can hold."""
        details = [
            {
                name: printable(text, FIELD_BYTES if name == "field" else TEXT_BYTES)
                for name, text in entry.items()
            }
            for entry in self.details
        ]
        return {"error": {"code": self.code, "message": self.message, "details": details}}


class BadRequestError(ServiceError):
    """What came is not HTTP, or can be read in two ways."""

    status = 400
    code = "bad_request"


class UnauthorizedError(ServiceError):
    """Keys are configured and the request carries none of them."""

    status = 401
    code = "unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        """Name the scheme, as RFC 9110 asks of every 401."""
        return {"WWW-Authenticate": "Bearer"}


class ForbiddenError(ServiceError):
    """The key is known but may not do this."""

    status = 403
    code = "forbidden"


class NotFoundError(ServiceError):
    """There is no such path."""

    status = 404
    code = "not_found"


class MethodNotAllowedError(ServiceError):
    """The path exists, the method does not.

    Attributes:
        allow: Methods that the path has.
    """

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, details: Sequence[Detail] = (), *, allow: str = "") -> None:
        super().__init__(message, details)
        self.allow = allow

    @property
    def headers(self) -> dict[str, str]:
        """Name the methods that the path has."""
        return {"Allow": self.allow} if self.allow else {}


class RequestTimeoutError(ServiceError):
    """The request did not come in time."""

    status = 408
    code = "request_timeout"


class PayloadTooLargeError(ServiceError):
    """The body is longer than the service reads."""

    status = 413
    code = "payload_too_large"


class UriTooLongError(ServiceError):
    """The request's target is longer than the service reads."""

    status = 414
    code = "uri_too_long"


class UnsupportedMediaTypeError(ServiceError):
    """The body is in an encoding that the service does not read."""

    status = 415
    code = "unsupported_media_type"


class InvalidRequestError(ServiceError):
    """The body or a header breaks the contract."""

    status = 422
    code = "invalid_request"


class OverloadedError(ServiceError):
    """The queue of this class is full.

    Attributes:
        retry_after_s: When the present backlog will be worked off, in seconds.
    """

    status = 429
    code = "overloaded"

    def __init__(
        self, message: str, details: Sequence[Detail] = (), *, retry_after_s: float = 1.0
    ) -> None:
        super().__init__(message, details)
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Whole seconds, rounded up: RFC 9110 knows no fractions."""
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


class HeadersTooLargeError(ServiceError):
    """The headers or trailers are longer than the service reads."""

    status = 431
    code = "headers_too_large"


class EngineError(ServiceError):
    """The model failed on this request, or the service has a fault."""

    status = 500
    code = "engine_error"


class UnavailableError(ServiceError):
    """The service is starting, draining, or its engine is down."""

    status = 503
    code = "unavailable"


class DeadlineExceededError(ServiceError):
    """The answer was not there in time."""

    status = 504
    code = "deadline_exceeded"


SERVICE_ERRORS: tuple[type[ServiceError], ...] = tuple(ServiceError.__subclasses__())
"""All classes with a status, in the order of the tree."""
