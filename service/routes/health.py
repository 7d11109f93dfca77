"""/healthz, /readyz and /metrics: for probes and Prometheus, open even if keys are configured."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response

from service.errors import UnavailableError
from service.metrics import CONTENT_TYPE, Metrics
from service.routes.readiness import Readiness
from service.schemas import ErrorAnswer

PATHS = ("/healthz", "/readyz", "/metrics")


def health_router(readiness: Readiness, metrics: Metrics) -> APIRouter:
    """Return the routes.

    Args:
        readiness: Says whether requests should be sent here.
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
        if reason := readiness.problem():
            raise UnavailableError(reason)
        return {"status": "ready"}

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def prometheus() -> Response:
        # Device queries may take milliseconds: not on the loop's thread.
        text = await asyncio.to_thread(metrics.render)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    return router
