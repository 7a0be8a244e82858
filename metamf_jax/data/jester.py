"""Jester jokes, data set 1 (K. Goldberg, T. Roeder, D. Gupta, C. Perkins, Eigentaste, Information
Retrieval 4(2):133-151, 2001), exported from the workbooks of Berkeley to CSV.

A line is a user: the number of jokes rated, then the ratings of jokes 1..100 from -10 to 10, with
99 for a joke not rated; no header.
"""

import os

import numpy as np

from metamf_jax.data import data_dir as data_dirs
from metamf_jax.data import tables
from metamf_jax.types import Entries, Table

NUM_JOKES = 100
_NOT_RATED = 99.0
REMEDY = (
    "to obtain it, open jester-data-PART.xls of https://eigentaste.berkeley.edu/dataset/ (data set "
    "1) in a spreadsheet program and save it as jester-data-PART.csv without a header"
)


def jester(data_dir: str | os.PathLike | None = None, part: int = 1) -> Table:
    """One part of Jester data set 1; part 1 has 24,983 users, 100 jokes, 1,810,455 ratings.

    Args:
      data_dir: holds ``jester/jester-data-<part>.csv``, ``.csv.gz``, or the file itself; None for
        $METAMF_DATA_DIR.
      part: 1, 2 or 3.

    Returns:
      A `Table` whose row ids count the users of the file from 1, and whose column ids are the
      jokes' numbers 1..100. No times.

    Raises:
      FileNotFoundError: if it is not there, with the remedy.
      ValueError: naming file and line, if a line breaks the layout.
    """
    if part not in (1, 2, 3):
        raise ValueError(f"expected part 1, 2 or 3, got {part!r}")
    name = f"jester-data-{part}.csv"
    remedy = REMEDY.replace("PART", str(part))
    path = data_dirs.find(data_dir, "jester", (name, f"{name}.gz"), remedy)
    raw = tables.read_table(path, format="csv", layout="dense", header=False, row_names=False)
    num_rows, num_columns = raw.entries.shape

    def mistake(line: int, what: str) -> ValueError:
        return ValueError(
            f"{path}, line {line}: {what}; expected the number of jokes rated, then 100 ratings "
            "from -10 to 10 with 99 for a joke not rated"
        )

    if num_columns != NUM_JOKES + 1:
        raise mistake(1, f"got {num_columns} columns")
    if len(raw.entries.values) != num_rows * num_columns:
        full = np.bincount(raw.entries.rows, minlength=num_rows) == num_columns
        raise mistake(int(np.flatnonzero(~full)[0]) + 1, "got a blank")
    table = np.asarray(raw.entries.values).reshape(num_rows, num_columns)
    counts, ratings = table[:, 0], table[:, 1:]
    rated = ratings != _NOT_RATED
    outside = (rated & (np.abs(ratings) > 10)).any(axis=1)
    if outside.any():
        raise mistake(int(np.flatnonzero(outside)[0]) + 1, "got a rating outside -10..10")
    differing = rated.sum(axis=1) != counts
    if differing.any():
        line = int(np.flatnonzero(differing)[0])
        raise mistake(line + 1, f"got {rated[line].sum()} ratings where {counts[line]:g} are told")
    rows, columns = np.nonzero(rated)
    entries = Entries(
        rows=rows.astype(np.int32),
        columns=columns.astype(np.int32),
        values=ratings[rows, columns],
        shape=(num_rows, NUM_JOKES),
    )
    return Table(entries, np.arange(1, num_rows + 1), np.arange(1, NUM_JOKES + 1))
