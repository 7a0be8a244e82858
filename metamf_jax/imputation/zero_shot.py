"""One matrix in standardised units under a learned prior, in closed form.

The encoder gives a bias model and a prior over the factors of its residuals, or over those of the
values themselves, beside which a bias model of usual shrinkage then stands; MAP steps from the
prior means adapt both factors, and the row factors are then solved for exactly. A row's factor is
thereby a function of its own cells and of what the columns keep, which is how further rows are
folded in.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from metamf_jax import bias_model, sums
from metamf_jax.bias_model import Effects, Shrinkage
from metamf_jax.imputation import row_solver
from metamf_jax.imputation.row_solver import Problem, Rows
from metamf_jax.meta_learning.encoder import Context, make_encoder
from metamf_jax.meta_learning.map_estimation import map_estimate
from metamf_jax.meta_learning.meta_loss import MetaParams, ModelConfig
from metamf_jax.types import Array, FactorPrior, Factors

# A prior of this precision leaves a factor where it is.
_CERTAIN = 1e12
# Of an encoder without a bias model: near what validation chooses on rating data.
_SHRINKAGE, _SWEEPS = (3.0, 4.0, 3.0), 4


class Encoded(NamedTuple):
    """What the encoder says of a matrix.

    Attributes:
      effects: the bias model: ``mean``, ``rows`` [N], ``columns`` [M].
      prior: over the factors, see `_base_of`.
      context: what the prior of a further row depends on, with the effects in any case.
      v: [M, K], the column factors after MAP steps through XLA; empty where these steps are ridge
        solves, which `adapt` does.
    """

    effects: Effects
    prior: FactorPrior
    context: Context
    v: Array


class Adapted(NamedTuple):
    """A matrix under the learned prior; NumPy arrays.

    Attributes:
      effects: see `Encoded`.
      base: what the factors come on top of: the effects, or zeros.
      factors: of the residuals of ``base``.
      context: see `Encoded`.
      noise: mean square of what the effects and factors leave over.
    """

    effects: Effects
    base: Effects
    factors: Factors
    context: Context
    noise: float


def encode(config: ModelConfig, params: MetaParams, observations: sums.Observations) -> Encoded:
    """Runs the learned network on a matrix; pure. ``jax.vmap`` makes batches.

    Args:
      config: of the learned model.
      params: what was learned.
      observations: the observed cells, standardised.
    """
    prior, effects, context = make_encoder(config.encoder).encode(params.encoder, observations)
    if effects is None:
        effects = bias_model.fit_effects(observations, _shrinkage(observations), _SWEEPS)
        context = context._replace(effects=effects)
    if _by_ridge(config):
        return Encoded(effects, prior, context, jnp.zeros((0, config.encoder.rank)))
    residuals = bias_model.residuals(observations, _base_of(config, effects))
    v = map_estimate(residuals, prior, jnp.exp(params.log_step_size), config.inner).v
    return Encoded(effects, prior, context, v)


def _shrinkage(observations: sums.Observations) -> Shrinkage:
    return Shrinkage(*jnp.asarray(_SHRINKAGE, sums.observed_values(observations).dtype))


def _base_of(config: ModelConfig, effects: Effects) -> Effects:
    """What the learned factors come on top of: the effects, or zeros."""
    return effects if config.encoder.effects else Effects(*(0 * part for part in effects))


def _by_ridge(config: ModelConfig) -> bool:
    return config.inner.step_form == "ridge" and config.inner.memory != "implicit"


def adapt(config: ModelConfig, encoded: Encoded, rows: Rows, columns: Rows) -> Adapted:
    """Fits the factors of a matrix.

    Args:
      config: of the learned model.
      encoded: what the encoder said of the matrix.
      rows: the matrix, standardised.
      columns: its transpose.
    """
    prior, base = encoded.prior, _base_of(config, encoded.effects)
    row_base, ones = base.mean + base.rows, np.ones(config.encoder.rank, np.float32)
    if _by_ridge(config):
        v = prior.v_mean
        of_columns = FactorPrior(prior.v_mean, prior.u_mean, prior.v_precision, prior.u_precision)
        for _ in range(config.inner.steps):
            u = rows.solve(_problem(v, base.columns, row_base, prior, ones)).mean
            v = columns.solve(_problem(u, row_base, base.columns, of_columns, ones)).mean
    else:
        v = encoded.v
    problem = _problem(v, base.columns, row_base, prior, ones)
    u = rows.solve(problem).mean
    # Solved once more as if the factors were certain: their variances, in units of a noise of one,
    # are many times what is left over.
    certain = problem._replace(mean=u, strength=np.full_like(prior.u_precision, _CERTAIN))
    left_over = rows.solve(certain).square.sum(dtype=np.float64)
    noise = float(left_over) / max(int(rows.counts.sum()), 1)
    return Adapted(encoded.effects, base, Factors(u, v), encoded.context, noise)


def fold_in(
    config: ModelConfig,
    params: MetaParams,
    observations: sums.Observations,
    context: Context,
    v: Array,
) -> tuple[Effects, Array, FactorPrior]:
    """Effects, factors [N, K] and prior of further rows over the columns of a fitted matrix.

    For the rows of that matrix these are the fitted ones, to rounding. Pure.

    Args:
      config, params: as for `encode`.
      observations: the observed cells of the further rows.
      context: from `encode`.
      v: [M, K], the fitted column factors.
    """
    encode = make_encoder(config.encoder).encode
    prior, effects, _ = encode(params.encoder, observations, context)
    if effects is None:
        assert context.effects is not None
        effects = bias_model.fold_in_rows(observations, context.effects, _shrinkage(observations))
    base = _base_of(config, effects)
    ones = jnp.ones(v.shape[1], v.dtype)
    problem = _problem(v, base.columns, base.mean + base.rows, prior, ones)
    return effects, row_solver.solve(observations, problem).mean, prior


def _problem(v: Any, offset: Any, base: Any, prior: FactorPrior, ones: Any) -> Problem:
    """The rows' factors given ``v`` under a prior of scalar precisions; NumPy or JAX arrays."""
    nothing = 0 * v
    return Problem(
        design=v,
        spread=nothing,
        offset=offset,
        offset_spread=nothing[:, 0],
        weight=1 + nothing[:, 0],
        base=base,
        noise=0 * base + 1,
        mean=prior.u_mean,
        precision=ones,
        strength=prior.u_precision,
    )
