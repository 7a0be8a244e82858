"""Stochastic gradient descent, one entry at a time.

At an entry ``x`` in row n and column m, both factors move from their old values:

    u_n <- u_n - step * gradient_u,      v_m <- v_m - step * gradient_v

with the gradients of `objective.local_gradient`; for the squared loss and an l2 penalty,
``gradient_u = -(x - u_n . v_m) v_m + lam / N_n (u_n - u0_n)``. AdaGrad divides the step of a row
by ``sqrt(1 + sum of the mean squares of its gradients before this one)``.

Where the loss bounds the factors to be at least zero, as `gkl` does, a gradient is measured as
multiplicative updates measure it (`objective.scaled_gradient`): a step of one at all entries of a
row together would be such an update of the row. Plain gradients grow as ``1 / u . v``, and no one
step size serves both rows near zero and the others. What a step above one takes below zero is
projected back.

What a run needs of all cells (``V^T V`` or ``sum_m v_m``) is computed before it and held fixed.
Rows and columns without entries take the whole of it in one step at its start.

`run_in_order` is what the faster backends of `block_update` must equal.
"""

import dataclasses
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp

from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.objective import CellSums, Objective, SideTerms, Terms
from metamf_jax.types import Array, Factors

# Named after the flag.
POINT_ORDERS: Final = ("blocks", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SgdConfig:
    """What all that runs SGD over blocks of entries reads.

    Attributes:
      point_order: of the entries. `blocks` visits cache-sized sub-blocks in a fresh random order
        every epoch, and shuffles inside them every 8th, or every 64th where a block has many;
        `full` puts all entries of a block into a fresh random order every epoch, which takes longer
        than the updates.
      backend: one of `block_update.BACKENDS`. `mosaic_gpu` cuts blocks into sub-blocks for strata
        of their own, whatever the order; those of a block store it visits one after the other.
      per_row: whether AdaGrad scales the steps, see `step_size.StepSize.per_row`.
      seed: of the permutation, the strata and the order of entries.
    """

    point_order: str = "blocks"
    backend: str = "auto"
    per_row: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.point_order not in POINT_ORDERS:
            raise ValueError(
                f"expected a point order among {', '.join(POINT_ORDERS)}, got {self.point_order!r}"
            )


class Squares(NamedTuple):
    """AdaGrad's memory: one plus the sum of mean squared gradients.

    Attributes:
      u: [N], starts at one.
      v: [M], starts at one.
    """

    u: Array
    v: Array


def project(objective: Objective, factor: Array) -> Array:
    """The nearest factor that the loss allows."""
    return jnp.maximum(factor, 0) if objective.record.non_negative else factor


def entry_step(
    objective: Objective,
    per_row: bool,
    step_size: Array,
    value: Array,
    factors: Factors,
    squares: Squares,
    terms: Terms,
    sums: tuple[CellSums, CellSums],
) -> tuple[Factors, Squares]:
    """One step of SGD at one entry.

    Args:
      objective: the objective.
      per_row: whether AdaGrad scales the step; if not, `squares` come back as they were.
      step_size: scalar.
      value: scalar ``x_nm``.
      factors: ``u_n`` [K] and ``v_m`` [K].
      squares: of row n and column m, scalars.
      terms: of row n and column m.
      sums: `objective.cell_sums` of U and of V.

    Returns:
      The new factors and squares.
    """
    gradients = tuple(
        objectives.scaled_gradient(objective, gradient, factor, side, opposite)
        for gradient, factor, side, opposite in zip(
            objectives.local_gradient(objective, value, *factors, terms, sums),
            factors,
            terms,
            sums[::-1],
            strict=True,
        )
    )
    rates = [step_size, step_size]
    if per_row:
        rates = [step_size / jnp.sqrt(s) for s in squares]
        squares = Squares(*(s + (g * g).mean() for s, g in zip(squares, gradients, strict=True)))
    moved = (f - r * g for f, r, g in zip(factors, rates, gradients, strict=True))
    return Factors(*(project(objective, f) for f in moved)), squares


def step_without_entries(
    objective: Objective,
    step_size: Array,
    factors: Array,
    terms: SideTerms,
    opposite: CellSums,
    trainable: Array,
) -> Array:
    """Moves the rows without entries down the all-cell term and the penalty.

    The step is cut to what is stable there, one over the trace of the curvature.

    Args:
      objective: the objective; where its loss has no all-cell term, nothing moves.
      step_size: scalar.
      factors: [N, K].
      terms: of these rows.
      opposite: `objective.cell_sums` of the other side.
      trainable: bool [K], the columns that may move.

    Returns:
      [N, K].
    """
    if opposite is None:
        return factors

    def step(factor, row):
        gradient = objectives.side_gradient(objective, factor, row, opposite)
        gradient = objectives.scaled_gradient(objective, gradient, factor, row, opposite)
        curvature = 1 if objective.record.non_negative else row.weight + jnp.trace(opposite)
        rate = jnp.minimum(step_size, 1 / jnp.maximum(curvature, 1e-30))
        moved = project(objective, factor - rate * gradient)
        return jnp.where((row.count == 0) & trainable, moved, factor)

    return jax.vmap(step)(factors, terms)


def take(tree: Any, index: Array) -> Any:
    """Place `index` of every array's leading axis."""
    return jax.tree.map(lambda x: x[index], tree)


def run_in_order(
    objective: Objective,
    per_row: bool,
    step_size: Array,
    factors: Factors,
    squares: Squares,
    entries: tuple[Array, Array, Array],
    terms: Terms,
    sums: tuple[CellSums, CellSums],
    first: Array | int = 0,
    last: Array | int | None = None,
) -> tuple[Factors, Squares]:
    """Runs SGD once over the entries, in the order given.

    Args:
      objective: the objective.
      per_row: whether AdaGrad scales the steps.
      step_size: scalar.
      factors: ``u`` [N, K] and ``v`` [M, K].
      squares: of all rows and columns.
      entries: rows [E], columns [E] and values [E], in the order to visit.
      terms: from `objective.make_terms`.
      sums: `objective.cell_sums` of U and of V, held fixed.
      first: number of the first entry to visit.
      last: number of the entry to stop before; None for E.

    Returns:
      The new factors and squares.
    """
    factors, squares, terms, entries = jax.tree.map(jnp.asarray, (factors, squares, terms, entries))
    rows, columns, values = entries

    def visit(t, carry):
        n, m = rows[t], columns[t]

        def at(pair):
            return type(pair)(take(pair[0], n), take(pair[1], m))

        def put(pair, new):
            return type(pair)(pair[0].at[n].set(new[0]), pair[1].at[m].set(new[1]))

        factors, squares = carry
        new_factors, new_squares = entry_step(
            objective,
            per_row,
            step_size,
            values[t],
            at(factors),
            at(squares),
            at(terms),
            sums,
        )
        return put(factors, new_factors), put(squares, new_squares)

    last = len(values) if last is None else last
    return jax.lax.fori_loop(first, last, visit, (factors, squares))
