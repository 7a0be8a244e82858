"""Padding ragged lists of entries to a few sizes, and back. NumPy only.

Compiled functions take arrays of fixed shapes, so batches are padded up to bucket sizes: at most a
third is wasted, and each bucket compiles once.
"""

from collections.abc import Sequence

import numpy as np

from metamf_jax.types import Entries, PaddedMatrices


def bucket_size(size: int, smallest: int = 64) -> int:
    """The least of ``smallest * (1, 1.5, 2, 3, 4, 6, 8, ...)`` that is at least ``size``."""
    bucket = smallest
    while bucket < size:
        bucket = bucket * 3 // 2 if bucket & (bucket - 1) == 0 else bucket * 4 // 3
    return bucket


def stack_entries(matrices: Sequence[Entries], shape: tuple[int, int], length: int) -> Entries:
    """Stacks lists of entries into one batch.

    Args:
      matrices: B matrices of at most ``shape``, with at most ``length`` entries each.
      shape: (N, M) of the batch.
      length: E of the batch.

    Returns:
      Entries with [B, E] arrays; padding entries stand at row N and column M with value 0.

    Raises:
      ValueError: a matrix does not fit.
    """
    batch = len(matrices)
    rows = np.full((batch, length), shape[0], np.int32)
    columns = np.full((batch, length), shape[1], np.int32)
    values = np.zeros((batch, length), np.float32)
    for b, matrix in enumerate(matrices):
        count = len(matrix.rows)
        if count > length or matrix.shape[0] > shape[0] or matrix.shape[1] > shape[1]:
            raise ValueError(
                f"matrix {b} of shape {matrix.shape} with {count} entries does not fit into shape "
                f"{shape} with {length} entries"
            )
        rows[b, :count] = matrix.rows
        columns[b, :count] = matrix.columns
        values[b, :count] = matrix.values
    return Entries(rows, columns, values, shape)


def unstack_entries(batch: Entries) -> list[Entries]:
    """The matrices of a batch, each without its padding; all keep the batch's shape."""
    matrices = []
    for rows, columns, values in zip(batch.rows, batch.columns, batch.values, strict=True):
        inside = rows < batch.shape[0]
        matrices.append(Entries(rows[inside], columns[inside], values[inside], batch.shape))
    return matrices


def pad_dense(entries: Entries) -> PaddedMatrices:
    """The same matrix or batch of matrices as dense arrays [..., N, M] with a mask."""
    batch = entries.rows.shape[:-1]
    # One row and column more take the padding entries, and are cut off again.
    shape = (*batch, entries.shape[0] + 1, entries.shape[1] + 1)
    values, observed = np.zeros(shape, np.float32), np.zeros(shape, bool)
    leading = tuple(axis[..., None] for axis in np.indices(batch, sparse=True))
    index = (*leading, entries.rows, entries.columns)
    values[index], observed[index] = entries.values, True
    return PaddedMatrices(values[..., :-1, :-1], observed[..., :-1, :-1])
