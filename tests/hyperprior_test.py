"""Each conditional of the hyperprior against theory, by many draws."""

import numpy as np
import pytest
import scipy.stats
import threadpoolctl

from metamf_jax.posterior import hyperprior
from metamf_jax.posterior.hyperprior import Moments, SidePrior, Wishart

N, L, DRAWS = 12, 3, 8000
GROUPS = np.array([0, 1, 1, 0])
STRENGTHS = np.array([0.7, 5.0])
WISHART = Wishart(4.5, np.array([1.0, 1.5, 0.5]))
BOUND = 4.5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On matrices this small the threads of BLAS only wait for each other: 80 times as long."""
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


def _side(seed=0):
    rng = np.random.default_rng(seed)
    phi = np.column_stack([np.ones(N), rng.normal(size=(N, len(GROUPS)))])
    return phi, phi @ rng.normal(size=(len(GROUPS) + 1, L)) + rng.normal(size=(N, L))


def _moments(phi, w):
    return Moments(len(phi), phi.T @ phi, phi.T @ w, w.T @ w)


def _z_scores(draws, mean):
    """Of the mean of independent draws [S, ..] about what is expected of it."""
    return (draws.mean(axis=0) - mean) / (draws.std(axis=0) / np.sqrt(len(draws)))


def _assert_wishart(draws, degrees, inverse_scale):
    """Mean ``d V`` and variances ``d (V_ij^2 + V_ii V_jj)`` of draws [S, L, L]."""
    scale = np.linalg.inv(inverse_scale)
    assert np.abs(_z_scores(draws, degrees * scale)).max() < BOUND
    diagonal = np.diag(scale)
    variance = degrees * (scale**2 + diagonal[:, None] * diagonal)
    squares = (draws - degrees * scale) ** 2
    assert np.abs(_z_scores(squares, variance)).max() < BOUND


@pytest.fixture(scope="module")
def draws():
    """Draws of `Lambda`, `B` and `s`, all given the factors and the same strengths."""
    phi, w = _side()
    prior = hyperprior.init(SidePrior(WISHART), GROUPS)._replace(strengths=STRENGTHS)
    rng, moments = np.random.default_rng(1), _moments(phi, w)
    found = [hyperprior.draw(rng, prior, moments, GROUPS, SidePrior(WISHART)) for _ in range(DRAWS)]
    return hyperprior.Hyperprior(*(np.stack(each) for each in zip(*found, strict=True)))


def _posterior():
    """``G``, ``M`` and the inverse scale of Lambda's, without the short cuts of the code."""
    phi, w = _side()
    ridge = np.diag([2.0, *STRENGTHS[GROUPS]])
    gram = phi.T @ phi + ridge
    mean = np.linalg.inv(gram) @ phi.T @ w
    # What M leaves of W, and M's own distance from its prior.
    left = w - phi @ mean
    scale = np.diag(WISHART.inverse_scale) + left.T @ left + mean.T @ ridge @ mean
    return gram, mean, scale


def test_wishart_root_has_the_moments_of_wisharts():
    rng = np.random.default_rng(2)
    inverse_scale = np.array([[2.0, 0.6, 0.1], [0.6, 1.0, -0.3], [0.1, -0.3, 1.5]])
    # A fractional number of degrees, little above the least.
    roots = np.stack([hyperprior.wishart_root(rng, 2.3 + L, inverse_scale) for _ in range(DRAWS)])
    _assert_wishart(roots @ roots.transpose(0, 2, 1), 2.3 + L, inverse_scale)


def test_precision_given_the_factors_is_wishart(draws):
    _assert_wishart(draws.precision, WISHART.degrees + N, _posterior()[2])


def test_coefficients_given_the_precision_are_matrix_normal(draws):
    gram, mean, _ = _posterior()
    # To independent standard normal numbers: C^T (B - M) T, of G = C C^T and Lambda = T T^T.
    white = np.linalg.cholesky(gram).T @ (draws.coefficients - mean)
    white = (white @ np.linalg.cholesky(draws.precision)).reshape(DRAWS, -1)
    assert np.abs(_z_scores(white, 0)).max() < BOUND
    spread = np.sqrt((1 + np.eye(white.shape[1])) / DRAWS)
    off = np.abs(white.T @ white / DRAWS - np.eye(white.shape[1]))
    assert (off < BOUND * spread).all()


def test_strengths_given_the_coefficients_are_gamma(draws):
    squares = np.einsum("sfj,sjk,sfk->sf", draws.coefficients, draws.precision, draws.coefficients)[
        :, 1:
    ]
    for group, of_group in enumerate(draws.strengths.T):
        size = (group == GROUPS).sum() * L
        rate = 0.1 + squares[:, group == GROUPS].sum(axis=1) / 2
        uniform = scipy.stats.gamma.cdf(of_group * rate, 0.1 + size / 2)
        assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("learned", [(), (np.array([0.5, -1.0]), ((3.0, 2.0),))])
def test_factors_drawn_from_the_prior_give_it_back(learned):
    # Given W, (B, Lambda) drawn with W is one more draw of itself: their ranks are uniform.
    rng, groups = np.random.default_rng(3), np.array([0, 0])
    expected = SidePrior(Wishart(5.0, np.ones(2)), *learned)
    phi = np.column_stack([np.ones(6), rng.normal(size=(6, 2))])
    start = hyperprior.init(expected, groups)._replace(strengths=np.array([1.5]))

    def told(prior):
        return np.append(prior.coefficients.ravel(), prior.precision.ravel()[[0, 1, 3]])

    ranks = []
    for _ in range(500):
        nothing = Moments(0, np.zeros((3, 3)), np.zeros((3, 2)), np.zeros((2, 2)))
        true = hyperprior.draw(rng, start, nothing, groups, expected)
        root = np.linalg.cholesky(true.precision)
        w = phi @ true.coefficients + np.linalg.solve(root.T, rng.normal(size=(2, 6))).T
        again = (hyperprior.draw(rng, start, _moments(phi, w), groups, expected) for _ in range(9))
        ranks.append(sum(told(x) < told(true) for x in again))
    for of_one in np.transpose(ranks):
        counts = np.bincount(of_one, minlength=10)
        assert scipy.stats.chisquare(counts).pvalue > 1e-3, counts


def test_without_features_there_is_an_intercept_alone():
    none = np.zeros(0, int)
    _, w = _side()
    moments = _moments(np.ones((N, 1)), w)
    prior = hyperprior.init(SidePrior(WISHART), none)
    np.testing.assert_allclose(prior.precision, np.diag(4.5 / WISHART.inverse_scale))
    found = hyperprior.draw(np.random.default_rng(4), prior, moments, none, SidePrior(WISHART))
    assert found.coefficients.shape == (1, L)
    assert found.strengths.shape == (0,)
    assert np.linalg.eigvalsh(found.precision).min() > 0
