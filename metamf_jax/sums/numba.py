"""Compiled CPU kernels for the sums over entry lists; `metamf_jax.sums` decides when they run.

Each kernel goes through the list once, in its order, so that its sums do not depend on how many
matrices or devices there are. Padding entries (``rows == N``) are skipped unread.

For each function of `sums`, in this order: its kernel and the kernel of its adjoint, the function,
and the rule of its gradient.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from metamf_jax.kernels import ffi
from metamf_jax.sums import xla

_INDEX, _VECTOR, _TABLE, _CUBE = "int32[:]", "float32[:]", "float32[:,:]", "float32[:,:,:]"
# The list of entries, the prior's means, precisions, step sizes, and the number of steps.
_PROBLEM = (_INDEX, _INDEX, _VECTOR, _TABLE, _TABLE, *[_VECTOR] * 4, "int32")


def _kernel(arguments: Sequence[str], results: Sequence[str]) -> Callable[..., ffi.NumbaKernel]:
    """Makes a kernel of a function; arguments and results as of `ffi.NumbaKernel`."""
    # Not sharing memory saves the descent a quarter of its time.
    return functools.partial(ffi.NumbaKernel, arguments=arguments, results=results, distinct=True)


@_kernel((_INDEX, _INDEX, _TABLE), results=(_TABLE, _TABLE))
def _pool_kernel(rows, columns, cells, row_sums, column_sums):
    num_channels = cells.shape[1]
    row_sums.fill(0)
    column_sums.fill(0)
    for e in range(rows.shape[0]):
        n, m = rows[e], columns[e]
        if n < row_sums.shape[0]:
            for c in range(num_channels):
                row_sums[n, c] += cells[e, c]
                column_sums[m, c] += cells[e, c]


@_kernel((_INDEX, _INDEX, _TABLE, _TABLE), results=(_TABLE,))
def _spread_kernel(rows, columns, row_table, column_table, cells):
    num_channels = cells.shape[1]
    for e in range(rows.shape[0]):
        n, m = rows[e], columns[e]
        if n < row_table.shape[0]:
            for c in range(num_channels):
                cells[e, c] = row_table[n, c] + column_table[m, c]
        else:
            cells[e] = 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def pool(rows, columns, cells, shape):
    """`sums.pool` of a list: [E] int32 twice, [E, C] float32, (N, M)."""
    channels = cells.shape[1]
    return _pool_kernel(rows, columns, cells, shapes=[(shape[0], channels), (shape[1], channels)])


def spread(rows, columns, row_table, column_table):
    """`sums.spread` of a list: [E] int32 twice, [N, C] and [M, C] float32."""
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
    lambda rows, columns, r, c, shape: (_spread(rows, columns, r, c, shape), (rows, columns)),
    lambda shape, index, cells: (None, None, *pool(*index, cells, shape)),  # pyright: ignore
)


@_kernel((_INDEX, _INDEX, _VECTOR, _TABLE, _TABLE), results=(_TABLE, _TABLE))
def _residual_products_kernel(rows, columns, values, u, v, row_products, column_products):
    rank = u.shape[1]
    row_products.fill(0)
    column_products.fill(0)
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


@_kernel((_INDEX, _INDEX, _VECTOR, *[_TABLE] * 4), results=(_VECTOR, _TABLE, _TABLE))
def _residual_products_adjoint_kernel(
    rows, columns, values, u, v, row_weights, column_weights, values_grad, u_grad, v_grad
):
    rank = u.shape[1]
    u_grad.fill(0)
    v_grad.fill(0)
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


@jax.custom_vjp
def residual_products(rows, columns, values, u, v):
    """`sums.residual_products` of a list: [E] int32 twice, [E], [N, K] and [M, K] float32."""
    return _residual_products_kernel(rows, columns, values, u, v, shapes=[u.shape, v.shape])


@jax.custom_vjp
def _products_adjoint(arguments, weights):
    """Gradients of the weighted sum of the products with respect to values, u and v."""
    values, u, v = arguments[2:]
    return _residual_products_adjoint_kernel(
        *arguments, *weights, shapes=[values.shape, u.shape, v.shape]
    )


def _products_adjoint_xla(arguments, weights):
    products = functools.partial(xla.residual_products, *arguments[:2])
    backward: Callable = jax.vjp(products, *arguments[2:])[1]
    return backward(weights)


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


@_kernel((_INDEX, _INDEX, _VECTOR, _TABLE), results=(_CUBE, _TABLE))
def _row_normal_equations_kernel(rows, columns, values, v, gram, moment):
    num_rows, rank = moment.shape
    gram.fill(0)
    moment.fill(0)
    for e in range(rows.shape[0]):
        n, m, value = rows[e], columns[e], values[e]
        if n < num_rows:
            for j in range(rank):
                weight = v[m, j]
                moment[n, j] += value * weight
                for k in range(rank):
                    gram[n, j, k] += weight * v[m, k]


@_kernel((_INDEX, _INDEX, _VECTOR, _TABLE, _CUBE, _TABLE), results=(_VECTOR, _TABLE))
def _row_normal_equations_adjoint_kernel(
    rows, columns, values, v, gram_weights, moment_weights, values_grad, v_grad
):
    # gram_weights are symmetric, and twice what they would be otherwise.
    num_rows, rank = moment_weights.shape
    v_grad.fill(0)
    for e in range(rows.shape[0]):
        n, m, value = rows[e], columns[e], values[e]
        along_value = np.float32(0)
        if n < num_rows:
            for j in range(rank):
                along_value += moment_weights[n, j] * v[m, j]
                along_gram = np.float32(0)
                for k in range(rank):
                    along_gram += gram_weights[n, j, k] * v[m, k]
                v_grad[m, j] += along_gram + value * moment_weights[n, j]
        values_grad[e] = along_value


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def row_normal_equations(rows, columns, values, v, num_rows):
    """`sums.row_normal_equations` of a list: [E] int32 twice, [E], [M, K] float32, and N."""
    rank = v.shape[1]
    shapes = [(num_rows, rank, rank), (num_rows, rank)]
    return _row_normal_equations_kernel(rows, columns, values, v, shapes=shapes)


def _row_normal_equations_backward(num_rows, saved, weights):
    values, v = saved[2:]
    gram_weights, moment_weights = weights
    gradients = _row_normal_equations_adjoint_kernel(
        *saved,
        gram_weights + gram_weights.swapaxes(1, 2),
        moment_weights,
        shapes=[values.shape, v.shape],
    )
    return None, None, *gradients


row_normal_equations.defvjp(
    lambda *arguments: (row_normal_equations(*arguments), arguments[:4]),
    _row_normal_equations_backward,
)


@_kernel((_INDEX, _INDEX, _TABLE, _TABLE, _TABLE), results=(_TABLE, _TABLE, _TABLE))
def _exchange_kernel(rows, columns, cells, row_table, column_table, active, row_sums, column_sums):
    num_channels = cells.shape[1]
    row_sums.fill(0)
    column_sums.fill(0)
    for e in range(rows.shape[0]):
        n, m = rows[e], columns[e]
        if n < row_table.shape[0]:
            for c in range(num_channels):
                z = cells[e, c] + row_table[n, c] + column_table[m, c]
                # Written so that NaN stays NaN.
                z = np.float32(0) if z <= 0 else z
                active[e, c] = z
                row_sums[n, c] += z
                column_sums[m, c] += z
        else:
            active[e] = 0


@_kernel((_INDEX, _INDEX, *[_TABLE] * 4), results=(_TABLE, _TABLE, _TABLE))
def _exchange_adjoint_kernel(
    rows, columns, active, weights, row_weights, column_weights, cells_grad, row_grad, column_grad
):
    num_channels = active.shape[1]
    row_grad.fill(0)
    column_grad.fill(0)
    for e in range(rows.shape[0]):
        n, m = rows[e], columns[e]
        if n < row_grad.shape[0]:
            for c in range(num_channels):
                g = weights[e, c] + row_weights[n, c] + column_weights[m, c]
                g = np.float32(0) if active[e, c] == 0 else g
                cells_grad[e, c] = g
                row_grad[n, c] += g
                column_grad[m, c] += g
        else:
            cells_grad[e] = 0


@jax.custom_vjp
def exchange(rows, columns, cells, row_table, column_table):
    """`sums.exchange` of a list: [E] int32 twice, [E, C], [N, C] and [M, C] float32."""
    shapes = [cells.shape, row_table.shape, column_table.shape]
    return _exchange_kernel(rows, columns, cells, row_table, column_table, shapes=shapes)


def _exchange_forward(rows, columns, *tables):
    results = exchange(rows, columns, *tables)
    return results, (rows, columns, results[0])


def _exchange_backward(saved, weights):
    shapes = [weight.shape for weight in weights]
    return None, None, *_exchange_adjoint_kernel(*saved, *weights, shapes=shapes)


exchange.defvjp(_exchange_forward, _exchange_backward)


@_kernel((_INDEX, _INDEX, _TABLE, _TABLE), results=(_VECTOR,))
def _predict_kernel(rows, columns, u, v, fitted):
    for e in range(rows.shape[0]):
        n, m = rows[e], columns[e]
        total = np.float32(0)
        if n < u.shape[0]:
            for k in range(u.shape[1]):
                total += u[n, k] * v[m, k]
        fitted[e] = total


@_kernel((_INDEX, _INDEX, _TABLE, _TABLE, _VECTOR), results=(_TABLE, _TABLE))
def _predict_adjoint_kernel(rows, columns, u, v, weights, u_grad, v_grad):
    u_grad.fill(0)
    v_grad.fill(0)
    for e in range(rows.shape[0]):
        n, m = rows[e], columns[e]
        if n < u.shape[0]:
            weight = weights[e]
            for k in range(u.shape[1]):
                u_grad[n, k] += weight * v[m, k]
                v_grad[m, k] += weight * u[n, k]


@jax.custom_vjp
def predict(rows, columns, u, v):
    """`sums.predict`: [E] int32 twice, [N, K] and [M, K] float32."""
    return _predict_kernel(rows, columns, u, v, shapes=[rows.shape])[0]


predict.defvjp(
    lambda *arguments: (predict(*arguments), arguments),
    lambda saved, weights: (
        None,
        None,
        *_predict_adjoint_kernel(*saved, weights, shapes=[saved[2].shape, saved[3].shape]),
    ),
)


@_kernel(_PROBLEM, results=(_TABLE, _TABLE, *[_CUBE] * 4))
def _descend_kernel(
    rows, columns, values, u0, v0, u_lam, v_lam, u_eta, v_eta, num_steps,
    u_last, v_last, u_path, v_path, u_slopes, v_slopes,
):  # fmt: skip
    # The path is kept where there is room for it.
    rank, room, last = u0.shape[1], u_path.shape[0], num_steps[()] - 1
    if last < 0:
        u_last[:] = u0
        v_last[:] = v0
    else:
        u_path[0] = u0
        v_path[0] = v0
    for t in range(last + 1):
        u, v, u_slope, v_slope = (
            u_path[t % room], v_path[t % room], u_slopes[t % room], v_slopes[t % room]
        )  # fmt: skip
        u_slope.fill(0)
        v_slope.fill(0)
        for e in range(rows.shape[0]):
            # Unsigned, a number needs no test for counting from the end.
            n, m = np.uint64(rows[e]), np.uint64(columns[e])
            if n < u.shape[0]:
                fitted = np.float32(0)
                for k in range(rank):
                    fitted += u[n, k] * v[m, k]
                residual = values[e] - fitted
                for k in range(rank):
                    u_slope[n, k] += residual * v[m, k]
                    v_slope[m, k] += residual * u[n, k]
        u_next = u_last if t == last else u_path[(t + 1) % room]
        v_next = v_last if t == last else v_path[(t + 1) % room]
        for n in range(u.shape[0]):
            for k in range(rank):
                slope = u_slope[n, k] - u_lam[n] * (u[n, k] - u0[n, k])
                u_slope[n, k] = slope
                u_next[n, k] = u[n, k] + u_eta[n] * slope
        for m in range(v.shape[0]):
            for k in range(rank):
                slope = v_slope[m, k] - v_lam[m] * (v[m, k] - v0[m, k])
                v_slope[m, k] = slope
                v_next[m, k] = v[m, k] + v_eta[m] * slope


@_kernel(
    (*_PROBLEM, *[_CUBE] * 4, _TABLE, _TABLE),
    results=(_VECTOR, _TABLE, _TABLE, *[_VECTOR] * 4, *[_TABLE] * 4),
)
def _descend_adjoint_kernel(
    rows, columns, values, u0, v0, u_lam, v_lam, u_eta, v_eta, num_steps,
    u_path, v_path, u_slopes, v_slopes, u_weights, v_weights,
    values_grad, u0_grad, v0_grad, u_lam_grad, v_lam_grad, u_eta_grad, v_eta_grad,
    u_adjoint, v_adjoint, u_next, v_next,
):  # fmt: skip
    # u_next, v_next: gradients with respect to the factors after a step; u_adjoint, v_adjoint:
    # with respect to its residual products.
    rank = u0.shape[1]
    u_next[:] = u_weights
    v_next[:] = v_weights
    values_grad.fill(0)
    u0_grad.fill(0)
    v0_grad.fill(0)
    u_lam_grad.fill(0)
    v_lam_grad.fill(0)
    u_eta_grad.fill(0)
    v_eta_grad.fill(0)
    for t in range(num_steps[()] - 1, -1, -1):
        u, v = u_path[t], v_path[t]
        for n in range(u.shape[0]):
            lam, eta = u_lam[n], u_eta[n]
            along_slope, along_mean = np.float32(0), np.float32(0)
            for k in range(rank):
                g = u_next[n, k]
                along_slope += g * u_slopes[t, n, k]
                along_mean += g * (u[n, k] - u0[n, k])
                u_adjoint[n, k] = eta * g
                u0_grad[n, k] += lam * eta * g
                u_next[n, k] = g - lam * eta * g
            u_eta_grad[n] += along_slope
            u_lam_grad[n] -= eta * along_mean
        for m in range(v.shape[0]):
            lam, eta = v_lam[m], v_eta[m]
            along_slope, along_mean = np.float32(0), np.float32(0)
            for k in range(rank):
                g = v_next[m, k]
                along_slope += g * v_slopes[t, m, k]
                along_mean += g * (v[m, k] - v0[m, k])
                v_adjoint[m, k] = eta * g
                v0_grad[m, k] += lam * eta * g
                v_next[m, k] = g - lam * eta * g
            v_eta_grad[m] += along_slope
            v_lam_grad[m] -= eta * along_mean
        for e in range(rows.shape[0]):
            n, m = rows[e], columns[e]
            if n < u.shape[0]:
                fitted, slope = np.float32(0), np.float32(0)
                for k in range(rank):
                    fitted += u[n, k] * v[m, k]
                    slope += v[m, k] * u_adjoint[n, k] + u[n, k] * v_adjoint[m, k]
                residual = values[e] - fitted
                values_grad[e] += slope
                for k in range(rank):
                    u_next[n, k] += residual * v_adjoint[m, k] - slope * v[m, k]
                    v_next[m, k] += residual * u_adjoint[n, k] - slope * u[n, k]
    for n in range(u0.shape[0]):
        for k in range(rank):
            u0_grad[n, k] += u_next[n, k]
    for m in range(v0.shape[0]):
        for k in range(rank):
            v0_grad[m, k] += v_next[m, k]


@functools.partial(jax.custom_vjp, nondiff_argnums=(9,))
def descend(rows, columns, values, u0, v0, u_lam, v_lam, u_eta, v_eta, num_steps):
    """`sums.descend` of a list: [E] int32 twice, then float32, and the number of steps."""
    arguments = (rows, columns, values, u0, v0, u_lam, v_lam, u_eta, v_eta)
    return tuple(_descend_path(arguments, num_steps, room=1)[:2])


def _descend_path(arguments, num_steps, room):
    u0, v0 = arguments[3:5]
    paths = [(room, *u0.shape), (room, *v0.shape)]
    shapes = [u0.shape, v0.shape, *paths, *paths]
    return _descend_kernel(*arguments, np.array(num_steps, np.int32), shapes=shapes)


def _descend_forward(*arguments):
    *arguments, num_steps = arguments
    u, v, *paths = _descend_path(arguments, num_steps, room=max(num_steps, 1))
    return (u, v), (arguments, paths)


def _descend_backward(num_steps, saved, weights):
    arguments, paths = saved
    gradient_shapes = [argument.shape for argument in arguments[2:]]
    u0, v0 = arguments[3:5]
    results = _descend_adjoint_kernel(
        *arguments,
        np.array(num_steps, np.int32),
        *paths,
        *weights,
        shapes=[*gradient_shapes, u0.shape, v0.shape, u0.shape, v0.shape],
    )
    return None, None, *results[: len(gradient_shapes)]


descend.defvjp(_descend_forward, _descend_backward)
