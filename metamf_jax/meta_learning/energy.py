"""The energy of one matrix's factors, its descent direction, step sizes, and the exact step.

The energy is

    1/2 sum observed (x - u.v)^2 + 1/2 sum_n lam_n |u_n - u0_n|^2 + 1/2 sum_m lam_m |v_m - v0_m|^2

with the prior means ``u0, v0`` and precisions ``lam`` (Iwata 2021, arXiv 2106.15133).

Everything here is pure and for one matrix, dense or an entry list; ``jax.vmap`` makes batches.
"""

import jax
import jax.numpy as jnp

from metamf_jax import ridge, sums
from metamf_jax.types import Array, FactorPrior, Factors


def energy(observations: sums.Observations, factors: Factors, prior: FactorPrior) -> jax.Array:
    """The energy above, a scalar: minus the log posterior up to a constant."""
    residuals = sums.residuals(observations, factors)
    return 0.5 * (
        (residuals**2).sum()
        + (prior.u_precision * ((factors.u - prior.u_mean) ** 2).sum(axis=-1)).sum()
        + (prior.v_precision * ((factors.v - prior.v_mean) ** 2).sum(axis=-1)).sum()
    )


def descent_direction(
    observations: sums.Observations, factors: Factors, prior: FactorPrior
) -> Factors:
    """Minus the gradient of the energy: ``E V - lam (U - U0)`` [N, K], and [M, K] alike."""
    ev, eu = sums.residual_products(observations, factors)
    return Factors(
        ev - prior.u_precision[:, None] * (factors.u - prior.u_mean),
        eu - prior.v_precision[:, None] * (factors.v - prior.v_mean),
    )


def step_sizes(
    observations: sums.Observations, prior: FactorPrior, step_size: Array, form: str
) -> tuple[jax.Array, jax.Array]:
    """Step sizes of every row and column: eta divided by what the form divides by.

    * ``plain``: by nothing. A row's curvature grows with its number of ratings, so on large
      matrices descent with the same step everywhere diverges.
    * ``scaled``: by ``N_n + lam_n``.
    * ``curvature``: by ``lam_n + sum observed |v0_m|^2``, a bound of the row's curvature at the
      start, whatever the length of the factors (our extension).

    Args:
      observations: the observed entries.
      prior: the prior over the factors.
      step_size: eta, a scalar.
      form: one of these.

    Returns:
      [N] and [M].
    """
    if form == "plain":
        rows, columns = jnp.ones_like(prior.u_precision), jnp.ones_like(prior.v_precision)
    elif form == "scaled":
        rows, columns = sums.counts(observations)
        rows, columns = rows + prior.u_precision, columns + prior.v_precision
    else:
        u_squares = (prior.u_mean**2).sum(axis=1, keepdims=True)
        v_squares = (prior.v_mean**2).sum(axis=1, keepdims=True)
        both = sums.spread(observations, u_squares, v_squares)
        rows, columns = (pooled[:, 0] for pooled in sums.pool(observations, both))
        # Each pooled sum holds a row's own square once an entry, too.
        row_counts, column_counts = sums.counts(observations)
        rows = rows - row_counts * u_squares[:, 0] + prior.u_precision
        columns = columns - column_counts * v_squares[:, 0] + prior.v_precision
    return jnp.asarray(step_size / rows), jnp.asarray(step_size / columns)


def solve_rows(
    observations: sums.Observations, v: Array, precision: Array, mean: Array
) -> jax.Array:
    """The row factors [N, K] that minimise the energy for given column factors ``v`` [M, K].

    Args:
      observations: the observed entries.
      v: the column factors.
      precision: [N], of the rows' prior.
      mean: [N, K], its means.
    """
    gram, moment = sums.row_normal_equations(observations, v)
    return ridge.ridge_solve(gram, moment, precision, mean)


def ridge_step(observations: sums.Observations, factors: Factors, prior: FactorPrior) -> Factors:
    """Solves exactly for ``U`` given ``V``, then for ``V`` given the new ``U``."""
    u = solve_rows(observations, factors.v, prior.u_precision, prior.u_mean)
    gram, moment = sums.row_normal_equations(sums.transpose(observations), u)
    v = ridge.ridge_solve(gram, moment, prior.v_precision, prior.v_mean)
    return Factors(u, v)
