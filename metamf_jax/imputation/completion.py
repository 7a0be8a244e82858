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
   is imputed is moved that way (`row_gaussian.missing_by_value`).

Nothing is trained: all of it is closed-form, and deterministic in the seed.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from metamf_jax import cells
from metamf_jax.bias_model import Effects
from metamf_jax.imputation import posterior, row_gaussian, row_solver, scaling, zero_shot
from metamf_jax.imputation.posterior import Posterior, Side
from metamf_jax.imputation.row_gaussian import Completed, RowGaussian
from metamf_jax.imputation.row_solver import Rows
from metamf_jax.imputation.scaling import Scaling
from metamf_jax.meta_learning.encoder import Context
from metamf_jax.meta_learning.meta_loss import MetaParams, ModelConfig
from metamf_jax.meta_learning.padding import bucket_size, pad_dense, stack_entries
from metamf_jax.types import Array, Entries, PaddedMatrices

ANSWERS = ("bias", "learned", "posterior", "gaussian", "neighbors")

# Fewer observed cells than this cannot be checked on a part of them.
_FEWEST_CHECKED = 10
# What the answers weigh before anything is known of the matrix, and how many observations' worth of
# error it takes to leave that.
_START_WEIGHTS = np.array([0.0, 0.6, 0.4, 0.0, 0.0])
_WEIGHT_STRENGTH = 6.0
# Error bars are this much too narrow before anything is known, with the weight of so many cells.
_START_INFLATION, _INFLATION_WEIGHT = 1.15, 10
_COVERAGE = 0.9
NORMAL_QUANTILE = 1.6448536  # Of that coverage, two-sided.
# Up to so many observed cells: how many times a part is held out, and what share. Interval widths
# from 360 held-out cells of Jester covered 0.856 to 0.923 of others, so small parts are too few.
_FOLDS = ((2500, 5, 0.2), (20_000, 2, 0.2), (200_000, 1, 0.1), (None, 1, 0.05))
# Cells, observed or not, of a matrix that is kept dense.
_MOST_DENSE = 2**15
# Cells of a dense block of rows folded in at once.
_BLOCK_CELLS = 2**17


class GeneralPrior(NamedTuple):
    """A learned prior for matrices in standardised units: see `imputation.pretrained`."""

    config: ModelConfig
    params: MetaParams


class Check(NamedTuple):
    """What the held-out check found, in the units of the values.

    Attributes:
      cells: held-out cells, 0 where there were too few to check.
      rmse: of the weighted answer on them.
      bias_rmse: of the bias model.
      coverage: share of them inside 90% intervals scaled on the other half of them.
    """

    cells: int
    rmse: float
    bias_rmse: float
    coverage: float


class Columns(NamedTuple):
    """All that further rows are folded in with; NumPy arrays, standardised units.

    Attributes:
      context, v: of the learned prior.
      posterior: see there.
      gaussian: over the first columns, those that had cells; None where factors are to do alone.
    """

    context: Context
    v: Array
    posterior: Posterior
    gaussian: RowGaussian | None


class Cells(NamedTuple):
    """Values ``u . v`` and variances ``p . r + noise`` of all cells, standardised.

    Attributes:
      u: [N, P], p: [N, Q]: the rows'.
      v: [M, P], r: [M, Q], noise: [M]: the columns'.
    """

    u: np.ndarray
    p: np.ndarray
    v: np.ndarray
    r: np.ndarray
    noise: Array


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
      bounds: least and greatest value that each column's cells may take.
      tilt: [M'], what the log odds of being missing gain with a unit of a cell's value.
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
    bounds: tuple[np.ndarray, np.ndarray]
    tilt: np.ndarray
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
    fits = [_fit(prior, dense, tried, tried == ways[-1], seed, progress) for tried in ways]
    best = min(fits, key=lambda found: found.error)
    fitted, adapted, post = best.scaling, best.fitted.adapted, best.fitted.posterior
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(best.fitted)):
        raise ValueError(
            f"the factors of this {entries.shape[0]} x {entries.shape[1]} matrix with "
            f"{len(entries.rows)} cells came out non-finite: its values may be too far apart for "
            "float32"
        )
    columns = _kept(best.fitted)
    rows = _rows(
        best.weights, columns, adapted.effects, adapted.factors.u, post.rows, best.fitted.completed
    )
    seen = np.zeros(entries.shape[1], bool)
    seen[entries.columns] = True
    padded = len(post.noise)
    scales = Scaling(
        np.append(fitted.centers, np.full(padded - len(fitted.centers), np.mean(dense.values))),
        np.append(fitted.scales, np.full(padded - len(fitted.scales), fitted.scales.max())),
    )
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
        _bounds(dense, best.way, padded),
        _tilt(columns.gaussian, scales),
        Cells(*rows, *_columns(best.weights, columns)),
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
    answers = []
    for start in range(0, len(values), per_block):
        block = slice(start, start + per_block)
        answers.append(_fold_block(completion, values[block], observed[block]))
    parts = zip(*answers, strict=True)
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
    size = _bucket(len(values), 32), completion.columns.v.shape[0]
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
    u, p = _rows(completion.weights, completion.columns, effects, u, side, completed)
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


def _bucket(size: int, least: int) -> int:
    """Few sizes for small matrices, since each compiles anew; finer ones for large."""
    if size <= 2**14:
        return max(least, 1 << (size - 1).bit_length())
    return bucket_size(size)


class _Fitted(NamedTuple):
    adapted: zero_shot.Adapted
    posterior: Posterior
    gaussian: RowGaussian | None = None
    completed: Completed | None = None


def _kept(fitted: _Fitted) -> Columns:
    adapted = fitted.adapted
    return Columns(adapted.context, adapted.factors.v, fitted.posterior, fitted.gaussian)


def _adapt(
    prior: GeneralPrior, whole: Entries, parts: list[Entries], by_rows: bool
) -> list[_Fitted]:
    """Fits a matrix and parts of it, all standardised; the parts first, to start the whole from.

    Args:
      by_rows: whether a Gaussian over the rows is fitted too, where it suits the matrix.
    """
    matrices = [*parts, whole]
    # A padding row and column remain for whatever is empty.
    shape = _bucket(whole.shape[0] + 1, 32), _bucket(whole.shape[1] + 1, 32)
    batch = stack_entries(matrices, shape, _bucket(len(whole.rows), 128))
    small = shape[0] * shape[1] <= _MOST_DENSE
    if small:
        # Through XLA alone: the kernels for lists take longer to compile than this to compute.
        with cells.using_backend("xla"):
            encoded = _unstack(_encode(prior.config, prior.params, pad_dense(batch)), len(matrices))
    fitted = []
    for n in range(len(matrices)):
        matrix = jax.tree.map(lambda leaf, n=n: leaf[n], batch)
        if small:
            found = encoded[n]
        else:
            found = jax.tree.map(np.asarray, _encode_one(prior.config, prior.params, matrix))
        if small and not cells.kernels_run_here():
            matrix = pad_dense(matrix)
        rows, columns = Rows(matrix), Rows(cells.transpose(matrix))
        adapted = zero_shot.adapt(prior.config, found, rows, columns)
        started = posterior.start(adapted.effects, adapted.factors, adapted.noise)
        if fitted and n == len(parts):
            started = fitted[0].posterior
        found = _Fitted(adapted, posterior.fit(rows, columns, started))
        if by_rows and row_gaussian.suits(rows.counts[: whole.shape[0]], whole.shape[1]):
            start = fitted[0].gaussian if fitted and n == len(parts) else None
            found = _by_rows(found, matrices[n], start)
        fitted.append(found)
    return [fitted[-1], *fitted[:-1]]


def _by_rows(fitted: _Fitted, entries: Entries, start: RowGaussian | None) -> _Fitted:
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


class _Fit(NamedTuple):
    """A matrix fitted under one standardisation, and what the held-out check said of that."""

    way: str
    scaling: Scaling
    fitted: _Fitted
    weights: np.ndarray
    inflation: float
    error: float
    check: Check


def _fit(
    prior: GeneralPrior,
    entries: Entries,
    way: str,
    by_rows: bool,
    seed: int,
    progress: Callable[[str], None],
) -> _Fit:
    count = len(entries.rows)
    folds, share = next(
        (folds, share) for most, folds, share in _FOLDS if most is None or count <= most
    )
    order = np.random.default_rng([seed, 0xC4EC]).permutation(count)
    per_fold = math.ceil(share * count)
    held = [order[fold * per_fold : (fold + 1) * per_fold] for fold in range(folds)]
    kept = []
    for out in held:
        inside = np.ones(count, bool)
        inside[out] = False
        # Of a handful of cells none is held out; they go through the same compiled program.
        kept.append(_select(entries, inside) if count >= _FEWEST_CHECKED else entries)
    matrices = [entries, *kept]
    scales = [scaling.fit_scaling(matrix, way) for matrix in matrices]
    progress(f"fitting {len(matrices)} times, standardised by {way}")
    standardised = [scaling.standardize(*each) for each in zip(matrices, scales, strict=True)]
    whole, *parts = _adapt(prior, standardised[0], standardised[1:], by_rows)
    if count < _FEWEST_CHECKED:
        nothing = Check(0, math.nan, math.nan, math.nan)
        return _Fit(way, scales[0], whole, _START_WEIGHTS, _START_INFLATION, 0.0, nothing)
    checked = np.concatenate(held)
    found = [
        _answers(part, fitted, entries.rows[out], entries.columns[out])
        for part, fitted, out in zip(parts, scales[1:], held, strict=True)
    ]
    # Parts may be full enough for a Gaussian where others are not.
    fewest = min(len(answers) for answers, _ in found)
    answers = np.concatenate([answers[:fewest] for answers, _ in found], axis=1)
    variances = np.concatenate([variances for _, variances in found], axis=1)
    # Errors count in units of each column's spread, so that no column drowns the others.
    units = scaling.fit_scaling(entries, "columns").scales[entries.columns[checked]]
    target, candidates = entries.values[checked].astype(np.float64) / units, answers / units
    weights = np.zeros(len(ANSWERS))
    weights[: len(answers)] = _weigh(candidates, target)
    left = target - weights[: len(answers)] @ candidates
    bars = np.sqrt(_row_share(weights) @ variances) / units
    inflation, coverage = _inflation(np.abs(left) / bars)
    check = Check(
        len(checked),
        float(np.sqrt(((left * units) ** 2).mean())),
        float(np.sqrt((((target - candidates[0]) * units) ** 2).mean())),
        coverage,
    )
    error = float((left**2).mean())
    return _Fit(way, scales[0], whole, weights, inflation, error, check)


def _answers(fit: _Fitted, fitted: Scaling, rows, columns) -> tuple[np.ndarray, np.ndarray]:
    """The `ANSWERS` [3 or 5, P] at cells, and the factors' and the rows' variances [2, P].

    In units; the second variances are those of the first where there is no Gaussian over rows.
    """
    adapted, post, _, completed = fit
    kept = _kept(fit)._replace(gaussian=None)
    answers = []
    for weights in np.eye(len(ANSWERS))[:3]:
        u, p = _rows(weights, kept, adapted.effects, adapted.factors.u, post.rows, None)
        v, r, noise = _columns(weights, kept)
        answers.append(np.einsum("pk,pk->p", u[rows], v[columns]))
    variances = [np.einsum("pk,pk->p", p[rows], r[columns]) + noise[columns]]
    if completed is not None:
        of_rows, near, variance = (part[rows, columns] for part in completed)
        answers += [of_rows, near]
        variances.append(variance)
    scales = fitted.scales[columns]
    variances = np.broadcast_to(variances, (2, len(rows))) if completed is None else variances
    return fitted.centers[columns] + scales * np.array(answers), scales**2 * np.array(variances)


def _row_share(weights: np.ndarray) -> np.ndarray:
    """What the variances of the factors and of the rows' Gaussian weigh, [2]."""
    share = min(weights[3:].sum(), 1.0)
    return np.array([1 - share, share])


def _select(entries: Entries, which: np.ndarray) -> Entries:
    return Entries(
        entries.rows[which], entries.columns[which], entries.values[which], entries.shape
    )


def _weigh(candidates: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights from the simplex with the least squared error, shrunken to the start."""
    errors = target - candidates
    start = _START_WEIGHTS[: len(errors)]
    noise = (errors**2).mean(axis=1).min()
    ridge = _WEIGHT_STRENGTH * noise + 1e-12 * (errors**2).mean() + 1e-300
    # With weights that add up to one, the error is the weighted sum of errors.
    gram = errors @ errors.T + ridge * np.eye(len(errors))
    pull = ridge * start
    best, least = start, np.inf
    # A few numbers: the best of each set of answers by itself, where that is inside the simplex.
    for size in range(1, len(errors) + 1):
        for chosen in map(list, itertools.combinations(range(len(errors)), size)):
            system = np.ones((size + 1, size + 1))
            system[:size, :size], system[size, size] = gram[np.ix_(chosen, chosen)], 0
            solution = np.linalg.solve(system, np.append(pull[chosen], 1))[:size]
            weights = np.zeros(len(errors))
            weights[chosen] = solution
            loss = weights @ gram @ weights - 2 * pull @ weights
            if (solution >= 0).all() and loss < least:
                best, least = weights, loss
    return best


def _inflation(scores: np.ndarray) -> tuple[float, float]:
    """By what error bars must grow to hold 90% of the held-out cells, and what share that holds.

    Args:
      scores: [H] errors divided by their bars.
    """
    count = len(scores)
    rank = min(math.ceil(_COVERAGE * (count + 1)), count)
    measured = max(np.sort(scores)[rank - 1] / NORMAL_QUANTILE, 1e-3)
    share = count / (count + _INFLATION_WEIGHT)
    inflation = math.exp(share * math.log(measured) + (1 - share) * math.log(_START_INFLATION))
    # Measured on the other half, so that it can fail.
    halves = [scores[::2], scores[1::2]]
    inside = []
    for one, other in (halves, halves[::-1]):
        if len(other):
            rank = min(math.ceil(_COVERAGE * (len(one) + 1)), len(one))
            inside.append(other <= np.sort(one)[rank - 1])
    return inflation, float(np.concatenate(inside).mean()) if inside else math.nan


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


def _tilt(gaussian: RowGaussian | None, fitted: Scaling) -> np.ndarray:
    tilt = np.zeros(len(fitted.scales))
    if gaussian is not None:
        tilt[: len(gaussian.mean)] = row_gaussian.missing_by_value(gaussian)
    return tilt / fitted.scales


def _rows(weights, columns: Columns, effects: Effects, u, side: Side, completed: Completed | None):
    """The rows' half of `Cells`."""
    of_bias, of_posterior = weights[0] + weights[1], weights[2]
    constant = of_bias * (effects.mean + effects.rows) + of_posterior * columns.posterior.mean
    u = np.column_stack(
        [constant, np.full(len(u), of_bias), weights[1] * u, of_posterior * side.mean]
    )
    p = np.concatenate([side.mean**2 + side.variance, side.variance], axis=1)
    if completed is None or columns.gaussian is None:
        return u, p
    # What is said of rows is a cell for each column; padding is a row of which nothing is known.
    gaussian, padding = columns.gaussian, ((0, len(u) - len(completed.values)), (0, 0))
    values, variances = (np.pad(part, padding) for part in (completed.values, completed.variances))
    values[len(completed.values) :] = gaussian.mean
    variances[len(completed.values) :] = np.diag(gaussian.covariance)
    near = values.copy()
    near[: len(completed.values)] = completed.neighbors
    of_factors, of_rows = _row_share(weights)
    return (
        np.hstack([u, weights[3] * values + weights[4] * near]),
        np.hstack([of_factors * p, of_rows * variances]),
    )


def _columns(weights, columns: Columns):
    """The columns' half of `Cells`."""
    side, noise, gaussian = columns.posterior.columns, columns.posterior.noise, columns.gaussian
    effects = columns.context.effects
    assert effects is not None
    v = np.column_stack([np.ones(len(columns.v)), effects.columns, columns.v, side.mean])
    r = np.concatenate([side.variance, side.mean**2], axis=1)
    if gaussian is None:
        return v, r, noise
    own = np.eye(len(v), len(gaussian.mean))
    of_factors, of_rows = _row_share(weights)
    # Of a column without cells the Gaussian knows the mean of the others alone.
    unknown = np.where(own.any(axis=1), 0, np.trace(gaussian.covariance) / len(gaussian.mean))
    return np.hstack([v, own]), np.hstack([r, own]), of_factors * noise + of_rows * unknown


def _dense(completion, u, p):
    held, m = completion.cells, completion.column_places
    standardised = np.asarray(u, np.float64) @ held.v[m].T.astype(np.float64)
    variances = np.asarray(p, np.float64) @ held.r[m].T.astype(np.float64) + held.noise[m]
    return _in_units(completion, standardised, variances, m)


def _in_units(completion, standardised, variances, places):
    scales = completion.scaling.scales[places]
    errors = completion.inflation * scales * np.sqrt(variances)
    values = completion.scaling.centers[places] + scales * standardised
    values += completion.tilt[places] * errors**2
    low, high = (bound[places] for bound in completion.bounds)
    return np.clip(values, low, high), errors
