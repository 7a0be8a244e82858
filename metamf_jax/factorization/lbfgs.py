"""L-BFGS on the whole objective: the batch method to compare with. An epoch is one iteration.

Liu, Nocedal: On the limited memory BFGS method for large scale optimization, Mathematical
Programming 1989; the implementation is optax's, with its zoom line search.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.losses import SMOOTH
from metamf_jax.factorization.objective import Objective, Terms
from metamf_jax.factorization.solver import Solver, one_by_one
from metamf_jax.types import Array, Entries, FactorPrior, Factors


class LbfgsState(NamedTuple):
    """Factors, and what optax remembers of the way to them."""

    factors: Factors
    memory: Any


class Problem(NamedTuple):
    """What is minimised, on the device."""

    entries: Entries
    terms: Terms


def half_objective(objective: Objective, problem: Problem, factors: Factors) -> Array:
    """Half the objective, with no gradient in frozen columns."""
    masks = objectives.trainable(objective, factors.u.shape[1])
    free = (
        jnp.where(mask[None, :], f, jax.lax.stop_gradient(f))
        for mask, f in zip(masks, factors, strict=True)
    )
    return 0.5 * objectives.objective_value(objective, Factors(*free), *problem)


def iterate(
    objective: Objective,
    optimizer: optax.GradientTransformationExtraArgs,
    problem: Problem,
    state: LbfgsState,
) -> LbfgsState:
    """One iteration: a direction from the remembered past, and a line search along it."""
    value_of = functools.partial(half_objective, objective, problem)
    value, gradient = optax.value_and_grad_from_state(value_of)(state.factors, state=state.memory)
    updates, memory = optimizer.update(
        gradient,
        state.memory,
        state.factors,
        value=value,
        grad=gradient,
        value_fn=value_of,
    )
    return LbfgsState(jax.tree.map(jnp.add, state.factors, updates), memory)


def init(optimizer: optax.GradientTransformationExtraArgs, factors: Factors) -> LbfgsState:
    """Without a past."""
    factors = Factors(*map(jnp.asarray, factors))
    # Strongly typed like what an iteration returns, or the second would compile anew.
    memory = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), optimizer.init(factors))
    return LbfgsState(factors, memory)


def make_solver(
    objective: Objective,
    entries: Entries,
    prior: FactorPrior | None = None,
    memory_size: int = 10,
) -> Solver:
    """L-BFGS as a solver; it reads no step size.

    Args:
      objective: a smooth loss without constraints: `squared`, `squared_all` or `logistic`.
      entries: of the matrix.
      prior: see `objective.make_terms`.
      memory_size: number of past steps that shape the next.

    Raises:
      ValueError: another loss, or bad values.
    """
    objectives.check_loss(objective, "lbfgs", SMOOTH)
    objectives.check_values(objective, entries)
    terms = objectives.make_terms(objective, entries, prior)
    problem = Problem(*jax.tree.map(jnp.asarray, (entries, terms)))
    optimizer = optax.lbfgs(memory_size=memory_size)
    # The entries are arguments: as constants they would be compiled into the program.
    program = jax.jit(functools.partial(iterate, objective, optimizer))

    def epoch(state, number, step_size):
        del number, step_size
        return jax.block_until_ready(program(problem, state))

    return Solver(
        init=functools.partial(init, optimizer),
        epochs=one_by_one(epoch),
        objective=lambda state: objectives.evaluate(objective, state.factors, *problem),
        factors=lambda state: Factors(*map(np.asarray, state.factors)),
    )
