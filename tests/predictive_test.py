"""What draws say of cells, against dense float64 mixtures."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from metamf_jax.posterior import predictive, row_conditional
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
            assert at == pytest.approx(
                np.clip(exact, scale.low, scale.high), rel=0, abs=close["atol"]
            )
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
    found = row_conditional.fitted(draws.rows[2], draws.columns[2], *CELLS)
    expected = _mixture(draws, Scale(0.0, 1.0))[0][2]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


LEVELS = Scale(0.0, 1.0, 1.0, 4.5, (1.0, 2.0, 2.5, 4.5))


def _ordinal_draws():
    gaps = np.random.default_rng(1).gamma(2.0, size=(S, 3)).astype("f")
    return _draws()._replace(thresholds=gaps.cumsum(axis=1) - 3)


def _level_mixture(draws, thresholds):
    """[P, L], by scipy."""
    means, spreads = _mixture(draws, Scale(0.0, 1.0))
    edge = np.full((S, 1), np.inf)
    bounds = np.concatenate([-edge, thresholds, edge], axis=1)[:, :, None]
    below = scipy.stats.norm.cdf(bounds, means[:, None], spreads[:, None])
    return np.diff(below, axis=1).mean(axis=0).T


def test_levels_have_the_probabilities_of_the_mixture():
    draws = _ordinal_draws()
    known, levels = _level_mixture(draws, draws.thresholds), np.array(LEVELS.levels)
    probability = predictive.level_probabilities(draws, draws.thresholds, *CELLS)
    np.testing.assert_allclose(probability, known, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-12)
    found = predictive.predict(draws, LEVELS, *CELLS, (0.05, 0.5, 0.9))
    np.testing.assert_allclose(found.mean, known @ levels, rtol=1e-5)
    variance = known @ levels**2 - (known @ levels) ** 2
    np.testing.assert_allclose(found.std, np.sqrt(variance), rtol=1e-4)
    for at, q in zip(found.quantiles, (0.05, 0.5, 0.9), strict=True):
        reached = known.cumsum(axis=1)[np.arange(N * M), np.searchsorted(levels, at)]
        assert (reached > q - 1e-5).all()
    none = predictive.predict(draws, LEVELS, *np.zeros((2, 0), int), (0.5,))
    assert [x.shape for x in none] == [(0,), (0,), (1, 0)]


@pytest.mark.parametrize("likelihood", ["gaussian", "ordinal"])
def test_log_scores_of_levels(likelihood):
    draws, scale, levels = _ordinal_draws(), LEVELS, np.array(LEVELS.levels)
    thresholds = draws.thresholds
    if likelihood == "gaussian":
        draws, scale = _draws(), Scale(2.0, 1.5, 1.0, 4.5)
        thresholds = np.tile((np.array([1.5, 2.25, 3.5]) - 2.0) / 1.5, (S, 1))
    values = np.random.default_rng(2).choice(levels, N * M)
    known = _level_mixture(draws, thresholds)[np.arange(N * M), np.searchsorted(levels, values)]
    found = predictive.log_score(draws, scale, levels, *CELLS, values)
    assert found == pytest.approx(-np.log(known).mean(), rel=1e-4)


def test_the_best_columns_of_levels_have_the_largest_expected_values():
    draws, none = _ordinal_draws(), (np.zeros(0, int),) * 2
    expected = predictive.predict(draws, LEVELS, *CELLS).mean.reshape(N, M)
    columns, values = predictive.top_columns(draws, LEVELS, np.arange(N), M, none)
    np.testing.assert_array_equal(columns, np.argsort(-expected, axis=1))
    np.testing.assert_allclose(values, -np.sort(-expected, axis=1), rtol=1e-5)
    _, upper = predictive.top_columns(draws, LEVELS, np.arange(N), M, none, upper=True)
    assert (upper > values).all()
