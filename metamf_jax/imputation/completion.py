"""A completed matrix, and what it says of its cells."""

import dataclasses

import numpy as np

from metamf_jax.imputation import sampled
from metamf_jax.imputation.candidates import Cells, ColumnState, RowHalf
from metamf_jax.imputation.feature_tables import Features
from metamf_jax.imputation.held_out import Check
from metamf_jax.imputation.places import Places, find_places
from metamf_jax.imputation.prior import LearnedPrior
from metamf_jax.imputation.row_index import RowIndex
from metamf_jax.imputation.sampled import Sampled
from metamf_jax.imputation.scaling import Bounds, Scaling
from metamf_jax.types import Array, Entries

# Cells answered at once: the products need 60 numbers a cell.
_BLOCK = 2**18


@dataclasses.dataclass(frozen=True)
class Completion:
    """A completed matrix: records of arrays.

    Attributes:
      prior: the learned prior that it was completed with.
      entries: the observed cells.
      shape: (N, M).
      transposed: whether all but ``entries``, ``shape``, ``standardized_by`` and ``check`` is of
        the transpose.
      places: where each row and column stands in ``cells`` and ``columns``.
      standardized_by: ``matrix``, ``columns`` or ``rows``.
      scaling: of the M' columns in ``cells``, padding included.
      weights: of the candidates, by name; [M'] each.
      inflation: [M'], by what error bars are multiplied.
      posterior_inflation: and those of further columns, which the posterior answers alone.
      widening: by what further, where cells are missing for their own value; else 1.
      bounds: of the columns in ``cells``.
      tilt: [M'], by how much of its variance an imputed value is moved; standardised units.
      missing: [M'], the share of a column's cells that are missing. Of a move, which rests on the
        others, as much is doubted.
      cells, columns: see their classes.
      fitted_rows: the matrix's rows by their cells, where what they are answered with is not a
        function of these alone: the transpose was fitted, or draws answer; else None.
      settled: [M], the value of a column all of whose cells hold it, but for one at most; else NaN.
      check: what was found on held-out cells.
      sampled: draws of the matrix's posterior, where these answer too; and error bars are theirs.
      draws_share: of these in the answer, which is the candidates' for the rest.
      features: of rows and columns, where a user's tables gave them.
    """

    prior: LearnedPrior
    entries: Entries
    shape: tuple[int, int]
    transposed: bool
    places: Places
    standardized_by: str
    scaling: Scaling
    weights: dict[str, np.ndarray]
    inflation: np.ndarray
    posterior_inflation: float
    widening: float
    bounds: Bounds
    tilt: np.ndarray
    missing: np.ndarray
    cells: Cells
    columns: ColumnState
    fitted_rows: RowIndex | None
    settled: np.ndarray
    check: Check
    sampled: Sampled | None = None
    draws_share: float = 0.0
    features: Features | None = None


def predict(
    completion: Completion, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and standard errors at cells ``(rows, columns)``, each [P]; float64 [P].

    Numbers from N (or M) on stand for rows (or columns) unknown to the fitted matrix, which are
    answered like those without a cell.

    Raises:
      ValueError: a number is negative.
    """
    found = _predict_by_candidates(completion, rows, columns)
    if completion.sampled is None:
        m = np.minimum(columns, len(completion.settled))
        return settle(np.append(completion.settled, np.nan)[m], *found)
    by_draws = sampled.predict(completion.sampled, rows, columns)
    of_rows, of_columns = completion.sampled.told_alone
    # Of unknown rows and columns no table tells.
    n, m = np.minimum(rows, len(of_rows)), np.minimum(columns, len(of_columns))
    alone = np.append(of_rows, False)[n] | np.append(of_columns, False)[m]
    return with_draws(completion, found, by_draws, alone)


def settle(
    settled: np.ndarray, values: np.ndarray, errors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same, with the values of columns that are settled."""
    return np.where(np.isnan(settled), values, settled), errors


def with_draws(
    completion: Completion,
    by_candidates: tuple[np.ndarray, np.ndarray],
    by_draws: tuple[np.ndarray, np.ndarray],
    alone: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Values, those of both weighted, and errors, the draws', of the same cells.

    Args:
      completion: of the matrix.
      by_candidates, by_draws: values and errors.
      alone: where nothing but given features is known of the row or column, so that draws answer.
    """
    share = np.where(alone, 1.0, completion.draws_share)
    return share * by_draws[0] + (1 - share) * by_candidates[0], by_draws[1]


def _predict_by_candidates(
    completion: Completion, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    cells = completion.cells
    kinds = "row", "column"
    if completion.transposed:
        rows, columns, kinds = columns, rows, kinds[::-1]
    n = find_places(rows, kinds[0], completion.places.rows, len(cells.u) - 1)
    m = find_places(columns, kinds[1], completion.places.columns, len(cells.v) - 1)
    values, errors = np.empty(len(n)), np.empty(len(n))
    for start in range(0, len(n), _BLOCK):
        part = slice(start, start + _BLOCK)
        i, j = n[part], m[part]
        standardised = np.einsum("pk,pk->p", cells.u[i], cells.v[j])
        variances = np.einsum("pk,pk->p", cells.p[i], cells.r[j]) + cells.noise[j]
        values[part], errors[part] = _in_units(completion, standardised, variances, j)
    return values, errors


def predict_rows(completion: Completion, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """All values and standard errors of rows ``first .. last - 1``; float64 [last - first, M]."""
    return predict_each_row(completion, np.arange(*slice(first, last).indices(completion.shape[0])))


def predict_each_row(completion: Completion, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All values and standard errors of these rows; float64 [len(rows), M]."""
    found = _rows_by_candidates(completion, rows)
    if completion.sampled is None:
        return settle(completion.settled, *found)
    by_draws = sampled.predict_each_row(completion.sampled, rows)
    of_rows, of_columns = completion.sampled.told_alone
    return with_draws(completion, found, by_draws, of_rows[rows, None] | of_columns)


def _rows_by_candidates(completion: Completion, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cells, places = completion.cells, completion.places
    if completion.transposed:
        every = RowHalf(cells.u[places.rows], cells.p[places.rows])
        values, errors = of_rows(completion, every, places.columns[rows])
        return values.T, errors.T
    n = places.rows[rows]
    return of_rows(completion, RowHalf(cells.u[n], cells.p[n]), places.columns)


def of_rows(
    completion: Completion, rows: RowHalf, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and errors of rows of what was fitted, in its columns at these places; [N', len]."""
    cells = completion.cells
    # [N', P] x [P, M'] and [N', Q] x [Q, M'] -> [N', M']
    standardised = np.asarray(rows.u, np.float64) @ cells.v[places].T.astype(np.float64)
    variances = np.asarray(rows.p, np.float64) @ cells.r[places].T.astype(np.float64)
    return _in_units(completion, standardised, variances + cells.noise[places], places)


def _in_units(
    completion: Completion, standardised: np.ndarray, variances: Array, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    scales = completion.scaling.scales[places]
    bars = completion.inflation[places] * np.sqrt(variances)
    move = completion.tilt[places] * bars**2
    values = completion.scaling.centers[places] + scales * (standardised + move)
    low, high = (bound[places] for bound in completion.bounds)
    doubt = completion.missing[places] * move
    return np.clip(values, low, high), scales * np.hypot(completion.widening * bars, doubt)
