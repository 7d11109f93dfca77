"""/healthz, /readyz and /metrics: for probes and Prometheus, open even if keys are configured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response

from service.errors import UnavailableError
from service.http.schemas import ErrorAnswer
from service.scheduling.health import Health
from service.telemetry.metrics import CONTENT_TYPE, Metrics

_REST = 9.0
"""Pause after writing the metrics, in times that it took: a tenth of the time at most."""

PATHS = ("/healthz", "/readyz", "/metrics")


def health_router(health: Health, metrics: Metrics) -> APIRouter:
    """Return the routes.

    Args:
        health: Says whether requests should be sent here.
        metrics: Rendered for Prometheus.
    """
    router = APIRouter(tags=["operations"])

    @router.get("/healthz", summary="Is the process alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @router.get(
        "/readyz",
        summary="Should requests be sent here?",
        responses={503: {"model": ErrorAnswer, "description": "No; the message says why."}},
    )
    async def readyz() -> dict[str, Any]:
        _, reason = health.status
        if reason is not None:
            raise UnavailableError(reason)
        return {"status": "ready"}

    scrape = _Scrape(metrics.render)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(await scrape.text(), headers={"content-type": CONTENT_TYPE})

    return router


class _Scrape:
    """Writes the metrics' text for all who ask at the same time, and never most of the time.

    Writing keeps the interpreter from the event loop; asking needs no key.

    Args:
        render: Writes the text; takes milliseconds, some of them for the device.
    """

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._lock = asyncio.Lock()
        self._next: asyncio.Task[bytes] | None = None
        self._not_before_s = 0.0

    async def text(self) -> bytes:
        """Return a text that is not older than the call."""
        if self._next is None:
            self._next = asyncio.create_task(self._written())
        return await asyncio.shield(self._next)

    async def _written(self) -> bytes:
        loop = asyncio.get_running_loop()
        async with self._lock:
            await asyncio.sleep(self._not_before_s - loop.time())
            self._next = None  # whoever comes from here on gets the one after this
            started = loop.time()
            try:
                return await asyncio.to_thread(self._render)
            finally:
                ended = loop.time()
                self._not_before_s = ended + _REST * (ended - started)
