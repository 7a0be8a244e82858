"""Posteriors of rows, by every backend, against dense float64 sums and inverses."""

from unittest import mock

import jax
import numpy as np
import pytest

from metamf_jax import sums
from metamf_jax.imputation.row_solver import Problem, Rows, Solution
from metamf_jax.kernels import posterior_rows
from metamf_jax.meta_learning.padding import pad_dense, stack_entries
from metamf_jax.types import Entries

N, M, K = 37, 90, 5


def matrix():
    """Row 0 has no cell, row 1 all, more than are gathered at a time; two padding cells."""
    rng = np.random.default_rng(0)
    observed = rng.random((N, M)) < 0.2
    observed[0], observed[1] = False, True
    rows, columns = np.nonzero(observed)
    order = rng.permutation(len(rows))
    values = rng.normal(size=len(rows))
    listed = Entries(rows[order], columns[order], values, (N, M))
    return jax.tree.map(lambda x: x[0], stack_entries([listed], (N, M), len(rows) + 2))


def problem():
    rng = np.random.default_rng(1)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def positive(*shape):
        return rng.uniform(0.3, 2, shape).astype(np.float32)

    found = Problem(
        design=normal(M, K),
        spread=0.3 * positive(M, K),
        offset=normal(M),
        offset_spread=positive(M),
        weight=positive(M),
        base=normal(N),
        noise=positive(N),
        mean=normal(N, K),
        precision=positive(K),
        strength=positive(N),
    )
    # A factor that is fixed: one by definition.
    found.design[:, 2], found.spread[:, 2], found.mean[:, 2] = 0, 0, 1
    return found


def reference(entries, p):
    p = Problem(*(np.float64(x) for x in p))
    answer = Solution(np.zeros((N, K)), np.zeros((N, K)), np.zeros(N), np.zeros(N))
    for n in range(N):
        own = entries.rows == n
        m, x = entries.columns[own], np.float64(entries.values[own])
        d, w, s = p.design[m], p.weight[m], p.spread[m]
        target = x - p.base[n] - p.offset[m]
        expected_gram = (d * w[:, None]).T @ d + np.diag(w @ s)
        precision = np.diag(p.strength[n] * p.precision)
        covariance = np.linalg.inv(expected_gram / p.noise[n] + precision)
        right = (w * target) @ d / p.noise[n] + precision @ p.mean[n]
        mean = covariance @ right
        variance = np.diag(covariance)
        left = target - d @ mean
        answer.mean[n], answer.variance[n] = mean, variance
        answer.left[n] = w @ left
        uncertain = d**2 @ variance + s @ (mean**2 + variance) + p.offset_spread[m]
        answer.square[n] = w @ (left**2 + uncertain)
    return answer


@pytest.mark.parametrize("way", ["numba", "xla", "dense"])
def test_every_backend_gives_the_posterior(way):
    entries, asked = matrix(), problem()
    with sums.using_backend("numba" if way == "numba" else "xla"):
        rows = Rows(pad_dense(entries) if way == "dense" else entries)
        found = rows.solve(asked)
    np.testing.assert_array_equal(rows.counts, np.bincount(entries.rows, minlength=N + 1)[:N])
    for name, got, expected in zip(found._fields, found, reference(entries, asked), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5, err_msg=name)
    # Without cells, the prior to the last bit; what is fixed stays.
    np.testing.assert_array_equal(found.mean[0], asked.mean[0])
    np.testing.assert_array_equal(found.mean[:, 2], 1)


def test_threads_change_no_bit():
    entries, asked = matrix(), problem()
    found = []
    for threads in (1, 3):
        with (
            sums.using_backend("numba"),
            mock.patch.object(posterior_rows, "_threads", lambda count=threads: count),
            mock.patch.object(posterior_rows, "_ENTRIES_A_PART", 50),
        ):
            rows = Rows(entries)
            parts = posterior_rows.sort(
                entries.rows, entries.columns, entries.values, rows.counts
            ).parts
            found.append((len(parts) - 1, rows.solve(asked)))
    assert [parts for parts, _ in found] == [1, 6]
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_array_equal(one, other)
