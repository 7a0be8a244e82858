"""Ridge regressions of rows on the CPU by a few steps of conjugate gradients, a row at a time.

No K x K matrix is made: a step passes over a row's entries once, which lie in the cache after the
first. `factorization.als` has the equations, and decides when this is used.
"""

# Numba calls an intrinsic without its first parameter, the typing context.
# pyright: reportCallIssue=false

import functools

import numpy as np

from metamf_jax.kernels.ffi import NumbaKernel
from metamf_jax.kernels.vectors import LANES, add_multiple, dot, in_vectors, padded

__all__ = ["padded", "step_rows"]

_ZERO = np.float32(0)


@functools.cache
def _make_step_rows(vectors):
    """The kernel for rows of so many vectors."""
    length = np.uint64(vectors * LANES)
    start = np.uint64(0)

    def _step_rows(
        steps,
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
        w,  # [padded K] each, memory to work in
        residual,
        direction,
        image,
    ):
        width = mean.shape[1]
        shared = base_gram.shape[0] > 0
        of_columns, of_base = design.reshape(-1), base_gram.reshape(-1)
        for n in range(solved.shape[0]):
            first, last = np.uint64(starts[n]), np.uint64(starts[n + 1])
            if not shared and first == last:
                for k in range(width):
                    solved[n, k] = mean[n, k]
                continue
            ridge = weight[n]
            for k in range(length):
                w[k] = residual[k] = image[k] = _ZERO
            for k in range(width):
                w[k] = current[n, k]
                residual[k] = ridge * (mean[n, k] - current[n, k])
            if shared:
                for k in range(width):
                    residual[k] += base_moment[k]
                for j in range(length):
                    add_multiple(residual, start, of_base, j * length, length, -w[j])
            for e in range(first, last):
                m = np.uint64(columns[e])
                left = values[e] - offset[m]
                if not shared:
                    left -= dot(w, start, of_columns, m * length, vectors)
                add_multiple(residual, start, of_columns, m * length, length, left)
            square = dot(residual, start, residual, start, vectors)
            for k in range(length):
                direction[k] = residual[k]

            for _ in range(steps[()]):
                for k in range(length):
                    image[k] = ridge * direction[k]
                if shared:
                    for j in range(length):
                        add_multiple(image, start, of_base, j * length, length, direction[j])
                else:
                    for e in range(first, last):
                        at = np.uint64(columns[e]) * length
                        along = dot(direction, start, of_columns, at, vectors)
                        add_multiple(image, start, of_columns, at, length, along)
                curvature = dot(direction, start, image, start, vectors)
                # At the solution there is nowhere to go. Written so that NaN stays.
                if curvature <= 0:
                    break
                rate = square / curvature
                before = square
                add_multiple(w, start, direction, start, length, rate)
                add_multiple(residual, start, image, start, length, -rate)
                square = dot(residual, start, residual, start, vectors)
                turn = square / before
                for k in range(length):
                    direction[k] = residual[k] + turn * direction[k]
            for k in range(width):
                solved[n, k] = w[k]

    _step_rows.__qualname__ = f"_step_rows_{vectors}"
    return NumbaKernel(
        _step_rows,
        arguments=(
            *("int32", "int32[:]", "int32[:]", "float32[:]"),
            *("float32[:,:]", "float32[:]", "float32[:,:]", "float32[:]"),
            *("float32[:]", "float32[:,:]", "float32[:,:]"),
        ),
        results=("float32[:,:]", *["float32[:]"] * 4),
        distinct=True,
    )


def step_rows(
    steps, starts, columns, values, design, offset, base_gram, base_moment, weight, mean, current
):
    """So many steps towards the best factors of rows, each row's from its current ones.

    Args:
      steps: int32, from 0.
      starts, columns, values, design, offset, base_gram, base_moment, weight, mean, current: as for
        `ridge_rows.solve_rows`, by `padded` of this module.

    Returns:
      [R, K]; rows without entries stay at the mean, unless a base is given.
    """
    length = design.shape[1]
    kernel = _make_step_rows(in_vectors(length))
    arguments = steps, starts, columns, values, design, offset, base_gram, base_moment
    return kernel(*arguments, weight, mean, current, shapes=[mean.shape, *[(length,)] * 4])[0]
