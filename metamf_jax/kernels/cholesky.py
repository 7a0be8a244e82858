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

# `_add_tiles` has tiles of two vectors and of one.
assert TILE[1] == 2 * LANES
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
        _add_tiles(gram, j, vectors, np.uint64(0), count, width, height, _ONE)


@inside
def _add_tiles(gram, j, vectors, at, count, width, height, sign):
    """``gram += sign sum_e d_e d_e^T`` in `TILE`'s rows from j on, from the diagonal rightwards.

    The ``d_e`` begin at a place in vectors, ``height`` apart.
    """
    end = _in_lanes(width)
    k = j // _LANES * _LANES
    while k + _COLUMNS <= end:
        add_products(gram, j * height + k, vectors, at + j, at + k, height, count, sign, 2)
        k += _COLUMNS
    if k < end:
        add_products(gram, j * height + k, vectors, at + j, at + k, height, count, sign, 1)


@inside
def factorize(gram, inverse, width, height):
    """gram becomes the upper triangle R with ``R^T R = gram``; inverse [height] 1 / R's diagonal.

    Beyond the width gram's diagonal must be one.
    """
    end = _in_lanes(width)
    for top in range(np.uint64(0), width, np.uint64(_PANEL)):
        bottom = top + np.uint64(_PANEL)
        for begin in range(top, min(bottom, width), _ROWS):
            # What the panel's rows above take from these.
            _add_tiles(gram, begin, gram, top * height, begin - top, width, height, -_ONE)
            last = min(begin + _ROWS, width)
            for j in range(begin, last):
                inverse[j] = _ONE / np.sqrt(gram[j * height + j])
                for k in range(j, end):
                    gram[j * height + k] *= inverse[j]
                for i in range(j + np.uint64(1), last):
                    k = i // _LANES * _LANES
                    factor = -gram[j * height + i]
                    add_multiple(gram, i * height + k, gram, j * height + k, end - k, factor)
        for j in range(bottom, width, _ROWS):
            _add_tiles(gram, j, gram, top * height, np.uint64(_PANEL), width, height, -_ONE)


@inside
def _in_lanes(width):
    return (width + _LANES - np.uint64(1)) // _LANES * _LANES


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
