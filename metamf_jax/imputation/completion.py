"""Completes one matrix of any size and any scale: the pipeline around the learned prior.

1. Rows and columns without cells are set aside; they share one answer, that of the prior.
2. Values are standardised, by one mean and deviation or by each column's (`scaling`).
3. Three answers, each knowing what the former knows: a bias model with learned shrinkage; factors
   under the encoder's prior (`zero_shot`); a posterior that starts there and learns its precisions
   from the matrix (`posterior`). For narrow tables two more, a Gaussian over the rows that is
   shrunken to the posterior, and the mean over rows that it finds alike (`row_gaussian`).
4. A held-out check on observed cells weights the answers, chooses the standardisation, and measures
   by how much the error bars are too narrow (split conformal prediction; Vovk et al. 2005). Too few
   cells to check leave everything at what the prior says.
5. Where a narrow table shows that large values (or small ones) are the likelier to be missing, what
   is imputed is moved that way (`row_gaussian.missing_by_value`), as far as held-out cells that
   stand for the missing ones bear out, and error bars are those of such cells.

Nothing is trained: all of it is closed-form, and deterministic in the seed.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from metamf_jax.imputation import (
    answers,
    fitting,
    held_out,
    posterior,
    row_gaussian,
    row_solver,
    scaling,
    zero_shot,
)
from metamf_jax.imputation.answers import Cells, Columns
from metamf_jax.imputation.fitting import GeneralPrior
from metamf_jax.imputation.held_out import Check
from metamf_jax.imputation.posterior import Side
from metamf_jax.imputation.row_solver import Rows
from metamf_jax.imputation.scaling import Scaling
from metamf_jax.types import Entries, PaddedMatrices

# Cells of a dense block of rows folded in at once.
_BLOCK_CELLS = 2**17


@dataclasses.dataclass(frozen=True)
class Completion:
    """A completed matrix.

    Attributes:
      shape: (N, M).
      row_places, column_places: [N], [M] int32, where each stands in ``cells`` and ``columns``.
      seen_columns: [M] bool, columns that had a cell.
      scaling: of the columns in ``cells``.
      way: the standardisation chosen.
      weights: [5], of the `ANSWERS`.
      inflation: by what error bars are multiplied.
      widening: by what further, where cells are missing for their own value; else 1.
      bounds: least and greatest value that each column's cells may take.
      tilt: [M'], by how much of its variance, in units, an imputed value is moved.
      missing: [M'], the share of a column's cells that are missing. Of a move, which rests on the
        others, as much is doubted.
      cells, columns: see their classes.
      check: what was found on held-out cells.
    """

    prior: GeneralPrior
    shape: tuple[int, int]
    row_places: np.ndarray
    column_places: np.ndarray
    seen_columns: np.ndarray
    scaling: Scaling
    way: str
    weights: np.ndarray
    inflation: float
    widening: float
    bounds: tuple[np.ndarray, np.ndarray]
    tilt: np.ndarray
    missing: np.ndarray
    cells: Cells
    columns: Columns
    check: Check


def complete(
    prior: GeneralPrior,
    entries: Entries,
    *,
    way: str | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> Completion:
    """Completes a matrix from its observed cells.

    Args:
      prior: the learned prior.
      entries: [E] observed cells, NumPy arrays, each cell once.
      way: the standardisation, one of `scaling.SCALINGS`; None to choose by the held-out check.
      seed: of the choice of held-out cells.
      progress: told of each stage as it begins.

    Raises:
      ValueError: no cell, a cell outside of the matrix or twice, or a value that is not finite.
    """
    _require_valid(entries)
    dense, row_places, column_places = _occupied(entries)
    ways = scaling.SCALINGS if scaling.columns_differ(dense) else scaling.SCALINGS[:1]
    ways = ways if way is None else (way,)
    # What is said of rows hardly depends on the standardisation: the last one does.
    fits = [fitting.fit(prior, dense, tried, tried == ways[-1], seed, progress) for tried in ways]
    best = min(fits, key=lambda found: found.error)
    fitted, adapted, post = best.scaling, best.fitted.adapted, best.fitted.posterior
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(best.fitted)):
        raise ValueError(
            f"the factors of this {entries.shape[0]} x {entries.shape[1]} matrix with "
            f"{len(entries.rows)} cells came out non-finite: its values may be too far apart for "
            "float32"
        )
    columns = best.fitted.columns
    rows = answers.of_rows(
        best.weights, columns, adapted.effects, adapted.factors.u, post.rows, best.fitted.completed
    )
    seen = np.zeros(entries.shape[1], bool)
    seen[entries.columns] = True
    padded = len(post.noise)
    scales = Scaling(
        np.append(fitted.centers, np.full(padded - len(fitted.centers), np.mean(dense.values))),
        np.append(fitted.scales, np.full(padded - len(fitted.scales), fitted.scales.max())),
    )
    tilt, widening = _tilt(best, scales)
    return Completion(
        prior,
        entries.shape,
        row_places,
        column_places,
        seen,
        scales,
        best.way,
        best.weights,
        best.inflation,
        widening,
        _bounds(dense, best.way, padded),
        tilt,
        1 - np.bincount(dense.columns, minlength=padded) / dense.shape[0],
        Cells(*rows, *answers.of_columns(best.weights, columns)),
        columns,
        best.check,
    )


def predict(
    completion: Completion, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors at cells ``(rows, columns)``, each [P]; float64 [P].

    Numbers from N (or M) on stand for rows (or columns) unknown to the fitted matrix, which are
    answered like those without a cell.

    Raises:
      ValueError: a number is negative.
    """
    held = completion.cells
    n = _places(rows, "row", completion.row_places, len(held.u))
    m = _places(columns, "column", completion.column_places, len(held.v))
    values, errors = np.empty(len(n)), np.empty(len(n))
    # A block at a time: the products need 60 numbers a cell.
    for start in range(0, len(n), 2**18):
        part = slice(start, start + 2**18)
        i, j = n[part], m[part]
        standardised = np.einsum("pk,pk->p", held.u[i], held.v[j])
        variances = np.einsum("pk,pk->p", held.p[i], held.r[j]) + held.noise[j]
        values[part], errors[part] = _in_units(completion, standardised, variances, j)
    return values, errors


def _places(numbers, kind: str, places: np.ndarray, size: int) -> np.ndarray:
    numbers = np.asarray(numbers)
    if len(numbers) and numbers.min() < 0:
        raise ValueError(f"expected {kind} numbers from 0, got {numbers.min()}")
    # The last place is padding: it has no cell.
    return np.append(places, size - 1)[np.minimum(numbers, len(places))]


def predict_rows(completion: Completion, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """All values and standard errors of rows ``first .. last - 1``; float64 [last - first, M]."""
    n = completion.row_places[first:last]
    held = completion.cells
    return _dense(completion, held.u[n], held.p[n])


def fold_in(
    completion: Completion, values: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors of every cell of further rows over the same columns.

    A row's answer depends on that row's cells alone, and is that of `predict_rows` to rounding for
    rows with the cells of fitted ones. Runs in float64 for float64 values, in float32 otherwise.

    Args:
      completion: of the fitted matrix.
      values: [N', M], whatever the unobserved cells hold.
      observed: [N', M] bool. Cells in columns that had none in the fitted matrix are not used.

    Returns:
      float64 [N', M], twice.
    """
    num_columns = completion.columns.v.shape[0]
    per_block = max(1, _BLOCK_CELLS // num_columns)
    blocks = []
    for start in range(0, len(values), per_block):
        block = slice(start, start + per_block)
        blocks.append(_fold_block(completion, values[block], observed[block]))
    parts = zip(*blocks, strict=True)
    u, p = (np.concatenate(part) for part in parts)
    return _dense(completion, u, p)


def fold_in_columns(
    completion: Completion, values: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors of every cell of further columns over the fitted rows.

    Answered by the posterior alone, since the learned prior of a column is not a function of its
    own cells. Error bars are those of the fitted columns by the same factor.

    Args:
      completion: of the fitted matrix.
      values: [N, M'], whatever the unobserved cells hold.
      observed: [N, M'] bool.

    Returns:
      float64 [N, M'], twice.

    Raises:
      ValueError: another number of rows, or an observed value that is not finite.
    """
    if values.shape != observed.shape or len(values) != completion.shape[0]:
        raise ValueError(
            f"expected values and a mask of {completion.shape[0]} rows, got shapes {values.shape} "
            f"and {observed.shape}"
        )
    post, num_columns = completion.columns.posterior, values.shape[1]
    rows, columns = np.nonzero(observed)
    entries = Entries(rows, columns, np.asarray(values[rows, columns], np.float64), values.shape)
    if len(rows):
        _require_valid(entries)
    # Padding is standardised as a column of which nothing is known.
    fitted = Scaling(*(np.full(num_columns, held[-1], np.float64) for held in completion.scaling))
    bounds = tuple(np.full(num_columns, bound[-1]) for bound in completion.bounds)
    if completion.way == "columns" and len(rows):
        fitted = scaling.fit_scaling(entries, "columns")
        bounds = _bounds(entries, "columns", num_columns)
    shape = num_columns, len(post.rows.mean)
    listed = Entries(
        columns.astype(np.int32),
        completion.row_places[rows],
        scaling.standardize(entries, fitted).values.astype(np.float32),
        shape,
    )
    side, noise = posterior.fold_in_columns(Rows(listed), post)
    n = completion.row_places
    of_rows = Side(*(np.asarray(x, np.float64) for x in post.rows))
    standardised = post.mean + of_rows.mean[n] @ side.mean.T
    variances = (of_rows.mean**2 + of_rows.variance)[n] @ side.variance.T + noise
    variances += of_rows.variance[n] @ (side.mean**2).T
    answer = fitted.centers + fitted.scales * standardised
    errors = completion.inflation * fitted.scales * np.sqrt(variances)
    return np.clip(answer, *bounds), errors


def _fold_block(completion, values, observed):
    used = observed & completion.seen_columns
    rows, columns = np.nonzero(used)
    places = completion.column_places[columns]
    held = completion.scaling
    dtype = values.dtype if values.dtype == np.float64 else np.float32
    size = fitting.bucket(len(values), 32), completion.columns.v.shape[0]
    standardised, seen = np.zeros(size, dtype), np.zeros(size, bool)
    own = (values[rows, columns] - held.centers[places]) / held.scales[places]
    standardised[rows, places] = own
    seen[rows, places] = True
    dense = PaddedMatrices(standardised, seen)
    with jax.enable_x64(dtype == np.float64):
        state = jax.tree.map(
            lambda leaf: np.asarray(leaf, dtype),
            (completion.prior.params, completion.columns._replace(gaussian=None)),
        )
        effects, u, side = jax.tree.map(
            np.asarray, _fold_compiled(completion.prior.config, *state, dense)
        )
    completed, gaussian = None, completion.columns.gaussian
    if gaussian is not None:
        part = slice(len(values)), slice(len(gaussian.mean))
        completed = row_gaussian.complete(gaussian, standardised[part], seen[part])
    u, p = answers.of_rows(completion.weights, completion.columns, effects, u, side, completed)
    return u[: len(values)], p[: len(values)]


@functools.partial(jax.jit, static_argnums=0)
def _fold_compiled(config, params, columns, observations):
    effects, u, _ = zero_shot.fold_in(config, params, observations, columns.context, columns.v)
    problem = posterior.row_problem(columns.posterior, len(u))
    solved = row_solver.solve(observations, problem)
    return effects, u, posterior.rows_from(columns.posterior, solved)


def _require_valid(entries: Entries) -> None:
    if not len(entries.rows):
        raise ValueError("the matrix has no observed cell: nothing to impute from")
    values = np.asarray(entries.values)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ValueError(
            f"expected finite observed values, got {values[wrong[0]]} at row "
            f"{entries.rows[wrong[0]]}, column {entries.columns[wrong[0]]}; correct it or make it "
            "missing"
        )
    for kind, places, size in zip(
        ("row", "column"), (entries.rows, entries.columns), entries.shape, strict=True
    ):
        if places.min() < 0 or places.max() >= size:
            raise ValueError(
                f"expected {kind}s from 0 to {size - 1} in a matrix of shape {entries.shape}, got "
                f"{places.min()} to {places.max()}"
            )
    flat = np.sort(entries.rows.astype(np.int64) * entries.shape[1] + entries.columns)
    twice = np.flatnonzero(flat[1:] == flat[:-1])
    if len(twice):
        row, column = divmod(int(flat[twice[0]]), entries.shape[1])
        raise ValueError(f"the cell at row {row}, column {column} is given twice; keep one")


def _occupied(entries: Entries) -> tuple[Entries, np.ndarray, np.ndarray]:
    """The matrix without its empty rows and columns, which all get the place after the last."""
    places, numbers = [], []
    for listed, size in zip((entries.rows, entries.columns), entries.shape, strict=True):
        occupied = np.zeros(size, bool)
        occupied[listed] = True
        count = int(occupied.sum())
        places.append(np.where(occupied, np.cumsum(occupied) - 1, count).astype(np.int32))
        numbers.append(count)
    dense = Entries(
        places[0][entries.rows],
        places[1][entries.columns],
        np.asarray(entries.values),
        (numbers[0], numbers[1]),
    )
    return dense, *places


def _bounds(entries: Entries, way: str, padded: int) -> tuple[np.ndarray, np.ndarray]:
    """The range of the observed values, of all or of each column, widened where cells are few."""
    values = entries.values.astype(np.float64)
    low, high = values.min(), values.max()
    if way == "matrix":
        margin = 2 * (high - low) / (len(values) + 1)
        return np.full(padded, low - margin), np.full(padded, high + margin)
    lows, highs = np.full(padded, np.inf), np.full(padded, -np.inf)
    np.minimum.at(lows, entries.columns, values)
    np.maximum.at(highs, entries.columns, values)
    counts = np.bincount(entries.columns, minlength=padded)
    # One value tells of no range.
    lows[counts < 2], highs[counts < 2] = -np.inf, np.inf
    several = counts > 1
    margin = 2 * (highs[several] - lows[several]) / (counts[several] + 1)
    lows[several] -= margin
    highs[several] += margin
    return lows, highs


def _tilt(best: fitting.Fit, fitted: Scaling) -> tuple[np.ndarray, float]:
    """The completion's ``tilt`` and ``widening``."""
    tilt, gaussian, cells = np.zeros(len(fitted.scales)), best.fitted.gaussian, best.held_out
    if gaussian is not None:
        tilt[: len(gaussian.mean)] = row_gaussian.missing_by_value(gaussian)
    tilt /= fitted.scales
    if cells is None or not tilt.any():
        return tilt, 1.0
    m = cells.columns
    further, widening = held_out.moved(
        cells, tilt[m], fitted.centers[m], best.inflation * cells.bars
    )
    return further * tilt, widening


def _dense(completion, u, p):
    held, m = completion.cells, completion.column_places
    standardised = np.asarray(u, np.float64) @ held.v[m].T.astype(np.float64)
    variances = np.asarray(p, np.float64) @ held.r[m].T.astype(np.float64) + held.noise[m]
    return _in_units(completion, standardised, variances, m)


def _in_units(completion, standardised, variances, places):
    scales = completion.scaling.scales[places]
    errors = completion.inflation * scales * np.sqrt(variances)
    move = completion.tilt[places] * errors**2
    values = completion.scaling.centers[places] + scales * standardised + move
    low, high = (bound[places] for bound in completion.bounds)
    doubt = completion.missing[places] * move
    return np.clip(values, low, high), np.hypot(completion.widening * errors, doubt)
