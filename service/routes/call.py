"""What the desk hands to a hot route, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from service.jobs import Job, JobResult, Outcome


class Parts(NamedTuple):
    """A long answer, made while it is sent.

    Attributes:
        texts: Parts of its JSON text; each takes about a millisecond to make.
        held_bytes: What is kept until the last part is made.
    """

    texts: Iterator[bytes]
    held_bytes: int


class Pending(NamedTuple):
    """A request whose job is queued.

    Attributes:
        job: What is queued.
        cancel: Frees the job's place; its outcome is None then, unless it had one already.
        answer: Makes the JSON body of the job's result; may raise ServiceError.
    """

    job: Job
    cancel: Callable[[], None]
    answer: Callable[[JobResult], bytes | Parts]


HotRoute = Callable[[bytes, float, Callable[[Outcome], None]], Pending]
"""Takes a body, the time until its deadline, and who gets the outcome; may raise ServiceError."""
