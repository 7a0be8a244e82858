"""What draws say of cells, against dense float64 mixtures."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from metamf_jax.posterior import predictive
from metamf_jax.posterior.chains import Draws
from metamf_jax.posterior.hyperprior import Hyperprior
from metamf_jax.posterior.predictive import Scale

S, N, M, L = 12, 6, 5, 3
CELLS = np.indices((N, M)).reshape(2, -1)


def _draws(seed=0):
    rng = np.random.default_rng(seed)
    none = Hyperprior(*(np.zeros((S, 0), np.float32) for _ in range(3)))
    factors = [rng.normal(size=(S, size, L)).astype("f") for size in (N, M)]
    shares = [rng.gamma(3.0, size=(S, size)).astype("f") / 3 for size in (N, M)]
    return Draws(*factors, *shares, rng.gamma(4.0, size=S).astype("f"), none, none)


def _mixture(draws, scale):
    """Means and standard deviations of each draw's Gaussian, [S, P]."""
    u, v = draws.rows.astype(float), draws.columns.astype(float)
    fitted = np.einsum("snk,smk->snm", u[..., :-1], v[..., :-1])
    fitted += u[..., -1][:, :, None] + v[..., -1][:, None]
    precision = draws.row_shares[:, :, None].astype(float) * draws.column_shares[:, None]
    precision *= draws.alpha[:, None, None]
    flat = (x.reshape(S, -1) for x in (fitted, precision))
    fitted, precision = flat
    return scale.center + scale.unit * fitted, scale.unit / np.sqrt(precision)


@pytest.mark.parametrize(
    "scale",
    [Scale(0.0, 1.0), Scale(3.0, 1.5, 1.0, 5.0), Scale(1e6, 0.5, 1e6 - 1, 1e6 + 1)],
)
def test_mean_spread_and_quantiles_are_those_of_the_mixture(scale):
    draws, probabilities = _draws(), (0.05, 0.5, 0.9)
    found = predictive.predict(draws, scale, *CELLS, probabilities)
    means, spreads = _mixture(draws, scale)
    clipped = means.clip(scale.low, scale.high)
    close = {"rtol": 0, "atol": 1e-5 * scale.unit * np.abs(_mixture(draws, Scale(0, 1))).max()}
    np.testing.assert_allclose(found.mean, clipped.mean(axis=0), **close)
    variance = clipped.var(axis=0) + (spreads**2).mean(axis=0)
    np.testing.assert_allclose(found.std, np.sqrt(variance), **close)
    assert found.quantiles.shape == (3, N * M)
    for cell, (mean, spread) in enumerate(zip(means.T, spreads.T, strict=True)):
        for at, probability in zip(found.quantiles[:, cell], probabilities, strict=True):
            exact = scipy.optimize.brentq(
                lambda z, m, s, p: scipy.stats.norm.cdf(z, m, s).mean() - p,
                (mean - 9 * spread).min(),
                (mean + 9 * spread).max(),
                args=(mean, spread, probability),
            )
            assert at == pytest.approx(np.clip(exact, *scale[2:]), rel=0, abs=close["atol"])
    assert {x.dtype for x in found} == {np.dtype(float)}


def test_predictions_stay_on_the_scale():
    scale = Scale(0.3, 2.0, 0.1, 0.7)
    found = predictive.predict(_draws(), scale, *CELLS, (0.01, 0.99))
    for told in (found.mean, found.quantiles):
        assert told.min() >= scale.low
        assert told.max() <= scale.high
    np.testing.assert_array_equal(found.quantiles[1], np.full(N * M, scale.high))


def test_blocks_change_nothing(monkeypatch):
    draws, scale = _draws(), Scale(3.0, 1.5, 1.0, 5.0)
    whole = predictive.predict(draws, scale, *CELLS, (0.1, 0.9))
    monkeypatch.setattr(predictive, "_BLOCK", 7 * S)
    cut = predictive.predict(draws, scale, *CELLS, (0.1, 0.9))
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_no_cells_and_no_quantiles():
    none = np.zeros(0, int)
    found = predictive.predict(_draws(), Scale(0.0, 1.0), none, none, (0.5,))
    assert [x.shape for x in found] == [(0,), (0,), (1, 0)]
    found = predictive.predict(_draws(), Scale(0.0, 1.0), *CELLS)
    assert found.quantiles.shape == (0, N * M)


def test_fitted_values_of_one_draw():
    draws = _draws()
    found = predictive.fitted(draws.rows[2], draws.columns[2], *CELLS)
    expected = _mixture(draws, Scale(0.0, 1.0))[0][2]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
