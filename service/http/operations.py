"""What operators and tools ask for: /healthz, /readyz, /metrics, /model and /docs.

/docs is interactive OpenAPI, from files of our own: a service may run where no CDN is reached. The
page, its files and the document name each other by relative URLs: they work behind a proxy that
strips a prefix from the path. They need no key; the page has a field for the key of its calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from starlette.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles

from models.conformal import Guarantee
from models.spec import Feature
from service import __version__
from service.errors import UnavailableError
from service.http.endpoints import PROBES
from service.http.page import PAGE_PATHS
from service.http.schemas import ErrorAnswer
from service.interface import ModelInfo
from service.scheduling.health import Health
from service.telemetry.metrics import CONTENT_TYPE, Metrics

_REST = 9.0
"""Pause after writing the metrics, in times that it took: a tenth of the time at most."""

_ASSETS_PATH = "/docs/assets"
_SCRIPT_PATH = f"{_ASSETS_PATH}/docs.js"
OPEN_PATHS = (
    *PROBES,
    *PAGE_PATHS,
    "/docs",
    "/openapi.json",
    _SCRIPT_PATH,
    *(
        f"{_ASSETS_PATH}/{name}"
        for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
    ),
)
"""Need no key: probes, and what a browser fetches before anybody could enter one."""


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

    scrape = _Scrape(metrics.sample, metrics.render)

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response)
    async def prometheus() -> Response:
        return Response(await scrape.text(), headers={"content-type": CONTENT_TYPE})

    return router


class _Scrape:
    """Writes the metrics' text for all who ask at the same time, and never most of the time.

    Writing keeps the interpreter from the event loop; asking needs no key.

    Args:
        sample: Reads what belongs to the event loop, and is called there just before `render`.
        render: Writes the text, on a thread; takes milliseconds, some of them for the device.
    """

    def __init__(self, sample: Callable[[], None], render: Callable[[], bytes]) -> None:
        self._sample = sample
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
                self._sample()
                return await asyncio.to_thread(self._render)
            finally:
                ended = loop.time()
                self._not_before_s = ended + _REST * (ended - started)


def model_router(info: ModelInfo, *, max_horizon: int, max_rows: int) -> APIRouter:
    """Return the route.

    Args:
        info: The loaded model.
        max_horizon: Most steps of a sequence.
        max_rows: Most sequences of a request.
    """
    router = APIRouter(tags=["model"])
    description = _described(info, max_horizon, max_rows)

    @router.get(
        "/model",
        summary="What is served?",
        description="`thresholds` are what verdicts are judged by: `unsafe` from a probability of "
        "`crash_probability` on; `safe` only below `safe_below`, if it is not null; `unknown` "
        "between them.",
    )
    async def model() -> dict[str, Any]:
        return description

    return router


def _described(info: ModelInfo, max_horizon: int, max_rows: int) -> dict[str, Any]:
    limits = info.limits
    low, high = _bounds(limits.state_low), _bounds(limits.state_high)
    state = [
        {**feature, "trained_low": low[i], "trained_high": high[i]}
        for i, feature in enumerate(_features(info.spec.state))
    ]
    return {
        "name": info.name,
        "version": info.version,
        "service_version": __version__,
        "device": info.device,
        "answer_digest": info.answer_digest,
        "members": info.members,
        "spec": info.spec.signature,
        "dims": {"state": info.spec.state_dim, "action": info.spec.action_dim},
        "dt_s": info.spec.dt_s,
        "frame": info.spec.frame,
        "conventions": {x.about: x.text for x in info.spec.conventions},
        "example": asdict(info.spec.example) if info.spec.example else None,
        "saturations": [
            {**asdict(x), "unit": info.spec.state[info.spec.state_index(x.feature)].unit}
            for x in info.spec.saturations
        ],
        "road_users": [asdict(x) for x in info.spec.road_users],
        "max_horizon": max_horizon,
        "max_rows": max_rows,
        "features": {"state": state, "action": _features(info.spec.action)},
        "thresholds": {
            "crash_probability": limits.crash_threshold,
            "safe_below": limits.safe_below,
            "uncertainty": limits.uncertainty_limit,
            "expected_error_m": limits.error_limit_m,
            "evaluated_horizon": limits.horizon,
            "guarantee": _guarantee(info.guarantee, limits.crash_threshold),
        },
        "metrics": dict(info.metrics),
    }


def _guarantee(guarantee: Guarantee | None, threshold: float | None) -> dict[str, Any] | None:
    if guarantee is None:
        return None
    return {
        "miss_rate": guarantee.alpha,
        "lead_s": guarantee.lead_s,
        "episodes": guarantee.episodes,
        "episodes_needed": guarantee.episodes_needed,
        "holds": guarantee.holds_for(threshold),
    }


def _features(features: Sequence[Feature]) -> list[dict[str, Any]]:
    return [asdict(feature) for feature in features]


def _bounds(values: Any) -> list[float | None]:
    """Return finite bounds as numbers, missing ones as None."""
    return [float(x) if abs(x) != float("inf") else None for x in values]


def add_docs(app: FastAPI) -> None:
    """Add the page and its assets; the app must have an OpenAPI document."""
    static = files("service.http") / "static"
    page = (static / "docs.html").read_text()

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get(_SCRIPT_PATH, include_in_schema=False)
    async def script() -> FileResponse:
        return FileResponse(str(static / "docs.js"), media_type="text/javascript")

    # fastapi_offline carries Swagger UI; only its files are used.
    app.mount(_ASSETS_PATH, StaticFiles(directory=str(files("fastapi_offline") / "static")))
