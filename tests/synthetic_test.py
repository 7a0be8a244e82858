"""Drawn matrices have the sizes, shares and structure that they promise."""

import numpy as np
import pytest
from absl.testing import parameterized

from metamf_jax.data import synthetic


def effects_removed(table, penalty=2.0):
    """Values less their mean and ridge-shrunk row and column effects."""
    entries = table.entries
    num_rows, num_columns = entries.shape
    x = entries.values - entries.values.mean()
    row_counts = np.bincount(entries.rows, minlength=num_rows)
    column_counts = np.bincount(entries.columns, minlength=num_columns)
    a, b = np.zeros(num_rows), np.zeros(num_columns)
    for _ in range(20):
        a = np.bincount(entries.rows, x - b[entries.columns], num_rows) / (row_counts + penalty)
        b = np.bincount(entries.columns, x - a[entries.rows], num_columns) / (
            column_counts + penalty
        )
    return x - a[entries.rows] - b[entries.columns]


class SyntheticRatingsTest(parameterized.TestCase):
    def test_one_seed_gives_one_world(self):
        first, again, other = (
            synthetic.synthetic_ratings(seed, 80, 60).entries for seed in (5, 5, 6)
        )
        np.testing.assert_array_equal(first.rows, again.rows)
        np.testing.assert_array_equal(first.columns, again.columns)
        np.testing.assert_array_equal(first.values, again.values)
        assert len(first.rows) != len(other.rows) or (first.rows != other.rows).any()

    @parameterized.product(missingness=synthetic.MISSINGNESS, density=(0.05, 0.6))
    def test_density(self, missingness, density):
        entries = synthetic.synthetic_ratings(1, 400, 300, density, missingness=missingness).entries
        assert entries.shape == (400, 300)
        assert abs(len(entries.values) / (400 * 300) / density - 1) < 0.05
        flat = entries.rows.astype(np.int64) * 300 + entries.columns
        assert (np.diff(flat) > 0).all()  # In row order, each cell once.

    def test_full(self):
        assert len(synthetic.synthetic_ratings(1, 20, 30, 1.0).entries.values) == 600

    @parameterized.parameters(*synthetic.MISSINGNESS)
    def test_ratings_have_the_shares_of_movielens(self, missingness):
        values = synthetic.synthetic_ratings(2, 800, 500, missingness=missingness).entries.values
        shares = np.bincount(values.astype(int), minlength=6)[1:] / len(values)
        np.testing.assert_allclose(shares, [0.0611, 0.1137, 0.2714, 0.3417, 0.2120], atol=0.015)
        assert set(np.unique(values)) == {1, 2, 3, 4, 5}

    def test_popularity_is_skewed_and_uniform_is_not(self):
        ratios = []
        for missingness in ("uniform", "popularity"):
            entries = synthetic.synthetic_ratings(3, 500, 400, 0.1, missingness=missingness).entries
            counts = np.sort(np.bincount(entries.columns, minlength=400))
            ratios.append(counts[-40:].mean() / counts[:200].mean())
        assert ratios[0] < 1.6
        assert ratios[1] > 3

    def test_value_driven_missingness_shows_higher_values(self):
        means = [
            synthetic.synthetic_ratings(
                4, 500, 400, 0.1, missingness=missingness, ordinal=False, popularity=0.0
            ).entries.values.mean()
            for missingness in ("uniform", "value")
        ]
        # e^x tilts a unit normal by one deviation.
        assert abs(means[0]) < 0.15
        assert 0.6 < means[1] < 1.2

    def test_low_rank_structure_remains_when_effects_are_removed(self):
        table = synthetic.synthetic_ratings(5, 300, 200, 1.0)
        matrix = effects_removed(table).reshape(300, 200)
        spectrum = np.linalg.svd(matrix, compute_uv=False) ** 2
        explained = spectrum / spectrum.sum()
        total = (table.entries.values - table.entries.values.mean()).var()
        # Effects leave more than 40% of the variance, of which four directions hold most.
        assert matrix.var() / total > 0.4
        assert explained[:4].sum() > 0.6
        assert explained[4:8].sum() < 0.1

    def test_without_interaction_effects_explain_all_but_the_noise(self):
        table = synthetic.synthetic_ratings(
            6, 300, 200, 0.5, ordinal=False, shares=(0.4, 0.4, 0.0, 0.2)
        )
        assert abs(effects_removed(table).var() / 0.2 - 1) < 0.05

    def test_factors_are_not_gaussian(self):
        rng = np.random.default_rng(0)
        u, v = synthetic._clustered_factors(rng, 4000, 4000, 1)
        for factors in (u, v):
            x = (factors - factors.mean()) / factors.std()
            assert abs((x**4).mean() - 3) > 0.3

    @parameterized.parameters(
        ({"density": 0.0}, "density above 0 and up to 1, got 0.0"),
        ({"density": 1.5}, "got 1.5"),
        ({"rank": 0}, "got 10, 10 and 0"),
        ({"num_rows": 0}, "got 0, 10 and 4"),
        ({"missingness": "odd"}, "'odd'; expected one of uniform, popularity, value"),
        ({"shares": (1, 1, -1, 0)}, "four shares"),
    )
    def test_wrong_arguments_are_named(self, changed, message):
        with pytest.raises(ValueError, match=message):
            synthetic.synthetic_ratings(0, **{"num_rows": 10, "num_columns": 10, **changed})


class LowRankTest(parameterized.TestCase):
    @parameterized.parameters((0.0, 3), (0.5, 5))
    def test_cells_are_those_of_the_truth(self, bias, columns):
        table, truth = synthetic.low_rank(1, 40, 30, 3, density=0.5, bias=bias)
        assert truth.u.shape == (40, columns)
        assert truth.v.shape == (30, columns)
        product = np.asarray(truth.u) @ np.asarray(truth.v).T
        entries = table.entries
        np.testing.assert_allclose(
            entries.values, product[entries.rows, entries.columns], atol=1e-5
        )
        assert 0.4 < len(entries.values) / 1200 < 0.6
        assert np.linalg.matrix_rank(product, tol=1e-3) == columns

    def test_scale_and_noise(self):
        table, truth = synthetic.low_rank(2, 300, 200, 4, noise=0.5)
        product = np.asarray(truth.u) @ np.asarray(truth.v).T
        assert abs(product.var() - 1) < 0.2
        errors = table.entries.values - product.ravel()
        assert abs(errors.std() - 0.5) < 0.01

    def test_wrong_arguments_are_named(self):
        with pytest.raises(ValueError, match="expected deviations from 0, got noise -1 and bias 0"):
            synthetic.low_rank(0, 3, 3, 1, noise=-1, bias=0)
