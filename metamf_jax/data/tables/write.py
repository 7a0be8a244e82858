"""Writes what `tables` reads: lists of entries, and dense matrices. Written aside, then renamed."""

import gzip
import io
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from metamf_jax.data.tables import arrow, digits
from metamf_jax.data.tables import format as table_format
from metamf_jax.data.tables import parquet as parquet_tables
from metamf_jax.data.tables.format import DELIMITERS, EXTENSIONS, TableFormat
from metamf_jax.runs.files import written_aside

_WRITABLE = [end for end, format in EXTENSIONS.items() if format in ("parquet", *DELIMITERS)]


def write_pairs(
    path: str | os.PathLike,
    row_ids: np.ndarray,
    column_ids: np.ndarray,
    values: np.ndarray,
    *,
    times: np.ndarray | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    names: tuple[str, str, str] = ("row", "column", "value"),
    scientific: bool = True,
) -> None:
    """Writes a line for each entry: row, column, value, further columns, time.

    `tables.read_table` gives the same ids, values and times back, but for strings that are all
    canonical integers, which text cannot tell from integers.

    Args:
      path: ends in .csv, .tsv, .libmf (no header, three columns) or .parquet; text also in .gz.
      row_ids: [P] integers or strings.
      column_ids: [P] likewise.
      values: [P] finite numbers.
      times: [P] int64 seconds.
      extra: further columns [P] by name, for instance standard deviations.
      names: of the first three columns.
      scientific: whether a text may write very large and small values with an exponent.

    Raises:
      ValueError: if the extension is unknown, a value is not finite, or an id cannot be written.
    """
    path = Path(path)
    format = format_to_write(path)
    columns = dict(zip(names, (row_ids, column_ids, values), strict=True)) | dict(extra or {})
    if times is not None:
        columns["time"] = times
    columns = {name: np.asarray(column) for name, column in columns.items()}
    if not np.isfinite(values).all():
        entry = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{path}: expected finite values, got {values[entry]} in entry {entry}")
    for part, ids in (("row", row_ids), ("column", column_ids)):
        _require_writable(path, part, ids, format)
    if format == "parquet":
        _write_parquet(path, columns)
        return
    if format == "libmf" and len(columns) > 3:
        raise ValueError(f"{path}: LIBMF text has no columns but row, column and value")
    header = () if format == "libmf" else tuple(columns)
    numbers = [column for column in columns.values() if column.dtype.kind == "f"]
    if not scientific and any(digits.extreme(column).any() for column in numbers):
        # Rare enough to be written line by line.
        tokens = [
            digits.texts(column) if column.dtype.kind == "f" else column.tolist()
            for column in columns.values()
        ]
        write_text(path, _lines(header, tokens, DELIMITERS[format]))
        return
    text = io.BytesIO()
    text.write(_lines(header, [], DELIMITERS[format]))
    options = pyarrow.csv.WriteOptions(
        include_header=False,
        delimiter=DELIMITERS[format],
        quoting_style="none" if format == "libmf" else "needed",
    )
    pyarrow.csv.write_csv(_arrow(columns), text, options)
    write_text(path, text.getvalue())


def write_dense(
    path: str | os.PathLike,
    values: np.ndarray,
    row_ids: np.ndarray,
    column_ids: np.ndarray,
    *,
    like: TableFormat | None = None,
) -> None:
    """Writes a matrix with a line for each row; NaN becomes a blank.

    Args:
      path: ends in .csv, .tsv or .parquet; text also in .gz. With ``like`` of a text format any
        ending but .parquet will do.
      values: [N, M] finite numbers or NaN.
      row_ids: [N] integers or strings.
      column_ids: [M] likewise.
      like: the format of the file that was filled in, whose delimiter, header and row names are
        kept; None writes both kinds of names.

    Raises:
      ValueError: if the extension is unknown, a value is infinite, or shapes disagree.
    """
    path = Path(path)
    values = np.asarray(values)
    if values.shape != (len(row_ids), len(column_ids)):
        raise ValueError(
            f"{path}: expected [{len(row_ids)}, {len(column_ids)}] values, got {values.shape}"
        )
    if np.isinf(values).any():
        row, column = np.argwhere(np.isinf(values))[0]
        raise ValueError(f"{path}: expected finite values, got one at row {row}, column {column}")
    format = format_to_write(path, like)
    like = like if like is not None and like.dense else None
    with_names = like is None or like.row_names
    named = []
    if with_names:
        _require_writable(path, "row", row_ids, format)
        corner = like.header[0] if like is not None and like.header else table_format.CORNER
        named = [(corner, row_ids)]
    numbers = [(str(name), values[:, n]) for n, name in enumerate(column_ids.tolist())]
    if format == "parquet":
        _write_parquet(path, dict(named + numbers))
        return
    delimiter = like.delimiter if like is not None and like.delimiter else DELIMITERS[format]
    blank = "NaN" if delimiter == " " or len(column_ids) == 1 else ""
    tokens = [ids.tolist() for _, ids in named]
    for _, column in numbers:
        texts = digits.texts(column, scientific=True)
        tokens.append([blank if text == "nan" else text for text in texts])
    with_header = like is None or like.header is not None
    header = [name for name, _ in named + numbers] if with_header else ()
    write_text(path, _lines(header, tokens, delimiter))


def write_columns(path: str | os.PathLike, table: pa.Table) -> None:
    """Writes the columns of a table as text, each number with the digits that its type holds."""
    path = Path(path)
    tokens = []
    for column in table.columns:
        if pa.types.is_floating(column.type):
            tokens.append(digits.texts(arrow.to_numpy(column), scientific=True))
        elif pa.types.is_boolean(column.type) or not parquet_tables.is_numeric(column.type):
            tokens.append(column.to_pylist())
        else:
            tokens.append(column.cast(pa.string()).to_pylist())
    write_text(path, _lines(table.column_names, tokens, DELIMITERS[format_to_write(path)]))


def format_to_write(path: Path, like: TableFormat | None = None) -> str:
    """The format that a name asks for, or else that of the matrix's text that is answered."""
    format = table_format.of_name(path)
    if format in ("parquet", *DELIMITERS):
        return format
    if like is not None and like.dense and like.delimiter:
        return like.format
    raise ValueError(
        f"{path}: cannot tell the format to write; end the name in one of "
        f"{', '.join(_WRITABLE)}, and in .gz to compress text"
    )


def _lines(header: Iterable[str], columns: Sequence[Iterable], delimiter: str) -> bytes:
    """A text, with a header unless that is empty."""
    records = itertools.chain([header] if header else [], zip(*columns, strict=True))
    return "".join(_line(list(map(str, record)), delimiter) for record in records).encode()


def _line(tokens: list[str], delimiter: str) -> str:
    """A line of text. The csv module does not quote a lone carriage return before Python 3.13."""
    line = delimiter.join(tokens)
    if line.count(delimiter) == len(tokens) - 1 and not re.search(r'["\r\n]', line):
        return line + "\n"
    for n, token in enumerate(tokens):
        if any(mark in token for mark in (delimiter, '"', "\n", "\r")):
            tokens[n] = '"' + token.replace('"', '""') + '"'
    return delimiter.join(tokens) + "\n"


def _arrow(columns: Mapping[str, np.ndarray]) -> pa.Table:
    return pa.table({name: arrow.from_numpy(column) for name, column in columns.items()})


def _write_parquet(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    with written_aside(path) as aside:
        pyarrow.parquet.write_table(_arrow(columns), aside)


def _require_writable(path: Path, part: str, ids: np.ndarray, format: str) -> None:
    if np.asarray(ids).dtype.kind in "iu":
        return
    for entry, name in enumerate(np.asarray(ids).tolist()):
        zero = "\0" in name and format != "parquet"
        if name == "" or zero or (format == "libmf" and name.split() != [name]):
            raise ValueError(
                f"{path}: the id {name!r} of {part} {entry} cannot be written as {format}; give it "
                "a name" + (" without spaces, or write csv" if format == "libmf" else "")
            )


def write_text(path: Path, text: bytes) -> None:
    """Writes a text, in gzip where the name ends in .gz."""
    with written_aside(path) as aside:
        # Without a time stamp, so that the same table gives the same bytes.
        aside.write_bytes(gzip.compress(text, 6, mtime=0) if path.suffix == ".gz" else text)
