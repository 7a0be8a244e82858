"""The Gaussian over rows, against formulas of one row at a time."""

import numpy as np
import pytest
import scipy.stats

from metamf_jax.imputation import row_gaussian
from metamf_jax.imputation.row_gaussian import RowGaussian


def correlated(rng, num_rows, num_columns):
    """Rows of one Gaussian, its mean and covariance."""
    root = rng.normal(size=(num_columns, num_columns))
    mean, covariance = rng.normal(size=num_columns), root @ root.T + 0.3 * np.eye(num_columns)
    return rng.multivariate_normal(mean, covariance, num_rows), mean, covariance


@pytest.mark.parametrize("density", [0.6, 0.3])
def test_rows_are_conditioned_as_one_by_one(density):
    rng = np.random.default_rng(0)
    values, mean, covariance = correlated(rng, 30, 6)
    observed = rng.random(values.shape) < density
    observed[0], observed[1] = True, False
    gaussian = RowGaussian(mean, covariance)
    rows, variances, errors = row_gaussian.condition(gaussian, values, observed)
    gains = row_gaussian.gains(gaussian, observed)
    for n in range(len(values)):
        o, m = np.flatnonzero(observed[n]), np.flatnonzero(~observed[n])
        gain = covariance[np.ix_(m, o)] @ np.linalg.inv(covariance[np.ix_(o, o)])
        np.testing.assert_allclose(rows[n, m], mean[m] + gain @ (values[n, o] - mean[o]))
        own = covariance[np.ix_(m, m)] - gain @ covariance[np.ix_(o, m)]
        np.testing.assert_allclose(variances[n, m], np.diag(own))
        np.testing.assert_array_equal(rows[n, o], values[n, o])
        for j in o:
            rest = o[o != j]
            gain = np.linalg.solve(covariance[np.ix_(rest, rest)], covariance[rest, j])
            expected = values[n, j] - mean[j] - gain @ (values[n, rest] - mean[rest])
            np.testing.assert_allclose(errors[n, j], expected)
            # What the missing cells are predicted as without cell j.
            gain = covariance[np.ix_(m, rest)] @ np.linalg.inv(covariance[np.ix_(rest, rest)])
            without = mean[m] + gain @ (values[n, rest] - mean[rest])
            found = rows[n] - gains[n, :, j] * errors[n, j]
            np.testing.assert_allclose(found[m], without, atol=1e-4)
            np.testing.assert_array_equal(found[o], values[n, o])
    assert not variances[observed].any()
    assert not errors[~observed].any()


def test_without_gaps_the_covariance_is_the_shrunken_one():
    values, _, _ = correlated(np.random.default_rng(1), 40, 3)
    fitted = row_gaussian.fit(values, np.ones(values.shape, bool))
    np.testing.assert_allclose(fitted.mean, values.mean(axis=0))
    left = values - values.mean(axis=0)
    scatter, count = left.T @ left, 3 * row_gaussian._PRIOR_ROWS
    variance = row_gaussian._prior_variance(scatter, 40, count)
    expected = (scatter + count * variance * np.eye(3)) / (40 + count)
    np.testing.assert_allclose(fitted.covariance, expected)


def test_what_is_fitted_maximises_the_posterior(monkeypatch):
    """No step along a random direction makes the penalised likelihood of the cells larger."""
    rng = np.random.default_rng(2)
    values, _, _ = correlated(rng, 60, 4)
    observed = rng.random(values.shape) < 0.7
    count = 4 * row_gaussian._PRIOR_ROWS
    monkeypatch.setattr(row_gaussian, "_prior_variance", lambda *_: 0.5)
    fitted = row_gaussian.fit(values, observed)
    for _ in range(10):
        fitted = row_gaussian.fit(values, observed, fitted)

    def objective(mean, covariance):
        total = -0.5 * count * np.linalg.slogdet(covariance)[1]
        total -= 0.25 * count * np.trace(np.linalg.inv(covariance))
        for row, seen in zip(values, observed, strict=True):
            part, left = covariance[np.ix_(seen, seen)], (row - mean)[seen]
            total -= 0.5 * (np.linalg.slogdet(part)[1] + left @ np.linalg.solve(part, left))
        return total

    best = objective(fitted.mean, fitted.covariance)
    for _ in range(20):
        aside, turn = rng.normal(size=4), rng.normal(size=(4, 4))
        for step in (0.02, -0.02):
            assert objective(fitted.mean + step * aside, fitted.covariance) < best
            moved = fitted.covariance + step * (turn + turn.T)
            assert objective(fitted.mean, moved) < best


def test_columns_that_add_up_tell_each_other():
    rng = np.random.default_rng(4)
    parts = rng.normal(size=(300, 3)) * [1, 0.5, 2]
    values = np.column_stack([parts, -parts.sum(axis=1)])
    values /= values.std(axis=0)
    observed = rng.random(values.shape) < 0.7
    found, variances, _ = row_gaussian.condition(
        row_gaussian.fit(values, observed), np.where(observed, values, 0), observed
    )
    known = ~observed & (observed.sum(axis=1) == 3)[:, None]
    assert np.abs(found - values)[known].max() < 0.01
    assert variances[known].max() < 1e-4


@pytest.mark.parametrize(
    ("rows", "columns", "seen", "suits"),
    [
        (150, 4, 2, True),
        (7, 4, 4, False),
        (10, 1, 1, False),
        (400, 129, 129, False),
        (1797, 64, 13, True),
        (10**6, 20, 10, False),
        (10**6, 20, 2, True),
        (10**6, 20, 18, True),
        (2 * 10**6, 20, 18, False),
    ],
)
def test_narrow_tables_suit(rows, columns, seen, suits):
    assert row_gaussian.suits(np.full(rows, seen), columns) is suits


def test_the_priors_variance_is_that_of_the_largest_likelihood():
    """Against draws: rows whose covariances came of the prior, and of rows the density itself."""
    rng, size, count = np.random.default_rng(8), 4, 6.0
    for variance in (0.01, 0.3):
        found = []
        for _ in range(40):
            degrees = int(count) + size - 1
            inverse = np.linalg.inv(count * variance * np.eye(size))
            covariance = np.linalg.inv(scipy.stats.wishart.rvs(degrees, inverse, random_state=rng))
            rows = rng.multivariate_normal(np.zeros(size), covariance, 50)
            found.append(row_gaussian._prior_variance(rows.T @ rows, 50, count))
        np.testing.assert_allclose(np.median(found), variance, rtol=0.3)


def slopes_of(values, observed):
    return row_gaussian.missing_by_value(row_gaussian.fit(values, observed), values, observed)


def test_what_is_missing_for_its_own_value_is_found():
    """The slope of the log odds, in each column's unit; none for cells missing at random."""
    rng = np.random.default_rng(5)
    values, mean, covariance = correlated(rng, 800, 5)
    values = (values - mean) / np.sqrt(np.diag(covariance))
    units = np.array([1.0, 10.0, 1.0, 0.1, 1.0])
    chance = rng.logistic(size=values.shape)
    slope = slopes_of(values * units, chance < 1 - 1.5 * values)
    np.testing.assert_allclose(slope * units, 1.5 * np.ones(5), rtol=0.25)
    slope = slopes_of(values, chance < 1 + 1.5 * values)
    np.testing.assert_allclose(slope, -1.5 * np.ones(5), rtol=0.25)
    assert not slopes_of(values, chance < 1).any()


def test_a_slope_that_may_be_chance_is_none():
    """Small tables missing at random have slopes all the same; one in twenty is not chance."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(60, 4)) + rng.normal(size=(60, 1))
        observed = rng.random(values.shape) < 0.7
        found.append(slopes_of(values, observed).any())
    assert 1 <= sum(found) <= 8


def test_what_is_missing_for_another_cells_value_is_not_mistaken():
    rng = np.random.default_rng(6)
    values, mean, covariance = correlated(rng, 800, 5)
    values = (values - mean) / np.sqrt(np.diag(covariance))
    chance = rng.logistic(size=values.shape)
    observed = chance < 1 - 1.5 * values[:, :1]
    observed[:, 0] = True
    slopes = [slopes_of(values, observed)]
    # A single column with gaps cannot tell.
    observed[:, 2:] = True
    slopes.append(slopes_of(values, observed))
    np.testing.assert_allclose(slopes, 0, atol=0.2)
