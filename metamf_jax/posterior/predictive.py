"""What draws say of cells: mean, spread, quantiles.

A draw says that a cell is Gaussian about its fitted value, with the noise's variance of its row and
column. The prediction is the mean over draws of the fitted value clipped to the scale; the
predictive distribution is the mixture over draws.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax.posterior.chains import Draws
from metamf_jax.types import Array

# Cells answered at once, times draws: some 100 MB.
_BLOCK = 1 << 23
_HALVINGS = 30


class Scale(NamedTuple):
    """Where the values of a matrix lie.

    Attributes:
      center, unit: the matrix was standardised by.
      low, high: predictions are clipped to.
    """

    center: float
    unit: float
    low: float = -np.inf
    high: float = np.inf


class Prediction(NamedTuple):
    """What is said of P cells; float64.

    Attributes:
      mean: [P], of the fitted values, clipped.
      std: [P], of the predictive distribution.
      quantiles: [Q, P].
    """

    mean: np.ndarray
    std: np.ndarray
    quantiles: np.ndarray


def predict(
    draws: Draws, scale: Scale, rows: Array, columns: Array, quantiles: tuple[float, ...] = ()
) -> Prediction:
    """Predicts cells.

    Args:
      draws: S of them.
      scale: of the values.
      rows: [P] int.
      columns: [P] int.
      quantiles: probabilities, Q of them.
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    size = max(1, _BLOCK // len(draws.alpha))
    bounds = ((np.array([scale.low, scale.high]) - scale.center) / scale.unit).astype(np.float32)
    found = [
        _predict_block(draws, bounds, rows[at : at + size], columns[at : at + size], quantiles)
        for at in range(0, max(len(rows), 1), size)
    ]
    mean, std, quantile = (
        np.concatenate(each, axis=-1, dtype=np.float64) for each in zip(*found, strict=True)
    )

    def on_scale(standardised):
        # In float64: float32 has few digits left beside a large center.
        return np.clip(scale.center + scale.unit * standardised, scale.low, scale.high)

    return Prediction(on_scale(mean), scale.unit * std, on_scale(quantile))


def fitted(rows: Array, columns: Array, i: Array, j: Array) -> jax.Array:
    """The standardised values of cells under one draw.

    Args:
      rows: [N, L], factors with the effect last.
      columns: [M, L].
      i: [P], rows of the cells.
      j: [P], their columns.
    """
    return _fitted(rows, columns, i, j)


@jax.jit
def _fitted(rows, columns, i, j):
    u, v = rows[i], columns[j]
    return (u[:, :-1] * v[:, :-1]).sum(axis=1) + u[:, -1] + v[:, -1]


@functools.partial(jax.jit, static_argnums=4)
def _predict_block(draws, bounds, i, j, quantiles):
    """`Prediction` of standardised values, clipped to bounds [2]."""
    # [S, P]
    values = jax.lax.map(lambda s: _fitted(s[0], s[1], i, j), (draws.rows, draws.columns))
    precision = draws.alpha[:, None] * draws.row_shares[:, i] * draws.column_shares[:, j]
    noise = jax.lax.rsqrt(precision)
    clipped = jnp.clip(values, bounds[0], bounds[1])
    mean = clipped.mean(axis=0)
    std = jnp.sqrt(clipped.var(axis=0) + (noise**2).mean(axis=0))
    if not quantiles:
        return mean, std, jnp.zeros((0, len(i)))

    def quantile(probability):
        """Where the mixture's distribution function is the probability, by bisection."""

        def halve(_, bounds):
            low, high = bounds
            middle = (low + high) / 2
            below = (
                jax.scipy.stats.norm.cdf((middle[None] - values) / noise).mean(axis=0) < probability
            )
            return jnp.where(below, middle, low), jnp.where(below, high, middle)

        start = (values - 8 * noise).min(axis=0), (values + 8 * noise).max(axis=0)
        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, start)
        return (low + high) / 2

    return mean, std, jnp.stack([quantile(p) for p in quantiles])
