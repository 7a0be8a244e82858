"""Strata share no row or column block, and cover the grid."""

import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax.factorization import strata


class StrataTest(parameterized.TestCase):
    @parameterized.product(name=strata.SCHEDULES, num_blocks=list(range(1, 9)))
    def test_blocks_of_a_stratum_are_disjoint(self, name, num_blocks):
        rng = np.random.default_rng(num_blocks)
        for _ in range(3):
            schedule = strata.make_schedule(name, num_blocks, rng)
            assert schedule.shape == (num_blocks, num_blocks)
            np.testing.assert_array_equal(
                np.sort(schedule, axis=1), np.tile(np.arange(num_blocks), (num_blocks, 1))
            )
            if name != "random":  # Every block exactly once.
                np.testing.assert_array_equal(
                    np.sort(schedule, axis=0).T, np.tile(np.arange(num_blocks), (num_blocks, 1))
                )

    def test_seq(self):
        schedule = strata.make_schedule("seq", 3, np.random.default_rng(0))
        np.testing.assert_array_equal(schedule, [[0, 1, 2], [1, 2, 0], [2, 0, 1]])

    def test_wor_differs_from_epoch_to_epoch_in_both_directions(self):
        rng = np.random.default_rng(0)
        first, second = (strata.make_schedule("wor", 8, rng) for _ in range(2))
        assert set(map(tuple, first)) != set(map(tuple, second))
        assert set(map(tuple, first.T)) != set(map(tuple, second.T))

    def test_random_repeats_blocks(self):
        schedule = strata.make_schedule("random", 8, np.random.default_rng(0))
        assert any(len(set(column)) < 8 for column in schedule.T)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="expected a schedule among seq, wor, random"):
            strata.make_schedule("wr", 4, np.random.default_rng(0))
