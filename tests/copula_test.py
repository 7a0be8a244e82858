"""The copula's sampler: that it samples the posterior of a table of mixed columns.

Held to the joint distribution test of J. Geweke, Getting it right: joint distribution tests of
posterior simulators, JASA 2004.
"""

import jax
import numpy as np
import pytest
import scipy.stats

from metamf_jax.posterior import copula
from metamf_jax.posterior.copula import Choice, CopulaConfig, Parameters, State

# A number, three levels, two levels, and a category of three.
CUTS = {1: np.array([-np.inf, -0.4, 0.6, np.inf]), 2: np.array([-np.inf, 0.0, np.inf])}
UNSCALED = np.array([False, False, True, False, False])
FIRST, WIDTH = 3, 5


def draw_parameters(rng, config):
    """From the prior, without any of the sampler's code."""
    chances = 1 / np.array(config.degrees)
    degrees = rng.choice(config.degrees, p=chances / chances.sum())
    sizes = np.zeros(WIDTH)
    while (sizes < config.least_size).any():
        small = sizes < config.least_size
        sizes[small] = rng.gamma(0.5, 2.0, small.sum())
    sizes = np.where(UNSCALED | (np.arange(WIDTH) >= FIRST), 1.0, sizes)
    covariance = scipy.stats.invwishart.rvs(
        degrees + WIDTH - 1, degrees * np.diag(sizes), random_state=rng
    )
    mean = rng.multivariate_normal(np.zeros(WIDTH), covariance / config.rows_at_zero)
    return Parameters(mean, np.linalg.inv(covariance), sizes, float(degrees))


def draw_latent(rng, parameters, count):
    covariance = np.linalg.inv(parameters.precision)
    return rng.multivariate_normal(parameters.mean, (covariance + covariance.T) / 2, count)


def observe(latent, missing):
    """What a table shows of its latent numbers; the category is missing as one."""
    low, high = latent.copy(), latent.copy()
    for column, cuts in CUTS.items():
        level = np.searchsorted(cuts, latent[:, column]) - 1
        low[:, column], high[:, column] = cuts[level], cuts[level + 1]
    chosen = np.argmax(np.column_stack([np.zeros(len(latent)), latent[:, FIRST:]]), axis=1)
    low[:, :FIRST][missing[:, :FIRST]], high[:, :FIRST][missing[:, :FIRST]] = -np.inf, np.inf
    choice = Choice(FIRST, np.where(missing[:, FIRST], -1, chosen), 3)
    return copula.prepare(low, high, (choice,), UNSCALED)


def told(state):
    """Functionals of a draw that have moments."""
    latent, parameters = np.arctan(state.latent), state.parameters
    largest = np.argmax(np.column_stack([np.zeros(len(latent)), latent[:, FIRST:]]), axis=1)
    covariance = np.linalg.inv(parameters.precision)
    spread = np.sqrt(np.diag(covariance))
    found = np.concatenate(
        [
            np.arctan(parameters.mean),
            np.log(spread),
            (covariance / np.outer(spread, spread))[np.triu_indices(WIDTH, 1)],
            np.log(parameters.sizes[:2]),
            [np.log(parameters.degrees)],
            latent.mean(axis=0),
            (latent > 0).mean(axis=0),
            [(largest == 0).mean(), (largest == 1).mean()],
            [(latent[:, 0] * latent[:, 1]).mean(), (latent[:, 2] * latent[:, 4]).mean()],
        ]
    )
    return np.concatenate([found, found**2])


def test_sweeps_and_data_in_turn_leave_the_prior_as_it_is():
    rng, count, num_starts, num_sweeps = np.random.default_rng(0), 6, 150, 12
    config = CopulaConfig(degrees=(2.0, 4.0, 8.0), rows_at_zero=1.0, least_size=0.3)
    missing = rng.random((count, FIRST + 1)) < 0.3
    of_batches = []
    for _ in range(num_starts):
        parameters, found = draw_parameters(rng, config), 0
        for _ in range(num_sweeps):
            latent = draw_latent(rng, parameters, count)
            data = observe(latent, missing)
            state, _ = copula.sweep(rng, State(latent, parameters), data, config)
            found, parameters = found + told(state) / num_sweeps, state.parameters
        of_batches.append(found)
    of_prior = []
    for _ in range(4000):
        parameters = draw_parameters(rng, config)
        of_prior.append(told(State(draw_latent(rng, parameters, count), parameters)))
    (mean, error), (expected, rest) = (
        (np.mean(x, axis=0), np.var(x, axis=0, ddof=1) / len(x)) for x in (of_batches, of_prior)
    )
    z = (mean - expected) / np.sqrt(error + rest)
    assert np.abs(z).max() < 4, z.round(1)


def test_latent_numbers_that_are_drawn_anew_keep_their_distribution():
    """Given the parameters: rows are independent, so that many of them tell small faults."""
    rng, count = np.random.default_rng(5), 40_000
    root = rng.normal(size=(WIDTH, WIDTH)) / 2 + np.eye(WIDTH)
    covariance, mean = root @ root.T, np.array([0.3, -0.2, 0.1, 0.4, -0.3])
    parameters = Parameters(mean, np.linalg.inv(covariance), np.ones(WIDTH), 2.0)
    latent = draw_latent(rng, parameters, count)
    data = observe(latent, rng.random((count, FIRST + 1)) < 0.3)
    for _ in range(5):
        latent, _ = copula.draw_latent(rng, latent, parameters, data)
    white = np.linalg.solve(root, (latent - mean).T)
    assert np.abs(white.mean(axis=1)).max() < 4 / np.sqrt(count)
    spread = np.sqrt((1 + np.eye(WIDTH)) / count)
    assert (np.abs(white @ white.T / count - np.eye(WIDTH)) < 4 * spread).all()
    assert (np.abs((white**3).mean(axis=1)) < 4 * np.sqrt(15 / count)).all()


def run(data, num_sweeps, config=None):
    config = CopulaConfig() if config is None else config
    rng = np.random.default_rng(0)
    state, kept = copula.init(rng, data, config), []
    for _ in range(num_sweeps):
        state, predicted = copula.sweep(rng, state, data, config)
        kept.append((state, predicted))
    return kept


@pytest.fixture(scope="module")
def table():
    """[300, 5] of two factors, and where cells are missing."""
    rng = np.random.default_rng(1)
    latent = rng.normal(size=(300, 2)) @ rng.normal(size=(2, WIDTH))
    latent += 0.3 * rng.normal(size=latent.shape)
    return latent, rng.random((300, FIRST + 1)) < 0.3


def test_observed_cells_are_kept_and_agree_with_what_is_drawn(table):
    latent, missing = table
    data = observe(latent, missing)
    state, _ = run(data, 5)[-1]
    known = ~missing
    np.testing.assert_array_equal(state.latent[known[:, 0], 0], latent[known[:, 0], 0])
    for column, cuts in CUTS.items():
        drawn, true = (
            np.searchsorted(cuts, x[known[:, column], column]) for x in (state.latent, latent)
        )
        np.testing.assert_array_equal(drawn, true)
    largest = np.argmax(np.column_stack([np.zeros(300), state.latent[:, FIRST:]]), axis=1)
    observed = data.choices[0].chosen >= 0
    np.testing.assert_array_equal(largest[observed], data.choices[0].chosen[observed])


def test_missing_numbers_are_found_with_honest_errors(table):
    latent, missing = table
    kept = run(observe(latent, missing), 60)[20:]
    lost = missing[:, 0]
    mean = np.mean([predicted.mean[lost, 0] for _, predicted in kept], axis=0)
    error = latent[lost, 0] - mean
    assert error.std() < 0.75 * latent[lost, 0].std()
    draws = np.array([state.latent[lost, 0] for state, _ in kept])
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    assert 0.8 < ((low < latent[lost, 0]) & (latent[lost, 0] < high)).mean() < 0.98


def test_complete_numbers_have_the_covariance_that_they_have():
    rng = np.random.default_rng(2)
    latent = rng.normal(size=(2000, 3)) @ np.array([[1.0, 0.8, 0.0], [0.0, 0.6, 0.0], [0, 0, 2.0]])
    kept = run(copula.prepare(latent, latent), 30)
    found = np.mean([np.linalg.inv(s.parameters.precision) for s, _ in kept], axis=0)
    np.testing.assert_allclose(found, np.cov(latent.T), atol=0.1)


def test_columns_that_have_nothing_in_common_are_drawn_to_independence():
    """More columns than rows: correlations are shrunk, and the strength of that is learned."""
    rng = np.random.default_rng(3)
    latent = rng.normal(size=(25, 40))
    state, _ = run(copula.prepare(latent, latent), 30)[-1]
    assert state.parameters.degrees > 100
    factors = rng.normal(size=(25, 1)) * np.ones(40) + 0.3 * latent
    state, _ = run(copula.prepare(factors, factors), 30)[-1]
    assert state.parameters.degrees < 100


def test_a_column_that_others_determine_is_found():
    rng = np.random.default_rng(4)
    latent = rng.normal(size=(400, 3))
    latent[:, 2] = latent[:, 0] + latent[:, 1] + 1e-3 * rng.normal(size=400)
    lost = rng.random(400) < 0.3
    low, high = latent.copy(), latent.copy()
    low[lost, 2], high[lost, 2] = -np.inf, np.inf
    _, predicted = run(copula.prepare(low, high), 60)[-1]
    assert np.abs(predicted.mean[lost, 2] - latent[lost, 2]).max() < 0.01


def test_far_tails_stay_finite():
    low = np.array([[40.0, 0.0], [-np.inf, -1.0], [39.0, 0.5], [1.0, 0.1]])
    high = np.array([[np.inf, 0.0], [-45.0, -1.0], [39.5, 0.5], [2.0, 0.1]])
    for state, _ in run(copula.prepare(low, high), 10):
        assert np.isfinite(state.latent).all()
        assert ((low <= state.latent) & (state.latent <= high)).all()


def test_a_draw_depends_on_its_generator_alone(table):
    data = observe(*table)
    (first, _), (second, _) = run(data, 3)[-1], run(data, 3)[-1]
    for left, right in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(left, right)


def test_bad_input():
    with pytest.raises(ValueError, match="not above the high one"):
        copula.prepare(np.ones((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="low and high"):
        copula.prepare(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="positive degrees"):
        CopulaConfig(degrees=(0.0,))
