"""Fits a matrix under one standardisation, and parts of it to check the candidates on the rest."""

import functools
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import numpy as np

from metamf_jax import sums
from metamf_jax.imputation import (
    candidates,
    held_out,
    posterior,
    row_gaussian,
    row_models,
    scaling,
    zero_shot,
)
from metamf_jax.imputation.candidates import (
    CANDIDATES,
    OF_FACTORS,
    OF_ROWS,
    ColumnState,
    RowState,
)
from metamf_jax.imputation.held_out import Check, HeldOut
from metamf_jax.imputation.posterior import Posterior
from metamf_jax.imputation.prior import LearnedPrior
from metamf_jax.imputation.row_models import Completed, RowModels
from metamf_jax.imputation.row_solver import Rows
from metamf_jax.imputation.scaling import Scaling
from metamf_jax.meta_learning.padding import bucket_size, pad_dense, stack_entries
from metamf_jax.types import Entries

# Of a column; and of one of the parts of a table that the candidates are weighed by.
_TREES, _TREES_OF_PARTS = 25, 8
# The most of the posterior; fewer of the parts of a narrow table, which models of its rows answer:
# without any factors errors were the same on 24 tables.
_SWEEPS, _SWEEPS_OF_PARTS = 50, 4
# Cells, observed or not, of a matrix that is kept dense.
_MOST_DENSE = 2**15


def bucket(size: int, least: int) -> int:
    """Few sizes for small matrices, since each compiles anew; finer ones for large."""
    if size <= 2**14:
        return max(least, 1 << (size - 1).bit_length())
    return bucket_size(size)


class Fitted(NamedTuple):
    """All that was found of a standardised matrix.

    Attributes:
      adapted, posterior: see their classes.
      on_bias: whether the learned prior is for what a bias model leaves over.
      means: [M], of the columns' cells.
      row_models, completed: of a narrow table with rows enough, else None.
    """

    adapted: zero_shot.Adapted
    on_bias: bool
    posterior: Posterior
    means: np.ndarray
    row_models: RowModels | None = None
    completed: Completed | None = None

    @property
    def columns(self) -> ColumnState:
        """What further rows need."""
        context, v = self.adapted.context, self.adapted.factors.v
        return ColumnState(context, v, self.on_bias, self.posterior, self.means, self.row_models)

    @property
    def rows(self) -> RowState:
        """What is known of the fitted rows."""
        adapted = self.adapted
        return RowState(adapted.effects, adapted.factors.u, self.posterior.rows, self.completed)


class Fit(NamedTuple):
    """A matrix fitted under one standardisation, and what the held-out check said of that.

    Attributes:
      by: ``matrix`` or ``columns``, what was standardised by.
      scaling: by it.
      fitted: the standardised matrix.
      weights: of the candidates, by name; [M'] each, padding included.
      inflation: by what error bars are to be multiplied, the answer's in each column and the
        posterior's alone.
      check: what the held-out cells said.
      held_out: these cells; None where there were too few.
      numbers: [H], which of the observed cells they are.
      of_bias, of_means: [H], what the bias model and the columns' means made of them.
    """

    by: str
    scaling: Scaling
    fitted: Fitted
    weights: dict[str, np.ndarray]
    inflation: tuple[np.ndarray, float]
    check: Check
    held_out: HeldOut | None
    numbers: np.ndarray
    of_bias: np.ndarray
    of_means: np.ndarray


class _Predictions(NamedTuple):
    """What candidates, fitted without them, make of held-out cells; in the units of the values.

    Attributes:
      numbers: [H], which of the observed cells they are.
      values: of each candidate, [H].
      deviations: [2, H], standard deviations by the factors and by the row models;
        the latter those of the former where there is none.
    """

    numbers: np.ndarray
    values: dict[str, np.ndarray]
    deviations: np.ndarray


class Parts(NamedTuple):
    """A matrix fitted under one standardisation, and what fits of parts of it make of the rest.

    Attributes:
      by: what was standardised by.
      scaling: by it.
      fitted: the standardised matrix.
      found: at held-out cells; None where there were too few.
    """

    by: str
    scaling: Scaling
    fitted: Fitted
    found: _Predictions | None


def fit(
    prior: LearnedPrior,
    entries: Entries,
    by: str,
    with_rows: bool,
    seed: int,
    progress: Callable[[str], None],
) -> Parts:
    """Fits a matrix, and parts of it.

    Args:
      prior: the learned prior.
      entries: a matrix without empty rows or columns, NumPy arrays.
      by: the standardisation, one of `scaling.SCALINGS`.
      with_rows: whether models of the rows are fitted too, where they suit the matrix.
      seed: of the choice of held-out cells.
      progress: told of each stage as it begins.
    """
    checked = len(entries.rows) >= held_out.FEWEST_CHECKED
    held = held_out.folds(len(entries.rows), seed)
    # Of a handful of cells none is held out; they go through the same compiled program.
    parts = [without(entries, numbers) if checked else entries for numbers in held]
    scales = _scalings(prior, [entries, *parts], by)
    progress(f"fitting {len(scales)} times, standardised by {by}")
    standardised = [
        scaling.standardize(*each) for each in zip([entries, *parts], scales, strict=True)
    ]
    whole, *fitted = _fit_all(prior, standardised[0], standardised[1:], with_rows)
    found = _predict_held_out(entries, parts, held, scales[1:], fitted, by) if checked else None
    return Parts(by, scales[0], whole, found)


def check(entries: Entries, parts: Parts, allowed: Collection[str] = tuple(CANDIDATES)) -> Fit:
    """Checks the candidates on held-out cells, and weights them.

    Args:
      entries: the matrix that was fitted.
      parts: from `fit`.
      allowed: the candidates that may have a weight.
    """
    by, scales, whole, found = parts
    allowed = [name for name in CANDIDATES if name in allowed]
    size = len(whole.columns.v)
    if found is None:
        weights = held_out.start_weights(allowed)
        grown = np.full(size, held_out.START_INFLATION), held_out.START_INFLATION
        nothing, none = held_out.no_check(entries.shape[1]), np.zeros(0)
        every = _padded(weights, {}, size)
        return Fit(by, scales, whole, every, grown, nothing, None, none.astype(int), none, none)
    of_simple = found.values["bias"], found.values["mean"]
    checked = _check(entries, found, allowed, size)
    return Fit(by, scales, whole, *checked, found.numbers, *of_simple)


def _padded(
    weights: dict[str, float], by_column: dict[str, np.ndarray], size: int
) -> dict[str, np.ndarray]:
    """Those of each column [M], where there are such, and those of all for what remains; [M']."""
    return {
        name: np.append(by_column.get(name, []), np.full(size - len(by_column.get(name, [])), x))
        for name, x in weights.items()
    }


def _scalings(prior: LearnedPrior, matrices: list[Entries], by: str) -> list[Scaling]:
    """Of a matrix and of parts of it; as in training, where a prior's one data set had such values.

    A few cells tell less of their mean and deviation than that data set.
    """
    known, values = prior.trained_on, matrices[0].values
    if by == "matrix" and known is not None:
        low, high = known.value_range
        if low <= values.min() and values.max() <= high:
            each = (np.full(matrices[0].shape[1], float(x)) for x in known.standardization)
            return [Scaling(*each)] * len(matrices)
    return [scaling.fit_scaling(matrix, by) for matrix in matrices]


def _predict_held_out(
    entries: Entries,
    parts: list[Entries],
    held: list[np.ndarray],
    scales: list[Scaling],
    fitted: list[Fitted],
    by: str,
) -> _Predictions | None:
    """What each part, fitted, says of the cells that it is without; None if nothing can be said."""
    found, left_over = [], []
    for part, numbers, scale, one in zip(parts, held, scales, fitted, strict=True):
        rows, columns = (np.asarray(x)[numbers] for x in (entries.rows, entries.columns))
        found.append(_predict_each(one, scale, rows, columns))
        left_over.append(np.bincount(part.columns, minlength=entries.shape[1])[columns])
    # Nothing is known of the unit of a column all of whose cells are held out.
    known = (np.concatenate(left_over) > 0) | (by == "matrix")
    if not known.any():
        return None
    # Parts may be full enough for a Gaussian where others are not.
    names = [name for name in CANDIDATES if all(name in values for values, _ in found)]
    return _Predictions(
        np.concatenate(held)[known],
        {name: np.concatenate([values[name] for values, _ in found])[known] for name in names},
        np.concatenate([deviations for _, deviations in found], axis=1)[:, known],
    )


def _predict_each(
    fitted: Fitted, scale: Scaling, rows: np.ndarray, columns: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Values by each candidate and deviations, see `_Predictions`, at cells ``(rows, columns)``."""
    factors_alone, standardised = fitted.columns._replace(row_models=None), {}
    for name in OF_FACTORS:
        one = candidates.cells({name: 1.0}, fitted.rows, factors_alone)
        standardised[name] = np.einsum("pk,pk->p", one.u[rows], one.v[columns])
    variances = [np.einsum("pk,pk->p", one.p[rows], one.r[columns]) + one.noise[columns]]
    if fitted.completed is not None:
        for name in OF_ROWS:
            standardised[name] = getattr(fitted.completed, name)[rows, columns]
        variances.append(fitted.completed.variances[rows, columns])
    centers, scales = scale.centers[columns], scale.scales[columns]
    deviations = scales * np.sqrt(np.broadcast_to(variances, (2, len(rows))))
    return {name: centers + scales * value for name, value in standardised.items()}, deviations


def _check(
    entries: Entries, found: _Predictions, allowed: Collection[str], size: int
) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, float], Check, HeldOut]:
    """The weights, by what error bars must grow, and what else held-out cells say.

    Weights are of each column for a narrow table, the same for all columns of others; [size] each.
    """
    columns = np.asarray(entries.columns)[found.numbers]
    values = np.asarray(entries.values, np.float64)[found.numbers]
    # Errors count in units of each column's spread, so that no column drowns the others.
    every = scaling.fit_scaling(entries, "columns").scales
    units = every[columns]
    in_units = {name: value / units for name, value in found.values.items()}
    of_all, by_column = held_out.weigh(in_units, values / units, allowed), {}
    if any(of_all.get(name) for name in OF_ROWS):
        by_column = held_out.weigh_columns(
            in_units, values / units, columns, entries.shape[1], of_all
        )
    weights = _padded(of_all, by_column, size)
    # [H, A]
    each = np.column_stack([weights[name][columns] for name in found.values])
    predicted = (each * np.column_stack(list(found.values.values()))).sum(axis=1)
    share = np.broadcast_to(candidates.rows_share(weights), size)[columns]
    bounded = np.minimum(found.deviations / units, held_out.MOST_ERROR) ** 2
    if any(name in in_units for name in OF_ROWS):
        of_cells = {name: weights[name][columns] for name in OF_ROWS if name in in_units}
        bounded[1] += candidates.squared_departure(of_cells, in_units)
    bars = units * np.sqrt((1 - share) * bounded[0] + share * bounded[1])
    scores = np.abs(values - predicted) / bars
    inflation, coverage = held_out.inflation(scores)
    by_columns = np.full(size, inflation)
    if by_column:
        by_columns = held_out.inflation_by_column(scores, columns, size, inflation)
    left = np.abs(values - found.values["posterior"])
    of_posterior, _ = held_out.inflation(left / (units * np.sqrt(bounded[0])))
    cells = HeldOut(columns, values, predicted, bars)
    check = held_out.check(cells, found.values["bias"], found.values["mean"], coverage, every)
    return weights, (by_columns, of_posterior), check, cells


def _fit_all(
    prior: LearnedPrior, whole: Entries, parts: list[Entries], with_rows: bool
) -> list[Fitted]:
    """Fits a matrix and parts of it, all standardised; the parts first, to start the whole from."""
    matrices = [*parts, whole]
    config = prior.config_for(whole.shape)
    # A padding row and column remain for whatever is empty.
    shape = bucket(whole.shape[0] + 1, 32), bucket(whole.shape[1] + 1, 32)
    batch = stack_entries(matrices, shape, bucket(len(whole.rows), 128))
    small = shape[0] * shape[1] <= _MOST_DENSE
    if small:
        # Through XLA alone: the kernels for lists take longer to compile than this to compute.
        with sums.using_backend("xla"):
            encoded = _unstack(_encode(config, prior.params, pad_dense(batch)), len(matrices))
    fitted = []
    for n in range(len(matrices)):
        matrix = jax.tree.map(lambda leaf, n=n: leaf[n], batch)
        if small:
            said = encoded[n]
        else:
            said = jax.tree.map(np.asarray, _encode_one(config, prior.params, matrix))
        if small and not sums.kernels_run_here():
            matrix = pad_dense(matrix)
        rows, columns = Rows(matrix), Rows(sums.transpose(matrix))
        adapted = zero_shot.adapt(config, said, rows, columns)
        before = fitted[0] if fitted and n == len(parts) else None
        if before is None:
            started = posterior.start(adapted.base, adapted.factors, adapted.noise)
        else:
            started = before.posterior
        means = _means(matrices[n], len(columns.counts))
        narrow = with_rows and row_gaussian.suits(rows.counts[: whole.shape[0]], whole.shape[1])
        sweeps = _SWEEPS_OF_PARTS if narrow and not before else _SWEEPS
        found = posterior.fit(rows, columns, started, sweeps)
        one = Fitted(adapted, config.encoder.effects, found, means)
        if narrow:
            num_trees = _TREES if before else _TREES_OF_PARTS
            one = _with_rows(one, matrices[n], num_trees, before.row_models if before else None)
        fitted.append(one)
    return [fitted[-1], *fitted[:-1]]


def _means(entries: Entries, padded: int) -> np.ndarray:
    """Of the columns; where one unit is for all, that of few cells is drawn to that of all cells.

    By the variances within and between columns (of standardised values: the mean of all is zero).
    """
    counts = np.bincount(entries.columns, minlength=padded)
    sums = np.bincount(entries.columns, entries.values, padded)
    means = sums / np.maximum(counts, 1)
    degrees = max(len(entries.values) - (counts > 0).sum(), 1)
    within = ((entries.values - means[entries.columns]) ** 2).sum() / degrees
    between = (counts * means**2).sum() - (counts > 0).sum() * within
    between = max(between / max(len(entries.values), 1), 0.0)
    return sums * between / np.maximum(counts * between + within, 1e-30)


def _with_rows(fitted: Fitted, entries: Entries, num_trees: int, start: RowModels | None) -> Fitted:
    values, observed = dense(entries)
    models = row_models.fit(values, observed, num_trees, start)
    # Beside the rows one without cells, for whatever is empty.
    more = ((0, 1), (0, 0))
    completed = row_models.complete(models, np.pad(values, more), np.pad(observed, more))
    return fitted._replace(row_models=models, completed=completed)


def dense(entries: Entries) -> tuple[np.ndarray, np.ndarray]:
    """Values [N, M] float64, zero where there are none, and which are observed."""
    values, observed = np.zeros(entries.shape), np.zeros(entries.shape, bool)
    values[entries.rows, entries.columns] = entries.values
    observed[entries.rows, entries.columns] = True
    return values, observed


def _unstack(batch, count: int) -> list:
    batch = jax.tree.map(np.asarray, batch)
    return [jax.tree.map(lambda leaf, n=n: leaf[n], batch) for n in range(count)]


@functools.partial(jax.jit, static_argnums=0)
def _encode_one(config, params, observations):
    return zero_shot.encode(config, params, observations)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config, params, batch):
    return jax.vmap(lambda observations: zero_shot.encode(config, params, observations))(batch)


def without(entries: Entries, numbers: np.ndarray) -> Entries:
    """All cells but those with these numbers, in their order."""
    kept = np.ones(len(entries.rows), bool)
    kept[numbers] = False
    return Entries(entries.rows[kept], entries.columns[kept], entries.values[kept], entries.shape)
