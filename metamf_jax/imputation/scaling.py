"""Standardisation: what is taken off the values of each column, and what they are divided by.

NumPy only. Two ways: ``matrix``, one mean and deviation for all cells, keeps what columns have in
common (stars are stars); ``columns``, each column its own, for tables whose columns are measured in
different units.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from metamf_jax.types import Entries

SCALINGS = ("matrix", "columns")

# How many observations' worth the typical variance of a column counts in that of each column.
_TYPICAL_WEIGHT = 0.1


class Scaling(NamedTuple):
    """``standardised = (value - centers[m]) / scales[m]`` in column m; both [M], float64."""

    centers: np.ndarray
    scales: np.ndarray


def fit_scaling(entries: Entries, way: str) -> Scaling:
    """Measures means and deviations of the observed cells.

    Where all values are equal the deviation is their size, or 1 for zeros: any error bar that one
    value can give is as wide as the value. A column without cells takes the means of the others.

    Args:
      entries: at least one observed cell, finite.
      way: ``matrix`` or ``columns``.
    """
    if way not in SCALINGS:
        raise ValueError(f"expected the scaling {' or '.join(SCALINGS)}, got {way!r}")
    values = np.asarray(entries.values, np.float64)
    num_columns = entries.shape[1]
    mean = values.mean()
    # Rounding in the mean leaves a deviation of a few last digits where all values are equal.
    typical = values.std()
    if typical <= 1e-7 * np.abs(values).max():
        typical = abs(mean) or 1.0
    if way == "matrix":
        return Scaling(np.full(num_columns, mean), np.full(num_columns, typical))
    counts = np.bincount(entries.columns, minlength=num_columns)
    sums = np.bincount(entries.columns, values, num_columns)
    centers = np.where(counts > 0, sums / np.maximum(counts, 1), mean)
    squares = np.bincount(entries.columns, (values - centers[entries.columns]) ** 2, num_columns)
    degrees = np.maximum(counts - 1, 0)
    floor = (1e-7 * np.abs(values).max()) ** 2
    measured = (counts > 1) & (squares > floor * counts)
    if not measured.any():
        return Scaling(centers, np.full(num_columns, typical))
    usual = np.exp(
        np.average(np.log(squares[measured] / degrees[measured]), weights=degrees[measured])
    )
    # The usual variance must not widen a column that is much narrower than the others.
    own = np.where(measured, squares / np.maximum(degrees, 1), usual)
    variances = (squares + _TYPICAL_WEIGHT * np.minimum(usual, own)) / (degrees + _TYPICAL_WEIGHT)
    return Scaling(centers, np.sqrt(np.where(measured, variances, usual)))


def standardize(entries: Entries, scaling: Scaling) -> Entries:
    """The same cells in standardised units, float32 but for float64 values."""
    values = np.asarray(entries.values)
    dtype = values.dtype if values.dtype == np.float64 else np.float32
    standardised = (values - scaling.centers[entries.columns]) / scaling.scales[entries.columns]
    return dataclasses.replace(entries, values=standardised.astype(dtype))


def columns_differ(entries: Entries) -> bool:
    """Whether columns are so unlike in mean or deviation that they may have different units.

    Ratings, surveys of one scale and images say no: the standardisation by column then is not even
    tried, since it throws away what the columns share.
    """
    values = np.asarray(entries.values, np.float64)
    counts = np.bincount(entries.columns, minlength=entries.shape[1])
    often = counts >= 4
    if often.sum() < 2:
        return False
    inside = often[entries.columns]
    columns, values = entries.columns[inside], values[inside]
    sums = np.bincount(columns, values, entries.shape[1])
    centers = sums / np.maximum(counts, 1)
    within = np.bincount(columns, (values - centers[columns]) ** 2, entries.shape[1])
    deviations = np.sqrt(within[often] / (counts[often] - 1))
    low, high = np.quantile(deviations, [0.1, 0.9])
    return bool(high > 3 * low or within.sum() < 0.5 * ((values - values.mean()) ** 2).sum())
