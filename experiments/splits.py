"""Splits the entries of one large matrix into training and test entries."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from metamf_jax.data import movielens, sources, tables
from metamf_jax.data.tables.entry_columns import read_entry_columns
from metamf_jax.types import Entries, Table

SPLITS = ("random", "time", "official", "few_rows", "few_columns")
# Entries that a row keeps under `few_rows`: as many as one of these, drawn for each row.
_KEPT = range(6)


@dataclasses.dataclass(frozen=True)
class Split:
    """Which entries are test entries.

    Attributes:
      dataset: a name of `metamf_jax.data.sources`, or a path.
      kind: one of `SPLITS`: drawn at random, the latest, those of the official fold, or all but 0
        to 5 entries of some of the rows (or columns).
      fold: the official one of MovieLens-100K.
      test_fraction: part of the entries held out, 0 to 0.9, where the split is not official; of
        the rows under `few_rows`, of the columns under `few_columns`.
      test_input: a table of the test entries; then nothing else is read.
      seed: of what is drawn.
      entry_features: columns besides ids and values that both parts keep, by name.
    """

    dataset: str
    kind: str = "random"
    fold: str = "u1"
    test_fraction: float = 0.1
    test_input: str | None = None
    seed: int = 0
    entry_features: Sequence[str] = ()


def of_config(config: Any) -> Split:
    """What the configuration of a binary says, whose fields have the names of its flags."""
    names = (field.name for field in dataclasses.fields(Split) if field.name != "kind")
    there = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return Split(kind=config.split, **there)


def split_entries(table: Table, split: Split, data_dir: str | None = None) -> tuple[Table, Entries]:
    """(training table, test entries), both over the same rows and columns.

    Raises:
      ValueError: a split that this table does not have.
    """
    train, test = split_table(table, split, data_dir)
    return train, test.entries


def split_table(table: Table, split: Split, data_dir: str | None = None) -> tuple[Table, Table]:
    """(training table, test table), both over the same rows and columns.

    Raises:
      ValueError: a split that this table does not have.
    """

    def with_features(table: Table, source: str) -> Table:
        return table._replace(entry_features=_entry_features(table, source, split.entry_features))

    if split.test_input is not None:
        table = with_features(table, split.dataset)
        test = with_features(tables.read_table(split.test_input), split.test_input)
        return _join(table, test)
    if split.kind == "official":
        if split.dataset != "ml100k":
            raise ValueError(f"only ml100k has official splits, not {split.dataset}; take random")
        parts = movielens.ml100k_split(split.fold, data_dir)
        return _join(*(with_features(part, split.dataset) for part in parts))
    if not 0 <= split.test_fraction <= 0.9:
        raise ValueError(f"expected a test fraction from 0 to 0.9, got {split.test_fraction}")
    size = len(table.entries.values)
    held_out = round(split.test_fraction * size)
    if split.kind.startswith("few_"):
        which = _all_but_few(table.entries, split)
        order, held_out = np.argsort(which, kind="stable"), int(which.sum())
    elif split.kind == "time":
        if table.times is None:
            raise ValueError(f"{split.dataset} has no times to split by; take --split=random")
        order = np.argsort(table.times, kind="stable")
    else:
        order = np.random.default_rng(split.seed).permutation(size)
    table = with_features(table, split.dataset)
    parts = np.split(order, [size - held_out])
    train, test = (_take(table, np.sort(part)) for part in parts)
    return train, test


def _all_but_few(entries: Entries, split: Split) -> np.ndarray:
    """Which entries [E] are held out: those of some rows (columns), all but 0 to 5 of each."""
    side = ("few_rows", "few_columns").index(split.kind)
    listed, size = np.asarray((entries.rows, entries.columns)[side]), entries.shape[side]
    rng = np.random.default_rng((split.seed, side, 6))
    kept = np.full(size, len(listed))
    few = rng.permutation(size)[: round(split.test_fraction * size)]
    kept[few] = rng.choice(_KEPT, len(few))
    # The place of each entry among those of its row, in random order.
    order = rng.permutation(len(listed))
    order = order[np.argsort(listed[order], kind="stable")]
    starts = np.searchsorted(listed[order], np.arange(size))
    places = np.empty(len(listed), int)
    places[order] = np.arange(len(listed)) - starts[listed[order]]
    return places >= kept[listed]


def _entry_features(table: Table, source: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of a data set or file, by name."""
    found = {}
    if "time" in names and table.times is not None:
        found["time"] = table.times.astype(np.float64)
    left = tuple(name for name in names if name not in found)
    if left and source in sources.SOURCES:
        raise ValueError(
            f"{source} has no column {left[0]!r} beside ids and values; there is"
            f" {'time' if table.times is not None else 'none'}"
        )
    return found | (read_entry_columns(source, left) if left else {})


def _take(table: Table, index: np.ndarray) -> Table:
    entries = table.entries
    rows, columns = np.asarray(entries.rows)[index], np.asarray(entries.columns)[index]
    kept = Entries(rows, columns, np.asarray(entries.values)[index], entries.shape)
    return table._replace(
        entries=kept,
        times=None if table.times is None else table.times[index],
        entry_features={name: x[index] for name, x in table.entry_features.items()},
    )


def _join(train: Table, test: Table) -> tuple[Table, Table]:
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
    train, test = (
        part._replace(entries=entries, row_ids=ids[0], column_ids=ids[1])
        for part, entries in ((train, kept), (test, held))
    )
    return train, test
