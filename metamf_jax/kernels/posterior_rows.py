"""Posteriors of rows on the CPU, a row at a time, in threads.

A row's K x K matrix is summed, factorized, inverted and forgotten while it lies in the cache
(`cholesky`). `imputation.row_solver` has the equation, and decides when this is used. Rows do not
depend on each other, so the results do not depend on the threads.
"""

# Numba calls an intrinsic without its first parameter, the typing context.
# pyright: reportCallIssue=false

import concurrent.futures
import functools
import os
from typing import Any, NamedTuple

import numba
import numpy as np

from metamf_jax.kernels.cholesky import BATCH, add_gram, invert_lanes, padded
from metamf_jax.kernels.disk_cache import compiled
from metamf_jax.kernels.ffi import VECTORISED
from metamf_jax.kernels.vectors import LANES, add_multiple, add_product

_ZERO, _HALF, _ONE, _TWICE = (np.float32(x) for x in (0, 0.5, 1, 2))
# Its square is a normal number.
_TINY = 1e-18
_NEXT, _TWO, _LANES = (np.uint64(x) for x in (1, 2, LANES))
# A row without entries takes as long as so many entries.
_ENTRIES_A_ROW = 10
# Less work than so many entries is not worth waking a thread for, which takes 0.05 ms.
_ENTRIES_A_PART = 4000

# JAX's results are read-only as NumPy arrays.
_INDEX, _VECTOR, _TABLE = (
    numba.types.Array(dtype, rank, "C", readonly=True)
    for dtype, rank in ((numba.int32, 1), (numba.float32, 1), (numba.float32, 2))
)
_INDEX_OUT, _VECTOR_OUT, _TABLE_OUT = (t.copy(readonly=False) for t in (_INDEX, _VECTOR, _TABLE))


def _compiled(*arguments: Any):
    return functools.partial(
        compiled,
        signature=numba.void(*arguments),
        nogil=True,
        error_model="numpy",
        fastmath=set(VECTORISED),
    )


class Sorted(NamedTuple):
    """A list of entries row by row.

    Attributes:
      starts: [N + 1] int32: row n has the entries ``starts[n]`` up to ``starts[n + 1]``.
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
    """Sorts entries by row, those of a row in the order of the list.

    Args:
      rows: [E], N for padding entries, which are dropped.
      columns: [E].
      values: [E].
      counts: [N], entries of each row.
    """
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    found = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
    listed = (np.ascontiguousarray(x, np.int32) for x in (rows, columns))
    _sort(*listed, np.ascontiguousarray(values, np.float32), starts[:-1].copy(), *found)
    cost = starts + _ENTRIES_A_ROW * np.arange(len(starts))
    # Twice as many as threads: one that is held up leaves the rest to others.
    parts = min(2 * _threads(), cost[-1] // _ENTRIES_A_PART) if _threads() > 1 else 1
    cuts = np.searchsorted(cost, np.linspace(0, cost[-1], max(parts, 1) + 1))
    return Sorted(starts, *found, cuts)


@_compiled(
    *[numba.int64] * 2,
    *[_INDEX] * 2,
    *[_VECTOR] * 7,
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
    of_columns,  # [M * 2 * height], see `solve`
    root,  # [M], of the weight
    offset,  # [M]
    offset_spread,  # [M], times the weight
    base,  # [N]
    noise,  # [N]
    mean,  # [N, K]
    precision,  # [K]
    strength,  # [N]
    found,  # [N, K]
    variance,  # [N, K]
    left,  # [N]
    square,  # [N]
):
    width = np.uint64(mean.shape[1])
    # The target of an entry and the root of its weight follow its design.
    target, weight, extended = width, width + _NEXT, width + _NEXT + _NEXT
    height = np.uint64(of_columns.shape[0] // (2 * root.shape[0]))
    gram = np.empty(height * height, np.float32)
    batch = np.empty(np.uint64(BATCH) * height, np.float32)
    uncertain = np.empty(height, np.float32)
    step = width * _LANES
    matrices = np.empty(width * step, np.float32)
    # Of each row in the group: the Gram matrix, right-hand side, uncertainty, answer, sums.
    grams = np.empty(extended * extended * _LANES, np.float32)
    sides, answers = np.empty(step, np.float32), np.empty(step, np.float32)
    spreads, work = np.empty(step, np.float32), np.empty(step, np.float32)
    group = np.empty(_LANES, np.int64)
    n = begin_row
    while n < end_row:
        members = np.uint64(0)
        while n < end_row and members < _LANES:
            if starts[n] == starts[n + 1]:
                for k in range(width):
                    found[n, k] = mean[n, k]
                    variance[n, k] = _ONE / (strength[n] * precision[k])
                left[n], square[n] = _ZERO, _ZERO
                n += 1
                continue
            gram.fill(_ZERO)
            uncertain.fill(_ZERO)
            of_offset = _ZERO
            for begin in range(starts[n], starts[n + 1], BATCH):
                count = np.uint64(min(starts[n + 1] - begin, BATCH))
                for e in range(count):
                    m = np.uint64(columns[np.uint64(begin) + e])
                    at = _TWO * m * height
                    for k in range(height):
                        batch[e * height + k] = of_columns[at + k]
                    rest = values[np.uint64(begin) + e] - base[n] - offset[m]
                    batch[e * height + target] = root[m] * rest
                    of_offset += offset_spread[m]
                    add_multiple(uncertain, np.uint64(0), of_columns, at + height, height, _ONE)
                add_gram(gram, batch, count, extended, height)
            lane = members
            for j in range(extended):
                for k in range(j, extended):
                    grams[(j * extended + k) * _LANES + lane] = gram[j * height + k]
            for k in range(width):
                spreads[k * _LANES + lane] = uncertain[k]
            square[n] = of_offset
            group[members] = n
            members += _NEXT
            n += 1
        if members == 0:
            break
        for lane in range(members, _LANES):
            for j in range(extended):
                for k in range(j, extended):
                    grams[(j * extended + k) * _LANES + lane] = _ONE if j == k else _ZERO
            for k in range(width):
                spreads[k * _LANES + lane] = _ZERO
            group[lane] = group[0]

        # What the prior mean leaves of the right-hand side.
        for j in range(width):
            for lane in range(_LANES):
                own = spreads[j * _LANES + lane] * mean[group[lane], j]
                sides[j * _LANES + lane] = grams[(j * extended + target) * _LANES + lane] - own
        for j in range(width):
            for k in range(j, width):
                at = (j * extended + k) * _LANES
                for lane in range(_LANES):
                    value = grams[at + lane]
                    matrices[j * step + k * _LANES + lane] = value
                    sides[j * _LANES + lane] -= value * mean[group[lane], k]
                    if j != k:
                        sides[k * _LANES + lane] -= value * mean[group[lane], j]
        for k in range(width):
            at = k * step + k * _LANES
            for lane in range(_LANES):
                r = group[lane]
                ridge = noise[r] * strength[r] * precision[k]
                matrices[at + lane] += spreads[k * _LANES + lane] + ridge
        invert_lanes(matrices, width, work)
        # X (X^T side), and the rows' sums of squares of X.
        work.fill(_ZERO)
        answers.fill(_ZERO)
        for j in range(width):
            for k in range(j, width):
                at = j * step + k * _LANES
                add_product(work, k * _LANES, matrices, at, sides, j * _LANES, _ONE)
        sides.fill(_ZERO)
        for j in range(width):
            for k in range(j, width):
                at = j * step + k * _LANES
                add_product(answers, j * _LANES, matrices, at, work, k * _LANES, _ONE)
                add_product(sides, j * _LANES, matrices, at, matrices, at, _ONE)
        for lane in range(members):
            r = group[lane]
            at = (target * extended + target) * _LANES + lane
            total, sum_left = grams[at], grams[at + _LANES]
            for k in range(width):
                answer = mean[r, k] + answers[k * _LANES + lane]
                own = noise[r] * sides[k * _LANES + lane]
                found[r, k], variance[r, k] = answer, own
                answers[k * _LANES + lane] = answer
                sum_left -= answer * grams[(k * extended + weight) * _LANES + lane]
                total -= _TWICE * answer * grams[(k * extended + target) * _LANES + lane]
                total += spreads[k * _LANES + lane] * (answer * answer + own)
                total += own * grams[(k * extended + k) * _LANES + lane]
            for j in range(width):
                own, at = answers[j * _LANES + lane], (j * extended + j) * _LANES + lane
                fitted = _HALF * grams[at] * own
                for k in range(j + _NEXT, width):
                    at += _LANES
                    fitted += grams[at] * answers[k * _LANES + lane]
                total += _TWICE * own * fitted
            left[r] = sum_left
            square[r] += total


def solve(matrix: Sorted, problem: Any) -> tuple[np.ndarray, ...]:
    """`row_solver.solve` of a list of entries: the arrays of its ``Solution``.

    Args:
      matrix: from `sort`.
      problem: a `row_solver.Problem`.
    """
    p = problem._make(np.ascontiguousarray(x, np.float32) for x in problem)
    num_rows, width = p.mean.shape
    root = np.sqrt(p.weight)
    # Of each column its design, a place for the entry's target, and its weight, all times the root;
    # then its spread times the weight.
    of_columns = np.zeros((len(root), 2, padded(width + 2)), np.float32)
    of_columns[:, 0, :width] = root[:, None] * p.design
    of_columns[:, 0, width + 1] = root
    of_columns[:, 1, :width] = p.weight[:, None] * p.spread
    # Factors that explain nothing die away to numbers with which arithmetic is ten times slower.
    of_columns[np.abs(of_columns) < _TINY] = 0
    arguments = of_columns.ravel(), root, p.offset, p.weight * p.offset_spread, *p[5:]
    shapes = (num_rows, width), (num_rows, width), (num_rows,), (num_rows,)
    solution = tuple(np.empty(shape, np.float32) for shape in shapes)

    def run(begin, end):
        _solve(begin, end, *matrix[:3], *arguments, *solution)

    in_threads(run, matrix.parts)
    return solution


def in_threads(run, cuts: np.ndarray) -> None:
    """Calls ``run(begin, end)`` for each part between two cuts."""
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
