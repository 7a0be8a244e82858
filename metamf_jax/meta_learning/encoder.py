"""The encoder: from the observed cells of a matrix to a prior over its factors.

A stack of exchangeable matrix layers, then means over each row's and column's observed cells, then
two feed-forward heads to the prior means (Iwata 2021, arXiv 2106.15133; layers after Hartford et
al. 2018). The body of the former paper is not public to us: sizes and the precision are our
definition.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp

from metamf_jax import cells
from metamf_jax.meta_learning.exchangeable import (
    Counts,
    ExchangeableLayer,
    means_from_sums,
)
from metamf_jax.types import Entries, FactorPrior

Params: TypeAlias = Any


class Encoder(NamedTuple):
    """A pair of pure functions.

    Attributes:
      init: ``init(key) -> params``.
      apply: ``apply(params, observations) -> FactorPrior`` for one matrix, dense or an entry list.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, cells.Observations], FactorPrior]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder.

    Attributes:
      channels: C, channels of every layer.
      layers: L, number of exchangeable layers.
      rank: K, length of a factor.
      precision: ``scalar``, one learned precision for all rows and columns; ``per_row``, a head
        gives each row and each column its own.
    """

    channels: int = 32
    layers: int = 3
    rank: int = 32
    precision: Literal["scalar", "per_row"] = "scalar"

    def __post_init__(self):
        for name in ("channels", "layers", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in ("scalar", "per_row"):
            raise ValueError(f"precision must be scalar or per_row, got {self.precision!r}")


class _Head(nn.Module):
    hidden: int
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(nn.relu(nn.Dense(self.hidden)(x)))


class _EncoderModule(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(self, observations: cells.Observations) -> FactorPrior:
        config = self.config
        counts = Counts(*cells.counts(observations))
        values = cells.observed_values(observations)[..., None]
        means = means_from_sums(*cells.pool(observations, values), counts)
        for _ in range(config.layers):
            layer = ExchangeableLayer(config.channels)
            values, means = layer(observations, values, means, counts)
        rows, columns, _ = means
        u_mean = _Head(config.channels, config.rank, name="u_mean")(rows)
        v_mean = _Head(config.channels, config.rank, name="v_mean")(columns)
        log_precision = self.param("log_precision", nn.initializers.zeros, ())
        log_u = jnp.broadcast_to(log_precision, rows.shape[:1])
        log_v = jnp.broadcast_to(log_precision, columns.shape[:1])
        if config.precision == "per_row":
            log_u += _Head(config.channels, 1, name="u_log_precision")(rows)[:, 0]
            log_v += _Head(config.channels, 1, name="v_log_precision")(columns)[:, 0]
        return FactorPrior(u_mean, v_mean, jnp.exp(log_u), jnp.exp(log_v))


def make_encoder(config: EncoderConfig) -> Encoder:
    """Builds the encoder's ``init`` and ``apply``."""
    module = _EncoderModule(config)

    def init(key: jax.Array) -> Params:
        index = jnp.zeros((1,), jnp.int32)
        return module.init(key, Entries(index, index, jnp.zeros((1,)), (1, 1)))

    return Encoder(init, module.apply)
