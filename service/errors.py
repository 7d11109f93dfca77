"""Every error of the service: those that it answers with, and `StartupError`.

The tree is drawn in `world_model_client.errors`: the client raises the same classes, and must not
import the service.
"""

from world_model_client.errors import (
    FIELD_BYTES,
    MAX_DETAILS,
    SERVICE_ERRORS,
    BadRequestError,
    ClosedClientError,
    DeadlineExceededError,
    Detail,
    EngineError,
    ForbiddenError,
    HeadersTooLargeError,
    InvalidInputError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    RequestTimeoutError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
    UnreachableError,
    UnsupportedMediaTypeError,
    UriTooLongError,
    WorldModelError,
    escaped,
    printable,
)

__all__ = [
    "FIELD_BYTES",
    "MAX_DETAILS",
    "SERVICE_ERRORS",
    "BadRequestError",
    "ClosedClientError",
    "DeadlineExceededError",
    "Detail",
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
    "StartupError",
    "UnauthorizedError",
    "UnavailableError",
    "UnreachableError",
    "UnsupportedMediaTypeError",
    "UriTooLongError",
    "WorldModelError",
    "escaped",
    "printable",
]


class StartupError(WorldModelError):
    """The service cannot start; the message is one sentence for the person who started it."""
