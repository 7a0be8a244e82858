"""Gibbs sampling of one matrix: what it finds, and that it does not depend on the machine."""

import jax
import numpy as np
import pytest

from metamf_jax.posterior import chains, gibbs, pattern, predictive
from metamf_jax.types import Entries


@pytest.fixture(scope="module")
def matrix():
    """A matrix of rank 2 with effects and a little noise, a third of it observed."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(40, 2)), rng.normal(size=(30, 2))
    full = u @ v.T + rng.normal(size=(40, 1)) + rng.normal(size=30)
    values = full + 0.1 * rng.normal(size=full.shape)
    rows, columns = np.nonzero(rng.random(full.shape) < 0.4)
    scale = predictive.Scale(float(values.mean()), float(values.std()))
    standardised = ((values - scale.center) / scale.unit)[rows, columns]
    listed = Entries(
        rows.astype(np.int32), columns.astype(np.int32), standardised.astype(np.float32), (40, 30)
    )
    return listed, scale, full


def sample(entries, config=None, devices=1, backend="auto", **lengths):
    config = gibbs.GibbsConfig(rank=3) if config is None else config
    sides = pattern.pattern_features(entries.rows, entries.columns, entries.shape, 4)
    features, groups = (tuple(getattr(s, name) for s in sides) for name in ("features", "groups"))
    data = gibbs.prepare(entries, features, groups, config, devices, backend)
    return chains.run(data, config, chains.ChainsConfig(**lengths))


def test_a_matrix_of_low_rank_is_found(matrix):
    entries, scale, full = matrix
    draws = sample(entries, num_chains=2, burn_in=40, num_draws=60)
    rows, columns = np.indices(full.shape).reshape(2, -1)
    found = predictive.predict(draws, scale, rows, columns, (0.05, 0.95))
    error = np.sqrt(((found.mean - full.ravel()) ** 2).mean())
    assert error < 0.25 * full.std()
    low, high = found.quantiles
    assert ((low < full.ravel()) & (full.ravel() < high)).mean() > 0.85


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_draws_do_not_depend_on_the_number_of_devices(matrix, devices):
    lengths = {"num_chains": 1, "burn_in": 3, "num_draws": 2}
    alone, several = (sample(matrix[0], devices=d, **lengths) for d in (1, devices))
    for left, right in zip(jax.tree.leaves(alone), jax.tree.leaves(several), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_kernel_and_xla_draw_alike(matrix):
    # One sweep: later ones would amplify rounding.
    lengths = {"num_chains": 1, "burn_in": 0, "num_draws": 1}
    compiled, xla = (sample(matrix[0], backend=b, **lengths) for b in ("numba", "xla"))
    for left, right in zip(jax.tree.leaves(compiled), jax.tree.leaves(xla), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-4)
