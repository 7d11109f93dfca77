"""What the desk hands to a hot route, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from service.jobs import Job, JobResult, Outcome


class Pending(NamedTuple):
    """A request whose job is queued.

    Attributes:
        job: What is queued.
        cancel: Frees the job's place; its outcome is None then, unless it had one already.
        answer: Makes the JSON body of the job's result; may raise ServiceError.
    """

    job: Job
    cancel: Callable[[], None]
    answer: Callable[[JobResult], bytes]


HotRoute = Callable[[bytes, float, Callable[[Outcome], None]], Pending]
"""Takes a body, the time until its deadline, and who gets the outcome; may raise ServiceError."""
