"""Trees as arrays, against scikit-learn's own answers."""

import numpy as np
from sklearn.tree import ExtraTreeRegressor

from metamf_jax.imputation import forest


def samples(column):
    rng = np.random.default_rng(column)
    rows = rng.normal(size=(4 if column == 1 else 200, 3))
    return rows, np.sign(rows[:, column]) + 0.1 * rng.normal(size=len(rows))


def test_the_arrays_answer_as_the_trees():
    grown = forest.grow(samples, 3, 6)
    asked = np.random.default_rng(9).normal(size=(50, 3))
    rows, targets = samples(2)
    grower = ExtraTreeRegressor(
        min_samples_leaf=3, max_features=0.7, random_state=np.random.RandomState(0)
    )
    expected = np.mean([grower.fit(rows, targets).predict(asked) for _ in range(6)], axis=0)
    np.testing.assert_allclose(forest.predict(grown, 2, asked), expected, atol=1e-6)
    assert ((expected - np.sign(asked[:, 2])) ** 2).mean() < 0.3
    # Too few rows say nothing.
    np.testing.assert_array_equal(forest.predict(grown, 1, asked), 0)
    none = forest.grow(samples, 3, 0)
    np.testing.assert_array_equal(forest.predict(none, 0, asked), 0)
    # And again, to the last bit.
    for one, other in zip(grown, forest.grow(samples, 3, 6), strict=True):
        np.testing.assert_array_equal(one, other)
