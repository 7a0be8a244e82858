"""Completes one matrix of any size and any scale: the pipeline around the learned prior.

1. Rows and columns without cells are set aside (`places`); they share one answer, that of the
   prior.
2. Values are standardised, by one mean and deviation, by each column's or by each row's
   (`scaling`). By rows, all that follows is done to the transpose.
3. Candidates for what the cells hold are found (`fitting`, `candidates`), each knowing what the
   former knows: a bias model with learned shrinkage; factors under the encoder's prior
   (`zero_shot`); a posterior that starts there and learns its precisions from the matrix
   (`posterior`). Besides, the column's mean. For narrow tables four more (`row_models`): Gaussians
   over the rows, of values and of normal scores, each with and without trees for its errors. Small
   matrices of few levels that turn out to be as noisy as ratings are (`sampled.like_ratings`) have
   an encoder of their own, if the learned prior is the package's `general` one.
4. A held-out check on observed cells (`held_out`) weights the candidates, for narrow tables in each
   column by itself, chooses the standardisation, and measures by how much the error bars are too
   narrow (split conformal prediction; Vovk et al. 2005). Too few cells to check leave everything at
   what the prior says.
5. Where told that cells are missing by value, and a narrow table shows that large values (or small
   ones) are the likelier to be missing, what is imputed is moved that way
   (`row_gaussian.missing_by_value`), as far as held-out cells that stand for the missing ones bear
   out, and error bars are those of such cells.
6. A large sparse matrix with one unit for all cells, or a small one like ratings, is answered by
   draws of its posterior too (`sampled`): these and the weighted candidates are averaged, by what
   short chains make of the held-out cells (`held_out.draws_share`). Of matrices like ratings the
   draws have a learned hyperprior; where values are not few levels, unless draws without it are
   better on held-out cells. Draws alone know what a user's tables tell of rows and
   columns: with such a matrix of one unit is answered by draws in any case, with these features
   unless held-out cells are answered better without, and rows and columns of which nothing else is
   known by draws alone.

No gradient step is taken: but for trees and draws all of it is closed-form, and it is deterministic
in the seed.
"""

import functools
from collections.abc import Callable, Collection, Hashable
from typing import NamedTuple

import jax
import numpy as np

from metamf_jax.imputation import (
    candidates,
    fitting,
    fold_in,
    held_out,
    row_gaussian,
    row_index,
    sampled,
    scaling,
)
from metamf_jax.imputation.candidates import CANDIDATES, OF_FACTORS, OF_ROWS
from metamf_jax.imputation.completion import Completion
from metamf_jax.imputation.feature_tables import Features
from metamf_jax.imputation.fitting import Fit
from metamf_jax.imputation.held_out import Check, HeldOut
from metamf_jax.imputation.memory import Memory
from metamf_jax.imputation.places import Places, require_valid, set_aside
from metamf_jax.imputation.prior import LearnedPrior, load_prior
from metamf_jax.imputation.sampled import Sampled
from metamf_jax.imputation.scaling import STANDARDIZATIONS, Scaling
from metamf_jax.posterior.given import GivenFeatures
from metamf_jax.posterior.learned_hyperprior import LearnedHyperprior
from metamf_jax.types import Entries

# Why cells are missing: for what else is observed, or for what they would say.
MISSING = ("at_random", "by_value")
# Beside the candidates, draws of the posterior, which have a share of their own.
DRAWS = "draws"
# Small rating matrices have an encoder of their own, and draws of them a learned hyperprior.
RATINGS = "ratings"
HYPERPRIOR = "hyperprior"
# And they know which cells are observed.
PATTERN = "pattern"
# What they have of the answer before anything is known of the matrix is learned, too.
SHARE = "share"
PARTS = (*CANDIDATES, RATINGS, DRAWS, HYPERPRIOR, PATTERN, SHARE)
# Parts held out to compare draws on: each takes chains of its own.
_PARTS_BY_DRAWS = 2
# Narrow tables with more rows are fitted on so many, and at least so many cells of each column.
_MOST_FITTED_ROWS, _FEWEST_FITTED_CELLS = 2**15, 2**10


Given = tuple[GivenFeatures, GivenFeatures]


class _Job(NamedTuple):
    """A matrix to be drawn.

    Attributes:
      entries: of it, with empty rows and columns.
      places: where these and the others stand.
      learned: what its hyperparameters are expected to be, if that is known.
      share: of draws, before anything is known of the matrix.
      with_pattern: whether features of which cells are observed are known.
      given: features of its rows and columns, if any.
      seed: of the choice of held-out cells.
      progress: told of each stage as it begins.
      memory: of fits and draws.
    """

    entries: Entries
    places: Places
    learned: LearnedHyperprior | None
    share: float
    with_pattern: bool
    given: Given | None
    seed: int
    progress: Callable[[str], None]
    memory: Memory


class _Drawn(NamedTuple):
    """A matrix by draws, if these have a share; what that is; and what held-out cells said."""

    sampled: Sampled | None
    share: float
    check: Check
    features: Features | None


# Deviations of a column; larger errors are alike to the choice of a unit.
_MOST_ERROR = 10.0


class _Trial(NamedTuple):
    """One standardisation to be tried.

    Attributes:
      by: one of `STANDARDIZATIONS`.
      transposed: whether the transpose is fitted.
      with_rows: whether a Gaussian over the rows may be fitted too.
    """

    by: str
    transposed: bool
    with_rows: bool


def complete(
    prior: LearnedPrior,
    entries: Entries,
    *,
    standardize: str | None = None,
    missing: str = "at_random",
    allowed: Collection[str] = PARTS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
    given: Given | None = None,
    memory: Memory | None = None,
) -> Completion:
    """Completes a matrix from its observed cells.

    Args:
      prior: the learned prior.
      entries: [E] observed cells, NumPy arrays, each cell once.
      standardize: by what, one of `scaling.STANDARDIZATIONS`; None to choose by the held-out check.
      missing: ``at_random``, for whatever else is observed, or ``by_value``, one of `MISSING`. The
        observed cells cannot tell for sure: imputed values are moved for those who know the latter
        (see `row_gaussian.missing_by_value` for what it costs where they are wrong).
      allowed: the `PARTS` that may be used: which candidates may have a weight, whether rating
        matrices have an encoder of their own, whether draws may have a share, be under the learned
        hyperprior, know features of the pattern and start from a learned share; to see what each is
        worth.
      seed: of the choice of held-out cells.
      progress: told of each stage as it begins.
      given: features of all rows and columns, from `feature_tables.coded`.
      memory: of completions of the same entries, features and seed, to share their work.

    Raises:
      ValueError: no cell, a cell outside of the matrix or twice, a value that is not finite, an
        unknown option, or features of a matrix that draws do not answer.
    """
    _require_known(standardize, missing, allowed)
    require_valid(entries)
    dense, places = set_aside(entries)
    if given is not None:
        # Before all the work, what can be known by then.
        allowed_by = DRAWS in allowed and standardize in (None, "matrix")
        _require_draws(dense, entries.shape, allowed_by, missing)
    every = dense
    may_draw = DRAWS in allowed and missing == "at_random"
    by_draws = may_draw and (given is not None or sampled.suits(dense))
    trials = _trials(dense, standardize)
    of_sample = not any(trial.transposed or by_draws for trial in trials)
    of_sample = of_sample and _narrow(dense) and dense.shape[0] > _MOST_FITTED_ROWS
    if of_sample:
        dense = _sample_of_rows(dense, seed)
    turned, memory = scaling.transpose(dense), memory or Memory()
    levels = sampled.of_few_levels(dense)
    own = levels and RATINGS in allowed and is_packaged(prior, "general")
    # Most matrices of few levels are ratings: for these the wrong one is hardly ever fitted.
    first = load_prior("ratings") if own and len(trials) == 1 else prior
    trial, fit = _best_trial(first, dense, trials, allowed, seed, progress, memory)
    ratings = trial.by == "matrix" and _like_ratings(dense, fit)
    prior = load_prior("ratings") if own and ratings else prior
    if prior is not first:
        trial, fit = _best_trial(prior, dense, trials, allowed, seed, progress, memory)
        ratings = ratings and trial.by == "matrix"
    _require_finite(fit, entries)
    if given is not None:
        _require_draws(dense, entries.shape, by_draws and trial.by == "matrix", missing)
    by_draws = trial.by == "matrix" and (by_draws or (may_draw and ratings))
    drawn = _Drawn(None, 0.0, fit.check, None)
    if by_draws:
        learned = sampled.packaged_hyperprior() if ratings and HYPERPRIOR in allowed else None
        share = held_out.START_SHARE
        if ratings and SHARE in allowed:
            share = sampled.share_of_ratings(len(dense.rows))
        known = PATTERN in allowed
        job = _Job(entries, places, learned, share, known, given, seed, progress, memory)
        drawn = _by_draws(fit, dense, trial.transposed, job)
    if trial.transposed:
        dense, places = turned, places.turned
    padded = len(fit.fitted.columns.v)
    scales = _padded(fit, dense, padded)
    tilt, widening = np.zeros(padded), 1.0
    if missing == "by_value":
        tilt, widening = _moves(fit, dense, scales)
    every = every if of_sample else dense
    completion = Completion(
        prior=prior,
        entries=entries,
        shape=entries.shape,
        transposed=trial.transposed,
        places=places,
        standardized_by=trial.by,
        scaling=scales,
        weights=fit.weights,
        inflation=fit.inflation[0],
        posterior_inflation=fit.inflation[1],
        widening=widening,
        bounds=scaling.fit_bounds(every, fit.by, padded),
        tilt=tilt,
        missing=1 - np.bincount(every.columns, minlength=padded) / every.shape[0],
        cells=candidates.cells(fit.weights, fit.fitted.rows, fit.fitted.columns),
        columns=fit.fitted.columns,
        fitted_rows=row_index.build(entries) if trial.transposed or drawn.sampled else None,
        settled=scaling.settled(entries),
        check=_of_all_columns(drawn.check, places.columns),
        sampled=drawn.sampled,
        draws_share=drawn.share,
        features=drawn.features,
    )
    return fold_in.with_rows(completion, every) if of_sample else completion


def _sample_of_rows(dense: Entries, seed: int) -> Entries:
    """Rows at random, and of each column so many more that some of its cells are among them."""
    order = np.random.default_rng([seed, 0x7A11]).permutation(dense.shape[0])
    turn = np.argsort(order)
    chosen = turn < _MOST_FITTED_ROWS
    by_turn = np.argsort(turn[dense.rows], kind="stable")
    by_column = by_turn[np.argsort(dense.columns[by_turn], kind="stable")]
    ends = np.bincount(dense.columns, minlength=dense.shape[1]).cumsum()
    # [E], which of its column's cells each is.
    place = np.arange(len(by_column)) - np.append(0, ends[:-1])[dense.columns[by_column]]
    chosen[dense.rows[by_column[place < _FEWEST_FITTED_CELLS]]] = True
    kept = chosen[dense.rows]
    rows = (np.cumsum(chosen) - 1)[dense.rows[kept]].astype(dense.rows.dtype)
    shape = int(chosen.sum()), dense.shape[1]
    return Entries(rows, dense.columns[kept], dense.values[kept], shape)


def _require_known(standardize: str | None, missing: str, allowed: Collection[str]) -> None:
    if standardize not in (None, *STANDARDIZATIONS):
        known = ", ".join(STANDARDIZATIONS)
        raise ValueError(f"expected the standardisation {known}, got {standardize!r}")
    if missing not in MISSING:
        raise ValueError(f"expected cells missing {' or '.join(MISSING)}, got {missing!r}")
    if not set(allowed) <= set(PARTS) or not set(allowed) & set(OF_FACTORS):
        raise ValueError(
            f"expected candidates among {', '.join(PARTS)}, one of the "
            f"first {len(OF_FACTORS)} at least, got {', '.join(allowed) or 'none'}"
        )


def _trials(dense: Entries, standardize: str | None) -> list[_Trial]:
    """One unit for all cells, and one for each column or row where these are unlike."""
    turned = scaling.transpose(dense)
    tried = ["matrix"]
    if standardize is not None:
        tried = [standardize]
    else:
        unlike = scaling.unlike_sides(dense)
        if unlike and _narrow(dense):
            # The models of rows answer such a table best, and are of its columns.
            tried = ["columns"]
        elif unlike:
            tried.append(unlike)
    # A matrix with few rows and many columns, one unit for all, is narrow when turned.
    flat = _narrow(turned) and not _narrow(dense)
    # What is said of rows hardly depends on the standardisation: the last one does.
    again = ("rows" if flat else "columns") in tried
    return [
        _Trial(by, by == "rows" or (by == "matrix" and flat), by != "matrix" or not again)
        for by in tried
    ]


def is_packaged(prior: LearnedPrior, name: str) -> bool:
    """Whether a prior is the package's of this name, perhaps from the file of a fit."""
    known = load_prior(name)
    if prior is known or prior.config != known.config or prior.trained_on != known.trained_on:
        return prior is known
    same = jax.tree.map(np.array_equal, prior.params, known.params)
    return all(jax.tree.leaves(same))


def _best_trial(
    prior: LearnedPrior,
    dense: Entries,
    trials: list[_Trial],
    allowed: Collection[str],
    seed: int,
    progress: Callable[[str], None],
    memory: Memory,
) -> tuple[_Trial, Fit]:
    """The trial of the least error on held-out cells, and its fit."""
    fits, turned = [], scaling.transpose(dense)
    for trial in trials:
        matrix = turned if trial.transposed else dense
        by = "matrix" if trial.by == "matrix" else "columns"
        with_rows = trial.with_rows and any(name in allowed for name in OF_ROWS)
        # The prior is kept too, so that no other comes to have its number.
        _, parts = memory.get(
            (id(prior.params), trial, with_rows, dense.shape),
            lambda matrix=matrix, by=by, with_rows=with_rows: (
                prior,
                fitting.fit(prior, matrix, by, with_rows, seed, progress),
            ),
        )
        fits.append(fitting.check(matrix, parts, allowed))
    best = _best(_errors(fits, trials, dense))
    return trials[best], fits[best]


def _best(errors: np.ndarray) -> int:
    """Which trial has the least errors, [T, H]: the first, unless another by a standard error.

    Of few cells a unit for each column is a guess, and may look good by chance.
    """
    less = errors[0] - errors
    doubt = less.std(axis=1) / np.sqrt(errors.shape[1])
    return int(np.argmax(less.mean(axis=1) - doubt))


def _narrow(entries: Entries) -> bool:
    counts = np.bincount(entries.rows, minlength=entries.shape[0])
    return row_gaussian.suits(counts, entries.shape[1])


def _errors(fits: list[Fit], trials: list[_Trial], dense: Entries) -> np.ndarray:
    """Squared errors [T, H] of held-out cells in units of each column's deviation, or each row's.

    These are what is asked of the last trial; the same cells count for all.
    """
    if len(fits) == 1 or any(fit.held_out is None for fit in fits):
        # Without a check all columns are taken to have one unit.
        return np.arange(len(fits))[:, None]
    common = functools.reduce(np.intersect1d, [fit.numbers for fit in fits])
    matrix = scaling.transpose(dense) if trials[-1].by == "rows" else dense
    units = scaling.fit_scaling(matrix, "columns").scales[matrix.columns]
    errors = []
    for fit in fits:
        assert fit.held_out is not None
        kept = np.isin(fit.numbers, common)
        left = (fit.held_out.values - fit.held_out.predicted)[kept]
        errors.append(np.minimum(np.abs(left / units[fit.numbers[kept]]), _MOST_ERROR) ** 2)
    return np.array(errors)


def _require_finite(fit: Fit, entries: Entries) -> None:
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.fitted)):
        raise ValueError(
            f"the factors of this {entries.shape[0]} x {entries.shape[1]} matrix with "
            f"{len(entries.rows)} cells came out non-finite: its values may be too far apart for "
            "float32"
        )


def _like_ratings(dense: Entries, fit: Fit) -> bool:
    """Of a matrix of one unit, whether it is small, as noisy as ratings, and its rows tell less."""
    untold = (fit.check.rmse / float(fit.scaling.scales[0])) ** 2
    return fit.fitted.row_models is None and sampled.like_ratings(dense, untold)


def _require_draws(dense: Entries, shape: tuple[int, int], by_draws: bool, missing: str) -> None:
    """Refuses features where draws, which alone know them, do not answer."""
    count = len(dense.rows)
    if missing != "at_random":
        found = f"got cells missing {missing}"
    elif not by_draws:
        found = (
            "here each column, or row, has a unit of its own (if they have one, say so:"
            ' standardize="matrix")'
        )
    elif not sampled.suits_with_features(dense, shape):
        found = f"got {count} cells of {shape[0]} rows and {shape[1]} columns"
    else:
        return
    raise ValueError(
        "features of rows and columns are used by draws of the posterior, which answer a matrix of"
        f" one unit with {sampled.FEWEST_WITH_FEATURES} to {sampled.MOST_CELLS} cells and room in"
        f" memory; {found}; leave the features out, or give those of rows as further columns of"
        " the table"
    )


def _by_draws(fit: Fit, dense: Entries, transposed: bool, job: _Job) -> _Drawn:
    """Draws, and what they are worth on held-out cells, with features and without.

    Args:
      fit: the candidates.
      dense: the matrix without empty rows and columns.
      transposed: whether the transpose was fitted.
      job: the matrix.
    """
    assert fit.held_out is not None
    given = None if job.given is None else sampled.select(job.given, job.places)
    drawn, bars = _held_out_draws(dense, given, job)
    compared, features = slice(len(drawn)), None
    cells = HeldOut(*(x[compared] for x in fit.held_out))
    if job.learned is not None and not sampled.of_few_levels(dense):
        # Perhaps no ratings.
        flat = job._replace(learned=None)
        other = _held_out_draws(dense, given, flat)
        if _worse(cells.values, drawn, other[0]):
            job, (drawn, bars) = flat._replace(share=held_out.START_SHARE), other
    if job.given is not None:
        other = _held_out_draws(dense, None, job)
        features = _compared(job.given, cells.values, drawn, other[0])
        if not features.used:
            drawn, bars = other
    unit = fit.scaling.scales[0]
    share = held_out.draws_share(
        (cells.values - drawn) / unit, (cells.values - cells.predicted) / unit, job.share
    )
    used = job.given if features is not None and features.used else None
    # Where they have no share, draws still answer for rows and columns known by features alone.
    if share == 0 and used is None:
        return _Drawn(None, share, fit.check, features)
    cells = cells._replace(predicted=share * drawn + (1 - share) * cells.predicted, bars=bars)
    inflation, coverage = held_out.inflation(np.abs(cells.values - cells.predicted) / bars)
    matrix = scaling.transpose(dense) if transposed else dense
    units = scaling.fit_scaling(matrix, "columns").scales
    check = held_out.check(cells, fit.of_bias[compared], fit.of_means[compared], coverage, units)
    job.progress("drawing from the posterior")
    found = _drawn(job.entries, used, job)
    return _Drawn(found._replace(inflation=inflation), share, check, features)


def _held_out_draws(
    dense: Entries, given: Given | None, job: _Job
) -> tuple[np.ndarray, np.ndarray]:
    """Values and errors of held-out cells by short chains that do not know them."""
    found = []
    for number, numbers in enumerate(held_out.folds(len(dense.rows), job.seed)[:_PARTS_BY_DRAWS]):
        job.progress("drawing from the posterior without held-out cells")
        kept = fitting.without(dense, numbers)
        part = _drawn(kept, given, job, number)
        rows, columns = (np.asarray(x)[numbers] for x in (dense.rows, dense.columns))
        found.append(sampled.predict(part, rows, columns))
    values, bars = (np.concatenate(x) for x in zip(*found, strict=True))
    return values, bars


def _drawn(entries: Entries, given: Given | None, job: _Job, part: int | None = None) -> Sampled:
    """Draws of the whole matrix, or short chains of what is left of it without a part."""
    lengths = sampled.LENGTHS if part is None else sampled.SHORT_LENGTHS
    return job.memory.get(
        draws_key(job.learned, job.with_pattern, given is not None, part),
        lambda: sampled.fit(entries, "matrix", lengths, job.learned, job.with_pattern, given),
    )


def draws_key(
    learned: LearnedHyperprior | None, with_pattern: bool, with_given: bool, part: int | None
) -> Hashable:
    """Under what draws are kept; see `_drawn`."""
    return "draws", learned, with_pattern, with_given, part


def _compared(
    given: Given, values: np.ndarray, with_them: np.ndarray, without: np.ndarray
) -> Features:
    """Features, which are used unless draws without are better by more than a standard error.

    Cells of rows with cells say little of what they are worth to rows without; and features that
    tell nothing are given next to no weight by the draws themselves.
    """
    rmse, rmse_without = (float(np.sqrt(((values - x) ** 2).mean())) for x in (with_them, without))
    return Features(given, rmse, rmse_without, not _worse(values, with_them, without))


def _worse(values: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    """Whether the squared errors of one are larger by more than a standard error; [H] each."""
    more = (values - one) ** 2 - (values - other) ** 2
    return bool(more.mean() > more.std() / np.sqrt(len(more)))


def _padded(fit: Fit, dense: Entries, padded: int) -> Scaling:
    """The standardisation of all columns, also of padding: around the mean, in the widest unit."""
    centers, scales = fit.scaling
    more = padded - len(centers)
    every = fit.scaling if fit.by == "matrix" else scaling.fit_scaling(dense, "matrix")
    center = every.centers[0]
    return Scaling(
        np.append(centers, np.full(more, center)), np.append(scales, np.full(more, scales.max()))
    )


def _moves(fit: Fit, dense: Entries, scales: Scaling) -> tuple[np.ndarray, float]:
    """The completion's ``tilt`` and ``widening`` where cells are missing by value."""
    tilt, models, cells = np.zeros(len(scales.scales)), fit.fitted.row_models, fit.held_out
    if models is not None:
        rows = fitting.dense(scaling.standardize(dense, fit.scaling))
        slopes = row_gaussian.missing_by_value(models.values.gaussian, *rows)
        tilt[: len(slopes)] = slopes
    if cells is None or not tilt.any():
        return tilt, 1.0
    m = cells.columns
    center, scale = scales.centers[m], scales.scales[m]
    standardised = cells._replace(
        values=(cells.values - center) / scale, predicted=(cells.predicted - center) / scale
    )
    bars = fit.inflation[0][cells.columns] * cells.bars / scale
    further, widening = held_out.moved(standardised, tilt[m], np.zeros(len(m)), bars)
    return further * tilt, widening


def _of_all_columns(check: Check, places: np.ndarray) -> Check:
    """The same of all columns, those without cells too."""
    by_column, means = (np.append(x, np.nan)[places] for x in check[-2:])
    return check._replace(by_column=by_column, mean_by_column=means)
