"""One matrix in standardised units under a learned prior, in closed form.

The encoder gives a bias model and a prior over the factors of its residuals; MAP steps from the
prior means adapt both factors, and the row factors are then solved for exactly. A row's factor is
thereby a function of its own cells and of what the columns keep (`Columns`), which is how further
rows are folded in. Pure functions of one matrix; ``jax.vmap`` makes batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metamf_jax import bias_model, cells, ridge
from metamf_jax.bias_model import Effects
from metamf_jax.meta_learning.encoder import Context, make_encoder
from metamf_jax.meta_learning.map_estimation import map_estimate
from metamf_jax.meta_learning.meta_loss import MetaParams, ModelConfig
from metamf_jax.types import Array, FactorPrior, Factors


class Adapted(NamedTuple):
    """A matrix under the learned prior.

    Attributes:
      effects: the bias model: ``mean``, ``rows`` [N], ``columns`` [M].
      factors: of its residuals.
      prior: over these.
      context: what the prior of a further row depends on.
    """

    effects: Effects
    factors: Factors
    prior: FactorPrior
    context: Context


def adapt(config: ModelConfig, params: MetaParams, observations: cells.Observations) -> Adapted:
    """Fits a matrix.

    Args:
      config: of the learned model; its encoder has effects.
      params: what was learned.
      observations: the observed cells, standardised.
    """
    prior, effects, context = make_encoder(config.encoder).encode(params.encoder, observations)
    assert effects is not None
    residuals = bias_model.residuals(observations, effects)
    v = map_estimate(residuals, prior, jnp.exp(params.log_step_size), config.inner).v
    u = _solve_rows(residuals, v, prior)
    return Adapted(effects, Factors(u, v), prior, context)


def fold_in(
    config: ModelConfig,
    params: MetaParams,
    observations: cells.Observations,
    context: Context,
    v: Array,
) -> tuple[Effects, jax.Array, FactorPrior]:
    """Effects, factors [N, K] and prior of further rows over the columns of a fitted matrix.

    For the rows of that matrix these are the fitted ones, to rounding.

    Args:
      config, params: as for `adapt`.
      observations: the observed cells of the further rows.
      context: from `adapt`.
      v: [M, K], the fitted column factors.
    """
    encode = make_encoder(config.encoder).encode
    prior, effects, _ = encode(params.encoder, observations, context)
    assert effects is not None
    residuals = bias_model.residuals(observations, effects)
    return effects, _solve_rows(residuals, v, prior), prior


def _solve_rows(residuals: cells.Observations, v: Array, prior: FactorPrior) -> jax.Array:
    """The row factors [N, K] of least energy given the column factors."""
    gram, moment = cells.row_normal_equations(residuals, v)
    identity = jnp.broadcast_to(jnp.eye(v.shape[1], dtype=gram.dtype), gram.shape)
    inverse = ridge.inverse(gram + prior.u_precision[:, None, None] * identity)
    exact = jax.lax.Precision.HIGHEST
    left = moment - jnp.einsum("nkl,nl->nk", gram, prior.u_mean, precision=exact)
    return jnp.asarray(prior.u_mean) + jnp.einsum("nkl,nl->nk", inverse, left, precision=exact)
