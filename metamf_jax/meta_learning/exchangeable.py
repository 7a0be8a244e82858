"""The exchangeable matrix layer of Hartford et al. (ICML 2018), with means over observed cells.

    z'_nm = A z_nm + R mean_{m' observed in row n} z_nm' + S mean_{n' observed in column m} z_n'm
            + G mean_{all observed} z + c

The layer is equivariant to permutations of rows and of columns, and its parameters do not depend on
the size of the matrix. It is written on `cells.pool` and `cells.spread`, hence serves dense padded
matrices and entry lists alike, equal to rounding.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metamf_jax import cells
from metamf_jax.types import Array


class Counts(NamedTuple):
    """Numbers of observed cells, float32: ``rows`` [N], ``columns`` [M]."""

    rows: jax.Array
    columns: jax.Array


def row_and_column_means(
    observations: cells.Observations, values: Array, counts: Counts
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Means of ``values`` ([N, M, C] or [E, C]) over observed cells.

    Returns:
      Row means [N, C], column means [M, C] and the overall mean [C]. Whatever has no observed cell
      pools to zero.
    """
    row_sums, column_sums = cells.pool(observations, values)
    return (
        row_sums / jnp.maximum(counts.rows, 1)[:, None],
        column_sums / jnp.maximum(counts.columns, 1)[:, None],
        row_sums.sum(axis=0) / jnp.maximum(counts.rows.sum(), 1),
    )


class ExchangeableLayer(nn.Module):
    """One exchangeable matrix layer, linear; the caller applies the nonlinearity.

    Attributes:
      features: C', channels of the result.
    """

    features: int

    @nn.compact
    def __call__(
        self, observations: cells.Observations, values: Array, counts: Counts
    ) -> jax.Array:
        """Maps ``values`` [N, M, C] or [E, C] to [N, M, C'] or [E, C']."""
        # The four terms add up, so each takes a quarter of He's variance.
        init = nn.initializers.variance_scaling(0.5, "fan_in", "normal")

        def weight(name):
            return self.param(name, init, (values.shape[-1], self.features))

        row_means, column_means, mean = row_and_column_means(observations, values, counts)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = row_means @ weight("row") + (mean @ weight("all") + bias)[None, :]
        columns = column_means @ weight("column")
        return values @ weight("cell") + cells.spread(observations, rows, columns)
