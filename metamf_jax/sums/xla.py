"""Sums over a list of entries, for every platform. `metamf_jax.sums` decides when they are used.

The functions are those of `sums.numba`, with the same arguments; its `descend` is left to the scan
that it stands for (`map_estimation.descent`). Padding entries point one past the end: reading there
gives zero, and what is added there is dropped.
"""

import jax
import jax.numpy as jnp

from metamf_jax.types import Array


def take(table: Array, index: Array) -> jax.Array:
    """Rows ``index`` [E] of ``table`` [N, C]; zeros where the index is N. [E, C]."""
    return jnp.asarray(table).at[index].get(mode="fill", fill_value=0)


def pool(rows, columns, cells, shape):
    """`sums.pool` of a list: [E] int32 twice, [E, C], (N, M)."""
    return (
        jax.ops.segment_sum(cells, rows, shape[0]),
        jax.ops.segment_sum(cells, columns, shape[1]),
    )


def spread(rows, columns, row_table, column_table):
    """`sums.spread` of a list: [E] int32 twice, [N, C] and [M, C]."""
    return take(row_table, rows) + take(column_table, columns)


def residual_products(rows, columns, values, u, v):
    """`sums.residual_products` of a list: [E] int32 twice, [E], [N, K] and [M, K]."""
    values = jnp.where(rows < u.shape[0], values, 0)
    u_entries, v_entries = take(u, rows), take(v, columns)
    residuals = (values - (u_entries * v_entries).sum(axis=-1))[:, None]
    return (
        jax.ops.segment_sum(residuals * v_entries, rows, u.shape[0]),
        jax.ops.segment_sum(residuals * u_entries, columns, v.shape[0]),
    )


def row_normal_equations(rows, columns, values, v, num_rows):
    """`sums.row_normal_equations` of a list: [E] int32 twice, [E], [M, K], and N."""
    # Outer products take K^2 floats an entry, so they are made for a chunk of entries at a time.
    rank = v.shape[-1]
    length = max(min(4096, rows.shape[0]), 1)
    padding = -rows.shape[0] % length
    chunks = tuple(
        jnp.pad(x, (0, padding), constant_values=fill).reshape(-1, length)
        for x, fill in (
            (rows, num_rows),
            (columns, v.shape[0]),
            (jnp.where(rows < num_rows, values, 0), 0),
        )
    )

    def add(carry, chunk):
        gram, moment = carry
        rows, columns, values = chunk
        w = take(v, columns)
        gram = gram.at[rows].add(w[:, :, None] * w[:, None, :], mode="drop")
        return (gram, moment.at[rows].add(values[:, None] * w, mode="drop")), None

    zeros = jnp.zeros((num_rows, rank, rank), v.dtype), jnp.zeros((num_rows, rank), v.dtype)
    return jax.lax.scan(add, zeros, chunks)[0]


def exchange(rows, columns, cells, row_table, column_table):
    """`sums.exchange` of a list: [E] int32 twice, [E, C], [N, C] and [M, C]."""
    inside = (rows < row_table.shape[0])[:, None]
    active = jax.nn.relu(cells + spread(rows, columns, row_table, column_table))
    active = jnp.where(inside, active, 0)
    shape = row_table.shape[0], column_table.shape[0]
    return active, *pool(rows, columns, active, shape)


def predict(rows, columns, u, v):
    """`sums.predict`: [E] int32 twice, [N, K] and [M, K]."""
    return (take(u, rows) * take(v, columns)).sum(axis=-1)
