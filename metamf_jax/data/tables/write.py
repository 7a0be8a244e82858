"""Writes what `tables` reads: lists of cells, and dense matrices. Written aside, then renamed."""

import gzip
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from metamf_jax.data.tables import digits
from metamf_jax.data.tables import format as table_format
from metamf_jax.data.tables import parquet as parquet_tables
from metamf_jax.data.tables.format import TableFormat
from metamf_jax.runs.files import written_aside

_BY_EXTENSION = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".libmf": "libmf",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_DELIMITERS = {"csv": ",", "tsv": "\t", "libmf": " "}


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
    """Writes a line for each cell: row, column, value, further columns, time.

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
    format = _format(path)
    columns = dict(zip(names, (row_ids, column_ids, values), strict=True)) | dict(extra or {})
    if times is not None:
        columns["time"] = times
    if not np.isfinite(values).all():
        entry = int(np.flatnonzero(~np.isfinite(values))[0])
        raise ValueError(f"{path}: expected finite values, got {values[entry]} in entry {entry}")
    for part, ids in (("row", row_ids), ("column", column_ids)):
        _require_writable(path, part, ids, format)
    table = pa.table({name: pa.array(np.asarray(column)) for name, column in columns.items()})
    if format == "parquet":
        with written_aside(path) as aside:
            pyarrow.parquet.write_table(table, aside)
        return
    if format == "libmf" and len(columns) > 3:
        raise ValueError(f"{path}: LIBMF text has no columns but row, column and value")
    text = io.BytesIO()
    large = [c for c in columns.values() if np.asarray(c).dtype.kind == "f"]
    if not scientific and any(digits.extreme(np.asarray(column)).any() for column in large):
        # Rare enough to be written line by line.
        texts = [
            digits.texts(np.asarray(c))
            if np.asarray(c).dtype.kind == "f"
            else np.asarray(c).tolist()
            for c in columns.values()
        ]
        records = [columns, *zip(*texts, strict=True)][1 if format == "libmf" else 0 :]
        lines = "".join(_line(record, _DELIMITERS[format]) for record in records)
        write_text(path, lines.encode())
        return
    if format != "libmf":
        text.write(_line(columns, _DELIMITERS[format]).encode())
    pyarrow.csv.write_csv(
        table,
        text,
        write_options=pyarrow.csv.WriteOptions(
            include_header=False,
            delimiter=_DELIMITERS[format],
            quoting_style="none" if format == "libmf" else "needed",
        ),
    )
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
    keep_text = like is not None and like.dense and like.delimiter
    format = format_to_write(path, like)
    with_header = like is None or not like.dense or like.header is not None
    with_names = like is None or not like.dense or like.row_names
    corner = table_format.CORNER
    if like is not None and like.dense and like.header and like.row_names:
        corner = like.header[0]
    if with_names:
        _require_writable(path, "row", row_ids, format)
    if format == "parquet":
        columns = {corner: row_ids} if with_names else {}
        columns |= {str(name): values[:, n] for n, name in enumerate(column_ids.tolist())}
        table = pa.table({name: pa.array(column) for name, column in columns.items()})
        with written_aside(path) as aside:
            pyarrow.parquet.write_table(table, aside)
        return
    delimiter = like.delimiter if like is not None and keep_text else _DELIMITERS[format]
    lines = []
    if with_header:
        lines.append(_line([*([corner] if with_names else []), *column_ids.tolist()], delimiter))
    blank = "NaN" if delimiter == " " or len(column_ids) == 1 else ""
    for name, row in zip(row_ids.tolist(), values, strict=True):
        texts = [blank if text == "nan" else text for text in digits.texts(row, scientific=True)]
        lines.append(_line([name], delimiter)[:-1] + delimiter if with_names else "")
        lines.append(delimiter.join(texts) + "\n")
    write_text(path, "".join(lines).encode())


def write_columns(path: str | os.PathLike, table: pa.Table) -> None:
    """Writes the columns of a table as text, each number with the digits that its type holds."""
    path = Path(path)
    delimiter = _DELIMITERS[_format(path)]
    texts = []
    for column in table.columns:
        if pa.types.is_floating(column.type):
            texts.append(digits.texts(column.to_numpy(), scientific=True))
        elif pa.types.is_boolean(column.type) or not parquet_tables.is_numeric(column.type):
            texts.append(column.to_pylist())
        else:
            texts.append(column.cast(pa.string()).to_pylist())
    records = [table.column_names, *zip(*texts, strict=True)]
    write_text(path, "".join(_line(record, delimiter) for record in records).encode())


def format_to_write(path: Path, like: TableFormat | None = None) -> str:
    """The format that a name asks for, or else that of the file that is answered."""
    return _format(
        path, like.format if like is not None and like.dense and like.delimiter else None
    )


def _line(tokens: Iterable, delimiter: str) -> str:
    """A line of text. The csv module does not quote a lone carriage return before Python 3.13."""
    quoted = []
    for token in map(str, tokens):
        if any(mark in token for mark in (delimiter, '"', "\n", "\r")):
            token = '"' + token.replace('"', '""') + '"'
        quoted.append(token)
    return delimiter.join(quoted) + "\n"


def _format(path: Path, kept: str | None = None) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    format = _BY_EXTENSION.get(suffixes[-1] if suffixes else "", kept)
    if format is None:
        raise ValueError(
            f"{path}: cannot tell the format to write; end the name in one of "
            f"{', '.join(_BY_EXTENSION)}, and in .gz to compress text"
        )
    return format


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
