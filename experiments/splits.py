"""Splits the entries of one large matrix into training and test entries."""

import dataclasses

import numpy as np

from metamf_jax.data import movielens, tables
from metamf_jax.types import Entries, Table

SPLITS = ("random", "time", "official")


@dataclasses.dataclass(frozen=True)
class Split:
    """Which entries are test entries.

    Attributes:
      dataset: a name of `metamf_jax.data.sources`, or a path.
      kind: one of `SPLITS`: drawn at random, the latest, or those of the official fold.
      fold: the official one of MovieLens-100K.
      test_fraction: part of the entries held out, 0 to 0.9, where the split is not official.
      test_input: a table of the test entries; then nothing else is read.
      seed: of the random split.
    """

    dataset: str
    kind: str = "random"
    fold: str = "u1"
    test_fraction: float = 0.1
    test_input: str | None = None
    seed: int = 0


def split_entries(table: Table, split: Split, data_dir: str | None = None) -> tuple[Table, Entries]:
    """(training table, test entries), both over the same rows and columns.

    Raises:
      ValueError: a split that this table does not have.
    """
    if split.test_input is not None:
        return _join(table, tables.read_table(split.test_input))
    if split.kind == "official":
        if split.dataset != "ml100k":
            raise ValueError(f"only ml100k has official splits, not {split.dataset}; take random")
        return _join(*movielens.ml100k_split(split.fold, data_dir))
    if not 0 <= split.test_fraction <= 0.9:
        raise ValueError(f"expected a test fraction from 0 to 0.9, got {split.test_fraction}")
    size = len(table.entries.values)
    held_out = round(split.test_fraction * size)
    if split.kind == "time":
        if table.times is None:
            raise ValueError(f"{split.dataset} has no times to split by; take --split=random")
        order = np.argsort(table.times, kind="stable")
    else:
        order = np.random.default_rng(split.seed).permutation(size)
    kept = np.sort(order[: size - held_out])
    return table._replace(entries=_take(table.entries, kept)), _take(
        table.entries, np.sort(order[size - held_out :])
    )


def _take(entries: Entries, index: np.ndarray) -> Entries:
    rows, columns = np.asarray(entries.rows)[index], np.asarray(entries.columns)[index]
    return Entries(rows, columns, np.asarray(entries.values)[index], entries.shape)


def _join(train: Table, test: Table) -> tuple[Table, Entries]:
    """Both over the training ids and, after them, those that only the test entries have."""
    ids, numbers = [], []
    for side in ("row_ids", "column_ids"):
        known, wanted = getattr(train, side), getattr(test, side)
        place = tables.positions(wanted, known)
        new = place < 0
        place[new] = len(known) + np.arange(new.sum())
        both = np.empty(len(known) + int(new.sum()), object)
        both[:] = [*known.tolist(), *wanted[new].tolist()]
        ids.append(both if known.dtype == object or new.any() else known)
        numbers.append(place)
    shape = len(ids[0]), len(ids[1])
    kept, held = train.entries, test.entries
    kept = Entries(kept.rows, kept.columns, kept.values, shape)
    held = Entries(numbers[0][held.rows], numbers[1][held.columns], held.values, shape)
    return train._replace(entries=kept, row_ids=ids[0], column_ids=ids[1]), held
