"""The one table of data sets: a name, or the path of a user's own file, to a `Table`."""

import os
from collections.abc import Callable

from metamf_jax.data import jester, movielens, synthetic, tables
from metamf_jax.types import Table

# Each takes (data_dir, seed).
SOURCES: dict[str, Callable[[str | os.PathLike | None, int], Table]] = {
    "synthetic": lambda data_dir, seed: synthetic.synthetic_ratings(seed),
    "ml100k": lambda data_dir, seed: movielens.ml100k(data_dir),
    "ml1m": lambda data_dir, seed: movielens.ml1m(data_dir),
    "latest_small": lambda data_dir, seed: movielens.latest_small(data_dir),
    "jester": lambda data_dir, seed: jester.jester(data_dir),
}


def load(
    name_or_path: str | os.PathLike, data_dir: str | os.PathLike | None = None, seed: int = 0
) -> Table:
    """Loads a data set by its name in `SOURCES`, or the table in a file (`tables.read_table`).

    Args:
      name_or_path: a name; ``synthetic:ROWSxCOLUMNSxCELLS``, a matrix of rank 8 with CELLS entries
        in each row; or a path; what is neither a name nor a file, and looks like no path, is
        taken for a mistyped name.
      data_dir: the folder that holds the data sets; None for $METAMF_DATA_DIR. Not used for paths.
      seed: of the synthetic world; not used otherwise.

    Raises:
      FileNotFoundError: if the files of the data set, or the file, are not there.
      ValueError: for an unknown name, listing the valid ones; or as `tables.read_table`.
    """
    name = os.fspath(name_or_path)
    if name.startswith("synthetic:"):
        return synthetic.low_rank_table(seed, *synthetic.sizes_named(name))
    if name in SOURCES:
        return SOURCES[name](data_dir, seed)
    if not os.path.exists(name) and "." not in name and os.sep not in name:
        raise ValueError(
            f"unknown data set {name!r}; expected one of {', '.join(SOURCES)}, or the path of "
            "a file that is there"
        )
    return tables.read_table(name)
