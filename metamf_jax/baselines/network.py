"""Fits a small network to one matrix, for the methods that train one for each matrix."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from metamf_jax.baselines.method import Setting


def grid(decays: Sequence[float]) -> list[Setting]:
    """Settings for `fit`: few steps are early stopping, whose number validation chooses."""
    return [{"decay": decay, "steps": steps} for decay in decays for steps in (5, 15, 50, 150)]


def fit(
    error: Callable[[Any], jax.Array], params: Any, setting: Setting, learning_rate: float
) -> Any:
    """Minimises ``error(params) + decay |params|^2`` by Adam (Kingma and Ba 2015), full batch."""
    optimizer = optax.adam(learning_rate)

    def loss(params):
        squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)]
        return error(params) + setting["decay"] * sum(squares, jnp.zeros(()))

    def step(_, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, setting["steps"], step, (params, optimizer.init(params)))[0]
