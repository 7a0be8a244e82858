"""Data frames: what their columns are, their cells as numbers, and back without a change."""

import datetime
import decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from metamf_jax.imputation import columns, frames
from metamf_jax.imputation.declared import Declared

N = 24
LEVELS = ["low", "middle", "high"]


def cells():
    """name: (cells with None where missing, type of the column)."""
    rng = np.random.default_rng(0)
    day = datetime.datetime(2026, 3, 1, 12)
    found = {
        "weight": ([float(x) for x in rng.normal(70, 10, N)], "numeric"),
        "visits": ([int(x) for x in rng.integers(0, 10**6, N)], "integer"),
        "smokes": ([bool(x) for x in rng.integers(0, 2, N)], "binary"),
        "town": ([["Ulm", "Bonn", "Jena"][x] for x in rng.integers(0, 3, N)], "nominal"),
        "sex": ([["f", "m"][x] for x in rng.integers(0, 2, N)], "binary"),
        "answer": ([int(x) for x in np.arange(N) % 4], "ordinal"),
        "when": ([day + datetime.timedelta(hours=int(x)) for x in range(N)], "numeric"),
        "half": ([float(x % 2) for x in range(N)], "binary"),
    }
    for m, (column, _) in enumerate(found.values()):
        column[m], column[m + 9] = None, None
    return found


def grades():
    return [None if n % 5 == 1 else LEVELS[n % 3] for n in range(N)]


def of_pandas():
    frame = pd.DataFrame({name: pd.Series(column) for name, (column, _) in cells().items()})
    frame = frame.astype({"visits": "Int32", "smokes": "boolean", "answer": "float32"})
    frame["grade"] = pd.Categorical(grades(), LEVELS, ordered=True)
    frame["plain"] = pd.Categorical(grades(), [*LEVELS, "never"])
    frame["empty"] = np.nan
    return frame.set_axis([f"r{n}" for n in range(N)], axis=0)


def of_polars():
    frame = pl.DataFrame({name: column for name, (column, _) in cells().items()})
    return frame.with_columns(
        pl.col("visits").cast(pl.UInt32),
        pl.col("answer").cast(pl.Int8),
        pl.Series("plain", grades(), dtype=pl.Enum([*LEVELS, "never"])),
        pl.Series("kind", grades(), dtype=pl.Categorical),
        pl.Series("day", [None, *(datetime.date(2026, 1, n + 1) for n in range(N - 1))]),
        pl.lit(None).alias("empty"),
    )


def of_arrow():
    table = pa.table({name: column for name, (column, _) in cells().items()})
    prices = [None, *(decimal.Decimal(n) / 4 for n in range(N - 1))]
    table = table.append_column("price", pa.array(prices, pa.decimal128(9, 2)))
    plain = pa.DictionaryArray.from_arrays(
        pa.array([None if g is None else LEVELS.index(g) for g in grades()], pa.int8()), LEVELS
    )
    return table.append_column("plain", plain)


def expected_types(frame):
    more = {"grade": "ordinal", "plain": "nominal", "kind": "nominal", "day": "numeric"}
    more |= {"price": "numeric", "empty": "numeric"}
    known = {name: type_ for name, (_, type_) in cells().items()} | more
    names = frame.column_names if isinstance(frame, pa.Table) else frame.columns
    if isinstance(frame, pl.DataFrame):
        # Polars says that the levels of an Enum are ordered.
        known["plain"] = "ordinal"
    return {name: known[name] for name in names}


MAKERS = [of_pandas, of_polars, of_arrow]


def is_missing(frame):
    if isinstance(frame, pd.DataFrame):
        return frame.isna().to_numpy()
    table = frame if isinstance(frame, pa.Table) else frame.to_arrow()
    return np.column_stack([column.is_null(nan_is_null=True) for column in table.columns])


@pytest.mark.parametrize("make", MAKERS)
def test_types_are_found(make):
    frame = make()
    assert frames.is_frame(frame)
    described = frames.describe(frame)
    assert {column.name: column.type for column in described} == expected_types(frame)


@pytest.mark.parametrize("make", MAKERS)
def test_frames_come_back_complete_and_of_their_types(make):
    frame = make()
    described = frames.describe(frame)
    values = frames.encode(frame, described)
    missing = is_missing(frame)
    np.testing.assert_array_equal(np.isnan(values), missing)
    empty = np.isnan(values).all(axis=0)
    fill = np.where(missing & ~empty, np.nanmin(np.where(empty, 0, values), axis=0), values)
    found = frames.decode(frame, described, fill)
    assert type(found) is type(frame)
    again = frames.encode(found, described)
    np.testing.assert_array_equal(again[:, ~empty], fill[:, ~empty])
    assert np.isnan(again[:, empty]).all()
    if isinstance(frame, pd.DataFrame):
        kept = frame.columns != "empty"
        pd.testing.assert_series_equal(found.dtypes, frame.dtypes)
        assert list(found.index) == list(frame.index)
        pd.testing.assert_frame_equal(
            found.loc[:, kept].where(~missing[:, kept]), frame.loc[:, kept].where(~missing[:, kept])
        )
    elif isinstance(frame, pl.DataFrame):
        known = {name: dtype for name, dtype in frame.schema.items() if name != "empty"}
        assert {name: dtype for name, dtype in found.schema.items() if name != "empty"} == known
    else:
        assert found.schema == frame.schema
    # The frame that was given is not changed.
    np.testing.assert_array_equal(is_missing(frame), missing)


def test_observed_cells_come_back_to_the_last_digit():
    frame = pd.DataFrame(
        {
            "large": np.array([2**62 + 1, 5, 7] * 5),
            "tiny": np.array([1e-300, np.nan, 0.1] * 5),
            "when": pd.to_datetime(["2026-01-01T00:00:00.123456789", None] * 7 + [None]),
        }
    )
    described = frames.describe(frame)
    values = np.nan_to_num(frames.encode(frame, described), nan=1.0)
    found = frames.decode(frame, described, values)
    observed = frame.notna()
    pd.testing.assert_frame_equal(found.where(observed), frame.where(observed))
    assert not found.isna().to_numpy().any()


def test_types_are_overridden():
    frame = of_pandas()
    given = {"town": "ordinal", "answer": "integer", "visits": "numeric", "half": "nominal"}
    described = {column.name: column for column in frames.describe(frame, given)}
    assert {name: described[name].type for name in given} == given
    assert described["town"].levels.to_pylist() == ["Bonn", "Jena", "Ulm"]
    assert described["answer"].levels is None


def test_bounds_and_levels_are_declared():
    frame = pd.DataFrame(
        {
            "stars": [1, 2, None, 2] * 4,
            "size": [0.5, None, 0.25, 1.0] * 4,
            "grade": ["low", None, "high", "low"] * 4,
        }
    )
    types = {
        "stars": {"low": 0.5, "high": 5},
        "size": {"low": 0},
        "grade": {"type": "ordinal", "levels": ["low", "middle", "high"]},
    }
    stars, size, grade = frames.describe(frame, types)
    # Of two whole numbers, but bounds are those of numbers.
    assert (stars.type, stars.low, stars.high) == ("integer", 1, 5)
    assert (size.type, size.low, size.high) == ("numeric", 0, np.inf)
    assert (grade.type, grade.levels.to_pylist()) == ("ordinal", ["low", "middle", "high"])
    levels = frames.describe(frame, {"stars": {"levels": [1, 2, 3]}})[0]
    assert (levels.type, levels.levels.to_pylist()) == ("ordinal", [1, 2, 3])
    with pytest.raises(ValueError, match=r"row 3 .*: 7 is above the declared high 5;"):
        frames.encode(frame.assign(stars=[1, 2, 7, 2] * 4), (stars, size, grade))


@pytest.mark.parametrize(
    ("type_", "declared", "expected"),
    [
        (pa.float32(), (0.1, 0.7), (0.1, 0.7)),
        (pa.decimal128(9, 2), (0.125, 0.875), (0.13, 0.87)),
        (pa.int8(), (0.1, 2.9), (1, 2)),
    ],
)
def test_bounds_are_numbers_that_cells_can_hold(type_, declared, expected):
    array = pa.array([None, None], type_)
    low, high = declared
    found = columns.describe("a", array, Declared("numeric", low, high))
    assert low <= found.low <= found.high <= high
    np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-6)
    filled = columns.decode(found, np.array([found.low, found.high]), array)
    assert all(low <= float(x) <= high for x in filled.to_pylist())


def test_whole_numbers_stay_whole_and_within_their_type():
    frame = pd.DataFrame(
        {"a": pd.array([1, None, 250] * 5, dtype="UInt8"), "b": [0.0, None, 30] * 5}
    )
    described = frames.describe(frame, {"a": "integer", "b": "integer"})
    values = np.column_stack([np.full(15, 300.0), np.full(15, 2.7)])
    found = frames.decode(frame, described, values)
    assert set(found["a"]) == {1, 255, 250}
    assert set(found["b"]) == {0, 3, 30}
    assert found.dtypes.tolist() == frame.dtypes.tolist()


def test_levels_that_were_not_fitted_tell_nothing_and_come_back():
    fitted = frames.describe(pd.DataFrame({"town": ["Ulm", "Bonn", "Jena", None]}))
    new = pd.DataFrame({"town": ["Rom", None, "Ulm"]})
    values = frames.encode(new, fitted)
    np.testing.assert_array_equal(values[:, 0], [np.nan, np.nan, 2])
    found = frames.decode(new, fitted, np.zeros((3, 1)))
    assert found["town"].tolist() == ["Rom", "Bonn", "Ulm"]


def test_categories_may_be_others_in_new_frames():
    fitted = frames.describe(pd.DataFrame({"x": pd.Categorical(["a", "b", "c"] * 4)}))
    new = pd.DataFrame({"x": pd.Categorical(["c", None, "b"], ["c", "b", "a"])})
    np.testing.assert_array_equal(frames.encode(new, fitted)[:, 0], [2, np.nan, 1])
    assert frames.decode(new, fitted, np.zeros((3, 1)))["x"].tolist() == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("frame", "types", "message"),
    [
        ({"a": [1.0]}, {"b": "numeric"}, "'b', but the columns are a"),
        ({"a": [1.0]}, {"a": "number"}, "a type among numeric"),
        ({"a": ["x", "y"]}, {"a": "numeric"}, "'a' is numeric, but its cells are of type"),
        ({"a": [1, 2, 3]}, {"a": "binary"}, "'a' is binary, but has 3 levels: 1, 2, 3"),
        ({"a": [{}, {}]}, None, "expected numbers, text, categories"),
        ({"a": [1, "x"]}, None, "'a' of dtype object is not of one kind"),
        ({"a": [1.0]}, ["a"], "expected types by column"),
        ({"a": [1.0]}, {"a": {"lo": 0}}, "expected a type, or some of type, low, high, levels"),
        ({"a": [1.0]}, {"a": 3}, "expected a type, or some of"),
        ({"a": [1, 200]}, {"a": {"high": 120}}, "row 2 .*: 200 is above the declared high 120"),
        ({"a": [3, -1]}, {"a": {"low": 0}}, "row 2 .*: -1 is below the declared low 0"),
        ({"a": [1.0]}, {"a": {"low": 2, "high": 1}}, "no integer cell of type double lies"),
        ({"a": [1]}, {"a": {"low": 0.2, "high": 0.8}}, "no integer cell of type int64 lies"),
        ({"a": [1.0]}, {"a": {"low": "0"}}, "expected a number as bound, got '0'"),
        ({"a": ["x"]}, {"a": {"low": 0}}, "'a' is bounded, but its cells are of type"),
        ({"a": ["x"]}, {"a": {"type": "nominal", "low": 0}}, "low and high are those of numbers"),
        ({"a": [1.5]}, {"a": "integer"}, "'a' is integer, but row 1 .* holds 1.5"),
        ({"a": [1]}, {"a": {"type": "numeric", "levels": [1]}}, "numeric, but levels are declared"),
        ({"a": [1]}, {"a": {"levels": []}}, "levels that are there once each"),
        ({"a": [1]}, {"a": {"levels": [1, 1]}}, "levels that are there once each"),
        ({"a": [1]}, {"a": {"levels": "123"}}, "expected a list of levels"),
        ({"a": [1]}, {"a": {"levels": ["x"]}}, "levels that cells of type int64 can hold"),
        ({"a": [None, "z"]}, {"a": {"levels": ["x", "y"]}}, "row 2 .*: 'z' is none of the dec"),
        ({"a": pd.Categorical(["x"])}, {"a": {"levels": ["x", "y"]}}, "lack some of the declared"),
        (
            {"a": pd.to_datetime(["2026-01-01", "2026-03-01"])},
            {"a": {"high": "2026-02-01"}},
            "row 2 .*: 2026-03-01 00:00:00 is above the declared high 2026-02-01 00:00:00",
        ),
        ({"a": pd.to_datetime(["2026-01-01"])}, {"a": {"low": "x"}}, "expected a bound that cells"),
    ],
)
def test_bad_columns(frame, types, message):
    with pytest.raises(ValueError, match=message):
        frames.describe(pd.DataFrame(frame), types)


def test_bad_frames():
    frame = pd.DataFrame({"a": [1.0, np.inf], "b": [1.0, 2.0]})
    described = frames.describe(frame)
    with pytest.raises(ValueError, match="'a' holds an infinite number"):
        frames.encode(frame, described)
    with pytest.raises(ValueError, match="missing: b; unknown: none"):
        frames.encode(frame[["a"]], described)
    with pytest.raises(ValueError, match="expected numbers, got cells of type"):
        frames.encode(frame.assign(a=1.0, b="x"), described)
    with pytest.raises(ValueError, match="two columns have the name 'a'"):
        frames.describe(frame.set_axis(["a", "a"], axis=1))
    with pytest.raises(ValueError, match=r"expected values \[2, 2\]"):
        frames.decode(frame, described, np.zeros((3, 2)))


def test_a_matrix_is_described_by_its_numbers():
    values = np.column_stack(
        [np.arange(40) / 7, np.arange(40), np.arange(40) % 2, np.arange(40) % 5]
    )
    values[3] = np.nan
    encoded, found = columns.of_matrix(values)
    assert [column.type for column in found] == ["numeric", "integer", "binary", "ordinal"]
    assert [column.name for column in found] == ["x0", "x1", "x2", "x3"]
    np.testing.assert_array_equal(encoded, values)
