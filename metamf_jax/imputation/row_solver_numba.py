"""Posteriors of rows on the CPU, a row at a time, in threads. `row_solver` decides when it is used.

A row's K x K matrix is summed, factorized, inverted and forgotten while it lies in the cache
(`ridge_numba`). Rows do not depend on each other, so the results do not depend on the threads.
"""

import concurrent.futures
import functools
import os
from typing import Any, NamedTuple

import numba
import numpy as np

from metamf_jax.numba_ffi import VECTORISED
from metamf_jax.numba_vectors import add_multiple
from metamf_jax.ridge_numba import (
    BATCH,
    add_gram,
    factorize,
    inverse_diagonal,
    padded,
    substitute,
)

_ZERO, _ONE = np.float32(0), np.float32(1)
# A row without cells takes as long as so many cells.
_CELLS_A_ROW = 40
# Less work than so many cells is not worth waking a thread for, which takes 0.05 ms.
_CELLS_A_PART = 4000

# JAX's results are read-only as NumPy arrays.
_INDEX, _VECTOR, _TABLE = (
    numba.types.Array(dtype, rank, "C", readonly=True)
    for dtype, rank in ((numba.int32, 1), (numba.float32, 1), (numba.float32, 2))
)
_INDEX_OUT, _VECTOR_OUT, _TABLE_OUT = (t.copy(readonly=False) for t in (_INDEX, _VECTOR, _TABLE))


def _compiled(*arguments: Any):
    return numba.njit(
        [numba.void(*arguments)],
        nogil=True,
        cache=True,
        error_model="numpy",
        fastmath=set(VECTORISED),
    )


class Sorted(NamedTuple):
    """A list of cells row by row.

    Attributes:
      starts: [N + 1] int32: row n has the cells ``starts[n]`` up to ``starts[n + 1]``.
      columns: [E] int32.
      values: [E] float32.
      parts: rows where one thread's share ends and the next begins, from 0 to N.
    """

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    parts: np.ndarray


@_compiled(_INDEX, _INDEX, _VECTOR, _INDEX_OUT, _INDEX_OUT, _VECTOR_OUT)
def _sort(rows, columns, values, places, sorted_columns, sorted_values):
    for e in range(rows.shape[0]):
        n = rows[e]
        if n < places.shape[0]:
            place = places[n]
            places[n] = place + 1
            sorted_columns[place] = columns[e]
            sorted_values[place] = values[e]


def sort(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, counts: np.ndarray) -> Sorted:
    """Sorts cells by row, those of a row in the order of the list.

    Args:
      rows: [E], N for padding cells, which are dropped.
      columns: [E].
      values: [E].
      counts: [N], cells of each row.
    """
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    found = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    listed = (np.ascontiguousarray(x, np.int32) for x in (rows, columns))
    _sort(*listed, np.ascontiguousarray(values, np.float32), starts[:-1].copy(), *found)
    cost = starts + _CELLS_A_ROW * np.arange(len(starts))
    # Twice as many as threads: one that is held up leaves the rest to others.
    parts = min(2 * _threads(), cost[-1] // _CELLS_A_PART) if _threads() > 1 else 1
    cuts = np.searchsorted(cost, np.linspace(0, cost[-1], max(parts, 1) + 1))
    return Sorted(starts, *found, cuts)


@_compiled(
    *[numba.int64] * 2,
    *[_INDEX] * 2,
    *[_VECTOR] * 9,
    _TABLE,
    *[_VECTOR] * 2,
    *[_TABLE_OUT] * 2,
    *[_VECTOR_OUT] * 2,
)
def _solve(
    begin_row,
    end_row,
    starts,  # [N + 1]
    columns,  # [E]
    values,  # [E]
    design,  # [M * height], times the root of the weight
    spread,  # [M * height], times the weight
    offset,  # [M]
    offset_spread,  # [M], times the weight
    root,  # [M], of the weight
    base,  # [N]
    noise,  # [N]
    inverse_root,  # [M]
    mean,  # [N, K]
    precision,  # [K]
    strength,  # [N]
    found,  # [N, K]
    variance,  # [N, K]
    left,  # [N]
    square,  # [N]
):
    width = np.uint64(mean.shape[1])
    height = np.uint64(design.shape[0] // max(root.shape[0], 1))
    gram = np.empty(height * height, np.float32)
    work = np.empty(height * height, np.float32)
    points = np.empty(np.uint64(BATCH) * height, np.float32)
    moment, uncertain = np.empty(height, np.float32), np.empty(height, np.float32)
    inverse, diagonal = np.empty(height, np.float32), np.empty(height, np.float32)
    gram_diagonal = np.empty(height, np.float32)
    for n in range(begin_row, end_row):
        gram.fill(_ZERO)
        moment.fill(_ZERO)
        uncertain.fill(_ZERO)
        of_offset = _ZERO
        for begin in range(starts[n], starts[n + 1], BATCH):
            count = np.uint64(min(starts[n + 1] - begin, BATCH))
            for e in range(count):
                m = np.uint64(columns[np.uint64(begin) + e])
                target = root[m] * (values[np.uint64(begin) + e] - base[n] - offset[m])
                of_offset += offset_spread[m]
                for k in range(height):
                    points[e * height + k] = design[m * height + k]
                add_multiple(moment, np.uint64(0), design, m * height, height, target)
                add_multiple(uncertain, np.uint64(0), spread, m * height, height, _ONE)
            add_gram(gram, points, count, width, height)
        for k in range(height):
            gram_diagonal[k] = gram[k * height + k]
        for k in range(width):
            gram[k * height + k] += uncertain[k]
        # What the prior mean leaves: only the part above the diagonal is there.
        for j in range(width):
            row, own = j * height, mean[n, j]
            fitted = gram[row + j] * own
            for k in range(j + np.uint64(1), width):
                fitted += gram[row + k] * mean[n, k]
                moment[k] -= gram[row + k] * own
            moment[j] -= fitted
        for k in range(height):
            ridge = noise[n] * strength[n] * precision[k] if k < width else _ONE
            gram[k * height + k] += ridge
        factorize(gram, inverse, width, height)
        substitute(gram, inverse, moment, width, height)
        inverse_diagonal(gram, inverse, work, diagonal, width, height)
        total = of_offset
        for k in range(width):
            solved, own = mean[n, k] + moment[k], noise[n] * diagonal[k]
            found[n, k], variance[n, k], moment[k] = solved, own, solved
            total += own * gram_diagonal[k] + uncertain[k] * (solved * solved + own)
        sum_left = _ZERO
        for e in range(starts[n], starts[n + 1]):
            m = np.uint64(columns[e])
            rest = root[m] * (values[e] - base[n] - offset[m])
            for k in range(height):
                rest -= moment[k] * design[m * height + k]
            sum_left += rest * inverse_root[m]
            total += rest * rest
        left[n], square[n] = sum_left, total


def solve(matrix: Sorted, problem: Any) -> tuple[np.ndarray, ...]:
    """`row_solver.solve` of a list of cells: the arrays of its ``Solution``.

    Args:
      matrix: from `sort`.
      problem: a `row_solver.Problem`.
    """
    p = problem._make(np.ascontiguousarray(x, np.float32) for x in problem)
    num_rows, width = p.mean.shape
    extra = ((0, 0), (0, padded(width) - width))
    root = np.sqrt(p.weight)
    arguments = (
        np.pad(root[:, None] * p.design, extra).ravel(),
        np.pad(p.weight[:, None] * p.spread, extra).ravel(),
        p.offset,
        p.weight * p.offset_spread,
        root,
        p.base,
        p.noise,
        1 / root,
        p.mean,
        p.precision,
        p.strength,
    )
    shapes = (num_rows, width), (num_rows, width), (num_rows,), (num_rows,)
    solution = tuple(np.empty(shape, np.float32) for shape in shapes)

    def run(begin, end):
        _solve(begin, end, *matrix[:3], *arguments, *solution)

    _in_threads(run, matrix.parts)
    return solution


def _in_threads(run, cuts: np.ndarray) -> None:
    bounds = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
    if len(bounds) == 1:
        run(*bounds[0])
        return
    for future in [_pool().submit(run, *each) for each in bounds]:
        future.result()


def _threads() -> int:
    # The cores that this process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(_threads(), "row_solver")
