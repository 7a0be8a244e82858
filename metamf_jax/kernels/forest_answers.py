"""Answers of trees on the CPU, a row at a time, in threads; see `imputation.forest`. Imports Numba."""

import numba
import numpy as np

from metamf_jax.kernels.disk_cache import compiled
from metamf_jax.kernels.posterior_rows import in_threads

# Rows of a thread's share: less is not worth waking one for.
_ROWS_A_PART, _MOST_PARTS = 2000, 64
# Rows that walk side by side, each waiting for memory of its own.
_TOGETHER = 16

_INDEX, _PAIRS, _THRESHOLDS, _ANSWERS, _ROWS = (
    numba.types.Array(dtype, rank, "C", readonly=True)
    for dtype, rank in (
        (numba.int32, 1),
        (numba.int32, 2),
        (numba.float64, 1),
        (numba.float32, 1),
        (numba.float32, 2),
    )
)


def _walk(begin, end, roots, features, thresholds, children, answers, rows, found):
    at = np.empty(_TOGETHER, np.int32)
    for first in range(begin, end, _TOGETHER):
        count = min(_TOGETHER, end - first)
        for i in range(count):
            found[first + i] = 0
        for t in range(roots.shape[0]):
            at[:] = roots[t]
            moving = True
            while moving:
                moving = False
                for i in range(count):
                    node = at[i]
                    right = rows[first + i, features[node]] > thresholds[node]
                    at[i] = children[node, np.intp(right)]
                    moving |= at[i] != node
            for i in range(count):
                found[first + i] += answers[at[i]]
        for i in range(count):
            found[first + i] /= roots.shape[0]


_walk_compiled = compiled(
    _walk,
    numba.void(
        numba.int64,
        numba.int64,
        *(_INDEX, _INDEX, _THRESHOLDS, _PAIRS, _ANSWERS, _ROWS),
        numba.types.Array(numba.float64, 1, "C"),
    ),
    nogil=True,
    error_model="numpy",
)


def predict(roots, features, thresholds, children, answers, rows: np.ndarray) -> np.ndarray:
    """The mean answers [P] of the trees with these roots [T] for rows [P, F], float32.

    The other arrays are those of a `forest.Forest`.
    """
    found = np.empty(len(rows))
    parts = int(np.clip(len(rows) // _ROWS_A_PART, 1, _MOST_PARTS))
    cuts = np.linspace(0, len(rows), parts + 1).astype(int)

    def run(begin, end):
        _walk_compiled(begin, end, roots, features, thresholds, children, answers, rows, found)

    in_threads(run, cuts)
    return found
