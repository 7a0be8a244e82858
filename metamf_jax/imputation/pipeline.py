"""Completes one matrix of any size and any scale: the pipeline around the learned prior.

1. Rows and columns without cells are set aside (`places`); they share one answer, that of the
   prior.
2. Values are standardised, by one mean and deviation, by each column's or by each row's
   (`scaling`). By rows, all that follows is done to the transpose.
3. Candidates for what the cells hold are found (`fitting`, `candidates`), each knowing what the
   former knows: a bias model with learned shrinkage; factors under the encoder's prior
   (`zero_shot`); a posterior that starts there and learns its precisions from the matrix
   (`posterior`). Besides, the column's mean. For narrow tables four more (`row_models`): Gaussians
   over the rows, of values and of normal scores, each with and without trees for its errors.
4. A held-out check on observed cells (`held_out`) weights the candidates, for narrow tables in each
   column by itself, chooses the standardisation, and measures by how much the error bars are too
   narrow (split conformal prediction; Vovk et al. 2005). Too few cells to check leave everything at
   what the prior says.
5. Where told that cells are missing by value, and a narrow table shows that large values (or small
   ones) are the likelier to be missing, what is imputed is moved that way
   (`row_gaussian.missing_by_value`), as far as held-out cells that stand for the missing ones bear
   out, and error bars are those of such cells.
6. A large sparse matrix with one unit for all cells is answered by draws of its posterior too
   (`sampled`): these and the weighted candidates are averaged, by what short chains make of the
   held-out cells (`held_out.draws_share`).

No gradient step is taken: but for trees and draws all of it is closed-form, and it is deterministic
in the seed.
"""

import functools
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import numpy as np

from metamf_jax.imputation import (
    candidates,
    fitting,
    held_out,
    row_gaussian,
    row_index,
    sampled,
    scaling,
)
from metamf_jax.imputation.candidates import CANDIDATES, OF_FACTORS
from metamf_jax.imputation.completion import Completion
from metamf_jax.imputation.fitting import Fit
from metamf_jax.imputation.held_out import Check, HeldOut
from metamf_jax.imputation.places import require_valid, set_aside
from metamf_jax.imputation.prior import LearnedPrior
from metamf_jax.imputation.sampled import Sampled
from metamf_jax.imputation.scaling import STANDARDIZATIONS, Scaling
from metamf_jax.types import Entries

# Why cells are missing: for what else is observed, or for what they would say.
MISSING = ("at_random", "by_value")
# Beside the candidates, draws of the posterior, which have a share of their own.
DRAWS = "draws"
# For small rating matrices their hyperparameters have a learned prior.
HYPERPRIOR = "hyperprior"
# And they know which cells are observed.
PATTERN = "pattern"
PARTS = (*CANDIDATES, DRAWS, HYPERPRIOR, PATTERN)
# Parts held out to compare draws on: each takes chains of its own.
_PARTS_BY_DRAWS = 2


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
) -> Completion:
    """Completes a matrix from its observed cells.

    Args:
      prior: the learned prior.
      entries: [E] observed cells, NumPy arrays, each cell once.
      standardize: by what, one of `scaling.STANDARDIZATIONS`; None to choose by the held-out check.
      missing: ``at_random``, for whatever else is observed, or ``by_value``, one of `MISSING`. The
        observed cells cannot tell for sure: imputed values are moved for those who know the latter
        (see `row_gaussian.missing_by_value` for what it costs where they are wrong).
      allowed: the `PARTS` that may be used: which candidates may have a weight, whether draws may
        have a share, be under the learned hyperprior and know features of the pattern; to see what
        each is worth.
      seed: of the choice of held-out cells.
      progress: told of each stage as it begins.

    Raises:
      ValueError: no cell, a cell outside of the matrix or twice, a value that is not finite, or an
        unknown option.
    """
    _require_known(standardize, missing, allowed)
    require_valid(entries)
    dense, places = set_aside(entries)
    turned = scaling.transpose(dense)
    trials, fits = _trials(dense, turned, standardize), []
    for trial in trials:
        matrix = turned if trial.transposed else dense
        by = "matrix" if trial.by == "matrix" else "columns"
        fits.append(fitting.fit(prior, matrix, by, trial.with_rows, seed, progress, allowed))
    best = int(np.argmin(_errors(fits, trials, dense)))
    trial, fit = trials[best], fits[best]
    _require_finite(fit, entries)
    drawn, share, check = None, 0.0, fit.check
    learned = sampled.hyperprior_for(dense)
    if (
        DRAWS in allowed
        and trial.by == "matrix"
        and missing == "at_random"
        and sampled.suits(dense, learned)
    ):
        draw = functools.partial(
            sampled.fit,
            learned=learned if HYPERPRIOR in allowed else None,
            with_pattern=PATTERN in allowed,
        )
        drawn, share, check = _by_draws(fit, dense, trial.transposed, entries, draw, seed, progress)
    if trial.transposed:
        dense, places = turned, places.turned
    padded = len(fit.fitted.columns.v)
    scales = _padded(fit, dense, padded)
    tilt, widening = np.zeros(padded), 1.0
    if missing == "by_value":
        tilt, widening = _moves(fit, dense, scales)
    return Completion(
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
        bounds=scaling.fit_bounds(dense, fit.by, padded),
        tilt=tilt,
        missing=1 - np.bincount(dense.columns, minlength=padded) / dense.shape[0],
        cells=candidates.cells(fit.weights, fit.fitted.rows, fit.fitted.columns),
        columns=fit.fitted.columns,
        fitted_rows=row_index.build(entries) if trial.transposed or drawn is not None else None,
        settled=scaling.settled(entries),
        check=_of_all_columns(check, places.columns),
        sampled=drawn,
        draws_share=share,
    )


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


def _trials(dense: Entries, turned: Entries, standardize: str | None) -> list[_Trial]:
    """One unit for all cells, and one for each column or row where these are unlike."""
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


def _narrow(entries: Entries) -> bool:
    counts = np.bincount(entries.rows, minlength=entries.shape[0])
    return row_gaussian.suits(counts, entries.shape[1])


def _errors(fits: list[Fit], trials: list[_Trial], dense: Entries) -> np.ndarray:
    """Mean squared errors of held-out cells in units of each column's deviation, or each row's.

    These are what is asked of the last trial; the same cells count for all.
    """
    if len(fits) == 1 or any(fit.held_out is None for fit in fits):
        # Without a check all columns are taken to have one unit.
        return np.arange(len(fits))
    common = functools.reduce(np.intersect1d, [fit.numbers for fit in fits])
    matrix = scaling.transpose(dense) if trials[-1].by == "rows" else dense
    units = scaling.fit_scaling(matrix, "columns").scales[matrix.columns]
    errors = []
    for fit in fits:
        assert fit.held_out is not None
        kept = np.isin(fit.numbers, common)
        left = (fit.held_out.values - fit.held_out.predicted)[kept]
        most = held_out.MOST_ERROR
        errors.append((np.clip(left / units[fit.numbers[kept]], -most, most) ** 2).mean())
    return np.array(errors)


def _require_finite(fit: Fit, entries: Entries) -> None:
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.fitted)):
        raise ValueError(
            f"the factors of this {entries.shape[0]} x {entries.shape[1]} matrix with "
            f"{len(entries.rows)} cells came out non-finite: its values may be too far apart for "
            "float32"
        )


def _by_draws(
    fit: Fit,
    dense: Entries,
    transposed: bool,
    entries: Entries,
    draw: Callable[..., Sampled],
    seed: int,
    progress: Callable[[str], None],
) -> tuple[Sampled | None, float, Check]:
    """The matrix by draws, or None where these have no share; their share; and the check."""
    assert fit.held_out is not None
    found = []
    for numbers in held_out.folds(len(dense.rows), seed)[:_PARTS_BY_DRAWS]:
        progress("drawing from the posterior without held-out cells")
        kept = fitting.without(dense, numbers)
        part = draw(kept, "matrix", sampled.SHORT_LENGTHS)
        rows, columns = (np.asarray(x)[numbers] for x in (dense.rows, dense.columns))
        found.append(sampled.predict(part, rows, columns))
    drawn, bars = (np.concatenate(x) for x in zip(*found, strict=True))
    compared = slice(len(drawn))
    cells = HeldOut(*(x[compared] for x in fit.held_out))
    unit = fit.scaling.scales[0]
    share = held_out.draws_share(
        (cells.values - drawn) / unit, (cells.values - cells.predicted) / unit
    )
    if share == 0:
        return None, share, fit.check
    cells = cells._replace(predicted=share * drawn + (1 - share) * cells.predicted, bars=bars)
    inflation, coverage = held_out.inflation(np.abs(cells.values - cells.predicted) / bars)
    matrix = scaling.transpose(dense) if transposed else dense
    units = scaling.fit_scaling(matrix, "columns").scales
    check = held_out.check(cells, fit.of_bias[compared], fit.of_means[compared], coverage, units)
    progress("drawing from the posterior")
    drawn = draw(entries, "matrix")
    return drawn._replace(inflation=inflation), share, check


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
    bars = fit.inflation[0] * cells.bars / scale
    further, widening = held_out.moved(standardised, tilt[m], np.zeros(len(m)), bars)
    return further * tilt, widening


def _of_all_columns(check: Check, places: np.ndarray) -> Check:
    """The same of all columns, those without cells too."""
    by_column, means = (np.append(x, np.nan)[places] for x in check[-2:])
    return check._replace(by_column=by_column, mean_by_column=means)
