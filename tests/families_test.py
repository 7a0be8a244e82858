"""Every family draws finite matrices of the wanted size, whose cells are scored once."""

import numpy as np
import pytest

from experiments import pretraining
from metamf_jax.data import families


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize("shape", [(5, 7), (40, 12)])
def test_draws(family, shape):
    for seed in range(6):
        drawn = families.draw_matrix(np.random.default_rng(seed), shape, 30, 10, family)
        flat = []
        for part in drawn:
            assert part.shape == shape
            assert np.isfinite(part.values).all()
            flat.append(part.rows * shape[1] + part.columns)
        assert 1 <= len(flat[0]) <= 30
        assert 1 <= len(flat[1]) <= 10
        together = np.concatenate(flat)
        assert len(np.unique(together)) == len(together)


def test_one_generator_one_draw():
    one, other = (
        families.draw_matrix(np.random.default_rng(4), (30, 20), 100, 20) for _ in range(2)
    )
    np.testing.assert_array_equal(one.observed.values, other.observed.values)
    np.testing.assert_array_equal(one.scored.values, other.scored.values)


def test_large_sparse_matrices_are_drawn_without_all_their_cells():
    drawn = families.draw_matrix(np.random.default_rng(0), (10**5, 10**5), 500, 50, "ratings")
    assert 400 <= len(drawn.observed.rows) <= 500


def test_batches_are_standardised():
    size = pretraining.SizeClass((5, 30), (5, 30), 100, 8)
    episodes = pretraining.draw_batch(np.random.default_rng(0), size)
    assert episodes.support.values.shape == (8, 100)
    inside = episodes.support.rows < 30
    for values, held in zip(episodes.support.values, inside, strict=True):
        assert abs(values[held].mean()) < 1e-3
    assert np.abs(episodes.query.values).max() <= 10
