"""What cells say of latent numbers, and these of cells."""

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from metamf_jax.imputation import margins
from metamf_jax.imputation.columns import Column
from metamf_jax.imputation.margins import Classes, Constant, Scores, Straight

NUMBER, WHOLE = Column("a", "numeric"), Column("a", "integer")


def with_levels(type_, count):
    return Column("a", type_, pa.array([f"level {n}" for n in range(count)]))


def test_numbers_are_taken_as_they_are_unless_they_are_far_from_normal():
    rng = np.random.default_rng(0)
    normal, hidden = 5 + 3 * rng.normal(size=300), rng.normal(size=300)
    for values in (normal, np.exp(0.6 * hidden), rng.random(300), np.rint(20 * normal)):
        assert isinstance(margins.fit(NUMBER, values, 20), Straight)
    for values in (np.exp(1.5 * hidden), np.maximum(hidden, 0), rng.poisson(1.5, size=300) + 0.0):
        assert isinstance(margins.fit(NUMBER, values, 20), Scores)


@pytest.mark.parametrize("column", [NUMBER, WHOLE, with_levels("ordinal", 300)])
@pytest.mark.parametrize("kind", ["normal", "skewed", "tied"])
def test_cells_come_back_from_their_latent_numbers(column, kind):
    rng = np.random.default_rng(2)
    values = {
        "normal": 200 + 30 * rng.normal(size=150),
        "skewed": 9 * np.exp(1.5 * rng.normal(size=150)),
        "tied": np.maximum(rng.poisson(1.5, size=150) - 1.0, 0),
    }[kind]
    values = values if column is NUMBER else np.rint(np.clip(values, 0, 299))
    margin = margins.fit(column, values, 20)
    low, high = margins.to_latent(margin, values)
    # Anywhere in an interval, but not at its end.
    inside = np.where(low == high, low, np.clip((low + high) / 2, high - 0.01, low + 0.01))
    inside = np.where(np.isfinite(low) & np.isfinite(high), (low + high) / 2, inside)
    np.testing.assert_allclose(margins.from_latent(margin, inside), values, rtol=1e-12)


def test_beyond_what_was_observed_values_go_on_but_not_beyond_zero():
    rng = np.random.default_rng(3)
    values = np.exp(1.5 * rng.normal(size=200))
    margin = margins.fit(NUMBER, values, 20)
    latent = np.linspace(-12, 6, 200)
    found = margins.from_latent(margin, latent)
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0
    assert values.max() < found[-1] < 5 * values.max()


def test_means_of_numbers_over_their_latent_numbers():
    rng = np.random.default_rng(4)
    values = rng.gamma(0.5, size=400)
    margin = margins.fit(NUMBER, values, 20)
    mean, deviation = np.array([-0.5, 0.8]), np.array([0.3, 0.6])
    found, square = margins.moments(margin, mean, deviation)
    latent = mean + deviation * rng.normal(size=(200_000, 2))
    drawn = (margins.from_latent(margin, latent) - margins.center(margin)) / margins.unit(margin)
    np.testing.assert_allclose(found, drawn.mean(axis=0), atol=0.02 / margins.unit(margin))
    np.testing.assert_allclose(square, (drawn**2).mean(axis=0), rtol=0.03)


@pytest.mark.parametrize("ends", [(-0.3, 1.0), (-np.inf, 0.4), (2.0, np.inf), (-40.0, 40.0)])
def test_means_of_numbers_within_bounds(ends):
    margin = Straight(5.0, 2.0, (5 + 2 * ends[0], 5 + 2 * ends[1]))
    mean, deviation = np.array([-0.5, 0.2, 3.0]), np.array([0.4, 1.0, 1e-3])
    found = margins.moments(margin, mean, deviation)
    # Many points of equal chance.
    points = scipy.stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    cells = margins.from_latent(margin, mean[:, None] + deviation[:, None] * points) - 5
    cells /= margins.unit(margin)
    np.testing.assert_allclose(found[0], cells.mean(axis=1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], (cells**2).mean(axis=1), rtol=1e-3, atol=1e-5)


def test_chances_of_levels():
    values = np.repeat([0.0, 1.0, 3.0], [20, 50, 30])
    margin = margins.fit(with_levels("ordinal", 4), values, 20)
    found = margins.chances(margin, np.zeros(1), np.ones(1))
    np.testing.assert_allclose(found, [[0.2, 0.5, 0.3]])
    low, high = margins.to_latent(margin, np.array([2.0, np.nan]))
    # A level that never occurred is between its neighbours.
    np.testing.assert_allclose([low[0], high[0]], scipy.stats.norm.ppf(0.7))
    assert (low[1], high[1]) == (-np.inf, np.inf)


def test_two_levels_are_told_by_a_sign():
    margin = margins.fit(with_levels("binary", 2), np.repeat([0.0, 1.0], [3, 9]), 20)
    assert margin.unscaled
    low, high = margins.to_latent(margin, np.array([0.0, 1.0]))
    np.testing.assert_array_equal([low, high], [[-np.inf, 0], [0, np.inf]])


def test_rare_levels_share_a_class():
    counts = np.array([1, 50, 3, 0, 20, 2])
    values = np.repeat(np.arange(6.0), counts)
    margin = margins.fit(with_levels("nominal", 6), values, 3)
    assert isinstance(margin, Classes)
    np.testing.assert_array_equal(margin.of_level, [2, 0, 2, -1, 1, 2])
    np.testing.assert_allclose(margin.shares, [1 / 6, 1, 1 / 2, 0, 1, 1 / 3])
    np.testing.assert_array_equal(
        margins.to_classes(margin, np.array([0, 1, 3, 4, np.nan])), [2, 0, -1, 1, -1]
    )
    latent = np.tile([[-1.0, -1.0], [2.0, 1.0], [0.5, 1.0]], (1000, 1))
    found = margins.from_classes(margin, latent, np.random.default_rng(0)).reshape(1000, 3)
    assert set(found[:, 0]) == {1}
    assert set(found[:, 1]) == {4}
    np.testing.assert_allclose(
        np.bincount(found[:, 2].astype(int)) / 1000, [1 / 6, 0, 1 / 2, 0, 0, 1 / 3], atol=0.06
    )


def test_columns_of_one_value_or_none():
    for values, expected in ((np.array([2.0, np.nan, 2.0]), 2.0), (np.full(3, np.nan), np.nan)):
        margin = margins.fit(NUMBER, values, 20)
        assert isinstance(margin, Constant)
        assert margins.width(margin) == 0
        np.testing.assert_equal(margin.value, expected)
