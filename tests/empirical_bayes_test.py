"""What is learned of a corpus is what its matrices were drawn with."""

import numpy as np
import pytest
import scipy.stats

from metamf_jax.data.rating_matrices import draw_rating_matrix
from metamf_jax.posterior import empirical_bayes
from metamf_jax.posterior.empirical_bayes import LearnConfig, Told


def test_the_likeliest_hyperprior_is_that_of_the_draws():
    rng, count = np.random.default_rng(0), 400
    degrees, interaction, effects = 15.0, 0.3, np.array([0.1, 0.04])
    ranks = rng.choice([2, 5], count)
    means = rng.normal([[0.0, 0.1, 0.0], [0.0, 0.3, -0.1]], 0.2, (count, 2, 3))
    strengths = rng.gamma([[2.0, 5.0], [3.0, 8.0]], [[1.0, 0.5], [2.0, 0.1]], (count, 2, 2))
    alpha = rng.gamma(12.0, 0.25, count)
    shares = rng.gamma([[3.0], [6.0]], [[1 / 3], [1 / 6]], (count, 2, 50))

    def precision(rank, effect):
        scales = np.append(np.full(rank, interaction / rank**0.5), effect)
        d = rank + 1 + degrees
        return scipy.stats.wishart.rvs(d, np.diag(1 / (d * scales)), random_state=rng)

    precisions = [[precision(k, effect) for effect in effects] for k in ranks]

    def each(function):
        return np.array([[function(x) for x in both] for both in precisions])

    told = Told(
        means,
        each(lambda x: np.diag(x)[:-1].mean()),
        each(lambda x: x[-1, -1]),
        each(lambda x: np.linalg.slogdet(x)[1]),
        strengths,
        np.log(strengths),
        (shares - np.log(shares)).mean(axis=2),
        alpha,
        np.log(alpha),
    )
    found = empirical_bayes.likeliest(told, ranks.astype(float))
    assert found.degrees == pytest.approx(degrees, rel=0.15)
    assert found.interaction == pytest.approx(interaction, rel=0.05)
    np.testing.assert_allclose(found.effects, effects, rtol=0.05)
    np.testing.assert_allclose(found.effect_means, means.mean(axis=0))
    np.testing.assert_allclose([pair[0] for pair in found.strengths[1]], [3.0, 8.0], rtol=0.25)
    np.testing.assert_allclose(found.noise, (12.0, 4.0), rtol=0.25)
    np.testing.assert_allclose(found.shares, (3.0, 6.0), rtol=0.1)


def test_the_same_corpus_teaches_the_same():
    matrices = [draw_rating_matrix(np.random.default_rng(i), 24) for i in range(3)]
    lengths, turns = LearnConfig(turns=6, burn_in=3), []

    def tell(turn, learned):
        turns.append(learned)

    one = empirical_bayes.learn(matrices, [2] * 3, 4, lengths, tell)
    assert [x is one for x in turns] == [False] * 5 + [True]
    assert one == empirical_bayes.learn(matrices, [2] * 3, 4, lengths)
    assert 0.5 <= one.degrees <= 100


def test_rating_matrices_have_levels_and_popular_columns():
    for seed in range(4):
        entries = draw_rating_matrix(np.random.default_rng(seed), 40)
        assert entries.shape == (40, 40)
        assert 0.1 < len(entries.values) / 1600 < 0.42
        assert 2 <= len(np.unique(entries.values)) <= 10
        assert len(np.unique(entries.rows * 40 + entries.columns)) == len(entries.values)
