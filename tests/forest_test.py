"""Trees as arrays, against scikit-learn's own answers."""

import numpy as np
from sklearn.tree import ExtraTreeRegressor

from metamf_jax import sums
from metamf_jax.imputation import forest


def samples(column):
    rng = np.random.default_rng(column)
    rows = rng.normal(size=(4 if column == 1 else 200, 3))
    return rows, np.sign(rows[:, column]) + 0.1 * rng.normal(size=len(rows))


def test_the_arrays_answer_as_the_trees_of_the_library():
    with sums.using_backend("xla"):
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


def test_compiled_trees_are_as_good_as_the_library_s():
    asked = np.random.default_rng(9).normal(size=(500, 3))
    errors = {}
    for backend in ("numba", "xla"):
        with sums.using_backend(backend):
            grown = forest.grow(samples, 3, 50)
            errors[backend] = ((forest.predict(grown, 2, asked) - np.sign(asked[:, 2])) ** 2).mean()
            # And again, to the last bit.
            for one, other in zip(grown, forest.grow(samples, 3, 50), strict=True):
                np.testing.assert_array_equal(one, other)
    assert errors["numba"] < 1.1 * errors["xla"] < 0.2


def test_a_compiled_tree_keeps_its_rules():
    with sums.using_backend("numba"):
        grown = forest.grow(samples, 3, 1)
    rows, targets = samples(2)
    rows, at = rows.astype(np.float32), np.full(len(rows), grown.roots[2, 0])
    for _ in range(len(rows)):
        right = rows[np.arange(len(rows)), grown.features[at]] > grown.thresholds[at]
        at = grown.children[at, right.astype(int)]
    leaves, counts = np.unique(at, return_counts=True)
    assert counts.min() >= 3
    assert counts.max() < 60
    for leaf in leaves:
        np.testing.assert_allclose(grown.answers[leaf], targets[at == leaf].mean(), rtol=1e-5)
