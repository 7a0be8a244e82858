"""The answers to one matrix's cells, weighted and laid out as one low-rank product.

All that is said of a cell is a sum of products of numbers of its row and of its column, so that a
matrix of any size is answered a block at a time.
"""

from typing import NamedTuple

import numpy as np

from metamf_jax.bias_model import Effects
from metamf_jax.imputation.posterior import Posterior, Side
from metamf_jax.imputation.row_gaussian import Completed, RowGaussian
from metamf_jax.meta_learning.encoder import Context
from metamf_jax.types import Array

ANSWERS = ("bias", "learned", "posterior", "mean", "gaussian", "neighbors")
# The first so many are of any matrix, the others of the Gaussian over the rows.
OF_FACTORS = 4


class Columns(NamedTuple):
    """All that further rows are folded in with; NumPy arrays, standardised units.

    Attributes:
      context, v: of the learned prior.
      posterior: see there.
      means: [M], of the columns' observed cells.
      gaussian: over the first columns, those that had cells; None where factors are to do alone.
    """

    context: Context
    v: Array
    posterior: Posterior
    means: np.ndarray
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


def row_share(weights: np.ndarray) -> np.ndarray:
    """What the variances of the factors and of the rows' Gaussian weigh, [2]; weights [6]."""
    share = min(weights[OF_FACTORS:].sum(), 1.0)
    return np.array([1 - share, share])


def of_rows(
    weights, columns: Columns, effects: Effects, u, side: Side, completed: Completed | None
):
    """The rows' half of `Cells`, ``u`` and ``p``.

    Args:
      weights: [6], of the `ANSWERS`.
      columns: what the rows were answered with.
      effects: of the bias model, ``rows`` [N].
      u: [N, K], factors of the learned prior.
      side: of the posterior, N rows.
      completed: the first rows by the Gaussian, the others being padding; or None.
    """
    of_bias, of_posterior = weights[0] + weights[1], weights[2]
    constant = of_bias * (effects.mean + effects.rows) + of_posterior * columns.posterior.mean
    ones = np.ones(len(u))
    u = np.column_stack(
        [constant, of_bias * ones, weights[1] * u, of_posterior * side.mean, weights[3] * ones]
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
    of_factors, of_rows = row_share(weights)
    return (
        np.hstack([u, weights[4] * values + weights[5] * near]),
        np.hstack([of_factors * p, of_rows * variances]),
    )


def of_columns(weights, columns: Columns):
    """The columns' half of `Cells`: ``v``, ``r`` and ``noise``; weights [6]."""
    side, noise, gaussian = columns.posterior.columns, columns.posterior.noise, columns.gaussian
    effects = columns.context.effects
    assert effects is not None
    v = np.column_stack(
        [np.ones(len(columns.v)), effects.columns, columns.v, side.mean, columns.means]
    )
    r = np.concatenate([side.variance, side.mean**2], axis=1)
    if gaussian is None:
        return v, r, noise
    own = np.eye(len(v), len(gaussian.mean))
    of_factors, of_rows = row_share(weights)
    # Of a column without cells the Gaussian knows the mean of the others alone.
    unknown = np.where(own.any(axis=1), 0, np.trace(gaussian.covariance) / len(gaussian.mean))
    return np.hstack([v, own]), np.hstack([r, own]), of_factors * noise + of_rows * unknown
