"""One matrix under the learned prior: its factors against dense float64 ridge solutions."""

import dataclasses

import jax
import numpy as np
import pytest

from metamf_jax import bias_model, sums
from metamf_jax.imputation import zero_shot
from metamf_jax.imputation.prior import load_prior
from metamf_jax.imputation.row_solver import Rows
from metamf_jax.meta_learning.encoder import make_encoder
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.types import Entries, PaddedMatrices
from tests import numpy_reference

GENERAL = load_prior("general")
INNER = {
    "ridge": GENERAL.config.inner,
    "curvature": MapConfig(steps=3, step_form="curvature"),
}


@pytest.fixture(scope="module")
def matrix():
    """Ratings of two kinds of rows for two kinds of columns."""
    rng = np.random.default_rng(0)
    values = np.outer(rng.choice([-1, 1], 12), rng.choice([-1, 1], 9)) + np.zeros((12, 9))
    values += 0.2 * rng.normal(size=values.shape) + rng.normal(size=9)
    observed = rng.random(values.shape) < 0.7
    return PaddedMatrices(values.astype(np.float32), observed)


def adapted_to(matrix, form):
    rows, columns = (x.astype(np.int32) for x in np.nonzero(matrix.observed))
    entries = Entries(rows, columns, matrix.values[rows, columns], matrix.values.shape)
    config = dataclasses.replace(GENERAL.config, inner=INNER[form])
    encoded = jax.jit(lambda seen: zero_shot.encode(config, GENERAL.params, seen))(matrix)
    encoded = jax.tree.map(np.asarray, encoded)
    return config, zero_shot.adapt(config, encoded, Rows(entries), Rows(sums.transpose(entries)))


@pytest.mark.parametrize("form", INNER)
def test_factors_are_steps_from_the_prior_and_a_solve_of_the_rows(matrix, form):
    config, adapted = adapted_to(matrix, form)
    encoder = make_encoder(config.encoder)
    prior = encoder.apply(GENERAL.params.encoder, matrix)
    effects = encoder.effects(GENERAL.params.encoder, matrix)
    residuals = jax.tree.map(np.asarray, bias_model.residuals(matrix, effects))
    step_size = np.exp(GENERAL.params.log_step_size)
    _, v = numpy_reference.map_steps(residuals, prior, step_size, config.inner.steps, form)
    u = numpy_reference.ridge_rows(
        np.float64(residuals.values), matrix.observed, v, prior.u_mean, prior.u_precision
    )
    np.testing.assert_allclose(adapted.factors.v, v, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(adapted.factors.u, u, rtol=1e-3, atol=1e-4)
    # That the prior means matter.
    assert np.abs(prior.v_mean).max() > 0.1


@pytest.mark.parametrize("form", INNER)
def test_noise_is_the_mean_square_of_what_is_left_over(matrix, form):
    _, adapted = adapted_to(matrix, form)
    effects, (u, v) = adapted.effects, adapted.factors
    left = matrix.values - effects.mean - effects.rows[:, None] - effects.columns - u @ v.T
    np.testing.assert_allclose(adapted.noise, (left[matrix.observed] ** 2).mean(), rtol=1e-3)


@pytest.mark.parametrize("form", INNER)
def test_rows_folded_in_are_the_fitted_ones(matrix, form):
    config, adapted = adapted_to(matrix, form)
    few = np.array([7, 2, 5])
    effects, u, _ = zero_shot.fold_in(
        config,
        GENERAL.params,
        PaddedMatrices(*(x[few] for x in matrix)),
        adapted.context,
        adapted.factors.v,
    )
    np.testing.assert_allclose(effects.rows, adapted.effects.rows[few], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(u, adapted.factors.u[few], rtol=1e-3, atol=1e-4)
