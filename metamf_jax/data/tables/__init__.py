"""Tables of users: text, Parquet, Matrix Market, scipy.sparse and LIBMF files to a `Table`.

Row and column ids are in the order of their first appearance (pairs) or of the file (dense and
sparse matrices). An id column whose ids are all canonical integers of 64 bits ("7", but not "007"
or "+7") comes back as int64; any other column as strings exactly as in the file (dtype object, so
that one long id does not widen all). Columns of dense files without names are numbered from 0, and
so are the rows; Matrix Market counts from 1.

Text is read twice at most. pyarrow parses it in bulk; what pyarrow refuses or what looks wrong goes
through one strict pass in Python, which either gives the same arrays or names the line at fault.
"""

import dataclasses
import os

import numpy as np

from metamf_jax.data.tables import format as table_format
from metamf_jax.data.tables import parquet as parquet_tables
from metamf_jax.data.tables import sparse as sparse_tables
from metamf_jax.data.tables import text as text_tables
from metamf_jax.data.tables.format import LAYOUTS, TableFormat
from metamf_jax.data.tables.source import Source, load, mistake, typed_ids
from metamf_jax.types import Table


def detect(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    layout: str | None = None,
    header: bool | None = None,
    row_names: bool | None = None,
) -> TableFormat:
    """What `read_table` takes a file for; ``str()`` of it is a line to show to the user.

    Args and errors are those of `read_table`.
    """
    return detect_source(load(path, format), layout, header, row_names)


def read_table(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    layout: str | None = None,
    header: bool | None = None,
    row_names: bool | None = None,
    dtype: type[np.floating] = np.float32,
) -> Table:
    """Reads the observed entries of one matrix.

    In pairs, columns named like user, item, rating and timestamp (`table_format` has the list) are
    found in any order; otherwise the first three columns are row, column and value. Times are whole
    seconds, or ISO 8601 dates, taken as UTC. In dense files a blank, NA, NaN or ? is a missing
    cell, and rows and columns without any entry are kept; a column of True and False is
    read as 1 and 0. Text may be in gzip.

    Args:
      path: the file.
      format: a key of `table_format.FORMATS`, or None to go by extension and content.
      layout: "pairs", "dense" or None to find out.
      header: whether the first line holds names; None to find out.
      row_names: dense only: whether the first column holds names; None to find out.
      dtype: of the values: float32, or float64 for all digits and sizes that doubles have.

    Returns:
      A `Table`; values of ``dtype``, entries in the order of the file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming file, line and remedy, if the file is no table of numbers that ``dtype``
        can hold, with every entry at most once: see the tests for the list.
    """
    source = load(path, format)._replace(dtype=dtype)
    found = detect_source(source, layout, header, row_names)
    if found.format == "mtx":
        return sparse_tables.read_matrix_market(source)
    if found.format == "npz":
        return sparse_tables.read_npz(source)
    if found.format == "parquet":
        return parquet_tables.read_parquet(source, found)
    return (
        text_tables.read_dense_text(source, found)
        if found.dense
        else text_tables.read_pairs_text(source, found)
    )


def read_pairs(
    path: str | os.PathLike, *, format: str | None = None, header: bool | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a list of cells to be predicted: two or more columns, row id and column id.

    Columns named like user and item are found in any order, otherwise the first two count. Without
    known names the first line is a cell, unless ``header`` says otherwise.

    Returns:
      Row ids [P] and column ids [P], typed as by `read_table`. `positions` finds them there.

    Raises:
      FileNotFoundError, ValueError: as `read_table`.
    """
    source = load(path, format)
    if source.format in ("mtx", "npz"):
        raise ValueError(
            f"{source.path}: expected a list of cells as csv, tsv, libmf text or parquet, got "
            f"{source.format}; write one line `row,column` for each cell to be predicted"
        )
    name, delimiter, (first, *_) = _head(source)
    if len(first) < 2:
        raise mistake(
            source.path,
            1,
            f"expected two or more columns (row, column), got {len(first)}",
            "write one line `row,column` for each cell to be predicted",
        )
    known = {} if header is False and delimiter else table_format.find_roles(first)
    named = {"row", "column"} <= known.keys()
    roles = (known["row"], known["column"]) if named else (0, 1)
    if name == "parquet":
        table = parquet_tables.parquet_table(source)
        arrays = {role: parquet_tables.parquet_ids(source, table, role) for role in roles}
    else:
        with_header = named if header is None else header
        found = TableFormat(
            name, "pairs", delimiter, len(first), tuple(first) if with_header else None, roles
        )
        columns = dict(zip(roles, map(text_tables.ids, ("row", "column")), strict=True))
        arrays = text_tables.read_columns(source, found, columns)
    rows, columns = (ids[codes] for codes, ids in (arrays[role] for role in roles))
    if not len(rows):
        raise mistake(source.path, None, "expected at least one cell, got none", "add lines")
    return rows, columns


def read_ids(path: str | os.PathLike) -> np.ndarray:
    """Reads a list of ids, one a line, after a header or without.

    A first line that is a known name of the row or the column is a header. Parquet: one column.

    Returns:
      Ids [P], typed as by `read_table`.

    Raises:
      FileNotFoundError, ValueError: as `read_table`.
    """
    source = load(path, None)
    if source.format == "parquet":
        codes, ids = parquet_tables.parquet_ids(source, parquet_tables.parquet_table(source), 0)
        return ids[codes]
    if source.format in ("mtx", "npz"):
        raise mistake(path, None, f"expected a list of ids, got {source.format}", "write text")
    lines = [line.rstrip("\r") for line in source.data.decode("utf-8").split("\n")]
    header = {"row", "column"} & table_format.find_roles(lines[:1]).keys()
    ids = [line for line in lines[1 if header else 0 :] if line.strip()]
    if not ids:
        raise mistake(source.path, None, "expected at least one id, got none", "add lines")
    return typed_ids(ids)


def positions(ids: np.ndarray, known_ids: np.ndarray) -> np.ndarray:
    """Where each of ``ids`` [P] stands in ``known_ids`` [N]: int32 [P], -1 for the unknown.

    Integers and strings that are written alike are the same id, whichever type a file gave them.
    """
    index = {str(known): n for n, known in enumerate(known_ids.tolist())}
    return np.array([index.get(str(wanted), -1) for wanted in ids.tolist()], np.int32)


def detect_source(source: Source, layout=None, header=None, row_names=None) -> TableFormat:
    """`detect` of a file in memory, or of its first piece."""
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if source.format in ("mtx", "npz"):
        return TableFormat(source.format, "pairs", gzip=source.gzip)
    name, delimiter, records = _head(source)
    header = True if name == "parquet" else header
    options = {"layout": layout, "header": header, "row_names": row_names}
    try:
        found = table_format.text_format(name, delimiter, records, **options)
    except ValueError as error:
        raise ValueError(f"{source.path}, line 1: {error}") from None
    return dataclasses.replace(found, gzip=source.gzip)


def _head(source: Source) -> tuple[str, str, list[list[str]]]:
    """Format, delimiter and first records; of Parquet the names, and what the types stand for."""
    if source.format != "parquet":
        return text_tables.sniff(source)
    table = parquet_tables.parquet_table(source)
    kinds = ["0" if parquet_tables.is_numeric(column.type) else "word" for column in table.columns]
    return "parquet", "", [table.column_names, kinds]
