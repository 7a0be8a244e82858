"""Neural matrix factorization (NeuMF of He et al., WWW 2017), trained on each matrix alone.

Every row and column has two embeddings; the products of the first pair and a network of two layers
on the second are joined by a linear output, ``x_nm ~ h . [p_n * q_m, mlp([p'_n, q'_m])]``, trained
on squared errors with a penalty on all parameters. (The paper: implicit feedback and a log loss.)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from metamf_jax.baselines import network
from metamf_jax.baselines.method import Setting, squared_error
from metamf_jax.types import Entries

_SIZE = 8
_LEARNING_RATE = 0.02

GRID = network.grid((0.1, 0.3, 1.0, 3.0))


class _NeuralMf(nn.Module):
    shape: tuple[int, int]

    @nn.compact
    def __call__(self, rows, columns):
        def embedded(index, side, name):
            init = nn.initializers.normal(0.3)
            table = self.param(name, init, (self.shape[side], 2 * _SIZE))
            # A product: the gradient of a look-up adds entry by entry, slowly on CPUs.
            chosen = jax.nn.one_hot(index, self.shape[side]) @ table
            return jnp.split(chosen, 2, axis=-1)

        p, p_mlp = embedded(rows, 0, "rows")
        q, q_mlp = embedded(columns, 1, "columns")
        hidden = jnp.concatenate([p_mlp, q_mlp], axis=-1)
        for size in (_SIZE, _SIZE // 2):
            hidden = nn.relu(nn.Dense(size)(hidden))
        return nn.Dense(1)(jnp.concatenate([p * q, hidden], axis=-1))[:, 0]


def predict(support: Entries, query: Entries, setting: Setting) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    module = _NeuralMf(support.shape)
    count = (support.rows < support.shape[0]).sum()

    def at(params, where):
        predicted = module.apply(params, where.rows, where.columns)
        assert isinstance(predicted, jax.Array)
        return predicted

    def error(params):
        return squared_error(at(params, support), support)[0] * count

    index = jnp.zeros((1,), jnp.int32)
    start = module.init(jax.random.key(0), index, index)
    return at(network.fit(error, start, setting, _LEARNING_RATE), query)
