"""The estimator is one of scikit-learn's, by scikit-learn's own checks, and answers bad input."""

import copy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.utils.estimator_checks import parametrize_with_checks

import metamf_jax
from metamf_jax import MetaMFImputer
from metamf_jax.types import Entries


@parametrize_with_checks([MetaMFImputer()])
# Some checks make estimators or input that scikit-learn itself warns of.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def table(seed=0, shape=(20, 6), missing=0.3, scale=1.0, shift=0.0):
    """A rank-one table with effects: [N, M] with NaN, and the whole."""
    rng = np.random.default_rng(seed)
    whole = np.outer(rng.normal(size=shape[0]), rng.normal(size=shape[1]))
    whole += rng.normal(size=shape[1]) + 0.1 * rng.normal(size=shape)
    whole = shift + scale * whole
    holes = np.where(rng.random(shape) < missing, np.nan, whole)
    return holes, whole


@pytest.fixture(scope="module")
def fitted():
    holes, _ = table()
    return MetaMFImputer().fit(holes), holes


def test_fit_transform_equals_fit_then_transform(fitted):
    imputer, holes = fitted
    np.testing.assert_array_equal(MetaMFImputer().fit_transform(holes), imputer.transform(holes))


def test_observed_cells_come_back_and_missing_ones_beat_the_column_means(fitted):
    imputer, holes = fitted
    _, whole = table()
    completed = imputer.transform(holes)
    missing = np.isnan(holes)
    np.testing.assert_array_equal(completed[~missing], holes[~missing])
    means = np.broadcast_to(np.nanmean(holes, axis=0), holes.shape)
    error, of_means = (((x - whole)[missing] ** 2).mean() for x in (completed, means))
    assert error < 0.5 * of_means


def test_rows_fold_in_as_they_were_fitted(fitted):
    """In the fit their factors were solved in float32, jointly; here row by row in float64."""
    imputer, holes = fitted
    rows, columns = np.nonzero(np.isnan(holes))
    values, errors = imputer.predict(rows, columns, return_std=True)
    completed, bars = imputer.transform(holes, return_std=True)
    np.testing.assert_allclose(values, completed[rows, columns], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(errors, bars[rows, columns], rtol=1e-2)
    assert (bars[~np.isnan(holes)] == 0).all()


@pytest.mark.parametrize("standardize", ["matrix", "rows"])
def test_quantiles_are_those_of_the_error_bars_within_the_bounds(standardize):
    holes, _ = table()
    imputer = MetaMFImputer(standardize=standardize).fit(holes)
    low, middle, high = imputer.predict_quantiles(holes, quantiles=(0.05, 0.5, 0.95))
    values, errors = imputer.predict(holes, return_std=True)
    np.testing.assert_array_equal(middle, values)
    np.testing.assert_array_less(low, high)
    # Less where they are clipped.
    assert ((high - low) / (2 * errors)).max() == pytest.approx(1.6449, rel=1e-3)
    rows, columns = np.indices(holes.shape).reshape(2, -1)
    of_cells = imputer.predict_quantiles(rows, columns)
    np.testing.assert_allclose(of_cells, [low.ravel(), high.ravel()], rtol=2e-2, atol=1e-2)
    # By its own cells, where its row is not a fitted one.
    low, high = imputer.predict_quantiles(holes[:2] + 0.01)
    np.testing.assert_array_less(low, high)
    with pytest.raises(ValueError, match=r"predict_quantiles\(rows, columns\)"):
        imputer.predict_quantiles(scipy.sparse.csr_array(holes))


@pytest.mark.parametrize(("scale", "shift"), [(1000.0, 0.0), (0.01, -5.0), (1.0, 1e4)])
def test_scale_and_shift_free(fitted, scale, shift):
    imputer, holes = fitted
    moved = MetaMFImputer().fit_transform(shift + scale * holes)
    expected = shift + scale * imputer.transform(holes)
    spread = scale * np.nanstd(holes)
    np.testing.assert_allclose(moved / spread, expected / spread, atol=5e-3)


def test_layouts_agree(fitted):
    imputer, holes = fitted
    rows, columns = np.nonzero(~np.isnan(holes))
    stored = scipy.sparse.coo_array((holes[rows, columns], (rows, columns)), shape=holes.shape)
    listed = Entries(rows, columns, holes[rows, columns], holes.shape)
    expected = imputer.transform(holes)
    for X in (stored.tocsr(), stored.tocsc(), listed):
        np.testing.assert_array_equal(MetaMFImputer().fit_transform(X), expected)
    zeros = np.where(np.isnan(holes), -99, holes)
    np.testing.assert_array_equal(MetaMFImputer(missing_values=-99).fit_transform(zeros), expected)


def test_pandas_in_and_out(fitted):
    imputer, holes = fitted
    frame = pd.DataFrame(holes, columns=list("abcdef"), index=[f"r{n}" for n in range(len(holes))])
    completed = MetaMFImputer().set_output(transform="pandas").fit_transform(frame)
    assert list(completed.columns) == list("abcdef")
    assert list(completed.index) == list(frame.index)
    np.testing.assert_array_equal(completed.to_numpy(), imputer.transform(holes))


def test_empty_row_and_column_get_the_prior_and_a_wide_bar():
    holes, _ = table()
    holes[3], holes[:, 2] = np.nan, np.nan
    imputer = MetaMFImputer(keep_empty_features=True).fit(holes)
    completed, bars = imputer.transform(holes, return_std=True)
    assert np.isfinite(completed).all()
    others = np.delete(np.arange(len(holes)), 3)
    usual = [np.median(bars[others, m][bars[others, m] > 0]) for m in range(6)]
    # Columns differ in their noise, so that the empty row is compared within each.
    assert (bars[3] > usual).all()
    assert usual[2] > max(usual[:2] + usual[3:])


@pytest.mark.parametrize("value", [0.0, 3.0, -1e5])
def test_constant_values_are_answered_by_the_constant(value):
    holes = np.full((6, 4), value)
    holes[1, 2] = holes[5] = np.nan
    completed, bars = MetaMFImputer().fit(holes).transform(holes, return_std=True)
    np.testing.assert_allclose(completed, value, atol=1e-2 * max(abs(value), 1))
    assert np.isfinite(bars).all()


def test_one_cell():
    holes = np.full((3, 3), np.nan)
    holes[1, 1] = 7.0
    completed, bars = MetaMFImputer().fit(holes).transform(holes, return_std=True)
    np.testing.assert_allclose(completed, 7, atol=2)
    assert np.isfinite(bars).all()
    assert bars[0, 0] > 0.5


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.full((4, 3), np.nan), "no observed cell"),
        (np.array([[1.0, np.inf], [np.nan, 2.0]]), "infinity"),
        (np.array([["a", "b"], ["c", "d"]], dtype=object), "could not convert string to float"),
    ],
)
def test_bad_input(X, message):
    with pytest.raises(ValueError, match=message):
        MetaMFImputer().fit(X)


def test_ten_million_columns():
    """Columns without cells cost an index; a dense answer is refused in words."""
    rng = np.random.default_rng(0)
    rows, columns = np.divmod(np.arange(60), 12)
    wide = scipy.sparse.coo_array(
        (rng.normal(size=60), (rows, columns * 800_000)), shape=(20, 10**7)
    ).tocsr()
    imputer = MetaMFImputer().fit(wide)
    values, errors = imputer.predict([0, 19], [5, 9_999_999], return_std=True)
    assert np.isfinite(values).all()
    assert (errors > 0).all()
    with pytest.raises(ValueError, match=r"predict\(rows, columns\)"):
        imputer.transform(wide)


def test_rows_columns_and_cells_are_added():
    """Candidates are found anew, from all cells."""
    holes, _ = table()
    whole = MetaMFImputer().fit(holes)
    parts = MetaMFImputer().partial_fit(holes[:12]).partial_fit(holes[12:])
    np.testing.assert_array_equal(parts.transform(holes), whole.transform(holes))
    frame = pd.DataFrame(holes[:, :5], columns=list("abcde"))
    rows, columns = np.nonzero(~np.isnan(holes))
    new = columns == 5
    last = Entries(rows[new], columns[new], holes[rows[new], 5], holes.shape)
    wider = MetaMFImputer().fit(frame).update(last, ["f"])
    assert vars(wider)["feature_names_in_"].tolist() == list("abcdef")
    cells = np.array([0, 1, 2]), np.array([5, 5, 0])
    np.testing.assert_allclose(wider.predict(*cells), whole.predict(*cells), atol=0.1)
    with pytest.raises(ValueError, match="names of 1 further columns, got 0"):
        MetaMFImputer().fit(frame).update(last)
    with pytest.raises(ValueError, match="expected 6 columns, those of fit, got 7"):
        whole.partial_fit(Entries(rows, columns, holes[rows, columns], (20, 7)))


def test_unknown_options():
    with pytest.raises(ValueError, match="general"):
        MetaMFImputer(weights="genaral").fit(table()[0])
    with pytest.raises(ValueError, match="auto, matrix, columns or rows"):
        MetaMFImputer(standardize="cells").fit(table()[0])
    with pytest.raises(ValueError, match="at_random or by_value"):
        MetaMFImputer(missing="often").fit(table()[0])


def test_the_package_imports_the_estimator_when_it_is_asked_for():
    code = "import sys, metamf_jax.imputation.pipeline; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert metamf_jax.MetaMFImputer is MetaMFImputer
    with pytest.raises(AttributeError, match="nonsense"):
        metamf_jax.nonsense  # noqa: B018


@pytest.mark.parametrize("marker", [None, pd.NA, -1])
def test_what_stands_for_a_missing_value(fitted, marker):
    imputer, holes = fitted
    marked = np.where(np.isnan(holes), marker, holes.astype(object))
    completed = MetaMFImputer(missing_values=marker).fit_transform(marked)
    np.testing.assert_array_equal(completed, imputer.transform(holes))


def test_a_copy_is_made_unless_it_is_not_asked_for(fitted):
    imputer, holes = fitted
    given = holes.copy()
    imputer.transform(given)
    np.testing.assert_array_equal(given, holes)
    completed = MetaMFImputer(copy=False).fit(holes).transform(given)
    assert np.shares_memory(completed, given)
    np.testing.assert_array_equal(completed, imputer.transform(holes))


def test_an_indicator_comes_back_from_a_file(fitted, tmp_path):
    _, holes = fitted
    imputer = MetaMFImputer(add_indicator=True, missing_values=None).fit(holes)
    imputer.save(tmp_path / "fit.safetensors")
    loaded = MetaMFImputer.load(tmp_path / "fit.safetensors")
    np.testing.assert_array_equal(loaded.transform(holes), imputer.transform(holes))
    assert loaded.transform(holes).shape == (20, 12)
    assert list(loaded.get_feature_names_out()) == list(imputer.get_feature_names_out())


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (3, r"expected \(low, high\), got 3"),
        ((1, 0), "a low that is not above high"),
        ({7: (0, 1)}, "column 7, but the columns are 0 to 3"),
        ({"a": (0, 1)}, "column 'a', but the columns are 0 to 3"),
        ({1: (None, 0.5)}, "column 1, row 2 .*: 0.75 is not within the declared bounds -inf and"),
    ],
)
def test_bounds_that_cannot_be(bounds, message):
    X = np.zeros((6, 4))
    X[2, 1] = 0.75
    with pytest.raises(ValueError, match=message):
        MetaMFImputer(bounds=bounds).fit(X)


def test_bounds_hold_for_further_rows_and_columns(fitted):
    imputer = copy.copy(fitted[0]).set_params(bounds=(-100, 100))
    X = np.full((1, 6), np.nan)
    X[0, 0] = 101
    with pytest.raises(ValueError, match=r"101\.0 is not within the declared bounds -100 and 100"):
        imputer.transform(X)
    imputer.set_params(bounds=(0.25, 0.5))
    found = imputer.predict([0, 10**6], [10**6, 10**6])
    assert ((found >= 0.25) & (found <= 0.5)).all()
