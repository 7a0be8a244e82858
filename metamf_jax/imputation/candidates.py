"""The candidates for what cells hold, weighted and laid out as one low-rank product.

A candidate is a sum of terms, and a term is ``base[n] + rows[n] . columns[m]``: numbers of a row
times numbers of a column, so that a matrix of any size is answered a block at a time. What further
rows need is the columns' half alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from metamf_jax.bias_model import Effects
from metamf_jax.imputation.posterior import Posterior, Side
from metamf_jax.imputation.row_gaussian import Completed, RowGaussian
from metamf_jax.meta_learning.encoder import Context
from metamf_jax.types import Array

# Each candidate, and the terms that it adds up. One more is a line here, its terms in `_row_terms`
# and their halves in `_column_halves`.
CANDIDATES = {
    "bias": ("effects",),
    "learned": ("effects", "factors"),
    "posterior": ("posterior",),
    "mean": ("means",),
    "gaussian": ("gaussian",),
    "neighbors": ("neighbors",),
}
# Those of the Gaussian over the rows of a narrow table; the others are of any matrix.
OF_ROWS = ("gaussian", "neighbors")
OF_FACTORS = tuple(name for name in CANDIDATES if name not in OF_ROWS)


class ColumnState(NamedTuple):
    """All that rows are answered with; NumPy arrays, standardised units.

    Attributes:
      context, v: of the learned prior. The context always has a bias model.
      on_bias: whether ``v`` is of the residuals of that, or of the values themselves.
      posterior: see there.
      means: [M], of the columns' observed cells.
      gaussian: over the first columns, those that had cells; None where factors are to do alone.
    """

    context: Context
    v: Array
    on_bias: bool
    posterior: Posterior
    means: np.ndarray
    gaussian: RowGaussian | None


class RowState(NamedTuple):
    """All that was found of N rows, fitted or folded in.

    Attributes:
      effects: of the bias model, ``rows`` [N].
      u: [N, K], factors of the learned prior.
      side: of the posterior.
      completed: the first rows by the Gaussian, the others being padding; or None.
    """

    effects: Effects
    u: Array
    side: Side
    completed: Completed | None


class RowHalf(NamedTuple):
    """What is known of rows, weighted: ``u`` [N, P] and ``p`` [N, Q] of `Cells`."""

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
    """The rows' half of a term.

    Attributes:
      half: which of the `_column_halves` it is multiplied with.
      base: [N] or a scalar.
      rows: [N, P].
    """

    half: str
    base: Array | float
    rows: Array


def cells(weights: Mapping[str, float], rows: RowState, columns: ColumnState) -> Cells:
    """All that is said of the cells of a matrix.

    Args:
      weights: of the candidates by name; those left out have none.
      rows, columns: what was found of it.
    """
    v, r, noise = _column_half(weights, columns)
    u, p = row_half(weights, rows, columns)
    return Cells(u, p, v, r, noise)


def rows_share(weights: Mapping[str, float]) -> float:
    """The share of the Gaussian over the rows in the variances; the factors have what remains."""
    return min(np.sum([weights.get(name, 0.0) for name in OF_ROWS]), 1.0)


def row_half(weights: Mapping[str, float], rows: RowState, columns: ColumnState) -> RowHalf:
    """The rows' half of `cells`; see there."""
    completed = rows.completed if columns.gaussian is not None else None
    if completed is not None:
        completed = _padded(completed, columns.gaussian, len(rows.u))
    terms = _row_terms(rows, columns, completed)
    weigh = _term_weights(weights, columns.on_bias)
    base = sum(weigh[name] * term.base for name, term in terms.items())
    blocks: list[Array] = [np.broadcast_to(base, len(rows.u))[:, None]]
    for half in dict.fromkeys(term.half for term in terms.values()):
        shared = [weigh[name] * term.rows for name, term in terms.items() if term.half == half]
        blocks.append(sum(shared[1:], shared[0]))
    u = np.hstack(blocks)
    # The variance of a product of independent factors, with the columns' half of it.
    p = np.concatenate([rows.side.mean**2 + rows.side.variance, rows.side.variance], axis=1)
    if completed is not None:
        share = rows_share(weights)
        p = np.hstack([(1 - share) * p, share * completed.variances])
    return RowHalf(u, p)


def _row_terms(
    rows: RowState, columns: ColumnState, completed: Completed | None
) -> dict[str, _Term]:
    ones = np.ones((len(rows.u), 1))
    terms = {
        "effects": _Term("effects", rows.effects.mean + rows.effects.rows, ones),
        "factors": _Term("factors", 0.0, rows.u),
        "posterior": _Term("posterior", columns.posterior.mean, rows.side.mean),
        "means": _Term("means", 0.0, ones),
    }
    if completed is not None:
        # What is said of rows is a number for each column.
        terms["gaussian"] = _Term("own", 0.0, completed.values)
        terms["neighbors"] = _Term("own", 0.0, completed.neighbors)
    return terms


def _column_halves(columns: ColumnState) -> dict[str, np.ndarray]:
    """What the rows' numbers are multiplied with, [M, P] each."""
    effects = columns.context.effects
    assert effects is not None
    halves = {
        "effects": np.asarray(effects.columns)[:, None],
        "factors": np.asarray(columns.v),
        "posterior": np.asarray(columns.posterior.columns.mean),
        "means": columns.means[:, None],
    }
    if columns.gaussian is not None:
        halves["own"] = np.eye(len(columns.v), len(columns.gaussian.mean))
    return halves


def _column_half(weights: Mapping[str, float], columns: ColumnState):
    """``v``, ``r`` and ``noise`` of `Cells`."""
    side, noise, gaussian = columns.posterior.columns, columns.posterior.noise, columns.gaussian
    halves = _column_halves(columns)
    v = np.hstack([np.ones((len(columns.v), 1)), *halves.values()])
    r = np.concatenate([side.variance, side.mean**2], axis=1)
    if gaussian is None:
        return v, r, noise
    own, share = halves["own"], rows_share(weights)
    # Of a column without cells the Gaussian knows the mean of the others alone.
    unknown = np.where(own.any(axis=1), 0, np.trace(gaussian.covariance) / len(gaussian.mean))
    return v, np.hstack([r, own]), (1 - share) * noise + share * unknown


def _term_weights(weights: Mapping[str, float], on_bias: bool) -> dict[str, np.float64]:
    """Of each term the weights of the candidates that it is in."""
    totals = {term: np.float64(0) for terms in CANDIDATES.values() for term in terms}
    for name, weight in weights.items():
        of_values = name == "learned" and not on_bias
        for term in ("factors",) if of_values else CANDIDATES[name]:
            totals[term] += weight
    return totals


def _padded(completed: Completed, gaussian: RowGaussian | None, count: int) -> Completed:
    """The same with rows of padding, of which nothing is known."""
    assert gaussian is not None
    more = count - len(completed.values)
    mean, variances = (np.tile(x, (more, 1)) for x in (gaussian.mean, np.diag(gaussian.covariance)))
    return Completed(
        np.vstack([completed.values, mean]),
        np.vstack([completed.neighbors, mean]),
        np.vstack([completed.variances, variances]),
    )
