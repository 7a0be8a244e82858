"""Blocks through a loop that Numba compiles: CPU only, in place, in true parallel over devices."""

import jax.numpy as jnp
import numpy as np

from metamf_jax.factorization.objective import GKL_FLOOR, LOSSES
from metamf_jax.numba_ffi import NumbaKernel

_SQUARED, _SQUARED_ALL, _ABSOLUTE, _LOGISTIC, _GKL = map(LOSSES.index, LOSSES)

# Typed, or Numba would compute in float64.
_HALF, _ONE, _ZERO, _TWO = (np.float32(x) for x in (0.5, 1, 0, 2))
_FLOOR = np.float32(GKL_FLOOR)


def _update(
    loss,  # number in LOSSES
    plain,  # no prior means, all-cell term or projection
    per_row,
    biases,
    step,
    rows,
    columns,
    values,
    first,
    last,
    slots,
    share_u,  # [B, R] penalty weight of a point
    share_v,
    inverse_u,  # [B, R] one over the number of points
    inverse_v,
    mean_u,  # [B, R, K], or [0, 0, 0]
    mean_v,
    sums_u,  # [K, K], [1, K] or [0, 0]
    sums_v,
    old_u,
    old_v,
    old_squares_u,
    old_squares_v,
    u,
    v,
    squares_u,
    squares_v,
):
    kind = loss[()]
    width = u.shape[2]
    mean_of_squares = _ONE / np.float32(width)
    # The last two columns of the factors are (b, 1) and (1, c) under biases.
    free = width - 2 if biases[()] else width
    at_u, at_v = np.uint64(width - 2), np.uint64(width - 1)
    gradient_u = np.empty(width, np.float32)
    gradient_v = np.empty(width, np.float32)
    has_means = mean_u.shape[0] > 0
    for b in range(first.shape[0]):
        s = slots[b]
        block_u, block_v = u[b], v[s]
        rows_b, columns_b, values_b = rows[b], columns[b], values[b]
        for q in range(first.shape[1]):
            for t in range(np.uint64(first[b, q]), np.uint64(last[b, q])):
                # Unsigned, or every access would first look for a negative index. No views of rows:
                # to count references to them took as long as the update.
                n, m = np.uint64(rows_b[t]), np.uint64(columns_b[t])
                value = values_b[t]
                fitted, x_squared, y_squared = _ZERO, _ZERO, _ZERO
                for i in range(width):
                    k = np.uint64(i)
                    x_k, y_k = block_u[n, k], block_v[m, k]
                    fitted += x_k * y_k
                    x_squared += x_k * x_k
                    y_squared += y_k * y_k
                if kind == _SQUARED:
                    slope = fitted - value
                elif kind == _SQUARED_ALL:
                    slope = -value
                elif kind == _ABSOLUTE:
                    slope = _HALF * np.sign(fitted - value)
                elif kind == _LOGISTIC:
                    slope = -_HALF * value / (_ONE + np.exp(value * fitted))
                else:
                    slope = -_HALF * value / max(fitted, _FLOOR)
                weight_u, weight_v = share_u[b, n], share_v[s, m]
                rate_u = rate_v = step[()]
                if per_row[()]:
                    rate_u /= np.sqrt(squares_u[b, n])
                    rate_v /= np.sqrt(squares_v[s, m])
                if plain[()]:
                    # The gradient of u is slope y + weight x: its square follows from the products
                    # above, and the step is one pass. A loop that also added it up ran at half the
                    # speed (20 instead of 36 million updates a second and core at width 32).
                    both = _TWO * slope * fitted
                    sum_u = slope * slope * y_squared + weight_u * (both + weight_u * x_squared)
                    sum_v = slope * slope * x_squared + weight_v * (both + weight_v * y_squared)
                    keep_u, keep_v = _ONE - rate_u * weight_u, _ONE - rate_v * weight_v
                    move_u, move_v = rate_u * slope, rate_v * slope
                    for i in range(free):
                        k = np.uint64(i)
                        x_k, y_k = block_u[n, k], block_v[m, k]
                        block_u[n, k] = keep_u * x_k - move_u * y_k
                        block_v[m, k] = keep_v * y_k - move_v * x_k
                    if biases[()]:
                        g, h = (
                            slope * block_v[m, at_v] + weight_u,
                            slope * block_u[n, at_u] + weight_v,
                        )
                        sum_u, sum_v = sum_u - g * g, sum_v - h * h
                        block_u[n, at_u] = keep_u * block_u[n, at_u] - move_u
                        block_v[m, at_v] = keep_v * block_v[m, at_v] - move_v
                else:
                    sum_u, sum_v = _ZERO, _ZERO
                    for k in range(width):
                        g, h = block_u[n, k], block_v[m, k]
                        if has_means:
                            g -= mean_u[b, n, k]
                            h -= mean_v[s, m, k]
                        gradient_u[k] = slope * block_v[m, k] + weight_u * g
                        gradient_v[k] = slope * block_u[n, k] + weight_v * h
                    if kind == _SQUARED_ALL:
                        for k in range(width):
                            g, h = _ZERO, _ZERO
                            for j in range(width):
                                g += sums_v[k, j] * block_u[n, j]
                                h += sums_u[k, j] * block_v[m, j]
                            gradient_u[k] += g * inverse_u[b, n]
                            gradient_v[k] += h * inverse_v[s, m]
                    elif kind == _GKL:
                        for k in range(width):
                            gradient_u[k] += _HALF * sums_v[0, k] * inverse_u[b, n]
                            gradient_v[k] += _HALF * sums_u[0, k] * inverse_v[s, m]
                    if biases[()]:
                        gradient_u[width - 1] = gradient_v[width - 2] = _ZERO
                    for k in range(width):
                        sum_u += gradient_u[k] * gradient_u[k]
                        sum_v += gradient_v[k] * gradient_v[k]
                        block_u[n, k] -= rate_u * gradient_u[k]
                        block_v[m, k] -= rate_v * gradient_v[k]
                    if kind == _GKL:
                        for k in range(width):
                            block_u[n, k], block_v[m, k] = (
                                max(block_u[n, k], _ZERO),
                                max(block_v[m, k], _ZERO),
                            )
                if per_row[()]:
                    # Rounding may leave less than nothing.
                    squares_u[b, n] += max(sum_u, _ZERO) * mean_of_squares
                    squares_v[s, m] += max(sum_v, _ZERO) * mean_of_squares


def _losses(loss, rows, columns, values, first, last, slots, u, v, sums):
    kind = loss[()]
    for b in range(first.shape[0]):
        s = slots[b]
        block_u, block_v = u[b], v[s]
        total = 0.0
        for q in range(first.shape[1]):
            for t in range(np.uint64(first[b, q]), np.uint64(last[b, q])):
                n, m = np.uint64(rows[b, t]), np.uint64(columns[b, t])
                value, fitted = values[b, t], _ZERO
                for k in range(u.shape[2]):
                    fitted += block_u[n, k] * block_v[m, k]
                if kind == _SQUARED:
                    total += (fitted - value) * (fitted - value)
                elif kind == _SQUARED_ALL:
                    total += value * (value - _TWO * fitted)
                elif kind == _ABSOLUTE:
                    total += abs(fitted - value)
                elif kind == _LOGISTIC:
                    z = -value * fitted
                    total += max(z, _ZERO) + np.log1p(np.exp(-abs(z)))
                elif value > 0:
                    total += value * (np.log(value / max(fitted, _FLOOR)) - _ONE)
        sums[b] = total


_POINTS = ("int32[:,:]", "int32[:,:]", "float32[:,:]", "int32[:,:]", "int32[:,:]", "int32[:]")
_FACTORS = ("float32[:,:,:]", "float32[:,:,:]")
_TABLES = ("float32[:,:]", "float32[:,:]")

_update_kernel = NumbaKernel(
    _update,
    arguments=(
        *("int32", "bool", "bool", "bool", "float32"),
        *_POINTS,
        *(_TABLES * 2),
        *_FACTORS,
        *_TABLES,
        *_FACTORS,
        *_TABLES,
    ),
    results=(*_FACTORS, *_TABLES),
)
_losses_kernel = NumbaKernel(
    _losses, arguments=("int32", *_POINTS, *_FACTORS), results=("float32[:]",)
)


def block_update(objective, per_row, step_size, u, v, points, work, sums):
    """See `metamf_jax.factorization.block_update.block_update`."""
    has_means = u.terms.mean is not None
    all_cells = sums[0] is not None
    plain = not (has_means or all_cells)
    inverse = [1 / jnp.maximum(side.terms.count, 1) for side in (u, v)]
    # A side may have prior means where the other has none.
    if has_means != (v.terms.mean is not None):
        raise ValueError("expected prior means of both sides or of neither")
    state = u.factors, v.factors, u.squares, v.squares
    arguments = (
        jnp.int32(LOSSES.index(objective.loss)),
        jnp.bool_(plain),
        jnp.bool_(per_row),
        jnp.bool_(objective.biases),
        step_size,
        *points,
        *work,
        *(side.terms.weight * i for side, i in zip((u, v), inverse, strict=True)),
        *inverse,
        *((u.terms.mean, v.terms.mean) if has_means else [jnp.zeros((0, 0, 0), jnp.float32)] * 2),
        *((jnp.atleast_2d(s) for s in sums) if all_cells else [jnp.zeros((0, 0), jnp.float32)] * 2),
        *state,
    )
    first = len(arguments) - len(state)
    new = _update_kernel(
        *arguments,
        shapes=[x.shape for x in state],
        aliases={first + i: i for i in range(len(state))},
    )
    return (
        u._replace(factors=new[0], squares=new[2]),
        v._replace(factors=new[1], squares=new[3]),
    )


def block_losses(objective, u, v, points, work):
    """See `metamf_jax.factorization.block_update.block_losses`."""
    loss = jnp.int32(LOSSES.index(objective.loss))
    return _losses_kernel(loss, *points, *work, u, v, shapes=[u.shape[:1]])[0]
