"""Given features, and the tables they are read from."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from metamf_jax.data.tables.features import read_features
from metamf_jax.posterior import fit, given
from metamf_jax.posterior.chains import ChainsConfig
from metamf_jax.posterior.gibbs import GibbsConfig
from metamf_jax.types import Entries, FeatureColumn, FeatureTable

TEXT = """user,age,town:category,likes
7,20,1,tea|cake
8,40,2,
9,,1,tea
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "users.csv"
    path.write_text(TEXT)
    return path


def test_columns_are_numbers_categories_or_labels(path):
    table = read_features(path)
    np.testing.assert_array_equal(table.ids, [7, 8, 9])
    assert [column.name for column in table.columns] == ["age", "town", "likes"]
    assert [column.kind for column in table.columns] == ["number", "category", "labels"]
    age, town, likes = (column.values for column in table.columns)
    np.testing.assert_array_equal(age, [20, 40, np.nan])
    assert [*town] == ["1", "2", "1"]
    assert [*likes] == ["tea|cake", "", "tea"]


def test_other_formats_say_the_same(path, tmp_path):
    text = read_features(path)
    (tmp_path / "moved.tsv").write_text(
        "age\tuserId\ttown:category\tlikes\n20\t7\t1\ttea|cake\n40\t8\t2\t\nNA\t9\t1\ttea\n"
    )
    columns = {
        "user": [7, 8, 9],
        "age": [20, 40, None],
        "town:category": [1, 2, 1],
        "likes": [["tea", "cake"], [], ["tea"]],
    }
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "users.parquet")
    for name in ("moved.tsv", "users.parquet"):
        again = read_features(tmp_path / name)
        np.testing.assert_array_equal(again.ids, text.ids)
        for one, other in zip(again.columns, text.columns, strict=True):
            assert one[:2] == other[:2]
            np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user\n7\n", "line 1: expected ids and one or more columns of features"),
        ("7,20\n8,30\n", "line 1: expected a header with the names of the columns, got the number"),
        ("user,age\n", "expected a line for each id, got none"),
        ("user,age\n7,1\n8,2\n7,3\n", "line 4: '7' is there already, line 2; keep one"),
        ("user,age\n7,1\n ,2\n", "line 3: expected an id, got a blank"),
        ("user,age\n7,1\n8\n", "line 3: expected 2 columns as in the first line, got 1"),
        ("user,age:number\n7,1\n8,old\n", "line 3: expected a number in column 'age', got 'old'"),
        ("user,age\n7,1e999\n", "line 2: the number 1e999 in 'age' is too large"),
    ],
)
def test_mistakes_name_the_line(text, message, tmp_path):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.csv") as raised:
        read_features(tmp_path / "bad.csv")
    assert message in str(raised.value)


def column(name, kind, *values):
    return FeatureColumn(name, kind, np.array(values, float if kind == "number" else object))


TABLE = FeatureTable(
    "users.csv",
    np.arange(8),
    (
        column("age", "number", 10, 20, 30, np.nan, 20, 20, 20, 99),
        column("town", "category", *"aaabbbcd"),
        column("likes", "labels", "x|y", "x", "x|z", "y", "", "y|x", "", "w"),
    ),
)


def test_features_are_standardised_one_for_each_level():
    lines = np.array([0, 1, 2, 3, 4, 5, 6, -1])
    found = given.given_features(TABLE, lines)
    # age, whether missing; a, b, other towns; x, y, other labels
    np.testing.assert_array_equal(found.groups, [0, 0, 1, 1, 1, 2, 2, 2])
    told = found.features[:7]
    np.testing.assert_allclose(told.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(found.features[7], 0)
    ages = np.array([10, 20, 30, 20, 20, 20])
    np.testing.assert_allclose(np.delete(told[:, 0], 3), (ages - 20) / ages.std(), rtol=1e-6)
    assert told[3, 0] == 0
    raw = told[:, 2:] * found.scales[2:] + found.centers[2:]
    expected = np.array(
        [
            *([1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 0, 1], [0, 1, 0, 0, 1, 0]),
            *([0, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]),
        ]
    )
    np.testing.assert_allclose(raw, expected, atol=1e-6)


def test_further_rows_have_the_features_of_those_they_are_like():
    lines = np.array([0, 1, 2, 3, 4, 5])
    found = given.given_features(TABLE, lines)
    again = given.of_further_rows(found, TABLE, np.array([5, -1, 0, 7]))
    np.testing.assert_array_equal(again[[0, 2]], found.features[[5, 0]])
    np.testing.assert_array_equal(again[1], 0)
    # Where no level was rare a new one is their mean; where some were, one of them.
    np.testing.assert_array_equal(again[3, 2:4], 0)
    assert again[3, -1] * found.scales[-1] + found.centers[-1] == pytest.approx(1)
    moved = TABLE._replace(columns=TABLE.columns[::-1])
    np.testing.assert_array_equal(given.of_further_rows(found, moved, lines), found.features)
    for columns in (
        TABLE.columns[1:],
        (column("age", "category", *"12345678"), *TABLE.columns[1:]),
    ):
        with pytest.raises(ValueError, match="expected a column 'age' of kind number"):
            given.of_further_rows(found, TABLE._replace(columns=columns), lines)


@pytest.mark.parametrize(
    ("columns", "lines", "message"),
    [
        (TABLE.columns, [-1, -1], "none of its 8 ids, such as 0, stands in the ratings"),
        (
            (column("name", "category", *"abcdefgh"),),
            range(8),
            "'name' has 8 levels, 0 levels of 3",
        ),
        ((column("age", "number", *[np.nan] * 8),), range(8), "'age' has no number for any row"),
        (
            (column("name", "category", *(str(n % 1001) for n in range(3003))),),
            range(3003),
            "1001 levels of 3 rows or more; expected 1 to 1000",
        ),
    ],
)
def test_tables_that_tell_nothing_are_refused(columns, lines, message):
    table = TABLE._replace(columns=columns)
    with pytest.raises(ValueError, match=r"users\.csv") as raised:
        given.given_features(table, np.array(lines))
    assert message in str(raised.value)


def test_a_posterior_learns_from_them():
    """Levels of rows decide their effects, of which one is seen by other rows alone."""
    rng = np.random.default_rng(0)
    levels = np.arange(60) % 3
    places = np.argwhere(rng.random((60, 20)) < 0.3).T
    places = places[:, places[0] >= 6]
    values = 2.0 * (levels[places[0]] - 1) + 0.3 * rng.standard_normal(places.shape[1])
    rows, columns = places.astype(np.int32)
    entries = Entries(rows, columns, values.astype("f"), (60, 20))
    table = FeatureTable("t", np.arange(60), (column("l", "category", *map(str, levels)),))
    features = given.given_features(table, np.arange(60)), given.none_given(20)
    lengths = ChainsConfig(num_chains=1, burn_in=10, num_draws=20)
    found = fit.fit(entries, GibbsConfig(rank=2), lengths, 0, given=features)
    effects = found.draws.rows[:, :6, -1].mean(axis=0) * found.scale.unit
    np.testing.assert_allclose(effects - effects[1], 2.0 * (levels[:6] - 1), atol=0.7)
