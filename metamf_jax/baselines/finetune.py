"""`eml`, fine-tuned on each matrix by gradient descent before it predicts.

A network that sees a cell could copy it, so the entries of the support are cut in two halves at
random, each predicted from the other, and ``params <- params - eta grad`` of that squared error
for a number of steps (the self-supervised loss of Hartford et al. 2018; the numbers are ours).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from metamf_jax.baselines import eml
from metamf_jax.baselines.method import Method, squared_error
from metamf_jax.meta_learning.meta_loss import ModelConfig
from metamf_jax.types import Array, Entries

GRID = tuple(
    {"steps": steps, "learning_rate": rate}
    for steps in (1, 3, 10)
    for rate in (0.0003, 0.001, 0.003, 0.01)
)


def halves_loss(network: Method, params: Any, support: Entries) -> jax.Array:
    """Mean squared error of the support's halves, each predicted from the other."""
    # The order of the list may mean something: the halves must not.
    length = support.rows.shape[-1]
    in_second = jax.random.permutation(jax.random.key(0), length) < length // 2

    def loss(first):
        def part(inside):
            return dataclasses.replace(
                support,
                rows=jnp.where(inside, support.rows, support.shape[0]),
                columns=jnp.where(inside, support.columns, support.shape[1]),
            )

        seen, asked = part(in_second == first), part(in_second != first)
        return squared_error(network.predict(params, seen, asked, {}), asked)[0]

    return jax.vmap(loss)(jnp.array([False, True])).mean()


def adapt(network: Method, params: Any, support: Entries, steps: int, learning_rate: Array) -> Any:
    """The parameters after so many steps of gradient descent on the support's halves."""

    def step(_, params):
        gradient = jax.grad(lambda p: halves_loss(network, p, support))(params)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, gradient)

    return jax.lax.fori_loop(0, steps, step, params)


@functools.cache
def method(config: ModelConfig) -> Method:
    """The method, from the meta-trained parameters of `eml`."""
    network = eml.method(config)

    def predict(params, support, query, setting):
        rate = jnp.asarray(setting["learning_rate"])
        adapted = adapt(network, params, support, setting["steps"], rate)
        return network.predict(adapted, support, query, {})

    return Method(predict, GRID, network.init, trained_as="eml")
