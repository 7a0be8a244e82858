"""Entries chunk by chunk, for matrices that are too large to be held in memory as a table."""

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from metamf_jax.data import sources, synthetic
from metamf_jax.data.tables import stream as table_streams
from metamf_jax.types import Entries, Table

_CHUNK = 1 << 20


class EntryStream(NamedTuple):
    """A matrix to be read once.

    Attributes:
      chunks: its entries.
      shape: (N, M).
      ids: names of rows [N] and columns [M], or None for their numbers.
      given_twice: the mistake of an entry that comes twice, from its row and column, where that may
        be; None where none does.
    """

    chunks: Iterator[Entries]
    shape: tuple[int, int]
    ids: tuple[np.ndarray, np.ndarray] | None
    given_twice: Callable[[int, int], ValueError] | None = None


def open_stream(
    name_or_path: str | os.PathLike, data_dir: str | os.PathLike | None = None, seed: int = 0
) -> EntryStream:
    """A stream of `sources.load`'s table, or of a synthetic matrix of any size.

    Of a text of pairs (`table_streams`) and of a synthetic matrix no more than a part is ever in
    memory; other files are read whole.

    Args:
      name_or_path: as for `sources.load`; ``synthetic:ROWSxCOLUMNSxCELLS`` is drawn as it is asked
        for.
      data_dir: likewise.
      seed: of synthetic matrices.

    Raises:
      ValueError: as `sources.load`, or sizes that are none.
    """
    name = os.fspath(name_or_path)
    if not name.startswith("synthetic:"):
        if name not in sources.SOURCES and os.path.isfile(name):
            pairs = table_streams.open_pairs(name)
            if pairs is not None:
                ids = pairs.row_ids, pairs.column_ids
                return EntryStream(pairs.chunks(), pairs.shape, ids, pairs.given_twice)
        table = sources.load(name, data_dir, seed)
        return EntryStream(_parts(table), table.entries.shape, (table.row_ids, table.column_ids))
    sizes = synthetic.sizes_named(name)
    return EntryStream(synthetic.low_rank_stream(seed, *sizes), sizes[:2], None)


def _parts(table: Table) -> Iterator[Entries]:
    entries = table.entries
    for begin in range(0, len(entries.values), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        rows, columns, values = (x[part] for x in (entries.rows, entries.columns, entries.values))
        yield Entries(rows, columns, values, entries.shape)
