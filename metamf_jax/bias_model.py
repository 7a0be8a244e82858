"""The ridge-shrunk bias model ``x_nm ~ mu + b_n + c_m`` (Koren 2008's baseline predictor).

Minimises ``sum observed (x - mu - b_n - c_m)^2 + lam_mu mu^2 + lam_row |b|^2 + lam_column |c|^2``.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metamf_jax import sums
from metamf_jax.types import Array, Entries, Factors


class Effects(NamedTuple):
    """``mean`` scalar, ``rows`` [N], ``columns`` [M]; a cell's value is their sum."""

    mean: jax.Array
    rows: jax.Array
    columns: jax.Array


class Shrinkage(NamedTuple):
    """``lam_mu``, ``lam_row`` and ``lam_column``, each in numbers of observations."""

    mean: Array
    rows: Array
    columns: Array


def fit_effects(observations: sums.Observations, shrinkage: Shrinkage, sweeps: int) -> Effects:
    """Fits the model by sweeps of coordinate descent from zero: mean, rows, columns.

    What rows (or columns) have in common then moves to the mean as far as the penalties want it:
    coordinate descent alone takes hundreds of sweeps for that where the shrinkage is weak. Rows
    come last, so that a row's effect is a function of its own entries, the mean and the columns:
    `fold_in_rows` gives the same.

    Args:
      observations: the observed entries of one matrix.
      shrinkage: positive numbers; may be learned, gradients flow through the sweeps.
      sweeps: how many.
    """
    row_counts, column_counts = sums.counts(observations)
    values = sums.observed_values(observations)[..., None]
    mean_weight = 1 / jnp.maximum(row_counts.sum() + shrinkage.mean, 1)
    row_weights = 1 / (row_counts + shrinkage.rows)[:, None]
    column_weights = 1 / (column_counts + shrinkage.columns)[:, None]

    def residual_sums(mean, rows, columns):
        fitted = sums.spread(observations, rows + mean, columns)
        return sums.pool(observations, values - fitted)

    def solve_rows(mean, columns):
        return row_weights * residual_sums(mean, jnp.zeros_like(row_weights), columns)[0]

    def recentre(mean, effects, counts, strength):
        # The minimum over t of lam_mu (mu + t)^2 + lam sum (b_n - t)^2, over rows with an entry.
        seen = (counts > 0)[:, None]
        weight = jnp.maximum(shrinkage.mean + strength * seen.sum(), 1e-12)
        common = (strength * effects.sum() - shrinkage.mean * mean) / weight
        return mean + common, jnp.where(seen, effects - common, 0)

    def sweep(effects, _):
        mean, rows, columns = effects
        mean = mean_weight * residual_sums(jnp.zeros_like(mean), rows, columns)[0].sum()
        mean, rows = recentre(mean, solve_rows(mean, columns), row_counts, shrinkage.rows)
        columns = column_weights * residual_sums(mean, rows, jnp.zeros_like(columns))[1]
        mean, columns = recentre(mean, columns, column_counts, shrinkage.columns)
        return Effects(mean, rows, columns), None

    zeros = jnp.zeros_like(row_weights), jnp.zeros_like(column_weights)
    start = Effects(jnp.zeros((), values.dtype), *zeros)
    (mean, _, columns), _ = jax.lax.scan(sweep, start, None, length=sweeps)
    return Effects(mean, solve_rows(mean, columns)[:, 0], columns[:, 0])


def fold_in_rows(
    observations: sums.Observations, effects: Effects, shrinkage: Shrinkage
) -> Effects:
    """The effects of other rows over the same columns, whose effects and mean stay.

    Args:
      observations: the observed entries of the other rows.
      effects: of the fitted matrix; ``effects.rows`` is not read.
      shrinkage: as it was fitted with.
    """
    row_counts, _ = sums.counts(observations)
    values = sums.observed_values(observations)[..., None]
    rows = jnp.broadcast_to(effects.mean, row_counts.shape)[:, None]
    fitted = sums.spread(observations, rows, effects.columns[:, None])
    left, _ = sums.pool(observations, values - fitted)
    return effects._replace(rows=left[:, 0] / (row_counts + shrinkage.rows))


def residuals(observations: sums.Observations, effects: Effects) -> sums.Observations:
    """The same entries with the effects taken off their values."""
    rows, columns = (effects.mean + effects.rows)[:, None], effects.columns[:, None]
    values = sums.observed_values(observations)
    values = values - sums.spread(observations, rows, columns)[..., 0]
    if isinstance(observations, Entries):
        return dataclasses.replace(observations, values=values)
    return observations._replace(values=values)


def append(factors: Factors, effects: Effects) -> Factors:
    """Factors with two more columns, whose products are the old ones plus the effects."""
    u_effects = jnp.stack([effects.mean + effects.rows, jnp.ones_like(effects.rows)], axis=1)
    v_effects = jnp.stack([jnp.ones_like(effects.columns), effects.columns], axis=1)
    return Factors(
        jnp.concatenate([factors.u, u_effects], axis=1),
        jnp.concatenate([factors.v, v_effects], axis=1),
    )
