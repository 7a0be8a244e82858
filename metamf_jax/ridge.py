"""Batched ridge regression around a prior mean, by Cholesky."""

import chex
import jax
import jax.numpy as jnp

from metamf_jax.types import Array


def ridge_solve(gram: Array, moment: Array, precision: Array, mean: Array) -> jax.Array:
    """The minimisers ``w`` of ``1/2 w^T G w - moment . w + precision / 2 |w - mean|^2``.

    Solves ``(G + precision I) w = moment + precision mean`` for every batch entry, in the form
    ``(G + precision I) (w - mean) = moment - G mean``: where there are no data (``G`` and
    ``moment`` zero) the answer is the prior mean to the last bit.

    Differentiable in all arguments. Runs at full float32 precision on every platform.

    Args:
      gram: [..., K, K] positive semi-definite ``G``, for example ``sum_m v_m v_m^T``.
      moment: [..., K], for example ``sum_m x_nm v_m``.
      precision: [...]; ``G + precision I`` must be positive definite, or the answer is NaN.
      mean: [..., K].

    Returns:
      [..., K].
    """
    chex.assert_equal_shape([moment, mean])
    chex.assert_shape(gram, (..., mean.shape[-1], mean.shape[-1]))
    gram, precision, mean = jnp.asarray(gram), jnp.asarray(precision), jnp.asarray(mean)
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    with jax.default_matmul_precision("highest"):
        system = (gram + gram.mT) / 2 + precision[..., None, None] * identity
        factor = jax.scipy.linalg.cho_factor(jax.lax.stop_gradient(system), lower=True)
        # Gradients solve by the same factor: meta-training through the factorization takes four
        # times as long.
        offset = jax.lax.custom_linear_solve(
            lambda x: jnp.einsum("...jk,...k->...j", system, x),
            moment - jnp.einsum("...jk,...k->...j", gram, mean),
            lambda _, right: jax.scipy.linalg.cho_solve(factor, right[..., None])[..., 0],
            symmetric=True,
        )
    return mean + offset


def inverse(matrix: Array) -> jax.Array:
    """Inverses of small positive definite matrices [..., K, K], by Gauss and Jordan's elimination.

    Without pivots, which such matrices do not need. For many small matrices at once this is a few
    passes over all of them; batched triangular solves take XLA on CPUs a minute to compile.
    """
    matrix = jnp.asarray(matrix)
    place = jnp.arange(matrix.shape[-1])

    def eliminate(k, a):
        here = (place == k).astype(a.dtype)
        pivot_row = jax.lax.dynamic_index_in_dim(a, k, a.ndim - 2, keepdims=True)
        column = jax.lax.dynamic_index_in_dim(a, k, a.ndim - 1, keepdims=True)
        pivot = jax.lax.dynamic_index_in_dim(pivot_row, k, a.ndim - 1, keepdims=True)
        at_row = jnp.broadcast_to(here[:, None], a.shape)
        at_column = jnp.broadcast_to(here[None, :], a.shape)
        # With the pivot's row and column as those of the identity, one update serves all.
        row = jnp.where(at_column[..., :1, :] > 0, 1, pivot_row) / pivot
        rest = jnp.where(at_column > 0, 0, a)
        return jnp.where(at_row > 0, row, rest - column * row)

    return jax.lax.fori_loop(0, matrix.shape[-1], eliminate, matrix)
