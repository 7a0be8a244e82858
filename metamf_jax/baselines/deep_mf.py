"""Deep matrix factorization (Xue, Dai, Zhang, Huang and Chen, IJCAI 2017), each matrix alone.

Two networks of two layers map a row's and a column's observed values (zero elsewhere) to factors,
``u_n = f(x_n.)`` and ``v_m = g(x_.m)``. The paper scores their cosine for rankings; standardised
ratings have either sign and no bound, so here ``x_nm ~ u_n . v_m``, trained on squared errors with
a penalty on all parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from metamf_jax import sums
from metamf_jax.baselines import network
from metamf_jax.baselines.dense import to_dense
from metamf_jax.baselines.method import Setting, squared_error
from metamf_jax.types import Entries, Factors

_HIDDEN = 16
_RANK = 8
_LEARNING_RATE = 0.02

GRID = network.grid((1.0, 3.0, 10.0, 30.0))


class _Towers(nn.Module):
    @nn.compact
    def __call__(self, values):
        def tower(x):
            return nn.Dense(_RANK)(nn.relu(nn.Dense(_HIDDEN)(x)))

        return Factors(tower(values), tower(values.T))


def predict(support: Entries, query: Entries, setting: Setting) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    values, _ = to_dense(support)
    towers = _Towers()
    count = (support.rows < support.shape[0]).sum()

    def at(params, where):
        factors = towers.apply(params, values)
        assert isinstance(factors, Factors)
        return sums.predict(factors, where.rows, where.columns)

    def error(params):
        return squared_error(at(params, support), support)[0] * count

    start = towers.init(jax.random.key(0), jnp.zeros(support.shape))
    return at(network.fit(error, start, setting, _LEARNING_RATE), query)
