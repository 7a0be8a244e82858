"""Completes one matrix of any size and any scale: the pipeline around the learned prior.

1. Rows and columns without cells are set aside; they share one answer, that of the prior.
2. Values are standardised, by one mean and deviation or by each column's (`scaling`).
3. Three answers, each knowing what the former knows: a bias model with learned shrinkage; factors
   under the encoder's prior (`zero_shot`); a posterior that starts there and learns its precisions
   from the matrix (`posterior`).
4. A held-out check on observed cells weights the three, chooses the standardisation, and measures
   by how much the posterior's error bars are too narrow (split conformal prediction; Vovk et al.
   2005). Too few cells to check leave everything at what the prior says.

Nothing is trained: all of it is closed-form, and deterministic in the seed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import scipy.optimize

from metamf_jax import cells
from metamf_jax.bias_model import Effects
from metamf_jax.imputation import posterior, scaling, zero_shot
from metamf_jax.imputation.posterior import Posterior, Side
from metamf_jax.imputation.scaling import Scaling
from metamf_jax.meta_learning.encoder import Context
from metamf_jax.meta_learning.meta_loss import MetaParams, ModelConfig
from metamf_jax.meta_learning.padding import bucket_size, pad_dense, stack_entries
from metamf_jax.types import Entries, PaddedMatrices

ANSWERS = ("bias", "learned", "posterior")

# Fewer observed cells than this cannot be checked on a part of them.
_FEWEST_CHECKED = 10
# What the three answers weigh before anything is known of the matrix, and how many observations'
# worth of error it takes to leave that.
_START_WEIGHTS = np.array([0.0, 0.6, 0.4])
_WEIGHT_STRENGTH = 6.0
# Error bars are this much too narrow before anything is known, with the weight of so many cells.
_START_INFLATION, _INFLATION_WEIGHT = 1.15, 10
_COVERAGE = 0.9
NORMAL_QUANTILE = 1.6448536  # Of that coverage, two-sided.
# Up to so many observed cells: how many times a part is held out, and what share. Interval widths
# from 360 held-out cells of Jester covered 0.856 to 0.923 of others, so small parts are too few.
_FOLDS = ((400, 5, 0.2), (2500, 4, 0.2), (20_000, 2, 0.2), (200_000, 1, 0.1), (None, 1, 0.05))
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
    """All that further rows are folded in with; NumPy arrays, standardised units."""

    context: Context
    v: np.ndarray
    posterior: Posterior


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
    noise: np.ndarray


@dataclasses.dataclass(frozen=True)
class Completion:
    """A completed matrix.

    Attributes:
      shape: (N, M).
      row_places, column_places: [N], [M] int32, where each stands in ``cells`` and ``columns``.
      seen_columns: [M] bool, columns that had a cell.
      scaling: of the columns in ``cells``.
      way: the standardisation chosen.
      weights: of the three `ANSWERS`.
      inflation: by what error bars are multiplied.
      bounds: least and greatest value that each column's cells may take.
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
    checked = []
    for tried in ways if way is None else (way,):
        progress(f"held-out check, standardised by {tried}")
        checked.append(_check(prior, dense, tried, seed))
    best = min(checked, key=lambda found: found.error)
    progress("all cells")
    fitted = scaling.fit_scaling(dense, best.way)
    adapted, post = _fit(prior, _padded([scaling.standardize(dense, fitted)]), _sweeps(dense))
    adapted, post = jax.tree.map(lambda leaf: np.asarray(leaf)[0], (adapted, post))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((adapted, post))):
        raise ValueError(
            f"the factors of this {entries.shape[0]} x {entries.shape[1]} matrix with "
            f"{len(entries.rows)} cells came out non-finite: its values may be too far apart for "
            "float32"
        )
    columns = Columns(adapted.context, adapted.factors.v, post)
    rows = _rows(best.weights, columns, adapted.effects, adapted.factors.u, post.rows)
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
        Cells(*rows, *_columns(best.weights, columns)),
        columns,
        best.check,
    )


def predict(
    completion: Completion, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors at cells ``(rows, columns)``, each [P]; float64 [P].

    Raises:
      ValueError: a cell lies outside of the matrix.
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    for kind, places, size in zip(
        ("row", "column"), (rows, columns), completion.shape, strict=True
    ):
        if len(places) and (places.min() < 0 or places.max() >= size):
            raise ValueError(
                f"expected {kind}s from 0 to {size - 1}, got {places.min()} to {places.max()}"
            )
    held = completion.cells
    n, m = completion.row_places[rows], completion.column_places[columns]
    values, errors = np.empty(len(n)), np.empty(len(n))
    # A block at a time: the products need 60 numbers a cell.
    for start in range(0, len(n), 2**18):
        part = slice(start, start + 2**18)
        i, j = n[part], m[part]
        standardised = np.einsum("pk,pk->p", held.u[i], held.v[j])
        variances = np.einsum("pk,pk->p", held.p[i], held.r[j]) + held.noise[j]
        values[part], errors[part] = _in_units(completion, standardised, variances, j)
    return values, errors


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


def _fold_block(completion, values, observed):
    used = observed & completion.seen_columns
    rows, columns = np.nonzero(used)
    places = completion.column_places[columns]
    held = completion.scaling
    dtype = values.dtype if values.dtype == np.float64 else np.float32
    size = _bucket(len(values), 8), completion.columns.v.shape[0]
    dense = PaddedMatrices(np.zeros(size, dtype), np.zeros(size, bool))
    dense.values[rows, places] = (values[rows, columns] - held.centers[places]) / held.scales[
        places
    ]
    dense.observed[rows, places] = True
    with jax.enable_x64(dtype == np.float64):
        state = jax.tree.map(
            lambda leaf: np.asarray(leaf, dtype), (completion.prior.params, completion.columns)
        )
        effects, u, side = jax.tree.map(
            np.asarray, _fold_compiled(completion.prior.config, *state, dense)
        )
    u, p = _rows(completion.weights, completion.columns, effects, u, side)
    return u[: len(values)], p[: len(values)]


@functools.partial(jax.jit, static_argnums=0)
def _fold_compiled(config, params, columns, observations):
    effects, u, _ = zero_shot.fold_in(config, params, observations, columns.context, columns.v)
    return effects, u, posterior.solve_rows(observations, columns.posterior)


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


def _padded(matrices: list[Entries]) -> Entries:
    """Lists of cells in one batch; a padding row and column remain for whatever is empty."""
    num_rows, num_columns = matrices[0].shape
    shape = _bucket(num_rows + 1, 32), _bucket(num_columns + 1, 32)
    return stack_entries(matrices, shape, _bucket(max(len(m.rows) for m in matrices), 128))


def _sweeps(entries: Entries) -> int:
    count = len(entries.rows)
    return 30 if count <= 20_000 else 15 if count <= 200_000 else 6


def _fit(prior: GeneralPrior, batch: Entries, sweeps: int) -> tuple[zero_shot.Adapted, Posterior]:
    if not _is_small(batch.shape):
        return _fit_compiled(prior.config, sweeps, prior.params, batch)
    with cells.using_backend("xla"):
        return _fit_compiled(prior.config, sweeps, prior.params, pad_dense(batch))


def _is_small(shape: tuple[int, int]) -> bool:
    """Whether dense arrays serve best, through XLA alone: the kernels for lists take longer to
    compile than a small matrix to complete."""
    return shape[0] * shape[1] <= _MOST_DENSE


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit_compiled(config, sweeps, params, batch):
    def one(observations):
        adapted = zero_shot.adapt(config, params, observations)
        return adapted, posterior.fit(observations, adapted.effects, adapted.factors, sweeps)

    return jax.vmap(one)(batch)


@jax.jit
def _answers_compiled(adapted, post, rows, columns):
    def one(adapted, post, rows, columns):
        nothing = jax.tree.map(lambda leaf: 0 * leaf, adapted.factors)
        bias = zero_shot.predict(adapted.effects, nothing, rows, columns)
        learned = zero_shot.predict(adapted.effects, adapted.factors, rows, columns)
        values, variances = posterior.predict(post, rows, columns)
        return jax.numpy.stack([bias, learned, values, variances])

    return jax.vmap(one)(adapted, post, rows, columns)


class _Checked(NamedTuple):
    way: str
    weights: np.ndarray
    inflation: float
    error: float
    check: Check


def _check(prior: GeneralPrior, entries: Entries, way: str, seed: int) -> _Checked:
    """Weights, inflation and error of one standardisation, from held-out cells."""
    count = len(entries.rows)
    if count < _FEWEST_CHECKED:
        nothing = Check(0, math.nan, math.nan, math.nan)
        return _Checked(way, _START_WEIGHTS, _START_INFLATION, 0.0, nothing)
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
        kept.append(_select(entries, inside))
    scales = [scaling.fit_scaling(part, way) for part in kept]
    batch = _padded(
        [scaling.standardize(part, fitted) for part, fitted in zip(kept, scales, strict=True)]
    )
    adapted, post = _fit(prior, batch, _sweeps(entries))
    places = stack_entries(
        [_select(entries, out) for out in held], batch.shape, _bucket(per_fold, 32)
    )
    backend = "xla" if _is_small(batch.shape) else "auto"
    with cells.using_backend(backend):
        found = _answers_compiled(adapted, post, places.rows, places.columns)
    found = np.asarray(found, np.float64)
    answers = np.concatenate([found[f, :, : len(out)] for f, out in enumerate(held)], axis=1)
    centers, deviations = (
        np.concatenate(
            [fitted[part][entries.columns[out]] for fitted, out in zip(scales, held, strict=True)]
        )
        for part in (0, 1)
    )
    checked = np.concatenate(held)
    truth = entries.values[checked].astype(np.float64)
    # Errors count in units of each column's spread, so that no column drowns the others.
    units = scaling.fit_scaling(entries, "columns").scales[entries.columns[checked]]
    candidates = answers[:3] * (deviations / units) + centers / units
    target = truth / units
    weights = _weigh(candidates, target)
    left = target - weights @ candidates
    bars = np.sqrt(answers[3]) * deviations / units
    inflation, coverage = _inflation(np.abs(left) / bars)
    check = Check(
        len(checked),
        float(np.sqrt(((left * units) ** 2).mean())),
        float(np.sqrt((((target - candidates[0]) * units) ** 2).mean())),
        coverage,
    )
    return _Checked(way, weights, inflation, float((left**2).mean()), check)


def _select(entries: Entries, which: np.ndarray) -> Entries:
    return Entries(
        entries.rows[which], entries.columns[which], entries.values[which], entries.shape
    )


def _weigh(candidates: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Weights from the simplex with the least squared error, shrunken to the start."""
    errors = target - candidates
    noise = (errors**2).mean(axis=1).min()
    scale = max(np.sqrt((errors**2).mean()), 1e-12)
    strength = math.sqrt(_WEIGHT_STRENGTH * noise) + 1e-9 * scale
    # A row of large weight makes the sum one.
    heavy = 1e3 * scale * math.sqrt(len(target))
    matrix = np.vstack(
        [candidates.T - target[:, None], strength * np.eye(3), heavy * np.ones((1, 3))]
    )
    goal = np.concatenate([np.zeros(len(target)), strength * _START_WEIGHTS, [heavy]])
    weights, _ = scipy.optimize.nnls(matrix, goal)
    return weights / weights.sum()


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
    margin = np.where(counts > 1, 2 * (highs - lows) / (counts + 1), np.inf)
    # One value tells of no range.
    return np.where(counts > 1, lows - margin, -np.inf), np.where(
        counts > 1, highs + margin, np.inf
    )


def _rows(weights, columns: Columns, effects: Effects, u, side: Side):
    """The rows' half of `Cells`."""
    of_bias, of_posterior = weights[0] + weights[1], weights[2]
    constant = of_bias * (effects.mean + effects.rows) + of_posterior * columns.posterior.mean
    u = np.column_stack(
        [constant, np.full(len(u), of_bias), weights[1] * u, of_posterior * side.mean]
    )
    return u, np.concatenate([side.mean**2 + side.variance, side.variance], axis=1)


def _columns(weights, columns: Columns):
    """The columns' half of `Cells`."""
    side = columns.posterior.columns
    effects = columns.context.effects
    assert effects is not None
    v = np.column_stack([np.ones(len(columns.v)), effects.columns, columns.v, side.mean])
    return v, np.concatenate([side.variance, side.mean**2], axis=1), columns.posterior.noise


def _dense(completion, u, p):
    held, m = completion.cells, completion.column_places
    standardised = np.asarray(u, np.float64) @ held.v[m].T.astype(np.float64)
    variances = np.asarray(p, np.float64) @ held.r[m].T.astype(np.float64) + held.noise[m]
    return _in_units(completion, standardised, variances, m)


def _in_units(completion, standardised, variances, places):
    scales = completion.scaling.scales[places]
    values = completion.scaling.centers[places] + scales * standardised
    low, high = (bound[places] for bound in completion.bounds)
    return np.clip(values, low, high), completion.inflation * scales * np.sqrt(variances)
