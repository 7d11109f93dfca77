"""Which replica gets a request: one whose wait is the shortest for requests of its class."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

BEFORE_SAFETY_S = "before_safety_s"
"""What a replica reports: seconds until a safety check that comes now would be computed."""

BEFORE_ALL_S = "before_all_s"
"""What a replica reports: seconds until all that waits would be computed."""

_ALIKE_S = 0.02
"""Waits that differ by less count as equal: reports are some tenths of a second old, and the number
of requests in progress, which the router itself knows, is the better measure then."""

_SAFETY_PATH = b"/safety-check"


class Waits:
    """What replicas have reported, less the time that has passed since.

    Args:
        clock: Present time in seconds.
    """

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._reports: dict[Any, tuple[Mapping[str, float], float]] = {}

    def split(
        self, reports: Mapping[Any, Mapping[str, float]], kind: str
    ) -> tuple[list[Any], list[Any]]:
        """Return the replicas with the shortest waits in random order, and all others.

        Args:
            reports: Last report of each replica that can be chosen; a new one reports nothing.
            kind: Which wait counts, `BEFORE_SAFETY_S` or `BEFORE_ALL_S`.
        """
        now = self._clock()
        known = self._reports
        self._reports = {
            name: known[name] if name in known and known[name][0] == report else (report, now)
            for name, report in reports.items()
        }
        # A replica computes one second of work a second; what came later is seen in its requests.
        left = {
            name: max(0.0, report.get(kind, 0.0) - (now - since))
            for name, (report, since) in self._reports.items()
        }
        bound = min(left.values(), default=0.0) + _ALIKE_S
        near = [name for name in left if left[name] <= bound]
        random.shuffle(near)
        return near, sorted((name for name in left if left[name] > bound), key=left.__getitem__)


class ShortestWait(RequestRouter):  # type: ignore[misc] # Ray is not installed everywhere
    """Ray's router by waits: safety checks go where the fewest seconds are before a safety check.

    Of replicas that wait about equally long, the one with the fewest requests in progress is taken.
    One instance is in each proxy of Ray; it never mixes requests up, as Ray's own may to keep their
    order.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waits = Waits()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return replicas in groups, best group first; Ray takes the one with fewest requests.

        Args:
            candidate_replicas: All there are.
            pending_request: The request to be routed.
        """
        if pending_request is not None:
            # If none can take it, Ray shall pause before it asks again.
            pending_request.routing_context.should_backoff = True
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        reports = {name: replica.routing_stats for name, replica in by_id.items()}
        near, far = self._waits.split(reports, _kind(pending_request))
        return [[by_id[name] for name in near], *([by_id[name]] for name in far)]


def _kind(request: PendingRequest | None) -> str:
    """Return which wait counts for a request.

    A proxy sends the head of a request as bytes, in Ray's own format; the path stands in it as it
    is. Whoever writes it elsewhere, in a header say, is routed like a safety check, and still waits
    in the queue of its class.
    """
    head = request.args[0] if request is not None and request.args else b""
    return BEFORE_SAFETY_S if isinstance(head, bytes) and _SAFETY_PATH in head else BEFORE_ALL_S
