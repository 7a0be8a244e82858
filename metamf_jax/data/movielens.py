"""MovieLens ratings as GroupLens packs them (F. M. Harper and J. A. Konstan, The MovieLens
Datasets, ACM Transactions on Interactive Intelligent Systems 5(4):19, 2015).

The terms forbid redistribution, so no file comes with this package: see `download`.
"""

import os

import numpy as np

from metamf_jax.data import data_dir as data_dirs
from metamf_jax.data import tables
from metamf_jax.types import Entries, Table

SPLITS_100K = ("u1", "u2", "u3", "u4", "u5", "ua", "ub")


def _remedy(name: str) -> str:
    return (
        f"to download: python -m metamf_jax.data.download {name} --data_dir FOLDER, or "
        "unpack the archive from https://grouplens.org/datasets/movielens/ there"
    )


def ml100k(data_dir: str | os.PathLike | None = None) -> Table:
    """MovieLens-100K: 100,000 ratings 1..5 with times, 943 users, 1,682 films (``ml-100k/u.data``).

    Raises:
      FileNotFoundError: if it is not there, with the remedy.
      ValueError: if the file is damaged, with the line.
    """
    return _read_100k(data_dir, "u.data")


def ml100k_split(split: str, data_dir: str | os.PathLike | None = None) -> tuple[Table, Table]:
    """An official split of MovieLens-100K: (training table, test table) over the same ids.

    Both tables have the users and films of the two files together, so a film that only the test
    part rates has a column without entries in the training part.

    Args:
      split: u1..u5 (80/20, disjoint tests) or ua, ub (10 test ratings a user).
      data_dir: as `ml100k`.

    Raises:
      FileNotFoundError, ValueError: as `ml100k`; ValueError for an unknown split.
    """
    if split not in SPLITS_100K:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(SPLITS_100K)}")
    base, test = _read_100k(data_dir, f"{split}.base"), _read_100k(data_dir, f"{split}.test")
    row_ids = np.union1d(base.row_ids, test.row_ids)
    column_ids = np.union1d(base.column_ids, test.column_ids)
    return _with_ids(base, row_ids, column_ids), _with_ids(test, row_ids, column_ids)


def ml1m(data_dir: str | os.PathLike | None = None) -> Table:
    """MovieLens-1M: 1,000,209 ratings 1..5 with times, 6,040 users, 3,706 rated films.

    Reads ``ml-1m/ratings.dat`` or ``ratings.dat.gz``. Raises as `ml100k`.
    """
    path = data_dirs.find(data_dir, "ml-1m", ("ratings.dat", "ratings.dat.gz"), _remedy("ml1m"))
    return tables.read_table(path, format="dat", layout="pairs", header=False)


def latest_small(data_dir: str | os.PathLike | None = None) -> Table:
    """MovieLens latest-small: ratings 0.5..5 with times (``ml-latest-small/ratings.csv``).

    The set changes with its edition (100,004 ratings in 2016, 100,836 in 2018): compare numbers of
    one edition only. Raises as `ml100k`.
    """
    path = data_dirs.find(data_dir, "ml-latest-small", ("ratings.csv",), _remedy("latest_small"))
    return tables.read_table(path, format="csv", layout="pairs", header=True)


def _read_100k(data_dir, name: str) -> Table:
    path = data_dirs.find(data_dir, "ml-100k", (name,), _remedy("ml100k"))
    return tables.read_table(path, format="tsv", layout="pairs", header=False)


def _with_ids(table: Table, row_ids: np.ndarray, column_ids: np.ndarray) -> Table:
    """The same entries in a matrix with more rows and columns; ids sorted."""
    entries = Entries(
        rows=np.searchsorted(row_ids, table.row_ids)[table.entries.rows].astype(np.int32),
        columns=np.searchsorted(column_ids, table.column_ids)[table.entries.columns].astype(
            np.int32
        ),
        values=table.entries.values,
        shape=(len(row_ids), len(column_ids)),
    )
    return Table(entries, row_ids, column_ids, table.times)
