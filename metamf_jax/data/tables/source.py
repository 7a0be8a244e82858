"""A file in memory, and what every reader does with the entries it found."""

import contextlib
import gzip
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from metamf_jax.data.tables import format as table_format
from metamf_jax.data.tables.format import FORMATS, TableFormat
from metamf_jax.types import Entries, Table

# The largest double that rounds to a finite single.
FLOAT32_MAX = float(np.nextafter(2.0**128 - 2.0**103, 0))
_FLOAT64_MAX = float(np.finfo(np.float64).max)
# Ids as codes [E] and the ids [N] that these count, in the order of first appearance.
Coded: TypeAlias = tuple[np.ndarray, np.ndarray]
_INT64 = np.iinfo(np.int64)

# How a compressed file begins, and what reading it may raise.
_GZIP = b"\x1f\x8b"
GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)


class Source(NamedTuple):
    """A file, or a piece of one, in memory.

    Attributes:
      path: where it lies.
      data: its bytes, decompressed.
      format: so far as known.
      gzip: whether the file is compressed.
      lines_before: lines of the file before this piece.
      dtype: of the values to be read, float32 or float64.
    """

    path: Path
    data: bytes
    format: str
    gzip: bool
    lines_before: int = 0
    dtype: type[np.floating] = np.float32

    @property
    def largest(self) -> float:
        """The largest value that is finite in ``dtype``."""
        return FLOAT32_MAX if self.dtype == np.float32 else _FLOAT64_MAX

    @property
    def precision(self) -> str:
        """``dtype`` in words."""
        return "single precision" if self.dtype == np.float32 else "double precision"


def mistake(path, line: int | str | None, what: str, remedy: str) -> ValueError:
    where = f"{path}, line {line}" if isinstance(line, int) else f"{path}{line or ''}"
    return ValueError(f"{where}: {what}; {remedy}")


def no_entry(source: Source) -> ValueError:
    return mistake(
        source.path, None, "the file holds no observed cell", "expected at least one number"
    )


def load(path: str | os.PathLike, format: str | None) -> Source:
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    with opened(path) as (file, compressed):
        return as_source(path, file.read(), format, compressed)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[io.BufferedIOBase, bool]]:
    """Opens a table, unpacked: (file, whether it is compressed).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is a folder, or what is read of it is compressed and damaged.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; give the path of a table ({', '.join(FORMATS)})"
        ) from None
    except IsADirectoryError:
        raise mistake(
            path, None, "expected a file, got a folder", "give the path of a file in it"
        ) from None
    with file:
        compressed = file.read(2) == _GZIP
        file.seek(0)
        try:
            yield gzip.GzipFile(fileobj=file) if compressed else file, compressed
        except GZIP_ERRORS as error:
            raise damaged_gzip(path, error) from None


def as_source(
    path: Path, data: bytes, format: str | None, compressed: bool, lines_before: int = 0
) -> Source:
    """What is at hand of a file, decompressed, with its format found out and its text checked."""
    if format is None:
        format = _format_of(path, data, table_format.of_name(path))
    if format not in ("parquet", "npz"):
        data = _require_utf8(path, data, lines_before)
    if not data.strip():
        raise mistake(path, None, "the file is empty", "expected a table with at least one cell")
    return Source(path, data, format, compressed, lines_before)


def damaged_gzip(path: Path, error: Exception) -> ValueError:
    """That compressed data end, or cannot be unpacked, with the line to which they can."""
    lines = 0
    with gzip.open(path) as file, contextlib.suppress(*GZIP_ERRORS):
        while data := file.read1():
            lines += data.count(b"\n")
    return mistake(
        path,
        lines + 1,
        f"the gzip data are cut short or damaged here ({error})",
        "fetch or compress the file again",
    )


def _format_of(path: Path, data: bytes, by_extension: str) -> str:
    if data[:4] == b"PAR1":
        return "parquet"
    if data[:14] == b"%%MatrixMarket":
        return "mtx"
    if data[:4] == b"PK\x03\x04":
        if by_extension in ("", "npz"):
            return "npz"
        raise mistake(
            path,
            None,
            f"expected {by_extension}, got a zip archive (an Excel workbook is one)",
            "save the table as CSV",
        )
    if data[:6] == b"\x93NUMPY" or data[:4] in (b"\xd0\xcf\x11\xe0", b"\x89HDF"):
        raise mistake(
            path, None, "expected a table, got a binary file", "save the table as CSV or Parquet"
        )
    if by_extension in ("parquet", "npz", "mtx"):
        raise mistake(
            path,
            1,
            f"expected {by_extension} by the file's extension, got {data[:16]!r}",
            f"save it again, or say which format it has (one of {', '.join(FORMATS)})",
        )
    return by_extension or "text"


def _require_utf8(path: Path, data: bytes, lines_before: int) -> bytes:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise mistake(path, 1, "expected UTF-8 text, got UTF-16", "save the file as UTF-8")
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    if b"\0" in data:
        raise mistake(
            path,
            lines_before + data.count(b"\n", 0, data.index(b"\0")) + 1,
            "expected text, got a zero byte",
            "save the table as CSV or Parquet",
        )
    if not data.isascii():
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise mistake(
                path,
                lines_before + data.count(b"\n", 0, error.start) + 1,
                f"expected UTF-8 text, got the byte 0x{data[error.start]:02x}",
                "save the file as UTF-8 (for instance: iconv -f LATIN1 -t UTF-8)",
            ) from None
    return data


def typed_ids(ids: Sequence[str]) -> np.ndarray:
    """int64 if every id is a canonical integer of 64 bits, else strings as they are (object)."""
    canonical = re.compile(r"0|-?[1-9][0-9]{0,18}")
    if ids and all(map(canonical.fullmatch, ids)):
        numbers = [int(token) for token in ids]
        if _INT64.min <= min(numbers) and max(numbers) <= _INT64.max:
            return np.array(numbers, np.int64)
    typed = np.empty(len(ids), object)
    typed[:] = ids
    return typed


def first_duplicate(*keys: Coded) -> tuple[int, int] | None:
    """The positions of the first two entries with the same keys, or None."""
    flat = np.zeros(1, np.int64)
    for codes, ids in keys:
        flat = flat * len(ids) + codes
    in_order = np.sort(flat)
    if not (in_order[1:] == in_order[:-1]).any():
        return None
    order = np.argsort(flat, kind="stable")
    again = order[1:][flat[order[1:]] == flat[order[:-1]]].min()
    return int(np.flatnonzero(flat == flat[again])[0]), int(again)


def without_duplicates(source: Source, table: Table, where: Callable[[int], str]) -> Table:
    """The table, if it has no entry twice; ``where`` tells the place of an entry in the file."""
    entries = table.entries
    rows, columns = np.asarray(entries.rows), np.asarray(entries.columns)
    twice = first_duplicate((rows, table.row_ids), (columns, table.column_ids))
    if twice is None:
        return table
    row, column = rows[twice[1]], columns[twice[1]]
    raise mistake(
        source.path,
        f", {where(twice[1])}",
        f"row {table.row_ids.tolist()[row]!r}, column {table.column_ids.tolist()[column]!r} "
        f"was given by {where(twice[0])} already",
        "keep one of them",
    )


def make_table(source: Source, rows: Coded, columns: Coded, values, times=None) -> Table:
    entries = Entries(
        rows=rows[0].astype(np.int32),
        columns=columns[0].astype(np.int32),
        values=values.astype(source.dtype),
        shape=(len(rows[1]), len(columns[1])),
    )
    return Table(entries, rows[1], columns[1], times)


def dense_table(source: Source, values, row_ids, column_ids) -> Table:
    """The entries of a matrix [N, M] with NaN; rows are numbered if they have no ids."""
    rows, columns = np.nonzero(~np.isnan(values))
    if not len(rows):
        raise no_entry(source)
    if row_ids is None:
        row_ids = np.arange(len(values))
    return make_table(source, (rows, row_ids), (columns, column_ids), values[rows, columns])


def dense_column_ids(source: Source, found: TableFormat) -> np.ndarray:
    skipped = 1 if found.row_names else 0
    if found.header is None:
        return np.arange(found.num_columns - skipped)
    names = found.header[skipped:]
    first: dict[str, int] = {}
    for position, name in enumerate(names, skipped + 1):
        if name == "" or first.setdefault(name, position) != position:
            got = f"{name!r} in columns {first[name]} and {position}" if name else "a blank"
            raise mistake(
                source.path,
                1,
                f"expected a name of its own for column {position}, got {got}",
                "name every column, or say header=no if the first line holds values",
            )
    return typed_ids(names)
