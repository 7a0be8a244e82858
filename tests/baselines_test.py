"""Baselines against closed forms; tuning against a search by hand."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from metamf_jax.baselines import (
    METHODS,
    bayes,
    bias,
    iterative,
    make_method,
    mean,
    mf,
    scikit_learn,
    tuning,
)
from metamf_jax.baselines.method import Method
from metamf_jax.meta_learning import padding
from metamf_jax.meta_learning.meta_loss import Episode
from metamf_jax.posterior import chains, gibbs
from metamf_jax.posterior.chains import ChainsConfig
from metamf_jax.posterior.gibbs import GibbsConfig
from metamf_jax.types import Entries


def random_entries(seed, num_rows, num_columns, count, shape):
    rng = np.random.default_rng(seed)
    places = rng.choice(num_rows * num_columns, count, replace=False)
    rows, columns = np.divmod(places.astype(np.int32), np.int32(num_columns))
    values = 0.7 + rng.normal(size=count)
    return Entries(rows, columns, values.astype(np.float32), shape)


def with_padding(entries, length):
    """The list padded with cells whose values must not be read."""
    batch = padding.stack_entries([entries], entries.shape, length)
    batch.values[batch.rows == entries.shape[0]] = np.nan
    return jax.tree.map(lambda leaf: leaf[0], batch)


def every_cell(shape):
    rows, columns = (axis.ravel().astype(np.int32) for axis in np.indices(shape))
    return Entries(rows, columns, np.zeros(len(rows), np.float32), shape)


@functools.cache
def predict(baseline):
    return jax.jit(baseline.predict)


SHAPE = (6, 5)
SUPPORT = random_entries(0, 5, 4, 14, SHAPE)  # The last row and column have no cell.
PADDED = with_padding(SUPPORT, 17)
QUERY = every_cell(SHAPE)


def joint_ridge(support, setting):
    """mu + b + c by one linear solve of the whole problem, float64; [N, M]."""
    num_rows, num_columns = support.shape
    design = np.zeros((len(support.rows), 1 + num_rows + num_columns))
    places = np.arange(len(support.rows))
    design[:, 0] = design[places, 1 + support.rows] = 1
    design[places, 1 + num_rows + support.columns] = 1
    penalty = np.concatenate(
        [
            [setting["mean_shrinkage"]],
            np.full(num_rows, setting["row_shrinkage"]),
            np.full(num_columns, setting["column_shrinkage"]),
        ]
    )
    solution = np.linalg.solve(
        design.T @ design + np.diag(penalty), design.T @ support.values.astype(np.float64)
    )
    rows, columns = solution[1 : 1 + num_rows], solution[1 + num_rows :]
    return solution[0] + rows[:, None] + columns[None, :]


@pytest.mark.parametrize(
    "setting",
    [
        {"mean_shrinkage": 0.0, "row_shrinkage": 2.0, "column_shrinkage": 4.0},
        {"mean_shrinkage": 3.0, "row_shrinkage": 4.0, "column_shrinkage": 4.0},
        {"mean_shrinkage": 0.0, "row_shrinkage": 8.0, "column_shrinkage": 4.0},
    ],
)
def test_bias_equals_the_joint_ridge_solution(setting):
    got = np.asarray(predict(bias)(PADDED, QUERY, setting)).reshape(SHAPE)
    np.testing.assert_allclose(got, joint_ridge(SUPPORT, setting), atol=1e-5)


def test_mean():
    got = predict(mean)(PADDED, QUERY, {})
    np.testing.assert_allclose(got, np.full(30, SUPPORT.values.mean()), rtol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_mf_is_of_that_rank(rank):
    setting = {"rank": rank, "precision": 0.3}
    fitted = np.asarray(predict(mf)(PADDED, QUERY, setting)).reshape(SHAPE)
    values = np.linalg.svd(fitted, compute_uv=False)
    assert (values > 1e-5 * values[0]).sum() <= rank
    if rank <= 2:
        assert values[rank - 1] > 0.05 * values[0]


def test_mf_stands_still_at_a_stationary_point():
    """The fit of rank 8 is that of a float64 solver which starts where it ended."""
    setting = {"rank": 8, "precision": 1.0}
    fitted = np.asarray(predict(mf)(PADDED, QUERY, setting), np.float64).reshape(SHAPE)
    left, values, right = np.linalg.svd(fitted)
    # At a minimum both factors share the singular values evenly.
    u = left[:, :5] * np.sqrt(values)
    v = right.T * np.sqrt(values)
    observed = np.zeros(SHAPE, bool)
    observed[SUPPORT.rows, SUPPORT.columns] = True
    truth = np.zeros(SHAPE)
    truth[SUPPORT.rows, SUPPORT.columns] = SUPPORT.values
    residuals = np.where(observed, truth - u @ v.T, 0)
    np.testing.assert_allclose(residuals @ v, 1.0 * u, atol=0.02)
    np.testing.assert_allclose(residuals.T @ u, 1.0 * v, atol=0.02)


@pytest.mark.parametrize("baseline", [mean, bias, mf])
def test_rows_without_cells_and_empty_matrices_are_finite(baseline):
    empty = Entries(
        np.full(17, 6, np.int32), np.full(17, 5, np.int32), np.full(17, np.nan, np.float32), SHAPE
    )
    got = predict(baseline)(empty, QUERY, baseline.GRID[0])
    np.testing.assert_array_equal(got, np.zeros(30))
    assert np.isfinite(predict(baseline)(PADDED, QUERY, baseline.GRID[0])).all()


def episodes(seeds=(1, 2, 3)):
    parts = []
    for offset, counts in ((0, (14, 9, 12)), (100, (6, 4, 0))):
        cut = [
            random_entries(seed + offset, 5, 4, count, SHAPE)
            for seed, count in zip(seeds, counts, strict=True)
        ]
        parts.append(padding.stack_entries(cut, SHAPE, 17))
        parts[-1].values[parts[-1].rows == 6] = np.nan
    return Episode(*parts)


def test_episode_errors_are_means_over_the_query():
    got = tuning.episode_errors(make_method("mean"), episodes())
    parts = [padding.unstack_entries(part) for part in episodes()]
    expected = [
        ((query.values - support.values.mean()) ** 2).mean() if len(query.rows) else 0
        for support, query in zip(*parts, strict=True)
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_tuning_takes_the_least_of_the_grid():
    grid = tuple({"level": level} for level in (-3.0, 0.5, 0.9, 4.0))
    calls = []

    def constant(params, support, query, setting):
        calls.append(setting)
        return jnp.full(query.values.shape, setting["level"])

    queries = padding.unstack_entries(episodes().query)
    errors = [
        np.mean([((q.values - s["level"]) ** 2).mean() if len(q.rows) else 0 for q in queries])
        for s in grid
    ]
    best = tuning.tune(Method(constant, grid), episodes())
    assert best == grid[int(np.argmin(errors))]
    # One program serves the whole grid.
    assert len(calls) == 1


def test_methods_on_the_host_are_tuned_on_every_matrix():
    grid, seen = ({"level": 0.0}, {"level": 0.5}), []

    def constant(params, support, query, setting):
        seen.append(setting["level"])
        return np.full(query.values.shape, setting["level"], np.float32)

    tuning.tune(Method(constant, grid, on_host=True), episodes())
    count = len(padding.unstack_entries(episodes().query))
    assert seen == count * [0.0] + count * [0.5]


def test_the_shipped_grids_hold_what_predict_needs():
    for name in METHODS:
        grid = make_method(name).grid
        assert all(setting.keys() == grid[0].keys() for setting in grid)
    assert max(setting["rank"] for setting in mf.GRID) <= mf._LARGEST_RANK


def test_tuning_improves_one_name_after_the_other():
    values = np.asarray(episodes().query.values)
    inside = np.asarray(episodes().query.rows) < episodes().query.shape[0]
    centre = float(values[inside].mean())

    def constant(params, support, query, setting):
        return jnp.full(query.values.shape, setting["base"] + setting["more"])

    axes = {"more": (centre - 5.0, 9.0), "base": (-3.0, 5.0, 7.0)}
    method = Method(constant, ({"base": 0.0, "more": centre},), axes=axes)
    # No step along an axis is better, though two at once would be as good.
    assert tuning.tune(method, episodes()) == {"base": 0.0, "more": centre}
    method = Method(constant, ({"base": 4.0, "more": 0.0},), axes=axes)
    assert tuning.tune(method, episodes()) == {"base": 5.0, "more": centre - 5.0}


def test_an_unknown_method_is_refused():
    with pytest.raises(
        ValueError,
        match=r"unknown method 'meen'; there are metamf, mean, bayes, bayes_learned, bias",
    ):
        make_method("meen")


def test_bayes_has_the_posterior_mean_of_the_sampler_of_large_matrices():
    rank = 1
    degrees, precision = 5.0, 3.0
    scale = (rank + 1 + degrees) / precision
    config = GibbsConfig(rank, 0.0, 0.0, degrees, scale, scale)
    features = np.zeros((SHAPE[0], 0), np.float32), np.zeros((SHAPE[1], 0), np.float32)
    groups = np.zeros(0, int), np.zeros(0, int)
    data = gibbs.prepare(SUPPORT, features, groups, config)
    draws = chains.run(data, config, ChainsConfig(num_chains=1, burn_in=20, num_draws=3000))
    fitted = jax.vmap(bayes.fitted)(draws.rows, draws.columns)
    expected = np.asarray(fitted).mean(axis=0, dtype=np.float64)

    setting = {
        "factors": (precision,) * rank,
        "row_effects": precision,
        "column_effects": precision,
        "degrees": degrees,
        "noise": 1.0,
        "noise_shape": 1.0,
    }
    prior = bayes.prior_of(setting, SHAPE)
    found = jax.jit(bayes.posterior_mean, static_argnums=2)(PADDED, prior, 30_000)
    # Of 3000 draws the mean is by up to 0.035 off that of 200,000, over seeds and cells.
    np.testing.assert_allclose(found, expected, atol=0.06)


@pytest.mark.parametrize("alpha", [0.1, 30.0])
def test_chained_regressions_are_those_of_scikit_learn(alpha):
    scikit_learn.module("experimental.enable_iterative_imputer")
    ridge = scikit_learn.module("linear_model").Ridge(alpha=alpha)
    rng = np.random.default_rng(3)
    # An empty column, a full one, two with as many entries as each other; a row of one.
    observed = rng.random((9, 7)) < 0.6
    observed[:, 1], observed[:, 4], observed[:, 5] = False, True, observed[::-1, 2]
    observed[8, [0, 2, 3, 5, 6]] = False
    rows, columns = (axis.astype(np.int32) for axis in np.nonzero(observed))
    values = rng.normal(0.7, 1, len(rows)).astype(np.float32)
    support, everywhere = Entries(rows, columns, values, (9, 7)), every_cell((9, 7))
    for turns in (1, 3):
        imputer = scikit_learn.module("impute").IterativeImputer(
            ridge, max_iter=turns, keep_empty_features=True, random_state=0
        )
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            expected = scikit_learn.impute(imputer, support, everywhere)
            patch.setattr(iterative, "_TURNS", turns)
            got = iterative.predict(with_padding(support, 60), everywhere, {"alpha": alpha})
        np.testing.assert_allclose(got, expected, atol=1e-4)
