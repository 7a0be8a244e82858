"""Where the entries of a stratum come from: memory, or a block store, and which fit together.

Both sources give the same entries in the same order, so that the factors are the same to the last
bit.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from metamf_jax import parallel
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.blocks import BlockEntries, Blocks, shuffle_inside
from metamf_jax.factorization.sgd import SgdConfig
from metamf_jax.factorization.visits import Visits, block_rng


class Portion(NamedTuple):
    """Sub-epochs that are worked on in one program.

    Attributes:
      which: of the sub-epochs of the visits.
      entries: of the row blocks, on the devices.
      first: [P, S', Q], see `visits.Visits`; into `entries`.
      last: [P, S', Q].
    """

    which: slice
    entries: BlockEntries
    first: np.ndarray
    last: np.ndarray


class LastShuffle:
    """Entries on the devices in the order of a shuffle, of which the last is kept."""

    def __init__(self, place: Callable[[int], BlockEntries]):
        """`place` brings the entries of a shuffle, by its number, onto the devices."""
        self._place = place
        self._placed: dict[int, BlockEntries] = {}

    def __call__(self, shuffle: int) -> BlockEntries:
        """The entries of a shuffle."""
        if shuffle not in self._placed:
            self._placed.clear()  # First: both at once may not fit.
            self._placed[shuffle] = self._place(shuffle)
        return self._placed[shuffle]


def shuffled_entries(cut: Blocks, config: SgdConfig, shuffle: int) -> BlockEntries:
    """The entries with the insides of their sub-blocks in the order of a shuffle, from 0.

    Each starts from the order of the cut, so that a run that goes on finds the same as one that
    never stopped.
    """
    shuffled = cut.shuffled(block_rng(config, shuffle)) if shuffle else cut
    return shuffled.entries


class EntriesInMemory:
    """All entries of this process's row blocks, on its devices; any number of strata at once."""

    one_stratum_at_once = False

    def __init__(self, blocks: Blocks, config: SgdConfig, mesh: Mesh):
        """Of the blocks in the order that `config` says."""
        self._entries = LastShuffle(
            lambda shuffle: parallel.split_own(mesh, shuffled_entries(blocks, config, shuffle))
        )

    def portions(self, visits: Visits) -> Iterator[Portion]:
        """One portion."""
        yield Portion(slice(None), self._entries(visits.shuffle), visits.first, visits.last)


class EntriesInStore:
    """Those of one stratum, read while the stratum before is worked on: two are in memory."""

    one_stratum_at_once = True

    def __init__(self, store: BlockStore, config: SgdConfig, mesh: Mesh):
        """Of the store in the order that `config` says."""
        self._store, self._config, self._mesh = store, config, mesh

    def portions(self, visits: Visits) -> Iterator[Portion]:
        """A portion for each stratum."""
        # A store's entries come block by block, numbered from 0.
        rows = np.arange(self._store.num_blocks)[:, None]
        begin = self._store.offsets[rows, visits.schedule.T, :1]
        first, last = visits.first - begin, visits.last - begin

        def read(s):
            return _stratum_entries(self._store, self._config, visits.schedule[s], visits.shuffle)

        for s, entries in enumerate(parallel.prefetch(read, 0, len(visits.schedule))):
            which = slice(s, s + 1)
            entries = parallel.split_own(self._mesh, entries)
            yield Portion(which, entries, first[:, which], last[:, which])


def _stratum_entries(
    store: BlockStore, config: SgdConfig, stratum: np.ndarray, shuffle: int
) -> BlockEntries:
    """The entries of one stratum in `shuffled_entries`' order, [P', L] each, from disk.

    ``L`` is the number of entries in the largest of all blocks, the same for every stratum.
    """
    longest = max(1, int((store.offsets[:, :, -1] - store.offsets[:, :, 0]).max()))
    tables = BlockEntries(*(np.zeros((len(store.own), longest), t) for t in ("i4", "i4", "f4")))
    for k, i in enumerate(store.own):
        j = stratum[i]
        entries = store.read(i, j)
        if shuffle:
            entries = shuffle_inside(entries, store.offsets[i, j], block_rng(config, shuffle)(i, j))
        for table, x in zip(tables, entries, strict=True):
            table[k, : len(x)] = x
    return tables


def open_source(
    cut: Blocks | BlockStore, config: SgdConfig, mesh: Mesh
) -> EntriesInMemory | EntriesInStore:
    """The source of a cut's entries."""
    if isinstance(cut, BlockStore):
        return EntriesInStore(cut, config, mesh)
    return EntriesInMemory(cut, config, mesh)
