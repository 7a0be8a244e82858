"""Further rows, and further columns, of a completed matrix; nothing of it changes."""

import dataclasses
import functools

import jax
import numpy as np

from metamf_jax.imputation import (
    candidates,
    columns,
    fitting,
    mixed,
    posterior,
    row_index,
    row_models,
    row_solver,
    sampled,
    scaling,
    zero_shot,
)
from metamf_jax.imputation.candidates import RowHalf, RowState
from metamf_jax.imputation.completion import (
    Completion,
    of_rows,
    predict_each_row,
    settle,
    with_draws,
)
from metamf_jax.imputation.mixed import MixedConfig
from metamf_jax.imputation.places import require_valid
from metamf_jax.imputation.posterior import Side
from metamf_jax.imputation.row_solver import Rows
from metamf_jax.imputation.scaling import Bounds, Scaling
from metamf_jax.types import Entries, PaddedMatrices

# Tables no wider, and with so many rows a column, are imputed by draws of their columns'
# covariance. A regression's slopes on completed tables of 100 x 3 with a third missing were 7% too
# small by these, 25% by draws of factors, in a third of the time.
_MOST_COLUMNS, _ROWS_A_COLUMN = 100, 2
# Cells of a dense block of rows folded in at once.
_BLOCK_CELLS = 2**17


def fold_in_rows(
    completion: Completion,
    values: np.ndarray,
    observed: np.ndarray,
    features: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors of every cell of further rows over the same columns.

    A row's answer depends on that row's cells alone, and is that of `completion.predict_rows` to
    rounding for rows with the cells of fitted ones. Runs in float64 for float64 values, in float32
    otherwise. Where the transpose was fitted, other rows are answered as by `fold_in_columns`;
    where rows are standardised, by their own cells.

    Args:
      completion: of the fitted matrix.
      values: [N', M], whatever the unobserved cells hold.
      observed: [N', M] bool. Cells in columns that had none in the fitted matrix are not used.
      features: [N', F] of the rows, from `feature_tables.of_further`; a row of which nothing else
        is known is answered from these by draws.

    Returns:
      float64 [N', M], twice.
    """
    if completion.fitted_rows is None:
        return _further_rows(completion, values, observed, None)
    if completion.sampled is not None:
        numbers = sampled.find_rows(completion.sampled, values, observed, features)
    else:
        numbers = row_index.find(completion.fitted_rows, values, observed)
    known = numbers >= 0
    found, errors = np.empty(values.shape), np.empty(values.shape)
    found[known], errors[known] = predict_each_row(completion, numbers[known])
    if not known.all():
        of_others = None if features is None else features[~known]
        others = _further_rows(completion, values[~known], observed[~known], of_others)
        found[~known], errors[~known] = others
    return found, errors


def _further_rows(
    completion: Completion,
    values: np.ndarray,
    observed: np.ndarray,
    features: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Values and errors of rows that were not fitted, where it matters."""
    if completion.transposed:
        used = observed & (completion.places.rows < len(completion.cells.u) - 1)
        found, errors = (x.T for x in _over_fitted_rows(completion, values.T, used.T))
    else:
        found, errors = _over_fitted_columns(completion, values, observed)
    if completion.sampled is None:
        return settle(completion.settled, found, errors)
    by_draws = sampled.fold_in_rows(completion.sampled, values, observed, features)
    _, alone = completion.sampled.told_alone
    told = np.zeros(len(values), bool) if features is None else features.any(axis=1)
    alone = alone | (told & ~(observed & ~alone).any(axis=1))[:, None]
    return with_draws(completion, (found, errors), by_draws, alone)


def bounds_of_rows(completion: Completion, values: np.ndarray, observed: np.ndarray) -> Bounds:
    """What the values of `fold_in_rows` are clipped to; [M], or [N', 1] where rows have bounds.

    Of a matrix that is not answered by draws.
    """
    if not completion.transposed:
        return Bounds(*(bound[completion.places.columns] for bound in completion.bounds))
    assert completion.fitted_rows is not None
    numbers = row_index.find(completion.fitted_rows, values, observed)
    used = observed & (completion.places.rows < len(completion.cells.u) - 1)
    _, own = _units_of_columns(completion, _entries(values.T, used.T))
    # Rows here are the columns of what was fitted.
    fitted = completion.places.columns[np.maximum(numbers, 0)]
    low, high = (
        np.where(numbers >= 0, bound[fitted], other)[:, None]
        for bound, other in zip(completion.bounds, own, strict=True)
    )
    return Bounds(low, high)


def fold_in_columns(
    completion: Completion, values: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors of every cell of further columns over the fitted rows.

    Of the candidates the posterior alone answers, since the learned prior of a column is not a
    function of its own cells; error bars are those that its answers need at held-out cells.

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
    _entries(values, observed)
    if completion.transposed:
        found, errors = (x.T for x in _over_fitted_columns(completion, values.T, observed.T))
    else:
        found, errors = _over_fitted_rows(completion, values, observed)
    if completion.sampled is None:
        return found, errors
    by_draws = sampled.fold_in_columns(completion.sampled, values, observed)
    alone, _ = completion.sampled.told_alone
    return with_draws(completion, (found, errors), by_draws, alone[:, None])


def impute(
    completion: Completion,
    values: np.ndarray,
    observed: np.ndarray,
    imputations: int,
    seed: int,
    features: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Completes rows several times, by draws; with features [N', F] as of `fold_in_rows`.

    Where the matrix was answered by draws, they are these (`sampled.impute`). Otherwise they are of
    the posterior of these rows alone: of the means and covariance of a narrow table's columns, with
    whole numbers and few levels as such (`mixed`); of any other matrix's factors, each column, or
    row where these have units, standardised by itself.

    Raises:
      ValueError: fewer than one imputation or more than 100, or no observed cell.
    """
    if completion.sampled is not None:
        return sampled.impute(completion.sampled, values, observed, imputations, seed, features)
    turned = completion.standardized_by == "rows"
    if not turned and _narrow(values.shape):
        return _impute_columns(completion, values, observed, imputations, seed)
    if turned:
        values, observed = values.T, observed.T
    drawn = sampled.fit(_entries(values, observed), "columns")
    found = sampled.impute(drawn, values, observed, imputations, seed)
    return [each.T for each in found] if turned else found


def _narrow(shape: tuple[int, ...]) -> bool:
    """Whether a table has rows enough to tell the covariance of its columns."""
    return shape[1] <= min(_MOST_COLUMNS, shape[0] / _ROWS_A_COLUMN)


def _impute_columns(
    completion: Completion, values: np.ndarray, observed: np.ndarray, imputations: int, seed: int
) -> list[np.ndarray]:
    _entries(values, observed)
    encoded, described = columns.of_matrix(np.where(observed, values, np.nan))
    fitted = mixed.fit_draws(encoded, described, MixedConfig(seed=seed))
    # Of a column without cells the draws say nothing.
    empty = np.array([mixed.is_empty(margin) for margin in fitted.margins])
    of_empty = fold_in_rows(completion, values, observed)[0] if empty.any() else values
    found = []
    for drawn in mixed.impute(fitted, encoded, imputations):
        drawn = np.where(empty, of_empty, columns.to_matrix(described, drawn))
        found.append(np.where(observed, values, drawn).astype(values.dtype))
    return found


def with_rows(completion: Completion, dense: Entries) -> Completion:
    """A completion fitted on some rows, with all of them folded in.

    Args:
      completion: not of the transpose; its ``places`` are those of all rows.
      dense: the cells of all rows, without empty rows and columns.
    """
    every = completion.places._replace(columns=np.arange(dense.shape[1]))
    blocks = _blocks(dataclasses.replace(completion, places=every), *fitting.dense(dense))
    # The last stands for rows without cells.
    empty = completion.cells.u[-1:], completion.cells.p[-1:]
    u, p = (np.concatenate(halves) for halves in zip(*blocks, empty, strict=True))
    return dataclasses.replace(completion, cells=completion.cells._replace(u=u, p=p))


def _over_fitted_columns(completion, values, observed):
    """Rows of what was fitted."""
    rows = RowHalf(*map(np.concatenate, zip(*_blocks(completion, values, observed), strict=True)))
    return of_rows(completion, rows, completion.places.columns)


def _blocks(completion: Completion, values, observed) -> list[RowHalf]:
    """The halves of rows, a block of them at a time."""
    per_block = max(1, _BLOCK_CELLS // len(completion.columns.v))
    blocks = []
    for start in range(0, len(values), per_block):
        block = slice(start, start + per_block)
        blocks.append(_fold_block(completion, values[block], observed[block]))
    return blocks


def _fold_block(completion: Completion, values, observed) -> RowHalf:
    columns, places = completion.columns, completion.places
    standardised, seen = _standardised_rows(completion, values, observed)
    precision, dense = standardised.dtype, PaddedMatrices(standardised, seen)
    with jax.enable_x64(precision == np.float64):
        state = jax.tree.map(
            lambda leaf: np.asarray(leaf, precision),
            (completion.prior.params, columns.context, columns.v, columns.posterior),
        )
        found = jax.tree.map(np.asarray, _solve_rows(completion.prior.config, *state, dense))
    completed = None
    if columns.row_models is not None:
        # Of the first columns, those that had cells.
        part = slice(len(values)), slice(places.occupied[1])
        none = np.zeros(len(columns.v))
        weights = {name: completion.weights.get(name, none) for name in candidates.OF_ROWS}
        wanted = {name: weight[part[1]] > 0 for name, weight in weights.items()}
        completed = row_models.complete(columns.row_models, standardised[part], seen[part], wanted)
    effects, u, side = found
    rows = RowState(effects, u, side, completed)
    u, p = candidates.row_half(completion.weights, rows, columns)
    return RowHalf(u[: len(values)], p[: len(values)])


def _standardised_rows(completion: Completion, values, observed) -> tuple[np.ndarray, np.ndarray]:
    """Rows in standardised units and which of their cells are observed, padded to few sizes."""
    places, scales = completion.places, completion.scaling
    used = observed & (places.columns < places.occupied[1])
    rows, columns = np.nonzero(used)
    m = places.columns[columns]
    precision = values.dtype if values.dtype == np.float64 else np.float32
    size = fitting.bucket(len(values), 32), len(completion.columns.v)
    standardised, seen = np.zeros(size, precision), np.zeros(size, bool)
    standardised[rows, m] = (values[rows, columns] - scales.centers[m]) / scales.scales[m]
    seen[rows, m] = True
    return standardised, seen


@functools.partial(jax.jit, static_argnums=0)
def _solve_rows(config, params, context, v, of_columns, observations):
    """Effects, factors and posterior of rows."""
    effects, u, _ = zero_shot.fold_in(config, params, observations, context, v)
    problem = posterior.row_problem(of_columns, len(u))
    solved = row_solver.solve(observations, problem)
    return effects, u, posterior.rows_from(of_columns, solved)


def _over_fitted_rows(completion: Completion, values, observed):
    """Columns of what was fitted, by the posterior."""
    n, post = completion.places.rows, completion.columns.posterior
    entries = _entries(values, observed)
    rows, columns = entries.rows, entries.columns
    scales, bounds = _units_of_columns(completion, entries)
    listed = Entries(
        columns.astype(np.int32),
        n[rows],
        scaling.standardize(entries, scales).values.astype(np.float32),
        (values.shape[1], len(post.rows.mean)),
    )
    side, noise = posterior.fold_in_columns(Rows(listed), post)
    of_fitted = Side(*(np.asarray(x, np.float64) for x in post.rows))
    # [N, K] x [K, M'] -> [N, M']
    standardised = post.mean + of_fitted.mean[n] @ side.mean.T
    variances = (of_fitted.mean**2 + of_fitted.variance)[n] @ side.variance.T + noise
    variances += of_fitted.variance[n] @ (side.mean**2).T
    found = scales.centers + scales.scales * standardised
    errors = completion.posterior_inflation * scales.scales * np.sqrt(variances)
    return np.clip(found, *bounds), errors


def _entries(values, observed) -> Entries:
    """The observed cells, which are finite."""
    rows, columns = np.nonzero(observed)
    entries = Entries(rows, columns, np.asarray(values[rows, columns], np.float64), values.shape)
    if len(rows):
        require_valid(entries)
    return entries


def _units_of_columns(completion: Completion, entries: Entries) -> tuple[Scaling, Bounds]:
    """Those of all cells, or each column's own."""
    num_columns = entries.shape[1]
    if completion.standardized_by != "matrix" and len(entries.rows):
        return (
            scaling.fit_scaling(entries, "columns"),
            scaling.fit_bounds(entries, "columns", num_columns),
        )
    # Padding is standardised as a column of which nothing is known.
    scales = (np.full(num_columns, part[-1], np.float64) for part in completion.scaling)
    return Scaling(*scales), Bounds(*(np.full(num_columns, b[-1]) for b in completion.bounds))
