"""The posterior of each matrix alone under a prior that is learned from the meta-train part.

The model and its sampler are those of `bayes`,

    w_n = [u_n, b_n] ~ N(B^T phi_n + mean, Lambda^-1),   mean | Lambda ~ N(0, Lambda^-1 / kappa)
    Lambda ~ W(d, Lambda_0 / d),   alpha ~ Gamma(a, b)

and the columns alike, with features of the pattern ``phi_n``: an intercept, the log count of the
row's entries beside that of the mean row, the mean log count of the columns where it has entries,
and the log count of the mean row. ``B, kappa, d, Lambda_0`` of both sides, ``a``
and ``b`` are the likeliest ones of the meta-train matrices: empirical Bayes by stochastic
approximation EM (as `metamf_jax.posterior.empirical_bayes`). Every matrix has a chain; in turn all
chains draw once under what was learned so far, and all is learned anew from averages over the last
turns of what the draws tell, of which each maximum is known but that of d, found by a search.

Delyon, Lavielle, Moulines, Convergence of a stochastic approximation version of the EM algorithm,
Annals of Statistics 1999.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from metamf_jax import sums
from metamf_jax.baselines import bayes
from metamf_jax.baselines.bayes import Prior, SideDraw, SidePrior, State
from metamf_jax.baselines.dense import at_cells, to_dense
from metamf_jax.baselines.method import Method, Setting
from metamf_jax.meta_learning.meta_loss import Episode
from metamf_jax.posterior.empirical_bayes import likeliest_gamma, log_gamma
from metamf_jax.types import Array, Entries, PaddedMatrices

# Not tuned.
_RANK = 2

# After 150 turns from 30 degrees of freedom the effects' precisions were still 1.4 and 1.7 times
# too high, on the matrices of the test.
_TURNS, _BURN_IN, _DECAY = 400, 250, 0.7
_NUM_FEATURES = 4
# Where all matrices are filled alike, the last feature is the intercept's double.
_RIDGE = 1e-2
# What the corpus may choose for the degrees of freedom beyond K.
_LEAST_DEGREES, _MOST_DEGREES = 0.5, 300.0
# Values without noise would have it rise without end.
_MOST_NOISE_PRECISION = 1e3
_START = {"row_effects": 8.0, "column_effects": 8.0, "degrees": 10.0}
_START_NOISE, _START_PRECISION, _START_SCALE = (4.0, 3.0), 4.0, 0.1


class SideHyperprior(NamedTuple):
    """What is learned of a side.

    Attributes:
      coefficients: ``B`` [F, K + 1].
      precision: ``Lambda_0`` [K + 1, K + 1].
      degrees: ``d``.
      mean_precision: ``kappa``.
    """

    coefficients: Array
    precision: Array
    degrees: Array
    mean_precision: Array


class Hyperprior(NamedTuple):
    """What is learned; ``noise`` holds ``a`` and ``b``, [2]."""

    rows: SideHyperprior
    columns: SideHyperprior
    noise: Array


class SideTold(NamedTuple):
    """What draws tell of one side, means over matrices; R = K + 1.

    Attributes:
      gram: ``Lambda x Phi^T Phi`` [R, F, R, F] of the equations of B,
      moment: and their right side ``Lambda (W - mean)^T Phi`` [R, F].
      precision: ``Lambda`` [R, R].
      log_det: ``log |Lambda|``.
      mean_square: ``mean^T Lambda mean``.
    """

    gram: Array
    moment: Array
    precision: Array
    log_det: Array
    mean_square: Array


class Told(NamedTuple):
    """What draws tell; ``noise`` holds the means of alpha and of its logarithm, [2]."""

    rows: SideTold
    columns: SideTold
    noise: Array


def predict(learned: Hyperprior, support: Entries, query: Entries, setting: Setting) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    del setting
    return at_cells(bayes.posterior_mean(support, prior_of(learned, features(support))), query)


def features(support: Entries) -> tuple[jax.Array, jax.Array]:
    """``phi`` of every row [N, F] and of every column [M, F] of one matrix."""
    row_counts, column_counts = sums.counts(support)

    def others(counts):
        return jnp.log(jnp.maximum(counts, 1))[:, None]

    of_rows, of_columns = others(row_counts), others(column_counts)
    in_rows, _ = sums.pool(support, sums.spread(support, jnp.zeros_like(of_rows), of_columns))
    _, in_columns = sums.pool(support, sums.spread(support, of_rows, jnp.zeros_like(of_columns)))

    def side(counts, crossed):
        average = jnp.full_like(counts, jnp.log1p(counts.mean()))
        own = jnp.log1p(counts) - average
        return jnp.stack(
            [jnp.ones_like(counts), own, crossed[:, 0] / jnp.maximum(counts, 1), average - 1],
            axis=1,
        )

    return side(row_counts, in_rows), side(column_counts, in_columns)


def prior_of(learned: Hyperprior, phi: tuple[Array, Array]) -> Prior:
    """The prior of a matrix with these features."""

    def side(hyper, of_side):
        scale = hyper.degrees * jnp.linalg.inv(hyper.precision)
        fitted = jnp.matmul(of_side, hyper.coefficients, precision=jax.lax.Precision.HIGHEST)
        return SidePrior(fitted, scale, hyper.degrees, hyper.mean_precision)

    return Prior(side(learned.rows, phi[0]), side(learned.columns, phi[1]), learned.noise)


def start(rank: int) -> Hyperprior:
    """Where learning starts: no regression but of factors, a random one, so that they differ."""
    rng = np.random.default_rng(0)

    def side(effects):
        coefficients = np.zeros((_NUM_FEATURES, rank + 1), np.float32)
        coefficients[:, :-1] = _START_SCALE * rng.standard_normal((_NUM_FEATURES, rank))
        precision = np.diag([_START_PRECISION] * rank + [effects]).astype(np.float32)
        degrees = np.asarray(rank + 1 + _START["degrees"], np.float32)
        return SideHyperprior(coefficients, precision, degrees, np.asarray(2, np.float32))

    noise = np.array(_START_NOISE, np.float32)
    return Hyperprior(side(_START["row_effects"]), side(_START["column_effects"]), noise)


def learn(matrices: Episode, rank: int = _RANK, turns: int = _TURNS) -> Hyperprior:
    """The likeliest hyperprior.

    Args:
      matrices: a batch; patterns are those of the supports, values those of all entries.
      rank: K.
      turns: of a sweep of every chain and a maximisation.
    """
    phi = jax.jit(jax.vmap(features))(matrices.support)
    dense = jax.jit(jax.vmap(_all_entries))(matrices)
    keys = jax.random.split(jax.random.key(0), len(dense.values))
    learned, told = start(rank), None
    state = _init(keys, learned, phi)
    for turn in range(turns):
        state, latest = _draw(turn + 1, keys, state, learned, phi, dense)
        latest = jax.tree.map(lambda x: np.asarray(x, np.float64), latest)
        step = max(1, turn - _BURN_IN + 1) ** -_DECAY
        told = (
            latest
            if told is None
            else jax.tree.map(
                lambda old, new, step=step: (1 - step) * old + step * new, told, latest
            )
        )
        learned = likeliest(told)
    return learned


def _all_entries(matrix: Episode) -> PaddedMatrices:
    assert isinstance(matrix.support, Entries)
    support, query = to_dense(matrix.support), to_dense(matrix.query)
    return PaddedMatrices(
        jnp.where(support.observed, support.values, query.values),
        support.observed | query.observed,
    )


@jax.jit
def _init(keys, learned, phi):
    return jax.vmap(lambda key, phi: bayes.init(key, prior_of(learned, phi)))(keys, phi)


@jax.jit
def _draw(
    turn: int,
    keys: jax.Array,
    states: State,
    learned: Hyperprior,
    phi: tuple[Array, Array],
    matrices: PaddedMatrices,
) -> tuple[State, Told]:
    """One sweep of every chain, and the mean over matrices of what it tells."""

    def one(key, state, phi, matrix):
        key = jax.random.fold_in(key, turn)
        state, drawn = bayes.sweep(key, state, matrix, prior_of(learned, phi))
        told = Told(
            _told(state.rows, drawn[0], phi[0]),
            _told(state.columns, drawn[1], phi[1]),
            jnp.stack([state.alpha, jnp.log(state.alpha)]),
        )
        return state, told

    states, told = jax.vmap(one)(keys, states, phi, matrices)
    return states, jax.tree.map(lambda x: x.mean(axis=0), told)


def _told(factors: Array, drawn: SideDraw, phi: Array) -> SideTold:
    precision = jnp.asarray(drawn.precision)
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return SideTold(
        gram=precision[:, None, :, None] * product(phi.T, phi)[None, :, None, :],
        moment=product(precision, product((factors - drawn.mean[None]).T, phi)),
        precision=precision,
        log_det=jnp.linalg.slogdet(precision)[1],
        mean_square=product(drawn.mean, product(precision, drawn.mean)),
    )


def likeliest(told: Told) -> Hyperprior:
    """The likeliest hyperprior given what draws tell."""

    def side(of_side: SideTold) -> SideHyperprior:
        width, num_features = of_side.moment.shape
        size = width * num_features
        gram = of_side.gram.reshape(size, size) + _RIDGE * np.eye(size)
        flat = np.linalg.solve(gram, of_side.moment.reshape(size))
        found = (
            flat.reshape(width, num_features).T,
            of_side.precision,
            _degrees(of_side),
            width / of_side.mean_square,
        )
        return SideHyperprior(*(np.asarray(x, np.float32) for x in found))

    shape, rate = likeliest_gamma(float(told.noise[0]), float(told.noise[1]))
    noise = np.array([shape, max(rate, shape / _MOST_NOISE_PRECISION)], np.float32)
    return Hyperprior(side(told.rows), side(told.columns), noise)


def _degrees(told: SideTold) -> float:
    """``d`` of the Wishart distribution whose mean is the draws' mean precision."""
    width = len(told.precision)
    log_det = np.linalg.slogdet(told.precision)[1]

    def loss(d: float) -> float:
        scale = d / 2 * (log_det - width * np.log(d) + width * np.log(2))
        inside = (d - width - 1) / 2 * told.log_det - d * width / 2
        return float(scale + log_gamma(d / 2, width) - inside)

    bounds = width - 1 + _LEAST_DEGREES, width - 1 + _MOST_DEGREES
    found: Any = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded")
    return float(found.x)


def init(key: jax.Array) -> Hyperprior:
    """Parameters of the shapes that `learn` returns, near its start."""
    scale = 1 + _START_SCALE * jax.random.uniform(key)
    return jax.tree.map(lambda x: jnp.asarray(x) * scale, start(_RANK))


METHOD = Method(predict, init=init, learn=learn)
