"""Ridge regressions of rows on the CPU: normal equations and Cholesky of a row in one go.

A row's K x K matrix is summed, factorized and forgotten while it lies in the cache (`cholesky`).
`factorization.als` decides when this is used.
"""

import numpy as np

from metamf_jax.kernels.cholesky import BATCH, add_gram, factorize, padded, substitute
from metamf_jax.kernels.ffi import NumbaKernel

__all__ = ["padded", "solve_rows"]

_ZERO, _ONE, _EPSILON = np.float32(0), np.float32(1), np.finfo(np.float32).eps
_TINY = np.float32(1e-30)


def _solve_rows(
    starts,  # [R + 1] first entry of each row
    columns,
    values,
    design,  # [M, padded K]
    offset,  # [M]
    base_gram,  # [padded K, padded K], or [0, 0] where the entries alone count
    base_moment,  # [K], or [0]
    weight,  # [R]
    mean,  # [R, K]
    current,  # [R, K]
    solved,
    gram,  # [padded K * padded K], memory to work in
    batch,  # [BATCH * padded K]
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

        for begin in range(first, last, BATCH):
            count = np.uint64(min(last - begin, BATCH))
            for e in range(count):
                m = np.uint64(columns[np.uint64(begin) + e])
                value = values[np.uint64(begin) + e] - offset[m]
                for k in range(height):
                    batch[e * height + k] = design[m, k]
                for k in range(height):
                    moment[k] += value * design[m, k]
            if not shared:
                add_gram(gram, batch, count, width, height)

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
        factorize(gram, inverse, width, height)
        substitute(gram, inverse, moment, width, height)
        for j in range(width):
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
    ``d d^T`` and ``(x - offset) d`` over its entries; or, where a base is given, G is the base's
    and m the base's plus the sum. Where the weight is zero, the answer is near ``current_n``.

    Args:
      starts: [R + 1] int32: row n has the entries ``starts[n]`` up to ``starts[n + 1]``.
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
      [R, K]; rows without entries stay at the mean, unless a base is given.
    """
    height = design.shape[1]
    shapes = [mean.shape, (height * height,), (BATCH * height,), (height,), (height,)]
    arguments = starts, columns, values, design, offset, base_gram, base_moment
    return _solve_kernel(*arguments, weight, mean, current, shapes=shapes)[0]
