"""Tables of features: a line for each row (or column) of a matrix, told by its id.

A header names the columns. That which is named like the id (see `table_format`), else the first,
holds the ids; the others are numbers, categories or several labels separated by ``|``. A column is
of numbers if all its cells are, of labels if one cell has several. Its name may end in the kind
that it is to have: ``zip:category``.
"""

import math
import os
from collections.abc import Sequence

import numpy as np

from metamf_jax.data.tables import format as table_format
from metamf_jax.data.tables import parquet as parquet_tables
from metamf_jax.data.tables import text as text_tables
from metamf_jax.data.tables.format import TableFormat
from metamf_jax.data.tables.source import Source, load, mistake, typed_ids
from metamf_jax.types import FeatureColumn, FeatureTable

KINDS = ("number", "category", "labels")
LABELS_BETWEEN = "|"


def read_features(path: str | os.PathLike, side: str = "row") -> FeatureTable:
    """Reads a table of features: CSV, TSV or Parquet, of UTF-8, with a header.

    A blank, NA, NaN or ? is a cell without number, category or label.

    Args:
      path: the file.
      side: "row" or "column", which the lines tell of.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: naming file, line and remedy: no feature, an id twice, a word among numbers, ..
    """
    source = load(path, None)
    names, places, cells = _read_parquet(source) if source.format == "parquet" else _read(source)
    of_ids = table_format.find_roles(names).get(side, 0)
    if len(names) < 2:
        raise mistake(
            source.path,
            1,
            f"expected ids and one or more columns of features, got the column {names[0]!r}",
            "separate columns by commas or tabs",
        )
    if not places:
        raise mistake(source.path, None, "expected a line for each id, got none", "add lines")
    ids = _distinct_ids(source, places, cells[of_ids])
    columns = [
        _column(source, places, name, tokens)
        for n, (name, tokens) in enumerate(zip(names, cells, strict=True))
        if n != of_ids
    ]
    return FeatureTable(str(source.path), ids, tuple(columns))


def _read(source: Source) -> tuple[list[str], Sequence[int | str], Sequence[Sequence[str]]]:
    """Names, the line of each record, and the cells of each column."""
    if source.format in ("mtx", "npz", "libmf", "dat"):
        raise mistake(
            source.path,
            None,
            f"expected a table with a header, got {source.format}",
            "save it as CSV, TSV or Parquet",
        )
    name, delimiter, (first, *_) = text_tables.sniff(source)
    numbers = [token for token in first if table_format.is_number(token)]
    if numbers:
        raise mistake(
            source.path,
            1,
            f"expected a header with the names of the columns, got the number {numbers[0]}",
            "put a line with names above",
        )
    found = TableFormat(name, "pairs", delimiter, len(first), tuple(first))
    records = list(text_tables.body(source, found))
    cells = list(zip(*(record.tokens for record in records), strict=True))
    return [name.strip() for name in first], [record.line for record in records], cells


def _read_parquet(source: Source) -> tuple[list[str], Sequence[int | str], Sequence[Sequence[str]]]:
    table = parquet_tables.parquet_table(source)

    def token(cell) -> str:
        if isinstance(cell, list):
            return LABELS_BETWEEN.join(map(str, cell))
        return "" if cell is None else str(cell)

    places: list[int | str] = [f", row {n + 1}" for n in range(table.num_rows)]
    return table.column_names, places, [[*map(token, x.to_pylist())] for x in table.columns]


def _distinct_ids(source: Source, places, tokens: Sequence[str]) -> np.ndarray:
    first: dict[str, int | str] = {}
    for place, token in zip(places, tokens, strict=True):
        if not token.strip():
            raise mistake(source.path, place, "expected an id, got a blank", "name the line")
        if first.setdefault(token, place) != place:
            before = first[token] if isinstance(first[token], str) else f", line {first[token]}"
            raise mistake(
                source.path, place, f"{token!r} is there already{before}", "keep one of them"
            )
    return typed_ids(list(first))


def _column(source: Source, places, header: str, tokens: Sequence[str]) -> FeatureColumn:
    name, _, declared = header.rpartition(":")
    if declared not in KINDS:
        name, declared = header, ""
    stripped = [token.strip() for token in tokens]
    plain = ["" if table_format.is_missing(token) else token for token in stripped]
    kind = declared or _kind(plain)
    if kind == "number":
        return FeatureColumn(name, kind, _numbers(source, places, name, plain))
    values = np.empty(len(plain), object)
    values[:] = plain
    return FeatureColumn(name, kind, values)


def _kind(tokens: Sequence[str]) -> str:
    if all(table_format.is_number(token) for token in tokens if token):
        return "number"
    return "labels" if any(LABELS_BETWEEN in token for token in tokens) else "category"


def _numbers(source: Source, places, name: str, tokens: Sequence[str]) -> np.ndarray:
    values = np.full(len(tokens), np.nan)
    for n, (place, token) in enumerate(zip(places, tokens, strict=True)):
        if token and not table_format.is_number(token):
            raise mistake(
                source.path,
                place,
                f"expected a number in column {name!r}, got {token!r}",
                f"correct it, or name the column {name}:category",
            )
        values[n] = float(token) if token else np.nan
        if math.isinf(values[n]):
            raise mistake(
                source.path, place, f"the number {token} in {name!r} is too large", "correct it"
            )
    return values
