"""The conditionals of the noise against the distributions they are."""

import numpy as np
import scipy.stats

from metamf_jax.posterior import noise


def test_precision_is_gamma():
    rng = np.random.default_rng(0)
    found = np.array([noise.draw_precision(rng, 7, 3.0) for _ in range(20_000)])
    known = scipy.stats.gamma(1 + 7 / 2, scale=1 / (1 + 3.0 / 2))
    assert scipy.stats.kstest(found, known.cdf).pvalue > 1e-3


def test_without_entries_the_precision_is_drawn_from_its_prior():
    rng = np.random.default_rng(1)
    found = np.array([noise.draw_precision(rng, 0, 0.0) for _ in range(20_000)])
    assert scipy.stats.kstest(found, scipy.stats.expon.cdf).pvalue > 1e-3


def test_a_learned_prior_of_the_precision_takes_the_flat_ones_place():
    rng = np.random.default_rng(4)
    found = np.array([noise.draw_precision(rng, 7, 3.0, (12.0, 5.0)) for _ in range(20_000)])
    known = scipy.stats.gamma(12 + 7 / 2, scale=1 / (5 + 3.0 / 2))
    assert scipy.stats.kstest(found, known.cdf).pvalue > 1e-3


def test_shares_are_gamma_each_with_its_own_row():
    counts, squares = np.array([0, 1, 8, 300]), np.array([0.0, 9.0, 2.5, 310.0])
    rng = np.random.default_rng(2)
    found = np.array([noise.draw_shares(rng, 2.5, counts, squares) for _ in range(20_000)])
    for n, of_row in enumerate(found.T):
        known = scipy.stats.gamma(2.5 + counts[n] / 2, scale=1 / (2.5 + squares[n] / 2))
        assert scipy.stats.kstest(of_row, known.cdf).pvalue > 1e-3
    correlation = np.corrcoef(found.T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(len(found))


def test_rows_all_alike_have_shares_of_one():
    found = noise.draw_shares(np.random.default_rng(3), 0, np.arange(4), np.ones(4))
    np.testing.assert_array_equal(found, np.ones(4))


def test_rescaling_leaves_the_prior_and_the_noise_of_entries_as_they_are():
    rng, count, shape, expected = np.random.default_rng(5), 3, 1.5, (2.5, 1.5)
    found = np.empty((20_000, 2))
    moved = 0
    for draw in found:
        before = rng.gamma(expected[0]) / expected[1], rng.gamma(shape, size=count) / shape
        alpha, shares = noise.rescale(rng, shape, *before, expected)
        np.testing.assert_allclose(alpha * shares, before[0] * before[1])
        moved += alpha != before[0]
        draw[:] = alpha, shares[0]
    assert moved > len(found) / 4
    for drawn, (a, b) in zip(found.T, (expected, (shape, shape)), strict=True):
        assert scipy.stats.kstest(drawn, scipy.stats.gamma(a, scale=1 / b).cdf).pvalue > 1e-3


def test_of_rows_all_alike_nothing_is_rescaled():
    alpha, shares = noise.rescale(np.random.default_rng(6), 0, 2.0, np.ones(3))
    assert alpha == 2.0
    np.testing.assert_array_equal(shares, np.ones(3))
