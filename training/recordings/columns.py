"""Columns of a CSV or Parquet file, checked.

Nothing is taken on trust: rows are counted before they are kept, and the first value that is none
is named by file, row and column. Rows count from 1, the header and empty lines left out.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet
from numpy.typing import NDArray

from training.recordings.recording import RecordingError, first_line
from world_model_client.errors import printable

SUFFIXES = (".csv", ".parquet")

MOST_ROWS = 10_000_000
MOST_BYTES = 2 * 2**30
"""Of a CSV, or of the columns of a Parquet file that are read, unpacked."""
MOST_CHUNK_BYTES = 2**29
"""Of a column in one group of rows of a Parquet file, unpacked."""
MOST_TEXT = 200
"""Characters of an id or a class."""

_ALLOWED_TEXT = f"allowed: 1 to {MOST_TEXT} characters"
_MOST_FOOTER_BYTES = 2**26
_BATCH_ROWS = 2**16
"""Rows that are read at once."""
_LONGEST_LINE = 100_000
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

Floats = NDArray[np.floating[Any]]


class Allowed(NamedTuple):
    """Which numbers a column may hold.

    Attributes:
        low: The lowest.
        high: The highest.
        unit: Of both, for messages.
        is_or_0: Whether 0 is allowed as well.
    """

    low: float
    high: float
    unit: str
    is_or_0: bool = False

    def refuses(self, values: Floats) -> NDArray[np.bool_]:
        """Return which numbers it may not hold; NaN is none of those it may."""
        is_wrong = ~((values >= self.low) & (values <= self.high))
        return is_wrong & (values != 0) if self.is_or_0 else is_wrong

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g} {self.unit}"


Bounds = Mapping[str, Allowed]


class Texts(NamedTuple):
    """A column of texts, of which each is kept once.

    Attributes:
        codes: [rows] indices of `names`.
        names: In order.
    """

    codes: NDArray[np.int64]
    names: list[str]


@dataclass(frozen=True)
class Columns:
    """What was read.

    Attributes:
        numbers: By name, [rows]; NaN where an optional one is missing.
        texts: By name.
        extra: Names of columns that nobody asked for.
    """

    numbers: dict[str, Floats]
    texts: dict[str, Texts]
    extra: list[str]


def read_columns(
    path: Path, texts: Mapping[str, int], bounds: Bounds, optional: Sequence[str] = ()
) -> Columns:
    """Read a table.

    It is read in batches of rows, of which nothing is kept but numbers and each text once: what a
    file unpacks to does not matter.

    Args:
        path: Of the file, of one of `SUFFIXES`.
        texts: Names of the columns that are texts, and of each how many different ones are allowed;
            numbers among them are taken as such.
        bounds: By the name of each column of numbers.
        optional: Columns of numbers that may be missing, as a whole or in a row.

    Raises:
        RecordingError: It cannot be read, is too large, lacks a column, or a value is none.
    """
    names = [*texts, *bounds]
    required = [name for name in names if name not in optional]
    if not path.is_file():
        raise RecordingError(f"{path} is no file")
    opened = _open_csv if path.suffix == ".csv" else _open_parquet
    try:
        with opened(path, names, {*texts}) as (columns, batches):
            for name in required:
                if name not in columns:
                    raise RecordingError(
                        f"{path} lacks the column {name} (needed: {', '.join(required)})"
                    )
            parts = _Parts(path, columns, texts, bounds, optional)
            for batch in batches:
                parts.take(batch)
            return parts.columns()
    except (pa.ArrowException, OSError, UnicodeError, csv.Error) as exc:
        raise RecordingError(f"{path} cannot be read: {first_line(exc)}") from exc


class _Parts:
    """What was read of a table so far.

    Args:
        path: For messages.
        given: Names of all columns of the file.
        texts: See `read_columns`.
        bounds: Likewise.
        optional: Likewise.
    """

    def __init__(
        self,
        path: Path,
        given: Sequence[str],
        texts: Mapping[str, int],
        bounds: Bounds,
        optional: Sequence[str],
    ) -> None:
        self._path, self._texts, self._bounds, self._optional = path, texts, bounds, optional
        self._extra = [name for name in given if name not in texts and name not in bounds]
        self._numbers: dict[str, list[Floats]] = {x: [] for x in bounds if x in given}
        self._codes: dict[str, list[NDArray[np.int64]]] = {x: [] for x in texts}
        self._known: dict[str, dict[str, int]] = {x: {} for x in texts}
        self._rows = 0

    def take(self, batch: pa.RecordBatch) -> None:
        """Check some rows, and keep what they say."""
        if not batch.num_rows:
            return
        _check_rows(self._path, self._rows + batch.num_rows)
        for name, parts in self._numbers.items():
            is_optional, allowed = name in self._optional, self._bounds[name]
            values, is_wrong = _numbers(batch[name], allowed, is_optional=is_optional)
            if is_wrong.any():
                at = int(np.argmax(is_wrong))
                value = "missing or NaN" if math.isnan(values[at]) else f"{values[at]:g}"
                raise self._fail(at, name, f"is {value} (allowed: {allowed})")
            parts.append(values)
        for name, codes in self._codes.items():
            codes.append(self._coded(name, batch[name]))
        self._rows += batch.num_rows

    def _fail(self, row: int, name: str, problem: str) -> RecordingError:
        return RecordingError(f"{self._path}, row {self._rows + row + 1}, column {name}: {problem}")

    def _coded(self, name: str, column: pa.Array) -> NDArray[np.int64]:
        """Return texts [rows] by their numbers among those that are known, new ones added."""
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        indices = np.asarray(pc.fill_null(column.indices, -1), np.int64)
        used, first, inverse = np.unique(indices, return_index=True, return_inverse=True)
        texts = column.dictionary.take(pa.array(np.maximum(used, 0))) if used.max() >= 0 else None
        if texts is not None and not pa.types.is_integer(texts.type):
            lengths = np.asarray(pc.fill_null(pc.binary_length(texts), 0))
            lengths = np.where(used < 0, 0, lengths)
            # A character has 4 bytes at most: longer ones are not even made texts of Python.
            for at in np.flatnonzero(lengths > 4 * MOST_TEXT)[:1].tolist():
                raise self._fail(int(first[at]), name, f"has {lengths[at]} bytes ({_ALLOWED_TEXT})")
        given = [] if texts is None else texts.to_pylist()
        known, codes = self._known[name], np.empty(len(used), np.int64)
        for at in np.argsort(first).tolist():
            text = "" if used[at] < 0 or given[at] is None else str(given[at])
            if not 0 < len(text) <= MOST_TEXT:
                what = f"has {len(text)} characters" if text else "is empty"
                raise self._fail(int(first[at]), name, f"{what} ({_ALLOWED_TEXT})")
            codes[at] = known.setdefault(text, len(known))
            if len(known) > (most := self._texts[name]):
                problem = (
                    f"is one more than {most} different ones (allowed: {most}; split it by time)"
                )
                raise self._fail(int(first[at]), name, problem)
        return codes[inverse.reshape(-1)]

    def columns(self) -> Columns:
        """Return all, texts in order."""
        if not self._rows:
            raise RecordingError(f"{self._path} has no rows")
        texts = {}
        for name, known in self._known.items():
            names = sorted(known)
            ranks = np.empty(len(names), np.int64)
            ranks[[known[text] for text in names]] = np.arange(len(names))
            texts[name] = Texts(ranks[np.concatenate(self._codes.pop(name))], names)
        numbers = {name: np.concatenate(self._numbers.pop(name)) for name in [*self._numbers]}
        return Columns(numbers, texts, self._extra)


def _numbers(
    column: pa.Array, allowed: Allowed, *, is_optional: bool
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return numbers, and which of them are not allowed."""
    column = column.cast(pa.float64(), safe=False)
    values = np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
    is_wrong = allowed.refuses(values)
    return values, is_wrong & ~np.isnan(values) if is_optional else is_wrong


def quoted(text: object) -> str:
    """Return a text of a file for a message."""
    return repr(printable(str(text), 80))


_Opened = Iterator[tuple[Sequence[str], Iterator[pa.RecordBatch]]]
"""Names of all columns, and rows of those that are wanted."""


@contextmanager
def _open_parquet(path: Path, names: Sequence[str], texts: set[str]) -> _Opened:
    _check_footer(path)
    schema = pa_parquet.read_schema(path)
    _check_names(path, names, schema.names)
    wanted = [name for name in schema.names if name in names]
    for name in wanted:  # before anything is read: nested ones, say, unpack to anything
        _check_type(path, name, schema.field(name).type, is_text=name in texts)
    # Texts repeat: as a dictionary each is kept once.
    dictionary = [name for name in wanted if name in texts]
    with pa_parquet.ParquetFile(path, read_dictionary=dictionary) as file:
        _check_rows(path, file.metadata.num_rows)
        _check_chunks(path, file.metadata, {*wanted})
        yield schema.names, file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False)


def _check_footer(path: Path) -> None:
    """Refuse a file whose description of itself is too large to be read."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 8, 0))
        size = int.from_bytes(file.read(4), "little")
    if size > _MOST_FOOTER_BYTES:
        raise RecordingError(
            f"{path} has a footer of {size} bytes (allowed: {_MOST_FOOTER_BYTES}; is it Parquet?)"
        )


def _check_type(path: Path, name: str, kind: pa.DataType, *, is_text: bool) -> None:
    if is_text and pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_string = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    is_number = pa.types.is_floating(kind) or pa.types.is_null(kind)
    if not (pa.types.is_integer(kind) or (is_string if is_text else is_number)):
        allowed = "texts or integers" if is_text else "numbers"
        raise RecordingError(f"{path}, column {name}: is {kind} (allowed: {allowed})")


def _check_chunks(path: Path, metadata: Any, names: set[str]) -> None:
    """Refuse columns of a Parquet file that unpack to much, as a whole or in one group of rows."""
    total = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema in names:
                total += (size := chunk.total_uncompressed_size)
                if size > MOST_CHUNK_BYTES:
                    raise RecordingError(
                        f"{path}, column {chunk.path_in_schema}: has {size} bytes in one group of "
                        f"rows (allowed: {MOST_CHUNK_BYTES}; write smaller groups)"
                    )
    _check_bytes(path, total)


@contextmanager
def _open_csv(path: Path, names: Sequence[str], texts: set[str]) -> _Opened:
    _check_bytes(path, path.stat().st_size)
    header = _header(path)
    _check_names(path, names, header)
    wanted = [name for name in header if name in names]
    options = pa_csv.ConvertOptions(
        column_types={name: pa.string() if name in texts else pa.float64() for name in names},
        include_columns=wanted,
        null_values=["", "NA", "nan", "NaN", "null"],
        strings_can_be_null=True,
    )
    try:
        with pa_csv.open_csv(path, convert_options=options) as reader:
            yield header, iter(reader)
    except pa.ArrowInvalid as exc:
        fault = _csv_fault(path, header, {*names} - texts)
        raise RecordingError(fault or f"{path} cannot be read: {first_line(exc)}") from exc


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = next(_lines(file), "")
    if "\x00" in line:
        raise RecordingError(f"{path} is no CSV: its first line holds a byte 0")
    header = next(csv.reader([line]), [])
    if len(header) == 1:
        for mark, name in _SEPARATORS.items():
            if mark in line:
                raise RecordingError(
                    f"{path} has columns that are separated by {name} (allowed: commas)"
                )
    return header


def _lines(file: IO[str]) -> Iterator[str]:
    """Yield the lines of a file.

    Raises:
        csv.Error: One is too long to be kept.
    """
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE and not line.endswith(("\n", "\r")):
            raise csv.Error(f"a line has more than {_LONGEST_LINE} characters")
        yield line


def _csv_fault(path: Path, header: Sequence[str], numbers: set[str]) -> str:
    """Return what is wrong with a CSV that cannot be read, by row and column, or ""."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(_lines(file))
            next(rows, None)
            for number, row in enumerate(filter(None, rows), 1):
                if len(row) != len(header):
                    return f"{path}, row {number}: has {len(row)} columns, the header {len(header)}"
                for name, text in zip(header, row, strict=True):
                    if name in numbers and not _is_number(text):
                        return f"{path}, row {number}, column {name}: is {quoted(text)}, no number"
    except (csv.Error, UnicodeError, OSError) as exc:
        return f"{path} cannot be read: {first_line(exc)}"
    return ""


def _is_number(text: str) -> bool:
    if "_" in text:  # Python reads 1_0 as 10, others do not
        return False
    try:
        float(text or "nan")
    except ValueError:
        return text in ("NA", "null")
    return True


def _check_names(path: Path, names: Iterable[str], columns: Sequence[str]) -> None:
    for name in names:
        if columns.count(name) > 1:
            raise RecordingError(f"{path} has the column {name} {columns.count(name)} times")


def _check_rows(path: Path, count: int) -> None:
    if count > MOST_ROWS:
        raise RecordingError(
            f"{path} has {count} rows or more (allowed: {MOST_ROWS}; split it by time)"
        )


def _check_bytes(path: Path, count: int) -> None:
    if count > MOST_BYTES:
        raise RecordingError(
            f"{path} has {count} bytes to read (allowed: {MOST_BYTES}; split it by time)"
        )
