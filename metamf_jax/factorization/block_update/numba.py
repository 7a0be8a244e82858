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
    plain,  # no prior means, all-cell term, biases or projection: one pass over the factors
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
    gradient_u = np.empty(width, np.float32)
    gradient_v = np.empty(width, np.float32)
    has_means = mean_u.shape[0] > 0
    for b in range(first.shape[0]):
        s = np.uint32(slots[b])
        for q in range(first.shape[1]):
            for t in range(np.uint32(first[b, q]), np.uint32(last[b, q])):
                # Unsigned, or every access would first look for a negative index.
                n, m = np.uint32(rows[b, t]), np.uint32(columns[b, t])
                x, y, value = u[b, n], v[s, m], values[b, t]
                fitted = _ZERO
                for k in range(width):
                    fitted += x[k] * y[k]
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
                sum_u, sum_v = _ZERO, _ZERO
                if plain[()]:
                    for k in range(width):
                        x_k, y_k = x[k], y[k]
                        g, h = slope * y_k + weight_u * x_k, slope * x_k + weight_v * y_k
                        sum_u += g * g
                        sum_v += h * h
                        x[k], y[k] = x_k - rate_u * g, y_k - rate_v * h
                else:
                    for k in range(width):
                        g, h = x[k], y[k]
                        if has_means:
                            g -= mean_u[b, n, k]
                            h -= mean_v[s, m, k]
                        gradient_u[k] = slope * y[k] + weight_u * g
                        gradient_v[k] = slope * x[k] + weight_v * h
                    if kind == _SQUARED_ALL:
                        for k in range(width):
                            g, h = _ZERO, _ZERO
                            for j in range(width):
                                g += sums_v[k, j] * x[j]
                                h += sums_u[k, j] * y[j]
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
                        x[k] -= rate_u * gradient_u[k]
                        y[k] -= rate_v * gradient_v[k]
                    if kind == _GKL:
                        for k in range(width):
                            x[k], y[k] = max(x[k], _ZERO), max(y[k], _ZERO)
                if per_row[()]:
                    squares_u[b, n] += sum_u / np.float32(width)
                    squares_v[s, m] += sum_v / np.float32(width)


def _losses(loss, rows, columns, values, first, last, slots, u, v, sums):
    kind = loss[()]
    for b in range(first.shape[0]):
        s = np.uint32(slots[b])
        total = 0.0
        for q in range(first.shape[1]):
            for t in range(np.uint32(first[b, q]), np.uint32(last[b, q])):
                n, m = np.uint32(rows[b, t]), np.uint32(columns[b, t])
                x, y, value = u[b, n], v[s, m], values[b, t]
                fitted = _ZERO
                for k in range(u.shape[2]):
                    fitted += x[k] * y[k]
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
    plain = not (has_means or all_cells or objective.biases or objective.loss == "gkl")
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
