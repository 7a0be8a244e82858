"""The pipeline around the learned prior: any size, any scale, honest error bars."""

import dataclasses
from unittest import mock

import numpy as np
import pytest

from metamf_jax import sums
from metamf_jax.data import synthetic
from metamf_jax.imputation import (
    completion,
    fitting,
    fold_in,
    held_out,
    pipeline,
    row_gaussian,
    scaling,
)
from metamf_jax.imputation.candidates import OF_ROWS
from metamf_jax.imputation.prior import load_prior
from metamf_jax.types import Entries

PRIOR = load_prior("general")


def select(entries, which):
    return Entries(
        entries.rows[which], entries.columns[which], entries.values[which], entries.shape
    )


@pytest.fixture(scope="module")
def split():
    entries = synthetic.low_rank(1, 25, 20, 2, density=0.7, noise=0.3, bias=0.7)[0].entries
    held = np.random.default_rng(0).random(len(entries.rows)) < 0.25
    return select(entries, ~held), select(entries, held)


@pytest.fixture(scope="module")
def completed(split):
    return pipeline.complete(PRIOR, split[0])


def test_beats_the_bias_model_of_a_matrix_with_factors(split, completed):
    values, errors = completion.predict(completed, split[1].rows, split[1].columns)
    error = np.sqrt(((values - split[1].values) ** 2).mean())
    assert error < 0.8 * completed.check.bias_rmse
    inside = np.abs(values - split[1].values) <= held_out.NORMAL_QUANTILE * errors
    assert 0.75 < inside.mean() <= 1
    assert completed.check.cells == len(split[0].rows)


def test_few_cells_of_many_factors_are_not_taken_for_noise():
    """A posterior that starts from too much noise loses them: an error of 0.72, not 0.55."""
    errors = []
    for seed in range(5):
        table = synthetic.low_rank(seed, 60, 45, 3, density=0.4, noise=0.3, bias=0.7)[0]
        held = np.random.default_rng(seed).random(len(table.entries.rows)) < 0.25
        completed = pipeline.complete(PRIOR, select(table.entries, ~held))
        out = select(table.entries, held)
        values, _ = completion.predict(completed, out.rows, out.columns)
        errors.append(np.sqrt(((values - out.values) ** 2).mean()))
    assert np.mean(errors) < 0.62


def test_same_seed_same_answer(split, completed):
    again = pipeline.complete(PRIOR, split[0])
    for one, other in zip(completed.cells, again.cells, strict=True):
        np.testing.assert_array_equal(one, other)


def test_permuted_rows_and_columns_are_answered_alike(split):
    """Held-out cells are drawn from the list, which keeps its order here."""
    train, _ = split
    rng = np.random.default_rng(3)
    rows, columns = (rng.permutation(size).astype(np.int32) for size in train.shape)
    moved = Entries(rows[train.rows], columns[train.columns], train.values, train.shape)
    one, other = (pipeline.complete(PRIOR, e) for e in (train, moved))
    expected, _ = completion.predict_rows(one, 0, train.shape[0])
    got, _ = completion.predict_rows(other, 0, train.shape[0])
    np.testing.assert_allclose(got[rows][:, columns], expected, atol=2e-3)


def test_a_table_of_unlike_columns_is_standardised_by_column(split):
    train, test = split
    units = 10.0 ** (np.arange(20) % 5)
    unlike, held = (
        Entries(e.rows, e.columns, e.values * units[e.columns] + 5 * units[e.columns], e.shape)
        for e in (train, test)
    )
    completed = pipeline.complete(PRIOR, unlike)
    assert completed.standardized_by == "columns"
    values, _ = completion.predict(completed, held.rows, held.columns)
    left = (values - held.values) / units[held.columns]
    assert np.sqrt((left**2).mean()) < 0.9


def test_kernels_and_xla_give_the_same_completion(split, completed):
    with sums.using_backend("xla"):
        other = pipeline.complete(PRIOR, split[0])
    for one, another in zip(other.check, completed.check, strict=True):
        np.testing.assert_allclose(one, another, rtol=5e-3)
    found = (completion.predict_rows(c, 0, split[0].shape[0]) for c in (completed, other))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-3, rtol=5e-3)


def test_few_cells_are_answered_without_a_check():
    entries = Entries(
        np.array([0, 1], np.int32), np.array([0, 2], np.int32), np.array([1.0, 3.0]), (4, 3)
    )
    completed = pipeline.complete(PRIOR, entries)
    assert completed.check.cells == 0
    values, errors = completion.predict_rows(completed, 0, 4)
    assert np.isfinite(values).all()
    assert (errors > 0.1).all()


@pytest.mark.parametrize(
    ("rows", "columns", "values", "message"),
    [
        ([], [], [], "no observed cell"),
        ([0, 0], [1, 1], [1, 2], "row 0, column 1 is given twice"),
        ([0, 2], [0, 0], [1, 2], "rows from 0 to 1"),
        ([0, 1], [0, -1], [1, 2], "columns from 0 to 2"),
        ([0, 1], [0, 0], [1, np.inf], "finite observed values, got inf at row 1"),
    ],
)
def test_bad_cells(rows, columns, values, message):
    entries = Entries(
        np.array(rows, np.int32), np.array(columns, np.int32), np.array(values, float), (2, 3)
    )
    with pytest.raises(ValueError, match=message):
        pipeline.complete(PRIOR, entries)


def test_unknown_rows_and_columns_are_answered_like_empty_ones(completed):
    train_rows, train_columns = completed.shape
    rows, columns = np.array([0, 99, 0, 99]), np.array([0, 0, 77, 77])
    values, errors = completion.predict(completed, rows, columns)
    assert np.isfinite(values).all()
    # The less is known, the wider.
    assert errors[0] < min(errors[1:3])
    assert max(errors[1:3]) < errors[3]
    same, _ = completion.predict(completed, [train_rows], [train_columns])
    np.testing.assert_array_equal(same, values[3:])
    with pytest.raises(ValueError, match="column numbers from 0, got -1"):
        completion.predict(completed, [0], [-1])


def test_a_narrow_table_is_answered_by_its_rows(monkeypatch):
    """One column is the square of another: neither effects nor factors can say that."""
    rng = np.random.default_rng(5)
    along, other = rng.normal(size=(2, 120))
    table = np.stack([along, 10 * along + other, along**2, 300 - 40 * along], axis=1)
    table += 0.1 * table.std(axis=0) * rng.normal(size=table.shape)
    observed = rng.random(table.shape) < 0.8
    rows, columns = (x.astype(np.int32) for x in np.nonzero(observed))
    entries = Entries(rows, columns, table[rows, columns], table.shape)
    completed = pipeline.complete(PRIOR, entries)
    assert completed.standardized_by == "columns"
    np.testing.assert_allclose(sum(completed.weights.values()), 1)
    assert (sum(completed.weights[name] for name in OF_ROWS)[:4] > 0.5).all()
    units = table.std(axis=0)
    values, errors = completion.predict_rows(completed, 0, 120)
    left = ((values - table) / units)[~observed]
    with monkeypatch.context() as patched:
        patched.setattr(row_gaussian, "suits", lambda *_: False)
        factors = pipeline.complete(PRIOR, entries)
    assert not any(factors.weights[name].any() for name in OF_ROWS if name in factors.weights)
    others = ((completion.predict_rows(factors, 0, 120)[0] - table) / units)[~observed]
    assert np.sqrt((left**2).mean()) < 0.7 * np.sqrt((others**2).mean())
    inside = (np.abs(left) <= held_out.NORMAL_QUANTILE * (errors / units)[~observed]).mean()
    assert 0.8 < inside < 0.98
    # Rows, empty ones too, are folded in as they were fitted; others have wider error bars.
    folded = fold_in.fold_in_rows(completed, table, observed)
    for one, other in zip(folded, (values, errors), strict=True):
        np.testing.assert_allclose(one / units, other / units, atol=1e-3)
    unknown, wide = completion.predict(completed, [500] * 5, np.arange(5))
    assert np.isfinite(unknown).all()
    assert (wide[:4] > np.median(errors, axis=0)).all()
    assert wide[4] > 0


def test_a_table_of_very_many_rows_is_fitted_on_some(monkeypatch):
    """All rows are folded in; a column with few cells keeps them."""
    rng = np.random.default_rng(3)
    table = rng.normal(size=(600, 3)) @ rng.normal(size=(3, 5)) + 0.3 * rng.normal(size=(600, 5))
    table *= [1, 10, 100, 1000, 1]
    observed = rng.random(table.shape) < 0.7
    observed[:, 4], observed[7] = np.arange(600) >= 588, False
    rows, columns = (x.astype(np.int32) for x in np.nonzero(observed))
    entries = Entries(rows, columns, table[rows, columns], (600, 6))
    monkeypatch.setattr(pipeline, "_MOST_FITTED_ROWS", 200)
    monkeypatch.setattr(pipeline, "_FEWEST_FITTED_CELLS", 20)
    completed = pipeline.complete(PRIOR, entries)
    assert completed.check.cells < 900 < len(rows)
    values, errors = completion.predict_rows(completed, 0, 600)
    assert values.shape == (600, 6)
    units = table.std(axis=0)[:4]
    left = ((values[:, :4] - table[:, :4]) / units)[~observed[:, :4]]
    assert np.sqrt((left**2).mean()) < 0.75
    inside = np.abs(left) <= held_out.NORMAL_QUANTILE * (errors[:, :4] / units)[~observed[:, :4]]
    assert 0.85 < inside.mean() < 0.95
    every = np.pad(table, ((0, 0), (0, 1))), np.pad(observed, ((0, 0), (0, 1)))
    for one, other in zip(fold_in.fold_in_rows(completed, *every), (values, errors), strict=True):
        np.testing.assert_allclose(one[:, :4] / units, other[:, :4] / units, atol=1e-3)
    unknown, _ = completion.predict(completed, [7, 900], [0, 0])
    assert unknown[0] == unknown[1]


def test_what_is_missing_for_its_own_value_is_imputed_larger():
    """Larger values are the likelier to be missing; the mean of the missing is not theirs."""
    rng = np.random.default_rng(7)
    root = rng.normal(size=(4, 4))
    table = rng.normal(size=(300, 4)) @ root + rng.normal(size=(300, 4))
    table = (table - table.mean(axis=0)) / table.std(axis=0) * [1, 10, 100, 1000]
    units = table.std(axis=0)
    observed = rng.logistic(size=table.shape) < 0.5 - 1.5 * (table - table.mean(axis=0)) / units
    rows, columns = (x.astype(np.int32) for x in np.nonzero(observed))
    entries = Entries(rows, columns, table[rows, columns], table.shape)
    assert not pipeline.complete(PRIOR, entries).tilt.any()
    completed = pipeline.complete(PRIOR, entries, missing="by_value")
    assert (completed.tilt[:4] > 0.8).all()
    left, inside = {}, {}
    at_random = dataclasses.replace(completed, tilt=0 * completed.tilt, widening=1.0)
    for name, one in (("moved", completed), ("at random", at_random)):
        values, errors = completion.predict_rows(one, 0, 300)
        left[name] = ((table - values) / units)[~observed]
        inside[name] = (np.abs(table - values) <= held_out.NORMAL_QUANTILE * errors)[~observed]
    assert np.abs(left["moved"].mean()) < 0.3 * left["at random"].mean()
    assert (left["moved"] ** 2).mean() < 0.7 * (left["at random"] ** 2).mean()
    assert inside["at random"].mean() < 0.75
    assert 0.85 < inside["moved"].mean() < 0.97
    # Rows folded in are moved alike.
    folded, bars = fold_in.fold_in_rows(completed, table, observed)
    values, errors = completion.predict_rows(completed, 0, 300)
    np.testing.assert_allclose(folded / units, values / units, atol=1e-3)
    np.testing.assert_allclose(bars / units, errors / units, atol=1e-3)


def test_too_few_cells_to_check_are_answered_by_factors_too():
    """Nine cells of rows and columns of two opposite kinds: a bias model knows nothing of those."""
    squares = {"as it starts": 0, "bias": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        table = np.outer(*rng.choice([-1.0, 1.0], (2, 4))) + 0.1 * rng.normal(size=(4, 4))
        at = np.sort(rng.choice(16, 9, replace=False))
        rows, columns = (x.astype(np.int32) for x in np.divmod(at, 4))
        entries = Entries(rows, columns, table[rows, columns], table.shape)
        for name, weights in (("as it starts", held_out.START_WEIGHTS), ("bias", {"bias": 1.0})):
            with mock.patch.object(held_out, "START_WEIGHTS", weights):
                completed = pipeline.complete(PRIOR, entries)
            assert completed.check.cells == 0
            left = table - completion.predict_rows(completed, 0, 4)[0]
            left[rows, columns] = 0
            squares[name] += (left**2).sum()
    assert squares["as it starts"] < 0.9 * squares["bias"]


def listed(table, observed):
    rows, columns = (x.astype(np.int32) for x in np.nonzero(observed))
    return Entries(rows, columns, table[rows, columns], table.shape)


def three_columns(seed=0, num_rows=80):
    """Rows of one factor and noise, deviations near one: [N, 5], and 75% of its cells observed."""
    rng = np.random.default_rng(seed)
    table = np.outer(rng.normal(size=num_rows), [1.0, -1.0, 0.8, 1.2, 0.9])
    table += 0.4 * rng.normal(size=table.shape)
    return table, rng.random(table.shape) < 0.75


@pytest.mark.parametrize(
    ("factor", "offset"),
    [(5e8, 3e7), (1e-6, 0.0), (86_400.0, 1.7e9), (1e200, 0.0), (1e-200, 0.0), (3.0, 1e8)],
)
def test_a_columns_unit_changes_no_answer_but_its_own_by_that(factor, offset):
    table, observed = three_columns()
    units, offsets = np.ones(5), np.zeros(5)
    units[2], offsets[2] = factor, offset
    expected = pipeline.complete(PRIOR, listed(table, observed), standardize="columns")
    moved = pipeline.complete(PRIOR, listed(table * units + offsets, observed))
    assert moved.standardized_by == "columns"
    for fold in (False, True):
        one, other = (
            fold_in.fold_in_rows(fit, values, observed)
            if fold
            else completion.predict_rows(fit, 0, len(table))
            for fit, values in ((expected, table), (moved, table * units + offsets))
        )
        # A column of positive values keeps its sign, which these have not.
        np.testing.assert_allclose((other[0] - offsets) / units, one[0], atol=2e-3)
        np.testing.assert_allclose(other[1] / units, one[1], rtol=2e-3)


def test_1e13_beside_1e_minus_6_costs_neither():
    table, observed = three_columns()
    units = np.array([1e13, 1e-6, 1.0, 1.0, 1.0])
    values, _ = completion.predict_rows(
        pipeline.complete(PRIOR, listed(table * units, observed)), 0, len(table)
    )
    left = ((values / units - table) / table.std(axis=0))[:, :2]
    assert (np.sqrt((left[~observed[:, :2]] ** 2).mean()) < 0.6).all()


@pytest.mark.parametrize(("offset", "factor"), [(1e8, 1.0), (0.0, 1e200), (0.0, 1e-200)])
def test_one_large_offset_or_unit_for_all(offset, factor):
    table, observed = three_columns()
    one, other = (
        completion.predict_rows(
            pipeline.complete(PRIOR, listed(t, observed), standardize="matrix"), 0, 80
        )
        for t in (table, factor * table + offset)
    )
    np.testing.assert_allclose((other[0] - offset) / factor, one[0], atol=2e-3)
    np.testing.assert_allclose(other[1] / factor, one[1], rtol=2e-3)


def test_one_odd_column_among_twenty_is_seen(split):
    train, test = split
    units = np.ones(20)
    assert scaling.unlike_sides(train) is None
    units[7] = 1e5
    unlike = dataclasses.replace(train, values=train.values * units[train.columns])
    assert scaling.unlike_sides(unlike) == "columns"
    assert scaling.unlike_sides(scaling.transpose(unlike)) == "rows"
    expected, got = (
        completion.predict(pipeline.complete(PRIOR, e), test.rows, test.columns)[0]
        for e in (train, unlike)
    )
    left, had = got / units[test.columns] - test.values, expected - test.values
    assert np.sqrt((left**2).mean()) < 1.1 * np.sqrt((had**2).mean())


def test_a_table_and_its_transpose_are_answered_alike():
    table, observed = three_columns()
    table = table * [1, 10, 1e3, 1e5, 0.1] + [0, 50, -1e4, 0, 3]
    tall = pipeline.complete(PRIOR, listed(table, observed))
    wide = pipeline.complete(PRIOR, listed(table.T, observed.T))
    assert (tall.standardized_by, wide.standardized_by) == ("columns", "rows")
    np.testing.assert_allclose(wide.check.relative, tall.check.relative, rtol=0.05)
    for one, other in zip(
        completion.predict_rows(wide, 0, 5), completion.predict_rows(tall, 0, 80), strict=True
    ):
        np.testing.assert_allclose(one.T / table.std(axis=0), other / table.std(axis=0), atol=1e-3)
    rows, columns = np.nonzero(~observed)
    np.testing.assert_array_equal(
        completion.predict(wide, columns, rows), completion.predict(tall, rows, columns)
    )
    # Rows fitted are folded in as they were; others by their own cells, in their own unit.
    folded, _ = fold_in.fold_in_rows(wide, table.T, observed.T)
    np.testing.assert_array_equal(folded, completion.predict_rows(wide, 0, 5)[0])
    row = 1e4 * table.T[:1] + 7
    further, bars = fold_in.fold_in_rows(wide, row, observed.T[:1])
    gaps = ~observed[:, 0]
    assert np.corrcoef(further[0][gaps], row[0][gaps])[0, 1] > 0.8
    assert (np.abs(further - row) < held_out.NORMAL_QUANTILE * bars)[0][gaps].mean() > 0.7
    empty, _ = fold_in.fold_in_rows(wide, row, np.zeros((1, 80), bool))
    assert np.isfinite(empty).all()
    more = fold_in.fold_in_columns(wide, table.T[:, :3], observed.T[:, :3])[0]
    assert more.shape == (5, 3)


def test_no_answer_leaves_the_sign_of_its_column():
    rng = np.random.default_rng(2)
    table = np.exp(1.5 * three_columns()[0])
    table[:, 1] *= -1
    table[:, 2] = rng.normal(size=80)
    observed = rng.random(table.shape) < 0.7
    for by in ("matrix", "columns"):
        completed = pipeline.complete(PRIOR, listed(table, observed), standardize=by)
        values, _ = completion.predict_rows(completed, 0, 80)
        assert (values[:, [0, 3, 4]] >= 0).all()
        assert (values[:, 1] <= 0).all()
        assert (values[:, 2] < 0).any()


def test_the_check_is_by_column_in_its_own_unit():
    table, observed = three_columns()
    table[:, 3] = np.random.default_rng(1).normal(size=80)
    units = np.array([1.0, 1e8, 1.0, 10.0, 1e-3])
    observed[:, 4] = False
    check = pipeline.complete(PRIOR, listed(table * units, observed)).check
    assert check.relative < 0.85 * check.mean_relative
    np.testing.assert_allclose(check.mean_relative, 1, atol=0.1)
    assert np.nanargmax(check.by_column) == 3
    np.testing.assert_allclose(check.by_column[3], check.mean_by_column[3], rtol=0.15)
    assert (check.by_column[:3] < 0.8).all()
    assert np.isnan(check.by_column[4])


def test_columns_that_nothing_predicts_are_answered_by_their_means():
    rng = np.random.default_rng(4)
    table = rng.normal(size=(120, 6)) * 10.0 ** np.arange(6)
    observed = rng.random(table.shape) < 0.6
    values, _ = completion.predict_rows(pipeline.complete(PRIOR, listed(table, observed)), 0, 120)
    means = np.nanmean(np.where(observed, table, np.nan), axis=0)
    error, of_means = (
        np.sqrt(((((a - table) / table.std(axis=0))[~observed]) ** 2).mean())
        for a in (values, means)
    )
    assert error < 1.03 * of_means


def test_unknown_ways_and_reasons():
    entries = listed(*three_columns())
    with pytest.raises(ValueError, match="matrix, columns, rows, got 'cells'"):
        pipeline.complete(PRIOR, entries, standardize="cells")
    with pytest.raises(ValueError, match="at_random or by_value, got 'often'"):
        pipeline.complete(PRIOR, entries, missing="often")


@pytest.mark.parametrize("by", ["matrix", "columns"])
def test_further_columns_are_folded_in(by):
    """Not much worse than had they been there at the fit, where they tell more of the rows."""
    entries = synthetic.low_rank(1, 60, 45, 2, density=0.7, noise=0.3, bias=0.7)[0].entries
    held = np.random.default_rng(0).random(len(entries.rows)) < 0.25
    train, test = select(entries, ~held), select(entries, held & (entries.columns >= 30))
    values = np.full(train.shape, np.nan)
    values[train.rows, train.columns] = train.values
    first = dataclasses.replace(select(train, train.columns < 30), shape=(60, 30))
    fitted = pipeline.complete(PRIOR, first, standardize=by)
    before = completion.predict_rows(fitted, 0, 60)
    found, errors = fold_in.fold_in_columns(fitted, values[:, 30:], ~np.isnan(values[:, 30:]))
    at = test.rows, test.columns - 30
    together = completion.predict(
        pipeline.complete(PRIOR, train, standardize=by), test.rows, test.columns
    )[0]
    left, had = found[at] - test.values, together - test.values
    assert np.sqrt((left**2).mean()) < 1.25 * np.sqrt((had**2).mean())
    assert (np.abs(left) <= held_out.NORMAL_QUANTILE * errors[at]).mean() > 0.8
    for one, other in zip(completion.predict_rows(fitted, 0, 60), before, strict=True):
        np.testing.assert_array_equal(one, other)
    nothing = np.full((60, 1), np.nan)
    empty, wide = fold_in.fold_in_columns(fitted, nothing, ~np.isnan(nothing))
    assert np.isfinite(empty).all()
    assert wide.mean() > errors.mean()
    with pytest.raises(ValueError, match="of 60 rows, got shapes"):
        fold_in.fold_in_columns(fitted, nothing[:3], np.isnan(nothing[:3]))


def test_a_settled_column_is_answered_by_its_value():
    table = np.random.default_rng(0).normal(size=(60, 4))
    table[:, 2] = np.where(np.arange(60) == 5, 40.0, -0.2265)
    observed = np.random.default_rng(1).random(table.shape) < 0.7
    observed[5, 2] = True
    completed = pipeline.complete(PRIOR, listed(table, observed))
    values, errors = completion.predict_rows(completed, 0, 60)
    np.testing.assert_array_equal(values[:, 2], -0.2265)
    assert (errors[:, 2] > 0).all()
    found = fold_in.fold_in_rows(completed, table, observed)[0]
    np.testing.assert_array_equal(found[:, 2], -0.2265)
    at = completion.predict(completed, np.array([3, 60, 3]), np.array([2, 2, 4]))[0]
    np.testing.assert_array_equal(at[:2], -0.2265)


def test_intervals_of_columns_that_add_up_hold_as_those_of_others():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 5))
    values[:, 2] = values[:, 0] + values[:, 1]
    values[:, 4] += values[:, 3]
    gone = rng.random(values.shape) < 0.3
    answered = pipeline.complete(PRIOR, listed(values, ~gone))
    found, errors = completion.predict(answered, *np.nonzero(gone))
    inside = np.abs(found - values[gone]) <= held_out.NORMAL_QUANTILE * errors
    in_sum = np.nonzero(gone)[1] < 3
    assert inside[in_sum].mean() > 0.8
    assert 0.8 < inside[~in_sum].mean() < 0.98


def test_a_unit_is_changed_for_errors_that_are_clearly_less():
    rng = np.random.default_rng(0)
    first = rng.exponential(size=200)
    noise = 0.5 * rng.normal(size=200)
    by_chance = first - 0.01 + noise - noise.mean()
    assert pipeline._best(np.array([first, by_chance])) == 0
    assert pipeline._best(np.array([first, first - 0.1])) == 1


def test_means_of_few_cells_are_drawn_to_the_mean_of_all():
    rng = np.random.default_rng(1)
    columns = np.append(np.repeat(np.arange(10), 40), 10)
    effects = np.append(rng.normal(size=10), 0.0)
    values = effects[columns] + rng.normal(size=401)
    values[-1] = 3.0
    values -= values.mean()
    means = fitting._means(Entries(np.arange(401), columns, values, (401, 11)), 12)
    plain = np.bincount(columns, values) / np.bincount(columns)
    np.testing.assert_allclose(means[:10], plain[:10], rtol=0.1)
    assert 0.1 * plain[10] < means[10] < 0.8 * plain[10]
    assert means[11] == 0
