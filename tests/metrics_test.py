"""Statistics against numbers worked out by hand."""

import math

import numpy as np

from metamf_jax import metrics


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
