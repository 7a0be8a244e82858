"""Sparse matrices of one unit are answered by draws of their posterior and the candidates."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest
import scipy.sparse

from metamf_jax import MetaMFImputer
from metamf_jax.data.rating_matrices import draw_rating_matrix
from metamf_jax.imputation import (
    columns,
    completion,
    fit_file,
    fold_in,
    held_out,
    mixed,
    pipeline,
    quantiles,
    sampled,
    update,
)
from metamf_jax.imputation.candidates import CANDIDATES
from metamf_jax.imputation.memory import Memory
from metamf_jax.imputation.prior import load_prior
from metamf_jax.posterior.chains import ChainsConfig
from metamf_jax.types import Entries

PRIOR = load_prior("general")


def select(entries, which):
    return Entries(
        entries.rows[which], entries.columns[which], entries.values[which], entries.shape
    )


@pytest.fixture(scope="module")
def ratings():
    """Half stars of 90 users for 70 films, whose tastes say what they see: a third of all."""
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(90, 2)), rng.normal(size=(70, 2))
    liking = u @ v.T
    full = 3.2 + 0.5 * liking + 0.4 * rng.normal(size=(90, 1)) + 0.4 * rng.normal(size=70)
    full = np.clip(np.round(2 * (full + 0.4 * rng.normal(size=full.shape))) / 2, 0.5, 5)
    seen = rng.random(full.shape) < 1 / (1 + np.exp(0.8 - 0.7 * liking))
    # A row and a column without cells.
    seen[7], seen[:, 11] = False, False
    rows, columns = (x.astype(np.int32) for x in np.nonzero(seen))
    entries = Entries(rows, columns, full[rows, columns], full.shape)
    held = rng.random(len(rows)) < 0.2
    return select(entries, ~held), select(entries, held)


@pytest.fixture(scope="module")
def completed(ratings):
    return pipeline.complete(PRIOR, ratings[0])


@pytest.fixture(scope="module")
def dense(ratings):
    values = np.full(ratings[0].shape, np.nan)
    values[ratings[0].rows, ratings[0].columns] = ratings[0].values
    return values


def test_draws_and_candidates_answer_better_than_either(ratings, completed):
    train, test = ratings
    assert completed.sampled is not None
    candidates = pipeline.complete(PRIOR, train, allowed=CANDIDATES)
    assert candidates.sampled is None
    draws = dataclasses.replace(completed, draws_share=1.0)
    errors = []
    for one in (completed, draws, candidates):
        values, bars = completion.predict(one, test.rows, test.columns)
        errors.append(np.sqrt(((values - test.values) ** 2).mean()))
        inside = np.abs(values - test.values) <= held_out.NORMAL_QUANTILE * bars
        assert 0.84 < inside.mean() < 0.96
    # Under the learned hyperprior draws are as good as the average; without it 0.495 to 0.493.
    assert errors[0] < min(1.01 * errors[1], errors[2])
    assert 0.3 < completed.draws_share < 1
    assert completed.check.rmse < candidates.check.rmse
    assert completed.check.bias_rmse > completed.check.rmse
    assert completed.check.by_column.shape == (70,)


def test_the_same_seed_gives_the_same_answer(ratings, completed):
    again = pipeline.complete(PRIOR, ratings[0])
    for one, other in zip(
        completion.predict_rows(completed, 0, 90),
        completion.predict_rows(again, 0, 90),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_cells_are_answered_as_their_rows_are(completed):
    values, errors = completion.predict_rows(completed, 0, 90)
    rows, columns = np.indices(values.shape).reshape(2, -1)
    one, bars = completion.predict(completed, rows, columns)
    np.testing.assert_allclose(one, values.ravel(), rtol=1e-4)
    np.testing.assert_allclose(bars, errors.ravel(), rtol=1e-3)
    low, high = (completed.bounds.low.min(), completed.bounds.high.max())
    assert low <= values.min() < values.max() <= high


def test_a_loaded_fit_answers_to_the_last_bit(completed, dense, tmp_path):
    path = tmp_path / "fit.safetensors"
    fit_file.save(path, fit_file.NamedCompletion(completed, None, None, {}))
    loaded = fit_file.load(path).completion
    observed = ~np.isnan(dense)
    answers = [
        (
            *fold_in.fold_in_rows(each, dense + 0.1, observed),
            *completion.predict(each, [0, 7, 90], [0, 11, 70]),
            *fold_in.impute(each, dense, observed, 2, seed=0),
        )
        for each in (completed, loaded)
    ]
    for one, other in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, other)


def test_chains_go_on_as_well_as_they_would_begin(ratings, completed):
    """First without the last 20 rows and 10 columns, of which one had no cell, and some others."""
    train, test = ratings
    rng = np.random.default_rng(0)
    inside = (train.rows < 70) & (train.columns < 60) & (rng.random(len(train.rows)) < 0.97)
    first = dataclasses.replace(select(train, inside), shape=(70, 60))
    again = dataclasses.replace(completed, entries=first, sampled=sampled.fit(first, "matrix"))
    again = update.update(again, select(train, ~inside))
    assert again.shape == (90, 70)
    assert again.sampled is not None
    assert len(again.check.by_column) == 70
    errors = []
    for one in (completed, again):
        values, _ = completion.predict(one, test.rows, test.columns)
        errors.append(np.sqrt(((values - test.values) ** 2).mean()))
    assert errors[1] < 1.02 * errors[0]
    # A cell given anew replaces the old one.
    changed = dataclasses.replace(select(train, np.array([5])), values=np.array([4.25]))
    merged = update.merge(train, changed)
    assert len(merged.rows) == len(train.rows)
    assert merged.values[-1] == 4.25
    with pytest.raises(ValueError, match=r"at least, got the shape \(70, 60\)"):
        update.update(completed, first)


def test_quantiles_of_the_draws(ratings, completed, dense):
    _, test = ratings
    low, middle, high = quantiles.of_cells(completed, test.rows, test.columns, (0.05, 0.5, 0.95))
    assert (low < middle).all()
    # Both may be the largest value.
    assert (middle <= high).all()
    inside = (low <= test.values) & (test.values <= high)
    assert 0.84 < inside.mean() < 0.97
    values, _ = completion.predict(completed, test.rows, test.columns)
    # Fitted values that are clipped pull the mean inwards.
    np.testing.assert_allclose(middle, values, atol=0.3)
    of_rows = quantiles.of_rows(completed, dense, ~np.isnan(dense), (0.05, 0.95))
    np.testing.assert_allclose(of_rows[0][test.rows, test.columns], low, atol=1e-4)
    np.testing.assert_allclose(of_rows[1][test.rows, test.columns], high, atol=1e-4)
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0.05 and 0.95, got 0.5, 1"):
        quantiles.of_cells(completed, [0], [0], (0.5, 1))


def test_unknown_rows_and_columns_are_answered_like_empty_ones(completed):
    values, errors = completion.predict(completed, [0, 7, 0, 7], [0, 0, 11, 11])
    # Under the learned hyperprior draws are as good as the average; without it 0.495 to 0.493.
    assert errors[0] < min(1.01 * errors[1], errors[2])
    same, bars = completion.predict(completed, [0, 900, 0, 900], [0, 0, 900, 900])
    np.testing.assert_array_equal(same, values)
    np.testing.assert_array_equal(bars, errors)
    with pytest.raises(ValueError, match="column numbers from 0, got -1"):
        completion.predict(completed, [0], [-1])


def test_rows_fold_in_as_they_were_fitted(completed, dense):
    observed = ~np.isnan(dense)
    values, errors = completion.predict_rows(completed, 0, 90)
    folded, bars = fold_in.fold_in_rows(completed, dense, observed)
    seen = observed.any(axis=1)
    np.testing.assert_allclose(folded[seen], values[seen], rtol=1e-6)
    np.testing.assert_allclose(bars[seen], errors[seen], rtol=1e-5)
    # One half star more, and none of them is known: by their cells nearly the same is said.
    other = np.where(observed, dense + 0.01, dense)
    moved, wide = fold_in.fold_in_rows(completed, other, observed)
    left = (moved - values)[seen]
    assert 0 < np.sqrt((left**2).mean()) < 0.3 * values.std()
    np.testing.assert_allclose(np.median(wide), np.median(errors), rtol=0.15)
    # By its own cells alone.
    alone, _ = fold_in.fold_in_rows(completed, other[3:4], observed[3:4])
    np.testing.assert_allclose(alone[0], moved[3], rtol=1e-5)
    nothing, _ = fold_in.fold_in_rows(completed, dense[7:8], observed[7:8])
    np.testing.assert_allclose(nothing[0], values[7], atol=0.5)


def test_columns_fold_in(completed, dense):
    observed = ~np.isnan(dense)
    values, _ = completion.predict_rows(completed, 0, 90)
    folded, bars = fold_in.fold_in_columns(completed, dense[:, :20], observed[:, :20])
    assert np.sqrt(((folded - values[:, :20]) ** 2).mean()) < 0.3 * values.std()
    assert (bars > 0).all()
    assert fold_in.fold_in_columns(completed, dense[:, :0], observed[:, :0])[0].shape == (90, 0)
    with pytest.raises(ValueError, match="finite"):
        fold_in.fold_in_columns(completed, np.full((90, 1), np.inf), np.ones((90, 1), bool))


@pytest.mark.parametrize(("factor", "offset"), [(1e200, 0.0), (1e-6, 0.0), (1.0, 1e8)])
def test_scale_and_shift_free(ratings, completed, factor, offset):
    train = ratings[0]
    moved = dataclasses.replace(train, values=factor * train.values + offset)
    fitted = pipeline.complete(PRIOR, moved)
    assert fitted.sampled is not None
    for part, (one, other) in enumerate(
        zip(
            completion.predict_rows(completed, 0, 90),
            completion.predict_rows(fitted, 0, 90),
            strict=True,
        )
    ):
        # Chains amplify rounding.
        left = (other - (0 if part else offset)) / factor - one
        assert np.sqrt((left**2).mean()) < 0.1


def test_which_matrices(ratings):
    train = ratings[0]
    assert sampled.suits(train)
    assert not sampled.suits(select(train, np.arange(len(train.rows)) < 500))
    full = np.indices((90, 70)).reshape(2, -1)
    assert not sampled.suits(Entries(full[0], full[1], np.zeros(6300), (90, 70)))


def test_small_rating_matrices_have_a_learned_hyperprior():
    rng = np.random.default_rng(0)
    listed = np.nonzero(rng.random((30, 30)) < 0.25)
    ratings = Entries(*listed, rng.integers(1, 6, len(listed[0])).astype(float), (30, 30))
    assert sampled.like_ratings(ratings, 1.0)
    assert not sampled.suits(ratings)
    assert not sampled.like_ratings(select(ratings, np.arange(len(listed[0])) < 9), 1.0)
    # An image is told by its other cells.
    assert not sampled.like_ratings(ratings, 0.2)
    assert not sampled.like_ratings(ratings, np.nan)
    learned = sampled.packaged_hyperprior()
    drawn = sampled.fit(ratings, "matrix", ChainsConfig(1, 2, 2), learned)
    assert drawn.config.learned == learned


def test_what_is_learned_of_ratings_is_for_what_is_as_noisy():
    """The draws for numbers of any scale, the encoder for levels; none for what others tell."""
    matrix = draw_rating_matrix(np.random.default_rng(3), 30)
    beside = np.random.default_rng(4).uniform(-0.3, 0.3, len(matrix.values))
    for values, prior in ((matrix.values, load_prior("ratings")), (matrix.values + beside, PRIOR)):
        found = pipeline.complete(PRIOR, dataclasses.replace(matrix, values=values))
        assert found.prior is prior
        assert found.sampled is not None
    alone = pipeline.complete(PRIOR, matrix, allowed=("posterior", "bias"))
    assert alone.prior is PRIOR
    assert alone.sampled is None
    told = (matrix.rows + matrix.columns).astype(float)
    found = pipeline.complete(PRIOR, dataclasses.replace(matrix, values=told))
    assert found.prior is PRIOR
    assert found.sampled is None
    # As the file of a fit holds it.
    held = load_prior("ratings")
    held = held._replace(params=jax.tree.map(np.array, held.params))
    assert pipeline.is_packaged(held, "ratings")
    assert not pipeline.is_packaged(held, "general")


def test_completions_share_what_they_fit_and_draw_alike():
    """With a memory answers are those without, and nothing is fitted again."""
    matrix, memory = draw_rating_matrix(np.random.default_rng(3), 30), Memory()
    again = []
    pipeline.complete(PRIOR, matrix, memory=memory)
    allowed = [part for part in pipeline.PARTS if part not in ("share", "mean")]
    found, own = (
        pipeline.complete(PRIOR, matrix, allowed=allowed, memory=known, progress=again.append)
        for known in (memory, None)
    )
    for one, other in zip(
        completion.predict_rows(found, 0, 5), completion.predict_rows(own, 0, 5), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert sum(stage.startswith("fitting") for stage in again) == 1


def test_the_estimator_transforms_what_it_fitted(ratings, completed, dense):
    train = ratings[0]
    stored = scipy.sparse.coo_array((train.values, (train.rows, train.columns)), shape=train.shape)
    imputer = MetaMFImputer(keep_empty_features=True).fit(stored.tocsr())
    assert imputer.completion_.sampled is not None
    values, errors = completion.predict_rows(completed, 0, 90)
    found, bars = pickle.loads(pickle.dumps(imputer)).transform(dense, return_std=True)
    missing = np.isnan(dense) & (~np.isnan(dense)).any(axis=1, keepdims=True)
    np.testing.assert_allclose(found[missing], values[missing], rtol=1e-6)
    np.testing.assert_allclose(bars[missing], errors[missing], rtol=1e-5)
    np.testing.assert_array_equal(found[~np.isnan(dense)], dense[~np.isnan(dense)])


def test_imputations_spread_as_the_error_bars_say(ratings, completed, dense):
    train, test = ratings
    observed = ~np.isnan(dense)
    several = fold_in.impute(completed, dense, observed, 20, seed=0)
    for each in several:
        np.testing.assert_array_equal(each[observed], dense[observed])
    low, high = train.values.min(), train.values.max()
    at = test.rows, test.columns
    values, errors = completion.predict(completed, *at)
    drawn = np.stack([each[at] for each in several])
    assert low - 0.1 <= drawn.min() < drawn.max() <= high + 0.1
    np.testing.assert_allclose(drawn.mean(axis=0).mean(), values.mean(), atol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0).mean(), errors.mean(), rtol=0.2)
    with pytest.raises(ValueError, match="1 to 100 imputations, got 0"):
        fold_in.impute(completed, dense, observed, 0, seed=0)


def test_a_table_is_imputed_several_times():
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(60, 1)) * [1.0, -10.0, 100.0, 0.5] + [0, 5, 0, 3]
    whole += 0.3 * np.array([1.0, 10.0, 100.0, 0.5]) * rng.normal(size=whole.shape)
    holes = np.where(rng.random(whole.shape) < 0.2, np.nan, whole)
    missing = np.isnan(holes)
    imputer = MetaMFImputer().fit(holes)
    assert imputer.completion_.sampled is None
    several = np.stack(imputer.sample(holes, imputations=10))
    assert (several[:, ~missing] == holes[~missing]).all()
    units = whole.std(axis=0)
    left = ((several.mean(axis=0) - whole) / units)[missing]
    assert np.sqrt((left**2).mean()) < 0.8
    assert ((several.std(axis=0) / units)[missing] > 0.1).all()


def test_a_narrow_tables_whole_numbers_and_levels_are_imputed_as_such():
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=80)
    holes = np.column_stack(
        [
            100 * hidden + rng.normal(size=80),
            np.rint(20 + 5 * hidden),
            hidden + rng.normal(size=80) > 0,
            np.full(80, np.nan),
        ]
    )
    holes[:, :3][rng.random((80, 3)) < 0.2] = np.nan
    several = MetaMFImputer(keep_empty_features=True).fit(holes).sample(holes, imputations=3)
    # By the draws whose intervals are put to the test (`experiments.coverage`).
    encoded, described = columns.of_matrix(holes)
    drawn = mixed.impute(mixed.fit_draws(encoded, described), encoded, 3)
    np.testing.assert_array_equal(np.stack(several)[..., :3], np.stack(drawn)[..., :3])
    for each in several:
        assert np.isfinite(each).all()
        assert (each[:, 1] == np.rint(each[:, 1])).all()
        assert set(each[:, 2]) == {0, 1}
    assert several[0].shape == holes.shape
