"""The exchangeable matrix layer of Hartford et al. (ICML 2018), with means over observed entries.

    z'_nm = A z_nm + R mean_{m' observed in row n} z_nm' + S mean_{n' observed in column m} z_n'm
            + G mean_{all observed} z + c

The layer is equivariant to permutations of rows and of columns, and its parameters do not depend on
the size of the matrix. It is written on `metamf_jax.sums`, hence serves dense padded matrices and
entry lists alike, equal to rounding.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from metamf_jax import sums
from metamf_jax.types import Array


class Counts(NamedTuple):
    """Numbers of observed entries, float32: ``rows`` [N], ``columns`` [M]."""

    rows: jax.Array
    columns: jax.Array


class Means(NamedTuple):
    """Means over observed entries: of each row [N, C], of each column [M, C], and of all [C].

    Whatever has no observed entry pools to zero.
    """

    rows: jax.Array
    columns: jax.Array
    all: jax.Array


def means_from_sums(row_sums: jax.Array, column_sums: jax.Array, counts: Counts) -> Means:
    """Divides sums over rows [N, C] and columns [M, C] by the numbers of observed entries."""
    return Means(
        row_sums / jnp.maximum(counts.rows, 1)[:, None],
        column_sums / jnp.maximum(counts.columns, 1)[:, None],
        row_sums.sum(axis=0) / jnp.maximum(counts.rows.sum(), 1),
    )


class ExchangeableLayer(nn.Module):
    """One exchangeable matrix layer and its rectifier.

    Attributes:
      features: C', channels of the result.
    """

    features: int

    @nn.compact
    def __call__(
        self, observations: sums.Observations, values: Array, means: Means, counts: Counts
    ) -> tuple[jax.Array, Means]:
        """Maps ``values``, [N, M, C] or [E, C], and their means to the next layer's.

        Returns:
          ``relu(z')``, [N, M, C'] or [E, C'] and zero at unobserved cells, and its means.
        """
        # The four terms add up, so each takes a quarter of He's variance.
        init = nn.initializers.variance_scaling(0.5, "fan_in", "normal")

        def weight(name):
            return self.param(name, init, (values.shape[-1], self.features))

        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = means.rows @ weight("row") + (means.all @ weight("all") + bias)[None, :]
        columns = means.columns @ weight("column")
        values, row_sums, column_sums = sums.exchange(
            observations, values @ weight("cell"), rows, columns
        )
        return values, means_from_sums(row_sums, column_sums, counts)
