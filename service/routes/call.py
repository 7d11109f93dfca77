"""What the desk hands to a hot route, and what it gets back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from service.jobs import JobResult


class Pending(NamedTuple):
    """A request whose job is queued.

    Attributes:
        future: The job's result; cancelling it frees the job's place.
        answer: Makes the JSON body of the result; may raise ServiceError.
    """

    future: asyncio.Future[JobResult]
    answer: Callable[[JobResult], bytes]


HotRoute = Callable[[bytes, float], Pending]
"""Takes a body and the time until its deadline; may raise ServiceError."""
