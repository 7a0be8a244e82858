"""Answers from factors: values of listed cells, and the best columns of rows."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax.types import Array, Factors

# Floats that a step of the work may take: gathered factors, or the values of some rows.
_FLOATS_AT_ONCE = 1 << 24


def with_unknown(factors: Factors) -> Factors:
    """Appends to both sides what answers for an unknown row or column: the mean of the known ones.

    Number -1 then means "unknown": the value of a known column in an unknown row is the mean of its
    values over all rows, that of a cell of which neither is known the mean over all cells. (Where
    rows carry a Gaussian prior, the mean over them is the estimate of its mean.)

    Args:
      factors: ``u`` [N, K] and ``v`` [M, K].

    Returns:
      [N + 1, K] and [M + 1, K].
    """
    sides = (np.asarray(f) for f in factors)
    return Factors(*(np.concatenate([f, f.mean(0, keepdims=True, dtype=f.dtype)]) for f in sides))


def predict(factors: Factors, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """``u_n . v_m`` at the cells ``(rows, columns)``, each [P] int.

    Returns:
      [P] float32; under the loss `logistic` the log odds of the label 1.
    """
    u, v = map(np.asarray, factors)
    values = np.empty(len(rows), np.float32)
    step = max(1, _FLOATS_AT_ONCE // u.shape[1])
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        values[part] = np.einsum("pk,pk->p", u[rows[part]], v[columns[part]])
    return values


@jax.jit
def _products(u: Array, v: Array) -> Array:
    return jnp.matmul(u, v.T, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, static_argnums=2)
def _largest(values: Array, excluded: Array, count: int) -> tuple[Array, Array]:
    # Excluded columns are numbers; M, one past the end, fills the table up.
    values = (
        jnp.asarray(values)
        .at[jnp.arange(len(values))[:, None], excluded]
        .set(-jnp.inf, mode="drop")
    )
    best, columns = jax.lax.top_k(values, count)
    return best, columns


def top_columns(
    factors: Factors, rows: np.ndarray, count: int, excluded: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The columns with the largest values in each row, the largest first, ties by number.

    Args:
      factors: ``u`` [N, K] and ``v`` [M, K].
      rows: [R] int, the rows asked for.
      count: columns wanted a row.
      excluded: (rows [X] int, columns [X] int), cells that are not to be named; those of rows that
        were not asked for are not read.

    Returns:
      columns [R, C] int32 and values [R, C] float32, ``C = min(count, M)``; where a row has fewer
      columns left, they end in M and -inf.
    """
    u, v = map(np.asarray, factors)
    return largest_columns(
        lambda part: _products(u[part], v), rows, len(v), count, excluded, len(v) + u.shape[1]
    )


def largest_columns(
    values_of: Callable[[np.ndarray], Array],
    rows: np.ndarray,
    num_columns: int,
    count: int,
    excluded: tuple[np.ndarray, np.ndarray],
    floats_of_row: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`top_columns` of values that some function computes.

    Args:
      values_of: from [B] of the rows to their values [B, M].
      rows: [R] int.
      num_columns: M.
      count: as in `top_columns`.
      excluded: likewise.
      floats_of_row: that the function takes for a row, by which B is chosen.
    """
    rows, count = np.asarray(rows), min(count, num_columns)
    step = max(1, min(len(rows), _FLOATS_AT_ONCE // floats_of_row))
    order = np.argsort(excluded[0], kind="stable")
    excluded_rows, excluded_columns = (np.asarray(x)[order] for x in excluded)
    first, last = (np.searchsorted(excluded_rows, rows, side) for side in ("left", "right"))
    longest = int((last - first).max(initial=0))
    best = np.empty((len(rows), count), np.int32), np.empty((len(rows), count), np.float32)
    for start in range(0, len(rows), step):
        # The last part repeats its first row, so that all parts have one shape.
        part = np.arange(start, start + step)
        part[part >= len(rows)] = start
        place = first[part, None] + np.arange(longest)
        inside = place < last[part, None]
        table = np.full(place.shape, num_columns, np.int32)
        table[inside] = excluded_columns[place[inside]]
        values, columns = map(np.asarray, _largest(values_of(rows[part]), table, count))
        size = min(step, len(rows) - start)
        left = np.isfinite(values[:size])
        best[0][start : start + size] = np.where(left, columns[:size], num_columns)
        best[1][start : start + size] = values[:size]
    return best
