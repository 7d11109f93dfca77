"""One replica: the app of `world-model serve`, with requests, resources and an end by Ray."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

import orjson
import ray
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import create_app
from service.errors import NotFoundError, UnavailableError
from service.http.peers import Peers
from service.ray.load import Load
from service.ray.targets import UNANSWERED, keep_reporting
from service.server import Server, loaded_engine, quiet_collector, tracing_of
from service.settings import Settings
from service.telemetry.logs import configure_logging
from service.telemetry.metrics import Registry
from service.telemetry.start_report import log_start

METRICS_PATH = "/metrics"
TARGETS_PATH = "/metrics/targets"
"""Where Prometheus asks for the replicas' addresses."""

_NOWHERE = "/-"
"""A path that there is not."""

_TIMEOUT = b"x-request-timeout-seconds"
_REQUEST_ID = b"x-request-id"
_HEAD_START = 0.1
_HEAD_START_S = (0.002, 0.1)


class WorldModel:
    """A replica of the service; Ray calls all methods on one event loop.

    Args:
        targets: Ray's handle of the deployment `Targets`.

    Raises:
        StartupError: The checkpoint or the device cannot be used, or what tracing needs is missing.
        ValidationError: A setting is refused.
    """

    def __init__(self, targets: Any) -> None:
        self._ends = contextlib.ExitStack()
        settings = Settings()
        configure_logging(settings.log_format, settings.log_level, settings.secrets())
        tracing = self._ends.enter_context(tracing_of(settings))
        engine = loaded_engine(settings)
        engine.start()
        self._ends.callback(engine.close)
        app = create_app(settings, engine, Registry(), tracing, Peers.of_environment())
        self._app = app
        self._targets = targets
        self._load = Load(app)
        listener = socket.create_server((ray.util.get_node_ip_address(), 0))
        host, port = listener.getsockname()[:2]
        address = f"{host}:{port}"
        quiet_collector()
        for task in (
            self._load.watch(),
            serve_metrics(app, listener),
            keep_reporting(targets, address),
        ):
            self._ends.callback(asyncio.get_running_loop().create_task(task).cancel)
        log_start(settings.checkpoint, address, engine.describe(), engine.load_s)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return what Ray sends requests to; it asks for it by this name, and runs its lifespan."""
        return behind_proxy(self._app, self._targets.groups.remote)

    async def check_health(self) -> None:
        """Tell Ray whether to keep this replica: what is not ready several times is replaced.

        Raises:
            UnavailableError: `/readyz` says no; the message is its reason.
        """
        _, reason = self._app.health.status
        if reason is not None:
            raise UnavailableError(reason)

    def record_routing_stats(self) -> dict[str, float]:
        """Tell Ray's proxies how long requests would wait here."""
        return self._load.waits()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tell Ray's controller how loaded this replica is."""
        return self._load.sample()

    def __del__(self) -> None:
        """Close the engine; Ray has waited for accepted requests, and ended the lifespan."""
        self._ends.close()


def behind_proxy(app: ASGIApp, groups: Callable[[], Any]) -> ASGIApp:
    """Return an app that answers through Ray's proxy what it would answer alone.

    Args:
        app: The service.
        groups: Asks for the groups of targets, see `Targets.groups`; awaitable.
    """

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
        elif scope["path"] == TARGETS_PATH:
            await _answer_groups(groups, send)
        elif scope["path"] == METRICS_PATH:
            error = NotFoundError(
                f"{METRICS_PATH} is answered by each replica on its own port, see {TARGETS_PATH}"
            )
            await _answer(send, error.status, error.body())
        else:
            headers = [_shortened(name, value) for name, value in scope["headers"]]
            await app({**scope, "headers": headers}, receive, _without_request_id(send))

    return serve


async def serve_metrics(app: ASGIApp, listener: socket.socket) -> None:
    """Answer an app's `/metrics`, and nothing else, on a port of its own, until cancelled."""

    async def metrics_only(scope: Scope, receive: Receive, send: Send) -> None:
        is_metrics = scope["path"] == METRICS_PATH
        await app(scope if is_metrics else {**scope, "path": _NOWHERE}, receive, send)

    config = uvicorn.Config(
        metrics_only, lifespan="off", log_config=None, access_log=False, server_header=False
    )
    await Server(config, lambda: None).serve(sockets=[listener])


async def _answer_groups(groups: Callable[[], Any], send: Send) -> None:
    try:
        await _answer(send, 200, await groups())
    except UNANSWERED:  # Prometheus keeps the list that it had
        error = UnavailableError("the list of replicas is not there at present")
        await _answer(send, error.status, error.body())


async def _answer(send: Send, status: int, content: Any) -> None:
    body = orjson.dumps(content)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _shortened(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return a header; a deadline a little earlier than its caller's.

    Ray's proxy reads the same header, and at that time answers 408 in words of its own. So the
    service's answer, 504, must have come before.
    """
    if name != _TIMEOUT:
        return name, value
    try:
        timeout_s = float(value)
    except ValueError:
        return name, value  # the service refuses it
    least_s, most_s = _HEAD_START_S
    head_start_s = min(max(_HEAD_START * timeout_s, least_s), most_s)
    if not head_start_s < timeout_s:
        return name, value
    return name, f"{timeout_s - head_start_s:.6f}".encode()


def _without_request_id(send: Send) -> Send:
    """Return a `send` that leaves the request's id to Ray's proxy, which adds it to each answer."""

    async def send_without(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [field for field in message["headers"] if field[0] != _REQUEST_ID]
            message = {**message, "headers": headers}
        await send(message)

    return send_without
