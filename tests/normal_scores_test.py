"""Normal scores, there and back."""

import numpy as np
import scipy.stats

from metamf_jax.imputation import normal_scores


def table(num_rows=300):
    """A skewed column, one of few values and one that is normal; a tenth is missing."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(num_rows, 3))
    values = np.stack([np.exp(drawn[:, 0]), np.round(drawn[:, 1]), drawn[:, 2]], axis=1)
    return values, rng.random(values.shape) < 0.9


def test_scores_are_of_ranks():
    values, observed = table()
    marginals = normal_scores.fit(values, observed)
    scores = normal_scores.to_scores(marginals, values)
    for m in range(3):
        seen = observed[:, m]
        ranks = scipy.stats.rankdata(values[seen, m]) / (seen.sum() + 1)
        np.testing.assert_allclose(scores[seen, m], scipy.stats.norm.ppf(ranks), atol=1e-9)
    # In whatever units.
    other = normal_scores.fit(1e9 * values - 5, observed)
    np.testing.assert_allclose(normal_scores.to_scores(other, 1e9 * values - 5), scores, atol=1e-6)


def test_back_are_means_within_the_columns_range():
    values, observed = table()
    marginals = normal_scores.fit(values, observed)
    rng = np.random.default_rng(1)
    means, deviations = rng.normal(size=(2, 20))
    for m in range(3):
        found = normal_scores.from_scores(marginals, m, means, deviations**2)
        seen = values[observed[:, m], m]
        slack = 1e-9 * np.ptp(seen)
        assert ((seen.min() - slack <= found) & (found <= seen.max() + slack)).all()
        drawn = means[:, None] + deviations[:, None] * rng.normal(size=(20, 20_000))
        expected = np.interp(drawn, marginals.scores[m], marginals.values[m]).mean(axis=1)
        # Steps are where a quadrature is coarse.
        np.testing.assert_allclose(found, expected, rtol=0.1, atol=0.4 if m == 1 else 0.1)
    # Without a variance it is the value itself.
    seen = observed[:, 2]
    scores = normal_scores.to_scores(marginals, values)[seen, 2]
    found = normal_scores.from_scores(marginals, 2, scores, np.zeros(len(scores)))
    np.testing.assert_allclose(found, values[seen, 2], atol=1e-9)


def test_large_columns_are_kept_as_quantiles():
    values = np.random.default_rng(2).normal(size=(5000, 1))
    marginals = normal_scores.fit(values, np.ones(values.shape, bool))
    assert marginals.values.shape == (1, 1024)
    scores = normal_scores.to_scores(marginals, values)
    ranks = scipy.stats.rankdata(values) / 5001
    np.testing.assert_allclose(scores[:, 0], scipy.stats.norm.ppf(ranks), atol=0.3)


def test_a_column_without_cells_holds_its_mean():
    values, observed = np.ones((5, 2)), np.zeros((5, 2), bool)
    observed[:, 0] = True
    found = normal_scores.fit(values, observed)
    np.testing.assert_array_equal(found.values[1], 0)
    np.testing.assert_array_equal(normal_scores.to_scores(found, values)[:, 1], 0)
    back = normal_scores.from_scores(found, 1, np.array([-1.0, 2.0]), np.ones(2))
    np.testing.assert_array_equal(back, 0)
