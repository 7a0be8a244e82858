"""Cuts of rating sets: small matrices of some of their rows and columns."""

import numpy as np

from metamf_jax.data import data_dir as data_dirs
from metamf_jax.data import jester, movielens, tables
from metamf_jax.types import Entries

RATING_SETS = ("ml100k", "ml1m", "latest_small", "jester", "filmtrust")


def rating_set(name: str, data_dir: str | None) -> Entries:
    """All entries of one of `RATING_SETS`.

    Raises:
      FileNotFoundError: its files are not there.
    """
    if name == "filmtrust":
        remedy = "its ratings, with a header and tabs between user, item and rating"
        names = "ratings.tsv.gz", "ratings.tsv"
        return tables.read_table(data_dirs.find(data_dir, name, names, remedy)).entries
    load = jester.jester if name == "jester" else getattr(movielens, name)
    return load(data_dir).entries


def rating_cut(
    rng: np.random.Generator, entries: Entries, side: int, popular: bool = True
) -> Entries:
    """Random rows and columns, at most ``side`` of each.

    Args:
      rng: draws them.
      entries: one large matrix.
      side: how many.
      popular: whether those with more cells are the likelier: of a sparse matrix others would be
        empty.
    """
    places = []
    for listed, size in zip((entries.rows, entries.columns), entries.shape, strict=True):
        count, shares = min(side, size), None
        if popular:
            counts = np.bincount(listed, minlength=size).astype(float)
            shares = counts / counts.sum()
            count = min(count, np.count_nonzero(counts))
        picked = rng.choice(size, count, replace=False, p=shares)
        place = np.full(size, -1, np.int32)
        place[picked] = np.arange(count)
        places.append((place, count))
    rows, columns = places[0][0][entries.rows], places[1][0][entries.columns]
    inside = (rows >= 0) & (columns >= 0)
    shape = places[0][1], places[1][1]
    return Entries(rows[inside], columns[inside], entries.values[inside], shape)
