"""The types that travel through the package. No logic.

A cell is any place of a matrix; an entry is an observed cell: row, column and value.

Sizes: ``N`` rows, ``M`` columns, ``E`` entries (padding included), ``K`` rank, ``B`` matrices in a
batch. Any of these types may carry leading batch axes on every array.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entries:
    """The observed entries of one matrix, as a list in any order.

    A padding entry has ``rows == N`` and ``columns == M``, one past the end; its value is not read.

    Attributes:
      rows: [E] int32, row of each entry.
      columns: [E] int32, column of each entry.
      values: [E] float32; or float64, of a matrix to be imputed.
      shape: (N, M), static under ``jax.jit``.
    """

    rows: Array
    columns: Array
    values: Array
    shape: tuple[int, int] = dataclasses.field(metadata={"static": True})


class PaddedMatrices(NamedTuple):
    """Dense matrices with a mask.

    Attributes:
      values: [N, M] float32; what stands at an unobserved cell is never read.
      observed: [N, M] bool.
    """

    values: Array
    observed: Array


class FactorPrior(NamedTuple):
    """Independent isotropic Gaussian priors on every row and column factor.

    Attributes:
      u_mean: [N, K] prior means of the row factors.
      v_mean: [M, K] prior means of the column factors.
      u_precision: [N] prior precisions, positive.
      v_precision: [M] prior precisions, positive.
    """

    u_mean: Array
    v_mean: Array
    u_precision: Array
    v_precision: Array


class Factors(NamedTuple):
    """A factorization ``x_nm ~ u_n . v_m``.

    Attributes:
      u: [N, K] row factors.
      v: [M, K] column factors.
    """

    u: Array
    v: Array


class Table(NamedTuple):
    """A matrix as read from a file: its entries, and the names of its rows and columns.

    Attributes:
      entries: NumPy arrays, in the order of the file.
      row_ids: [N] strings or integers; row ``n`` of ``entries`` is ``row_ids[n]`` in the file.
      column_ids: [M] likewise.
      times: [E] int64 seconds, or None where the source has none.
      entry_features: [E] each, by name: float64, NaN where blank, or strings (object).
    """

    entries: Entries
    row_ids: np.ndarray
    column_ids: np.ndarray
    times: np.ndarray | None = None
    entry_features: Mapping[str, np.ndarray] = MappingProxyType({})


class FeatureColumn(NamedTuple):
    """A column of a table of features.

    Attributes:
      name: as in the header.
      kind: "number", "category" or "labels".
      values: [N] float64, NaN where a number is missing; or strings (object), "" where there is
        none, several labels separated by ``|``.
    """

    name: str
    kind: str
    values: np.ndarray


class FeatureTable(NamedTuple):
    """What a user tells of the rows, or of the columns, of a matrix.

    Attributes:
      path: of the file.
      ids: [N] strings or integers, of the rows told of.
      columns: of the table, at least one.
    """

    path: str
    ids: np.ndarray
    columns: tuple[FeatureColumn, ...]
