"""Weights of candidates, width of error bars and sums of errors, by hand."""

import numpy as np
import pytest

from metamf_jax.imputation import held_out


def test_weights_lie_on_the_simplex_and_find_the_best_candidate():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=400)
    deviations = {"bias": 0.9, "learned": 0.6, "posterior": 0.1}
    predictions = {name: truth + d * rng.normal(size=400) for name, d in deviations.items()}
    weights = held_out.weigh(predictions, truth)
    np.testing.assert_allclose(sum(weights.values()), 1)
    assert weights["posterior"] > 0.8
    one = held_out.weigh({name: x[:1] for name, x in predictions.items()}, truth[:1])
    for name, weight in one.items():
        np.testing.assert_allclose(weight, held_out.START_WEIGHTS.get(name, 0), atol=0.35)
    some = held_out.weigh(predictions, truth, ["bias", "learned"])
    assert some["posterior"] == 0
    assert some["learned"] > some["bias"] > 0


def test_inflation_of_a_column_is_its_own_where_it_has_cells_enough():
    scores = np.abs(np.random.default_rng(0).normal(size=(3000, 2))) * [1, 4]
    columns = np.tile([0, 1], 3000)
    of_table, _ = held_out.inflation(scores.ravel())
    found = held_out.inflation_by_column(scores.ravel(), columns, 3, of_table)
    np.testing.assert_allclose(found, [1, 4, of_table], rtol=0.06)
    few = held_out.inflation_by_column(scores[:3].ravel(), columns[:6], 3, of_table)
    assert np.abs(np.log(few / of_table)).max() < 0.2


def test_inflation_holds_nine_of_ten():
    scores = np.abs(np.random.default_rng(0).normal(size=4000))
    inflation, coverage = held_out.inflation(3 * scores)
    np.testing.assert_allclose(inflation, 3, rtol=0.05)
    np.testing.assert_allclose(coverage, 0.9, atol=0.02)


def test_few_held_out_cells_leave_the_error_bars_near_the_start():
    """Ten cells weigh as much as the start; cells of no weight are none."""
    scores, start = np.full(10, 3 * held_out.NORMAL_QUANTILE), held_out.START_INFLATION
    np.testing.assert_allclose(held_out.inflation(scores)[0], np.sqrt(3 * start))
    importance = np.repeat([2.0, 0.0], 5)
    np.testing.assert_allclose(held_out._grown(scores, importance), 3 ** (1 / 3) * start ** (2 / 3))


@pytest.mark.parametrize(
    ("count", "times", "size"),
    [(101, 5, 21), (2501, 2, 501), (20_001, 1, 2001), (200_001, 1, 10_001)],
)
def test_parts_that_are_held_out_do_not_overlap(count, times, size):
    parts = held_out.folds(count, 3)
    assert [len(part) for part in parts] == [size] * (times - 1) + [len(parts[-1])]
    assert size - times < len(parts[-1]) <= size
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert 0 <= together.min() <= together.max() < count


def test_the_check_by_hand():
    """Two cells in a column of deviation 2, one of deviation 10, none in the third."""
    cells_out = held_out.HeldOut(
        np.array([0, 0, 1]), np.array([1.0, 5.0, 30.0]), np.array([3.0, 5.0, 20.0]), np.ones(3)
    )
    bias, means = np.array([1.0, 5.0, 33.0]), np.array([1.0, 1.0, 10.0])
    found = held_out.check(cells_out, bias, means, 0.9, np.array([2.0, 10.0, 1.0]))
    np.testing.assert_allclose(found[:3], (3, np.sqrt(104 / 3), np.sqrt(3)))
    np.testing.assert_allclose(found[3:6], (0.9, np.sqrt(2 / 3), np.sqrt(8 / 3)))
    np.testing.assert_allclose(found.by_column, [np.sqrt(0.5), 1, np.nan])
    np.testing.assert_allclose(found.mean_by_column, [np.sqrt(2), 2, np.nan])


def test_held_out_cells_stand_for_the_missing():
    """The odds make of a normal value the same normal, moved by the tilt times its variance."""
    rng = np.random.default_rng(3)
    predicted = rng.normal(size=40_000)
    values = predicted + rng.normal(size=40_000)
    one = np.ones(40_000)
    for bars, further, widening in ((0.5, 1 / 0.5**2, 1 / 0.5), (1.0, 1.0, 1.0)):
        cells_out = held_out.HeldOut(np.zeros(40_000, int), values, predicted, bars * one)
        got = held_out.moved(cells_out, one, 0 * one, bars * one)
        np.testing.assert_allclose(got, (further, widening), rtol=0.05)
    # Bars too wide make a move too far, which is not taken back.
    assert held_out.moved(cells_out, one, 0 * one, 2 * one)[0] == 1


def test_a_cell_that_counts_three_times_is_three_cells():
    scores = np.abs(np.random.default_rng(0).normal(size=4000))
    importance = np.tile([3.0, 0.0, 0.5, 0.5], 1000)
    copies = np.concatenate([np.repeat(scores[::4], 6), scores[2::4], scores[3::4]])
    got = held_out._quantile(scores, importance)
    np.testing.assert_allclose(got, held_out._quantile(copies, np.ones(8000)), rtol=0.01)
