"""Ordinal values: a latent Gaussian, cut at thresholds that are drawn with everything else.

    y_nm = l  where  g_{l-1} < x_nm <= g_l,   x_nm ~ N(f_nm, 1 / (p_n q_m)),   l = 0 .. L - 1,
    g_{-1} = -inf,   g_{L-1} = inf,   g_l - g_{l-1} ~ Gamma(2, 2) for l = 1 .. L - 2

Neither scale nor origin of the latent values can be told from levels: the noise's precision
``alpha`` is one, and the first threshold ``g_0`` stays where it starts, which is where a constant
shift of all latent values would make it 0.

    g | f, y     a Metropolis step that knows no latent values (Cowles), proposed from Newton's
                 step: a t distribution about its end, with the curvature's scale
    x | g, f, y  N(f_nm, 1 / (p_n q_m)) between its thresholds (Albert and Chib)

Given latent values a threshold is confined between the two nearest of E, so that Albert and Chib's
own draw of it hardly moves. The likelihood of the thresholds is log-concave (Pratt, JASA 1981) and
nearly Gaussian where entries are many; the tails of the proposal are wider than its own, so that a
chain that starts far away does not stay there.

Albert and Chib, Bayesian analysis of binary and polychotomous response data, JASA 1993; Cowles,
Accelerating Monte Carlo Markov chain convergence for cumulative-link generalized linear models,
Statistics and Computing 1996; the proposal: Gamerman, Sampling from the posterior distribution in
generalized linear mixed models, Statistics and Computing 1997.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special
from jax.scipy.special import ndtr, ndtri

from metamf_jax.types import Array

MAX_LEVELS = 20

# Shape and rate of the prior of the gaps between thresholds.
_SHAPE, _RATE = 2.0, 2.0
_DEGREES = 5.0  # Of freedom of the proposal.

# Beyond this ``Phi`` is near the end of float32, and a truncated Gaussian is drawn by its tail.
_TAIL = np.float32(9)
_TINY = np.finfo(np.float32).tiny
# Entries that are worked on at once, for the cache: sums over a million take 15 ms, and 50 without.
# The sums over a block are float32's.
_BLOCK = 1 << 14


class Cells(NamedTuple):
    """Entries, and what the other unknowns say of their latent values.

    Attributes:
      rows, columns: [E] int32.
      levels: [E] int32, ``y``.
      fitted: [E] float32, ``f``.
      root: [E] float32, the root of ``p q``.
    """

    rows: Array
    columns: Array
    levels: Array
    fitted: Array
    root: Array


def init(levels: np.ndarray) -> np.ndarray:
    """Thresholds [L - 1] that give each of L levels its part of the entries, where f is zero.

    Args:
      levels: [E] int, from 0 to L - 1.
    """
    counts = np.bincount(levels) + 0.5
    return scipy.special.ndtri(np.cumsum(counts)[:-1] / counts.sum())


def draw_thresholds(rng: np.random.Generator, thresholds: np.ndarray, cells: Cells) -> np.ndarray:
    """Moves all thresholds but the first, given the fitted values.

    Args:
      rng: of this draw alone.
      thresholds: [L - 1] float64, the last draw.
      cells: the entries.
    """
    if len(thresholds) < 2:
        return thresholds
    here = _expand(thresholds, cells)
    normal, chi_square = rng.standard_normal(len(thresholds) - 1), rng.chisquare(_DEGREES)
    step = scipy.linalg.solve_triangular(here.root, normal, trans=1, lower=True)
    moved = here.center + step * np.sqrt(_DEGREES / chi_square)
    moved = np.append(thresholds[0], moved)
    if (np.diff(moved) <= 0).any():
        return thresholds
    there = _expand(moved, cells)
    gain = there.log_density - here.log_density
    gain += _log_proposal(there, thresholds) - _log_proposal(here, moved)
    return moved if np.log(rng.random()) < gain else thresholds


def draw_latent(key: jax.Array, thresholds: np.ndarray, cells: Cells, num_rows: int) -> jax.Array:
    """Draws the latent values [E] float32; each has a random number of its row and column.

    Args:
      key: of this draw.
      thresholds: [L - 1].
      cells: the entries.
      num_rows: N.
    """
    return _draw_latent(jax.random.key_data(key), num_rows, _as_floats(thresholds), cells)


def mass(lower: Array, upper: Array) -> jax.Array:
    """What a standard Gaussian has between bounds, with small relative errors in both tails."""
    low, high, _ = _to_the_left(lower, upper)
    return ndtr(high) - ndtr(low)


class _Expansion(NamedTuple):
    """The log posterior of thresholds, about one place.

    Attributes:
      log_density: there.
      center: [L - 2], where Newton's step from there ends.
      root: [L - 2, L - 2], lower: ``R R^T`` is the negative curvature.
    """

    log_density: float
    center: np.ndarray
    root: np.ndarray


def _expand(thresholds: np.ndarray, cells: Cells) -> _Expansion:
    """See `_Expansion`; of all thresholds but the first."""
    sums = np.asarray(_sums_of_levels(_as_floats(thresholds), cells)).sum(axis=0, dtype=np.float64)
    density, from_below, from_above, square_below, square_above, crossed = sums
    # Level l ends at threshold l, and the next one begins there.
    slope = from_above[:-1] + from_below[1:]
    curvature = np.diag(square_above[:-1] + square_below[1:])
    curvature += np.diag(crossed[1:-1], 1) + np.diag(crossed[1:-1], -1)

    gaps = np.diff(thresholds)
    log_prior = ((_SHAPE - 1) * np.log(gaps) - _RATE * gaps).sum()
    # From thresholds to the gaps below them.
    difference = np.diff(np.eye(len(thresholds)), axis=0)
    slope += difference.T @ ((_SHAPE - 1) / gaps - _RATE)
    curvature += difference.T @ np.diag((_SHAPE - 1) / gaps**2) @ difference

    slope, curvature = slope[1:], curvature[1:, 1:]
    root = scipy.linalg.cholesky(curvature, lower=True)
    center = thresholds[1:] + scipy.linalg.cho_solve((root, True), slope)
    return _Expansion(float(density.sum() + log_prior), center, root)


def _log_proposal(of: _Expansion, thresholds: np.ndarray) -> float:
    """The density of a multivariate t, but for what all have in common."""
    square = ((of.root.T @ (thresholds[1:] - of.center)) ** 2).sum()
    tail = (_DEGREES + len(of.center)) / 2 * np.log1p(square / _DEGREES)
    return float(np.log(np.diag(of.root)).sum() - tail)


def _as_floats(thresholds: np.ndarray) -> np.ndarray:
    """The bounds of levels [L + 1], float32."""
    return np.concatenate([[-np.inf], thresholds, [np.inf]]).astype(np.float32)


def _standardised_bounds(bounds: Array, cells: Cells) -> tuple[Array, Array]:
    """[E] each, the bounds of the entries' noise, in units of its deviation."""
    bounds = jnp.asarray(bounds)
    lower, upper = bounds[cells.levels], bounds[cells.levels + 1]
    return cells.root * (lower - cells.fitted), cells.root * (upper - cells.fitted)


def _to_the_left(lower, upper):
    """Bounds, mirrored where this is the way to the tail in which float32 has small numbers."""
    mirrored = lower + upper > 0
    return jnp.where(mirrored, -upper, lower), jnp.where(mirrored, -lower, upper), mirrored


@jax.jit
def _sums_of_levels(bounds, cells):
    """Of blocks of entries and of levels, [blocks, 6, L].

    The log probability, its derivative by the level's lower and upper threshold, and its negative
    second ones: lower, upper, and both.
    """
    levels = jnp.arange(len(bounds) - 1, dtype=jnp.int32)

    def of_block(block):
        cells, inside = block
        of_level = inside[:, None] & (cells.levels[:, None] == levels[None])
        terms = jnp.stack(_terms(*_standardised_bounds(bounds, cells), cells.root))
        return jnp.matmul(terms, of_level.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)

    inside = _in_blocks(jnp.ones(len(cells.levels), bool), padding=False)
    return jax.lax.map(of_block, (_in_blocks(cells), inside))


def _terms(lower, upper, root):
    """What `_sums_of_levels` sums."""
    probability = jnp.maximum(mass(lower, upper), _TINY)

    def ratio(bound):
        return jnp.exp(-0.5 * bound * bound) / (np.float32(np.sqrt(2 * np.pi)) * probability)

    # Each is computed once, and not in every term anew.
    log, below, above = jax.lax.optimization_barrier(
        (jnp.log(probability), ratio(lower), ratio(upper))
    )

    def times(bound, x):
        return jnp.where(jnp.isfinite(bound), bound, 0) * x

    return (
        log,
        -root * below,
        root * above,
        root**2 * (below**2 - times(lower, below)),
        root**2 * (above**2 + times(upper, above)),
        -(root**2) * below * above,
    )


def _in_blocks(tree, padding=1):
    """[E] -> [blocks, entries of a block]."""

    def cut(x):
        size = min(_BLOCK, max(len(x), 1))
        return jnp.pad(x, (0, -len(x) % size), constant_values=padding).reshape(-1, size)

    return jax.tree.map(cut, tree)


@functools.partial(jax.jit, static_argnums=1)
def _draw_latent(key, num_rows, bounds, cells):
    key = jax.random.wrap_key_data(key)
    of_rows = jax.vmap(lambda n: jax.random.fold_in(key, n))(jnp.arange(num_rows))

    def of_block(cells):
        of_cells = jax.vmap(jax.random.fold_in)(of_rows[cells.rows], cells.columns)
        # Half a key is as good a random number as any drawn with it. Neither 0 nor 1.
        bits = jax.random.key_data(of_cells)[:, 0] >> 8
        uniform = (bits.astype(jnp.float32) + 0.5) * np.float32(2**-24)
        noise = truncated(uniform, *_standardised_bounds(bounds, cells))
        return cells.fitted + noise / cells.root

    return jax.lax.map(of_block, _in_blocks(cells)).reshape(-1)[: len(cells.rows)]


def truncated(uniform: Array, lower: Array, upper: Array) -> jax.Array:
    """Standard Gaussians between bounds, of uniform numbers between 0 and 1.

    In the middle by the inverse of ``Phi``. In a tail, where the density falls like ``exp(-x^2 /
    2)`` and ``1 / x`` changes little, by the inverse of Rayleigh's distribution (relative error of
    the density's slope below ``1 / 81``).
    """
    low, high, mirrored = _to_the_left(lower, upper)
    begin, end = ndtr(low), ndtr(high)
    middle = ndtri(begin + uniform * (end - begin))
    square = jnp.where(high < -_TAIL, high, -_TAIL) ** 2
    rest = jnp.exp(0.5 * (square - jnp.where(high < -_TAIL, low, -jnp.inf) ** 2))
    tail = -jnp.sqrt(square - 2 * jnp.log(rest + uniform * (1 - rest)))
    found = jnp.clip(jnp.where(high < -_TAIL, tail, middle), low, high)
    return jnp.where(mirrored, -found, found)
