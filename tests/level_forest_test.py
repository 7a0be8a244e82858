"""Forests of levels as arrays: that they say what scikit-learn's say, and of whom."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from metamf_jax.imputation import level_forest


@pytest.fixture(scope="module")
def cells():
    """Rows [300, 4] with gaps, whose first two columns tell three of four levels."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 4))
    levels = np.where(rows[:, 0] * rows[:, 1] > 0, 3, np.where(rows[:, 0] > 0, 1, 0))
    rows[rng.random(rows.shape) < 0.2] = np.nan
    return rows, levels


def test_as_scikit_learn_says(cells):
    rows, levels = cells
    forest, unseen = level_forest.grow(rows, levels, 4, 5, seed=3)
    theirs = RandomForestClassifier(
        5, min_samples_leaf=3, max_samples=300, oob_score=True, random_state=3
    )
    with pytest.warns(UserWarning, match="OOB"):
        theirs.fit(rows.astype(np.float32), levels)
    used = [0, 1, 3]
    further = np.random.default_rng(1).normal(size=(50, 4))
    for asked in (rows, further):
        found = level_forest.predict(forest, asked)
        np.testing.assert_allclose(found[:, used], theirs.predict_proba(asked), atol=1e-6)
        np.testing.assert_array_equal(found[:, 2], 0)
    known = ~np.isnan(unseen[:, 0])
    assert 0.8 < known.mean() < 1
    expected = theirs.oob_decision_function_[known]
    np.testing.assert_allclose(unseen[known][:, used], expected, atol=1e-6)


def test_what_unseen_rows_are_told_is_no_better_than_of_others(cells):
    rows, levels = cells
    forest, unseen = level_forest.grow(rows[:200], levels[:200], 4, 60, seed=0)
    told = level_forest.predict(forest, rows)
    right = told.argmax(axis=1) == levels
    by_unseen = (unseen.argmax(axis=1) == levels[:200]).mean()
    assert abs(by_unseen - right[200:].mean()) < 0.1
    assert right[:200].mean() > by_unseen + 0.1
    assert right[200:].mean() > 0.6
