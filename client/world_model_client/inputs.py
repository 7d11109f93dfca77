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
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import orjson

from world_model_client.errors import InvalidInputError, printable

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

T = TypeVar("T")
Reader = Callable[[str, Any], Any]

READINESS = "/readyz"
OUTPUTS = (
    "states",
    "rewards",
    "dones",
    "returns",
    "crash_probability",
    "uncertainty",
    "final_state",
)
"""What `/rollout` can be asked for."""
INCLUDES = ("trajectory", "attribution")
"""What a `/safety-check` answers with if asked."""
_MOST_NAMES = 16
_MOST_MEMBERS = 10_000

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
_LONGEST_REASON = 160
_LONGEST_LABEL = 64
_PLAIN_NUMBERS: frozenset[type] = frozenset({int, float, np.float32, np.float64})
_PLAIN_LISTS: frozenset[type] = frozenset({list, tuple})


@dataclass(frozen=True)
class Call:
    """One call of the service, as the caller gave it.

    Attributes:
        path: Of the endpoint.
        arrays: Values by field, and the shapes that they may have: "[S] or [N, S]".
        options: Other fields: the value (None: not sent), and what reads it.
        timeout_s: Deadline of the call; None: the service's own.
    """

    path: str
    arrays: Mapping[str, tuple[ArrayLike, str]] = field(default_factory=dict)
    options: Mapping[str, tuple[Any, Reader]] = field(default_factory=dict)
    timeout_s: float | None = None

    def body(self) -> bytes | None:
        """Return the JSON; None if there is nothing to send.

        Raises:
            InvalidInputError: A field cannot be sent; the message names it.
        """
        if not self.arrays:
            return None
        fields = {name: _read(_numbers, name, *given) for name, given in self.arrays.items()}
        for name, (given, read) in self.options.items():
            if given is not None:
                fields[name] = read(name, given)
        return orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY)


def seconds(name: str, value: Any) -> float:
    """Return a positive, finite time.

    Raises:
        InvalidInputError: It is none.
    """
    return _number(name, value, lambda x: 0 < x < math.inf, "a positive number of seconds")


def probability(name: str, value: Any) -> float:
    """Return a probability.

    Raises:
        InvalidInputError: It is none.
    """
    return _number(name, value, lambda x: 0 <= x <= 1, "a number from 0 to 1")


def member_count(name: str, value: Any) -> int:
    """Return how many members of an ensemble shall answer; the service knows how many it has.

    Raises:
        InvalidInputError: It is no such number.
    """

    def is_allowed(number: float) -> bool:
        return 1 <= number <= _MOST_MEMBERS and number.is_integer()

    allowed = f"a whole number from 1 to {_MOST_MEMBERS}"
    return int(_number(name, value, is_allowed, allowed))


def label(name: str, value: Any) -> str:
    """Return a text that names something.

    Raises:
        InvalidInputError: It is none, or empty.
    """
    if not _is_text(value) or not value or len(value) > _LONGEST_LABEL:
        raise InvalidInputError(
            f"{name} is {_shown(value)} (allowed: text of 1 to {_LONGEST_LABEL} characters)"
        )
    return str(value)


def output_names(name: str, values: Any) -> list[str]:
    """Return some of `OUTPUTS`.

    Raises:
        InvalidInputError: Something else is among them, or nothing is given.
    """
    return _read(_names, name, values, OUTPUTS)


def include_names(name: str, values: Any) -> list[str]:
    """Return some of `INCLUDES`.

    Raises:
        InvalidInputError: Something else is among them, or nothing is given.
    """
    return _read(_names, name, values, INCLUDES)


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


def _number(name: str, value: Any, is_allowed: Callable[[float], bool], allowed: str) -> float:
    """Return a number for which `is_allowed` holds.

    Raises:
        InvalidInputError: It does not, or it is no number.
    """

    def read(name: str, value: Any) -> float:
        given = None if isinstance(value, Sequence) else _leaf(name, value)
        if given is None or np.ndim(given) != 0:
            raise InvalidInputError(f"{name} is {_shown(value)}, not a number")
        result = float(given)
        if not is_allowed(result):
            raise InvalidInputError(f"{name} is {result:g}")
        return result

    found: float = _read(_explained, name, value, read, allowed)
    return found


def _explained(name: str, value: Any, read: Callable[[str, Any], T], allowed: str) -> T:
    """Return what `read` makes of an argument; its errors say what is allowed.

    Raises:
        InvalidInputError: It cannot be read.
    """
    try:
        return read(name, value)
    except InvalidInputError as exc:
        raise InvalidInputError(f"{exc} (allowed: {allowed})") from exc.__cause__


def _numbers(name: str, values: Any, shapes: str) -> Any:
    """Return an array that JSON keeps bit for bit: float32 stays float32."""
    array = _explained(name, values, _array, f"finite numbers, {shapes}")
    if array.ndim not in {shape.count(",") + 1 for shape in shapes.split(" or ")}:
        found = "is one number" if array.ndim == 0 else f"has the shape {list(array.shape)}"
        raise InvalidInputError(f"{name} {found} (allowed: {shapes})")
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
        _check_rows(name, parts, ())
        raise InvalidInputError(f"{name} is not an array of numbers: {_reason(exc)}") from exc
    if array.dtype == object:  # plain integers beyond 64 bits
        array = np.asarray(_numeric(name, values, ()))
    kind = np.float32 if array.dtype == np.float32 else np.float64
    with np.errstate(over="ignore"):  # by long doubles: infinity is refused afterwards
        return np.asarray(array, dtype=kind, order="C")


def _check_rows(name: str, values: Any, place: tuple[int, ...]) -> list[int]:
    """Return the shape of lists of numbers.

    Raises:
        InvalidInputError: It has none, since two rows differ; the message says which.
    """
    if type(values) in _PLAIN_NUMBERS:
        return []
    if not isinstance(values, Sequence):
        return list(np.shape(values))
    shapes = [_check_rows(name, x, (*place, i)) for i, x in enumerate(values)]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            found = " and ".join(
                f"{name}{_index((*place, k))} {_extent(shapes[k])}" for k in (0, i)
            )
            raise InvalidInputError(f"{name} has rows that are not alike: {found}")
    return [len(shapes), *(shapes[0] if shapes else ())]


def _extent(shape: list[int]) -> str:
    return f"has the shape {shape}" if shape else "is a number"


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
            raise InvalidInputError(f"{name} has masked values")
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


def _names(name: str, values: Any, known: Sequence[str]) -> list[str]:
    allowed = f"(allowed: a list with any of {', '.join(known)})"
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidInputError(f"{name} is {_shown(values)} {allowed}")
    names = list(islice(values, _MOST_NAMES + 1))
    if not names:
        raise InvalidInputError(f"{name} is empty {allowed}")
    if len(names) > _MOST_NAMES:
        raise InvalidInputError(f"{name} has more than {_MOST_NAMES} names {allowed}")
    for i, given in enumerate(names):
        if not isinstance(given, str) or given not in known:
            raise InvalidInputError(f"{name}[{i}] is {_shown(given)} {allowed}")
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
