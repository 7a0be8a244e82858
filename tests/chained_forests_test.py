"""Chained forests of tables with categories."""

import numpy as np

from experiments import chained_forests


def test_related_columns_are_completed_and_observed_cells_kept():
    rng = np.random.default_rng(0)
    number = rng.normal(size=150)
    levels = np.searchsorted([-0.5, 0.5], number + 0.05 * rng.normal(size=150))
    whole = np.column_stack([number, levels, number + 0.1 * rng.normal(size=150)])
    values = np.where(rng.random(whole.shape) < 0.2, np.nan, whole)
    completed, chances = chained_forests.complete(values, [0, 3, 0])
    known = ~np.isnan(values)
    np.testing.assert_array_equal(completed[known], values[known])
    gaps = ~known[:, 1]
    assert list(chances) == [1]
    np.testing.assert_allclose(chances[1].sum(axis=1), 1)
    assert (completed[gaps, 1] == chances[1][gaps].argmax(axis=1)).all()
    assert (completed[gaps, 1] == levels[gaps]).mean() > 0.75
    gaps = ~known[:, 0]
    assert np.abs(completed[gaps, 0] - number[gaps]).mean() < 0.5 * np.abs(number[gaps]).mean()
