"""The learned prior of patterns: features, offsets, files, and its implicit gradient."""

import dataclasses

import numpy as np
import pytest

from metamf_jax.factorization import learn_pattern_prior, pattern_prior
from metamf_jax.factorization.learn_pattern_prior import LearnConfig
from metamf_jax.factorization.pattern_prior import PatternPrior
from metamf_jax.types import Entries, Factors

LEARNED = PatternPrior(((0.1, -0.2, 0.3), (0.2, 0.1, -0.1)), (0.5, 2.0), (0.5, 0.25), "nothing")


def _matrix(seed=0, size=40):
    """Of rank two and little noise, the popular liked the more: one well-conditioned optimum."""
    rng = np.random.default_rng(seed)
    popularity = rng.random(size)
    rows, columns = np.nonzero(rng.random((size, size)) < 0.2 + 0.6 * popularity)
    u, v = rng.standard_normal((2, size, 2)) * [1.5, 1.0]
    values = (u[rows] * v[columns]).sum(axis=1) + 4 * popularity[columns]
    values = (values + 0.2 * rng.standard_normal(len(rows))).astype(np.float32)
    held = rng.random(len(rows)) < 0.3
    parts = (
        Entries(rows[at].astype(np.int32), columns[at].astype(np.int32), values[at], (size, size))
        for at in (~held, held)
    )
    return learn_pattern_prior.centred(*parts)


def test_features_are_of_counts_alone():
    rows, columns = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 0, 0, 1, 2])
    entries = Entries(rows, columns, np.full(6, np.nan, np.float32), (4, 3))
    found = pattern_prior.pattern_of(entries)
    logs = np.log1p([2, 1, 3, 0])
    np.testing.assert_allclose(found.rows[:, 0], logs - logs[rows].mean())
    np.testing.assert_allclose(found.rows[rows, :2].mean(axis=0), 0, atol=1e-12)
    first = found.columns[:, 0]
    np.testing.assert_allclose(found.rows[0, 2], (first[0] + first[1]) / 3)
    assert found.rows[3, 2] == 0


def test_offsets_go_into_bias_columns_and_come_out_again():
    matrix = _matrix()
    offsets = LEARNED.offsets(matrix.pattern, matrix.unit)
    left = pattern_prior.subtract(matrix.train, offsets)
    u, v = (np.ones((40, 4), np.float32) for _ in range(2))
    fitted = pattern_prior.add(Factors(u, v), offsets)
    rows, columns = matrix.train.rows, matrix.train.columns
    more = (fitted.u[rows] * fitted.v[columns]).sum(axis=1) - 4
    np.testing.assert_allclose(left.values + more, matrix.train.values, atol=1e-5)


def test_precisions_follow_counts():
    matrix = _matrix()
    rows, columns = pattern_prior.counts_of(matrix.train)
    found = LEARNED.factors(matrix.train, 3, 2.0, 1.5)
    np.testing.assert_allclose(found.u_precision, 3 * 0.5 * np.maximum(rows, 1) ** 0.5, rtol=1e-6)
    np.testing.assert_allclose(found.v_precision, 6 * np.maximum(columns, 1) ** 0.25, rtol=1e-6)
    assert found.u_mean.shape == (40, 3)
    assert not found.u_mean.any()


@pytest.mark.parametrize("which", [0, 2, 4, 6, 7, 8, 9])
def test_the_implicit_gradient_is_that_of_the_converged_solution(which):
    matrix = _matrix()
    factors = learn_pattern_prior._start(np.random.default_rng(1), matrix, 2)
    theta = learn_pattern_prior._START + 0.1 * np.arange(10) / 10

    def loss_at(value):
        moved = theta.copy()
        moved[which] += value
        solved = learn_pattern_prior.solve(matrix, moved, factors, 60)
        return *learn_pattern_prior.loss_and_gradient(matrix, moved, solved, 200), solved

    _, gradient, factors = loss_at(0.0)
    step = 0.02
    slope = (loss_at(step)[0] - loss_at(-step)[0]) / (2 * step)
    np.testing.assert_allclose(gradient[which], slope, rtol=0.02, atol=2e-5)


def test_learning_lowers_the_held_out_error_and_finds_that_the_popular_is_liked():
    losses = []
    learned = learn_pattern_prior.learn(
        [_matrix(seed) for seed in range(3)],
        LearnConfig(rank=2, steps=12),
        "three",
        lambda step, loss, learned: losses.append(loss),
    )
    assert losses[-1] < 0.97 * losses[0]
    assert learned.means[1][0] > 0.05
    assert learned.saw == "three"


def test_a_file_gives_it_back_and_others_are_refused(tmp_path):
    pattern_prior.save(tmp_path / "a.json", LEARNED)
    assert pattern_prior.load(tmp_path / "a.json") == LEARNED
    for text in ("", "[1]", '{"means": 3}', "{}"):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(ValueError, match=r"b\.json"):
            pattern_prior.load(tmp_path / "b.json")
    with pytest.raises(ValueError, match="positive strengths"):
        dataclasses.replace(LEARNED, strengths=(0.0, 1.0))
    with pytest.raises(ValueError, match="3 finite means"):
        dataclasses.replace(LEARNED, means=((), ()))
