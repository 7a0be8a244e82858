"""The posterior of each matrix alone, by Gibbs sampling (Salakhutdinov and Mnih, ICML 2008).

    x_nm = b_n + c_m + u_n . v_m + e_nm,   e_nm ~ N(0, 1 / alpha),   alpha ~ Gamma(a, a / alpha_0)
    w_n = [u_n, b_n] ~ N(B^T phi_n + mean, Lambda^-1),   mean | Lambda ~ N(0, Lambda^-1 / kappa)
    Lambda ~ W(d, Lambda_0 / d),   d = K + 1 + degrees

and the columns alike. This is `metamf_jax.posterior.gibbs` without shares of rows and columns in
the noise, as one compiled function of one small matrix; its conditionals are those of
`posterior.hyperprior`, `posterior.row_conditional` and `posterior.noise`. Here B is zero and
``kappa`` 2, and the means ``alpha_0`` and ``Lambda_0``, diagonal, of the precisions' priors are
settings, chosen on validation matrices; `bayes_learned` learns all of these.

On the validation matrices of two splits of MovieLens-1M, features of counts under a flat prior of B
raised the error by 3.5%, shares of the noise for rows and columns by 0.7%: some 20 entries do not
tell so much.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from metamf_jax.baselines.dense import at_cells, to_dense
from metamf_jax.baselines.method import Setting
from metamf_jax.types import Array, Entries, PaddedMatrices

_BURN_IN, _NUM_DRAWS = 20, 100
_START_SCALE = 0.1
# Prior precision of the mean, as a multiple of Lambda.
_MEAN_PRECISION = 2.0

# The number of factors is K, and what stands there the mean of each one's precision. Validation
# improves one name after the other, from these on.
GRID = [
    {
        "factors": (8.0, 8.0),
        "row_effects": 8.0,
        "column_effects": 8.0,
        "degrees": 30.0,
        "noise": 1.4,
        "noise_shape": 4.0,
    }
]
AXES = {
    "row_effects": (4.0, 16.0, 32.0),
    "column_effects": (4.0, 16.0, 32.0),
    "noise": (1.0, 2.0),
    "factors": ((), (4.0, 4.0)),
}

_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class SidePrior(NamedTuple):
    """What is expected of one side's factors.

    Attributes:
      fitted: [N, K + 1], ``B^T phi_n`` of every row.
      inverse_scale: [K + 1, K + 1], ``d Lambda_0^-1``.
      degrees: d, of freedom, more than K.
      mean_precision: kappa, positive.
    """

    fitted: Array
    inverse_scale: Array
    degrees: Array | float
    mean_precision: Array | float


class Prior(NamedTuple):
    """What is expected of a matrix; ``noise`` holds shape and rate of alpha's prior, [2]."""

    rows: SidePrior
    columns: SidePrior
    noise: Array


class State(NamedTuple):
    """A draw.

    Attributes:
      rows: [N, K + 1], factors with the effect last.
      columns: [M, K + 1].
      alpha: the precision of the noise.
    """

    rows: Array
    columns: Array
    alpha: Array


class SideDraw(NamedTuple):
    """A draw of a side's ``mean`` [K + 1] and ``Lambda`` [K + 1, K + 1]."""

    mean: Array
    precision: Array


def predict(support: Entries, query: Entries, setting: Setting) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    return at_cells(posterior_mean(support, prior_of(setting, support.shape)), query)


def prior_of(setting: Setting, shape: tuple[int, int]) -> Prior:
    """The prior that a setting stands for, of a matrix of this shape."""
    width = len(setting["factors"]) + 1
    degrees = width + setting["degrees"]

    def side(size, effects):
        expected = jnp.array([*setting["factors"], effects], jnp.float32)
        scale = jnp.diag(degrees / expected)
        return SidePrior(jnp.zeros((size, width)), scale, degrees, _MEAN_PRECISION)

    return Prior(
        side(shape[0], setting["row_effects"]),
        side(shape[1], setting["column_effects"]),
        jnp.array([setting["noise_shape"], setting["noise_shape"] / setting["noise"]]),
    )


def posterior_mean(support: Entries, prior: Prior, num_draws: int = _NUM_DRAWS) -> jax.Array:
    """The mean over draws of all cells of one matrix, [N, M]."""
    matrix, key = PaddedMatrices(*to_dense(support)), jax.random.key(0)

    # One loop: to compile a sweep takes longer than to run all of them on 200 matrices.
    def advance(carry, i):
        state, total = carry
        state, _ = sweep(jax.random.fold_in(key, i), state, matrix, prior)
        return (state, total + jnp.where(i > _BURN_IN, fitted(state.rows, state.columns), 0)), None

    start = init(key, prior), jnp.zeros(support.shape)
    (_, total), _ = jax.lax.scan(advance, start, jnp.arange(1, _BURN_IN + num_draws + 1))
    return total / num_draws


def init(key: jax.Array, prior: Prior) -> State:
    """Small random factors about what is expected."""
    keys = jax.random.split(jax.random.fold_in(key, 0))
    rows, columns = (
        side.fitted + _START_SCALE * jax.random.normal(k, side.fitted.shape)
        for k, side in zip(keys, prior[:2], strict=True)
    )
    return State(rows, columns, jnp.asarray(prior.noise[0] / prior.noise[1], jnp.float32))


def sweep(
    key: jax.Array, state: State, matrix: PaddedMatrices, prior: Prior
) -> tuple[State, tuple[SideDraw, SideDraw]]:
    """Draws everything once; returns what was drawn of the sides' priors, too."""
    of_rows, of_columns, of_noise = jax.random.split(key, 3)
    rows, row_prior = draw_rows(of_rows, state.rows, state.columns, state.alpha, matrix, prior.rows)
    turned = PaddedMatrices(matrix.values.T, matrix.observed.T)
    columns, column_prior = draw_rows(
        of_columns, state.columns, rows, state.alpha, turned, prior.columns
    )
    residuals = jnp.where(matrix.observed, matrix.values - fitted(rows, columns), 0)
    shape, rate = prior.noise
    gamma = jax.random.gamma(of_noise, shape + matrix.observed.sum() / 2)
    alpha = gamma / (rate + (residuals**2).sum() / 2)
    return State(rows, columns, alpha), (row_prior, column_prior)


def fitted(rows: Array, columns: Array) -> jax.Array:
    """The values of all cells under one draw, [N, M]."""
    factors = _product(rows[:, :-1], columns[:, :-1].T)
    return factors + rows[:, -1:] + columns[:, -1][None, :]


def draw_rows(
    key: jax.Array,
    rows: Array,
    columns: Array,
    alpha: Array,
    matrix: PaddedMatrices,
    prior: SidePrior,
) -> tuple[jax.Array, SideDraw]:
    """Draws mean and precision of the rows' factors given these, then the factors given these two.

    Args:
      key: of this draw.
      rows: [N, K + 1], the last draw.
      columns: [M, K + 1].
      alpha: the precision of the noise.
      matrix: [N, M].
      prior: of the rows.
    """
    of_prior, of_rows = jax.random.split(key)
    mean, precision = draw_prior(of_prior, rows - prior.fitted, prior)
    # [M, K + 1]
    design = jnp.asarray(columns).at[:, -1].set(1)
    outer = design[:, :, None] * design[:, None, :]
    gram = jnp.tensordot(
        matrix.observed.astype(jnp.float32), outer, 1, precision=jax.lax.Precision.HIGHEST
    )
    targets = jnp.where(matrix.observed, matrix.values - columns[:, -1][None, :], 0)
    root = jnp.linalg.cholesky(precision[None] + alpha * gram)
    solve = functools.partial(jax.lax.linalg.triangular_solve, root, left_side=True, lower=True)
    pull = _product(prior.fitted + mean[None], precision)
    half = solve((pull + alpha * _product(targets, design))[..., None])
    noise = jax.random.normal(of_rows, half.shape)
    return solve(half + noise, transpose_a=True)[..., 0], SideDraw(mean, precision)


def draw_prior(key: jax.Array, rows: Array, prior: SidePrior) -> SideDraw:
    """Draws mean and precision of the rows' factors less what is fitted, [N, K + 1], given these.

    Args:
      key: of this draw.
      rows: the factors less what is fitted.
      prior: of the rows.
    """
    count, width = rows.shape
    of_square, of_lower, of_mean = jax.random.split(key, 3)
    strength = prior.mean_precision + count
    mean = jnp.sum(rows, axis=0) / strength
    inverse_scale = prior.inverse_scale + _product(rows.T, rows) - strength * jnp.outer(mean, mean)
    # Bartlett's decomposition: A, then Lambda = T T^T with T = C^-T A, C C^T the inverse scale.
    shapes = (prior.degrees + count - jnp.arange(width, dtype=jnp.float32)) / 2
    diagonal = jnp.sqrt(2 * jax.random.gamma(of_square, shapes))
    bartlett = jnp.tril(jax.random.normal(of_lower, (width, width)), -1) + jnp.diag(diagonal)
    root = jnp.linalg.cholesky(inverse_scale)
    factor = solve_triangular(root.T, bartlett, lower=False)
    # The covariance T^-T T^-1 / strength is that of T^-T z, and T^-T = C A^-T.
    noise = solve_triangular(bartlett.T, jax.random.normal(of_mean, (width,)), lower=False)
    mean = mean + _product(root, noise) / strength**0.5
    return SideDraw(mean, _product(factor, factor.T))
