"""The candidates for what cells hold, weighted and laid out as one low-rank product.

A candidate is a sum of terms, and a term is ``base[n] + rows[n] . columns[m]``: numbers of a row
times numbers of a column, so that a matrix of any size is answered a block at a time. What further
rows need is the columns' half alone. Weights are one number for all columns or one for each.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from metamf_jax.bias_model import Effects
from metamf_jax.imputation.posterior import Posterior, Side
from metamf_jax.imputation.row_models import Completed, RowModels
from metamf_jax.meta_learning.encoder import Context
from metamf_jax.types import Array

# Each candidate, and the terms that it adds up. One more is a line here and its terms in `_terms`.
CANDIDATES = {
    "bias": ("effects",),
    "learned": ("effects", "factors"),
    "posterior": ("posterior",),
    "mean": ("means",),
    "gaussian": ("gaussian",),
    "gaussian_trees": ("gaussian_trees",),
    "scores": ("scores",),
    "scores_trees": ("scores_trees",),
}
# Those of the rows of a narrow table (`row_models`); the others are of any matrix.
OF_ROWS = ("gaussian", "gaussian_trees", "scores", "scores_trees")
OF_FACTORS = tuple(name for name in CANDIDATES if name not in OF_ROWS)


class ColumnState(NamedTuple):
    """All that rows are answered with; NumPy arrays, standardised units.

    Attributes:
      context, v: of the learned prior. The context always has a bias model.
      on_bias: whether ``v`` is of the residuals of that, or of the values themselves.
      posterior: see there.
      means: [M], of the columns' observed cells; of few, drawn to that of all.
      row_models: of the first columns, those that had cells; None where factors are to do alone.
    """

    context: Context
    v: Array
    on_bias: bool
    posterior: Posterior
    means: np.ndarray
    row_models: RowModels | None


class RowState(NamedTuple):
    """All that was found of N rows, fitted or folded in.

    Attributes:
      effects: of the bias model, ``rows`` [N].
      u: [N, K], factors of the learned prior.
      side: of the posterior.
      completed: the first rows by the row models, the last of which stands for all that follow, or
        None.
    """

    effects: Effects
    u: Array
    side: Side
    completed: Completed | None


class RowHalf(NamedTuple):
    """What is known of rows: ``u`` [N, P] and ``p`` [N, Q] of `Cells`."""

    u: np.ndarray
    p: np.ndarray


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


class _Term(NamedTuple):
    """A term: ``base[n] + rows[n] . columns[m]``, with a base [N] or a number.

    Attributes:
      base: see there.
      rows: [N, P].
      columns: [M, P].
    """

    base: Array | float
    rows: Array
    columns: Array


def cells(weights: Mapping[str, Array | float], rows: RowState, columns: ColumnState) -> Cells:
    """All that is said of the cells of a matrix.

    Args:
      weights: of the candidates by name, [M] or a number; those left out have none.
      rows, columns: what was found of it.
    """
    v, r, noise = _column_half(weights, rows, columns)
    u, p = row_half(weights, rows, columns)
    return Cells(u, p, v, r, noise)


def rows_share(weights: Mapping[str, Array | float]) -> Array | float:
    """The share of the row models in the variances; the factors have what remains."""
    return np.minimum(sum(weights.get(name, 0.0) for name in OF_ROWS), 1.0)


def row_half(weights: Mapping[str, Array | float], rows: RowState, columns: ColumnState) -> RowHalf:
    """The rows' half of `cells`; see there."""
    blocks: list[Array] = []
    for term in _terms(rows, columns).values():
        blocks += [np.broadcast_to(term.base, len(rows.u))[:, None], term.rows]
    # The variance of a product of independent factors, with the columns' half of it.
    p = np.concatenate([rows.side.mean**2 + rows.side.variance, rows.side.variance], axis=1)
    if columns.row_models is not None and rows.completed is not None:
        completed = _lengthened(rows.completed, len(rows.u))
        # What is said of rows is a number for each column.
        size = completed.gaussian.shape[1]
        of_columns = {
            name: _of_columns(weights.get(name, 0.0), len(columns.v))[:size] for name in OF_ROWS
        }
        values = {name: getattr(completed, name) for name in OF_ROWS}
        blocks.append(np.sum([of_columns[name] * values[name] for name in OF_ROWS], axis=0))
        p = np.hstack([p, completed.variances + squared_departure(of_columns, values)])
    return RowHalf(np.hstack(blocks), p)


def squared_departure(
    weights: Mapping[str, Array | float], values: Mapping[str, np.ndarray]
) -> np.ndarray:
    """By how much, squared, the row models' mean departs from the Gaussian's value.

    The Gaussian's variance is that about its own value: of a cell that is a sum of others it is
    next to nothing, and an answer beside it is as far off as it lies beside it.

    Args:
      weights: of the row models by name.
      values: theirs, at the same cells.
    """
    total = rows_share(weights)
    mean = sum(weights.get(name, 0.0) * values[name] for name in OF_ROWS)
    return np.where(total > 0, (mean / np.where(total > 0, total, 1) - values["gaussian"]) ** 2, 0)


def _terms(rows: RowState, columns: ColumnState) -> dict[str, _Term]:
    """All but those of the row models."""
    ones, effects = np.ones((len(rows.u), 1)), columns.context.effects
    assert effects is not None
    of_effects = rows.effects.mean + rows.effects.rows
    post = columns.posterior
    return {
        "effects": _Term(of_effects, ones, np.asarray(effects.columns)[:, None]),
        "factors": _Term(0.0, rows.u, np.asarray(columns.v)),
        "posterior": _Term(post.mean, rows.side.mean, np.asarray(post.columns.mean)),
        "means": _Term(0.0, ones, columns.means[:, None]),
    }


def _column_half(weights, rows: RowState, columns: ColumnState):
    """``v``, ``r`` and ``noise`` of `Cells`."""
    size = len(columns.v)
    weigh = _term_weights(weights, columns.on_bias)
    blocks = []
    for name, term in _terms(rows, columns).items():
        weight = _of_columns(weigh[name], size)[:, None]
        blocks += [weight, weight * term.columns]
    side, noise = columns.posterior.columns, columns.posterior.noise
    r = np.concatenate([side.variance, side.mean**2], axis=1)
    if columns.row_models is None:
        return np.hstack(blocks), r, noise
    gaussian = columns.row_models.values.gaussian
    own, share = np.eye(size, len(gaussian.mean)), _of_columns(rows_share(weights), size)
    # Of a column without cells the row models know the mean of the others alone.
    unknown = np.where(own.any(axis=1), 0, np.trace(gaussian.covariance) / len(gaussian.mean))
    r = np.hstack([(1 - share)[:, None] * r, share[:, None] * own])
    return np.hstack([*blocks, own]), r, (1 - share) * noise + share * unknown


def _lengthened(completed: Completed, count: int) -> Completed:
    """The same with its last row again and again, for rows of padding."""
    places = np.minimum(np.arange(count), len(completed.gaussian) - 1)
    return Completed(*(part[places] for part in completed))


def _of_columns(weight: Array | float, size: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(weight, np.float64), size)


def _term_weights(weights: Mapping[str, Array | float], on_bias: bool) -> dict[str, Array | float]:
    """Of each term the weights of the candidates that it is in."""
    totals: dict[str, Array | float] = {
        term: 0.0 for terms in CANDIDATES.values() for term in terms
    }
    for name, weight in weights.items():
        of_values = name == "learned" and not on_bias
        for term in ("factors",) if of_values else CANDIDATES[name]:
            totals[term] = totals[term] + weight
    return totals
