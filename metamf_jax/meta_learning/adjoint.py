"""How gradients are taken through the steps of MAP estimation, or around them.

* ``unroll``: backwards through every step, each one's intermediate values kept.
* ``checkpoint``: the same, with each step computed again from the factors before it.
* ``implicit``: the MAP optimum, differentiated by the implicit function theorem.

At the optimum ``F = (U, V)`` of the energy the direction ``d(F, theta) = -dE/dF`` vanishes, hence

    dF/dtheta = H^{-1} dd/dtheta,    H = d^2 E / dF^2,

and the backward pass needs one linear solve with ``H`` and no memory of the steps that led there.
``H`` is applied through the transposed derivative of ``d`` (it is symmetric) and the system solved
by conjugate gradients. The energy is not convex in ``U`` and ``V`` together, so ``H`` may have a
direction of negative curvature where the solver stopped short of a minimum. When conjugate
gradients meet one, ``mu I`` is added to ``H``, ``mu`` starting at the smallest prior precision and
growing fourfold until none is met, and the gradient is that of the damped system.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from metamf_jax import sums
from metamf_jax.meta_learning.energy import descent_direction, ridge_step
from metamf_jax.types import Entries, FactorPrior, Factors

_MAX_SWEEPS = 1000
_TOLERANCE = 1e-6
_MAX_DAMPINGS = 12


def remembered(step: Callable[[Factors], Factors], memory: str) -> Callable[[Factors], Factors]:
    """The same step, with what ``unroll`` or ``checkpoint`` keeps of it for the backward pass.

    Raises:
      ValueError: another policy; ``implicit`` does not look at steps.
    """
    if memory == "unroll":
        return step
    if memory == "checkpoint":
        return jax.checkpoint(step)
    raise ValueError(f"steps are remembered by 'unroll' or 'checkpoint', got {memory!r}")


def optimum(observations: sums.Observations, prior: FactorPrior) -> Factors:
    """Factors at the energy's optimum, reached from the prior means by exact ridge sweeps.

    Sweeps stop when no factor moves by more than 1e-6 of the largest, or after 1000.

    Args:
      observations: the observed entries of one matrix.
      prior: the prior over its factors.

    Returns:
      The factors, differentiable in ``prior`` and in the observed values.
    """
    return _solved(_with_values(observations, sums.observed_values(observations)), prior)


def _with_values(observations: sums.Observations, values) -> sums.Observations:
    if isinstance(observations, Entries):
        return dataclasses.replace(observations, values=values)
    return observations._replace(values=values)


# Everything that may be a tracer is an argument: what a rule closes over does not survive
# ``jax.grad`` of ``jax.vmap``.
@jax.custom_vjp
def _solved(observations, prior):
    return _sweep_to_optimum(observations, prior)


def _forward(observations, prior):
    factors = _sweep_to_optimum(observations, prior)
    return factors, (observations, prior, factors)


def _backward(saved, cotangent):
    observations, prior, factors = saved

    def direction(values, factors, prior):
        seen = _with_values(observations, values)
        return descent_direction(seen, factors, prior)

    _, transposed = jax.vjp(lambda f: direction(observations.values, f, prior), factors)
    weights = _solve_hessian(
        lambda w: jax.tree.map(jnp.negative, transposed(w)[0]),
        cotangent,
        jnp.minimum(prior.u_precision.min(), prior.v_precision.min()),
    )
    _, pull_back = jax.vjp(lambda x, p: direction(x, factors, p), observations.values, prior)
    values_cotangent, prior_cotangent = pull_back(weights)
    # Indices and masks have no cotangent.
    nothing = jax.tree.map(lambda _: None, observations)
    return _with_values(nothing, values_cotangent), prior_cotangent


_solved.defvjp(_forward, _backward)


def _sweep_to_optimum(observations, prior):
    def unfinished(carry):
        _, change, sweeps = carry
        return (change > _TOLERANCE) & (sweeps < _MAX_SWEEPS)

    def sweep(carry):
        factors, _, sweeps = carry
        new = ridge_step(observations, factors, prior)
        largest = jnp.maximum(jnp.abs(new.u).max(), jnp.abs(new.v).max())
        change = jnp.maximum(jnp.abs(new.u - factors.u).max(), jnp.abs(new.v - factors.v).max())
        return new, change / largest, sweeps + 1

    factors = Factors(jnp.asarray(prior.u_mean), jnp.asarray(prior.v_mean))
    start = factors, jnp.array(jnp.inf, factors.u.dtype), jnp.int32(0)
    return jax.lax.while_loop(unfinished, sweep, start)[0]


def _dot(a, b):
    exact = jax.lax.Precision.HIGHEST
    return jnp.vdot(a.u, b.u, precision=exact) + jnp.vdot(a.v, b.v, precision=exact)


def _axpy(scale, x, y):
    return jax.tree.map(lambda a, b: scale * a + b, x, y)


def _conjugate_gradients(apply, target, damping):
    """Solves (H + damping I) w = target; the flag tells of a direction of negative curvature."""
    norm = _dot(target, target)
    size = target.u.size + target.v.size

    def unfinished(carry):
        _, _, _, squared, indefinite, iteration = carry
        return (squared > _TOLERANCE**2 * norm) & ~indefinite & (iteration < 2 * size)

    def iterate(carry):
        w, residual, direction, squared, _, iteration = carry
        product = _axpy(damping, direction, apply(direction))
        curvature = _dot(direction, product)
        indefinite = curvature <= 0
        length = jnp.where(indefinite, 0, squared / jnp.where(indefinite, 1, curvature))
        residual = _axpy(-length, product, residual)
        new_squared = _dot(residual, residual)
        direction_next = _axpy(new_squared / squared, direction, residual)
        w = _axpy(length, direction, w)
        return w, residual, direction_next, new_squared, indefinite, iteration + 1

    zeros = jax.tree.map(jnp.zeros_like, target)
    start = zeros, target, target, norm, jnp.bool_(False), jnp.int32(0)
    w, _, _, _, indefinite, _ = jax.lax.while_loop(unfinished, iterate, start)
    return w, indefinite


def _solve_hessian(apply, target, smallest_precision):
    def unfinished(carry):
        _, indefinite, _, attempts = carry
        return indefinite & (attempts < _MAX_DAMPINGS)

    def attempt(carry):
        _, _, damping, attempts = carry
        w, indefinite = _conjugate_gradients(apply, target, damping)
        return w, indefinite, jnp.maximum(4 * damping, smallest_precision), attempts + 1

    start = target, jnp.bool_(True), jnp.zeros_like(smallest_precision), jnp.int32(0)
    return jax.lax.while_loop(unfinished, attempt, start)[0]
