"""Sums over a list of cells, for every platform. `cells` decides when they are used.

The functions are those of `cells_numba`, with the same arguments. Padding cells point one past the
end: reading there gives zero, and what is added there is dropped.
"""

import jax
import jax.numpy as jnp

from metamf_jax.types import Array


def take(table: Array, index: Array) -> jax.Array:
    """Rows ``index`` [E] of ``table`` [N, C]; zeros where the index is N. [E, C]."""
    return jnp.asarray(table).at[index].get(mode="fill", fill_value=0)


def pool(rows, columns, cells, shape):
    """`cells.pool` of a list: [E] int32 twice, [E, C], (N, M)."""
    return (
        jax.ops.segment_sum(cells, rows, shape[0]),
        jax.ops.segment_sum(cells, columns, shape[1]),
    )


def spread(rows, columns, row_table, column_table):
    """`cells.spread` of a list: [E] int32 twice, [N, C] and [M, C]."""
    return take(row_table, rows) + take(column_table, columns)


def residual_products(rows, columns, values, u, v):
    """`cells.residual_products` of a list: [E] int32 twice, [E], [N, K] and [M, K]."""
    values = jnp.where(rows < u.shape[0], values, 0)
    u_cells, v_cells = take(u, rows), take(v, columns)
    residuals = (values - (u_cells * v_cells).sum(axis=-1))[:, None]
    return (
        jax.ops.segment_sum(residuals * v_cells, rows, u.shape[0]),
        jax.ops.segment_sum(residuals * u_cells, columns, v.shape[0]),
    )
