"""Batched ridge solves around a prior mean: ALS's half-step and the exact inner loop."""

import jax
import jax.numpy as jnp

from metamf_jax.types import Array


def ridge_solve(gram: Array, moment: Array, precision: Array, mean: Array) -> jax.Array:
    """Minimises ``1/2 w^T gram w - moment . w + 1/2 precision |w - mean|^2`` for each of a batch.

    Solves ``(gram + precision I) w = moment + precision mean`` by Cholesky in full float32.

    Args:
      gram: [..., K, K], symmetric positive semidefinite.
      moment: [..., K].
      precision: [...], positive.
      mean: [..., K], the prior mean.

    Returns:
      w, [..., K].
    """
    rank = gram.shape[-1]
    # Solving for the distance from the mean keeps rows without data exactly at it.
    shift = moment - jnp.einsum("...jk,...k->...j", gram, mean, precision=jax.lax.Precision.HIGHEST)
    matrix = gram + precision[..., None, None] * jnp.eye(rank, dtype=gram.dtype)
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    return mean + jax.scipy.linalg.cho_solve(factor, shift[..., None])[..., 0]
