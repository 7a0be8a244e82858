"""Finds the rows of a fitted matrix again by what they hold.

Where the transpose is fitted, what a row was answered with is not a function of its cells alone;
yet to fold the same row in must give the same.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from metamf_jax.types import Entries


class RowIndex(NamedTuple):
    """Rows that have a cell, sorted by a digest of their cells' columns and values.

    Attributes:
      digests: [R] uint64.
      numbers: [R], the rows.
    """

    digests: np.ndarray
    numbers: np.ndarray


def build(entries: Entries) -> RowIndex:
    """The index of a matrix with at least one cell."""
    order = np.lexsort([entries.columns, entries.rows])
    rows, columns = np.asarray(entries.rows)[order], np.asarray(entries.columns)[order]
    numbers, firsts = np.unique(rows, return_index=True)
    values = np.asarray(entries.values)[order]
    parts = zip(np.split(columns, firsts[1:]), np.split(values, firsts[1:]), strict=True)
    digests = np.array([_digest(*part) for part in parts], np.uint64)
    by_digest = np.argsort(digests, kind="stable")
    return RowIndex(digests[by_digest], numbers[by_digest])


def find(index: RowIndex, values: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The number of the fitted row with the same cells, of several the last; -1 for none; [N'].

    Args:
      index: of the fitted matrix.
      values: [N', M], whatever the unobserved cells hold.
      observed: [N', M] bool.
    """
    seen = map(np.flatnonzero, observed)
    parts = zip(values, seen, strict=True)
    digests = np.array([_digest(columns, row[columns]) for row, columns in parts], np.uint64)
    places = np.searchsorted(index.digests, digests, side="right") - 1
    same = (places >= 0) & (index.digests[places] == digests)
    return np.where(same, index.numbers[places], -1)


def _digest(columns: np.ndarray, values: np.ndarray) -> int:
    cells = columns.astype(np.int64).tobytes() + values.astype(np.float64).tobytes()
    return int.from_bytes(hashlib.blake2b(cells, digest_size=8).digest())
