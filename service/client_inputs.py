"""What a caller gives the client, checked before anything is sent.

JSON has no NaN: written as null, it would reach the service as something that nobody gave. So what
is no finite number is refused here, by name.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike

from service.errors import InvalidInputError

_KINDS = {"b": "booleans", "c": "complex numbers", "U": "text", "S": "bytes", "M": "dates"}
"""What arrays of other types hold, by the type's kind."""
_FOREIGN_ERRORS = (TypeError, ValueError, RuntimeError, OverflowError)
"""What arrays of other libraries raise if they cannot be read as numbers."""


@dataclass(frozen=True)
class Call:
    """One call of the service, as the caller gave it.

    Attributes:
        path: Of the endpoint.
        arrays: Values by field, and how many dimensions they may have.
        threshold: Crash probability to judge by.
        names: Lists of names by field; None: not sent.
        timeout_s: Deadline of the call; None: the service's own.
    """

    path: str
    arrays: Mapping[str, tuple[ArrayLike, tuple[int, int]]] = field(default_factory=dict)
    threshold: float | None = None
    names: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    timeout_s: float | None = None

    def body(self) -> bytes | None:
        """Return the JSON; None if there is nothing to send.

        Raises:
            InvalidInputError: A field cannot be sent; the message names it.
        """
        if not self.arrays:
            return None
        fields = {name: _numbers(name, *given) for name, given in self.arrays.items()}
        if self.threshold is not None:
            fields["threshold"] = number("threshold", self.threshold)
        fields.update(
            (n, _listed(n, given)) for n, given in self.names.items() if given is not None
        )
        try:
            return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as exc:
            raise InvalidInputError(f"the request cannot be written as JSON: {exc}") from exc


def number(name: str, value: Any) -> float:
    """Return a finite number.

    Raises:
        InvalidInputError: It is none.
    """
    try:
        is_number = not isinstance(value, bool | np.bool_ | str | bytes) and np.ndim(value) == 0
        result = float(value) if is_number else math.nan
    except _FOREIGN_ERRORS as exc:
        raise InvalidInputError(f"{name} is {reprlib.repr(value)}, not a number") from exc
    if not math.isfinite(result):
        raise InvalidInputError(f"{name} is {reprlib.repr(value)} (allowed: a finite number)")
    return result


def seconds(name: str, value: Any) -> float:
    """Return a positive, finite time.

    Raises:
        InvalidInputError: It is none.
    """
    result = number(name, value)
    if result <= 0:
        raise InvalidInputError(f"{name} is {result:g} (allowed: a positive number of seconds)")
    return result


def address(base_url: Any) -> httpx.URL:
    """Return where the service listens.

    Raises:
        InvalidInputError: It has no scheme of HTTP, no host, or is no address at all.
    """
    shown = re.sub(r"[^/'\"]*@", "...@", reprlib.repr(base_url))  # no password
    try:
        url = httpx.URL(base_url)
        url.host.encode("idna")  # what the resolver does, and no URL parser
    except (httpx.InvalidURL, TypeError, UnicodeError) as exc:
        raise InvalidInputError(f"base_url is {shown}, which is no address: {exc}") from exc
    is_whole = (
        url.scheme in ("http", "https")
        and url.host
        and (url.port is None or 0 < url.port < 1 << 16)
    )
    if not is_whole or url.query or url.fragment:
        raise InvalidInputError(
            f"base_url is {shown} (allowed: http://HOST:PORT or https://HOST:PORT, with a path if "
            "the service lies below one)"
        )
    return url


def bearer(api_key: Any) -> str:
    """Return the value of the Authorization header.

    Raises:
        InvalidInputError: The key cannot be in a header; the message does not show it.
    """
    if not (isinstance(api_key, str) and api_key and all("!" <= x <= "~" for x in api_key)):
        raise InvalidInputError(
            "api_key is empty or has characters that a header cannot hold (allowed: visible ASCII; "
            "a key read from a file may end in a line break)"
        )
    return f"Bearer {api_key}"


def _numbers(name: str, values: Any, dims: tuple[int, int]) -> Any:
    """Return an array that JSON keeps bit for bit: float32 stays float32."""
    if np.ma.is_masked(values):
        raise InvalidInputError(f"{name} has masked values (allowed: finite numbers)")
    array = _array(name, values)
    if array.ndim not in dims:
        allowed = " or ".join(str(x) for x in sorted(set(dims)))
        raise InvalidInputError(f"{name} has {array.ndim} dimensions (allowed: {allowed})")
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(array if array.dtype == np.float32 else array.astype(np.float32))
    if not is_finite.all():
        place = tuple(np.argwhere(~is_finite)[0])
        raise InvalidInputError(
            f"{name}{_index(place)} is {array[place]:g} (allowed: finite as a 32-bit float)"
        )
    return array


def _array(name: str, values: Any) -> np.ndarray[Any, Any]:
    """Return values as float32 or float64, in the layout that JSON is written from."""
    try:
        array = np.asarray(values)
        if array.dtype == object:  # integers beyond 64 bits, fractions; or no numbers
            for place, x in np.ndenumerate(array):
                if not isinstance(x, Real):
                    raise InvalidInputError(
                        f"{name}{_index(place)} is {reprlib.repr(x)}, not a number"
                    )
        elif array.dtype.kind not in "iuf":
            found = _KINDS.get(array.dtype.kind, f"values of type {array.dtype}")
            raise InvalidInputError(f"{name} is not an array of numbers: it holds {found}")
        kind = np.float32 if array.dtype == np.float32 else np.float64
        return np.asarray(array, dtype=kind, order="C")
    except InvalidInputError:
        raise
    except _FOREIGN_ERRORS as exc:
        reason = str(exc).partition("\n")[0]
        raise InvalidInputError(f"{name} is not an array of numbers: {reason}") from exc


def _index(place: tuple[int, ...]) -> str:
    return "".join(f"[{i}]" for i in place)


def _listed(name: str, values: Any) -> list[str]:
    is_list = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    names = list(values) if is_list else []
    if not is_list or not all(isinstance(x, str) for x in names):
        raise InvalidInputError(f"{name} is {reprlib.repr(values)} (allowed: a list of names)")
    return names
