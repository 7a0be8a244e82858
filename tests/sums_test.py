"""Both layouts of a matrix give the same sums, and padding is never read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax import sums
from metamf_jax.types import Entries, Factors, PaddedMatrices
from tests.compilation import FAST

N, M, K, C = 5, 4, 3, 2


def _matrix(seed=0):
    """The same random matrix as (PaddedMatrices, Entries with two poisoned padding cells)."""
    rng = np.random.default_rng(seed)
    observed = rng.random((N, M)) < 0.5
    values = np.where(observed, rng.normal(size=(N, M)), np.nan).astype(np.float32)
    rows, columns = np.nonzero(observed)
    order = rng.permutation(len(rows))
    rows, columns = rows[order], columns[order]
    entries = Entries(
        rows=np.append(rows, [N, N]).astype(np.int32),
        columns=np.append(columns, [M, M]).astype(np.int32),
        values=np.append(values[rows, columns], [np.nan, 1e30]).astype(np.float32),
        shape=(N, M),
    )
    return PaddedMatrices(values, observed), entries


class CellsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.padded, self.entries = _matrix()
        rng = np.random.default_rng(1)
        self.factors = Factors(
            rng.normal(size=(N, K)).astype(np.float32), rng.normal(size=(M, K)).astype(np.float32)
        )

    def test_counts(self):
        for observations in (self.padded, self.entries):
            rows, columns = sums.counts(observations)
            np.testing.assert_array_equal(rows, self.padded.observed.sum(1))
            np.testing.assert_array_equal(columns, self.padded.observed.sum(0))

    def test_pool_equals_masked_sums(self):
        dense = np.random.default_rng(2).normal(size=(N, M, C)).astype(np.float32)
        inside = self.entries.rows < N
        listed = np.full((len(self.entries.rows), C), np.nan, np.float32)
        listed[inside] = dense[self.entries.rows[inside], self.entries.columns[inside]]
        masked = np.where(self.padded.observed[..., None], dense, 0)
        for observations, values in ((self.padded, dense), (self.entries, listed)):
            rows, columns = sums.pool(observations, values)
            np.testing.assert_allclose(rows, masked.sum(1), atol=1e-6)
            np.testing.assert_allclose(columns, masked.sum(0), atol=1e-6)

    def test_spread_is_the_adjoint_of_pool(self):
        rng = np.random.default_rng(3)
        rows, columns = rng.normal(size=(N, C)), rng.normal(size=(M, C))
        values = np.where(self.entries.rows < N, 1, 0)[:, None] * rng.normal(
            size=(len(self.entries.rows), C)
        )
        spread = sums.spread(self.entries, jnp.float32(rows), jnp.float32(columns))
        pooled = sums.pool(self.entries, jnp.float32(values))
        np.testing.assert_allclose(
            np.vdot(spread, values),
            np.vdot(pooled[0], rows) + np.vdot(pooled[1], columns),
            rtol=1e-5,
        )

    def test_one_hot_products_equal_scattered_sums(self):
        rng = np.random.default_rng(4)
        listed = rng.normal(size=(len(self.entries.rows), C)).astype(np.float32)
        listed[self.entries.rows == N] = np.nan
        rows, columns = (rng.normal(size=(size, C)).astype(np.float32) for size in (N, M))

        def everything(rows, columns):
            cells = jnp.where((self.entries.rows < N)[:, None], listed, 0)
            exchanged = sums.exchange(self.entries, cells, rows, columns)
            pooled = sums.pool(self.entries, listed)
            return *exchanged, *pooled, sums.spread(self.entries, rows, columns)

        def curvature(rows, columns):
            def squares(x):
                return sum((y**2).sum() for y in everything(x, columns))

            return jax.jvp(jax.grad(squares), (rows,), (jnp.ones_like(rows),))[1]

        found = {}
        for backend in ("xla", "one_hot"):
            with sums.using_backend(backend):
                found[backend] = jax.jit(
                    lambda *x: (*everything(*x), curvature(*x)), compiler_options=FAST
                )(rows, columns)
        for got, expected in zip(*found.values(), strict=True):
            assert np.isfinite(expected).all()
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

    def test_residual_products_equal_numpy(self):
        u, v = self.factors
        residuals = np.where(self.padded.observed, self.padded.values - u @ v.T, 0)
        for observations in (self.padded, self.entries):
            products = sums.residual_products(observations, self.factors)
            np.testing.assert_allclose(products[0], residuals @ v, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(products[1], residuals.T @ u, rtol=1e-5, atol=1e-6)

    def test_gradients_of_both_layouts_agree(self):
        rng = np.random.default_rng(4)
        weights = rng.normal(size=(N, K)), rng.normal(size=(M, K))

        def weighted(factors, observations):
            products = sums.residual_products(observations, factors)
            return (products[0] * weights[0]).sum() + (products[1] * weights[1]).sum()

        padded = jax.grad(weighted)(self.factors, self.padded)
        listed = jax.grad(weighted)(self.factors, self.entries)
        for expected, got in zip(padded, listed, strict=True):
            assert np.isfinite(expected).all()
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)

    def test_unknown_layout_is_named(self):
        with pytest.raises(TypeError, match="list"):
            sums.pool([1.0], [2.0])
