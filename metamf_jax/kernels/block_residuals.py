"""Sums of residuals over blocks on the CPU: gradients of factors, and squares.

`posterior.block_residuals` has the equations, and decides when this is used.
"""

# Numba calls an intrinsic without its first parameter, the typing context.
# pyright: reportCallIssue=false

import functools

import numpy as np

from metamf_jax.kernels.ffi import NumbaKernel
from metamf_jax.kernels.vectors import LANES, add_multiple, dot

_ZERO = np.float32(0)

_ARGUMENTS = (
    *("int32[:,:]", "int32[:,:]", "float32[:,:]"),
    *("int32[:]", "int32[:]", "int32[:]"),
    *("float32[:]", "float32[:]"),
    *["float32[:,:]"] * 4,
)


@functools.cache
def make_gradients(vectors: int) -> NumbaKernel:
    """Of factors of so many vectors a row: ``sum q e v`` and ``sum q e``, ``sum p e u`` and so on.

    The arguments are entries [B, L], the first and the last entry of each block [B], its column
    block's slot [B]; factors, flat; effects and shares [B, R] and [B', C]. The results are the
    gradients, flat, and those of the effects.
    """

    def _gradients(
        rows,
        columns,
        values,
        first,
        last,
        slots,
        u,
        v,
        row_effects,
        column_effects,
        p,
        q,
        u_sums,
        v_sums,
        row_sums,
        column_sums,
    ):
        height = np.uint64(LANES * vectors)
        u_sums[:] = _ZERO
        v_sums[:] = _ZERO
        row_sums[:] = _ZERO
        column_sums[:] = _ZERO
        num_rows, num_columns = np.uint64(p.shape[1]), np.uint64(q.shape[1])
        for b in range(first.shape[0]):
            s = np.uint64(slots[b])
            for t in range(np.uint64(first[b]), np.uint64(last[b])):
                n, m = np.uint64(rows[b, t]), np.uint64(columns[b, t])
                at_u, at_v = (b * num_rows + n) * height, (s * num_columns + m) * height
                left = values[b, t] - row_effects[b, n] - column_effects[s, m]
                left -= dot(u, at_u, v, at_v, vectors)
                of_row, of_column = q[s, m] * left, p[b, n] * left
                add_multiple(u_sums, at_u, v, at_v, height, of_row)
                add_multiple(v_sums, at_v, u, at_u, height, of_column)
                row_sums[b, n] += of_row
                column_sums[s, m] += of_column

    _gradients.__qualname__ = f"_gradients_{vectors}"
    return NumbaKernel(
        _gradients,
        arguments=_ARGUMENTS,
        results=("float32[:]", "float32[:]", "float32[:,:]", "float32[:,:]"),
        distinct=True,
    )


@functools.cache
def make_squares(vectors: int) -> NumbaKernel:
    """Of the same arguments ``sum q e^2`` [B, R] and ``sum p e^2`` [B', C]."""

    def _squares(
        rows,
        columns,
        values,
        first,
        last,
        slots,
        u,
        v,
        row_effects,
        column_effects,
        p,
        q,
        row_sums,
        column_sums,
    ):
        height = np.uint64(LANES * vectors)
        row_sums[:] = _ZERO
        column_sums[:] = _ZERO
        num_rows, num_columns = np.uint64(p.shape[1]), np.uint64(q.shape[1])
        for b in range(first.shape[0]):
            s = np.uint64(slots[b])
            for t in range(np.uint64(first[b]), np.uint64(last[b])):
                n, m = np.uint64(rows[b, t]), np.uint64(columns[b, t])
                at_u, at_v = (b * num_rows + n) * height, (s * num_columns + m) * height
                left = values[b, t] - row_effects[b, n] - column_effects[s, m]
                left -= dot(u, at_u, v, at_v, vectors)
                row_sums[b, n] += q[s, m] * left * left
                column_sums[s, m] += p[b, n] * left * left

    _squares.__qualname__ = f"_squares_{vectors}"
    return NumbaKernel(
        _squares,
        arguments=_ARGUMENTS,
        results=("float32[:,:]", "float32[:,:]"),
        distinct=True,
    )
