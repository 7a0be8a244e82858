"""Alternating least squares: the exact best U given V, then the exact best V given U.

With V fixed every row is a ridge regression of its own,

    (sum_m v_m v_m^T + w_n I) u_n = sum_m x_nm v_m + w_n u0_n,      m over the row's points,

where ``w_n`` is the row's penalty: ``lam``, ``lam N_n`` under `weighted_l2`, the prior's own
precision under `prior`. Under `squared_all` the first sum runs over all columns. Rows are put into
buckets of like counts, so that each bucket is one batch of Cholesky solves; or, optionally, a few
steps of conjugate gradients from the current factors, which need no K x K matrix.

Where the penalty is zero the solution may not be unique: the one near the current factors is taken,
by a ridge around them of the size of float32's rounding, so that the objective never rises.

Zhou, Wilkinson, Schreiber, Pan: Large-scale parallel collaborative filtering for the Netflix prize,
AAIM 2008; conjugate gradients: Takacs, Pilaszy, Tikk, Applications of the conjugate gradient method
for implicit feedback collaborative filtering, RecSys 2011.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.objective import Objective, SideTerms
from metamf_jax.factorization.solver import Solver
from metamf_jax.ridge import ridge_solve
from metamf_jax.types import Array, Entries, FactorPrior, Factors

_FULL_FLOAT32 = jax.lax.Precision.HIGHEST

# Floats of gathered factors and normal equations that one batch of rows may take.
_BATCH_FLOATS = 1 << 22


class Bucket(NamedTuple):
    """Rows with about as many points each.

    Attributes:
      rows: [n] int32.
      columns: [n, L] int32, padded with M, one past the end.
      values: [n, L] float32, padded with zero.
    """

    rows: Array
    columns: Array
    values: Array


def make_buckets(
    rows: Array, columns: Array, values: Array, shape: tuple[int, int]
) -> list[Bucket]:
    """Sorts the rows that have points into buckets whose lengths ``L`` are powers of two.

    Args:
      rows: [E] int; pass the columns here, and the rows below, for the other side.
      columns: [E] int.
      values: [E] float32.
      shape: (N, M).

    Returns:
      At most ``2 + log2 M`` buckets, each at least half full, the first excepted.
    """
    rows, columns, values = (np.asarray(x) for x in (rows, columns, values))
    order = np.argsort(rows, kind="stable")
    columns, values = columns[order], values[order]
    counts = np.bincount(rows, minlength=shape[0])
    starts = np.concatenate([[0], np.cumsum(counts)])
    sizes = np.maximum(8, 2 ** np.ceil(np.log2(np.maximum(counts, 1))).astype(int))
    buckets = []
    for length in np.unique(sizes[counts > 0]):
        members = np.flatnonzero((sizes == length) & (counts > 0))
        at = starts[members][:, None] + np.arange(length)
        inside = np.arange(length) < counts[members][:, None]
        at = np.where(inside, at, 0)
        buckets.append(
            Bucket(
                members.astype(np.int32),
                np.where(inside, columns[at], shape[1]).astype(np.int32),
                np.where(inside, values[at], 0).astype(np.float32),
            )
        )
    return buckets


def _solve_row(conjugate_steps, gram_and_matvec, moment, current, weight, mean):
    """One row's ridge solve; `gram_and_matvec` gives G, or p -> G p where G is not formed."""
    if conjugate_steps:
        matvec = gram_and_matvec
        solution, _ = jax.scipy.sparse.linalg.cg(
            lambda p: matvec(p) + weight * p,
            moment + weight * mean,
            x0=current,
            tol=0.0,
            maxiter=conjugate_steps,
        )
        return solution
    gram = gram_and_matvec
    # Where there is no penalty: a ridge around the current factors, see the module's docstring.
    rounding = np.finfo(np.float32).eps * gram.shape[0] * jnp.trace(gram) + 1e-30
    return ridge_solve(
        gram,
        moment,
        jnp.where(weight > 0, weight, rounding),
        jnp.where(weight > 0, mean, current),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def half_step(
    objective: Objective,
    side: str,
    conjugate_steps: int,
    solved: Array,
    fixed: Array,
    buckets: list[Bucket],
    terms: SideTerms,
) -> Array:
    """The best factors of one side given the other's.

    Args:
      objective: `squared` or `squared_all`, any penalty.
      side: "u" or "v", the side to solve for.
      conjugate_steps: steps of conjugate gradients; 0 for Cholesky.
      solved: [N, K] current factors of that side.
      fixed: [M, K] factors of the other.
      buckets: from `make_buckets`, of the side to solve for.
      terms: of that side.

    Returns:
      [N, K].
    """
    rank = solved.shape[1]
    free = objectives.trainable(objective, rank)["uv".index(side)]
    # A frozen column of ones adds its partner to the fit: taken off the values, then no unknown.
    frozen = np.where(free, 0.0, 1.0).astype(np.float32)
    mean = jnp.broadcast_to(frozen[None, :], solved.shape) if terms.mean is None else terms.mean
    design = jnp.where(free[None, :], fixed, 0)
    offset = (fixed * frozen[None, :]).sum(axis=1)
    # Padding points read this row of zeros.
    design_padded = jnp.concatenate([design, jnp.zeros((1, rank), design.dtype)])
    offset_padded = jnp.append(offset, 0)

    def over_rows(row, length, *xs):
        floats = (length + 1) * rank + (0 if conjugate_steps else rank * rank)
        return jax.lax.map(
            lambda x: row(*x), xs, batch_size=max(1, min(len(xs[0]), _BATCH_FLOATS // floats))
        )

    if objective.loss == "squared_all":
        gram = jnp.matmul(design.T, design, precision=_FULL_FLOAT32)
        constant = jnp.matmul(design.T, offset, precision=_FULL_FLOAT32)
        moments = jnp.zeros_like(solved)
        for rows, columns, values in buckets:
            moments = moments.at[rows].set(
                over_rows(
                    lambda c, x: jnp.matmul(x, design_padded[c], precision=_FULL_FLOAT32),
                    columns.shape[1],
                    columns,
                    values,
                )
            )

        def solve(moment, current, weight, mean):
            def matvec(p):
                return jnp.matmul(gram, p, precision=_FULL_FLOAT32)

            return _solve_row(
                conjugate_steps,
                matvec if conjugate_steps else gram,
                moment - constant,
                current,
                weight,
                mean,
            )

        return over_rows(solve, 0, moments, solved, jnp.asarray(terms.weight), mean)

    def solve_from_points(columns, values, current, weight, mean):
        points = design_padded[columns]
        targets = values - offset_padded[columns]
        moment = jnp.matmul(targets, points, precision=_FULL_FLOAT32)
        if conjugate_steps:

            def matvec(p):
                fitted = jnp.matmul(points, p, precision=_FULL_FLOAT32)
                return jnp.matmul(fitted, points, precision=_FULL_FLOAT32)

            return _solve_row(conjugate_steps, matvec, moment, current, weight, mean)
        gram = jnp.matmul(points.T, points, precision=_FULL_FLOAT32)
        return _solve_row(0, gram, moment, current, weight, mean)

    # Rows without points stay at the prior mean.
    result = jnp.asarray(mean)
    for rows, columns, values in buckets:
        result = result.at[rows].set(
            over_rows(
                solve_from_points,
                columns.shape[1],
                columns,
                values,
                solved[rows],
                jnp.asarray(terms.weight)[rows],
                mean[rows],
            )
        )
    return result


def make_solver(
    objective: Objective,
    entries: Entries,
    prior: FactorPrior | None = None,
    conjugate_steps: int = 0,
) -> Solver:
    """ALS as a solver; it reads no step size.

    Args:
      objective: loss `squared` or `squared_all`, any penalty.
      entries: the points.
      prior: see `objective.make_terms`.
      conjugate_steps: steps of conjugate gradients a half-step; 0 for Cholesky.

    Raises:
      ValueError: another loss, or bad values.
    """
    objectives.check_solver(objective, "als")
    objectives.check_values(objective, entries)
    terms = objectives.make_terms(objective, entries, prior)
    by_row = make_buckets(entries.rows, entries.columns, entries.values, entries.shape)
    shape = entries.shape[1], entries.shape[0]
    by_column = make_buckets(entries.columns, entries.rows, entries.values, shape)
    by_row, by_column, device_entries, terms = jax.tree.map(
        jnp.asarray, (by_row, by_column, entries, terms)
    )

    def epoch(factors, epoch, step_size):
        del epoch, step_size
        u = half_step(objective, "u", conjugate_steps, factors.u, factors.v, by_row, terms.u)
        v = half_step(objective, "v", conjugate_steps, factors.v, u, by_column, terms.v)
        return jax.block_until_ready(Factors(u, v))

    return Solver(
        init=lambda factors: Factors(*map(jnp.asarray, factors)),
        epoch=epoch,
        objective=lambda factors: objectives.evaluate(objective, factors, device_entries, terms),
        factors=lambda factors: Factors(*map(np.asarray, factors)),
    )
