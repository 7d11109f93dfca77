"""Answered requests, counted once each and shown as two metrics.

One answers what callers got, by HTTP's statuses; the other what came of their requests for the
service, and who they are. A second count for each request would cost time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from service.telemetry.series import Counts

OTHER = "other"
"""Label of paths that no route has: a scanner must not create series."""

ATTRIBUTION = "attribution"
"""Label of safety checks that ask for an attribution: they take long by design, and may be refused
where many ask, which tells nothing of the checks that monitors wait for."""

NO_KEY, UNKNOWN_KEY = "none", "unknown"
"""Labels in place of a key's name, for a request that needs none and one that has no known one."""

IMPOSSIBLE = "impossible_deadline"
OUTCOMES = ("answered", "refused", "rejected", "late", IMPOSSIBLE, "failed", "left")
_OUTCOME = {
    429: "rejected",
    499: "left",
    504: "late",
    **dict.fromkeys(range(100, 400), "answered"),
    **dict.fromkeys({*range(400, 499)} - {429}, "refused"),
}


class Requests:
    """Counts requests.

    Args:
        known: Endpoints and statuses whose series are there from the start.
        predictions: Endpoints that outcomes are told apart by; all else is `OTHER`.
        keys: All names that keys can have.

    Attributes:
        counts: By endpoint, status, key, and whether its caller's deadline was impossible. Changed
            on the event loop's thread.
    """

    def __init__(
        self, known: Sequence[tuple[str, str]], predictions: Iterable[str], keys: Iterable[str]
    ) -> None:
        self.counts = Counter[tuple[str, int, str, bool]]()
        self._by_status = Counts(
            "world_model_requests",
            "Answered HTTP requests by route and status; 499 if the caller left.",
            ("endpoint", "code"),
            known,
        )
        self._predictions = {*predictions, OTHER}
        self._by_outcome = Counts(
            "world_model_outcomes",
            "What came of requests, and of whose: by the name of the caller's key.",
            ("endpoint", "key", "outcome"),
            [(x, key, y) for x in sorted(self._predictions) for key in keys for y in OUTCOMES],
        )

    def lines(self) -> list[str]:
        """Return the present counts of both metrics; any thread."""
        statuses, outcomes = self._by_status.counts.copy(), self._by_outcome.counts.copy()
        # One copy, so that both metrics tell of the same requests.
        for (endpoint, status, key, is_impossible), count in dict(self.counts).items():
            statuses[endpoint, str(status)] += count
            known = endpoint if endpoint in self._predictions else OTHER
            outcome = IMPOSSIBLE if is_impossible else _OUTCOME.get(status, "failed")
            outcomes[known, key, outcome] += count
        return self._by_status.lines_of(statuses) + self._by_outcome.lines_of(outcomes)
