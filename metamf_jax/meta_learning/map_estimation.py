"""MAP estimation of one matrix's factors by unrolled, closed-form, differentiable steps.

From the prior means, ``U = U0, V = V0``, T steps down the energy
(`metamf_jax.meta_learning.energy`; Iwata 2021, arXiv 2106.15133), with ``E`` the residuals at the
observed entries:

    U <- U + eta (E V   - lam (U - U0))
    V <- V + eta (E^T U - lam (V - V0))        both from the same old U, V

The forms ``plain``, ``scaled`` and ``curvature`` differ in each row's step size
(`energy.step_sizes`). The form ``ridge`` solves exactly for ``U`` given ``V``, then for ``V``
given ``U``. How gradients are taken through the steps, or around them, is `adjoint`'s.

Everything here is for one matrix, dense or an entry list; ``jax.vmap`` makes batches.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from metamf_jax import sums
from metamf_jax.meta_learning import adjoint
from metamf_jax.meta_learning.energy import descent_direction, ridge_step, step_sizes
from metamf_jax.types import Array, Entries, FactorPrior, Factors

# A start for eta. Both sides move at once, so a whole Newton step (1) overshoots.
_START = {"plain": 0.01, "scaled": 0.5, "curvature": 0.25, "ridge": 1.0}

_STEPS = 10


@dataclasses.dataclass(frozen=True)
class MapConfig:
    """How the factors are found.

    Attributes:
      steps: T, number of steps; to be left out where ``memory`` is ``implicit``, which takes as
        many as its tolerance needs.
      step_form: ``plain``, ``scaled``, ``curvature`` or ``ridge``; ``implicit`` always solves by
        ``ridge`` steps.
      memory: what is kept for the backward pass. ``unroll`` keeps every step; ``checkpoint``
        recomputes each step (same gradients, less memory); ``implicit`` solves to a tolerance and
        differentiates the optimum, with memory independent of the number of steps
        (`metamf_jax.meta_learning.adjoint`).
      pull: whether the precisions pull towards the prior means. If not, those are but the start of
        the descent, and the precisions damp the step sizes alone.
    """

    steps: int = _STEPS
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
        if self.memory == "implicit" and self.steps != _STEPS:
            raise ValueError(
                f"memory 'implicit' solves to a tolerance, to which steps do not apply, but got"
                f" {self.steps}; leave steps out (the default, {_STEPS}, is not read)"
            )
        if not self.pull and (self.step_form == "ridge" or self.memory == "implicit"):
            raise ValueError("without the pull of the prior an exact solve has no single answer")


def init_step_size(config: MapConfig) -> float:
    """The value that eta starts meta-training with."""
    return _START[config.step_form]


def map_estimate(
    observations: sums.Observations, prior: FactorPrior, step_size: Array, config: MapConfig
) -> Factors:
    """Runs T steps from the prior means.

    Args:
      observations: the observed entries of one matrix.
      prior: the prior over its factors.
      step_size: eta, a positive scalar; the ``ridge`` form does not use it.
      config: number of steps, their form and the memory policy.

    Returns:
      The factors, differentiable in ``prior``, in the observed values, and (but for ``ridge`` and
      ``implicit``) in ``step_size``.
    """
    if config.memory == "implicit":
        return adjoint.optimum(observations, prior)
    if config.step_form == "ridge":
        step = functools.partial(ridge_step, observations, prior=prior)
        return run_steps(step, prior, config.steps, config.memory)
    sizes = step_sizes(observations, prior, step_size, config.step_form)
    if not config.pull:
        none = jnp.zeros_like
        prior = prior._replace(
            u_precision=none(prior.u_precision), v_precision=none(prior.v_precision)
        )
    if config.memory == "unroll" and isinstance(observations, Entries):
        return fused_descent(observations, prior, sizes, config.steps)
    return descent(observations, prior, sizes, config.steps, config.memory)


def gradient_step(
    observations: sums.Observations,
    prior: FactorPrior,
    sizes: tuple[Array, Array],
    factors: Factors,
) -> Factors:
    """The step above: both factors down the energy, from their old values.

    Args:
      observations: the observed entries.
      prior: the prior over the factors.
      sizes: step sizes of the rows [N] and of the columns [M].
      factors: the old ones.
    """
    direction = descent_direction(observations, factors, prior)
    u_sizes, v_sizes = sizes
    return Factors(
        factors.u + u_sizes[:, None] * direction.u,
        factors.v + v_sizes[:, None] * direction.v,
    )


def run_steps(
    step: Callable[[Factors], Factors], prior: FactorPrior, num_steps: int, memory: str = "unroll"
) -> Factors:
    """``step`` applied T times, from the prior means."""
    step = adjoint.remembered(step, memory)
    start = Factors(jnp.asarray(prior.u_mean), jnp.asarray(prior.v_mean))
    return jax.lax.scan(lambda factors, _: (step(factors), None), start, length=num_steps)[0]


def descent(
    observations: sums.Observations,
    prior: FactorPrior,
    sizes: tuple[Array, Array],
    num_steps: int,
    memory: str = "unroll",
) -> Factors:
    """T gradient steps from the prior means. Arguments as above."""
    step = functools.partial(gradient_step, observations, prior, sizes)
    return run_steps(step, prior, num_steps, memory)


def fused_descent(
    observations: Entries, prior: FactorPrior, sizes: tuple[Array, Array], num_steps: int
) -> Factors:
    """`descent` on a list of entries, as one compiled kernel where kernels run.

    The kernel keeps every step's factors for its adjoint, which is written out by hand. Elsewhere
    (another platform than the CPU, float64, or Numba not installed) it is `descent` itself.
    """
    return sums.descend(observations, prior, *sizes, num_steps, by_steps=descent)
