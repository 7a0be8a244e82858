"""The table that a command is given, with what else is told of its rows and columns."""

import argparse
from typing import NamedTuple

import numpy as np

from metamf_jax.data import tables
from metamf_jax.data.tables.features import read_features
from metamf_jax.data.tables.format import TableFormat
from metamf_jax.imputation.feature_tables import SideTable
from metamf_jax.types import Entries, FeatureTable, Table

# Above it the answer would fill the memory: 10^8 cells take 2 GB as three columns.
MOST_CELLS = 10**8


class Input(NamedTuple):
    """A table as it was read.

    Attributes:
      path: its file; a matrix's is written again with its blanks filled.
      found: how it was laid out.
      table: in float64.
      told: tables of features of its rows and of its columns.
    """

    path: str
    found: TableFormat
    table: Table
    told: tuple[FeatureTable | None, FeatureTable | None] = (None, None)


def read(flags: argparse.Namespace) -> tuple[Input, tuple[np.ndarray, np.ndarray] | None]:
    """The table and the pairs; with the rows and columns that pairs name besides.

    So has a list without pairs those that only the tables of features name.
    """
    found = tables.detect(flags.input, layout=flags.layout)
    table = tables.read_table(flags.input, layout=flags.layout, dtype=np.float64)
    print(describe(flags.input, found, table), flush=True)
    told = (
        read_features(flags.row_features, "row") if flags.row_features else None,
        read_features(flags.column_features, "column") if flags.column_features else None,
    )
    if not flags.pairs:
        if not found.dense:
            table = _with_told(table, told)
        require_few_cells(flags.input, table)
        return Input(flags.input, found, table, told), None
    pairs = tables.read_pairs(flags.pairs)
    known = table.entries.shape
    table = with_unknown(table, pairs)
    new = np.subtract(table.entries.shape, known)
    if new.any():
        print(
            f"{flags.pairs} names {new[0]} rows and {new[1]} columns without an observed cell:"
            " answered from the others"
        )
    return Input(flags.input, found, table, told), pairs


def describe(path: str, found: TableFormat, table: Table) -> str:
    """What was found in a file, in two lines."""
    num_rows, num_columns = table.entries.shape
    cells = len(table.entries.rows)
    return (
        f"{path}: {found}\n{num_rows} rows, {num_columns} columns, {cells} observed cells "
        f"({cells / (num_rows * num_columns):.2%})"
    )


def require_few_cells(path: str, table: Table) -> None:
    """Refuses to write more missing cells than memory holds.

    Raises:
      ValueError: there are more than `MOST_CELLS`.
    """
    num_rows, num_columns = table.entries.shape
    missing = num_rows * num_columns - len(table.entries.rows)
    if missing > MOST_CELLS:
        raise ValueError(
            f"{path} has {missing} missing cells, more than {MOST_CELLS}; list those that you need "
            "in a file and give it as --pairs"
        )


def with_unknown(table: Table, pairs: tuple[np.ndarray, np.ndarray]) -> Table:
    """The table with the rows and columns that only these ids name, without an observed cell."""
    sides = []
    for asked, known in zip(pairs, (table.row_ids, table.column_ids), strict=True):
        new = np.unique(asked[tables.positions(asked, known) < 0])
        if known.dtype == object or new.dtype == object:
            both = np.empty(len(known) + len(new), object)
            both[:] = [*known.tolist(), *new.tolist()]
        else:
            both = np.concatenate([known, new])
        sides.append(both)
    cells = table.entries
    shape = len(sides[0]), len(sides[1])
    entries = Entries(cells.rows, cells.columns, cells.values, shape)
    return table._replace(entries=entries, row_ids=sides[0], column_ids=sides[1])


def _with_told(table: Table, told: tuple[FeatureTable | None, FeatureTable | None]) -> Table:
    """The table with the rows and columns of which only features tell."""
    known, sides = table.entries.shape, (table.row_ids, table.column_ids)
    named = [
        ids[:0] if of_side is None else of_side.ids
        for of_side, ids in zip(told, sides, strict=True)
    ]
    table = with_unknown(table, (named[0], named[1]))
    for of_side, side, new in zip(
        told, ("row", "column"), np.subtract(table.entries.shape, known), strict=True
    ):
        if of_side is not None and new == len(of_side.ids):
            raise ValueError(
                f"{of_side.path}: none of its {new} ids, such as {of_side.ids.tolist()[0]!r},"
                " stands in the input; write ids as they are written there"
            )
        if of_side is not None and new:
            print(f"{of_side.path} tells of {new} {side}s without an observed cell: answered too")
    return table


def side_tables(given: Input) -> tuple[SideTable | None, SideTable | None]:
    """Where the rows and columns of the input stand in the tables of features."""
    rows, columns = (
        None if table is None else SideTable(table, tables.positions(ids, table.ids))
        for table, ids in zip(
            given.told, (given.table.row_ids, given.table.column_ids), strict=True
        )
    )
    return rows, columns


def names_rows(found: TableFormat) -> bool:
    """Whether a file names its rows, and not only numbers them."""
    return found.row_names if found.dense else found.format not in ("mtx", "npz")
