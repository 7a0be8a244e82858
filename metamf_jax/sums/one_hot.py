"""Sums over a short list of entries as products with the indices' one-hot matrices.

`metamf_jax.sums` has them on request: they take E (N + M) C multiplications where `sums.xla` takes
E C additions, but differentiate any number of times into products alone. The gradient of a few
steps of gradient descent (`baselines.maml`) compiles in 8 s so, and not within minutes by
scattered additions. The functions are those of `sums.xla`, with the same arguments.
"""

import functools

import jax
import jax.numpy as jnp

from metamf_jax.types import Array

_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _one_hot(index: Array, size: int) -> jax.Array:
    """[E, N], zero where the index is N."""
    return jax.nn.one_hot(index, size, dtype=jnp.float32)


def pool(rows, columns, cells, shape):
    """`sums.pool` of a list: [E] int32 twice, [E, C], (N, M)."""
    # Zero times what stands at padding entries need not be zero.
    cells = jnp.where((rows < shape[0])[:, None], cells, 0)
    return _product(_one_hot(rows, shape[0]).T, cells), _product(
        _one_hot(columns, shape[1]).T, cells
    )


def spread(rows, columns, row_table, column_table):
    """`sums.spread` of a list: [E] int32 twice, [N, C] and [M, C]."""
    of_rows = _product(_one_hot(rows, len(row_table)), row_table)
    return of_rows + _product(_one_hot(columns, len(column_table)), column_table)


def exchange(rows, columns, cells, row_table, column_table):
    """`sums.exchange` of a list: [E] int32 twice, [E, C], [N, C] and [M, C]."""
    active = jax.nn.relu(cells + spread(rows, columns, row_table, column_table))
    active = jnp.where((rows < len(row_table))[:, None], active, 0)
    return active, *pool(rows, columns, active, (len(row_table), len(column_table)))
