"""ALS's ridge regressions on the CPU: normal equations and Cholesky of a row in one go.

A row's K x K matrix is summed, factorized and forgotten while it lies in the cache. Both the sum
over the row's points and the trailing updates of the blocked Cholesky factorization are sums of
outer products, `numba_vectors.add_products`. `als` decides when this is used.
"""

# Numba calls an intrinsic without its first parameter, the typing context.
# pyright: reportCallIssue=false

import numpy as np

from metamf_jax.numba_ffi import NumbaKernel
from metamf_jax.numba_vectors import LANES, TILE, add_multiple, add_products

# Rows of the other side gathered at a time: 32 kB at width 128.
_BATCH = 64

# Rows of the Cholesky factor between two trailing updates. At width 128 an iteration of ALS on
# MovieLens-1M took 589 ms on two cores, and 755 ms with 32, once each on a machine with other work.
_PANEL = 16

_ROWS, _COLUMNS, _LANES = (np.uint64(x) for x in (*TILE, LANES))
_ZERO, _ONE, _EPSILON = np.float32(0), np.float32(1), np.finfo(np.float32).eps
_TINY = np.float32(1e-30)


def padded(width: int) -> int:
    """The least multiple of a tile's columns that is at least ``width``."""
    return -(-width // TILE[1]) * TILE[1]


def _solve_rows(
    starts,  # [R + 1] first point of each row
    columns,
    values,
    design,  # [M, padded K]
    offset,  # [M]
    base_gram,  # [padded K, padded K], or [0, 0] where the points alone count
    base_moment,  # [K], or [0]
    weight,  # [R]
    mean,  # [R, K]
    current,  # [R, K]
    solved,
    gram,  # [padded K * padded K], memory to work in
    batch,  # [_BATCH * padded K]
    moment,  # [padded K]
    inverse,  # [padded K]
):
    width, height = np.uint64(mean.shape[1]), np.uint64(design.shape[1])
    shared = base_gram.shape[0] > 0
    for n in range(solved.shape[0]):
        first, last = starts[n], starts[n + 1]
        if not shared and first == last:
            for k in range(width):
                solved[n, k] = mean[n, k]
            continue
        for k in range(width, height):
            moment[k] = _ZERO
        if shared:
            for j in range(height):
                for k in range(height):
                    gram[j * height + k] = base_gram[j, k]
            for k in range(width):
                moment[k] = base_moment[k]
        else:
            gram.fill(_ZERO)
            for k in range(width):
                moment[k] = _ZERO

        for begin in range(first, last, _BATCH):
            count = np.uint64(min(last - begin, _BATCH))
            for e in range(count):
                m = np.uint64(columns[np.uint64(begin) + e])
                value = values[np.uint64(begin) + e] - offset[m]
                for k in range(height):
                    batch[e * height + k] = design[m, k]
                for k in range(height):
                    moment[k] += value * design[m, k]
            if not shared:
                for j in range(np.uint64(0), height, _ROWS):
                    for k in range(j // _COLUMNS * _COLUMNS, height, _COLUMNS):
                        add_products(gram, j * height + k, batch, j, k, height, count, _ONE)

        ridge, trace = weight[n], _ZERO
        for k in range(width):
            trace += gram[k * height + k]
        # Where there is no penalty: see the docstring of `als`.
        centre = mean[n] if ridge > 0 else current[n]
        if not ridge > 0:
            ridge = _EPSILON * np.float32(width) * trace + _TINY
        # What the centre leaves: only the part above the diagonal is there.
        for j in range(width):
            row, own = j * height, centre[j]
            fitted = gram[row + j] * own
            for k in range(j + np.uint64(1), width):
                fitted += gram[row + k] * centre[k]
                moment[k] -= gram[row + k] * own
            moment[j] -= fitted
        for k in range(height):
            gram[k * height + k] += ridge if k < width else _ONE

        # gram becomes an upper triangle whose square it is.
        for top in range(np.uint64(0), height, np.uint64(_PANEL)):
            bottom = top + np.uint64(_PANEL)
            for j in range(top, bottom):
                inverse[j] = _ONE / np.sqrt(gram[j * height + j])
                for k in range(j, height):
                    gram[j * height + k] *= inverse[j]
                for i in range(j + np.uint64(1), bottom):
                    k = i // _LANES * _LANES
                    factor = -gram[j * height + i]
                    add_multiple(gram, i * height + k, gram, j * height + k, height - k, factor)
            for j in range(bottom, height, _ROWS):
                for k in range(j // _COLUMNS * _COLUMNS, height, _COLUMNS):
                    at_rows, at_columns = top * height + j, top * height + k
                    add_products(
                        gram,
                        j * height + k,
                        gram,
                        at_rows,
                        at_columns,
                        height,
                        np.uint64(_PANEL),
                        -_ONE,
                    )

        for j in range(width):
            moment[j] *= inverse[j]
            for k in range(j + np.uint64(1), width):
                moment[k] -= gram[j * height + k] * moment[j]
        for back in range(width):
            j = width - np.uint64(1) - back
            rest = moment[j]
            for k in range(j + np.uint64(1), width):
                rest -= gram[j * height + k] * moment[k]
            moment[j] = rest * inverse[j]
            solved[n, j] = centre[j] + moment[j]


_solve_kernel = NumbaKernel(
    _solve_rows,
    arguments=(
        *("int32[:]", "int32[:]", "float32[:]"),
        *("float32[:,:]", "float32[:]", "float32[:,:]", "float32[:]"),
        *("float32[:]", "float32[:,:]", "float32[:,:]"),
    ),
    results=("float32[:,:]", *["float32[:]"] * 4),
    distinct=True,
)


def solve_rows(
    starts, columns, values, design, offset, base_gram, base_moment, weight, mean, current
):
    """The best factors of rows, one ridge regression each.

    Row n minimises ``w^T G w / 2 - m . w + weight_n / 2 |w - mean_n|^2``, where G and m are sums of
    ``d d^T`` and ``(x - offset) d`` over its points; or, where a base is given, G is the base's and
    m the base's plus the sum. Where the weight is zero, the answer is near ``current_n``.

    Args:
      starts: [R + 1] int32: row n has the points ``starts[n]`` up to ``starts[n + 1]``.
      columns: [E] int32.
      values: [E] float32.
      design: [M, padded(K)] float32, zero beyond K.
      offset: [M] float32.
      base_gram: [padded(K), padded(K)], or [0, 0] for none.
      base_moment: [K], or [0].
      weight: [R].
      mean: [R, K].
      current: [R, K].

    Returns:
      [R, K]; rows without points stay at the mean, unless a base is given.
    """
    height = design.shape[1]
    shapes = [mean.shape, (height * height,), (_BATCH * height,), (height,), (height,)]
    arguments = starts, columns, values, design, offset, base_gram, base_moment
    return _solve_kernel(*arguments, weight, mean, current, shapes=shapes)[0]
