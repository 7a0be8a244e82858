"""The ridge-shrunk bias model ``x_nm ~ mu + b_n + c_m`` (Koren 2008's baseline predictor).

Minimises ``sum observed (x - mu - b_n - c_m)^2 + lam_mu mu^2 + lam_row |b|^2 + lam_column |c|^2``
by coordinate descent from zero.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from metamf_jax import cells
from metamf_jax.types import Entries

_SWEEPS = 10

GRID = [
    {"mean_shrinkage": mean, "row_shrinkage": row, "column_shrinkage": column}
    for mean, row, column in itertools.product(
        (0.0, 3.0), (0.3, 1.0, 2.0, 4.0, 8.0, 16.0), (0.3, 1.0, 2.0, 4.0, 8.0, 16.0)
    )
]


def predict(support: Entries, query: Entries, setting: dict[str, Any]) -> jax.Array:
    """Predicts the query cells [Q] of one matrix from its support."""
    row_counts, column_counts = cells.counts(support)
    values = cells.observed_values(support)[:, None]
    row_weights = 1 / (row_counts + setting["row_shrinkage"])[:, None]
    column_weights = 1 / (column_counts + setting["column_shrinkage"])[:, None]
    mean_weight = 1 / jnp.maximum(row_counts.sum() + setting["mean_shrinkage"], 1)

    def residual_sums(mean, rows, columns):
        return cells.pool(support, values - cells.spread(support, rows + mean, columns))

    def sweep(effects, _):
        mean, rows, columns = effects
        mean = mean_weight * residual_sums(0.0, rows, columns)[0].sum()
        rows = row_weights * residual_sums(mean, jnp.zeros_like(rows), columns)[0]
        columns = column_weights * residual_sums(mean, rows, jnp.zeros_like(columns))[1]
        return (mean, rows, columns), None

    start = jnp.float32(0), jnp.zeros((support.shape[0], 1)), jnp.zeros((support.shape[1], 1))
    (mean, rows, columns), _ = jax.lax.scan(sweep, start, None, length=_SWEEPS)
    return mean + cells.spread(query, rows, columns)[:, 0]
