"""Fits a matrix under one standardisation, and parts of it to check the answers on what is left."""

import functools
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import numpy as np

from metamf_jax import sums
from metamf_jax.imputation import answers, held_out, posterior, row_gaussian, scaling, zero_shot
from metamf_jax.imputation.answers import ANSWERS, OF_FACTORS, Columns
from metamf_jax.imputation.held_out import Check, HeldOut
from metamf_jax.imputation.posterior import Posterior
from metamf_jax.imputation.prior import LearnedPrior
from metamf_jax.imputation.row_gaussian import Completed, RowGaussian
from metamf_jax.imputation.row_solver import Rows
from metamf_jax.imputation.scaling import Scaling
from metamf_jax.meta_learning.padding import bucket_size, pad_dense, stack_entries
from metamf_jax.types import Entries

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
      means: [M], of the columns' cells.
      gaussian, completed: of a narrow table with rows enough, else None.
    """

    adapted: zero_shot.Adapted
    posterior: Posterior
    means: np.ndarray
    gaussian: RowGaussian | None = None
    completed: Completed | None = None

    @property
    def columns(self) -> Columns:
        """What further rows need."""
        adapted = self.adapted
        return Columns(
            adapted.context, adapted.factors.v, self.posterior, self.means, self.gaussian
        )


class Fit(NamedTuple):
    """A matrix fitted under one standardisation, and what the held-out check said of that.

    Attributes:
      way: the standardisation.
      scaling: by it.
      fitted: the standardised matrix.
      weights: [6], of the `ANSWERS`.
      inflation: by what error bars are to be multiplied.
      check: what the held-out cells said.
      held_out: these cells; None where there were too few.
      cells: [H], their numbers.
    """

    way: str
    scaling: Scaling
    fitted: Fitted
    weights: np.ndarray
    inflation: float
    check: Check
    held_out: HeldOut | None
    cells: np.ndarray


def fit(
    prior: LearnedPrior,
    entries: Entries,
    way: str,
    by_rows: bool,
    seed: int,
    progress: Callable[[str], None],
    allowed: Collection[str] = ANSWERS,
) -> Fit:
    """Fits a matrix and checks that on held-out cells.

    Args:
      prior: the learned prior.
      entries: a matrix without empty rows or columns, NumPy arrays.
      way: the standardisation, one of `scaling.SCALINGS`.
      by_rows: whether a Gaussian over the rows is fitted too, where it suits the matrix.
      seed: of the choice of held-out cells.
      progress: told of each stage as it begins.
      allowed: those of the `ANSWERS` that may have a weight.
    """
    may_weigh = np.array([answer in allowed for answer in ANSWERS])
    by_rows = by_rows and bool(may_weigh[OF_FACTORS:].any())
    count = len(entries.rows)
    held = held_out.folds(count, seed)
    kept = []
    for out in held:
        inside = np.ones(count, bool)
        inside[out] = False
        # Of a handful of cells none is held out; they go through the same compiled program.
        kept.append(_select(entries, inside) if count >= held_out.FEWEST_CHECKED else entries)
    matrices = [entries, *kept]
    scales = [scaling.fit_scaling(matrix, way) for matrix in matrices]
    progress(f"fitting {len(matrices)} times, standardised by {way}")
    standardised = [scaling.standardize(*each) for each in zip(matrices, scales, strict=True)]
    whole, *parts = _fit_all(prior, standardised[0], standardised[1:], by_rows)
    checked = np.concatenate(held)
    columns = np.asarray(entries.columns)[checked]
    left_over = np.concatenate(
        [
            np.bincount(part.columns, minlength=entries.shape[1])[entries.columns[out]]
            for part, out in zip(kept, held, strict=True)
        ]
    )
    # Nothing is known of the unit of a column all of whose cells are held out.
    known = (left_over > 0) | (way == "matrix")
    if count < held_out.FEWEST_CHECKED or not known.any():
        start = held_out.start_weights(may_weigh), held_out.START_INFLATION
        nothing = held_out.no_check(entries.shape[1])
        return Fit(way, scales[0], whole, *start, nothing, None, checked[:0])
    found = [
        _answers_at(part, scale, entries.rows[out], entries.columns[out])
        for part, scale, out in zip(parts, scales[1:], held, strict=True)
    ]
    # Parts may be full enough for a Gaussian where others are not.
    fewest = min(len(answered) for answered, _ in found)
    answered = np.concatenate([answered[:fewest] for answered, _ in found], axis=1)[:, known]
    deviations = np.concatenate([deviations for _, deviations in found], axis=1)[:, known]
    checked, columns = checked[known], columns[known]
    values = np.asarray(entries.values, np.float64)[checked]
    # Errors count in units of each column's spread, so that no column drowns the others.
    every = scaling.fit_scaling(entries, "columns").scales
    units = every[columns]
    weights = np.zeros(len(ANSWERS))
    weights[:fewest] = held_out.weigh(answered / units, values / units, may_weigh[:fewest])
    predicted = weights[:fewest] @ answered
    bars = units * np.sqrt(
        answers.row_share(weights) @ np.minimum(deviations / units, held_out.MOST_ERROR) ** 2
    )
    inflation, coverage = held_out.inflation(np.abs(values - predicted) / bars)
    cells_held_out = HeldOut(columns, values, predicted, bars)
    check = held_out.check(cells_held_out, answered[0], answered[3], coverage, every)
    return Fit(way, scales[0], whole, weights, inflation, check, cells_held_out, checked)


def _answers_at(fitted: Fitted, scale: Scaling, rows, columns) -> tuple[np.ndarray, np.ndarray]:
    """The `ANSWERS` [4 or 6, P] at cells, and the factors' and the rows' deviations [2, P].

    In units; the second deviations are those of the first where there is no Gaussian over rows.
    """
    adapted, post, completed = fitted.adapted, fitted.posterior, fitted.completed
    kept = fitted.columns._replace(gaussian=None)
    answered = []
    for weights in np.eye(len(ANSWERS))[:OF_FACTORS]:
        u, p = answers.of_rows(weights, kept, adapted.effects, adapted.factors.u, post.rows, None)
        v, r, noise = answers.of_columns(weights, kept)
        answered.append(np.einsum("pk,pk->p", u[rows], v[columns]))
    variances = [np.einsum("pk,pk->p", p[rows], r[columns]) + noise[columns]]
    if completed is not None:
        of_rows, near, variance = (part[rows, columns] for part in completed)
        answered += [of_rows, near]
        variances.append(variance)
    scales = scale.scales[columns]
    deviations = scales * np.sqrt(np.broadcast_to(variances, (2, len(rows))))
    return scale.centers[columns] + scales * np.array(answered), deviations


def _fit_all(
    prior: LearnedPrior, whole: Entries, parts: list[Entries], by_rows: bool
) -> list[Fitted]:
    """Fits a matrix and parts of it, all standardised; the parts first, to start the whole from."""
    matrices = [*parts, whole]
    # A padding row and column remain for whatever is empty.
    shape = bucket(whole.shape[0] + 1, 32), bucket(whole.shape[1] + 1, 32)
    batch = stack_entries(matrices, shape, bucket(len(whole.rows), 128))
    small = shape[0] * shape[1] <= _MOST_DENSE
    if small:
        # Through XLA alone: the kernels for lists take longer to compile than this to compute.
        with sums.using_backend("xla"):
            encoded = _unstack(_encode(prior.config, prior.params, pad_dense(batch)), len(matrices))
    fitted = []
    for n in range(len(matrices)):
        matrix = jax.tree.map(lambda leaf, n=n: leaf[n], batch)
        if small:
            found = encoded[n]
        else:
            found = jax.tree.map(np.asarray, _encode_one(prior.config, prior.params, matrix))
        if small and not sums.kernels_run_here():
            matrix = pad_dense(matrix)
        rows, columns = Rows(matrix), Rows(sums.transpose(matrix))
        adapted = zero_shot.adapt(prior.config, found, rows, columns)
        started = posterior.start(adapted.effects, adapted.factors, adapted.noise)
        if fitted and n == len(parts):
            started = fitted[0].posterior
        means = _means(matrices[n], len(columns.counts))
        found = Fitted(adapted, posterior.fit(rows, columns, started), means)
        if by_rows and row_gaussian.suits(rows.counts[: whole.shape[0]], whole.shape[1]):
            start = fitted[0].gaussian if fitted and n == len(parts) else None
            found = _by_rows(found, matrices[n], start)
        fitted.append(found)
    return [fitted[-1], *fitted[:-1]]


def _means(entries: Entries, padded: int) -> np.ndarray:
    counts = np.bincount(entries.columns, minlength=padded)
    return np.bincount(entries.columns, entries.values, padded) / np.maximum(counts, 1)


def _by_rows(fitted: Fitted, entries: Entries, start: RowGaussian | None) -> Fitted:
    values, observed = np.zeros(entries.shape), np.zeros(entries.shape, bool)
    values[entries.rows, entries.columns] = entries.values
    observed[entries.rows, entries.columns] = True
    prior = posterior.of_rows(fitted.posterior, entries.shape[1])
    gaussian = row_gaussian.fit(values, observed, prior, start)
    completed = row_gaussian.complete(gaussian, values, observed)
    return fitted._replace(gaussian=gaussian, completed=completed)


def _unstack(batch, count: int) -> list:
    batch = jax.tree.map(np.asarray, batch)
    return [jax.tree.map(lambda leaf, n=n: leaf[n], batch) for n in range(count)]


@functools.partial(jax.jit, static_argnums=0)
def _encode_one(config, params, observations):
    return zero_shot.encode(config, params, observations)


@functools.partial(jax.jit, static_argnums=0)
def _encode(config, params, batch):
    return jax.vmap(lambda observations: zero_shot.encode(config, params, observations))(batch)


def _select(entries: Entries, which: np.ndarray) -> Entries:
    return Entries(
        entries.rows[which], entries.columns[which], entries.values[which], entries.shape
    )
