"""Completes one matrix of any size and any scale: the pipeline around the learned prior.

1. Rows and columns without cells are set aside; they share one answer, that of the prior.
2. Values are standardised, by one mean and deviation, by each column's or by each row's
   (`scaling`). By rows, all that follows is done to the transpose.
3. Three answers, each knowing what the former knows: a bias model with learned shrinkage; factors
   under the encoder's prior (`zero_shot`); a posterior that starts there and learns its precisions
   from the matrix (`posterior`). Besides, the column's mean. For narrow tables two more, a Gaussian
   over the rows that is shrunken to the posterior, and the mean over rows that it finds alike
   (`row_gaussian`).
4. A held-out check on observed cells weights the answers, chooses the standardisation, and measures
   by how much the error bars are too narrow (split conformal prediction; Vovk et al. 2005). Too few
   cells to check leave everything at what the prior says.
5. Where told that cells are missing by value, and a narrow table shows that large values (or small
   ones) are the likelier to be missing, what is imputed is moved that way
   (`row_gaussian.missing_by_value`), as far as held-out cells that stand for the missing ones bear
   out, and error bars are those of such cells.

Nothing is trained: all of it is closed-form, and deterministic in the seed.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection

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
from metamf_jax.imputation.answers import ANSWERS, OF_FACTORS, Cells, Columns
from metamf_jax.imputation.held_out import Check
from metamf_jax.imputation.posterior import Side
from metamf_jax.imputation.prior import LearnedPrior
from metamf_jax.imputation.row_solver import Rows
from metamf_jax.imputation.scaling import Scaling
from metamf_jax.types import Entries, PaddedMatrices

# Why cells are missing: for what else is observed, or for what they would say.
MISSING = ("at_random", "by_value")

# Cells of a dense block of rows folded in at once.
_BLOCK_CELLS = 2**17
# Where all cells have one unit, so many of a column without a sign say that it has none.
_FEWEST_OF_SIGN = 10


@dataclasses.dataclass(frozen=True)
class Completion:
    """A completed matrix.

    Attributes:
      shape: (N, M).
      transposed: whether all but ``shape``, ``way`` and ``check`` is of the transpose.
      row_places, column_places: [N], [M] int32, where each stands in ``cells`` and ``columns``.
      seen_columns: [M] bool, columns that had a cell.
      scaling: of the columns in ``cells``.
      way: the standardisation chosen.
      weights: [6], of the `ANSWERS`.
      inflation: by what error bars are multiplied.
      widening: by what further, where cells are missing for their own value; else 1.
      bounds: least and greatest value that each column's cells may take.
      tilt: [M'], by how much of its variance an imputed value is moved; standardised units.
      missing: [M'], the share of a column's cells that are missing. Of a move, which rests on the
        others, as much is doubted.
      cells, columns: see their classes.
      fitted_rows: of the transpose, the number of each row by its cells.
      check: what was found on held-out cells.
    """

    prior: LearnedPrior
    shape: tuple[int, int]
    transposed: bool
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
    fitted_rows: dict[bytes, int]
    check: Check


def complete(
    prior: LearnedPrior,
    entries: Entries,
    *,
    way: str | None = None,
    missing: str = "at_random",
    allowed: Collection[str] = ANSWERS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda stage: None,
) -> Completion:
    """Completes a matrix from its observed cells.

    Args:
      prior: the learned prior.
      entries: [E] observed cells, NumPy arrays, each cell once.
      way: the standardisation, one of `scaling.WAYS`; None to choose by the held-out check.
      missing: ``at_random``, for whatever else is observed, or ``by_value``, one of `MISSING`. The
        observed cells cannot tell for sure: imputed values are moved for those who know the latter
        (see `row_gaussian.missing_by_value` for what it costs where they are wrong).
      allowed: those of the `answers.ANSWERS` that may have a weight; to see what each is worth.
      seed: of the choice of held-out cells.
      progress: told of each stage as it begins.

    Raises:
      ValueError: no cell, a cell outside of the matrix or twice, a value that is not finite, or an
        unknown option.
    """
    if way not in (None, *scaling.WAYS):
        raise ValueError(f"expected the standardisation {', '.join(scaling.WAYS)}, got {way!r}")
    if missing not in MISSING:
        raise ValueError(f"expected cells missing {' or '.join(MISSING)}, got {missing!r}")
    if not set(allowed) <= set(ANSWERS) or not set(allowed) & set(ANSWERS[:OF_FACTORS]):
        raise ValueError(
            f"expected answers among {', '.join(ANSWERS)}, one of the first {OF_FACTORS} at least, "
            f"got {', '.join(allowed) or 'none'}"
        )
    _require_valid(entries)
    dense, row_places, column_places = _occupied(entries)
    turned = scaling.transpose(dense)
    # A matrix with few rows and many columns, one unit for all, is narrow when turned.
    flat = _narrow(turned) and not _narrow(dense)
    ways = ["matrix"]
    if way is not None:
        ways = [way]
    else:
        unlike = scaling.unlike_sides(dense)
        ways += [unlike] if unlike else []
    fits = []
    for tried in ways:
        transposed = tried == "rows" or (tried == "matrix" and flat)
        # What is said of rows hardly depends on the standardisation: the last one does.
        by_rows = tried != "matrix" or ("rows" if flat else "columns") not in ways
        found = fitting.fit(
            prior,
            turned if transposed else dense,
            "matrix" if tried == "matrix" else "columns",
            by_rows,
            seed,
            progress,
            allowed,
        )
        fits.append((tried, transposed, found))
    of_ways = _errors([found for _, _, found in fits], ways, dense)
    chosen, transposed, best = fits[int(np.argmin(of_ways))]
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(best.fitted)):
        raise ValueError(
            f"the factors of this {entries.shape[0]} x {entries.shape[1]} matrix with "
            f"{len(entries.rows)} cells came out non-finite: its values may be too far apart for "
            "float32"
        )
    if transposed:
        dense, row_places, column_places = turned, column_places, row_places
    fitted, adapted, post = best.scaling, best.fitted.adapted, best.fitted.posterior
    columns = best.fitted.columns
    rows = answers.of_rows(
        best.weights, columns, adapted.effects, adapted.factors.u, post.rows, best.fitted.completed
    )
    padded = len(post.noise)
    of_all = scaling.fit_scaling(dense, "matrix").centers[0]
    scales = Scaling(
        np.append(fitted.centers, np.full(padded - len(fitted.centers), of_all)),
        np.append(fitted.scales, np.full(padded - len(fitted.scales), fitted.scales.max())),
    )
    tilt, widening = np.zeros(padded), 1.0
    if missing == "by_value":
        tilt, widening = _tilt(best, scales)
    return Completion(
        prior,
        entries.shape,
        transposed,
        row_places,
        column_places,
        column_places < dense.shape[1],
        scales,
        chosen,
        best.weights,
        best.inflation,
        widening,
        _bounds(dense, best.way, padded),
        tilt,
        1 - np.bincount(dense.columns, minlength=padded) / dense.shape[0],
        Cells(*rows, *answers.of_columns(best.weights, columns)),
        columns,
        _cells_of_rows(entries) if transposed else {},
        _check(best.check, column_places),
    )


def _narrow(entries: Entries) -> bool:
    counts = np.bincount(entries.rows, minlength=entries.shape[0])
    return row_gaussian.suits(counts, entries.shape[1])


def _errors(fits: list[fitting.Fit], ways: list[str], dense: Entries) -> np.ndarray:
    """Mean squared errors of held-out cells in units of each column's deviation, or each row's.

    These are what is asked of the last way; the same cells count for all.
    """
    if len(fits) == 1 or any(found.held_out is None for found in fits):
        # Without a check all columns are taken to have one unit.
        return np.arange(len(fits))
    common = functools.reduce(np.intersect1d, [found.cells for found in fits])
    matrix = scaling.transpose(dense) if ways[-1] == "rows" else dense
    units = scaling.fit_scaling(matrix, "columns").scales[matrix.columns]
    errors = []
    for found in fits:
        assert found.held_out is not None
        kept = np.isin(found.cells, common)
        left = (found.held_out.values - found.held_out.predicted)[kept]
        most = held_out.MOST_ERROR
        errors.append((np.clip(left / units[found.cells[kept]], -most, most) ** 2).mean())
    return np.array(errors)


def _check(check: Check, column_places: np.ndarray) -> Check:
    """The same of all columns, those without cells too."""
    places = np.append(check.by_column, np.nan), np.append(check.mean_by_column, np.nan)
    return check._replace(
        by_column=places[0][column_places], mean_by_column=places[1][column_places]
    )


def _cells_of_rows(entries: Entries) -> dict[bytes, int]:
    """The number of each row with a cell, by the columns and values of its cells."""
    order = np.lexsort([entries.columns, entries.rows])
    rows, columns = np.asarray(entries.rows)[order], np.asarray(entries.columns)[order]
    numbers, firsts = np.unique(rows, return_index=True)
    values = np.asarray(entries.values)[order]
    parts = zip(np.split(columns, firsts[1:]), np.split(values, firsts[1:]), strict=True)
    return {_key(*part): int(n) for n, part in zip(numbers, parts, strict=True)}


def _key(columns: np.ndarray, values: np.ndarray) -> bytes:
    cells = columns.astype(np.int64).tobytes() + values.astype(np.float64).tobytes()
    return hashlib.blake2b(cells, digest_size=16).digest()


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
    kinds = "row", "column"
    if completion.transposed:
        rows, columns, kinds = columns, rows, kinds[::-1]
    n = _places(rows, kinds[0], completion.row_places, len(held.u))
    m = _places(columns, kinds[1], completion.column_places, len(held.v))
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
    held = completion.cells
    if completion.transposed:
        n, m = completion.row_places, completion.column_places[first:last]
        values, errors = _dense(completion, held.u[n], held.p[n], m)
        return values.T, errors.T
    n = completion.row_places[first:last]
    return _dense(completion, held.u[n], held.p[n], completion.column_places)


def fold_in(
    completion: Completion, values: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors of every cell of further rows over the same columns.

    A row's answer depends on that row's cells alone, and is that of `predict_rows` to rounding for
    rows with the cells of fitted ones. Runs in float64 for float64 values, in float32 otherwise.
    Where the transpose was fitted, other rows are answered as by `fold_in_columns`; where rows are
    standardised, by their own cells.

    Args:
      completion: of the fitted matrix.
      values: [N', M], whatever the unobserved cells hold.
      observed: [N', M] bool. Cells in columns that had none in the fitted matrix are not used.

    Returns:
      float64 [N', M], twice.
    """
    if completion.transposed:
        return _fold_in_turned(completion, values, observed)
    return _fold_rows(completion, values, observed)


def _fold_in_turned(completion, values, observed):
    keys = [
        _key(columns, row[columns])
        for row, columns in zip(values, map(np.flatnonzero, observed), strict=True)
    ]
    numbers = np.array([completion.fitted_rows.get(key, -1) for key in keys], int)
    held, n = completion.cells, completion.row_places
    m = completion.column_places[numbers]
    # Rows that were fitted have their answers already.
    known = numbers >= 0
    answer, errors = np.empty(values.shape), np.empty(values.shape)
    found = _dense(completion, held.u[n], held.p[n], m[known])
    answer[known], errors[known] = (part.T for part in found)
    if not known.all():
        used = observed[~known] & (n < len(held.u) - 1)
        found = _fold_columns(completion, values[~known].T, used.T)
        answer[~known], errors[~known] = (part.T for part in found)
    return answer, errors


def _fold_rows(completion, values, observed):
    num_columns = completion.columns.v.shape[0]
    per_block = max(1, _BLOCK_CELLS // num_columns)
    blocks = []
    for start in range(0, len(values), per_block):
        block = slice(start, start + per_block)
        blocks.append(_fold_block(completion, values[block], observed[block]))
    parts = zip(*blocks, strict=True)
    u, p = (np.concatenate(part) for part in parts)
    return _dense(completion, u, p, completion.column_places)


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
    if completion.transposed:
        return tuple(part.T for part in _fold_rows(completion, values.T, observed.T))
    return _fold_columns(completion, values, observed)


def _fold_columns(completion, values, observed):
    post, num_columns = completion.columns.posterior, values.shape[1]
    rows, columns = np.nonzero(observed)
    entries = Entries(rows, columns, np.asarray(values[rows, columns], np.float64), values.shape)
    if len(rows):
        _require_valid(entries)
    # Padding is standardised as a column of which nothing is known.
    fitted = Scaling(*(np.full(num_columns, held[-1], np.float64) for held in completion.scaling))
    bounds = tuple(np.full(num_columns, bound[-1]) for bound in completion.bounds)
    if completion.way != "matrix" and len(rows):
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
    """The matrix without its empty rows and columns, which all get the place after the last.

    A wide one column by column, so that cells are held out as of its transpose row by row.
    """
    places, numbers = [], []
    for listed, size in zip((entries.rows, entries.columns), entries.shape, strict=True):
        occupied = np.zeros(size, bool)
        occupied[listed] = True
        count = int(occupied.sum())
        places.append(np.where(occupied, np.cumsum(occupied) - 1, count).astype(np.int32))
        numbers.append(count)
    order = slice(None)
    if numbers[0] < numbers[1]:
        order = np.lexsort([entries.rows, entries.columns])
    dense = Entries(
        places[0][entries.rows[order]],
        places[1][entries.columns[order]],
        np.asarray(entries.values)[order],
        (numbers[0], numbers[1]),
    )
    return dense, *places


def _bounds(entries: Entries, way: str, padded: int) -> tuple[np.ndarray, np.ndarray]:
    """The range of the observed values, of all or of each column, widened where cells are few.

    Not beyond zero where no value of a column is.
    """
    values = entries.values.astype(np.float64)
    counts = np.bincount(entries.columns, minlength=padded)
    lows, highs = np.full(padded, np.inf), np.full(padded, -np.inf)
    np.minimum.at(lows, entries.columns, values)
    np.maximum.at(highs, entries.columns, values)
    positive, negative = (lows >= 0) & (counts > 0), (highs <= 0) & (counts > 0)
    fewest = 2
    if way == "matrix":
        of_sign = counts >= _FEWEST_OF_SIGN
        positive, negative = positive & of_sign, negative & of_sign
        lows, highs, counts = lows.min(), highs.max(), np.full(padded, len(values))
        positive, negative = positive | (lows >= 0), negative | (highs <= 0)
        fewest = 1
    # Halves, since the difference of large numbers may overflow.
    margin = 4 * (highs / 2 - lows / 2) / (counts + 1)
    # One value tells of no range.
    lows = np.where(counts >= fewest, lows - margin, -np.inf)
    highs = np.where(counts >= fewest, highs + margin, np.inf)
    return (
        np.where(positive, np.maximum(lows, 0), lows),
        np.where(negative, np.minimum(highs, 0), highs),
    )


def _tilt(best: fitting.Fit, fitted: Scaling) -> tuple[np.ndarray, float]:
    """The completion's ``tilt`` and ``widening``."""
    tilt, gaussian, cells = np.zeros(len(fitted.scales)), best.fitted.gaussian, best.held_out
    if gaussian is not None:
        tilt[: len(gaussian.mean)] = row_gaussian.missing_by_value(gaussian)
    if cells is None or not tilt.any():
        return tilt, 1.0
    m = cells.columns
    centers, scales = fitted.centers[m], fitted.scales[m]
    standardised = cells._replace(
        values=(cells.values - centers) / scales, predicted=(cells.predicted - centers) / scales
    )
    bars = best.inflation * cells.bars / scales
    further, widening = held_out.moved(standardised, tilt[m], np.zeros(len(m)), bars)
    return further * tilt, widening


def _dense(completion, u, p, m):
    """Values and errors of rows, given their half of `Cells`, in the columns at the places m."""
    held = completion.cells
    standardised = np.asarray(u, np.float64) @ held.v[m].T.astype(np.float64)
    variances = np.asarray(p, np.float64) @ held.r[m].T.astype(np.float64) + held.noise[m]
    return _in_units(completion, standardised, variances, m)


def _in_units(completion, standardised, variances, places):
    scales = completion.scaling.scales[places]
    bars = completion.inflation * np.sqrt(variances)
    move = completion.tilt[places] * bars**2
    values = completion.scaling.centers[places] + scales * (standardised + move)
    low, high = (bound[places] for bound in completion.bounds)
    doubt = completion.missing[places] * move
    return np.clip(values, low, high), scales * np.hypot(completion.widening * bars, doubt)
