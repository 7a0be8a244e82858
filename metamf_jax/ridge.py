"""Batched ridge regression around a prior mean, by Cholesky."""

import jax
import jax.numpy as jnp

from metamf_jax.types import Array

_FULL_FLOAT32 = jax.lax.Precision.HIGHEST


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
    gram, precision, mean = jnp.asarray(gram), jnp.asarray(precision), jnp.asarray(mean)
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    predicted = jnp.einsum("...jk,...k->...j", gram, mean, precision=_FULL_FLOAT32)
    with jax.default_matmul_precision("highest"):
        factor = jax.scipy.linalg.cho_factor(
            gram + precision[..., None, None] * identity, lower=True
        )
        offset = jax.scipy.linalg.cho_solve(factor, (moment - predicted)[..., None])
    return mean + offset[..., 0]
