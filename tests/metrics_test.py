"""Statistics against numbers worked out by hand."""

import math

import numpy as np
import pytest
from sklearn import metrics as scikit_learn

from metamf_jax import metrics
from metamf_jax.factorization import measures
from metamf_jax.factorization.losses import LOSSES
from metamf_jax.types import Entries, Factors


def test_mean_and_standard_error():
    # Deviations -2, 0, 2: variance (4 + 0 + 4) / 2 = 4, error 2 / sqrt(3).
    mean, error = metrics.mean_and_standard_error(np.float32([1, 3, 5]))
    assert mean == 3
    assert math.isclose(error, 2 / math.sqrt(3))


def test_one_value_has_no_standard_error():
    mean, error = metrics.mean_and_standard_error(np.float32([7]))
    assert mean == 7
    assert math.isnan(error)


def test_sums_are_taken_in_float64():
    values = np.full(10**6, 0.1, np.float32)
    mean, _ = metrics.mean_and_standard_error(values)
    assert math.isclose(mean, float(np.float32(0.1)), rel_tol=1e-12)


def test_paired_difference_takes_the_correction_of_nadeau_and_bengio():
    # Differences 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 3 = 14 / 3.
    # (1 / J + n_test / n_train) variance = (1 / 4 + 20 / 70) 14 / 3 = 2.5.
    errors, others = np.array([2.0, 4.0, 6.0, 10.0]), np.array([1.0, 2.0, 3.0, 4.0])
    difference, error = metrics.paired_difference(errors, others, 20 / 70)
    assert math.isclose(difference, 3)
    assert math.isclose(error, math.sqrt(2.5))


def test_without_overlap_the_paired_error_is_the_plain_one():
    errors, others = np.array([2.0, 4.0, 6.0, 10.0]), np.array([1.0, 2.0, 3.0, 4.0])
    _, error = metrics.paired_difference(errors, others, 0)
    assert math.isclose(error, metrics.mean_and_standard_error(errors - others)[1])


def test_measures_of_labels_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(200) < 0.3, 1, -1).astype("f")
    # Rounded, so that many are equal.
    scores = (rng.normal(size=200) + 0.5 * labels).round(1).astype("f")
    probability = 1 / (1 + np.exp(-scores.astype("d")))
    np.testing.assert_allclose(
        metrics.log_loss(labels, scores), scikit_learn.log_loss(labels, probability)
    )
    np.testing.assert_allclose(
        metrics.auc(labels, scores), scikit_learn.roc_auc_score(labels, scores)
    )
    assert metrics.accuracy(labels, scores) == np.mean(np.where(scores >= 0, 1, -1) == labels)
    assert math.isnan(metrics.auc(np.ones(3), np.arange(3)))


def test_divergence_and_absolute_error():
    # x log(x / f) - x + f: of 0 and 2 it is 2, of 2 and 2 nothing, of 2 and 1 it is 2 log 2 - 1.
    measured = metrics.kullback_leibler(np.float32([0, 2, 2]), np.float32([2, 2, 1]))
    assert measured == pytest.approx((2 + 2 * math.log(2) - 1) / 3)
    assert metrics.mean_absolute_error(np.float32([1, 5]), np.float32([2, 2])) == 2


def test_a_ranking_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(40, 30))
    wanted, known = rng.random((40, 30)) < 0.1, rng.random((40, 30)) < 0.2
    wanted &= ~known
    kept = wanted.any(axis=1)
    recall, ndcg = metrics.ranking(
        scores.__getitem__, np.nonzero(wanted), np.nonzero(known), count=5
    )
    masked = np.where(known, -1e3, scores)
    # k places; the best order has no more than k either.
    assert ndcg == pytest.approx(scikit_learn.ndcg_score(wanted[kept], masked[kept], k=5))
    first = np.argsort(-masked, axis=1)[:, :5]
    found = np.take_along_axis(wanted, first, axis=1).sum(axis=1)[kept]
    assert recall == pytest.approx(np.mean(found / np.minimum(wanted.sum(axis=1)[kept], 5)))
    some, _ = metrics.ranking(scores.__getitem__, np.nonzero(wanted), np.nonzero(known), 5, 7)
    assert 0 <= some <= 1
    nothing = np.zeros(0, int), np.zeros(0, int)
    assert np.isnan(metrics.ranking(scores.__getitem__, nothing, np.nonzero(known))).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_has_a_measure_that_decides(loss):
    u, v = np.eye(3, dtype="f"), np.eye(3, dtype="f") + 0.1
    rows, columns = np.int32([0, 1, 2]), np.int32([0, 1, 0])
    entries = Entries(rows, columns, np.ones(3, "f"), (3, 3))
    known = Entries(columns, columns[::-1], np.ones(3, "f"), (3, 3))
    measured = measures.of_entries(loss, Factors(u, v), entries, known)
    assert measures.decisive(loss) in measured
    assert (
        measures.of_entries(
            loss, Factors(u, v), Entries(*[x[:0] for x in (rows, columns, u[0])], (3, 3))
        )
        == {}
    )
    better = measures.best(measures.decisive(loss), [0.1, 0.2])
    low, high = (measures.error(loss, {measures.decisive(loss): x}) for x in (0.1, 0.2))
    assert (better == 0.1) == (low < high)


def test_errors_are_parted_by_counts():
    counts = np.array([0, 1, 2, 3, 5, 6, 10, 11, 30, 31, 400])
    found = metrics.by_count(counts, np.arange(11.0))
    assert list(found) == ["0", "1", "2", "3-5", "6-10", "11-30", "31+"]
    assert found["3-5"] == {"cells": 2, "rmse": np.sqrt(3.5)}
    assert found["31+"] == {"cells": 2, "rmse": np.sqrt(9.5)}
    assert metrics.by_count(np.array([4]), np.ones(1)) == {"3-5": {"cells": 1, "rmse": 1.0}}
