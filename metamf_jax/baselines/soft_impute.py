"""Soft-Impute: a low nuclear norm (Mazumder, Hastie and Tibshirani, JMLR 11, 2010).

Minimises ``1/2 sum observed (x - z)^2 + lam |Z|_*`` by iterating ``Z <- S_lam(P(X) + P'(Z))``,
where ``P`` keeps the observed entries, ``P'`` the others, and ``S_lam`` shrinks singular values by
``lam``.
The shrinkage is given as a share of the largest singular value of ``P(X)``, at which ``Z = 0``.
"""

import jax
import jax.numpy as jnp

from metamf_jax.baselines.dense import at_cells, to_dense
from metamf_jax.baselines.method import Setting
from metamf_jax.types import Entries

_ITERATIONS = 30

GRID = [{"shrinkage": share} for share in (0.15, 0.25, 0.35, 0.5, 0.7)]


def predict(support: Entries, query: Entries, setting: Setting) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    values, observed = to_dense(support)
    wide = values.shape[0] < values.shape[1]
    if wide:
        values, observed = values.T, observed.T

    def singular(matrix):
        # From the Gram matrix of the shorter side: an SVD takes several times as long on CPUs.
        squares, right = jnp.linalg.eigh(
            jnp.matmul(matrix.T, matrix, precision=jax.lax.Precision.HIGHEST)
        )
        return jnp.sqrt(jnp.maximum(squares, 0)), right

    shrinkage = setting["shrinkage"] * singular(values)[0][-1]

    def step(fitted, _):
        filled = jnp.where(observed, values, fitted)
        scale, right = singular(filled)
        kept = jnp.where(scale > shrinkage, 1 - shrinkage / jnp.maximum(scale, 1e-12), 0)
        precise = jax.lax.Precision.HIGHEST
        projected = jnp.matmul(filled, right, precision=precise) * kept[None, :]
        return jnp.matmul(projected, right.T, precision=precise), None

    fitted, _ = jax.lax.scan(step, jnp.zeros_like(values), None, length=_ITERATIONS)
    return at_cells(fitted.T if wide else fitted, query)
