"""Small positive definite systems inside Numba kernels, by Cholesky. Imports Numba.

The matrices are [height, height] in flat float32 arrays, ``height`` a multiple of `TILE`'s columns,
of which the first ``width`` rows and columns count and only the part above the diagonal is read.
Both the sum over entries and the trailing updates of the blocked factorization are sums of outer
products, `vectors.add_products`.
"""

# Numba calls an intrinsic without its first parameter, the typing context.
# pyright: reportCallIssue=false

import numba
import numpy as np

from metamf_jax.kernels.ffi import VECTORISED
from metamf_jax.kernels.vectors import (
    LANES,
    TILE,
    add_multiple,
    add_product,
    add_products,
    multiply,
)

# Vectors gathered at a time: 32 kB at width 128.
BATCH = 64

# Rows of the Cholesky factor between two trailing updates. At width 128 a sweep of ALS on
# MovieLens-1M took 589 ms on two cores, and 755 ms with 32, once each on a machine with other work.
_PANEL = 16

_ROWS, _COLUMNS, _LANES = (np.uint64(x) for x in (*TILE, LANES))
_ZERO, _ONE = np.float32(0), np.float32(1)

inside = numba.njit(nogil=True, error_model="numpy", fastmath=set(VECTORISED))


def padded(width: int) -> int:
    """The least height for a width."""
    return -(-width // TILE[1]) * TILE[1]


@inside
def add_gram(gram, vectors, count, width, height):
    """``gram += sum_e d_e d_e^T`` over the first ``count`` of vectors [BATCH * height]."""
    for j in range(np.uint64(0), width, _ROWS):
        for k in range(j // _COLUMNS * _COLUMNS, height, _COLUMNS):
            add_products(gram, j * height + k, vectors, j, k, height, count, _ONE)


@inside
def factorize(gram, inverse, width, height):
    """gram becomes the upper triangle R with ``R^T R = gram``; inverse [height] 1 / R's diagonal.

    Beyond the width gram's diagonal must be one.
    """
    for top in range(np.uint64(0), height, np.uint64(_PANEL)):
        bottom = top + np.uint64(_PANEL)
        last = min(bottom, width)
        for j in range(top, last):
            inverse[j] = _ONE / np.sqrt(gram[j * height + j])
            for k in range(j, height):
                gram[j * height + k] *= inverse[j]
            for i in range(j + np.uint64(1), last):
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


@inside
def substitute(factor, inverse, x, width, height):
    """x [height] becomes the solution of ``R^T R y = x``, given what `factorize` leaves."""
    for j in range(width):
        x[j] *= inverse[j]
        for k in range(j + np.uint64(1), width):
            x[k] -= factor[j * height + k] * x[j]
    for back in range(width):
        j = width - np.uint64(1) - back
        rest = x[j]
        for k in range(j + np.uint64(1), width):
            rest -= factor[j * height + k] * x[k]
        x[j] = rest * inverse[j]


@inside
def invert_lanes(matrices, width, row):
    """`LANES` matrices at once: each becomes X with ``X X^T`` its inverse, upper triangular.

    For widths up to a few dozen: a matrix alone leaves most of a vector empty, and takes 15 times
    as long at width 18.

    Args:
      matrices: [width * width * LANES], the number of the matrix last; only the part on and above
        the diagonal is read and written.
      width: of each.
      row: [width * LANES], memory to work in.
    """
    step = width * _LANES
    for j in range(width):
        pivot = j * step + j * _LANES
        for lane in range(_LANES):
            matrices[pivot + lane] = _ONE / np.sqrt(matrices[pivot + lane])
        for k in range(j + np.uint64(1), width):
            multiply(matrices, j * step + k * _LANES, matrices, pivot)
        for i in range(j + np.uint64(1), width):
            left = j * step + i * _LANES
            for k in range(i, width):
                at, right = i * step + k * _LANES, j * step + k * _LANES
                add_product(matrices, at, matrices, left, matrices, right, -_ONE)
    # The triangle's inverse in its own place, from the last row upwards.
    for back in range(width):
        j = width - np.uint64(1) - back
        pivot = j * step + j * _LANES
        for k in range(j + np.uint64(1), width):
            for lane in range(_LANES):
                row[k * _LANES + lane] = matrices[j * step + k * _LANES + lane]
                matrices[j * step + k * _LANES + lane] = _ZERO
        for i in range(j + np.uint64(1), width):
            for k in range(i, width):
                at, below = j * step + k * _LANES, i * step + k * _LANES
                add_product(matrices, at, row, i * _LANES, matrices, below, -_ONE)
        for k in range(j + np.uint64(1), width):
            multiply(matrices, j * step + k * _LANES, matrices, pivot)
