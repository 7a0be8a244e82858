"""Padding to buckets and back."""

import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax.meta_learning import padding
from metamf_jax.types import Entries


def random_entries(seed, shape, count):
    rng = np.random.default_rng(seed)
    cells = rng.choice(shape[0] * shape[1], count, replace=False)
    rows, columns = np.divmod(cells, shape[1])
    return Entries(
        rows.astype(np.int32),
        columns.astype(np.int32),
        rng.normal(size=count).astype(np.float32),
        shape,
    )


def dense_loop(entries):
    """Values and mask, cell by cell."""
    values, observed = np.zeros(entries.shape, np.float32), np.zeros(entries.shape, bool)
    for n, m, x in zip(entries.rows, entries.columns, entries.values, strict=True):
        if n < entries.shape[0]:
            values[n, m], observed[n, m] = x, True
    return values, observed


MATRICES = [
    random_entries(0, (4, 5), 7),
    random_entries(1, (2, 3), 6),
    random_entries(2, (6, 1), 1),
    random_entries(3, (3, 3), 0),
]


class PaddingTest(parameterized.TestCase):
    def test_bucket_sizes(self):
        buckets = [64, 96, 128, 192, 256, 384, 512, 768, 1024]
        for size in range(1025):
            expected = min(bucket for bucket in buckets if bucket >= size)
            assert padding.bucket_size(size) == expected, size

    def test_bucket_wastes_at_most_a_third(self):
        for size in range(65, 5000):
            bucket = padding.bucket_size(size)
            assert bucket >= size
            assert (bucket - size) / bucket < 1 / 3

    def test_another_smallest_bucket(self):
        assert [padding.bucket_size(n, 8) for n in (1, 9, 13, 17)] == [8, 12, 16, 24]

    def test_stack_and_unstack(self):
        batch = padding.stack_entries(MATRICES, (6, 5), 8)
        assert batch.shape == (6, 5)
        for array, kind in (
            (batch.rows, np.int32),
            (batch.columns, np.int32),
            (batch.values, np.float32),
        ):
            assert array.shape == (4, 8)
            assert array.dtype == kind
        # Padding stands one past the end.
        assert batch.rows[0, 7:].tolist() == [6]
        assert batch.columns[0, 7:].tolist() == [5]
        for matrix, back in zip(MATRICES, padding.unstack_entries(batch), strict=True):
            assert back.shape == (6, 5)
            np.testing.assert_array_equal(back.rows, matrix.rows)
            np.testing.assert_array_equal(back.columns, matrix.columns)
            np.testing.assert_array_equal(back.values, matrix.values)

    @parameterized.parameters(
        {"shape": (5, 5), "length": 8, "matrix": 2},
        {"shape": (6, 4), "length": 8, "matrix": 0},
        {"shape": (6, 5), "length": 6, "matrix": 0},
    )
    def test_what_does_not_fit_is_refused(self, shape, length, matrix):
        with pytest.raises(ValueError, match=f"matrix {matrix} of shape .* does not fit"):
            padding.stack_entries(MATRICES, shape, length)

    def test_pad_dense_of_one_matrix(self):
        for matrix in MATRICES:
            dense = padding.pad_dense(matrix)
            values, observed = dense_loop(matrix)
            np.testing.assert_array_equal(dense.values, values)
            np.testing.assert_array_equal(dense.observed, observed)

    def test_pad_dense_of_a_batch_ignores_padding(self):
        batch = padding.stack_entries(MATRICES, (6, 5), 8)
        batch.values[batch.rows == 6] = np.nan
        dense = padding.pad_dense(batch)
        assert dense.values.shape == (4, 6, 5)
        assert dense.observed.dtype == bool
        for b, matrix in enumerate(padding.unstack_entries(batch)):
            values, observed = dense_loop(matrix)
            np.testing.assert_array_equal(dense.values[b], values)
            np.testing.assert_array_equal(dense.observed[b], observed)

    def test_pad_dense_of_two_batch_axes(self):
        batch = padding.stack_entries(MATRICES, (6, 5), 8)
        flat = padding.pad_dense(batch)
        square = padding.pad_dense(
            Entries(
                *(x.reshape(2, 2, 8) for x in (batch.rows, batch.columns, batch.values)), (6, 5)
            )
        )
        np.testing.assert_array_equal(square.values, flat.values.reshape(2, 2, 6, 5))
        np.testing.assert_array_equal(square.observed, flat.observed.reshape(2, 2, 6, 5))
