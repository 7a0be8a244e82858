"""Model-agnostic meta-learning (Finn, Abbeel and Levine, ICML 2017) of `eml`.

The exchangeable network's parameters are meta-learned so that a few steps of gradient descent on a
matrix's support (`finetune`) leave a small error on its query; gradients flow through the steps, to
second order, and into their size.
"""

import functools

import jax.numpy as jnp

from metamf_jax import sums
from metamf_jax.baselines import eml, finetune
from metamf_jax.baselines.method import Method
from metamf_jax.meta_learning.meta_loss import ModelConfig

_STEPS = 2
_LEARNING_RATE = 0.03


@functools.cache
def method(config: ModelConfig) -> Method:
    """The method, with the channels and layers of our encoder."""
    network = eml.method(config)
    assert network.init is not None
    init_network = network.init

    def init(key):
        return {
            "network": init_network(key),
            "log_learning_rate": jnp.log(jnp.float32(_LEARNING_RATE)),
        }

    def predict(params, support, query, setting):
        del setting
        # The compiled kernels' exchange has first derivatives alone.
        with sums.using_backend("one_hot"):
            rate = jnp.exp(params["log_learning_rate"])
            adapted = finetune.adapt(network, params["network"], support, _STEPS, rate)
            return network.predict(adapted, support, query, {})

    return Method(predict, init=init)
