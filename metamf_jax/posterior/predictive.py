"""What draws say of cells: mean, spread, quantiles.

A draw says that a cell is Gaussian about its fitted value, with the noise's variance of its row and
column. The prediction is the mean over draws of the fitted value clipped to the scale; the
predictive distribution is the mixture over draws. Of ordinal values that Gaussian is cut at the
draw's thresholds, and the mixture is one of probabilities of levels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax.factorization import prediction
from metamf_jax.posterior import chains, entry_effects, ordinal, row_conditional
from metamf_jax.posterior.chains import Draws
from metamf_jax.posterior.fold_in import FurtherRows
from metamf_jax.posterior.gibbs import State
from metamf_jax.types import Array

# Cells answered at once, times draws: some 100 MB.
_BLOCK = 1 << 23
_HALVINGS = 30


class Scale(NamedTuple):
    """Where the values of a matrix lie.

    Attributes:
      center, unit: the matrix was standardised by.
      low, high: predictions are clipped to.
      levels: the values of an ordinal likelihood, ascending; empty of a Gaussian.
    """

    center: float
    unit: float
    low: float = -np.inf
    high: float = np.inf
    levels: tuple[float, ...] = ()


class Prediction(NamedTuple):
    """What is said of P cells; float64.

    Attributes:
      mean: [P], of the fitted values, clipped; or of the levels.
      std: [P], of the predictive distribution.
      quantiles: [Q, P].
    """

    mean: np.ndarray
    std: np.ndarray
    quantiles: np.ndarray


def predict(
    draws: Draws,
    scale: Scale,
    rows: Array,
    columns: Array,
    quantiles: tuple[float, ...] = (),
    at: np.ndarray | None = None,
) -> Prediction:
    """Predicts cells.

    Args:
      draws: S of them.
      scale: of the values.
      rows: [P] int.
      columns: [P] int.
      quantiles: probabilities, Q of them.
      at: [G, P], the cells' effects (`entry_effects.places`); None for cells without.
    """
    if scale.levels:
        probability = level_probabilities(draws, draws.thresholds, rows, columns, at)
        return _of_levels(probability, np.array(scale.levels), quantiles)
    rows, columns = np.asarray(rows), np.asarray(columns)
    size = max(1, _BLOCK // len(draws.alpha))
    bounds = np.array([scale.low, scale.high]) - scale.center
    bounds = (bounds / scale.unit).astype(np.float32)
    found = [
        _predict_block(draws, effects, bounds, cells, quantiles)
        for effects, cells in _blocks(draws, rows, columns, at, size)
    ]
    mean, std, quantile = (
        np.concatenate(each, axis=-1, dtype=np.float64) for each in zip(*found, strict=True)
    )

    def on_scale(standardised):
        # In float64: float32 has few digits left beside a large center.
        return np.clip(scale.center + scale.unit * standardised, scale.low, scale.high)

    return Prediction(on_scale(mean), scale.unit * std, on_scale(quantile))


def _blocks(draws: Draws, rows, columns, at, size: int):
    """Yields effects [S, A], and of up to so many cells rows, columns and effects' places."""
    effects = draws.effects.values
    if at is None:
        effects, at = np.zeros((len(draws.alpha), 0), np.float32), np.zeros((0, len(rows)), int)
    for start in range(0, max(len(rows), 1), size):
        block = slice(start, start + size)
        yield effects, (rows[block], columns[block], at[:, block])


def level_probabilities(
    draws: Draws,
    thresholds: np.ndarray,
    rows: Array,
    columns: Array,
    at: np.ndarray | None = None,
) -> np.ndarray:
    """The probabilities of the levels between thresholds, [P, L] float64.

    Args:
      draws: S of them.
      thresholds: [S, L - 1], `Draws.thresholds` or, for a Gaussian, `midpoints`.
      rows: [P] int.
      columns: [P] int.
      at: as for `predict`.
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    size = max(1, _BLOCK // (thresholds.shape[1] + draws.rows.shape[2]))
    found = [
        _probabilities(draws, effects, thresholds, cells)
        for effects, cells in _blocks(draws, rows, columns, at, size)
    ]
    probability = np.concatenate(found, axis=-1, dtype=np.float64).T
    return probability / probability.sum(axis=1, keepdims=True)


def midpoints(draws: Draws, scale: Scale, levels: np.ndarray) -> np.ndarray:
    """Thresholds [S, L - 1] midway between levels, where a Gaussian likelihood knows of none."""
    middle = (levels[:-1] + levels[1:]) / 2
    standardised = ((middle - scale.center) / scale.unit).astype(np.float32)
    return np.tile(standardised, (len(draws.alpha), 1))


def log_score(
    draws: Draws,
    scale: Scale,
    levels: np.ndarray,
    rows: Array,
    columns: Array,
    values: np.ndarray,
    at: np.ndarray | None = None,
) -> float:
    """The mean negative logarithm of the probabilities that cells' levels were given.

    Args:
      draws: of either likelihood.
      scale: of the values.
      levels: [L], ascending.
      rows: [P] int.
      columns: [P] int.
      values: [P], each of them a level.
      at: as for `predict`.
    """
    thresholds = draws.thresholds if scale.levels else midpoints(draws, scale, levels)
    probability = level_probabilities(draws, thresholds, rows, columns, at)
    of_values = probability[np.arange(len(values)), np.searchsorted(levels, values)]
    return float(-np.log(np.maximum(of_values, np.finfo(np.float32).tiny)).mean())


def _of_levels(
    probability: np.ndarray, levels: np.ndarray, quantiles: tuple[float, ...]
) -> Prediction:
    """Of probabilities [P, L] float64; a quantile is the least level that reaches it."""
    mean = probability @ levels
    variance = (probability * (levels - mean[:, None]) ** 2).sum(axis=1)
    reached = probability.cumsum(axis=1)[:, :-1]
    found = [levels[(reached < q).sum(axis=1)] for q in quantiles]
    return Prediction(mean, np.sqrt(variance), np.array(found).reshape(len(found), len(mean)))


def predict_further(
    draws: Draws,
    further: tuple[FurtherRows, FurtherRows],
    scale: Scale,
    rows: Array,
    columns: Array,
    quantiles: tuple[float, ...] = (),
    at: np.ndarray | None = None,
) -> Prediction:
    """`predict`, with further rows and columns numbered after those of the draws, or from -1 down.

    The value of a cell is by the means of their factors given each draw, with less noise than by
    factors drawn; its spread and quantiles are by these.
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    num_rows, num_columns = draws.rows.shape[1], draws.columns.shape[1]
    if all(((i >= 0) & (i < n)).all() for i, n in ((rows, num_rows), (columns, num_columns))):
        return predict(draws, scale, rows, columns, quantiles, at)
    mean = predict(with_further(draws, further), scale, rows, columns, at=at).mean
    drawn = with_further(draws, further, drawn=True)
    _, std, found = predict(drawn, scale, rows, columns, quantiles, at)
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
    of_columns = tuple(map(jnp.asarray, (draws.columns, draws.column_shares)))
    of_draws = draws.alpha, draws.thresholds if scale.levels else None

    def scores(part):
        of_rows = draws.rows[:, part], draws.row_shares[:, part]
        return _scores(of_rows, of_columns, of_draws, scale, upper)

    size = 4 * num_columns + num_draws * width
    return prediction.largest_columns(scores, rows, num_columns, count, excluded, size)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _scores(of_rows, of_columns, of_draws, scale, upper):
    """[R, M], of all draws' values one after the other (Welford's sums)."""

    def add(sums, draw):
        number, mean, square = sums
        (u, row_shares), (v, column_shares), (alpha, thresholds) = draw
        products = jnp.matmul(u[:, :-1], v[:, :-1].T, precision=jax.lax.Precision.HIGHEST)
        values = products + u[:, -1:] + v[None, :, -1]
        if scale.levels:
            root = jnp.sqrt(alpha * row_shares[:, None] * column_shares[None])
            values = _expected_level(values, root, thresholds, scale.levels)
        else:
            values = jnp.clip(scale.center + scale.unit * values, scale.low, scale.high)
        change = values - mean
        mean = mean + change / (number + 1)
        return (number + 1, mean, square + change * (values - mean)), None

    zeros = jnp.zeros((of_rows[0].shape[1], of_columns[0].shape[1]))
    (number, mean, square), _ = jax.lax.scan(
        add, (0.0, zeros, zeros), (of_rows, of_columns, of_draws)
    )
    return mean + jnp.sqrt(square / number) if upper else mean


def _expected_level(values, root, thresholds, levels):
    """Of latent values that are cut at thresholds [L - 1]; in the shape of the values."""
    expected = jnp.full_like(values, levels[0])
    for threshold, step in zip(thresholds, np.diff(levels), strict=True):
        expected += np.float32(step) * jax.scipy.stats.norm.cdf(root * (values - threshold))
    return expected


def answers(
    state: State, scale: Scale, rows: Array, columns: Array, at: np.ndarray | None = None
) -> np.ndarray:
    """What one draw expects of cells, [P] float64; their mean over draws is the prediction.

    Args are those of `predict`.
    """
    if scale.levels:
        return predict(chains.stack([state]), scale, rows, columns, at=at).mean
    of_rows, of_columns = (jnp.asarray(x.factors) for x in (state.rows, state.columns))
    size = _BLOCK // of_rows.shape[1]
    values = np.empty(len(rows))
    for start in range(0, len(rows), size):
        block = slice(start, start + size)
        values[block] = row_conditional.fitted(of_rows, of_columns, rows[block], columns[block])
    if at is not None:
        values = values + entry_effects.total(state.effects.values, at)
    return np.clip(scale.center + scale.unit * values, scale.low, scale.high)


def _fitted(of_draw, cells):
    """`row_conditional.fitted` plus the effects of the cells' entries."""
    (rows, columns, effects), (i, j, at) = of_draw, cells
    return row_conditional.fitted(rows, columns, i, j) + jnp.append(effects, 0)[at].sum(axis=0)


@jax.jit
def _probabilities(draws, effects, thresholds, cells):
    """[L, P], the mean over draws."""
    i, j, _ = cells
    edge = jnp.full((len(thresholds), 1), jnp.inf)
    bounds = jnp.concatenate([-edge, thresholds, edge], axis=1)
    root = jnp.sqrt(draws.alpha)
    of_draws = draws.rows, draws.columns, effects
    of_noise = draws.row_shares, draws.column_shares, root

    def add(total, draw):
        of_draw, (row_shares, column_shares, root), bounds = draw
        values = _fitted(of_draw, cells)
        root *= jnp.sqrt(row_shares[i] * column_shares[j])
        # [L + 1, P]
        standardised = root[None] * (bounds[:, None] - values[None])
        return total + ordinal.mass(standardised[:-1], standardised[1:]), None

    zeros = jnp.zeros((bounds.shape[1] - 1, len(i)))
    total, _ = jax.lax.scan(add, zeros, (of_draws, of_noise, bounds))
    return total / len(thresholds)


@functools.partial(jax.jit, static_argnums=4)
def _predict_block(draws, effects, bounds, cells, quantiles):
    """`Prediction` of standardised values, clipped to bounds [2]."""
    i, j, _ = cells
    # [S, P]
    values = jax.lax.map(
        lambda of_draw: _fitted(of_draw, cells), (draws.rows, draws.columns, effects)
    )
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
