"""Files of a checkpoint, and the errors if they cannot be read or make no sense."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_LONGEST_SHOWN = 60
_MOST_LEVELS = 64
"""How deep JSON may be nested: what is read here is written again, from wherever in the program."""


class CheckpointError(ValueError):
    """A checkpoint folder cannot be read, or its parts do not fit each other."""


def json_text(document: dict[str, Any], source: str | Path) -> str:
    """Return a JSON object as a file holds it.

    Args:
        document: The object.
        source: Named in errors.

    Raises:
        CheckpointError: `read_json` would refuse it.
    """
    _check_leaves(document, source)
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        CheckpointError: The file cannot be read, holds something else, a field twice, a number
            that is not finite, or a text that is none.
    """
    content = read_bytes(path)
    try:
        document = json.loads(content, object_pairs_hook=_without_repetition)
    except RecursionError as exc:
        raise _too_deep(path) from exc
    except ValueError as exc:
        raise CheckpointError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    _check_leaves(document, path)
    return document


def checked(
    kind: type[T], document: dict[str, Any], source: str | Path, *, is_whole: bool = True
) -> T:
    """Build a dataclass of a JSON object, every field of which must be there and make sense.

    Types are taken strictly: `true` and `"1"` are no numbers. What else a field may hold is
    declared where the dataclass is, by `annotated_types` and `__post_init__`.

    Args:
        kind: The dataclass.
        document: What `dataclasses.asdict` would return, or JSON made of it.
        source: Named in errors.
        is_whole: Whether fields with defaults must be there, too.

    Raises:
        CheckpointError: It is not such an object; one sentence names the field, its value, and
            what is allowed.
    """
    built = checked_part(kind, document, source)
    _compare_fields(document, asdict(built), source, "", is_whole)
    return built


def checked_part(kind: type[T], document: dict[str, Any], source: str | Path) -> T:
    """Build a dataclass as `checked` does, of an object that may hold other fields, too.

    Fields with defaults may be missing.

    Raises:
        CheckpointError: As for `checked`.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(document), strict=True)
    except ValidationError as exc:
        raise CheckpointError(f"{source}{_fault(exc)}") from exc


def shown(value: Any) -> str:
    """Return a value as it is named in an error, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        (repeated, count), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the field {repeated!r} is there {count} times")
    return document


def _check_leaves(document: dict[str, Any], source: str | Path) -> None:
    """Refuse numbers that are not finite, texts that are none, and what is nested too deeply."""
    try:
        for place, value in _leaves(document, "", _MOST_LEVELS):
            if isinstance(value, float) and not math.isfinite(value):
                raise CheckpointError(f"{source}: {place} is {value}, but numbers must be finite")
            if isinstance(value, str) and not _is_text(value):
                raise CheckpointError(f"{source}: {place} is {shown(value)}, which is no text")
    except RecursionError as exc:
        raise _too_deep(source) from exc


def _too_deep(source: str | Path) -> CheckpointError:
    return CheckpointError(
        f"{source} is not JSON as it is written here: nested too deeply, by more than "
        f"{_MOST_LEVELS} levels"
    )


def _leaves(value: Any, place: str, levels: int) -> Iterator[tuple[str, Any]]:
    """Yield every name, number and text of a document, with where it is.

    Raises:
        RecursionError: There are more than so many levels.
    """
    if not levels:
        raise RecursionError
    if isinstance(value, dict):
        for name, item in value.items():
            yield f"a name in {place or 'it'}", name
            yield from _leaves(item, _joined(place, name), levels - 1)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _leaves(item, _joined(place, i), levels - 1)
    else:
        yield place, value


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fault(error: ValidationError) -> str:
    """Return the first fault as the rest of a sentence."""
    first = error.errors(include_url=False)[0]
    place = ""
    for part in first["loc"]:
        place = _joined(place, part)
    if first["type"] == "missing":
        return f" lacks {place}"
    if first["type"] == "value_error":
        return f": {place}{': ' if place else ''}{first['ctx']['error']}"
    allowed = first["msg"].removeprefix("Input ")
    return f": {place or 'it'} is {shown(first['input'])}, but {allowed[0].lower()}{allowed[1:]}"


def _compare_fields(given: Any, full: Any, source: str | Path, place: str, is_whole: bool) -> None:
    """Refuse a document with fields that nobody reads, and a whole one that lacks others."""
    if isinstance(full, dict):
        for name in given:
            if name not in full:
                raise CheckpointError(
                    f"{source}: {_joined(place, name)} is unknown (known: {', '.join(full)})"
                )
        for name in full:
            if name in given:
                _compare_fields(given[name], full[name], source, _joined(place, name), is_whole)
            elif is_whole:
                raise CheckpointError(f"{source} lacks {_joined(place, name)}")
    elif isinstance(full, (list, tuple)):
        for i, item in enumerate(full):
            _compare_fields(given[i], item, source, _joined(place, i), is_whole)


def _joined(place: str, part: str | int) -> str:
    if isinstance(part, int):
        return f"{place}[{part}]"
    return f"{place}.{part}" if place else part


def read_bytes(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        CheckpointError: It cannot be read, or is no plain file: a pipe may never end.
    """
    try:
        if not S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"cannot read {path}: it is no plain file")
        return path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"cannot read {path}: {exc.strerror}") from exc


def write_parts(folder: Path, parts: Mapping[str, bytes], last: str, gone: Iterable[str]) -> None:
    """Write the files of a folder in place of those that are there.

    All are on the disk before the first is replaced: a full disk leaves the folder as it was. One
    whose replacing was cut short lacks `last`. Who reads a file meanwhile reads the old one.

    Args:
        folder: Created if missing.
        parts: What each file holds, by name.
        last: Name of the part without which a reader refuses the others.
        gone: Names of files that are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = {name: folder / f"{name}.partial" for name in parts}
    try:
        for name, content in parts.items():
            partial[name].write_bytes(content)
        (folder / last).unlink(missing_ok=True)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        for name in (*(parts.keys() - {last}), last):
            partial[name].replace(folder / name)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
