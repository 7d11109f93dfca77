"""How Prometheus finds the metrics of every replica.

A request that passes the proxy reaches any replica, so counters read there would jump. Therefore
each replica answers `/metrics` on a port of its own, and Prometheus asks the proxy for the list of
them (`http_sd_configs`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

log = structlog.get_logger()

_REPORT_EVERY_S = 5.0
_FORGOTTEN_AFTER_S = 3 * _REPORT_EVERY_S
"""Nobody takes leave, as who is killed cannot; one report may be lost."""

UNANSWERED = (RayError, RayServeException)
"""What a call of another deployment may raise in place of its answer."""


class Targets:
    """A deployment of its own: the addresses that replicas have reported lately.

    Its state is made anew by their reports, wherever Ray starts it again.

    Args:
        clock: Present time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen_s: dict[str, float] = {}

    def report(self, address: str) -> None:
        """Note that a replica's metrics can be read.

        Args:
            address: Host and port.
        """
        self._seen_s[address] = self._clock()

    def groups(self) -> list[dict[str, list[str]]]:
        """Return what Prometheus reads: groups of targets."""
        least_s = self._clock() - _FORGOTTEN_AFTER_S
        self._seen_s = {name: seen_s for name, seen_s in self._seen_s.items() if seen_s > least_s}
        return [{"targets": sorted(self._seen_s)}] if self._seen_s else []


async def keep_reporting(targets: Any, address: str) -> None:
    """Report an address again and again, until cancelled; what fails is tried the next time.

    Args:
        targets: Ray's handle of `Targets`.
        address: Host and port.
    """
    while True:
        try:
            await asyncio.wait_for(targets.report.remote(address), _REPORT_EVERY_S)
        except (*UNANSWERED, TimeoutError) as exc:
            log.warning("metrics not announced", error=type(exc).__name__)
        await asyncio.sleep(_REPORT_EVERY_S)
