"""The shrunken bias model of each matrix alone (`metamf_jax.bias_model`)."""

import itertools
from typing import Any

import jax

from metamf_jax import sums
from metamf_jax.bias_model import Shrinkage, fit_effects
from metamf_jax.types import Entries

_SWEEPS = 10

GRID = [
    {"mean_shrinkage": mean, "row_shrinkage": row, "column_shrinkage": column}
    for mean, row, column in itertools.product(
        (0.0, 3.0), (0.3, 1.0, 2.0, 4.0, 8.0, 16.0), (0.3, 1.0, 2.0, 4.0, 8.0, 16.0)
    )
]


def predict(support: Entries, query: Entries, setting: dict[str, Any]) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    shrinkage = Shrinkage(
        setting["mean_shrinkage"], setting["row_shrinkage"], setting["column_shrinkage"]
    )
    effects = fit_effects(support, shrinkage, _SWEEPS)
    rows = (effects.mean + effects.rows)[:, None]
    return sums.spread(query, rows, effects.columns[:, None])[:, 0]
