"""The Gaussian over rows, against formulas of one row at a time, and the rows that are alike."""

import numpy as np
import pytest

from metamf_jax.imputation import row_gaussian


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
    rows, variances, errors = row_gaussian._condition(
        np.where(observed, values, 0), observed, mean, covariance
    )
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
    assert not variances[observed].any()
    assert not errors[~observed].any()


def test_without_gaps_the_covariance_is_the_shrunken_one():
    values, mean, covariance = correlated(np.random.default_rng(1), 40, 3)
    fitted = row_gaussian.fit(values, np.ones(values.shape, bool), (mean, covariance))
    expected = (values.sum(axis=0) + mean) / 41
    np.testing.assert_allclose(fitted.mean, expected)
    left = np.vstack([values, mean]) - expected
    np.testing.assert_allclose(fitted.covariance, (left.T @ left + 3 * covariance) / 44)


def test_what_is_fitted_maximises_the_posterior():
    """No step along a random direction makes the penalised likelihood of the cells larger."""
    rng = np.random.default_rng(2)
    values, _, _ = correlated(rng, 60, 4)
    observed = rng.random(values.shape) < 0.7
    prior = np.zeros(4), 2 * np.eye(4)
    fitted = row_gaussian.fit(values, observed, prior)
    for _ in range(10):
        fitted = row_gaussian.fit(values, observed, prior, fitted)

    def objective(mean, covariance):
        total = -0.5 * (4 + 1) * np.linalg.slogdet(covariance)[1]
        total -= 0.5 * np.trace(4 * np.linalg.solve(covariance, prior[1]))
        total -= 0.5 * mean @ np.linalg.solve(covariance, mean)
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


def test_rows_alike_tell_what_is_not_linear():
    rng = np.random.default_rng(3)
    along = rng.uniform(-2, 2, 300)
    values = np.stack([along, along + 0.1 * rng.normal(size=300), along**2], axis=1)
    observed = np.ones(values.shape, bool)
    observed[::4, 2] = False
    fitted = row_gaussian.fit(values, observed, (np.zeros(3), np.eye(3)))
    completed = row_gaussian.complete(fitted, values, observed)
    linear, _, _ = row_gaussian._condition(values, observed, fitted.mean, fitted.covariance)
    error, other, near = (
        np.sqrt(((answer - values)[::4, 2] ** 2).mean())
        for answer in (completed.values, linear, completed.neighbors)
    )
    assert error < 0.3 * other
    assert near < 0.3 * other


def test_a_row_is_answered_from_its_own_cells():
    rng = np.random.default_rng(4)
    values, mean, covariance = correlated(rng, 50, 5)
    observed = rng.random(values.shape) < 0.6
    fitted = row_gaussian.fit(values, observed, (mean, covariance))
    together = row_gaussian.complete(fitted, values, observed)
    for n in (0, 7):
        alone = row_gaussian.complete(fitted, values[n : n + 1], observed[n : n + 1])
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one[0], other[n], atol=1e-9)
    nothing = row_gaussian.complete(fitted, values[:1], np.zeros((1, 5), bool))
    np.testing.assert_array_equal(nothing.values[0], fitted.mean)
    np.testing.assert_allclose(nothing.variances[0], np.diag(fitted.covariance))


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


def fitted_to(values, observed):
    return row_gaussian.fit(values, observed, (np.zeros(values.shape[1]), np.eye(values.shape[1])))


def test_what_is_missing_for_its_own_value_is_found():
    """The slope of the log odds, in each column's unit; none for cells missing at random."""
    rng = np.random.default_rng(5)
    values, mean, covariance = correlated(rng, 800, 5)
    values = (values - mean) / np.sqrt(np.diag(covariance))
    units = np.array([1.0, 10.0, 1.0, 0.1, 1.0])
    chance = rng.logistic(size=values.shape)
    slope = row_gaussian.missing_by_value(fitted_to(values * units, chance < 1 - 1.5 * values))
    np.testing.assert_allclose(slope * units, 1.5 * np.ones(5), rtol=0.25)
    slope = row_gaussian.missing_by_value(fitted_to(values, chance < 1 + 1.5 * values))
    np.testing.assert_allclose(slope, -1.5 * np.ones(5), rtol=0.25)
    assert not row_gaussian.missing_by_value(fitted_to(values, chance < 1)).any()


def test_a_slope_that_may_be_chance_is_none():
    """Small tables missing at random have slopes all the same; one in twenty is not chance."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(60, 4)) + rng.normal(size=(60, 1))
        observed = rng.random(values.shape) < 0.7
        found.append(row_gaussian.missing_by_value(fitted_to(values, observed)).any())
    assert 1 <= sum(found) <= 8


def test_what_is_missing_for_another_cells_value_is_not_mistaken():
    rng = np.random.default_rng(6)
    values, mean, covariance = correlated(rng, 800, 5)
    values = (values - mean) / np.sqrt(np.diag(covariance))
    chance = rng.logistic(size=values.shape)
    observed = chance < 1 - 1.5 * values[:, :1]
    observed[:, 0] = True
    slopes = [row_gaussian.missing_by_value(fitted_to(values, observed))]
    # A single column with gaps cannot tell.
    observed[:, 2:] = True
    slopes.append(row_gaussian.missing_by_value(fitted_to(values, observed)))
    np.testing.assert_allclose(slopes, 0, atol=0.2)


def test_distances_are_held_a_block_at_a_time():
    """40,000 rows of two columns took 1 GB of distances."""
    import tracemalloc

    values, mean, covariance = correlated(np.random.default_rng(0), 40_000, 2)
    observed = np.ones(values.shape, bool)
    observed[::2, 1] = False
    fitted = row_gaussian.fit(values, observed, (mean, covariance))
    tracemalloc.start()
    together = row_gaussian.complete(fitted, values, observed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e8
    some = np.arange(0, 40_000, 4001)
    alone = row_gaussian.complete(fitted, values[some], observed[some])
    np.testing.assert_allclose(alone.values, together.values[some], atol=1e-9)
