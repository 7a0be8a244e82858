"""What columns are standardised by."""

import numpy as np
import pytest

from metamf_jax.imputation import scaling
from metamf_jax.types import Entries


def test_scaling_of_columns():
    """Each by its own cells; a constant or single cell by its size."""
    rows = np.array([0, 1, 2, 0, 1, 2, 0, 1, 0], np.int32)
    columns = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3], np.int32)
    values = np.array([1.0, 2.0, 3.0, 100.0, 300.0, 500.0, 7.0, 7.0, 9.0])
    fitted = scaling.fit_scaling(Entries(rows, columns, values, (3, 5)), "columns")
    np.testing.assert_allclose(fitted.centers[:4], [2, 300, 7, 9])
    np.testing.assert_allclose(fitted.scales[:2], [1, 200])
    np.testing.assert_allclose(fitted.scales[2:4], [7, 9])
    np.testing.assert_allclose(fitted.centers[4], values.mean())
    with pytest.raises(ValueError, match="matrix or columns"):
        scaling.fit_scaling(Entries(rows, columns, values, (3, 5)), "rows")


def test_the_floor_of_a_deviation_is_the_rounding_of_the_dtype():
    rows, columns = np.arange(4, dtype=np.int32), np.zeros(4, np.int32)
    values = 1e8 + np.array([0.0, 1.0, 2.0, 3.0])
    for dtype, expected in ((np.float64, values.std(ddof=1)), (np.float32, 1e8)):
        found = scaling.fit_scaling(Entries(rows, columns, values.astype(dtype), (4, 1)), "columns")
        np.testing.assert_allclose(found.scales, expected, rtol=1e-6)


def test_columns_of_one_value_but_for_one_cell_are_settled():
    rng = np.random.default_rng(0)
    table = np.full((25, 5), 3.5)
    table[7, 1] = 100.0
    table[[3, 9], 2] = -100.0
    table[:, 3] = rng.normal(size=25)
    observed = np.ones(table.shape, bool)
    # Nineteen equal cells may be so by chance.
    observed[19:, 4] = False
    rows, columns = np.nonzero(observed)
    entries = Entries(rows, columns, table[rows, columns], table.shape)
    np.testing.assert_array_equal(scaling.settled(entries), [3.5, 3.5, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    ("scale", "seen", "unlike"), [(1, 0.15, False), (1, 0.9, False), (8, 0.9, True)]
)
def test_a_unit_of_its_own_wants_evidence(scale, seen, unlike):
    """Columns of one unit differ by chance where they have a few cells each, and no more."""
    found = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(30, 30)) * np.where(np.arange(30) % 2, scale, 1)
        rows, columns = np.nonzero(rng.random((30, 30)) < seen)
        entries = Entries(rows, columns, values[rows, columns], (30, 30))
        found.append(scaling.columns_differ(entries))
    assert np.mean(found) == 1 if unlike else np.mean(found) < 0.1
