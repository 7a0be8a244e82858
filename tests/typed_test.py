"""Data frames through the estimator: complete, of their own types, with chances and draws."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline

from metamf_jax import MetaMFImputer
from metamf_jax.imputation import mixed
from metamf_jax.imputation.mixed import MixedConfig
from metamf_jax.types import Entries


@pytest.fixture(autouse=True, scope="module")
def short_chains():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixed, "_WARM", 4)
        patch.setattr(
            "metamf_jax.imputation.typed.MixedConfig",
            lambda seed: MixedConfig(burn_in=15, num_draws=20, seed=seed),
        )
        yield


@pytest.fixture(scope="module")
def survey():
    rng = np.random.default_rng(0)
    age = rng.integers(18, 90, 120)
    frame = pd.DataFrame(
        {
            "age": pd.array(age, "Int16"),
            "income": np.round(1000 + 30 * age + 200 * rng.normal(size=120), 2),
            "grade": pd.Categorical.from_codes(
                np.searchsorted([35, 60], age + 5 * rng.normal(size=120)),
                ["low", "middle", "high"],
                ordered=True,
            ),
            "town": rng.choice(["Ulm", "Bonn", "Jena"], 120),
            "since": pd.Timestamp("2026-01-01") - pd.to_timedelta(age, unit="D"),
            "empty": np.nan,
        },
        index=[f"p{n}" for n in range(120)],
    )
    missing = rng.random(frame.shape) < 0.2
    return frame.mask(missing)


@pytest.fixture(scope="module")
def fitted(survey):
    return MetaMFImputer(keep_empty_features=True).fit(survey)


def test_a_frame_comes_back_complete_and_of_its_types(survey, fitted):
    found, errors = fitted.transform(survey, return_std=True)
    pd.testing.assert_series_equal(found.dtypes, survey.dtypes)
    assert list(found.index) == list(survey.index)
    observed = survey.notna()
    pd.testing.assert_frame_equal(found.where(observed), survey)
    assert found.drop(columns="empty").notna().all(axis=None)
    assert found["empty"].isna().all()
    assert (errors[observed.to_numpy()] == 0).all()
    lost = survey["since"].isna()
    days = (found["since"] - pd.Timestamp("2026-01-01")).dt.days[lost & survey["age"].notna()]
    assert np.abs(days + survey["age"][days.index].astype(float)).mean() < 5


def test_empty_columns_are_left_out_unless_they_are_asked_for(survey, fitted):
    imputer = MetaMFImputer(add_indicator=True).fit(survey)
    found = imputer.transform(survey)
    assert list(found.columns) == list(imputer.get_feature_names_out())
    assert list(found.columns[:5]) == ["age", "income", "grade", "town", "since"]
    assert list(found.columns[5:]) == [f"missingindicator_{name}" for name in survey.columns]
    np.testing.assert_array_equal(found["missingindicator_town"], survey["town"].isna())
    assert list(fitted.get_feature_names_out()) == list(survey.columns)


@pytest.mark.parametrize("make", [pl.from_pandas, pa.Table.from_pandas])
def test_polars_and_pyarrow(survey, make):
    table = make(survey.reset_index(drop=True))
    found = MetaMFImputer(add_indicator=True).fit_transform(table)
    assert type(found) is type(table)
    assert found.shape == (120, 11)
    names = list(found.columns) if isinstance(found, pl.DataFrame) else found.column_names
    assert names[:5] == list(survey.columns[:5])
    whole = found if isinstance(found, pa.Table) else found.to_arrow()
    assert not any(column.null_count for column in whole.columns)


def test_chances_quantiles_and_draws(survey, fitted):
    chances = fitted.predict_chances(survey)
    assert chances.keys() == {"grade", "town"}
    assert list(chances["grade"]) == ["low", "middle", "high"]
    np.testing.assert_allclose(sum(chances["town"].values()), 1)
    low, high = fitted.predict_quantiles(survey, quantiles=(0.1, 0.9))
    lost = survey["income"].isna().to_numpy()
    assert (low[lost, 1] < high[lost, 1]).all()
    assert np.isnan(low[:, 2]).all()
    tables = fitted.sample(survey, 3)
    for table in tables:
        pd.testing.assert_series_equal(table.dtypes, survey.dtypes)
        assert table.drop(columns="empty").notna().all(axis=None)
    assert not tables[0].equals(tables[1])


def test_further_rows(survey, fitted):
    further = survey.head(7).assign(town=["Rom", None, "Ulm", None, "Bonn", None, None])
    found = fitted.transform(further)
    assert found["town"].notna().all()
    assert found["town"].iloc[0] == "Rom"


def test_numbers_alone_are_a_matrix_unless_types_are_given():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"a": rng.normal(size=60), "b": rng.integers(0, 50, 60)})
    frame.loc[3:9, "b"] = np.nan
    assert isinstance(MetaMFImputer().fit_transform(frame), np.ndarray)
    for types in ("auto", {"b": "integer"}):
        found = MetaMFImputer(types=types).fit_transform(frame)
        assert (found["b"] % 1 == 0).all()
    numeric = MetaMFImputer(types={"b": "numeric"}).fit_transform(frame)
    assert (numeric["b"] % 1 != 0).any()


def test_in_pipelines_and_by_columns(survey):
    target = np.arange(120.0)
    numbers = survey[["age", "income", "grade"]]
    encode = ColumnTransformer(
        [("kept", "passthrough", ["age", "income"])], verbose_feature_names_out=False
    )
    pipeline = make_pipeline(MetaMFImputer(), encode.set_output(transform="pandas"))
    pipeline = make_pipeline(pipeline, LinearRegression()).fit(numbers, target)
    assert np.isfinite(pipeline.predict(numbers)).all()
    by_columns = ColumnTransformer([("typed", MetaMFImputer(), ["age", "grade"])])
    found = by_columns.set_output(transform="pandas").fit_transform(survey)
    assert list(found.columns) == ["typed__age", "typed__grade"]
    assert found.notna().all(axis=None)


def test_a_matrix_may_be_fitted_after_a_frame(survey):
    imputer = MetaMFImputer().fit(survey)
    numbers = np.random.default_rng(0).normal(size=(12, 3))
    numbers[2, 1] = np.nan
    assert np.isfinite(imputer.fit(numbers).transform(numbers)).all()
    assert not hasattr(imputer, "mixed_")


def test_a_loaded_fit_answers_to_the_last_bit(survey, tmp_path):
    types = {
        "since": {"low": pd.Timestamp("2025-01-01")},
        "town": {"levels": ["Bonn", "Jena", "Rom", "Ulm"]},
        "age": {"type": "integer", "low": np.int64(18)},
    }
    imputer = MetaMFImputer(types=types, add_indicator=True, random_state=4).fit(survey)
    imputer.save(tmp_path / "fit.safetensors")
    loaded = MetaMFImputer.load(tmp_path / "fit.safetensors")
    assert list(loaded.get_feature_names_out()) == list(imputer.get_feature_names_out())
    assert loaded.types["since"] == {"low": "2025-01-01 00:00:00"}
    for one, other in zip(imputer.mixed_.columns, loaded.mixed_.columns, strict=True):
        assert one == other
    np.testing.assert_array_equal(
        loaded.transform(survey, return_std=True)[1], imputer.transform(survey, return_std=True)[1]
    )
    for one, other in zip(imputer.sample(survey, 2), loaded.sample(survey, 2), strict=True):
        pd.testing.assert_frame_equal(one, other)
    grown, again = (x.partial_fit(survey.head(9)) for x in (imputer, loaded))
    pd.testing.assert_frame_equal(grown.transform(survey), again.transform(survey))


def test_further_rows_may_have_further_levels_and_other_numbers():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame(
        {
            "town": rng.choice(["Ulm", "Bonn"], 60),
            "stars": rng.integers(2, 5, 60),
            "count": rng.integers(0, 90, 60),
        }
    )
    further = pd.DataFrame({"town": ["Rom", None], "stars": [1.0, np.nan], "count": [2.5, np.nan]})
    grown = MetaMFImputer(types="auto").fit(frame).partial_fit(further)
    columns = {column.name: column for column in grown.mixed_.columns}
    assert {name: column.type for name, column in columns.items()} == {
        "town": "nominal",
        "stars": "ordinal",
        "count": "numeric",
    }
    assert columns["town"].levels.to_pylist() == ["Bonn", "Ulm", "Rom"]
    assert columns["stars"].levels.to_pylist() == [1, 2, 3, 4]
    places = [["Bonn", "Ulm"].index(town) for town in frame["town"]]
    np.testing.assert_array_equal(grown.mixed_.values[:, 0], [*places, 2, np.nan])
    np.testing.assert_array_equal(grown.mixed_.values[:60, 1], frame["stars"] - 1)
    assert grown.transform(further).notna().all(axis=None)


@pytest.mark.parametrize(
    ("types", "further", "message"),
    [
        ({"grade": {"levels": ["low", "high"]}}, "middle", "middle is none of low, high"),
        ({"grade": "ordinal"}, "middle", "middle has no known place among the levels high, low"),
        ({"grade": "binary"}, "middle", "middle is none of high, low"),
        ({"size": "integer"}, 2.5, "'size' is integer, but row 1 .* holds 2.5"),
        ({"size": {"high": 30}}, 31, "row 1 .*: 31 is above the declared high 30"),
    ],
)
def test_further_rows_keep_to_what_was_declared(types, further, message):
    frame = pd.DataFrame({"grade": ["low", "high", None] * 5, "size": np.arange(15)})
    imputer = MetaMFImputer(types=types).fit(frame)
    row = {"grade": "low", "size": 3, next(iter(types)): further}
    with pytest.raises(ValueError, match=message):
        imputer.partial_fit(pd.DataFrame([row]))


def test_what_is_of_matrices_alone_is_refused(survey, fitted):
    for ask in (
        lambda: fitted.predict([0], [1]),
        lambda: fitted.update(Entries(np.zeros(1, int), np.zeros(1, int), np.ones(1), (120, 6))),
    ):
        with pytest.raises(ValueError, match="a frame of typed columns was fitted"):
            ask()
    numbers = np.random.default_rng(0).normal(size=(12, 3))
    with pytest.raises(ValueError, match="a matrix of numbers was fitted"):
        MetaMFImputer().fit(numbers).predict_chances(numbers)
    with pytest.raises(ValueError, match="expected one of pandas or polars"):
        MetaMFImputer(types="auto").fit(numbers)
    with pytest.raises(ValueError, match="bounds are those of a matrix; of a frame"):
        MetaMFImputer(bounds=(0, 1)).fit(survey)
    with pytest.raises(ValueError, match="or auto, got 'all'"):
        MetaMFImputer(types="all").fit(survey)
    with pytest.raises(ValueError, match="missing: town, since, empty"):
        fitted.transform(survey.iloc[:, :3])
