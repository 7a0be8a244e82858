"""The posterior of each matrix alone, by Gibbs sampling (Salakhutdinov and Mnih, ICML 2008).

    x_nm = b_n + c_m + u_n . v_m + e_nm,   e_nm ~ N(0, 1 / alpha),   alpha ~ Gamma(a, a / alpha_0)
    w_n = [u_n, b_n] ~ N(mean, Lambda^-1),   mean | Lambda ~ N(0, Lambda^-1 / 2)
    Lambda ~ W(d, Lambda_0 / d),   d = K + 1 + degrees

and the columns alike. This is `metamf_jax.posterior.gibbs` without shares of rows and columns in
the noise and without features, as one compiled function of one small matrix; its conditionals are
those of `posterior.hyperprior`, `posterior.row_conditional` and `posterior.noise`. The means
``alpha_0`` and ``Lambda_0``, diagonal, of the precisions' priors are settings.

On the validation matrices of two splits of MovieLens-1M, features of counts raised the error by
3.5%, shares of the noise for rows and columns by 0.7%: some 20 entries do not tell so much.
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

# The number of factors is K, and what stands there the mean of each one's precision.
GRID = [
    {
        "factors": factors,
        "row_effects": rows,
        "column_effects": columns,
        "degrees": 30.0,
        "noise": 1.4,
        "noise_shape": 4.0,
    }
    for factors in ((), (4.0,), (8.0, 8.0))
    for rows in (4.0, 8.0, 16.0)
    for columns in (4.0, 8.0, 16.0)
]

_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


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


def predict(support: Entries, query: Entries, setting: Setting) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    return at_cells(posterior_mean(support, setting), query)


def posterior_mean(support: Entries, setting: Setting, num_draws: int = _NUM_DRAWS) -> jax.Array:
    """The mean over draws of all cells of one matrix, [N, M]."""
    matrix, key = PaddedMatrices(*to_dense(support)), jax.random.key(0)

    def advance(state, i):
        return sweep(jax.random.fold_in(key, i), state, matrix, setting), None

    def advance_and_add(carry, i):
        state, total = carry
        state, _ = advance(state, i)
        return (state, total + fitted(state.rows, state.columns)), None

    state, _ = jax.lax.scan(advance, init(key, support.shape, setting), jnp.arange(1, _BURN_IN + 1))
    last = _BURN_IN + num_draws
    (_, total), _ = jax.lax.scan(
        advance_and_add, (state, jnp.zeros(support.shape)), jnp.arange(_BURN_IN + 1, last + 1)
    )
    return total / num_draws


def init(key: jax.Array, shape: tuple[int, int], setting: Setting) -> State:
    """Small random factors."""
    width = len(setting["factors"]) + 1
    rows, columns = (
        _START_SCALE * jax.random.normal(k, (size, width))
        for k, size in zip(jax.random.split(jax.random.fold_in(key, 0)), shape, strict=True)
    )
    return State(rows, columns, jnp.asarray(setting["noise"], jnp.float32))


def sweep(key: jax.Array, state: State, matrix: PaddedMatrices, setting: Setting) -> State:
    """Draws everything once."""
    of_rows, of_columns, of_noise = jax.random.split(key, 3)
    prior = _expected_precision(setting, "row_effects")
    rows = draw_rows(
        of_rows, state.rows, state.columns, state.alpha, matrix, prior, setting["degrees"]
    )
    prior = _expected_precision(setting, "column_effects")
    turned = PaddedMatrices(matrix.values.T, matrix.observed.T)
    columns = draw_rows(
        of_columns, state.columns, rows, state.alpha, turned, prior, setting["degrees"]
    )
    residuals = jnp.where(matrix.observed, matrix.values - fitted(rows, columns), 0)
    shape = setting["noise_shape"]
    gamma = jax.random.gamma(of_noise, shape + matrix.observed.sum() / 2)
    return State(rows, columns, gamma / (shape / setting["noise"] + (residuals**2).sum() / 2))


def _expected_precision(setting, effects):
    """The diagonal of ``Lambda_0``, [K + 1]."""
    return jnp.array([*setting["factors"], setting[effects]], jnp.float32)


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
    expected_precision: Array,
    degrees: float,
) -> jax.Array:
    """Draws the prior of the rows' factors given these, then the factors given the columns'.

    Args:
      key: of this draw.
      rows: [N, K + 1], the last draw.
      columns: [M, K + 1].
      alpha: the precision of the noise.
      matrix: [N, M].
      expected_precision: [K + 1], see `draw_prior`.
      degrees: of freedom beyond K + 1.
    """
    of_prior, of_rows = jax.random.split(key)
    mean, precision = draw_prior(of_prior, rows, expected_precision, degrees)
    # [M, K + 1]
    design = jnp.asarray(columns).at[:, -1].set(1)
    outer = design[:, :, None] * design[:, None, :]
    gram = jnp.tensordot(
        matrix.observed.astype(jnp.float32), outer, 1, precision=jax.lax.Precision.HIGHEST
    )
    targets = jnp.where(matrix.observed, matrix.values - columns[:, -1][None, :], 0)
    root = jnp.linalg.cholesky(precision[None] + alpha * gram)
    solve = functools.partial(jax.lax.linalg.triangular_solve, root, left_side=True, lower=True)
    half = solve((_product(precision, mean)[None] + alpha * _product(targets, design))[..., None])
    noise = jax.random.normal(of_rows, half.shape)
    return solve(half + noise, transpose_a=True)[..., 0]


def draw_prior(
    key: jax.Array, rows: Array, expected_precision: Array, degrees: float
) -> tuple[jax.Array, jax.Array]:
    """Draws mean [K + 1] and precision [K + 1, K + 1] of the rows' factors [N, K + 1], given these.

    Args:
      key: of this draw.
      rows: the factors.
      expected_precision: [K + 1], the diagonal of the precision's mean before any factor is known.
      degrees: of freedom beyond K + 1.
    """
    count, width = rows.shape
    of_square, of_lower, of_mean = jax.random.split(key, 3)
    degrees = width + degrees
    strength = _MEAN_PRECISION + count
    mean = jnp.sum(rows, axis=0) / strength
    inverse_scale = (
        jnp.diag(degrees / expected_precision)
        + _product(rows.T, rows)
        - strength * jnp.outer(mean, mean)
    )
    # Bartlett's decomposition: A, then Lambda = T T^T with T = C^-T A, C C^T the inverse scale.
    shapes = (degrees + count - jnp.arange(width, dtype=jnp.float32)) / 2
    diagonal = jnp.sqrt(2 * jax.random.gamma(of_square, shapes))
    bartlett = jnp.tril(jax.random.normal(of_lower, (width, width)), -1) + jnp.diag(diagonal)
    root = jnp.linalg.cholesky(inverse_scale)
    factor = solve_triangular(root.T, bartlett, lower=False)
    # The covariance T^-T T^-1 / strength is that of T^-T z, and T^-T = C A^-T.
    noise = solve_triangular(bartlett.T, jax.random.normal(of_mean, (width,)), lower=False)
    mean = mean + _product(root, noise) / strength**0.5
    return mean, _product(factor, factor.T)
