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

from metamf_jax.factorization import prediction
from metamf_jax.posterior.chains import Draws
from metamf_jax.posterior.fold_in import FurtherRows
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
    bounds = np.array([scale.low, scale.high]) - scale.center
    bounds = (bounds / scale.unit).astype(np.float32)
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


def predict_further(
    draws: Draws,
    further: tuple[FurtherRows, FurtherRows],
    scale: Scale,
    rows: Array,
    columns: Array,
    quantiles: tuple[float, ...] = (),
) -> Prediction:
    """`predict`, with further rows and columns numbered after those of the draws, or from -1 down.

    The value of a cell is by the means of their factors given each draw, with less noise than by
    factors drawn; its spread and quantiles are by these.
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    num_rows, num_columns = draws.rows.shape[1], draws.columns.shape[1]
    if all(((at >= 0) & (at < n)).all() for at, n in ((rows, num_rows), (columns, num_columns))):
        return predict(draws, scale, rows, columns, quantiles)
    mean = predict(with_further(draws, further), scale, rows, columns).mean
    drawn = with_further(draws, further, drawn=True)
    _, std, found = predict(drawn, scale, rows, columns, quantiles)
    return Prediction(mean, std, found)


def with_further(
    draws: Draws, further: tuple[FurtherRows, FurtherRows], drawn: bool = False
) -> Draws:
    """Appends further rows and columns: the means of their factors, or factors drawn."""
    rows, columns = further
    more_rows, more_columns = (x.drawn if drawn else x.mean for x in further)
    return draws._replace(
        rows=np.concatenate([draws.rows, more_rows], axis=1),
        columns=np.concatenate([draws.columns, more_columns], axis=1),
        row_shares=np.concatenate([draws.row_shares, rows.shares], axis=1),
        column_shares=np.concatenate([draws.column_shares, columns.shares], axis=1),
    )


def top_columns(
    draws: Draws,
    scale: Scale,
    rows: np.ndarray,
    count: int,
    excluded: tuple[np.ndarray, np.ndarray],
    upper: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The columns with the largest predictions in each row; see `prediction.top_columns`.

    Args:
      draws: S of them.
      scale: of the values.
      rows: [R] int, the rows asked for.
      count: columns wanted a row.
      excluded: (rows [X] int, columns [X] int), cells that are not to be named.
      upper: whether columns are ordered by the mean of the fitted value plus its standard deviation
        over draws (without the noise, which tells nothing of a column's worth), not by its mean.
    """
    num_draws, num_columns, width = draws.columns.shape
    v = jnp.asarray(draws.columns)
    return prediction.largest_columns(
        lambda part: _scores(draws.rows[:, part], v, scale, upper),
        rows,
        num_columns,
        count,
        excluded,
        4 * num_columns + num_draws * width,
    )


@functools.partial(jax.jit, static_argnums=3)
def _scores(rows, columns, scale, upper):
    """[R, M], of all draws' values one after the other (Welford's sums)."""

    def add(sums, draw):
        number, mean, square = sums
        u, v = draw
        products = jnp.matmul(u[:, :-1], v[:, :-1].T, precision=jax.lax.Precision.HIGHEST)
        values = scale.center + scale.unit * (products + u[:, -1:] + v[None, :, -1])
        values = jnp.clip(values, scale.low, scale.high)
        change = values - mean
        mean = mean + change / (number + 1)
        return (number + 1, mean, square + change * (values - mean)), None

    zeros = jnp.zeros((rows.shape[1], columns.shape[1]))
    (number, mean, square), _ = jax.lax.scan(add, (0.0, zeros, zeros), (rows, columns))
    return mean + jnp.sqrt(square / number) if upper else mean


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
