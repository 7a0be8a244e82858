"""MAP estimation of one matrix's factors by unrolled, closed-form, differentiable steps.

The energy is

    1/2 sum observed (x - u.v)^2 + 1/2 sum_n lam_n |u_n - u0_n|^2 + 1/2 sum_m lam_m |v_m - v0_m|^2

with the prior means ``u0, v0`` and precisions ``lam``. Steps start from the prior means (Iwata
2021, arXiv 2106.15133). Forms of a step:

* ``plain``: gradient descent, ``U += eta (E V - lam (U - U0))``, ``V`` alike from the same old
  factors. A row's curvature grows with its number of ratings, so on large matrices it diverges.
* ``scaled``: the same with row n's step divided by ``N_n + lam_n``, columns alike.
* ``curvature``: the same with row n's step divided by ``lam_n + sum observed |v0_m|^2``, a bound of
  its curvature at the start, whatever the length of the factors (our extension).
* ``ridge``: solves exactly for ``U`` given ``V``, then for ``V`` given ``U`` (`metamf_jax.ridge`).

Everything here is for one matrix, dense or an entry list; ``jax.vmap`` makes batches.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from metamf_jax import ridge, sums
from metamf_jax.types import Array, FactorPrior, Factors


@dataclasses.dataclass(frozen=True)
class MapConfig:
    """How the factors are found.

    Attributes:
      steps: T, number of steps.
      step_form: ``plain``, ``scaled``, ``curvature`` or ``ridge``.
      memory: what is kept for the backward pass. ``unroll`` keeps every step; ``checkpoint``
        recomputes each step (same gradients, less memory); ``implicit`` solves to a tolerance and
        differentiates the optimum, with memory independent of the number of steps
        (`metamf_jax.meta_learning.implicit_gradient`).
      pull: whether the precisions pull towards the prior means. If not, those are but the start of
        the descent, and the precisions damp the step sizes alone.
    """

    steps: int = 10
    step_form: Literal["plain", "scaled", "curvature", "ridge"] = "plain"
    memory: Literal["unroll", "checkpoint", "implicit"] = "unroll"
    pull: bool = True

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps must not be negative, got {self.steps}")
        if self.step_form not in _START:
            raise ValueError(f"step_form must be one of {list(_START)}, got {self.step_form!r}")
        if self.memory not in ("unroll", "checkpoint", "implicit"):
            raise ValueError(f"memory must be unroll, checkpoint or implicit, got {self.memory!r}")
        if not self.pull and (self.step_form == "ridge" or self.memory == "implicit"):
            raise ValueError("without the pull of the prior an exact solve has no single answer")


def energy(observations: sums.Observations, factors: Factors, prior: FactorPrior) -> jax.Array:
    """The energy above, a scalar: minus the log posterior up to a constant."""
    residuals = sums.residuals(observations, factors)
    return 0.5 * (
        (residuals**2).sum()
        + (prior.u_precision * ((factors.u - prior.u_mean) ** 2).sum(axis=-1)).sum()
        + (prior.v_precision * ((factors.v - prior.v_mean) ** 2).sum(axis=-1)).sum()
    )


def descent_direction(
    observations: sums.Observations, factors: Factors, prior: FactorPrior
) -> Factors:
    """Minus the gradient of the energy: ``E V - lam (U - U0)`` [N, K], and [M, K] alike."""
    ev, eu = sums.residual_products(observations, factors)
    return Factors(
        ev - prior.u_precision[:, None] * (factors.u - prior.u_mean),
        eu - prior.v_precision[:, None] * (factors.v - prior.v_mean),
    )


def step_sizes(
    observations: sums.Observations, prior: FactorPrior, step_size: Array, form: str
) -> tuple[jax.Array, jax.Array]:
    """Step sizes of every row [N] and column [M]: eta divided by what the form divides by."""
    if form == "plain":
        rows, columns = jnp.ones_like(prior.u_precision), jnp.ones_like(prior.v_precision)
    elif form == "scaled":
        rows, columns = sums.counts(observations)
        rows, columns = rows + prior.u_precision, columns + prior.v_precision
    else:
        u_squares = (prior.u_mean**2).sum(axis=1, keepdims=True)
        v_squares = (prior.v_mean**2).sum(axis=1, keepdims=True)
        both = sums.spread(observations, u_squares, v_squares)
        rows, columns = (pooled[:, 0] for pooled in sums.pool(observations, both))
        # Each pooled sum holds a row's own square once a cell, too.
        row_counts, column_counts = sums.counts(observations)
        rows = rows - row_counts * u_squares[:, 0] + prior.u_precision
        columns = columns - column_counts * v_squares[:, 0] + prior.v_precision
    return jnp.asarray(step_size / rows), jnp.asarray(step_size / columns)


def solve_rows(
    observations: sums.Observations, v: Array, precision: Array, mean: Array
) -> jax.Array:
    """The row factors [N, K] that minimise the energy for given column factors ``v`` [M, K].

    Args:
      observations: the observed cells.
      v: the column factors.
      precision: [N], of the rows' prior.
      mean: [N, K], its means.
    """
    gram, moment = sums.row_normal_equations(observations, v)
    return ridge.ridge_solve(gram, moment, precision, mean)


def ridge_step(observations: sums.Observations, factors: Factors, prior: FactorPrior) -> Factors:
    """Solves exactly for ``U`` given ``V``, then for ``V`` given the new ``U``."""
    u = solve_rows(observations, factors.v, prior.u_precision, prior.u_mean)
    gram, moment = sums.row_normal_equations(sums.transpose(observations), u)
    v = ridge.ridge_solve(gram, moment, prior.v_precision, prior.v_mean)
    return Factors(u, v)


def map_estimate(
    observations: sums.Observations, prior: FactorPrior, step_size: Array, config: MapConfig
) -> Factors:
    """Runs T steps from the prior means.

    Args:
      observations: the observed cells of one matrix.
      prior: the prior over its factors.
      step_size: eta, a positive scalar; the ``ridge`` form does not use it.
      config: number of steps, their form and the memory policy.

    Returns:
      The factors, differentiable in ``prior``, in the observed values, and (but for ``ridge`` and
      ``implicit``) in ``step_size``.
    """
    if config.memory == "implicit":
        # Imported here because the solver below is itself made of this module's steps.
        from metamf_jax.meta_learning.implicit_gradient import map_optimum

        return map_optimum(observations, prior)
    if config.step_form == "ridge":

        def step(factors, _):
            return ridge_step(observations, factors, prior), None

    else:
        u_sizes, v_sizes = step_sizes(observations, prior, step_size, config.step_form)
        if not config.pull:
            none = jnp.zeros_like
            prior = prior._replace(
                u_precision=none(prior.u_precision), v_precision=none(prior.v_precision)
            )
        if config.memory == "unroll":
            return sums.descend(observations, prior, u_sizes, v_sizes, config.steps)

        def step(factors, _):
            direction = descent_direction(observations, factors, prior)
            return Factors(
                factors.u + u_sizes[:, None] * direction.u,
                factors.v + v_sizes[:, None] * direction.v,
            ), None

    if config.memory == "checkpoint":
        step = jax.checkpoint(step)
    start = Factors(jnp.asarray(prior.u_mean), jnp.asarray(prior.v_mean))
    return jax.lax.scan(step, start, None, length=config.steps)[0]


# A start for eta. Both sides move at once, so a whole Newton step (1) overshoots.
_START = {"plain": 0.01, "scaled": 0.5, "curvature": 0.25, "ridge": 1.0}


def init_step_size(config: MapConfig) -> float:
    """The value that eta starts meta-training with."""
    return _START[config.step_form]
