"""Predictions and best columns against brute force."""

import numpy as np
import pytest

from metamf_jax.factorization import prediction
from metamf_jax.types import Factors

N, M, K = 7, 9, 3


def _factors(seed=0):
    rng = np.random.default_rng(seed)
    return Factors(rng.normal(size=(N, K)).astype("f"), rng.normal(size=(M, K)).astype("f"))


def test_unknown_rows_and_columns_are_answered_by_means():
    factors = _factors()
    rows, columns = np.array([2, -1, 3, -1]), np.array([5, 4, -1, -1])
    values = prediction.predict(prediction.with_unknown(factors), rows, columns)
    dense = np.float64(factors.u) @ factors.v.T
    expected = [dense[2, 5], dense[:, 4].mean(), dense[3].mean(), dense.mean()]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


# With room for one row at a time, for three, and for all.
@pytest.mark.parametrize("floats", [1, 3 * (M + K), 1 << 20])
def test_top_columns_equal_a_sort(floats, monkeypatch):
    monkeypatch.setattr(prediction, "_FLOATS_AT_ONCE", floats)
    factors = _factors()
    rng = np.random.default_rng(1)
    excluded = rng.random((N, M)) < 0.4
    excluded[4] = True
    excluded[4, 6] = False
    rows = np.array([4, 0, 6, 0, 3])
    cells = np.nonzero(excluded)
    order = rng.permutation(len(cells[0]))
    columns, values = prediction.top_columns(factors, rows, 4, (cells[0][order], cells[1][order]))
    for r, n in enumerate(rows):
        dense = np.where(excluded[n], -np.inf, factors.u[n] @ factors.v.T)
        expected = np.argsort(-dense, kind="stable")[:4]
        left = np.isfinite(dense[expected])
        np.testing.assert_array_equal(columns[r], np.where(left, expected, M))
        np.testing.assert_allclose(values[r], dense[expected], rtol=1e-5)
    assert (columns[0] < M).sum() == 1
    everything, _ = prediction.top_columns(factors, rows, 99, (cells[0][:0], cells[1][:0]))
    np.testing.assert_array_equal(np.sort(everything, axis=1), np.tile(np.arange(M), (5, 1)))
    listed = prediction.predict(factors, np.arange(N), np.arange(N))
    np.testing.assert_allclose(listed, (factors.u * factors.v[:N]).sum(1), rtol=1e-5)
