"""What settings must be beyond their types: values that parse and mean nothing stop the start.

So does a variable that is no setting: `WORLD_MODEL_API_KEY`, without its S, would leave the service
open to all. Messages hold no value: it may have been meant to be a secret.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

_KEY = re.compile(r"[\x21-\x7e]+")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,31}")
"""Of a key, as it is shown in logs and metrics."""
_TAKEN_NAME = re.compile(r"none|unknown|key-[0-9]+")
"""What requests without a key, with an unknown one, and keys without a name are called."""
_MARKS = re.compile(r"""["'`\[\]{}]""")
"""Of lists and quoted texts: a key with one is more likely a value that was written as code."""
_LONGEST_KEY = 4096
_SHORTEST_GOOD_KEY = 16
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_LINK = re.compile(r"(tcp|udp|sctp)://\S+")
"""What Kubernetes, and Docker's links, put where others expect a port number."""

_PROTOCOL = "(TCP|UDP|SCTP)"
_OF_A_SERVICE = re.compile(
    r"([A-Z0-9_]+_)?"
    rf"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_{_PROTOCOL}(_(PROTO|PORT|ADDR))?)"
)
"""Names behind the prefix that Kubernetes injects into every pod of a namespace, for the Service
that is called as the prefix is, or `world-model-` and more."""


def nearest(name: str, names: Collection[str]) -> str:
    """Return the name that looks most like a given one."""
    return get_close_matches(name, sorted(names), n=1, cutoff=0.0)[0]


def check_variables(environment: Mapping[str, str], prefix: str, names: Collection[str]) -> None:
    """Check that each variable with the prefix means something.

    Upper and lower case are the same, as where settings are read.

    Args:
        environment: All variables.
        prefix: In upper case.
        names: Settings, in lower case.

    Raises:
        ValueError: One is no setting, or two spell the same setting.
    """
    seen: dict[str, str] = {}
    for variable in sorted(environment):
        if not variable.lower().startswith(prefix.lower()):
            continue
        name = variable.lower()[len(prefix) :]
        if name in seen:
            raise ValueError(
                f"{seen[name]} and {variable} are the same setting in different spellings: "
                "leave one of them out"
            )
        if name in names:
            seen[name] = variable
        elif not _is_kubernetes(variable[len(prefix) :], environment[variable]):
            raise ValueError(
                f"there is no setting {variable}, and none is passed over: the nearest one is "
                f"{prefix}{nearest(name, names).upper()}"
            )


def _is_kubernetes(name: str, value: str) -> bool:
    if _OF_A_SERVICE.fullmatch(name):
        return True
    return name.endswith("_PORT") and _LINK.fullmatch(value) is not None


def check_port(given: object) -> None:
    """Check that a port is not what Kubernetes injects for a Service called as the prefix is.

    Raises:
        ValueError: It is; the message says what to do.
    """
    if isinstance(given, str) and _LINK.fullmatch(given.strip()):
        raise ValueError(
            "this is no port but what Kubernetes injects for a Service named world-model: set "
            "enableServiceLinks: false in the pod's specification, or name the Service otherwise"
        )


def check_host(host: str) -> None:
    """Check that a host can be one.

    Raises:
        ValueError: It can be neither an address nor a name.
    """
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(
                "must be an IP address or a host name; an IPv6 address has no brackets, and the "
                "port is a setting of its own"
            ) from None
    elif not _HOST_NAME.fullmatch(host):
        raise ValueError("must be an IP address or a host name")


def check_folder(given: object) -> None:
    """Check that a path names a folder; an empty one would be the working directory.

    Raises:
        ValueError: It is empty, or no path.
    """
    if isinstance(given, str) and (not given.strip() or "\0" in given):
        raise ValueError("must name a folder")


def keys_in(text: str) -> tuple[str, ...]:
    """Return the entries of a comma separated text, `KEY` or `NAME:KEY`, each once."""
    keys = (key.strip() for key in text.split(","))
    return tuple(dict.fromkeys(key for key in keys if key))


def names_of(entries: Sequence[str]) -> dict[str, str]:
    """Return the name of each key by the key; a key without a name is called `key-PLACE`.

    Args:
        entries: As `keys_in` returns them and `check_keys` lets them pass.
    """
    names: dict[str, str] = {}
    for place, entry in enumerate(entries, 1):
        name, key = _name_and_key(entry)
        names.setdefault(key, name or f"key-{place}")
    return names


def _name_and_key(entry: str) -> tuple[str | None, str]:
    """Return an entry's two parts; without a colon it has no name."""
    name, colon, key = entry.partition(":")
    return (name, key) if colon else (None, entry)


def check_keys(entries: Sequence[str]) -> None:
    """Check that there is a key, that requests can carry each, and that names are names.

    Args:
        entries: As `keys_in` returns them.

    Raises:
        ValueError: There is none; or one cannot stand in a header, is written as a list or in
            quotes, or has two names; or a name is none. The message shows none of them.
    """
    if not entries:
        raise ValueError("it holds no key; leave it out to serve all who reach the port")
    names: dict[str, str] = {}
    for place, entry in enumerate(entries, 1):
        name, key = _name_and_key(entry)
        if not key:
            raise ValueError(f"key {place} ends with a colon; write NAME:KEY, or the key alone")
        _check_key(place, key)
        if name is not None and (not _NAME.fullmatch(name) or _TAKEN_NAME.fullmatch(name)):
            raise ValueError(
                f"key {place} has a colon, but what stands before it is no name; write NAME:KEY, "
                "the name of at most 32 letters, digits, '.', '_' and '-', a letter first, and "
                "none of 'none', 'unknown' and 'key-' with a number"
            )
        if names.setdefault(key, name or "") != (name or ""):
            raise ValueError(f"key {place} has another name as well; give each key one name")


def _check_key(place: int, key: str) -> None:
    """Check one key.

    Raises:
        ValueError: No request can carry it; the message does not show it.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"key {place} has characters that no request can carry in 'Authorization: Bearer "
            "KEY'; allowed are the visible ones of ASCII, and commas between keys"
        )
    if _MARKS.search(key):
        raise ValueError(
            f"key {place} has a quotation mark, bracket or brace; write keys as they are, "
            "without quotes, and with commas between them, not as a list of JSON"
        )
    if len(key) > _LONGEST_KEY:
        raise ValueError(f"key {place} is longer than {_LONGEST_KEY} characters")


def is_easily_guessed(key: str) -> bool:
    """Return whether a key is too short to keep somebody out who may try many."""
    return len(key) < _SHORTEST_GOOD_KEY
