"""Tables of features beside a matrix: as users give them, and what they are worth."""

import dataclasses

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse

from metamf_jax import MetaMFImputer
from metamf_jax.imputation import completion, feature_tables
from metamf_jax.imputation.feature_tables import Names
from metamf_jax.types import Entries

NAMED = Names(["ann", "bob", "cid"], True)
COLUMNS = {
    "age": [30, None, 20],
    "town": ["Ulm", "Bonn", None],
    "zip:category": [89073, 53111, 89073],
    "likes": [["tea", "cake"], [], ["tea"]],
    "member": [True, False, None],
}
IDS = ["bob", "dan", "ann"]


def frames():
    indexed = pd.DataFrame(COLUMNS, index=pd.Index(IDS, name="user"))
    ids = {"id": IDS}
    named = pd.DataFrame(ids | COLUMNS)
    return [indexed, named, pl.DataFrame(COLUMNS | ids), pa.table(ids | COLUMNS)]


@pytest.mark.parametrize("frame", frames(), ids=["index", "column", "polars", "pyarrow"])
def test_frames_say_the_same(frame):
    table, lines = feature_tables.read(frame, NAMED, "row")
    np.testing.assert_array_equal(lines, [2, 0, -1])
    assert table.ids.tolist() == IDS
    found = {column.name: (column.kind, [*column.values]) for column in table.columns}
    kinds = [kind for kind, _ in found.values()]
    assert kinds == ["number", "category", "category", "labels", "number"]
    np.testing.assert_array_equal(found["age"][1], [30, np.nan, 20])
    np.testing.assert_array_equal(found["member"][1], [1, 0, np.nan])
    assert found["town"][1] == ["Ulm", "Bonn", ""]
    assert found["zip"][1] == ["89073", "53111", "89073"]
    assert found["likes"][1] == ["tea|cake", "", "tea"]


def test_lines_without_ids_are_in_order():
    unnamed = Names(range(3), False)
    for told in (np.arange(6.0).reshape(3, 2), np.arange(3), pd.DataFrame(COLUMNS)):
        _, lines = feature_tables.read(told, unnamed, "row")
        np.testing.assert_array_equal(lines, [0, 1, 2])
    _, lines = feature_tables.read(pd.DataFrame({"id": [2, 0], "x": [1, 2]}), unnamed, "row")
    np.testing.assert_array_equal(lines, [1, -1, 0])
    times = pd.DataFrame({"born": pd.to_datetime(["2001-02-03", None, "2002-02-03"])})
    table, _ = feature_tables.read(times, unnamed, "row")
    born = table.columns[0].values
    assert born[2] - born[0] == 365 * 86400e6
    assert np.isnan(born[1])
    assert feature_tables.read(None, unnamed, "row") is None


@pytest.mark.parametrize(
    ("told", "names", "message"),
    [
        (np.zeros((4, 2)), NAMED, "expected 3 rows, one for each row of X, got 4"),
        (pd.DataFrame({"x": [1, 2]}), NAMED, "expected 3 rows, one for each row of X, got 2"),
        (np.zeros((3, 2, 2)), NAMED, r"a line for each row, got shape \(3, 2, 2\)"),
        (np.array([["a"], ["b"], ["c"]]), NAMED, "expected numbers in an array"),
        (
            np.array([1, np.inf, 2]),
            NAMED,
            "expected finite numbers in column '0', got inf in row 1",
        ),
        (
            pd.DataFrame({"id": ["ann", "ann"], "x": [1, 2]}),
            NAMED,
            "the id 'ann' of row 1 is there already, in row 0; keep one",
        ),
        (pd.DataFrame({"id": ["ann", None], "x": [1, 2]}), NAMED, "an id in row 1, got a blank"),
        (pd.DataFrame({"id": ["ann"]}), NAMED, "one or more columns beside the ids, got none"),
        (
            pd.DataFrame({"x:number": ["1", "old", "3"]}),
            NAMED,
            "expected a number in column 'x', got 'old' in row 1; correct it, or name the column",
        ),
        (
            pd.DataFrame({"x": [1, 2, 3]}, index=pd.Index([1, 2, 3])),
            Names(range(3), False),
            "ids are their numbers from 0 to 2, got '3'; give X names",
        ),
        (pa.table({"x": [{"a": 1}] * 3}), NAMED, "text, categories or lists of labels in column"),
    ],
)
def test_mistakes_are_told(told, names, message):
    with pytest.raises(ValueError, match=message) as raised:
        feature_tables.read(told, names, "row")
    assert str(raised.value).startswith("row_features: ")


class World:
    """Values that the users' levels and the items' numbers decide; the first of each are unseen."""

    new_rows, new_columns = np.arange(10), np.arange(6)

    def __init__(self):
        rng = np.random.default_rng(0)
        self.levels = np.arange(80) % 3
        self.numbers = rng.normal(size=50)
        tastes = np.array([-1.0, 0.0, 1.0])[self.levels]
        self.truth = 0.7 * tastes[:, None] + 0.7 * self.numbers + np.outer(tastes, self.numbers)
        shown = rng.random(self.truth.shape) < 0.35
        shown[self.new_rows], shown[:, self.new_columns] = False, False
        self.rows, self.columns = (x.astype(np.int32) for x in np.nonzero(shown))
        noisy = self.truth + 0.5 * rng.normal(size=self.truth.shape)
        values = noisy[self.rows, self.columns]
        self.entries = Entries(self.rows, self.columns, values, self.truth.shape)
        self.matrix = np.where(shown, noisy, np.nan)
        self.users = pd.DataFrame({"level": [f"l{n}" for n in self.levels]})
        self.items = self.numbers[:, None]

    def error(self, values, rows=slice(None), columns=slice(None)):
        """Relative to the deviation of these cells."""
        truth = self.truth[rows][:, columns]
        return np.sqrt(((values[rows][:, columns] - truth) ** 2).mean()) / truth.std()


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def fitted(world):
    imputer = MetaMFImputer(keep_empty_features=True)
    return imputer.fit(world.entries, row_features=world.users, column_features=world.items)


def test_rows_and_columns_never_seen_are_answered_from_features(world, fitted):
    features = fitted.completion_.features
    assert features.used
    assert features.rmse < features.rmse_without
    values, errors = completion.predict_rows(fitted.completion_, 0, 80)
    seen_rows, seen_columns = np.arange(10, 80), np.arange(6, 50)
    assert world.error(values, seen_rows, seen_columns) < 0.25
    assert world.error(values, world.new_rows, seen_columns) < 0.4
    assert world.error(values, seen_rows, world.new_columns) < 0.4
    assert world.error(values, world.new_rows, world.new_columns) < 0.5
    # What is known by features alone is known less well, and the bars say so.
    of_new = errors[world.new_rows].mean()
    assert of_new > 1.02 * errors[10:, 6:].mean()
    left = np.abs(values - world.truth)[world.new_rows]
    assert (left < 1.645 * errors[world.new_rows]).mean() > 0.85
    # Beyond the matrix nothing is known: a usual row, in doubt.
    _, doubt = completion.predict(fitted.completion_, [500], [20])
    assert doubt[0] > 1.1 * errors[0, 20]


def test_further_rows_come_with_theirs(world, fitted):
    levels = pd.DataFrame({"level": ["l0", "l1", "l2"]})
    nothing = np.full((3, 50), np.nan)
    found, errors = fitted.transform(nothing, row_features=levels, return_std=True)
    values, bars = completion.predict_rows(fitted.completion_, 0, 3)
    np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(errors, bars, rtol=1e-4)
    without = fitted.transform(nothing)
    assert np.abs(without[0] - without[2]).max() == 0
    assert world.error(found, slice(3), slice(6, 50)) < 0.4
    np.testing.assert_array_equal(fitted.predict(nothing, row_features=levels), found)
    low, high = fitted.predict_quantiles(nothing, row_features=levels)
    assert ((low < found) & (found < high)).all()
    drawn = np.stack(fitted.sample(nothing, imputations=50, row_features=levels))
    np.testing.assert_allclose(drawn.mean(axis=0), found, atol=0.6)
    # Cells say more.
    some = np.where(np.arange(50) % 4 == 1, world.truth[:3], np.nan)
    better = fitted.transform(some, row_features=levels)
    assert world.error(better, slice(3), slice(6, 50)) < 0.3
    again = fitted.transform(world.matrix, row_features=world.users)
    whole, _ = completion.predict_rows(fitted.completion_, 0, 80)
    missing = np.isnan(world.matrix)
    np.testing.assert_allclose(again[missing], whole[missing], rtol=1e-3, atol=1e-4)


def test_fits_keep_them(world, fitted, tmp_path):
    fitted.save(tmp_path / "fit.safetensors")
    loaded = MetaMFImputer.load(tmp_path / "fit.safetensors")
    nothing, levels = np.full((1, 50), np.nan), pd.DataFrame({"level": ["l2"]})
    answers = [
        each.transform(nothing, row_features=levels, return_std=True) for each in (fitted, loaded)
    ]
    np.testing.assert_array_equal(*answers)
    shape = world.truth.shape[0] + 3, 50
    no_cells = Entries(world.rows[:0], world.columns[:0], np.zeros(0), shape)
    further = pd.DataFrame({"id": [82, 81, 80], "level": ["l2", "l1", "l0"]})
    loaded.update(no_cells, row_features=further)
    assert loaded.completion_.shape == shape
    values, _ = completion.predict_rows(loaded.completion_, 80, 83)
    assert world.error(values, slice(3), slice(6, 50)) < 0.4
    before = np.abs(values - completion.predict_rows(fitted.completion_, 0, 3)[0])
    assert before.mean() < 0.2


def test_noise_costs_next_to_nothing(world):
    rng = np.random.default_rng(1)
    errors = []
    for noise in (None, rng.normal(size=(80, 30))):
        fit = MetaMFImputer().fit(world.entries, row_features=noise)
        values, _ = completion.predict_rows(fit.completion_, 0, 80)
        errors.append(world.error(values, slice(10, 80), slice(6, 50)))
    assert errors[1] < 1.03 * errors[0]


def test_features_that_cannot_be_used_are_refused(world, fitted):
    with pytest.raises(ValueError, match=r"unit of its own .*further columns of the table"):
        MetaMFImputer(standardize="columns").fit(world.entries, row_features=np.arange(80))
    few = scipy.sparse.coo_array(([1.0, 2.0, 4.0], ([0, 1, 2], [0, 1, 0])), shape=(3, 2))
    with pytest.raises(ValueError, match="got 3 cells of 3 rows and 2 columns"):
        MetaMFImputer().fit(few, row_features=np.arange(3))
    with pytest.raises(ValueError, match="got cells missing by_value"):
        MetaMFImputer(missing="by_value").fit(world.entries, row_features=np.arange(80))
    with pytest.raises(ValueError, match="a frame of typed columns was given"):
        MetaMFImputer(types="auto").fit(pd.DataFrame({"a": [1, 2.5]}), row_features=np.arange(2))
    with pytest.raises(ValueError, match="expected a column 'level' of kind category"):
        fitted.transform(world.matrix[:1], row_features=np.zeros(1))
    with pytest.raises(ValueError, match="cells were asked for by number"):
        fitted.predict([0], [0], row_features=np.zeros(1))
    plain = dataclasses.replace(fitted.completion_, features=None)
    with pytest.raises(ValueError, match="the matrix was fitted without row_features"):
        feature_tables.of_further(
            plain.features, 0, feature_tables.read([1.0], Names([0], True), "row")
        )
