"""What a caller gives the client, checked before anything is sent.

JSON has no NaN: written as null, it would reach the service as something that nobody gave. So what
is no finite number is refused here, by name.

A number is what Python and NumPy call a real one (`numbers.Real`: int, float, `Fraction`, NumPy's
scalars), but no bool. `Decimal` is none of them, as it cannot be mixed with floats either: give
`float(x)`. Values are numbers, lists and other sequences of them, and arrays of a numeric type, in
any nesting; an array of Python objects is not such an array, whatever the objects are.
"""

from __future__ import annotations

import math
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from numbers import Real
from typing import Any, TypeVar

import httpx
import numpy as np
import orjson
from numpy.typing import ArrayLike

from world_model_client.errors import InvalidInputError, printable

T = TypeVar("T")

_KINDS = {
    "b": "booleans",
    "c": "complex numbers",
    "U": "text",
    "T": "text",
    "S": "bytes",
    "V": "records",
    "M": "dates",
    "m": "durations",
    "O": "Python objects",
}
"""What arrays of other types hold, by the type's kind."""
_MAX_DIMS = 3
_LONGEST_SHOWN = 80
_LONGEST_REASON = 160
_WHOLE = reprlib.Repr()
_WHOLE.maxstring = _WHOLE.maxother = sys.maxsize
_PASSWORD_SIGN = re.compile("@|%40|\N{FULLWIDTH COMMERCIAL AT}|\N{SMALL COMMERCIAL AT}")
_BEFORE_NAMES = re.compile(r"b?['\"]?(?:(?:[a-z][a-z0-9+.-]{0,10}:)?//)?", re.IGNORECASE)
_PLAIN_NUMBERS: frozenset[type] = frozenset({int, float, np.float32, np.float64})
_PLAIN_LISTS: frozenset[type] = frozenset({list, tuple})


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
        fields = {name: _read(_numbers, name, *given) for name, given in self.arrays.items()}
        if self.threshold is not None:
            fields["threshold"] = number("threshold", self.threshold)
        fields.update(
            (n, _read(_listed, n, given)) for n, given in self.names.items() if given is not None
        )
        return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def number(name: str, value: Any) -> float:
    """Return a finite number.

    Raises:
        InvalidInputError: It is none.
    """
    return _read(_number, name, value)


def _read(read: Callable[..., T], name: str, *given: Any) -> T:
    """Return what `read` makes of an argument.

    Raises:
        InvalidInputError: It cannot be read. Objects of callers have methods of their own, which
            may raise anything.
    """
    try:
        return read(name, *given)
    except InvalidInputError:
        raise
    except Exception as exc:
        raise InvalidInputError(f"{name} cannot be read: {_reason(exc)}") from exc


def _reason(error: Exception) -> str:
    """Return the first line of an error's text, or its type's name if it has none."""
    try:
        text = str(error).partition("\n")[0]
    except Exception:  # noqa: BLE001 (it is not ours either)
        text = ""
    return printable(text or type(error).__name__, _LONGEST_REASON)


def _number(name: str, value: Any) -> float:
    given = None if isinstance(value, Sequence) else _leaf(name, value)
    if given is None or np.ndim(given) != 0:
        raise InvalidInputError(f"{name} is {_shown(value)}, not a number")
    result = float(given)
    if not math.isfinite(result):
        raise InvalidInputError(f"{name} is {_shown(value)} (allowed: a finite number)")
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
    shown = _without_password(base_url)
    try:
        url = httpx.URL(base_url)
        url.host.encode("idna")  # what the resolver does, and no URL parser
    except (httpx.InvalidURL, TypeError, UnicodeError) as exc:
        if _PASSWORD_SIGN.search(_WHOLE.repr(base_url)):
            # Nor the parser's words, here and as the cause: it takes a password's part for a port.
            raise InvalidInputError(f"base_url is {shown}, which is no address") from None
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
    parts = values if _is_plain(values) else _numeric(name, values, ())
    try:
        array = np.asarray(parts)
    except (TypeError, ValueError) as exc:
        raise InvalidInputError(f"{name} is not an array of numbers: {_reason(exc)}") from exc
    if array.dtype == object:  # plain integers beyond 64 bits
        array = np.asarray(_numeric(name, values, ()))
    kind = np.float32 if array.dtype == np.float32 else np.float64
    with np.errstate(over="ignore"):  # by long doubles: infinity is refused afterwards
        return np.asarray(array, dtype=kind, order="C")


def _is_plain(values: Any) -> bool:
    """Return whether values are lists of ints and floats only, at little cost for each number.

    NumPy cannot be asked afterwards: among numbers, it makes True a 1.
    """
    level = [values]
    for _ in range(_MAX_DIMS + 1):
        kinds = set(map(type, level))
        if kinds <= _PLAIN_NUMBERS:
            return True
        if not kinds <= _PLAIN_LISTS:
            return False
        level = list(chain.from_iterable(level))
    return False


def _numeric(name: str, values: Any, place: tuple[int, ...]) -> Any:
    """Return what NumPy makes an array of: numbers, arrays of numbers, and lists of both.

    Args:
        name: Of the argument.
        values: What the caller gave, or a part of it.
        place: Where in the argument the part stands.

    Raises:
        InvalidInputError: Something in it is no number; the message says where.
    """
    is_raw = isinstance(values, str | bytes | bytearray | memoryview)
    if is_raw or _is_array(values) or not isinstance(values, Sequence):
        return _leaf(f"{name}{_index(place)}", values)
    if len(place) >= _MAX_DIMS:
        raise InvalidInputError(f"{name} has more than {_MAX_DIMS} dimensions")
    return [_numeric(name, x, (*place, i)) for i, x in enumerate(values)]


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _leaf(name: str, value: Any) -> Any:
    """Return a float for a real number of Python, and a NumPy array for any other.

    Raises:
        InvalidInputError: It is no real number, and no array of them.
    """
    try:
        if isinstance(value, Real) and not isinstance(value, bool | np.generic):
            return float(value)
        if np.ma.is_masked(value):
            raise InvalidInputError(f"{name} has masked values (allowed: finite numbers)")
        array = np.asarray(value)
    except OverflowError as exc:
        raise InvalidInputError(f"{name} is {_shown(value)}, too large a number") from exc
    except InvalidInputError:
        raise
    except Exception as exc:
        raise InvalidInputError(f"{name} is not an array of numbers: {_reason(exc)}") from exc
    kind = array.dtype.kind
    if array.ndim == 0 and kind not in "iuf":
        raise InvalidInputError(f"{name} is {_shown(value)}, not a number")
    # What has no type of its own, and gives single bytes: bytearray, mmap, ...
    is_raw = not _is_array(value) and array.dtype.itemsize == 1
    if is_raw or isinstance(value, memoryview):
        raise InvalidInputError(f"{name} is not an array of numbers: it holds bytes")
    if kind not in "iuf":
        found = _KINDS.get(kind, f"values of type {array.dtype}")
        raise InvalidInputError(f"{name} is not an array of numbers: it holds {found}")
    return array


def _index(place: tuple[int, ...]) -> str:
    return "".join(f"[{i}]" for i in place)


def _listed(name: str, values: Any) -> list[str]:
    is_list = isinstance(values, Iterable) and not isinstance(values, str | bytes)
    names = list(values) if is_list else []
    if not is_list or not all(map(_is_text, names)):
        raise InvalidInputError(f"{name} is {_shown(values)} (allowed: a list of names)")
    return names


def _is_text(value: Any) -> bool:
    """Return whether JSON can hold it: halves of surrogate pairs have no UTF-8."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "a huge integer"
