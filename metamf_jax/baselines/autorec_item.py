"""Item AutoRec (Sedhain, Menon, Sanner and Xie, WWW 2015), trained on each matrix alone.

A column's observed values ``r`` (zero elsewhere) pass one hidden layer and come back,
``h(r) = W sigmoid(V r + mu) + b``, trained on ``sum observed (r - h(r))^2 + lam |params|^2``. The
paper penalises ``W`` and ``V`` alone; on matrices of a few dozen entries the biases need it, too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metamf_jax.baselines import network
from metamf_jax.baselines.dense import at_cells, to_dense
from metamf_jax.baselines.method import Setting
from metamf_jax.types import Array, Entries, PaddedMatrices

_HIDDEN = 16
_LEARNING_RATE = 0.03

GRID = network.grid((1.0, 3.0, 10.0, 30.0))


class Autoencoder(NamedTuple):
    """``V`` [N, H], ``mu`` [H], ``W`` [H, N], ``b`` [N]."""

    encode: Array
    hidden_bias: Array
    decode: Array
    bias: Array


def init(key: jax.Array, size: int, hidden: int) -> Autoencoder:
    """Random weights for vectors of ``size``; biases of zero."""
    keys = jax.random.split(key)
    scale = size**-0.5
    return Autoencoder(
        scale * jax.random.normal(keys[0], (size, hidden)),
        jnp.zeros(hidden),
        hidden**-0.5 * jax.random.normal(keys[1], (hidden, size)),
        jnp.zeros(size),
    )


def reconstruct(params: Autoencoder, values: Array) -> jax.Array:
    """``h`` of every row of ``values`` [M, N]; [M, N]."""
    hidden = jax.nn.sigmoid(values @ params.encode + params.hidden_bias[None, :])
    return hidden @ params.decode + params.bias[None, :]


def error(params: Autoencoder, matrix: PaddedMatrices) -> jax.Array:
    """Squared error over the observed entries of a matrix [M, N] of vectors to reconstruct."""
    residuals = matrix.values - reconstruct(params, matrix.values)
    return (jnp.where(matrix.observed, residuals, 0) ** 2).sum()


def predict(support: Entries, query: Entries, setting: Setting) -> jax.Array:
    """Predicts the query entries [Q] of one matrix from its support."""
    values, observed = to_dense(support)
    matrix = PaddedMatrices(values.T, observed.T)

    start = init(jax.random.key(0), support.shape[0], _HIDDEN)
    fitted = network.fit(lambda params: error(params, matrix), start, setting, _LEARNING_RATE)
    return at_cells(reconstruct(fitted, matrix.values).T, query)
