"""The posterior of one matrix: what its sweeps end in, and that turning the factors is free."""

import numpy as np
import pytest

from metamf_jax import sums
from metamf_jax.bias_model import Effects
from metamf_jax.data import synthetic
from metamf_jax.imputation import posterior
from metamf_jax.imputation.row_solver import Rows
from metamf_jax.types import Factors

SHAPE, NOISE = (60, 50), 0.4


@pytest.fixture(scope="module")
def matrix():
    entries = synthetic.low_rank(1, *SHAPE, 2, density=0.6, noise=NOISE, bias=0.7)[0].entries
    return Rows(entries), Rows(sums.transpose(entries))


def started(seed, rank=4):
    rng = np.random.default_rng(seed)
    effects = Effects(*(np.zeros(size, np.float32) for size in ((), *SHAPE)))
    factors = (rng.normal(size=(size, rank)).astype(np.float32) for size in SHAPE)
    return posterior.start(effects, Factors(*factors), 1.0)


def products(found):
    return found.rows.mean @ found.columns.mean.T


def test_the_noise_is_found_and_factors_that_are_not_there_die_away(matrix):
    found = posterior.fit(*matrix, started(0))
    np.testing.assert_allclose(np.sqrt(np.median(found.noise)), NOISE, rtol=0.15)
    sizes = np.sort(found.columns.mean[:, :4].std(axis=0) * found.rows.mean[:, :4].std(axis=0))
    assert sizes[1] < 0.05 < 0.3 < sizes[2]


def test_the_end_does_not_depend_on_the_start(matrix):
    one, other = (posterior.fit(*matrix, started(seed)) for seed in (0, 1))
    np.testing.assert_allclose(products(one), products(other), atol=0.1)


def test_turned_factors_have_the_same_products(matrix):
    found = posterior.fit(*matrix, started(0), sweeps=1)
    turned = posterior._rotated(found, *matrix)
    np.testing.assert_allclose(products(turned), products(found), atol=1e-5)
    u, v = (
        side.mean[:, :4].T @ side.mean[:, :4] + np.diag(side.variance[:, :4].sum(axis=0))
        for side in (turned.rows, turned.columns)
    )
    # Diagonal up to the variances of which only the diagonal is known.
    size = np.diag(v).max()
    np.testing.assert_allclose(v - np.diag(np.diag(v)), 0, atol=0.02 * size)
    np.testing.assert_allclose(np.diag(u) / SHAPE[0], np.diag(v) / SHAPE[1], rtol=0.1)
