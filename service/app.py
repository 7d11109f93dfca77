"""The app: parts joined, nothing computed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import structlog
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException

from service import __version__
from service.errors import (
    ForbiddenError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    UnauthorizedError,
)
from service.http.answers import Answers
from service.http.buffers import Intake
from service.http.connections import ConnectionLimits, Connections
from service.http.contract import Contract
from service.http.endpoints import ENDPOINTS, PATHS
from service.http.exchange import Exchanges
from service.http.middleware import Middleware
from service.http.openapi import complete
from service.http.operations import OPEN_PATHS, add_docs, health_router, model_router
from service.http.page import add_page
from service.http.peers import Peers
from service.http.policy import Policy
from service.http.reading.bodies import BodyParser
from service.interface import EngineLike
from service.scheduling.health import Health
from service.scheduling.jobs import Bounds, JobClass
from service.scheduling.scheduler import Scheduler
from service.settings import Settings
from service.telemetry.metrics import Metrics, Registry

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

log = structlog.get_logger()

_INLINE_S = 0.01
"""Slices up to this are computed on the event loop; timers wait for them, input does not."""


class WorldModelApp(FastAPI):
    """The ASGI app, and the handles its server needs.

    Attributes:
        connections: For the server's protocol.
        health: Starts to drain when the server is asked to end.
        scheduler: Holds accepted work, which the server gives up at last.
        metrics: Knows how busy the engine was.
    """

    connections: Connections
    health: Health
    scheduler: Scheduler
    metrics: Metrics
    contract: Contract

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, prediction endpoints included."""
        if self.openapi_schema is None:
            self.openapi_schema = complete(
                super().openapi(), self.contract, self.connections.exchanges.policy
            )
        return self.openapi_schema


_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""Newer versions of the framework make telemetry of their own: a second span a request."""


def create_app(
    settings: Settings,
    engine: EngineLike,
    registry: Registry,
    tracing: Tracing | None = None,
    peers: Peers | None = None,
) -> WorldModelApp:
    """Return the app; its lifespan starts and ends the scheduler.

    Args:
        settings: Limits and switches.
        engine: Started; the caller closes it after the lifespan.
        registry: Receives the metrics; a fresh one each app.
        tracing: Makes spans of requests; the caller closes it after the lifespan.
        peers: Names who asks; None: those that trust a proxy on this machine alone.
    """
    info = engine.describe()
    key_names = settings.key_names()
    predictions = [endpoint.path for endpoint in ENDPOINTS]
    metrics = Metrics(registry, PATHS, predictions, set(key_names.values()))
    scheduler = Scheduler(engine, _bounds(settings), metrics)
    health = scheduler.health
    contract = Contract(info.spec, settings.max_horizon, settings.max_rows, info.members)
    limits = _connection_limits(settings)
    exchanges = Exchanges(
        BodyParser(contract),
        scheduler,
        Answers(info, metrics),
        _policy(settings, key_names),
        metrics,
        Intake(limits.max_buffered_bytes),
        peers or Peers(),
        tracing,
    )
    engine.report_errors_to(metrics.engine_failed)
    metrics.watch_queues(scheduler.queues.depth, scheduler.queues.rows, scheduler.queue_s)
    metrics.watch_ready(lambda: health.is_ready)
    metrics.watch_model(info, lambda: engine.load_s)
    metrics.watch_device(engine.vram, engine.utilization)

    if tracing is not None:
        tracing.model_version = info.version

    app = WorldModelApp(
        title="World Model Service",
        version=__version__,
        description="A learned world model: predictions for planners, verdicts for monitors.",
        docs_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_TELEMETRY,
        lifespan=_lifespan(scheduler),
    )
    app.connections = Connections(exchanges, limits, health)
    app.health, app.scheduler, app.contract = health, scheduler, contract
    app.metrics = metrics
    app.include_router(health_router(health, metrics))
    app.include_router(
        model_router(info, max_horizon=settings.max_horizon, max_rows=settings.max_rows)
    )
    if settings.docs:
        add_docs(app)
        add_page(app)
    app.add_exception_handler(HTTPException, _translate)
    app.add_middleware(Middleware, exchanges=exchanges)
    return app


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        queue_rows={
            JobClass.SAFETY: settings.queue_rows_safety,
            JobClass.PREDICT: settings.queue_rows_predict,
            JobClass.ROLLOUT: settings.queue_rows_rollout,
        },
        preempt_after_s=settings.preempt_after_s,
        inline_s=_INLINE_S,
        max_passes=settings.max_passes,
        canary_interval_s=settings.canary_interval_s,
        readiness_max_age_s=settings.readiness_max_age_s,
    )


def _policy(settings: Settings, key_names: Mapping[str, str]) -> Policy:
    return Policy(
        keys=key_names,
        open_paths=frozenset(OPEN_PATHS),
        max_body_bytes=settings.max_body_bytes,
        default_timeout_s=settings.default_timeout_s,
        max_timeout_s=settings.max_timeout_s,
    )


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        **{field.name: getattr(settings, field.name) for field in fields(ConnectionLimits)}
    )


def _lifespan(scheduler: Scheduler) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await scheduler.start()
        yield
        await scheduler.close()  # the server has waited for what was accepted

    return lifespan


async def _translate(request: Request, exc: Exception) -> Any:
    """Turn the framework's errors into ours; the middleware answers them.

    Raises:
        ServiceError: Always.
    """
    assert isinstance(exc, HTTPException)
    path = request.url.path[:200]
    if exc.status_code == 404:
        raise NotFoundError(f"there is no {path}") from exc
    if exc.status_code == 405:
        allow = (exc.headers or {}).get("Allow", "").replace("GET", "GET, HEAD")
        raise MethodNotAllowedError(f"{path} answers {allow} only", allow=allow) from exc
    other = {401: UnauthorizedError, 403: ForbiddenError}
    raise other.get(exc.status_code, InvalidRequestError)(str(exc.detail)) from exc
