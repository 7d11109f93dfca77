"""From settings to a served port and back: startup, serving, graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import math
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn

from models.backends.backend import NotCompiledError
from models.backends.cpu_levels import usable_library
from models.checkpoint import Checkpoint, load_checkpoint
from models.checkpoint.files import CheckpointError
from service.app import WorldModelApp, create_app
from service.engine import Engine
from service.errors import StartupError
from service.http.middleware import SERVICE_ENDS
from service.http.peers import Peers
from service.http.protocol import Protocol, protocol_for
from service.setting_checks import is_easily_guessed
from service.settings import Settings
from service.telemetry.logs import configure_logging
from service.telemetry.metrics import Registry
from service.telemetry.start_report import log_start

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing

__all__ = ["StartupError", "serve"]

log = structlog.get_logger()

DEVICE_LOST_CODE = 75
"""Exit code if only another process can use the device: a supervisor should start one."""

_DEVICE_LOST = "device lost"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LAST_RESORT_S = 2.0
"""Time for the last answers, which say that the service ends, to be sent and read."""

_CUT_OFF_S = 0.1
"""Time for what works for a connection to notice that it is closed."""

_BACKLOG = 64
"""New connections that are taken in one go, while nobody is answered; more wait in the network."""

_OTHER_FILES = 128
"""What is open besides connections, generously."""


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, or until the device is lost; return the exit code.

    Args:
        settings: All knobs.

    Raises:
        StartupError: The port is taken, the checkpoint or the device cannot be used, or what
            tracing needs is missing.
    """
    configure_logging(settings.log_format, settings.log_level, settings.secrets())
    with (
        contextlib.closing(_listening_socket(settings.host, settings.port)) as listener,
        tracing_of(settings) as tracing,
    ):
        _warn_of_access(settings.keys(), listener)
        _allow_files(settings.max_connections)
        engine = loaded_engine(settings)
        engine.start()
        try:
            app = create_app(settings, engine, Registry(), tracing, Peers.of_environment())
            quiet_collector()
            _run(app, settings, listener, engine)
        finally:
            engine.close()
    if engine.is_lost:
        log.error("stopped", reason=_DEVICE_LOST, exit_code=DEVICE_LOST_CODE)
        return DEVICE_LOST_CODE
    log.info("stopped")
    return 0


def _listening_socket(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded: a taken one should not cost the wait.

    Raises:
        StartupError: It cannot be had.
    """
    listener = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        # Lets a restart take the port while old connections linger; not one that is listened on.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as exc:  # UnicodeError: no name in the DNS can be so long
        if listener is not None:
            listener.close()
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise StartupError(f"cannot listen on {_authority(host, port)}: {reason}.") from exc
    return listener


def _authority(host: str, port: int) -> str:
    """Return host and port as they stand in a URL: an IPv6 address in brackets (RFC 3986)."""
    return f"[{host.replace('%', '%25')}]:{port}" if ":" in host else f"{host}:{port}"


def _warn_of_access(keys: Sequence[str], listener: socket.socket) -> None:
    """Log who is let in, if that may be more than was meant."""
    host = listener.getsockname()[0]
    if not keys and not _is_loopback(host):
        log.warning(
            "open to all who reach the port",
            host=host,
            reason="no API keys are set and the address is not loopback: set "
            "WORLD_MODEL_API_KEYS, unless something else lets only the right ones in",
        )
    count = sum(map(is_easily_guessed, keys))
    if count:
        log.warning("API keys are easily guessed", count=count, reason="they are short")


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _allow_files(connections: int) -> None:
    """Let the process open as many files as it may have connections, as far as the system lets it.

    Args:
        connections: At once.
    """
    needed = connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < needed:
            log.warning(
                "fewer connections than asked for",
                max_connections=connections,
                reason=f"the system allows {hard} open files; raise its limit (ulimit -n)",
            )


@contextlib.contextmanager
def tracing_of(settings: Settings) -> Iterator[Tracing | None]:
    """Yield what makes spans, if wanted, and let it export the last ones.

    Raises:
        StartupError: OpenTelemetry is missing, or refuses its own variables.
    """
    if not settings.tracing:
        yield None
        return
    try:
        from service.telemetry.tracing import exporting

        tracing = exporting()
    except ImportError as exc:
        raise StartupError(
            "WORLD_MODEL_TRACING is on, but OpenTelemetry is not installed: install the extra "
            "`otel` (pip install -e '.[otel]'), or turn tracing off."
        ) from exc
    except ValueError as exc:
        raise StartupError(f"OpenTelemetry refuses a variable OTEL_*: {exc}.") from exc
    with contextlib.closing(tracing):
        yield tracing


def prepared_library(settings: Settings) -> Path:
    """Return the file of the CPU's machine code, which is compiled if it is not there.

    Raises:
        NotCompiledError: There is none, and no compiler or no place to write that is trusted.
    """
    return usable_library(cache_folder(settings))


def cache_folder(settings: Settings) -> Path:
    """Return the folder that machine code is kept in.

    Raises:
        NotCompiledError: It is below a home folder, and this user has none.
    """
    try:
        return settings.cache_dir.expanduser()
    except RuntimeError as exc:
        raise NotCompiledError(
            f"{settings.cache_dir} is below a home folder and none is known for user "
            f"{os.geteuid()}: set HOME, or WORLD_MODEL_CACHE_DIR to another folder"
        ) from exc


def loaded_engine(settings: Settings) -> Engine:
    """Return the engine that these settings ask for, not started.

    Raises:
        StartupError: The checkpoint cannot be loaded, or its spec is not the expected one.
    """
    return Engine(
        loaded_checkpoint(settings),
        device=settings.device,
        threads=settings.threads,
        vram_budget_bytes=settings.vram_budget_bytes,
        library=partial(prepared_library, settings) if settings.compile else None,
    )


def loaded_checkpoint(settings: Settings) -> Checkpoint:
    """Return the checkpoint that these settings ask for.

    Raises:
        StartupError: It cannot be loaded, or its spec is not the expected one.
    """
    try:
        checkpoint = load_checkpoint(settings.checkpoint, members=settings.members)
    except CheckpointError as exc:
        raise StartupError(f"cannot load the checkpoint: {exc}") from exc
    _check_spec(checkpoint, settings)
    return checkpoint


def _check_spec(checkpoint: Checkpoint, settings: Settings) -> None:
    """Check that clients mean by their numbers what the model means.

    Raises:
        StartupError: They do not.
    """
    spec, expected = checkpoint.spec, settings.expect_spec
    # Without its digest, only the dims were asked for.
    if expected is None or expected in (spec.signature, spec.signature.partition("-")[0]):
        return
    raise StartupError(
        f"the checkpoint {settings.checkpoint} has the spec {spec.signature} ({spec.state_dim} "
        f"state and {spec.action_dim} action features, {spec.dt_s:g} s a step), but "
        f"WORLD_MODEL_EXPECT_SPEC is {expected}: serve a checkpoint of that spec, or change the "
        "setting together with all clients."
    )


def quiet_collector() -> None:
    """Leave what was loaded out of garbage collection, and collect the rest less often.

    Walking the modules of torch takes tens of milliseconds, during which nobody is answered.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)


def _run(app: WorldModelApp, settings: Settings, listener: socket.socket, engine: Engine) -> None:
    config = uvicorn.Config(
        app,
        http=protocol_for(app.connections),
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # only the long path would see what it makes of them: see `Peers`
        backlog=_BACKLOG,
        timeout_keep_alive=math.ceil(settings.idle_timeout_s),
    )
    server = Server(config, partial(_log_start, settings, listener, engine))
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(server, app, settings, listener))


async def _serve(
    server: uvicorn.Server, app: WorldModelApp, settings: Settings, listener: socket.socket
) -> None:
    stops: asyncio.Queue[str] = asyncio.Queue()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stops.put_nowait, number.name)
    app.health.on_lost = partial(stops.put_nowait, _DEVICE_LOST)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(_shut_down(server, app, settings, stops, serving))
    await serving
    stopping.cancel()


async def _shut_down(
    server: uvicorn.Server,
    app: WorldModelApp,
    settings: Settings,
    stops: asyncio.Queue[str],
    serving: asyncio.Task[None],
) -> None:
    """Wait for a signal or for the device's loss, then end in this order; nobody else waits for it.

    1. /readyz says so, and each reply closes its connection: load balancers go elsewhere. A
       second signal ends this step, and so does a device that is lost.
    2. No new connection is accepted; requests that have come are answered, but attributions that
       still wait for their turn are refused.
    3. What was not answered in time is answered 503.
    4. Whoever does not send or read even now is cut off.

    uvicorn, which listens and waits for its connections, ends the app's lifespan at last.
    """
    received = await stops.get()
    log.info("stopping", reason=received, drain_delay_s=settings.drain_delay_s)
    _start_draining(server, app)
    if received != _DEVICE_LOST:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stops.get(), settings.drain_delay_s)
    server.should_exit = True
    app.scheduler.end_explanations()
    await asyncio.wait([serving], timeout=settings.shutdown_timeout_s)
    app.scheduler.give_up()
    await asyncio.wait([serving], timeout=_LAST_RESORT_S)
    await _cut_off(server)


def _start_draining(server: uvicorn.Server, app: WorldModelApp) -> None:
    """Be not ready, and have every reply from now on close its connection.

    So no connection is closed before a request that may be on its way.
    """
    app.health.start_draining()
    for connection in server.server_state.connections:
        if isinstance(connection, Protocol):
            connection.stop_keeping()


async def _cut_off(server: uvicorn.Server) -> None:
    """Close all connections; what works for them ends by that, or is cancelled."""
    for connection in list(server.server_state.connections):
        log.warning("connection cut", reason=SERVICE_ENDS)
        connection.transport.abort()
    tasks = list(server.server_state.tasks)
    if tasks:
        await asyncio.wait(tasks, timeout=_CUT_OFF_S)
    for task in tasks:
        task.cancel(SERVICE_ENDS)


class Server(uvicorn.Server):
    """uvicorn that reports when it listens, leaves signals to us, and loses no request at its end.

    Its own signal handling ends the process by the signal it caught, not with exit code 0.
    """

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more, and finish what has been begun.

        The kernel resets connections that nobody has accepted when their port is closed; so those
        that are there are accepted first.
        """
        accepted = []
        for listener in sockets or []:
            with contextlib.suppress(OSError):  # none is left
                while True:
                    accepted.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        loop = asyncio.get_running_loop()
        for connection in accepted:
            await loop.connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        protocol: Any = self.config.http_protocol_class
        made: asyncio.Protocol = protocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _log_start(settings: Settings, listener: socket.socket, engine: Engine) -> None:
    host, port = listener.getsockname()[:2]
    log_start(settings.checkpoint, _authority(host, port), engine.describe(), engine.load_s)
