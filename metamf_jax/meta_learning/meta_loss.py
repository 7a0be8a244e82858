"""The meta-loss: how well factors adapted to a matrix's support impute its query entries.

For one episode the encoder and the inner loop see the support; its loss is the mean squared error
of ``u_n . v_m`` over the query. The meta-loss is the mean over episodes. Each returns (its mean,
1), an episode without a query entry (0, 0), so that sums can travel over batches and devices before
dividing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from metamf_jax import bias_model, sums
from metamf_jax.meta_learning.encoder import Encoder, EncoderConfig, Params, make_encoder
from metamf_jax.meta_learning.map_estimation import MapConfig, init_step_size, map_estimate
from metamf_jax.types import Entries, Factors


class Episode(NamedTuple):
    """One matrix, its observed entries split at random; batched by a leading axis on every array.

    Attributes:
      support: what the encoder and the inner loop see, in either layout.
      query: the entries that are scored.
    """

    support: sums.Observations
    query: Entries


# ``(params, episode) -> (mean loss over the query, 1)`` or (0, 0) for an empty episode.
EpisodeLoss: TypeAlias = Callable[[Any, Episode], tuple[jax.Array, jax.Array]]


class MetaParams(NamedTuple):
    """Everything that meta-training learns.

    Attributes:
      encoder: the encoder's parameters, the prior precision among them.
      log_step_size: log eta of the inner loop, a scalar.
    """

    encoder: Params
    log_step_size: jax.Array


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The meta-learned factorization: an encoder and an inner loop."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    inner: MapConfig = dataclasses.field(default_factory=MapConfig)


class Model(NamedTuple):
    """Pure functions of a meta-learned matrix factorization, for one matrix each.

    Attributes:
      init: ``init(key) -> MetaParams``.
      adapt: ``adapt(params, observations) -> (factors, prior_means)``, both `Factors`: fitted to
        the observations, and what the prior alone says. Where the encoder fits a bias model first,
        its effects are two more columns of each, ``(.., mu + b_n, 1)`` and ``(.., 1, c_m)``.
    """

    init: Callable[[jax.Array], MetaParams]
    adapt: Callable[[MetaParams, sums.Observations], tuple[Factors, Factors]]


def make_model(config: ModelConfig) -> Model:
    """Builds the model's functions from its configuration."""
    encoder: Encoder = make_encoder(config.encoder)

    def init(key):
        return MetaParams(
            encoder=encoder.init(key),
            log_step_size=jnp.log(jnp.float32(init_step_size(config.inner))),
        )

    def adapt(params, observations):
        chex.assert_shape(params.log_step_size, ())
        prior = encoder.apply(params.encoder, observations)
        prior_means = Factors(prior.u_mean, prior.v_mean)
        step_size = jnp.exp(params.log_step_size)
        effects = encoder.effects(params.encoder, observations)
        if effects is None:
            return map_estimate(observations, prior, step_size, config.inner), prior_means
        residuals = bias_model.residuals(observations, effects)
        factors = map_estimate(residuals, prior, step_size, config.inner)
        return bias_model.append(factors, effects), bias_model.append(prior_means, effects)

    return Model(init, adapt)


def query_error(factors: Factors, query: Entries) -> tuple[jax.Array, jax.Array]:
    """Mean squared error over the query entries and 1, or (0, 0) where there is none."""
    count = (query.rows < query.shape[0]).sum()
    squares = (sums.residuals(query, factors) ** 2).sum()
    return squares / jnp.maximum(count, 1), (count > 0).astype(squares.dtype)


def episode_loss(model: Model, params: MetaParams, episode: Episode) -> tuple[jax.Array, jax.Array]:
    """(Mean squared error over the query, 1) of one episode."""
    factors, _ = model.adapt(params, episode.support)
    return query_error(factors, episode.query)


def meta_loss_terms(
    loss: EpisodeLoss, params: Any, episodes: Episode
) -> tuple[jax.Array, jax.Array]:
    """Sum of the episodes' losses and their number, for a batch [B, ...] of episodes."""
    losses, weights = jax.vmap(lambda episode: loss(params, episode))(episodes)
    chex.assert_shape([losses, weights], (len(episodes.query.rows),))
    return losses.sum(), weights.sum()
