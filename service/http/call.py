"""What the desk hands to a hot route, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from service.http.reading.bodies import Parsed
from service.scheduling.jobs import Job, JobResult, Outcome


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


class HotRoute(NamedTuple):
    """What serves a hot path.

    Attributes:
        read: Reads a short body; may raise ServiceError.
        read_in_slices: Reads a long one, a millisecond from one `yield` to the next.
        submit: Queues the job of what was read, by the time that took, the time until the
            request's deadline, and who gets the outcome; may raise ServiceError.
    """

    read: Callable[[bytes], Parsed]
    read_in_slices: Callable[[bytes], Generator[None, None, Parsed]]
    submit: Callable[[Parsed, float, float, Callable[[Outcome], None]], Pending]
