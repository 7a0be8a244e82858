"""Compiled CPU kernels for the sums over a list of cells. `cells` decides when they are used.

Each kernel goes through the cells once, in the order of the list, so that its sums do not depend on
how many matrices or devices there are. Padding cells (``rows == N``) are skipped unread.
"""

import functools

import jax
import numpy as np

from metamf_jax import cells_xla
from metamf_jax.numba_ffi import NumbaKernel

_INDEX, _VECTOR, _TABLE = "int32[:]", "float32[:]", "float32[:,:]"


def _pool(rows, columns, cells, row_sums, column_sums):
    num_channels = cells.shape[1]
    row_sums[:] = 0
    column_sums[:] = 0
    for e in range(rows.shape[0]):
        n, m = rows[e], columns[e]
        if n < row_sums.shape[0]:
            for c in range(num_channels):
                row_sums[n, c] += cells[e, c]
                column_sums[m, c] += cells[e, c]


def _spread_rows_and_columns(rows, columns, row_table, column_table, cells):
    num_channels = cells.shape[1]
    for e in range(rows.shape[0]):
        n, m = rows[e], columns[e]
        if n < row_table.shape[0]:
            for c in range(num_channels):
                cells[e, c] = row_table[n, c] + column_table[m, c]
        else:
            cells[e] = 0


def _residual_products(rows, columns, values, u, v, row_products, column_products):
    rank = u.shape[1]
    row_products[:] = 0
    column_products[:] = 0
    for e in range(rows.shape[0]):
        n, m = rows[e], columns[e]
        if n < u.shape[0]:
            fitted = np.float32(0)
            for k in range(rank):
                fitted += u[n, k] * v[m, k]
            residual = values[e] - fitted
            for k in range(rank):
                row_products[n, k] += residual * v[m, k]
                column_products[m, k] += residual * u[n, k]


def _residual_products_adjoint(
    rows, columns, values, u, v, row_weights, column_weights, values_grad, u_grad, v_grad
):
    rank = u.shape[1]
    u_grad[:] = 0
    v_grad[:] = 0
    for e in range(rows.shape[0]):
        n, m = rows[e], columns[e]
        values_grad[e] = 0
        if n < u.shape[0]:
            fitted, slope = np.float32(0), np.float32(0)
            for k in range(rank):
                fitted += u[n, k] * v[m, k]
                slope += v[m, k] * row_weights[n, k] + u[n, k] * column_weights[m, k]
            residual = values[e] - fitted
            values_grad[e] = slope
            for k in range(rank):
                u_grad[n, k] += residual * column_weights[m, k] - slope * v[m, k]
                v_grad[m, k] += residual * row_weights[n, k] - slope * u[n, k]


_pool_kernel = NumbaKernel(_pool, arguments=(_INDEX, _INDEX, _TABLE), results=(_TABLE, _TABLE))
_spread_kernel = NumbaKernel(
    _spread_rows_and_columns, arguments=(_INDEX, _INDEX, _TABLE, _TABLE), results=(_TABLE,)
)
_products_kernel = NumbaKernel(
    _residual_products,
    arguments=(_INDEX, _INDEX, _VECTOR, _TABLE, _TABLE),
    results=(_TABLE, _TABLE),
)
_adjoint_kernel = NumbaKernel(
    _residual_products_adjoint,
    arguments=(_INDEX, _INDEX, _VECTOR, _TABLE, _TABLE, _TABLE, _TABLE),
    results=(_VECTOR, _TABLE, _TABLE),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def pool(rows, columns, cells, shape):
    """`cells.pool` of a list: [E] int32 twice, [E, C] float32, (N, M)."""
    channels = cells.shape[1]
    return _pool_kernel(rows, columns, cells, shapes=[(shape[0], channels), (shape[1], channels)])


def spread(rows, columns, row_table, column_table):
    """`cells.spread` of a list: [E] int32 twice, [N, C] and [M, C] float32."""
    shape = row_table.shape[0], column_table.shape[0]
    return _spread(rows, columns, row_table, column_table, shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _spread(rows, columns, row_table, column_table, shape):
    cells_shape = rows.shape[0], row_table.shape[1]
    return _spread_kernel(rows, columns, row_table, column_table, shapes=[cells_shape])[0]


pool.defvjp(
    lambda rows, columns, cells, shape: (pool(rows, columns, cells, shape), (rows, columns)),
    lambda shape, index, sums: (None, None, _spread(*index, *sums, shape)),
)
_spread.defvjp(
    lambda rows, columns, *rest: (_spread(rows, columns, *rest), (rows, columns)),
    lambda shape, index, cells: (None, None, *pool(*index, cells, shape)),
)


@jax.custom_vjp
def residual_products(rows, columns, values, u, v):
    """`cells.residual_products` of a list: [E] int32 twice, [E], [N, K] and [M, K] float32."""
    return _products_kernel(rows, columns, values, u, v, shapes=[u.shape, v.shape])


@jax.custom_vjp
def _products_adjoint(arguments, weights):
    """Gradients of the weighted sum of the products with respect to values, u and v."""
    values, u, v = arguments[2:]
    return _adjoint_kernel(*arguments, *weights, shapes=[values.shape, u.shape, v.shape])


def _products_adjoint_xla(arguments, weights):
    products = functools.partial(cells_xla.residual_products, *arguments[:2])
    return jax.vjp(products, *arguments[2:])[1](weights)


def _products_adjoint_backward(saved, cotangents):
    # A second derivative is rare (a Hessian times a vector), and XLA's serves it.
    (rows, columns, *floats), weights = saved

    def adjoint(floats, weights):
        return _products_adjoint_xla((rows, columns, *floats), weights)

    floats_grad, weights_grad = jax.vjp(adjoint, floats, weights)[1](cotangents)
    return (None, None, *floats_grad), weights_grad


residual_products.defvjp(
    lambda *arguments: (residual_products(*arguments), arguments),
    lambda arguments, weights: (None, None, *_products_adjoint(arguments, weights)),
)
_products_adjoint.defvjp(lambda *both: (_products_adjoint(*both), both), _products_adjoint_backward)
