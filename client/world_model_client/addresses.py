"""What a client is made with, checked when it is made: the service's address and its key."""

from __future__ import annotations

import re
import reprlib
import sys
from typing import Any

import httpx

from world_model_client.errors import InvalidInputError

_ALLOWED = (
    "(allowed: http://HOST:PORT or https://HOST:PORT, with a path if the service lies below one)"
)
_CALLS = frozenset({b"predict", b"rollout", b"safety-check", b"readyz"})
"""Ends of addresses that were copied with the call; /model may be where a proxy has the service."""
_LONGEST_SHOWN = 80
_WHOLE = reprlib.Repr()
_WHOLE.maxstring = _WHOLE.maxother = sys.maxsize
_PASSWORD_SIGN = re.compile("@|%40|\N{FULLWIDTH COMMERCIAL AT}|\N{SMALL COMMERCIAL AT}")
_BEFORE_NAMES = re.compile(r"b?['\"]?(?:(?:[a-z][a-z0-9+.-]{0,10}:)?//)?", re.IGNORECASE)


def address(base_url: Any) -> httpx.URL:
    """Return where the service listens, without slashes at its end.

    Raises:
        InvalidInputError: It has no scheme of HTTP, no host, or is no address at all.
    """
    if not isinstance(base_url, str | httpx.URL):
        raise _refused(base_url, ", which is no text")
    try:
        url = httpx.URL(base_url)
        url.host.encode("idna")  # what the resolver does, and no URL parser
    except (httpx.InvalidURL, UnicodeError) as exc:
        if _PASSWORD_SIGN.search(_WHOLE.repr(base_url)):
            # Nor the parser's words, here and as the cause: it takes a password's part for a port.
            raise _refused(base_url, ", which is no address") from None
        raise _refused(base_url, f", which is no address: {exc}") from exc
    is_whole = (
        url.scheme in ("http", "https")
        and url.host
        and (url.port is None or 0 < url.port < 1 << 16)
    )
    if not is_whole:
        raise _refused(base_url)
    if " " in str(base_url):
        raise _refused(base_url, ", which has a blank in it")
    if "?" in str(url) or "#" in str(url):
        raise _refused(base_url, ", which has a query or a fragment")
    path = url.raw_path.rstrip(b"/")
    name = path.rpartition(b"/")[2]
    if name in _CALLS:
        raise _refused(base_url, f", which ends in the call /{name.decode()}: the client adds it")
    return url.copy_with(raw_path=path or b"/")


def _refused(base_url: Any, reason: str = "") -> InvalidInputError:
    shown = _without_password(base_url)
    return InvalidInputError(f"base_url is {shown}{reason} {_ALLOWED}")


def _without_password(base_url: Any) -> str:
    """Return an address for people: what may be a user's name and password is left out."""
    text = _WHOLE.repr(base_url)
    # A password may hold what ends a host. Cut last: an end that is cut off would hide the sign.
    if signs := list(_PASSWORD_SIGN.finditer(text)):
        before = _BEFORE_NAMES.match(text)
        text = f"{before[0] if before else ''}...@{text[signs[-1].end() :]}"
    if len(text) <= _LONGEST_SHOWN:
        return text
    half = _LONGEST_SHOWN // 2
    return f"{text[:half]}...{text[-half:]}"


def bearer(api_key: Any, url: httpx.URL) -> str:
    """Return the value of the Authorization header.

    Raises:
        InvalidInputError: The key cannot be in a header, or the address has a user's name, which
            takes that header; the message shows neither.
    """
    if not isinstance(api_key, str):
        raise InvalidInputError(
            f"api_key is of type {type(api_key).__name__} (allowed: text of visible ASCII, or None)"
        )
    if not api_key or not all("!" <= x <= "~" for x in api_key):
        raise InvalidInputError(
            "api_key is empty or has characters that a header cannot hold (allowed: visible ASCII; "
            "a key read from a file may end in a line break)"
        )
    if url.userinfo:
        raise InvalidInputError(
            f"base_url is {_without_password(str(url))}, whose user name would be sent in place of "
            "api_key (allowed: one of the two)"
        )
    return f"Bearer {api_key}"


def place_of(base_url: httpx.URL) -> str:
    """Return an address for people: a password in it is not for logs."""
    return str(base_url.copy_with(userinfo=b"")).rstrip("/")
