"""Who is at the other end of a connection, for log lines and spans."""

from __future__ import annotations

import ipaddress
import os
from typing import Self

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.interface import Headers

_LOOPBACK = "127.0.0.1,::1"
"""Proxies that are trusted unless FORWARDED_ALLOW_IPS names others, as with uvicorn."""

Address = tuple[str, int] | None
"""Host and port of a connection's other end; None if it has none, as a Unix socket."""


class Peers:
    """Names peers: by the connection's address, or as a trusted proxy says.

    Args:
        proxies: Addresses and networks of proxies whose `X-Forwarded-For` is believed, with commas
            between them; `*` for all. As uvicorn reads them.
    """

    def __init__(self, proxies: str = _LOOPBACK) -> None:
        self._trusted = ProxyHeadersMiddleware(_no_app, proxies).trusted_hosts

    @classmethod
    def of_environment(cls) -> Self:
        """Return those that trust the proxies of FORWARDED_ALLOW_IPS, which uvicorn defines."""
        return cls(os.environ.get("FORWARDED_ALLOW_IPS", _LOOPBACK))

    def name(self, address: Address, headers: Headers) -> str | None:
        """Return the address of whoever asks, without a port; None if it has none.

        Args:
            address: Of the connection's other end.
            headers: Of the request.
        """
        if address is None:
            return None
        host = address[0]
        forwarded = headers.get(b"x-forwarded-for")
        if forwarded is not None and host in self._trusted:
            named, _ = self._trusted.get_trusted_client_address(forwarded.decode("latin-1"))
            if _is_address(named):  # what a stranger wrote there is not repeated
                return named
        return host


async def _no_app(scope: object, receive: object, send: object) -> None:
    """Stand for the app that uvicorn's reading of proxies' headers is usually put around."""


def _is_address(text: str) -> bool:
    if "%" in text:  # a zone, which means something on its own machine alone, may be any text
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
