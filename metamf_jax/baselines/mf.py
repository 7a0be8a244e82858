"""Matrix factorization with a zero-mean Gaussian prior, fitted to each matrix's support alone.

Minimises ``sum observed (x - u.v)^2 + lam (|U|^2 + |V|^2)`` by alternating ridge solves from small
random column factors (Zhou et al. 2008; Mnih and Salakhutdinov 2007).
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from metamf_jax import sums
from metamf_jax.meta_learning.energy import ridge_step
from metamf_jax.types import Entries, FactorPrior, Factors

_SWEEPS = 20
_LARGEST_RANK = 16

GRID = [
    {"rank": rank, "precision": precision}
    for rank, precision in itertools.product((1, 2, 4, 8, 16), (0.3, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0))
]


def predict(support: Entries, query: Entries, setting: dict[str, Any]) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    rows, columns = support.shape
    prior = FactorPrior(
        jnp.zeros((rows, _LARGEST_RANK)),
        jnp.zeros((columns, _LARGEST_RANK)),
        jnp.full((rows,), setting["precision"]),
        jnp.full((columns,), setting["precision"]),
    )
    start = 0.1 * jax.random.normal(jax.random.key(0), (columns, _LARGEST_RANK))
    # Factors beyond the rank start at zero and stay there, so that one program serves every rank.
    start = jnp.where(jnp.arange(_LARGEST_RANK) < setting["rank"], start.at[:, 0].add(1.0), 0)

    def sweep(factors, _):
        return ridge_step(support, factors, prior), None

    factors, _ = jax.lax.scan(sweep, Factors(prior.u_mean, start), None, length=_SWEEPS)
    return sums.predict(factors, query.rows, query.columns)
