"""Features of the pattern against dense singular value decompositions."""

import numpy as np
import pytest
import scipy.sparse

from metamf_jax.posterior import pattern

SHAPE = 30, 20


def _places(seed=0, shape=SHAPE, density=0.3):
    """Row 3 and column 5 have no entries."""
    observed = np.random.default_rng(seed).random(shape) < density
    observed[3], observed[:, 5] = False, False
    return np.nonzero(observed)


def _dense(rows, columns, shape):
    dense = np.zeros(shape)
    dense[rows, columns] = 1
    return dense


def _normalised(dense):
    of_rows, of_columns = (np.maximum(dense.sum(axis=axis), 1) for axis in (1, 0))
    return dense / np.sqrt(of_rows[:, None] * of_columns)


def _positive(vectors):
    """With the signs by which the largest number of each is positive."""
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])


def test_singular_vectors_after_the_first_equal_the_dense_ones():
    dense = _dense(*_places(), SHAPE)
    matrix, of_counts = _normalised(dense), [np.sqrt(dense.sum(i) / dense.sum()) for i in (1, 0)]
    left, singular, right = pattern.further_singular_vectors(
        scipy.sparse.csr_array(matrix), *of_counts, 8, 0
    )
    u, s, v = np.linalg.svd(matrix)
    np.testing.assert_allclose(s[0], 1)
    np.testing.assert_allclose(np.abs(u[:, 0]), of_counts[0], atol=1e-6)
    np.testing.assert_allclose(singular, s[1:9], rtol=1e-6)
    np.testing.assert_allclose(left, _positive(u[:, 1:9]), atol=1e-4)
    np.testing.assert_allclose(matrix @ right, left * singular, atol=1e-4)
    np.testing.assert_allclose(np.abs(right), np.abs(v[1:9].T), atol=1e-4)


def test_features_are_counts_and_scaled_singular_vectors():
    dense = _dense(*_places(), SHAPE)
    sides = pattern.pattern_features(*_places(), SHAPE, 6)
    u, s, v = np.linalg.svd(_normalised(dense))
    u, v = u[:, 1:7] * s[1:7] ** 3, v[1:7].T * s[1:7] ** 3
    for side, counts, vectors in zip(sides, (dense.sum(1), dense.sum(0)), (u, v), strict=True):
        of_counts = np.column_stack([np.log1p(counts), np.maximum(counts, 1) ** -0.5])
        of_counts = (of_counts - of_counts.mean(axis=0)) / of_counts.std(axis=0)
        np.testing.assert_allclose(side.features[:, :2], of_counts, atol=1e-5)
        vectors = vectors - vectors.mean(axis=0)
        # The vectors of both sides have the sign by which the largest of the rows' is positive.
        signs = np.sign((vectors * side.features[:, 2:]).sum(axis=0))
        vectors = signs * vectors / np.sqrt((vectors**2).mean())
        np.testing.assert_allclose(side.features[:, 2:], vectors, atol=1e-4)
        np.testing.assert_array_equal(side.groups, [0, 0, 1, 1, 1, 1, 1, 1])
        assert side.features.dtype == np.float32


def test_features_depend_on_the_seed_alone():
    one, again = (pattern.pattern_features(*_places(), SHAPE, 6, seed=4) for _ in range(2))
    other = pattern.pattern_features(*_places(), SHAPE, 6, seed=5)
    for side in (0, 1):
        np.testing.assert_array_equal(one[side].features, again[side].features)
        # Signs are fixed, so that another seed finds the same vectors.
        np.testing.assert_allclose(one[side].features, other[side].features, atol=1e-3)


@pytest.mark.parametrize("side", [0, 1])
def test_a_further_row_like_one_that_is_there_has_its_features(side):
    dense = _dense(*_places(), SHAPE)
    features = pattern.pattern_features(*_places(), SHAPE, 6)[side]
    observed = scipy.sparse.csr_array(dense if side == 0 else dense.T)
    found = pattern.of_further_rows(features, observed)
    np.testing.assert_allclose(found, features.features, atol=1e-4)
    assert found.dtype == np.float32


def test_more_vectors_than_there_are_and_none():
    shape = 7, 6
    places = _places(1, shape, 0.6)
    rows, columns = pattern.pattern_features(*places, shape, 50)
    assert rows.features.shape == (7, 2 + 5)
    assert columns.features.shape == (6, 2 + 5)
    assert np.isfinite(rows.features).all()
    rows, columns = pattern.pattern_features(*places, shape, 0)
    assert rows.features.shape == (7, 2)
    assert pattern.of_further_rows(rows, scipy.sparse.csr_array((2, 6))).shape == (2, 2)


@pytest.mark.parametrize("full", [False, True])
def test_a_pattern_without_structure_has_no_features(full):
    places = np.nonzero(np.full((6, 4), full))
    for side in pattern.pattern_features(*places, (6, 4), 3):
        np.testing.assert_allclose(side.features, 0, atol=1e-5)


def test_parts_without_a_common_entry_are_told_apart():
    # Of 1, a singular value once for each part, one vector is the counts' and may be left out.
    shape, of_rows = (24, 18), np.repeat([0, 1, 2], (4, 8, 12))
    of_columns = np.repeat([0, 1, 2], (3, 6, 9))
    dense = of_rows[:, None] == of_columns
    counts = np.sqrt(dense.sum(axis=1))
    for seed in range(3):
        rows, _ = pattern.pattern_features(*np.nonzero(dense), shape, 2, seed)
        vectors = rows.features[:, 2:] * rows.scales[2:] + rows.centers[2:]
        np.testing.assert_allclose(vectors.T @ counts, 0, atol=1e-6)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(2), atol=1e-5)


def test_silenced_features_tell_nothing_of_further_rows_either():
    rng = np.random.default_rng(3)
    observed = scipy.sparse.csr_array((rng.random((12, 9)) < 0.4).astype(float))
    rows, columns = observed.nonzero()
    side, _ = pattern.pattern_features(rows, columns, (12, 9), 4)
    silenced = pattern.silenced(side)
    assert np.ptp(side.features, axis=0).min() > 0
    assert not silenced.features.any()
    assert not pattern.of_further_rows(silenced, observed).any()
    assert pattern.of_further_rows(side, observed).any()
