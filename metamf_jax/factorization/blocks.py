"""Cuts a matrix into P x P blocks of points, after a random permutation of rows and columns.

The permutation balances the blocks: rows are dealt out to the row blocks in random order, columns
alike. Within a block the points are sorted into Q sub-blocks, small enough that the factors that a
sub-block touches stay in a core's cache: to visit sub-blocks in a fresh order costs nothing, while
a fresh order over all points of a block costs a cache miss a point.
"""

import dataclasses
import math

import numpy as np

from metamf_jax.types import Entries

# Bytes of factors that one sub-block may touch: a first-level cache. At width 32 a core made 27
# million updates a second with 128 kB, 41 with 40 kB and 38 with 26 kB.
_CACHE_BYTES = 40_000


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


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The points of a matrix in P x P blocks of Q sub-blocks each.

    Attributes:
      u: where the rows went.
      v: where the columns went.
      rows: [P, L] int32, place in the row block of each point, row block by row block; in each, the
        points of column block 0 come first, and there those of sub-block 0.
      columns: [P, L] int32, place in the column block.
      values: [P, L] float32.
      offsets: [P, P, Q + 1] int32: sub-block q of block (i, j) are the points from
        ``offsets[i, j, q]`` up to ``offsets[i, j, q + 1]`` of row block i.
    """

    u: Side
    v: Side
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    offsets: np.ndarray

    def shuffled(self, rng: np.random.Generator) -> "Blocks":
        """The same with the points of every sub-block in a fresh random order."""
        rows, columns, values = (np.empty_like(x) for x in (self.rows, self.columns, self.values))
        for i, ends in enumerate(self.offsets[:, :, 1:]):
            end = int(ends[-1, -1])
            lengths = np.diff(ends.ravel(), prepend=0)
            sub_block = np.repeat(np.arange(lengths.size, dtype=np.float64), lengths)
            order = np.argsort(sub_block + rng.random(end))
            for new, old in ((rows, self.rows), (columns, self.columns), (values, self.values)):
                new[i, :end] = old[i, order]
                new[i, end:] = 0
        return dataclasses.replace(self, rows=rows, columns=columns, values=values)


def _deal(size: int, num_blocks: int, rng: np.random.Generator) -> Side:
    rank = rng.permutation(size).astype(np.int32)
    return Side(rank % num_blocks, rank // num_blocks, (num_blocks, -(-size // num_blocks)))


def cuts_for_cache(shape: tuple[int, int], num_blocks: int, width: int, num_points: int) -> int:
    """Into how many parts to cut each side of a block, so that a sub-block's factors fit the cache.

    Args:
      shape: (N, M).
      num_blocks: P.
      width: columns of the factors.
      num_points: in the whole matrix; a sub-block shall hold 64 on average.
    """
    bytes_of_block = 4 * width * (shape[0] + shape[1]) / num_blocks
    most = math.isqrt(max(1, num_points // (64 * num_blocks**2)))
    return max(1, min(most, math.ceil(bytes_of_block / _CACHE_BYTES)))


def make_blocks(entries: Entries, num_blocks: int, cuts: int, rng: np.random.Generator) -> Blocks:
    """Cuts the matrix.

    Args:
      entries: the points, without padding; NumPy.
      num_blocks: P, blocks per side.
      cuts: parts per side of a block: ``Q = cuts^2``.
      rng: permutes rows, columns and points.

    Raises:
      ValueError: more blocks than rows or columns.
    """
    if not 1 <= num_blocks <= min(entries.shape):
        raise ValueError(
            f"expected a number of blocks from 1 to {min(entries.shape)}, the smaller side of a"
            f" matrix of shape {entries.shape}, got {num_blocks}"
        )
    u, v = (_deal(size, num_blocks, rng) for size in entries.shape)
    rows, columns, values = (np.asarray(x) for x in (entries.rows, entries.columns, entries.values))
    sub_block = [
        side.place[ids].astype(np.int64) * cuts // side.shape[1]
        for side, ids in ((u, rows), (v, columns))
    ]
    cell = u.block[rows].astype(np.int64) * num_blocks + v.block[columns]
    cell = (cell * cuts + sub_block[0]) * cuts + sub_block[1]
    shuffle = rng.permutation(len(values))
    order = shuffle[np.argsort(cell[shuffle], kind="stable")]
    counts = np.bincount(cell, minlength=(num_blocks * cuts) ** 2)
    counts = counts.reshape(num_blocks, num_blocks, cuts**2)

    ends = counts.reshape(num_blocks, -1).cumsum(axis=1).reshape(counts.shape)
    offsets = np.concatenate([ends[:, :, :1] - counts[:, :, :1], ends], axis=2)
    lengths = counts.sum(axis=(1, 2))
    inside = np.arange(max(1, lengths.max())) < lengths[:, None]

    def padded(x):
        table = np.zeros(inside.shape, x.dtype)
        table[inside] = x[order]
        return table

    return Blocks(
        u,
        v,
        padded(u.place[rows]),
        padded(v.place[columns]),
        padded(values.astype(np.float32)),
        offsets.astype(np.int32),
    )
