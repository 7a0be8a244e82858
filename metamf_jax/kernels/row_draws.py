"""Draws the factors of rows on the CPU: normal equations, Cholesky and noise of a row in one go.

A row's matrix is summed, factorized and forgotten while it lies in the cache (`kernels.cholesky`).
The effect, a row's last number, is a border of that matrix, so that K + 1 numbers take the tiles of
K. `posterior.row_conditional` decides when this is used.
"""

import numpy as np

from metamf_jax.kernels.cholesky import BATCH, add_gram, factorize, padded
from metamf_jax.kernels.ffi import NumbaKernel

__all__ = ["draw_rows", "padded"]

_ZERO, _ONE = np.float32(0), np.float32(1)


def _draw_rows(
    starts,  # [R + 1] first entry of each row
    columns,
    values,
    design,  # [M, padded K], times the root of the column's weight
    root,  # [M], of the column's weight
    offset,  # [M]
    weight,  # [R]
    precision,  # [K + 1, K + 1]
    pull,  # [R, K + 1], the prior's precision times its mean
    noise,  # [R, K + 1]
    rounding,
    drawn,
    square,  # [R]
    gram,  # [padded K * padded K], memory to work in
    batch,  # [BATCH * padded K]
    moment,  # [padded K]
    border,  # [padded K]
    inverse,  # [padded K]
):
    rank, height = np.uint64(precision.shape[0] - 1), np.uint64(design.shape[1])
    for n in range(drawn.shape[0]):
        first, last = starts[n], starts[n + 1]
        scale = np.sqrt(weight[n])
        for k in range(height * height):
            gram[k] = _ZERO
        for j in range(height):
            if j < rank:
                for k in range(rank):
                    gram[j * height + k] = precision[j, k]
                moment[j], border[j] = pull[n, j], precision[j, rank]
            else:
                moment[j], border[j] = _ZERO, _ZERO
                gram[j * height + j] = _ONE
        corner, of_effect = precision[rank, rank], pull[n, rank]
        for begin in range(first, last, BATCH):
            count = np.uint64(min(last - begin, BATCH))
            for e in range(count):
                m = np.uint64(columns[np.uint64(begin) + e])
                one = scale * root[m]
                target = one * (values[np.uint64(begin) + e] - offset[m])
                for k in range(height):
                    scaled = scale * design[m, k]
                    batch[e * height + k] = scaled
                    moment[k] += target * scaled
                    border[k] += one * scaled
                corner += one * one
                of_effect += one * target
            add_gram(gram, batch, count, rank, height)

        trace = corner
        for j in range(rank):
            trace += gram[j * height + j]
        ridge = rounding[()] * trace
        for j in range(rank):
            gram[j * height + j] += ridge
        corner += ridge
        factorize(gram, inverse, rank, height)
        # R^T y = b for both right-hand sides.
        for j in range(rank):
            moment[j] *= inverse[j]
            border[j] *= inverse[j]
            for k in range(j + np.uint64(1), rank):
                moment[k] -= gram[j * height + k] * moment[j]
                border[k] -= gram[j * height + k] * border[j]
        for k in range(rank):
            corner -= border[k] * border[k]
            of_effect -= border[k] * moment[k]
        pivot = _ONE / np.sqrt(corner)
        effect = pivot * (pivot * of_effect + noise[n, rank])
        for k in range(rank):
            moment[k] += noise[n, k] - border[k] * effect
        for back in range(rank):
            j = rank - np.uint64(1) - back
            rest = moment[j]
            for k in range(j + np.uint64(1), rank):
                rest -= gram[j * height + k] * moment[k]
            moment[j] = rest * inverse[j]
        for k in range(rank):
            drawn[n, k] = moment[k]
        drawn[n, rank] = effect

        total = _ZERO
        for e in range(first, last):
            m = np.uint64(columns[np.uint64(e)])
            left = root[m] * (values[np.uint64(e)] - offset[m] - effect)
            for k in range(height):
                left -= design[m, k] * moment[k]
            total += left * left
        square[n] = total


_draw_kernel = NumbaKernel(
    _draw_rows,
    arguments=(
        *("int32[:]", "int32[:]", "float32[:]"),
        *("float32[:,:]", "float32[:]", "float32[:]"),
        *("float32[:]", "float32[:,:]", "float32[:,:]", "float32[:,:]", "float32"),
    ),
    results=("float32[:,:]", *["float32[:]"] * 6),
    distinct=True,
)


def draw_rows(
    starts, columns, values, design, root, offset, weight, precision, pull, noise, rounding
):
    """Draws a Gaussian for each row, and sums the squares of what it leaves over.

    Row n's has the precision ``A = precision + weight_n sum t t^T`` and the mean ``A^-1 (pull_n +
    weight_n sum (x - offset) root t)``, the sums over its entries, ``t = [design_m, root_m]``. To
    the diagonal of A is added its trace times the rounding.

    Args:
      starts: [R + 1] int32: row n has the entries ``starts[n]`` up to ``starts[n + 1]``.
      columns: [E] int32.
      values: [E] float32.
      design: [M, padded(K)] float32, zero beyond K.
      root: [M].
      offset: [M].
      weight: [R], positive.
      precision: [K + 1, K + 1].
      pull: [R, K + 1].
      noise: [R, K + 1], standard normal.
      rounding: float32.

    Returns:
      [R, K + 1]; and [R], ``sum (root (x - offset) - t . drawn)^2``.
    """
    arguments = starts, columns, values, design, root, offset, weight, precision, pull, noise
    return _draw_kernel(*arguments, rounding, shapes=_shapes(design, noise))[:2]


def draw_rows_here(
    starts, columns, values, design, root, offset, weight, precision, pull, noise, rounding
):
    """`draw_rows` of NumPy arrays, contiguous and of these types, without XLA."""
    arguments = starts, columns, values, design, root, offset, weight, precision, pull, noise
    rounding = np.asarray(rounding)
    return _draw_kernel.on_host(*arguments, rounding, shapes=_shapes(design, noise))[:2]


def _shapes(design, noise) -> list[tuple[int, ...]]:
    height = design.shape[1]
    work = (height * height,), (BATCH * height,), (height,), (height,), (height,)
    return [noise.shape, noise.shape[:1], *work]
