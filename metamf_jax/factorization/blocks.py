"""Cuts a matrix into P x P blocks of entries, after a random permutation of rows and columns.

The permutation balances the blocks: rows are dealt out to the row blocks in random order, columns
alike. Within a block the entries are sorted into Q sub-blocks, small enough that the factors that a
sub-block touches stay in a core's cache: to visit sub-blocks in a fresh order costs nothing, while
a fresh order over all entries of a block costs a cache miss an entry.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

import numpy as np

from metamf_jax.types import Array, Entries

# Bytes of factors that one sub-block may touch: what a second-level cache holds beside the entries.
# A core that visits four entries at a time waits little for it; the smaller the sub-block, the more
# often two of the four share a row or column, and the fewer of a row's entries are in one. At width
# 32 a core made 49 million updates a second on MovieLens-1M with 300 kB and with 80 kB, 47 with 40.
_CACHE_BYTES = 250_000

_ENTRIES_A_BLOCK = 50_000

# With so many sub-blocks, which are visited in a fresh order, the order inside them is drawn anew
# but rarely: blocks that are large enough are cut into as many.
MANY_SUB_BLOCKS: Final = 8
_ENTRIES_A_PART = 2000

# Sub-blocks that a GPU visits side by side, at most: eight on each of 132 multiprocessors. Smaller
# ones than of so many entries would differ too much in size, and the largest is waited for.
_MOST_ABREAST, _ENTRIES_ABREAST = 1024, 32


@dataclasses.dataclass(frozen=True)
class Side:
    """Where the rows (or the columns) of the matrix went.

    Attributes:
      block: [N] int32, block of each row.
      place: [N] int32, its place in the block.
      shape: (P, R): number of blocks, and rows in the largest.
    """

    block: np.ndarray
    place: np.ndarray
    shape: tuple[int, int]

    def split(self, x: np.ndarray) -> np.ndarray:
        """[N, ...] in the matrix's order -> [P, R, ...] in blocks, zero where a block is short."""
        x = np.asarray(x)
        blocks = np.zeros((*self.shape, *x.shape[1:]), x.dtype)
        blocks[self.block, self.place] = x
        return blocks

    def join(self, blocks: np.ndarray) -> np.ndarray:
        """Undoes `split`."""
        return np.asarray(blocks)[self.block, self.place]

    @property
    def size(self) -> int:
        """N."""
        return len(self.block)


# Draws the order of the entries of block (i, j).
BlockRng: TypeAlias = Callable[[int, int], np.random.Generator]


class BlockEntries(NamedTuple):
    """Entries in blocks: places in row and column block, and values.

    [L] each of one block, [B, L] each of B row blocks.
    """

    rows: Array
    columns: Array
    values: Array


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The entries of a matrix in P x P blocks of Q sub-blocks each.

    Attributes:
      u: where the rows went.
      v: where the columns went.
      offsets: [P, P, Q + 1] int32: sub-block q of block (i, j) are the entries from
        ``offsets[i, j, q]`` up to ``offsets[i, j, q + 1]`` of row block i.
      cuts: parts of a block's rows and of its columns, together Q.
      own: the row blocks whose entries are here, P' of them; the others' are in other processes.
      entries: [P', L] each, row block by row block; in each, the entries of column block 0 come
        first, and there those of sub-block 0.
    """

    u: Side
    v: Side
    offsets: np.ndarray
    cuts: tuple[int, int]
    own: range
    entries: BlockEntries

    @property
    def num_blocks(self) -> int:
        """P."""
        return len(self.offsets)

    @property
    def num_entries(self) -> int:
        """E, of all processes."""
        return int(self.offsets[:, -1, -1].sum())

    def read(self, i: int, j: int) -> BlockEntries:
        """The entries of block (i, j), of a row block that is here."""
        span = slice(self.offsets[i, j, 0], self.offsets[i, j, -1])
        return BlockEntries(*(x[i - self.own.start, span] for x in self.entries))

    def shuffled(self, rng: BlockRng) -> "Blocks":
        """The same with the entries of every sub-block in a fresh random order."""
        entries = BlockEntries(*map(np.zeros_like, self.entries))
        for k, i in enumerate(self.own):
            for j, ends in enumerate(self.offsets[i]):
                for new, x in zip(
                    entries, shuffle_inside(self.read(i, j), ends, rng(i, j)), strict=True
                ):
                    new[k, ends[0] : ends[-1]] = x
        return dataclasses.replace(self, entries=entries)


def shuffle_inside(
    entries: BlockEntries, offsets: np.ndarray, rng: np.random.Generator
) -> BlockEntries:
    """Entries of one block, those of every sub-block in a fresh random order.

    Args:
      entries: sub-block by sub-block.
      offsets: [Q + 1], where the sub-blocks begin, from any number on.
      rng: draws the order.
    """
    order = _order_inside(np.asarray(offsets) - offsets[0], rng)
    return BlockEntries(*(x[order] for x in entries))


def _order_inside(offsets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order in which sub-blocks, [Q + 1] offsets from 0, stay where they are."""
    spans = zip(offsets[:-1], np.diff(offsets), strict=True)
    return np.concatenate([first + rng.permutation(count) for first, count in spans])


def side_of_ranks(rank: np.ndarray, num_blocks: int) -> Side:
    """Deals rows out to P blocks in turn, in the order of their ranks [N] int32."""
    return Side(rank % num_blocks, rank // num_blocks, (num_blocks, -(-len(rank) // num_blocks)))


def number_of_blocks(num_entries: int, shape: tuple[int, int]) -> int:
    """P for a matrix: a power of two, so that a block holds 50,000 entries or more on average.

    To start a stratum takes some 0.3 ms: at rank 64 an epoch on MovieLens-100K took 1.0 ms in one
    block and 1.5 in two on two devices; on MovieLens-1M 8.9 ms in one block, 5.3 and 5.2 in two and
    four on two devices, 8.2 in eight.

    Args:
      num_entries: in the matrix.
      shape: (N, M).
    """
    most = min(*shape, math.sqrt(num_entries / _ENTRIES_A_BLOCK))
    return 2 ** max(0, int(math.log2(max(1, most))))


def cuts_for_cache(
    shape: tuple[int, int], num_blocks: int, width: int, num_entries: int
) -> tuple[int, int]:
    """Into how many parts to cut the sides of a block, so that a sub-block's factors fit the cache.

    A sub-block is as square as may be: so its rows and columns meet most often.

    Args:
      shape: (N, M).
      num_blocks: P.
      width: columns of the factors.
      num_entries: in the whole matrix; a sub-block shall hold 64 on average, or 2000 where it is
        cut to have many.

    Returns:
      Parts of the rows and of the columns.
    """
    room = max(2, _CACHE_BYTES // (4 * width))  # Rows and columns together.
    heights = [-(-size // num_blocks) for size in shape]
    parts = [
        -(-height // max(room // 2, room - other))
        for height, other in zip(heights, heights[::-1], strict=True)
    ]
    most = max(1, num_entries // (64 * num_blocks**2))
    shrink = min(1.0, math.sqrt(most / math.prod(parts)))
    rows, columns = (max(1, int(part * shrink)) for part in parts)
    while rows * columns < MANY_SUB_BLOCKS <= num_entries // (_ENTRIES_A_PART * num_blocks**2):
        if heights[0] * columns > heights[1] * rows:
            rows *= 2
        else:
            columns *= 2
    return rows, columns


def cuts_for_strata(shape: tuple[int, int], num_blocks: int, num_entries: int) -> tuple[int, int]:
    """Into how many parts to cut the sides of a block, as many of rows as of columns.

    Args:
      shape: (N, M).
      num_blocks: P.
      num_entries: in the whole matrix.
    """
    fits = math.isqrt(num_entries // (_ENTRIES_ABREAST * num_blocks**2))
    parts = max(1, min(_MOST_ABREAST, fits, *(size // num_blocks for size in shape)))
    return parts, parts


def deal_sides(
    shape: tuple[int, int], num_blocks: int, rng: np.random.Generator
) -> tuple[Side, Side]:
    """Deals rows and columns out to P blocks each, at random.

    Raises:
      ValueError: more blocks than rows or columns.
    """
    if not 1 <= num_blocks <= min(shape):
        raise ValueError(
            f"expected a number of blocks from 1 to {min(shape)}, the smaller side of a"
            f" matrix of shape {shape}, got {num_blocks}"
        )
    u, v = (side_of_ranks(rng.permutation(size).astype(np.int32), num_blocks) for size in shape)
    return u, v


def even_ranks(
    counts: np.ndarray, num_blocks: int, parts: int, rng: np.random.Generator
) -> np.ndarray:
    """Ranks for `side_of_ranks` that give all parts of all blocks about as many entries.

    Rows are dealt out in turn, there and back, those with the most entries first.

    Args:
      counts: [N], entries of each row.
      num_blocks: P.
      parts: of a block, see `cuts_for_strata`.
      rng: orders rows with equally many entries.

    Returns:
      [N] int32.
    """
    size = len(counts)
    ranks = np.arange(size)
    side = side_of_ranks(ranks, num_blocks)
    bins = side.place * parts // side.shape[1] * num_blocks + side.block
    held = np.bincount(bins)
    by_bin = _stable_order(bins, len(held))
    turn = np.empty(size, np.int64)
    turn[by_bin] = ranks - np.repeat(held.cumsum() - held, held)
    slots = np.lexsort((np.where(turn % 2, -bins, bins), turn))
    rank = np.empty(size, np.int32)
    rank[np.lexsort((rng.permutation(size), -counts))] = slots
    return rank


def _stable_order(numbers: np.ndarray, size: int) -> np.ndarray:
    """Sorts numbers below `size`. NumPy sorts those of 16 bits and less by radix."""
    return np.argsort(numbers.astype(np.min_scalar_type(size)), kind="stable")


def _sub_blocks(sides: tuple[Side, Side], places, cuts: tuple[int, int]) -> np.ndarray:
    """Which sub-block of its block each entry is in, from its places in row and column block."""
    row, column = (
        place.astype(np.int64) * parts // side.shape[1]
        for place, side, parts in zip(places, sides, cuts, strict=True)
    )
    return row * cuts[1] + column


def cut_row_block(
    i: int,
    sides: tuple[Side, Side],
    entries: BlockEntries,
    column_blocks: np.ndarray,
    cuts: tuple[int, int],
    rng: BlockRng,
) -> tuple[BlockEntries, np.ndarray]:
    """Sorts the entries of one row block by column block and sub-block, inside those at random.

    Args:
      i: number of the row block.
      sides: from `deal_sides`.
      entries: [L] each, in the order of the input.
      column_blocks: [L], column block of each.
      cuts: parts of a block's rows and of its columns, together Q.
      rng: draws the order of each block's entries.

    Returns:
      The entries sorted, and offsets [P, Q + 1] int32 into them.
    """
    num_blocks = sides[1].shape[0]
    order = _stable_order(column_blocks, num_blocks)
    ends = np.bincount(column_blocks, minlength=num_blocks).cumsum()
    counts = np.empty((num_blocks, math.prod(cuts)), np.int64)
    for j in range(num_blocks):
        span = order[ends[j - 1] if j else 0 : ends[j]]
        sub_block = _sub_blocks(sides, (entries.rows[span], entries.columns[span]), cuts)
        counts[j] = np.bincount(sub_block, minlength=math.prod(cuts))
        inside = _order_inside(np.concatenate([[0], counts[j].cumsum()]), rng(i, j))
        span = span[_stable_order(sub_block, math.prod(cuts))[inside]]
        order[ends[j] - len(span) : ends[j]] = span
    return BlockEntries(*(x[order] for x in entries)), _offsets(counts)


def _offsets(counts: np.ndarray) -> np.ndarray:
    """Numbers of entries [P, Q] of the sub-blocks of a row block -> offsets [P, Q + 1]."""
    ends = counts.ravel().cumsum().reshape(counts.shape)
    return np.concatenate([ends[:, :1] - counts[:, :1], ends], axis=1).astype(np.int32)


def make_blocks(
    entries: Entries,
    num_blocks: int,
    cuts: tuple[int, int],
    rng: np.random.Generator,
    block_rng: BlockRng,
    own: range | None = None,
    even: bool = False,
) -> Blocks:
    """Cuts the matrix.

    Args:
      entries: of the matrix, without padding; NumPy.
      num_blocks: P, blocks per side.
      cuts: parts of a block's rows and of its columns, together Q.
      rng: permutes rows and columns.
      block_rng: draws the order of each block's entries.
      own: the row blocks whose entries to keep; None for all.
      even: whether rows and columns are dealt out by `even_ranks`.

    Raises:
      ValueError: more blocks than rows or columns.
    """
    u, v = deal_sides(entries.shape, num_blocks, rng)
    if even:
        u, v = (
            side_of_ranks(
                even_ranks(np.bincount(ids, minlength=size), num_blocks, parts, rng), num_blocks
            )
            for ids, size, parts in zip(
                (entries.rows, entries.columns), entries.shape, cuts, strict=True
            )
        )
    sides = u, v
    own = range(num_blocks) if own is None else own
    rows, columns, values = (np.asarray(x) for x in (entries.rows, entries.columns, entries.values))
    blocks = u.block[rows], v.block[columns]
    block = blocks[0].astype(np.int64) * num_blocks + blocks[1]
    places = u.place[rows], v.place[columns]
    each = math.prod(cuts)
    sub_block = block * each + _sub_blocks(sides, places, cuts)
    counts = np.bincount(sub_block, minlength=num_blocks**2 * each)
    counts = counts.reshape(num_blocks, num_blocks, each)
    longest = max(1, counts.sum(axis=(1, 2)).max())

    table = BlockEntries(*(np.zeros((len(own), longest), t) for t in ("i4", "i4", "f4")))
    order = _stable_order(blocks[0], num_blocks)
    ends = counts.sum(axis=(1, 2)).cumsum()
    for k, i in enumerate(own):
        span = order[ends[i - 1] if i else 0 : ends[i]]
        listed = BlockEntries(places[0][span], places[1][span], values[span].astype(np.float32))
        listed, _ = cut_row_block(i, sides, listed, blocks[1][span], cuts, block_rng)
        for padded, x in zip(table, listed, strict=True):
            padded[k, : len(span)] = x
    return Blocks(u, v, np.stack([_offsets(c) for c in counts]), cuts, own, table)
