"""Tables of mixed columns, completed by draws of one model."""

import jax
import numpy as np
import pandas as pd
import pytest

from metamf_jax.imputation import frames, mixed
from metamf_jax.imputation.mixed import MixedConfig

SHORT = MixedConfig(burn_in=20, num_draws=60)


def survey(count=250, seed=0):
    """Columns of all types that one hidden number tells, and which cells are missing."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=count)

    def seen(noise):
        return hidden + noise * rng.normal(size=count)

    frame = pd.DataFrame(
        {
            "size": 1e13 + 1e12 * seen(0.3),
            "speck": 1e-6 * np.exp(1.5 * seen(0.3)),
            "children": rng.poisson(np.exp(1 + 0.5 * hidden)),
            "grade": pd.Categorical.from_codes(
                np.searchsorted([-1, 0.5], seen(0.3)), ["low", "middle", "high"], ordered=True
            ),
            "owner": seen(0.3) > 0,
            "town": np.array(["Ulm", "Bonn", "Jena"])[np.searchsorted([-0.5, 0.5], seen(0.3))],
            "coin": rng.random(count) < 0.7,
        }
    )
    return frame, rng.random(frame.shape) < 0.25


@pytest.fixture(scope="module")
def fitted():
    frame, missing = survey()
    described = frames.describe(frame, {"children": "integer"})
    whole = frames.encode(frame, described)
    values = np.where(missing, np.nan, whole)
    model = mixed.fit(values, described, SHORT)
    return model, values, whole, mixed.answer(model, values, (0.05, 0.95))


def test_types_of_the_survey(fitted):
    types = [column.type for column in fitted[0].columns]
    assert types == ["numeric"] * 2 + ["integer", "ordinal", "binary", "nominal", "binary"]


def test_numbers_are_answered_better_than_by_medians_with_honest_errors(fitted):
    _, values, whole, answers = fitted
    for m in (0, 1, 2):
        lost = np.isnan(values[:, m])
        error = answers.values[lost, m] - whole[lost, m]
        middle = np.nanmedian(values[:, m]) - whole[lost, m]
        assert np.abs(error).mean() < 0.92 * np.abs(middle).mean()
        inside = np.abs(error) < 1.645 * answers.errors[lost, m]
        assert 0.8 < inside.mean() <= 1
        low, high = answers.quantiles[:, lost, m]
        assert 0.8 < ((low <= whole[lost, m]) & (whole[lost, m] <= high)).mean() <= 1
    assert (answers.values[:, 2] == np.rint(answers.values[:, 2])).all()
    assert (answers.values[:, 2] >= 0).all()
    np.testing.assert_array_equal(answers.errors[~np.isnan(values)], 0)


def test_levels_are_answered_better_than_by_modes_with_honest_chances(fitted):
    _, values, whole, answers = fitted
    for m in (3, 4, 5):
        lost = np.isnan(values[:, m])
        true = whole[lost, m].astype(int)
        chances = answers.chances[m][lost]
        np.testing.assert_allclose(chances.sum(axis=1), 1)
        shares = np.bincount(values[~lost, m].astype(int)) / (~lost).sum()
        wrong = (answers.values[lost, m] != true).mean()
        assert wrong < 0.75 * (true != shares.argmax()).mean()
        score = -np.log(chances[np.arange(len(true)), true]).mean()
        assert score < 0.85 * -np.log(shares[true]).mean()
        np.testing.assert_allclose(answers.errors[lost, m], 1 - chances.max(axis=1))
        observed = np.flatnonzero(~lost)
        assert (answers.chances[m][observed, values[observed, m].astype(int)] == 1).all()


def test_a_column_that_nothing_predicts_is_answered_by_its_mode(fitted):
    _, values, whole, answers = fitted
    lost = np.isnan(values[:, -1])
    assert (answers.values[lost, -1] == 1).mean() > 0.9
    true, chances = whole[lost, -1].astype(int), answers.chances[6][lost]
    shares = np.bincount(values[~lost, -1].astype(int)) / (~lost).sum()
    score = -np.log(chances[np.arange(len(true)), true]).mean()
    assert score < -np.log(shares[true]).mean() + 0.03


def test_the_weights_of_distributions_are_by_what_they_said_of_cells():
    rng = np.random.default_rng(2)
    cells = rng.random(2000) < 0.7 * 0.9 + 0.3 * 0.2
    said = np.where(cells[:, None], [0.9, 0.2], [0.1, 0.8])
    prior = np.array([0.5, 0.5])
    np.testing.assert_allclose(mixed._weights(said, prior, 1.0), [0.7, 0.3], atol=0.05)
    np.testing.assert_array_equal(mixed._weights(said[:0], prior, 20.0), prior)


def test_imputations_keep_what_was_observed_and_differ_elsewhere(fitted):
    model, values, _, answers = fitted
    tables = mixed.impute(model, values, 5)
    observed = ~np.isnan(values)
    for table in tables:
        np.testing.assert_array_equal(table[observed], values[observed])
        assert np.isfinite(table).all()
        for m, chances in answers.chances.items():
            assert set(table[:, m]) <= set(range(chances.shape[1]))
        assert (table[:, 2] == np.rint(table[:, 2])).all()
    spread = np.std(tables, axis=0)
    assert (spread[~observed][:, None] > 0).mean() > 0.5
    # Draws have the variance of what they stand for, not that of a mean.
    lost = ~observed[:, 0]
    assert np.mean([table[lost, 0].std() for table in tables]) > answers.values[lost, 0].std()


def test_further_rows_are_answered_as_fitted_ones(fitted):
    model, values, _, answers = fitted
    part = mixed.answer(model, values[:40])
    for m in (0, 1):
        spread = np.nanstd(values[:, m])
        assert np.abs(part.values[:, m] - answers.values[:40, m]).max() < 0.5 * spread
    for m in (3, 5):
        assert np.abs(part.chances[m] - answers.chances[m][:40]).mean() < 0.05


def test_units_do_not_matter(fitted):
    model, values, _, answers = fitted
    scale = np.array([1e-20, 1e9, 1, 1, 1, 1, 1.0])
    moved = mixed.fit(scale * values, model.columns, SHORT)
    found = mixed.answer(moved, scale * values, (0.05, 0.95))
    for m in range(7):
        np.testing.assert_allclose(found.values[:, m], scale[m] * answers.values[:, m], rtol=1e-6)


def test_the_same_seed_the_same_answers(fitted):
    model, values, _, _ = fitted
    again = mixed.fit(values, model.columns, SHORT)
    for left, right in zip(
        jax.tree.leaves(again.parameters), jax.tree.leaves(model.parameters), strict=True
    ):
        np.testing.assert_array_equal(left, right)
    for left, right in zip(
        mixed.impute(model, values, 2), mixed.impute(again, values, 2), strict=True
    ):
        np.testing.assert_array_equal(left, right)


def test_columns_with_one_value_or_none_keep_their_place():
    frame = pd.DataFrame({"a": [1.5, None, 1.5], "b": [np.nan] * 3, "c": ["x", "x", None]})
    described = frames.describe(frame)
    values = frames.encode(frame, described)
    model = mixed.fit(values, described, MixedConfig(burn_in=2, num_draws=3))
    for table in [*mixed.impute(model, values, 2), mixed.answer(model, values).values]:
        np.testing.assert_array_equal(table[:, [0, 2]], [[1.5, 0]] * 3)
        assert np.isnan(table[:, 1]).all()
    filled = frames.decode(frame, described, mixed.answer(model, values).values)
    assert filled["c"].tolist() == ["x"] * 3
    assert filled["b"].isna().all()


def test_wide_tables_have_their_categories_cut_or_are_refused():
    rng = np.random.default_rng(1)
    names = np.array([f"n{i}" for i in range(30)])
    frame = pd.DataFrame({f"c{m}": names[rng.integers(0, 30, 60)] for m in range(60)})
    described = frames.describe(frame)
    values = frames.encode(frame, described)
    values[0, 0] = np.nan
    model = mixed.fit(values, described, MixedConfig(burn_in=1, num_draws=1))
    assert model.parameters.mean.shape == (1, 60 * 7)
    assert np.isfinite(mixed.impute(model, values, 1)[0]).all()
    with pytest.raises(ValueError, match="at most 500 columns"):
        mixed.fit(np.tile(values, (1, 9)), described * 9)


def test_bad_requests(fitted):
    model, values, *_ = fitted
    with pytest.raises(ValueError, match="1 to 60 imputations"):
        mixed.impute(model, values, 61)
    with pytest.raises(ValueError, match="rows and columns"):
        mixed.fit(np.zeros((0, 3)), ())
    with pytest.raises(ValueError, match="burn-in"):
        MixedConfig(burn_in=-1)
