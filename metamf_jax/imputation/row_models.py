"""Four models of the rows of a narrow table, fitted to a table and applied to its rows or others.

A Gaussian over the columns (`row_gaussian`), of their values and of their normal scores
(`normal_scores`); and each corrected by what is not Gaussian in it: the errors that it makes at
observed cells, each predicted from the others of its row, are regressed on these by trees
(`forest`). Before, a cell's column and all that was imputed in its row are predicted anew without
it, as they are where it is missing.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import threadpoolctl

from metamf_jax.imputation import forest, normal_scores, row_gaussian
from metamf_jax.imputation.forest import Forest
from metamf_jax.imputation.normal_scores import Marginals
from metamf_jax.imputation.row_gaussian import Conditioned, RowGaussian

# Rows that trees are grown on, and numbers of their `row_gaussian.gains`: 128 MB.
_MOST_ROWS, _MOST_GAINS = 8192, 2**25
# Numbers that the trees of all columns together are grown on, and fewest trees; and missing cells
# times trees, above which there are none.
_MOST_WORK, _FEWEST_TREES, _MOST_ANSWERS = 4e7, 5, 1e7


class Corrected(NamedTuple):
    """A Gaussian, and the trees that predict its errors."""

    gaussian: RowGaussian
    trees: Forest


class RowModels(NamedTuple):
    """What rows are completed with.

    Attributes:
      values: of the values.
      marginals: by which they are scored.
      scores: of the scores.
    """

    values: Corrected
    marginals: Marginals
    scores: Corrected


class Completed(NamedTuple):
    """Completed rows by each model, each [N, M]; observed cells have their values, variance zero.

    Attributes:
      gaussian: by the Gaussian of the values.
      gaussian_trees: with trees.
      scores: by the Gaussian of the normal scores.
      scores_trees: with trees.
      variances: of the Gaussian of the values.
    """

    gaussian: np.ndarray
    gaussian_trees: np.ndarray
    scores: np.ndarray
    scores_trees: np.ndarray
    variances: np.ndarray


def fit(
    values: np.ndarray, observed: np.ndarray, num_trees: int, start: RowModels | None = None
) -> RowModels:
    """Fits all to a table.

    Args:
      values: [N, M], standardised; whatever the missing cells hold.
      observed: [N, M] bool, at least one a column.
      num_trees: of a column; fewer for large tables.
      start: of much the same table, to start from.
    """
    marginals = normal_scores.fit(values, observed)
    scores = normal_scores.to_scores(marginals, values)
    # BLAS's threads gain nothing on products of few columns, and wait for each other.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        gaussian = row_gaussian.fit(values, observed, start.values.gaussian if start else None)
        of_scores = start.scores.gaussian if start else _correlations(gaussian)
        of_scores = row_gaussian.fit(scores, observed, of_scores)
        return RowModels(
            Corrected(gaussian, _grow(gaussian, values, observed, num_trees)),
            marginals,
            Corrected(of_scores, _grow(of_scores, scores, observed, num_trees)),
        )


def complete(
    models: RowModels,
    values: np.ndarray,
    observed: np.ndarray,
    wanted: Mapping[str, np.ndarray] | None = None,
) -> Completed:
    """Completes rows, fitted or others, each from its own observed cells.

    Args:
      models: of the table.
      values: [N, M], whatever the missing cells hold.
      observed: [N, M] bool.
      wanted: by the name of each model in `Completed`, the columns [M] bool that it is asked for,
        for whose missing cells alone it is then right; None for all.
    """
    every = np.ones(values.shape[1], bool)
    wanted = dict.fromkeys(Completed._fields, every) if wanted is None else wanted
    values = np.where(observed, values, 0).astype(np.float64)
    rows, with_trees = _apply(models.values, values, observed, wanted["gaussian_trees"])
    back = values.copy(), values.copy()
    of_scores = wanted["scores"], wanted["scores_trees"]
    if np.any(of_scores):
        scores = normal_scores.to_scores(models.marginals, values)
        by_scores = _apply(models.scores, scores, observed, wanted["scores_trees"])
        for found, each, rows_scores in zip(
            back, of_scores, (by_scores[0].values, by_scores[1]), strict=True
        ):
            for m, gaps in _gaps(observed, each):
                found[gaps, m] = normal_scores.from_scores(
                    models.marginals, m, rows_scores[gaps, m], by_scores[0].variances[gaps, m]
                )
    return Completed(rows.values, with_trees, *back, rows.variances)


def _apply(
    model: Corrected, values: np.ndarray, observed: np.ndarray, corrected: np.ndarray
) -> tuple[Conditioned, np.ndarray]:
    """Rows by the Gaussian, and their values with the trees' corrections of some columns [M]."""
    rows = row_gaussian.condition(model.gaussian, values, observed)
    with_trees = rows.values.copy()
    for m, gaps in _gaps(observed, corrected):
        with_trees[gaps, m] += forest.predict(model.trees, m, rows.values[gaps])
    return rows, with_trees


def _gaps(observed: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each wanted column with missing cells, and the rows where these are."""
    for m in np.flatnonzero(wanted).tolist():
        gaps = np.flatnonzero(~observed[:, m])
        if len(gaps):
            yield m, gaps


def _grow(
    gaussian: RowGaussian, values: np.ndarray, observed: np.ndarray, num_trees: int
) -> Forest:
    """The trees of a Gaussian's errors at observed cells; none where very many are missing."""
    num_rows, num_columns = values.shape
    if num_rows * num_columns - observed.sum() > _MOST_ANSWERS / _FEWEST_TREES:
        num_trees = 0
    most = min(_MOST_ROWS, _MOST_GAINS // num_columns**2)
    if num_rows > most:
        chosen = np.sort(np.random.default_rng(0).permutation(num_rows)[:most])
        values, observed = values[chosen], observed[chosen]
    rows = row_gaussian.condition(gaussian, np.where(observed, values, 0), observed)
    gains = row_gaussian.gains(gaussian, observed)

    def samples(m):
        seen = observed[:, m]
        errors = rows.errors[seen, m]
        without = rows.values[seen] - gains[seen, :, m] * errors[:, None]
        without[:, m] -= errors
        return without, errors

    work = values.size * num_columns
    fewer = max(_FEWEST_TREES, int(_MOST_WORK / work))
    return forest.grow(samples, num_columns, min(num_trees, fewer))


def _correlations(gaussian: RowGaussian) -> RowGaussian:
    scale = np.sqrt(np.diag(gaussian.covariance))
    return RowGaussian(np.zeros(len(scale)), gaussian.covariance / np.outer(scale, scale))
