"""Columns of a CSV or Parquet file, checked.

Nothing is taken on trust: rows are counted before they are kept, and the first value that is none
is named by file, row and column. Rows count from 1, the header and empty lines left out.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
MOST_TEXT = 200
"""Characters of an id or a class."""

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
    path: Path, texts: Sequence[str], bounds: Bounds, optional: Sequence[str] = ()
) -> Columns:
    """Read a table.

    Args:
        path: Of the file, of one of `SUFFIXES`.
        texts: Names of the columns that are texts; numbers among them are taken as such.
        bounds: By the name of each column of numbers.
        optional: Columns of numbers that may be missing, as a whole or in a row.

    Raises:
        RecordingError: It cannot be read, is too large, lacks a column, or a value is none.
    """
    names = [*texts, *bounds]
    if not path.is_file():
        raise RecordingError(f"{path} is no file")
    read = _read_csv if path.suffix == ".csv" else _read_parquet
    try:
        table, columns = read(path, names, {*texts})
    except (pa.ArrowException, OSError, UnicodeError, csv.Error) as exc:
        raise RecordingError(f"{path} cannot be read: {first_line(exc)}") from exc
    required = [name for name in names if name not in optional]
    for name in required:
        if name not in columns:
            raise RecordingError(f"{path} lacks the column {name} (needed: {', '.join(required)})")
    if not table.num_rows:
        raise RecordingError(f"{path} has no rows")
    return Columns(
        numbers={
            name: _numbers(path, name, table[name], bounds[name], is_optional=name in optional)
            for name in bounds
            if name in columns
        },
        texts={name: _texts(path, name, table[name]) for name in texts},
        extra=[name for name in columns if name not in names],
    )


def quoted(text: object) -> str:
    """Return a text of a file for a message."""
    return repr(printable(str(text), 80))


def _read_parquet(
    path: Path, names: Sequence[str], texts: set[str]
) -> tuple[pa.Table, Sequence[str]]:
    columns = pa_parquet.read_schema(path).names
    _check_names(path, names, columns)
    wanted = [name for name in columns if name in names]
    # Texts repeat: as a dictionary each is kept once.
    dictionary = [name for name in wanted if name in texts]
    with pa_parquet.ParquetFile(path, read_dictionary=dictionary) as file:
        _check_rows(path, file.metadata.num_rows)
        _check_bytes(path, _unpacked(file.metadata, {*wanted}))
        return file.read(wanted), columns


def _unpacked(metadata: Any, names: set[str]) -> int:
    """Return how many bytes some columns of a Parquet file have, unpacked."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] in names
    )


def _read_csv(path: Path, names: Sequence[str], texts: set[str]) -> tuple[pa.Table, Sequence[str]]:
    _check_bytes(path, path.stat().st_size)
    header = _header(path)
    _check_names(path, names, header)
    options = pa_csv.ConvertOptions(
        column_types={name: pa.string() if name in texts else pa.float64() for name in names},
        include_columns=[name for name in header if name in names],
        null_values=["", "NA", "nan", "NaN", "null"],
        strings_can_be_null=True,
    )
    batches, count = [], 0
    try:
        with pa_csv.open_csv(path, convert_options=options) as reader:
            for batch in reader:
                count += batch.num_rows
                _check_rows(path, count)
                batches.append(batch)
            return pa.Table.from_batches(batches, reader.schema), header
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


def _texts(path: Path, name: str, column: pa.ChunkedArray) -> Texts:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise RecordingError(f"{path}, column {name}: is {kind} (allowed: texts or integers)")
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    joined = column.unify_dictionaries().combine_chunks()
    if isinstance(joined, pa.ChunkedArray):  # older pyarrow: of one chunk
        joined = joined.chunk(0)
    codes = np.asarray(pc.fill_null(joined.indices, -1), np.int64)
    given = [str(x) for x in joined.dictionary.to_pylist()]
    is_wrong = np.array([not 0 < len(text) <= MOST_TEXT for text in given] + [True])
    if is_wrong[codes].any():
        row = int(np.argmax(is_wrong[codes]))
        length = len(given[codes[row]]) if codes[row] >= 0 else 0
        what = f"has {length} characters" if length else "is empty"
        raise RecordingError(
            f"{path}, row {row + 1}, column {name}: {what} (allowed: 1 to {MOST_TEXT} characters)"
        )
    order = sorted(range(len(given)), key=given.__getitem__)
    ranks = np.empty(len(given), np.int64)
    ranks[order] = np.arange(len(given))
    return Texts(ranks[codes], [given[at] for at in order])


def _numbers(
    path: Path,
    name: str,
    column: pa.ChunkedArray,
    allowed: Allowed,
    *,
    is_optional: bool,
) -> Floats:
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
        or pa.types.is_null(column.type)
    ):
        raise RecordingError(f"{path}, column {name}: is {column.type} (allowed: numbers)")
    values = np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    is_wrong = allowed.refuses(values)
    if is_optional:
        is_wrong &= ~np.isnan(values)
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        value = "missing or NaN" if math.isnan(values[row]) else f"{values[row]:g}"
        raise RecordingError(
            f"{path}, row {row + 1}, column {name}: is {value} (allowed: {allowed})"
        )
    return values
