"""A list of entries as a dense matrix, inside compiled functions."""

import jax
import jax.numpy as jnp

from metamf_jax.types import Array, Entries, PaddedMatrices


def to_dense(entries: Entries) -> PaddedMatrices:
    """The same matrix, [N, M] with zero at unobserved cells, and its mask."""
    index = entries.rows, entries.columns
    zeros = jnp.zeros(entries.shape)
    # Padding entries point one past the end, and what is written there is dropped.
    return PaddedMatrices(
        zeros.at[index].set(entries.values, mode="drop"),
        zeros.astype(bool).at[index].set(True, mode="drop"),
    )


def at_cells(matrix: Array, query: Entries) -> jax.Array:
    """The values [Q] of a matrix [N, M] at the query entries; zero at padding."""
    return jnp.asarray(matrix).at[query.rows, query.columns].get(mode="fill", fill_value=0)
