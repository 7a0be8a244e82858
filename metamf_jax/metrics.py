"""Errors and their statistics."""

import math

import numpy as np


def mean_and_standard_error(values: np.ndarray) -> tuple[float, float]:
    """Mean of a sample and the standard error of that mean; the latter is NaN for one value."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def paired_difference(
    errors: np.ndarray, others: np.ndarray, test_train_ratio: float
) -> tuple[float, float]:
    """Mean difference ``errors - others`` over random splits of one data set, and its error.

    Splits overlap, so the standard error takes the correction of Nadeau and Bengio (Machine
    Learning 52, 2003): ``sqrt((1 / J + n_test / n_train) variance)`` for J splits.

    Args:
      errors: [J], one method's error on each split.
      others: [J], another's on the same splits.
      test_train_ratio: ``n_test / n_train``.
    """
    differences = np.asarray(errors, np.float64) - np.asarray(others, np.float64)
    variance = differences.var(ddof=1)
    scale = 1 / len(differences) + test_train_ratio
    return float(differences.mean()), float(math.sqrt(scale * variance))
