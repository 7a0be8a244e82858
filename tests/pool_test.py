"""Rubin's rules, held to a published example and to what they must give in extremes."""

import doctest

import numpy as np
import pytest
import scipy.stats

import metamf_jax
from metamf_jax.imputation import pool as module
from metamf_jax.imputation.pool import pool, wald


def with_moments(mean, variance, count):
    """So many numbers [m, P] of exactly this mean and variance."""
    steps = np.linspace(-1, 1, count)
    return mean + np.sqrt(variance) * steps[:, None] / steps.std(ddof=1)


def test_a_published_example():
    """nhanes, bmi by age: S. van Buuren, Flexible imputation of missing data, 2018, section 5."""
    within = np.array([3.408, 0.906])
    estimates = with_moments(np.array([30.50, -2.13]), np.array([1.454, 0.238]), 10)
    found = pool(estimates, np.tile(within, (10, 1)), complete_degrees=23)
    np.testing.assert_allclose(found.estimate, [30.50, -2.13])
    np.testing.assert_allclose(found.standard_error**2, [5.01, 1.17], atol=0.005)
    np.testing.assert_allclose(found.degrees, [12.4, 15.1], atol=0.05)
    np.testing.assert_allclose(found.missing_information, [0.408, 0.310], atol=0.0006)
    half = scipy.stats.t.ppf(0.975, found.degrees) * found.standard_error
    np.testing.assert_allclose(found.high, found.estimate + half)
    np.testing.assert_allclose(found.low, found.estimate - half)


def test_by_hand():
    """Q 2, U 1, B 1, T 1 + 4 / 3, l 4 / 7, v 2 / l^2."""
    found = pool([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], level=0.9)
    assert found.estimate == 2
    np.testing.assert_allclose(found.standard_error, np.sqrt(7 / 3))
    np.testing.assert_allclose(found.degrees, 2 * (7 / 4) ** 2)
    increase = 4 / 3
    np.testing.assert_allclose(
        found.missing_information, (increase + 2 / (found.degrees + 3)) / (1 + increase)
    )
    np.testing.assert_allclose(
        found.high - 2, scipy.stats.t.ppf(0.95, found.degrees) * np.sqrt(7 / 3)
    )


def test_tables_without_missing_cells():
    found = pool([2.0] * 5, [4.0] * 5)
    assert (found.standard_error, found.degrees, found.missing_information) == (2, np.inf, 0)
    np.testing.assert_allclose(found.high, 2 + 2 * scipy.stats.norm.ppf(0.975))
    few = pool([2.0] * 5, [4.0] * 5, complete_degrees=17)
    np.testing.assert_allclose(few.degrees, 17 * 18 / 20)


def test_several_estimates_are_pooled_each_by_itself():
    rng = np.random.default_rng(0)
    estimates, variances = rng.normal(size=(6, 3)), rng.gamma(2, size=(6, 3))
    together = pool(estimates, variances, 30)
    for p in range(3):
        alone = pool(estimates[:, p], variances[:, p], 30)
        np.testing.assert_allclose(alone, [part[p] for part in together])


def test_wald_of_one_estimate_is_the_square_of_t():
    estimates, variances = np.array([[1.0], [2.0], [3.0]]), np.ones((3, 1, 1))
    found = wald(estimates, variances)
    np.testing.assert_allclose(found.statistic, 4 / (7 / 3))
    # k (m - 1) = 2: of few tables.
    np.testing.assert_allclose(found.degrees, [1, 2 * 2 * (7 / 4) ** 2 / 2])


def test_wald_without_missing_cells_is_that_of_the_complete_table():
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    found = wald(np.tile([1.0, -2.0], (4, 1)), np.tile(covariance, (4, 1, 1)), null=[0.0, 1.0])
    away = np.array([1.0, -3.0])
    square = away @ np.linalg.solve(covariance, away)
    np.testing.assert_allclose(found.statistic, square / 2)
    np.testing.assert_allclose(found.p_value, scipy.stats.chi2.sf(square, 2))


def test_p_values_are_uniform_where_there_is_no_effect():
    rng = np.random.default_rng(1)
    count, size, tests = 20, 3, 400
    values = []
    for _ in range(tests):
        middle = rng.normal(size=size)
        # B is half of U: estimates of each table around one that is off by U + B.
        estimates = middle * np.sqrt(1.5) + np.sqrt(0.5) * rng.normal(size=(count, size))
        values.append(wald(estimates, np.tile(np.eye(size), (count, 1, 1))).p_value)
    assert scipy.stats.kstest(values, "uniform").pvalue > 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0]), "two completed tables"),
        ((1.0, 1.0), "two completed tables"),
        (([1.0, 2.0], [1.0, 1.0, 1.0]), r"shape of the estimates, \(2,\), got \(3,\)"),
        (([1.0, 2.0], [1.0, -1.0]), "squared standard errors"),
        (([1.0, np.nan], [1.0, 1.0]), "finite"),
        (([1.0, 2.0], [1.0, 1.0], 10, 1.0), "level between 0 and 1"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        pool(*arguments)


def test_wald_asks_for_covariances():
    with pytest.raises(ValueError, match=r"covariances \[m, P, P\]"):
        wald(np.ones((3, 2)), np.ones((3, 2)))


def test_the_example_and_the_short_name():
    assert doctest.testmod(module).failed == 0
    assert metamf_jax.pool is pool
