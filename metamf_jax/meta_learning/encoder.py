"""The encoder: from the observed entries of a matrix to a prior over its factors.

A stack of exchangeable matrix layers, then means over each row's and column's observed entries,
then two feed-forward heads to the prior means (Iwata 2021, arXiv 2106.15133; layers after Hartford
et al. 2018). The body of the former paper is not public to us: sizes and the precision are our
definition.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax import sums
from metamf_jax.bias_model import Effects, Shrinkage, fit_effects, fold_in_rows
from metamf_jax.meta_learning.exchangeable import Counts, ExchangeableLayer, Means, means_from_sums
from metamf_jax.types import Entries, FactorPrior

Params: TypeAlias = Any


class Context(NamedTuple):
    """What a row's prior depends on besides the row's own entries.

    Attributes:
      counts: observed entries of each column [M], and of the matrix, a scalar.
      effects: the bias model, or None; its rows are not read.
      means: for the input and each layer, (column means [M, C], overall mean [C]).
    """

    counts: tuple[jax.Array, jax.Array]
    effects: Effects | None
    means: tuple[tuple[jax.Array, jax.Array], ...]


class Encoder(NamedTuple):
    """The encoder's pure functions.

    Attributes:
      init: ``init(key) -> params``.
      encode: ``encode(params, observations, context=None) -> (FactorPrior, Effects, Context)``: all
        of the below. With the context of another matrix over the same columns, the observations are
        rows folded in: each gets the prior that it would have had as a row of that matrix.
      apply: ``apply(params, observations) -> FactorPrior`` for one matrix, dense or an entry list.
      effects: ``effects(params, observations)``, the bias model whose residuals that prior is for,
        or None where it is for the values themselves.
    """

    init: Callable[[jax.Array], Params]
    encode: Callable[..., tuple[FactorPrior, Effects | None, Context]]
    apply: Callable[[Params, sums.Observations], FactorPrior]
    effects: Callable[[Params, sums.Observations], Effects | None]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder.

    Attributes:
      channels: C, channels of every layer.
      layers: L, number of exchangeable layers.
      rank: K, length of a factor.
      precision: ``scalar``, one learned precision for all rows and columns; ``per_row``, a head
        gives each row and each column its own.
      effects: our extension. A shrunken bias model of the observed entries is fitted first, its
        shrinkage learned with the rest. The prior is then one over the factors of its residuals;
        residuals, effects and the numbers of observations are inputs of the first layer and of the
        heads.
    """

    channels: int = 32
    layers: int = 3
    rank: int = 32
    precision: Literal["scalar", "per_row"] = "scalar"
    effects: bool = False

    def __post_init__(self):
        for name in ("channels", "layers", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.precision not in ("scalar", "per_row"):
            raise ValueError(f"precision must be scalar or per_row, got {self.precision!r}")


class _Head(nn.Module):
    hidden: int
    features: int
    scale: float

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.variance_scaling(self.scale, "fan_in", "normal")
        return nn.Dense(self.features, kernel_init=init)(nn.relu(nn.Dense(self.hidden)(x)))


class _EncoderModule(nn.Module):
    config: EncoderConfig

    @nn.compact
    def __call__(
        self, observations: sums.Observations, context: Context | None = None
    ) -> tuple[FactorPrior, Effects | None, Context]:
        config = self.config
        counts = Counts(*sums.counts(observations))
        total = counts.rows.sum()
        if context is not None:
            counts, total = Counts(counts.rows, context.counts[0]), context.counts[1]
        values = sums.observed_values(observations)[..., None]
        effects = None
        if config.effects:
            # A start near what validation chooses on rating data.
            start = np.log([3.0, 4.0, 3.0]).astype(np.float32)
            log_shrinkage = self.param("log_shrinkage", lambda key: jnp.asarray(start))
            effects = _effects(log_shrinkage, observations, context)
            values = _effect_inputs(observations, values, effects, counts)
        kept = []

        def in_context(means):
            if context is not None:
                means = Means(means.rows, *context.means[len(kept)])
            kept.append((means.columns, means.all))
            return means

        means = in_context(means_from_sums(*sums.pool(observations, values), counts))
        for _ in range(config.layers):
            layer = ExchangeableLayer(config.channels)
            values, means = layer(observations, values, means, counts)
            means = in_context(means)
        rows, columns, mean = means
        if effects is not None:
            rows = _head_inputs(rows, mean, effects.rows, counts.rows, total)
            columns = _head_inputs(columns, mean, effects.columns, counts.columns, total)

        def head(name, features, scale, inputs):
            return _Head(config.channels, features, scale, name=name)(inputs)

        # The products u0 . v0 start at about the scale of the standardised values, for any K:
        # larger factors make the first inner steps diverge.
        scale = config.rank**-0.5
        u_mean = head("u_mean", config.rank, scale, rows)
        v_mean = head("v_mean", config.rank, scale, columns)
        log_precision = self.param("log_precision", nn.initializers.zeros, ())
        log_u = jnp.broadcast_to(log_precision, rows.shape[:1])
        log_v = jnp.broadcast_to(log_precision, columns.shape[:1])
        if config.precision == "per_row":
            log_u += head("u_log_precision", 1, 0.01, rows)[:, 0]
            log_v += head("v_log_precision", 1, 0.01, columns)[:, 0]
        prior = FactorPrior(u_mean, v_mean, jnp.exp(log_u), jnp.exp(log_v))
        return prior, effects, Context((counts.columns, total), effects, tuple(kept))


def _effects(log_shrinkage, observations, context):
    shrinkage = Shrinkage(*jnp.exp(log_shrinkage))
    if context is not None:
        return fold_in_rows(observations, context.effects, shrinkage)
    return fit_effects(observations, shrinkage, sweeps=4)


def _effect_inputs(observations, values, effects, counts):
    """Residual, row and column effect, and log counts of each cell; [.., 5]."""
    rows = jnp.stack([effects.mean + effects.rows, _log_counts(counts.rows)], axis=1)
    columns = jnp.stack([effects.columns, _log_counts(counts.columns)], axis=1)
    of_rows = sums.spread(observations, rows, jnp.zeros_like(columns))
    of_columns = sums.spread(observations, jnp.zeros_like(rows), columns)
    residuals = values - of_rows[..., :1] - of_columns[..., :1]
    return jnp.concatenate([residuals, of_rows, of_columns], axis=-1)


def _head_inputs(means, overall_mean, effects, counts, total):
    everywhere = jnp.broadcast_to(
        jnp.append(overall_mean, _log_counts(total) / 3), (len(means), len(overall_mean) + 1)
    )
    own = jnp.stack([effects, _log_counts(counts)], axis=1)
    return jnp.concatenate([means, own, everywhere], axis=1)


def _log_counts(counts):
    return jnp.log1p(counts) - 1


def make_encoder(config: EncoderConfig) -> Encoder:
    """Builds the encoder's functions."""
    module = _EncoderModule(config)

    def init(key: jax.Array) -> Params:
        index = jnp.zeros((1,), jnp.int32)
        return module.init(key, Entries(index, index, jnp.zeros((1,)), (1, 1)))

    def encode(
        params: Params, observations: sums.Observations, context: Context | None = None
    ) -> tuple[FactorPrior, Effects | None, Context]:
        num_rows, num_columns = sums.matrix_shape(observations)
        sizes = chex.Dimensions(N=num_rows, M=num_columns, K=config.rank)
        if context is not None:
            chex.assert_shape(context.counts[0], sizes["M"])
        encoded: Any = module.apply(params, observations, context)
        prior, _, _ = encoded
        chex.assert_shape([prior.u_mean, prior.v_mean], [sizes["NK"], sizes["MK"]])
        chex.assert_shape([prior.u_precision, prior.v_precision], [sizes["N"], sizes["M"]])
        return encoded

    def apply(params: Params, observations: sums.Observations) -> FactorPrior:
        return encode(params, observations)[0]

    def effects(params: Params, observations: sums.Observations) -> Effects | None:
        if not config.effects:
            return None
        return _effects(params["params"]["log_shrinkage"], observations, None)

    return Encoder(init, encode, apply, effects)
