"""Exchangeable matrix layers that predict the cells directly (Hartford et al., ICML 2018).

Meta-trained like ours, without factors and without an inner loop: the layers run over observed and
asked cells alike, their means over the observed alone,

    z'_nm = relu(A z_nm + R mean z_n. + S mean z_.m + G mean z + c),

from ``z^0 = (x, 1)`` at observed and ``(0, 0)`` at asked cells; a linear map of the last ``z_nm``
is the prediction.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from metamf_jax import sums
from metamf_jax.baselines.method import Method
from metamf_jax.meta_learning.exchangeable import Counts, ExchangeableLayer, means_from_sums
from metamf_jax.meta_learning.meta_loss import ModelConfig
from metamf_jax.types import Entries


class ExchangeableNetwork(nn.Module):
    """Predicts asked cells from observed ones.

    Attributes:
      channels: C of every layer.
      layers: L.
    """

    channels: int
    layers: int

    @nn.compact
    def __call__(self, support: Entries, query: Entries) -> jax.Array:
        """Predictions [Q] for the query entries."""
        counts = Counts(*sums.counts(support))
        seen = jnp.where(support.rows < support.shape[0], 1.0, 0.0)
        values = jnp.stack([sums.observed_values(support), seen], axis=-1)
        asked = jnp.zeros((*query.rows.shape, 2))
        means = means_from_sums(*sums.pool(support, values), counts)
        for _ in range(self.layers):
            layer = ExchangeableLayer(self.channels)
            asked, _ = layer(query, asked, means, counts)
            values, means = layer(support, values, means, counts)
        init = nn.initializers.variance_scaling(0.1, "fan_in", "normal")
        return nn.Dense(1, kernel_init=init)(asked)[:, 0]


@functools.cache
def method(config: ModelConfig) -> Method:
    """The method, with the channels and layers of our encoder."""
    network = ExchangeableNetwork(config.encoder.channels, config.encoder.layers)

    def init(key):
        index = jnp.zeros((1,), jnp.int32)
        cell = Entries(index, index, jnp.zeros((1,)), (1, 1))
        return network.init(key, cell, cell)

    def predict(params, support, query, setting):
        del setting
        predicted = network.apply(params, support, query)
        assert isinstance(predicted, jax.Array)
        return predicted

    return Method(predict, init=init)
