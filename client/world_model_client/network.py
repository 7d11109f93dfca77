"""httpx's transport over sockets whose waits together end in time, for the blocking client.

The timeouts of httpx are for each read and each write: a server that sends a byte now and then is
waited for without end. Here all waits of a request end at one moment. The asyncio client has
`asyncio.timeout` for that.
"""

from __future__ import annotations

import socket
import ssl
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.util import find_spec
from time import monotonic
from typing import Any

import httpcore
import httpx

from world_model_client.errors import InvalidInputError
from world_model_client.exchange import Remaining

LIMITS = httpx.Limits(
    # More threads than this wait for each other: a process may often open 1,024 files only.
    max_connections=200,
    # As many: else a thread closes a surplus connection that another is about to use.
    max_keepalive_connections=200,
    # Servers and proxies of the common kind close idle connections after 5 s (uvicorn, Node) or
    # later; a request must not meet that.
    keepalive_expiry=3.0,
)
_PART_BYTES = 2**16
"""Written at once: a longer part is many writes to httpcore, each of which may wait anew."""
_ERRORS = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)


class DeadlineTransport(httpx.BaseTransport):
    """Sends requests whose timeouts are `Remaining`.

    Args:
        base_url: Of all requests; it decides on the proxy, which the environment may name.
        context: For https.
        limits: Of the connections.

    Raises:
        InvalidInputError: The environment names a proxy that cannot be used.
    """

    def __init__(self, base_url: httpx.URL, context: ssl.SSLContext, limits: httpx.Limits) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            proxy=_core_proxy(base_url),
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return the head of its answer, with the body to be read.

        Raises:
            httpx.TransportError: No answer came, or not in time.
        """
        assert isinstance(request.stream, httpx.SyncByteStream)
        sent = httpcore.Request(
            request.method,
            _core_url(request.url),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            answer = self._pool.handle_request(sent)
        except _ERRORS as exc:
            raise _translated(exc) from exc
        assert isinstance(answer.stream, Iterable)
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(answer.stream),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._parts
        except _ERRORS as exc:
            raise _translated(exc) from exc

    def close(self) -> None:
        if hasattr(self._parts, "close"):
            self._parts.close()


class _Backend(httpcore.SyncBackend):
    """Opens connections of httpcore's own kind, whose waits end in time."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address of a host that answers, within one time for all of them.

        The resolver has timeouts of its own.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as exc:
            raise httpcore.ConnectError(str(exc)) from exc
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        while True:
            address = addresses.pop(0)
            left_s = _left_s(timeout, httpcore.ConnectTimeout)
            if left_s is not None:
                left_s /= 1 + len(addresses)
            try:
                return _Stream(
                    super().connect_tcp(address, port, left_s, local_address, socket_options)
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not addresses:
                    raise


class _Stream(httpcore.NetworkStream):
    """A connection of httpcore, each wait on which takes what is left of the time."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left_s(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if len(buffer) <= _PART_BYTES:
            self._stream.write(buffer, _left_s(timeout, httpcore.WriteTimeout))
            return
        for start in range(0, len(buffer), _PART_BYTES):
            part = buffer[start : start + _PART_BYTES]
            self._stream.write(part, _left_s(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        # Closing alone wakes no thread that waits for an answer: it would until its deadline.
        # Not the method of the socket's class, which, with TLS, takes away what a thread reads by.
        with suppress(OSError):
            socket.socket.shutdown(self.get_extra_info("socket"), socket.SHUT_RDWR)
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left_s = _left_s(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left_s))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left_s(timeout: float | None, error: type[httpcore.TimeoutException]) -> float | None:
    """Return how long a wait may still take.

    Raises:
        httpcore.TimeoutException: Of the given kind; there is no time left.
    """
    if not isinstance(timeout, Remaining):
        return timeout
    left_s = timeout.ends - monotonic()
    if left_s <= 0:
        raise error("timed out")
    return min(left_s, float(timeout))


def _translated(error: Exception) -> httpx.TransportError:
    """Return httpx's error of the same name: its tree repeats httpcore's."""
    kind: type[httpx.TransportError] = getattr(httpx, type(error).__name__)
    return kind(str(error))


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )


def no_cookies() -> CookieJar:
    """Return a jar that takes no cookies: each request stands alone.

    Some that a server may set could not be sent again, and would end the next call.
    """
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def certificates() -> ssl.SSLContext:
    """Return what https is checked by: certifi's certificates, or the environment's.

    Raises:
        InvalidInputError: The environment names some that cannot be read.
    """
    try:
        return httpx.create_ssl_context()
    except OSError as exc:  # as ssl.SSLError is
        raise InvalidInputError(
            "the certificates that SSL_CERT_FILE or SSL_CERT_DIR name cannot be read (allowed: a "
            f"file, or a folder, of certificates in PEM): {exc}"
        ) from exc


def proxy_for(url: httpx.URL) -> httpx.Proxy | None:
    """Return the proxy that the environment names for an address, None if it names none.

    Raises:
        InvalidInputError: It names one that cannot be used; the message shows no password.
    """
    named = urllib.request.getproxies()
    given = named.get(url.scheme) or named.get("all")
    if not given or urllib.request.proxy_bypass(url.host):
        return None
    try:
        proxy = httpx.Proxy(given if "://" in given else f"http://{given}")
        proxy.url.host.encode("idna")  # what the resolver does
        port = proxy.url.port
        is_whole = bool(proxy.url.host) and (port is None or 0 < port < 1 << 16)
    except (httpx.InvalidURL, ValueError):
        is_whole = False
    if not is_whole:
        # Without the cause, which shows a password.
        raise InvalidInputError(
            f"the proxy that the environment names for {url.scheme} has no address of one "
            "(allowed: http, https or socks5, and host and port)"
        )
    if proxy.url.scheme.startswith("socks") and find_spec("socksio") is None:
        raise InvalidInputError(
            f"the proxy that the environment names for {url.scheme} is one of "
            f"{proxy.url.scheme}, which needs the package socksio (pip install 'httpx[socks]')"
        )
    return proxy


def _core_proxy(url: httpx.URL) -> httpcore.Proxy | None:
    proxy = proxy_for(url)
    if proxy is None:
        return None
    return httpcore.Proxy(
        _core_url(proxy.url),
        auth=proxy.raw_auth,
        headers=proxy.headers.raw,
        ssl_context=proxy.ssl_context,
    )
