"""What must hold of any table, on tables that hypothesis makes up.

Of matrices of numbers `pipeline_test` has the same of columns' units, transposes, permutations and
columns that nothing predicts.
"""

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from metamf_jax import MetaMFImputer
from metamf_jax.imputation import frames, mixed
from metamf_jax.imputation.mixed import MixedConfig

SHORT = MixedConfig(burn_in=15, num_draws=20)
KINDS = ("normal", "skewed", "counts", "flag", "grade", "town", "day")
# Without shrinking, which would take longer than all else.
FEW = settings(
    max_examples=5, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
)


@pytest.fixture(autouse=True, scope="module")
def short_chains():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixed, "_WARM", 4)
        patch.setattr(
            "metamf_jax.imputation.typed.MixedConfig", lambda seed: MixedConfig(15, 20, seed)
        )
        yield


def column(kind, latent, rng):
    count = len(latent)
    if kind == "normal":
        return latent
    if kind == "skewed":
        return np.exp(1.5 * latent)
    if kind == "counts":
        return pd.array(rng.poisson(np.exp(latent)), "Int32")
    if kind == "flag":
        return (latent > 0).astype(object)
    if kind == "grade":
        codes = np.searchsorted([-0.6, 0.6], latent)
        return pd.Categorical.from_codes(codes, ["low", "middle", "high"], ordered=True)
    if kind == "town":
        towns = np.array(["Ulm", "Bonn", "Jena"])
        return np.where(latent > 0.5, "Rom", towns[rng.integers(3, size=count)])
    return pd.Timestamp("2026-01-01") + pd.to_timedelta(np.rint(90 * latent), unit="D")


def table(kinds, rows, seed, share=0.25, loading=0.8):
    """A frame of columns that have a part in common, and which of its cells are missing."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=rows)
    latent = loading * common[:, None] + np.sqrt(1 - loading**2) * rng.normal(
        size=(rows, len(kinds))
    )
    frame = pd.DataFrame(
        {f"{kind}{m}": column(kind, latent[:, m], rng) for m, kind in enumerate(kinds)}
    )
    return frame, rng.random(frame.shape) < share


seeds = st.integers(0, 2**32 - 1)
kinds = st.lists(st.sampled_from(KINDS), min_size=2, max_size=6)


@FEW
@given(kinds, st.integers(3, 40), seeds, st.floats(0, 0.9))
def test_what_was_observed_stays_and_all_answers_are_of_the_columns_types(kinds, rows, seed, share):
    whole, lost = table(kinds, rows, seed, share)
    frame = whole.mask(lost)
    imputer = MetaMFImputer(types="auto", keep_empty_features=True).fit(frame)
    empty = frame.isna().all()
    for found in (imputer.transform(frame), *imputer.sample(frame, 2)):
        pd.testing.assert_frame_equal(found.where(~lost), frame.where(~lost))
        pd.testing.assert_series_equal(found.dtypes, frame.dtypes)
        assert found.loc[:, ~empty].notna().all(axis=None)
        for name, kind in zip(frame, kinds, strict=True):
            if kind in ("flag", "town"):
                assert set(found[name].dropna()) <= set(frame[name].dropna())


@FEW
@given(seeds, st.floats(-3, 2), st.floats(0, 3), st.sampled_from([np.float32, np.float64]))
def test_declared_bounds_are_kept(seed, low, width, dtype):
    high = low + width
    whole, lost = table(("normal", "skewed", "counts", "day"), 40, seed)
    lost[:2] = False
    middle = (low + high) / 2
    whole["normal0"] = np.clip(whole["normal0"], low, high).astype(dtype)
    whole.loc[:1, "normal0"] = dtype(middle)
    # The clipped ends may be rounded to beyond them.
    inside = (whole["normal0"].astype(float) >= low) & (whole["normal0"].astype(float) <= high)
    whole.loc[~inside, "normal0"] = dtype(middle)
    if not low <= float(dtype(middle)) <= high:
        return
    whole["skewed1"] = np.minimum(whole["skewed1"], 2.0)
    whole["counts2"] = whole["counts2"].clip(1, 3)
    days = pd.Timestamp("2025-12-01"), pd.Timestamp("2026-02-01")
    whole["day3"] = whole["day3"].clip(*days)
    types = {
        "normal0": {"low": low, "high": high},
        "skewed1": {"type": "numeric", "high": 2},
        "counts2": {"type": "integer", "low": 0.5, "high": 3.9},
        "day3": {"low": "2025-12-01", "high": days[1]},
    }
    frame = whole.mask(lost)
    imputer = MetaMFImputer(types=types).fit(frame)
    for found in (imputer.transform(frame), *imputer.sample(frame, 3)):
        assert found["normal0"].astype(float).between(low, high).all()
        assert (found["skewed1"] <= 2).all()
        assert found["counts2"].between(1, 3).all()
        assert found["day3"].between(*days).all()
    between = imputer.predict_quantiles(frame, quantiles=(0.01, 0.99))
    assert ((between[:, :, 0] >= low) & (between[:, :, 0] <= high)).all()
    assert (between[:, :, 1] <= 2).all()
    assert ((between[:, :, 2] >= 1) & (between[:, :, 2] <= 3)).all()


@pytest.fixture(scope="module")
def matrix():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(24, 1)) + 0.3 * rng.normal(size=(24, 5))
    X[:, 0] = np.clip(X[:, 0], -0.1, 0.2)
    X[rng.random(X.shape) < 0.3] = np.nan
    return X, MetaMFImputer().fit(X)


@FEW
@given(st.floats(-0.5, -0.1), st.floats(0.2, 0.5), st.sampled_from([np.float32, np.float64]))
def test_declared_bounds_of_a_matrix_are_kept(matrix, low, high, dtype):
    X, imputer = matrix[0].astype(dtype), matrix[1].set_params(bounds={0: (low, high)})
    X[:, 0] = np.clip(X[:, 0], dtype(-0.09), dtype(0.19))
    cells = np.arange(24), np.zeros(24, int)
    for found in (
        imputer.transform(X)[:, 0],
        imputer.predict(X)[:, 0],
        imputer.predict(*cells),
        imputer.predict_quantiles(X)[:, :, 0],
        imputer.predict_quantiles(*cells),
        imputer.sample(X, 1)[0][:, 0],
    ):
        assert ((found.astype(float) >= low) & (found.astype(float) <= high)).all()


def answers(frame, types=None):
    described = frames.describe(frame, types)
    values = frames.encode(frame, described)
    return mixed.answer(mixed.fit(values, described, SHORT), values)


@FEW
@given(kinds, seeds, st.integers(-300, 250), st.booleans())
def test_a_columns_unit_changes_its_own_answer_alone(kinds, seed, exponent, negative):
    whole, lost = table(["normal", *kinds], 40, seed)
    frame = whole.mask(lost)
    factor = (-1.0 if negative else 1.0) * 10.0**exponent
    one = answers(frame)
    other = answers(frame.assign(normal0=frame["normal0"] * factor))
    if not negative:
        np.testing.assert_allclose(other.values[:, 0] / factor, one.values[:, 0], 1e-6, 1e-9)
        np.testing.assert_allclose(other.errors[:, 0] / factor, one.errors[:, 0], 1e-6, 1e-9)
        np.testing.assert_allclose(other.values[:, 1:], one.values[:, 1:], 1e-6, 1e-9)
    else:
        # A sign changes the draws, not their distribution.
        alike(one, other, lost, lambda x: x * np.append(1 / factor, np.ones(len(kinds))))


def alike(one, other, lost, turned):
    """Whether the answers of two chains differ by no more than chance."""
    of_other, errors = turned(other.values), one.errors
    away = np.abs(of_other - one.values)[lost & (errors > 0)] / errors[lost & (errors > 0)]
    # Single levels may tip over, and single rows differ by chance.
    assert np.median(away) < 0.5


@FEW
@given(kinds, seeds)
def test_permuted_rows_and_columns_are_answered_alike(kinds, seed):
    whole, lost = table(["normal", "skewed", *kinds], 60, seed)
    frame, rng = whole.mask(lost), np.random.default_rng(seed)
    rows, columns = rng.permutation(60), rng.permutation(frame.shape[1])
    back = np.argsort(rows)[:, None], np.argsort(columns)
    other = answers(frame.iloc[rows, columns])
    alike(answers(frame), other, lost, lambda x: x[back])


@FEW
@given(seeds, st.permutations([1e13, 1e-6, 1.0]))
def test_units_far_apart_cost_nothing(seed, units):
    whole, lost = table(["normal"] * 3, 60, seed, share=0.2, loading=0.95)
    frame = whole.mask(lost)
    alone, scaled = answers(frame), answers(frame * units)
    np.testing.assert_allclose(scaled.values / units, alone.values, rtol=1e-6, atol=1e-9)


@FEW
@given(seeds, st.sampled_from(["normal", "skewed", "grade", "town"]))
def test_what_nothing_predicts_is_answered_by_its_mean_or_commonest_level(seed, kind):
    whole, _ = table(["normal", "normal", "counts"], 150, seed)
    rng = np.random.default_rng([seed, 1])
    alone = rng.normal(size=150) + (1.0 if kind in ("grade", "town") else 0.0)
    frame = whole.assign(alone=column(kind, alone, rng))
    lost = rng.random(150) < 0.3
    frame.loc[lost, "alone"] = None
    found = answers(frame)
    of_lost, known = found.values[lost, -1], frame["alone"].dropna()
    if kind in ("grade", "town"):
        levels = frames.describe(frame)[-1].levels
        assert levels is not None
        assert np.mean(of_lost == levels.to_pylist().index(known.mode()[0])) > 0.9
    else:
        away = of_lost - known.mean()
        assert np.sqrt((away**2).mean()) < 0.5 * known.std()


@FEW
@given(st.lists(st.sampled_from(KINDS[:3]), min_size=2, max_size=5), seeds, st.floats(0, 0.95))
def test_no_table_is_answered_worse_than_by_its_columns_means(kinds, seed, loading):
    whole, lost = table(kinds, 80, seed, 0.2, loading)
    frame = whole.mask(lost)
    found, true = answers(frame).values, whole.to_numpy(float)
    means, deviations = (np.array(x, float) for x in (frame.mean(), frame.std()))
    # Answers of whole numbers are whole.
    means = np.where([kind == "counts" for kind in kinds], np.rint(means), means)
    ours, simple = ((((x - true) / deviations) ** 2)[lost] for x in (found, means))
    worse = ours - simple
    assert worse.mean() < 2.6 * worse.std() / np.sqrt(len(worse)) + 0.02 * simple.mean()


@FEW
@given(kinds, seeds, st.integers(1, 39))
def test_further_rows_are_fitted_as_if_they_had_been_there(kinds, seed, first):
    whole, lost = table(kinds, 40, seed)
    frame = whole.mask(lost)
    types = {name: {"levels": ["Bonn", "Jena", "Rom", "Ulm"]} for name in frame if "town" in name}
    types |= {name: "numeric" for name in frame if "counts" in name}
    types |= {name: {"levels": [False, True]} for name in frame if "flag" in name}
    grown = MetaMFImputer(types=types).fit(frame[:first]).partial_fit(frame[first:])
    at_once = MetaMFImputer(types=types).fit(frame)
    pd.testing.assert_frame_equal(grown.transform(frame), at_once.transform(frame))
