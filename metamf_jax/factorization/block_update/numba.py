"""Blocks through loops that Numba compiles: CPU only, in place, in true parallel over devices.

There are two kernels. `_make_plain_update` serves the objectives whose gradients are
``slope y + weight x``: a row's factors, padded to whole vectors, are read once and written once for
each entry, and four entries that share no row or column are visited together (`four_entries`).
`_update` serves all others: prior means, all-cell terms and projections.
"""

# Numba calls an intrinsic without its first parameter, the typing context.
# pyright: reportCallIssue=false

import functools

import jax.numpy as jnp
import numba
import numpy as np

from metamf_jax.factorization.block_update import in_series
from metamf_jax.factorization.block_update.four_entries import differ, dot_four, step_four
from metamf_jax.factorization.losses import GKL_FLOOR, LEAST_FALL, LOSSES
from metamf_jax.kernels.ffi import VECTORISED, NumbaKernel
from metamf_jax.kernels.vectors import dot, in_vectors, move_both, padded

_SQUARED, _SQUARED_ALL, _ABSOLUTE, _LOGISTIC, _GKL = map(LOSSES.index, LOSSES)

# Typed, or Numba would compute in float64.
_HALF, _ONE, _ZERO, _TWO = (np.float32(x) for x in (0.5, 1, 0, 2))
_FLOOR = np.float32(GKL_FLOOR)
_LEAST = np.float32(LEAST_FALL)

_ENTRIES = ("int32[:,:]", "int32[:,:]", "float32[:,:]")
_WORK = ("int32[:,:]", "int32[:,:]", "int32[:]")
_FACTORS = ("float32[:,:,:]", "float32[:,:,:]")
_TABLES = ("float32[:,:]", "float32[:,:]")

# Longer rows take the loops of `_update`: written out, they make too long a kernel.
_MOST_VECTORS = 16


@numba.njit(inline="always", fastmath=set(VECTORISED), error_model="numpy")
def _slope(kind, fitted, value):
    """`objective.half_slope`."""
    if kind == _SQUARED:
        return fitted - value
    if kind == _SQUARED_ALL:
        return -value
    if kind == _ABSOLUTE:
        return _HALF * np.sign(fitted - value)
    if kind == _LOGISTIC:
        return -_HALF * value / (_ONE + np.exp(value * fitted))
    return -_HALF * value / max(fitted, _FLOOR)


@functools.cache
def _make_plain_update(vectors):
    """The kernel for rows of so many vectors."""
    one, two, three, four = (np.uint64(i) for i in range(1, 5))

    def _plain_update(
        loss,  # number in LOSSES
        per_row,
        biases,
        step,
        rows,
        columns,
        values,
        first,
        last,
        slots,
        share_u,  # [B, R] penalty weight of an entry
        share_v,
        old_u,
        old_v,
        old_squares_u,
        old_squares_v,
        u,
        v,
        squares_u,
        squares_v,
        flat_u,  # [R * padded width], [R, 4], [R]: memory to work in
        flat_v,
        known_u,
        known_v,
        bias_u,
        bias_v,
    ):
        kind, scaled, with_biases, rate = loss[()], per_row[()], biases[()], step[()]
        width = u.shape[2]
        one_of_width = _ONE / np.float32(width)
        # The last two columns of the factors are (b, 1) and (1, c) under biases.
        free = width - 2 if with_biases else width
        stride = np.uint64(flat_u.shape[0] // u.shape[1])
        for b in range(first.shape[0]):
            s = slots[b]
            for factors, share, squares, flat, known, bias, at in (
                (u[b], share_u[b], squares_u[b], flat_u, known_u, bias_u, width - 2),
                (v[s], share_v[s], squares_v[s], flat_v, known_v, bias_v, width - 1),
            ):
                for n in range(factors.shape[0]):
                    start = np.uint64(n) * stride
                    for k in range(free):
                        flat[start + np.uint64(k)] = factors[n, k]
                    for k in range(np.uint64(free), stride):
                        flat[start + k] = _ZERO
                    known[n, 0] = rate / np.sqrt(squares[n]) if scaled else rate
                    known[n, 1] = squares[n]
                    known[n, 2] = dot(flat, start, flat, start, vectors)
                    known[n, 3] = share[n]
                    bias[n] = factors[n, at] if with_biases else _ZERO
            rows_b, columns_b, values_b = rows[b], columns[b], values[b]
            # No functions that take arrays: to count references to them took as long as a visit.
            for q in range(first.shape[1]):
                # Unsigned, or every access would first look for a negative index.
                t, end = np.uint64(first[b, q]), np.uint64(last[b, q])
                while t < end:
                    if t + four <= end and differ(rows_b, columns_b, t):
                        n = (
                            np.uint64(rows_b[t]),
                            np.uint64(rows_b[t + one]),
                            np.uint64(rows_b[t + two]),
                            np.uint64(rows_b[t + three]),
                        )
                        m = (
                            np.uint64(columns_b[t]),
                            np.uint64(columns_b[t + one]),
                            np.uint64(columns_b[t + two]),
                            np.uint64(columns_b[t + three]),
                        )
                        at_u = n[0] * stride, n[1] * stride, n[2] * stride, n[3] * stride
                        at_v = m[0] * stride, m[1] * stride, m[2] * stride, m[3] * stride
                        product = dot_four(flat_u, at_u, flat_v, at_v, vectors)
                        fitted = product
                        if with_biases:
                            fitted = (
                                product[0] + bias_u[n[0]] + bias_v[m[0]],
                                product[1] + bias_u[n[1]] + bias_v[m[1]],
                                product[2] + bias_u[n[2]] + bias_v[m[2]],
                                product[3] + bias_u[n[3]] + bias_v[m[3]],
                            )
                        slope = (
                            _slope(kind, fitted[0], values_b[t]),
                            _slope(kind, fitted[1], values_b[t + one]),
                            _slope(kind, fitted[2], values_b[t + two]),
                            _slope(kind, fitted[3], values_b[t + three]),
                        )
                        extra = (_ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO)
                        if with_biases:
                            g0 = slope[0] + known_u[n[0], 3] * bias_u[n[0]]
                            h0 = slope[0] + known_v[m[0], 3] * bias_v[m[0]]
                            bias_u[n[0]] -= known_u[n[0], 0] * g0
                            bias_v[m[0]] -= known_v[m[0], 0] * h0
                            g1 = slope[1] + known_u[n[1], 3] * bias_u[n[1]]
                            h1 = slope[1] + known_v[m[1], 3] * bias_v[m[1]]
                            bias_u[n[1]] -= known_u[n[1], 0] * g1
                            bias_v[m[1]] -= known_v[m[1], 0] * h1
                            g2 = slope[2] + known_u[n[2], 3] * bias_u[n[2]]
                            h2 = slope[2] + known_v[m[2], 3] * bias_v[m[2]]
                            bias_u[n[2]] -= known_u[n[2], 0] * g2
                            bias_v[m[2]] -= known_v[m[2], 0] * h2
                            g3 = slope[3] + known_u[n[3], 3] * bias_u[n[3]]
                            h3 = slope[3] + known_v[m[3], 3] * bias_v[m[3]]
                            bias_u[n[3]] -= known_u[n[3], 0] * g3
                            bias_v[m[3]] -= known_v[m[3], 0] * h3
                            extra = (
                                g0 * g0,
                                g1 * g1,
                                g2 * g2,
                                g3 * g3,
                                h0 * h0,
                                h1 * h1,
                                h2 * h2,
                                h3 * h3,
                            )
                        step_four(
                            flat_u,
                            at_u,
                            known_u,
                            n,
                            flat_v,
                            at_v,
                            known_v,
                            m,
                            product,
                            slope,
                            extra,
                            rate,
                            one_of_width,
                            vectors,
                            scaled,
                        )
                        t += four
                        continue
                    i, j = np.uint64(rows_b[t]), np.uint64(columns_b[t])
                    at_i, at_j = i * stride, j * stride
                    x_y = dot(flat_u, at_i, flat_v, at_j, vectors)
                    fit = x_y + bias_u[i] + bias_v[j] if with_biases else x_y
                    half = _slope(kind, fit, values_b[t])
                    rate_u, sum_u, x_squared, weight_u = (
                        known_u[i, 0],
                        known_u[i, 1],
                        known_u[i, 2],
                        known_u[i, 3],
                    )
                    rate_v, sum_v, y_squared, weight_v = (
                        known_v[j, 0],
                        known_v[j, 1],
                        known_v[j, 2],
                        known_v[j, 3],
                    )
                    t += one
                    keep_u, keep_v = _ONE - rate_u * weight_u, _ONE - rate_v * weight_v
                    add_u, add_v = -rate_u * half, -rate_v * half
                    move_both(flat_u, at_i, flat_v, at_j, vectors, keep_u, add_u, keep_v, add_v)
                    g = h = _ZERO
                    if with_biases:
                        g, h = half + weight_u * bias_u[i], half + weight_v * bias_v[j]
                        bias_u[i] -= rate_u * g
                        bias_v[j] -= rate_v * h
                    if scaled:
                        # The squares of gradients and factors follow from the product: neither has
                        # to be added up. Rounding may leave less than nothing.
                        both, square = _TWO * half * x_y, half * half
                        new_u = square * y_squared + weight_u * (both + weight_u * x_squared)
                        new_v = square * x_squared + weight_v * (both + weight_v * y_squared)
                        sum_u += max(new_u + g * g, _ZERO) * one_of_width
                        sum_v += max(new_v + h * h, _ZERO) * one_of_width
                        twice = _TWO * x_y
                        known_u[i, 0] = rate / np.sqrt(sum_u)
                        known_u[i, 1] = sum_u
                        known_u[i, 2] = keep_u * keep_u * x_squared + add_u * (
                            twice * keep_u + add_u * y_squared
                        )
                        known_v[j, 0] = rate / np.sqrt(sum_v)
                        known_v[j, 1] = sum_v
                        known_v[j, 2] = keep_v * keep_v * y_squared + add_v * (
                            twice * keep_v + add_v * x_squared
                        )
            for factors, squares, flat, known, bias, at in (
                (u[b], squares_u[b], flat_u, known_u, bias_u, width - 2),
                (v[s], squares_v[s], flat_v, known_v, bias_v, width - 1),
            ):
                for n in range(factors.shape[0]):
                    start = np.uint64(n) * stride
                    for k in range(free):
                        factors[n, k] = flat[start + np.uint64(k)]
                    squares[n] = known[n, 1]
                    if with_biases:
                        factors[n, at] = bias[n]

    _plain_update.__qualname__ = f"_plain_update_{vectors}"
    return NumbaKernel(
        _plain_update,
        arguments=(
            *("int32", "bool", "bool", "float32"),
            *_ENTRIES,
            *_WORK,
            *_TABLES,
            *_FACTORS,
            *_TABLES,
        ),
        results=(
            *_FACTORS,
            *_TABLES,
            *("float32[:]", "float32[:]"),
            *_TABLES,
            *("float32[:]", "float32[:]"),
        ),
    )


def _update(
    loss,
    per_row,
    biases,
    step,
    rows,
    columns,
    values,
    first,
    last,
    slots,
    share_u,
    share_v,
    inverse_u,  # [B, R] one over the number of entries
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
                fitted = _ZERO
                for i in range(width):
                    k = np.uint64(i)
                    fitted += block_u[n, k] * block_v[m, k]
                slope = _slope(kind, fitted, value)
                weight_u, weight_v = share_u[b, n], share_v[s, m]
                rate_u = rate_v = step[()]
                if per_row[()]:
                    rate_u /= np.sqrt(squares_u[b, n])
                    rate_v /= np.sqrt(squares_v[s, m])
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
                        # `objective.scaled_gradient`; what draws to zero is shared out here.
                        share_of_u, share_of_v = inverse_u[b, n], inverse_v[s, m]
                        g, h = block_u[n, k], block_v[m, k]
                        fall_u = _HALF * sums_v[0, k] * share_of_u
                        fall_v = _HALF * sums_u[0, k] * share_of_v
                        gradient_u[k] = (gradient_u[k] + fall_u) * (
                            g * share_of_u / max(fall_u + weight_u * g, _LEAST * share_of_u)
                        )
                        gradient_v[k] = (gradient_v[k] + fall_v) * (
                            h * share_of_v / max(fall_v + weight_v * h, _LEAST * share_of_v)
                        )
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
                    squares_u[b, n] += sum_u * mean_of_squares
                    squares_v[s, m] += sum_v * mean_of_squares


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


_update_kernel = NumbaKernel(
    _update,
    arguments=(
        *("int32", "bool", "bool", "float32"),
        *_ENTRIES,
        *_WORK,
        *(_TABLES * 2),
        *_FACTORS,
        *_TABLES,
        *_FACTORS,
        *_TABLES,
    ),
    results=(*_FACTORS, *_TABLES),
)
_losses_kernel = NumbaKernel(
    _losses, arguments=("int32", *_ENTRIES, *_WORK, *_FACTORS), results=("float32[:]",)
)


def block_update(objective, per_row, step_size, u, v, entries, work, sums):
    """See `metamf_jax.factorization.block_update.block_update`."""
    has_means = u.terms.mean is not None
    all_cells = sums[0] is not None
    # A side may have prior means where the other has none.
    if has_means != (v.terms.mean is not None):
        raise ValueError("expected prior means of both sides or of neither")
    width = u.factors.shape[2] - 2 * objective.biases
    plain = not (has_means or all_cells) and 0 < width <= padded(1) * _MOST_VECTORS
    inverse = [1 / jnp.maximum(side.terms.count, 1) for side in (u, v)]
    shared = (
        jnp.int32(LOSSES.index(objective.loss)),
        jnp.bool_(per_row),
        jnp.bool_(objective.biases),
        step_size,
        *entries,
        *in_series(work),
        *(side.terms.weight * i for side, i in zip((u, v), inverse, strict=True)),
    )
    state = u.factors, v.factors, u.squares, v.squares
    shapes = [x.shape for x in state]
    if plain:
        kernel = _make_plain_update(in_vectors(width))
        arguments = *shared, *state
        heights = u.factors.shape[1], v.factors.shape[1]
        shapes += [(height * padded(width),) for height in heights]
        shapes += [(height, 4) for height in heights] + [(height,) for height in heights]
    else:
        kernel = _update_kernel
        arguments = (
            *shared,
            *inverse,
            *(
                (u.terms.mean, v.terms.mean)
                if has_means
                else [jnp.zeros((0, 0, 0), jnp.float32)] * 2
            ),
            *(
                (jnp.atleast_2d(s) for s in sums)
                if all_cells
                else [jnp.zeros((0, 0), jnp.float32)] * 2
            ),
            *state,
        )
    first = len(arguments) - len(state)
    new = kernel(*arguments, shapes=shapes, aliases={first + i: i for i in range(len(state))})
    return (
        u._replace(factors=new[0], squares=new[2]),
        v._replace(factors=new[1], squares=new[3]),
    )


def block_losses(objective, u, v, entries, work):
    """See `metamf_jax.factorization.block_update.block_losses`."""
    loss = jnp.int32(LOSSES.index(objective.loss))
    return _losses_kernel(loss, *entries, *in_series(work), u, v, shapes=[u.shape[:1]])[0]
