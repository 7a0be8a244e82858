"""Alternating least squares: the exact best U given V, then the exact best V given U.

With V fixed every row is a ridge regression of its own,

    (sum_m v_m v_m^T + w_n I) u_n = sum_m x_nm v_m + w_n u0_n,      m over the row's entries,

where ``w_n`` is the row's penalty: ``lam``, ``lam N_n`` under `weighted_l2`, the prior's own
precision under `prior`. Under `squared_all` the first sum runs over all columns. The rows are dealt
out to the devices, and a row's solution does not depend on how many there are. On a CPU a compiled
kernel solves one row after the other (`kernels.ridge_rows`); XLA takes the entries in short runs,
each of one row, and solves batches of rows. Either solves exactly, by Cholesky, or takes a few
steps of conjugate gradients from the current factors (on a CPU `kernels.conjugate_rows`), which
need no K x K matrix.

Where the penalty is zero the solution may not be unique: the one near the current factors is taken,
by a ridge around them of the size of float32's rounding, so that the objective never rises.

Zhou, Wilkinson, Schreiber, Pan: Large-scale parallel collaborative filtering for the Netflix prize,
AAIM 2008; conjugate gradients: Takacs, Pilaszy, Tikk, Applications of the conjugate gradient method
for implicit feedback collaborative filtering, RecSys 2011.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax import parallel
from metamf_jax.factorization import block_update
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.dealt_rows import (
    BATCH_FLOATS,
    DealtRows,
    Runs,
    cut_into_runs,
    deal_rows,
)
from metamf_jax.factorization.losses import RECORDS
from metamf_jax.factorization.objective import Objective, SideTerms
from metamf_jax.factorization.solver import Solver, one_by_one
from metamf_jax.parallel import REPLICATED, SPLIT
from metamf_jax.ridge import ridge_solve
from metamf_jax.types import Array, Entries, FactorPrior, Factors

# Given one side, the objective is quadratic in the other.
LOSSES: Final = tuple(name for name, loss in RECORDS.items() if loss.quadratic)

_FULL_FLOAT32 = jax.lax.Precision.HIGHEST


class RowProblems(NamedTuple):
    """What the ridge regressions of R rows have beside their entries.

    Attributes:
      design: [M, K], zero in frozen columns.
      offset: [M], taken off the values: what the frozen columns explain.
      base_gram: [K, K], the Gram matrix of all rows under an all-cell term, or [0, 0] where each
        row's own entries make it.
      base_moment: [K], likewise, or [0].
      weight: [R], of the penalty.
      mean: [R, K], where it pulls to.
      current: [R, K], the factors that are being replaced.
    """

    design: Array
    offset: Array
    base_gram: Array
    base_moment: Array
    weight: Array
    mean: Array
    current: Array


def conjugate_gradients(
    matvec: Callable[[Array], Array], target: Array, start: Array, steps: int
) -> Array:
    """Solves ``A w = target`` for every row of [B, K], by so many steps from `start`."""

    def step(_, carry):
        w, residual, direction, square = carry
        image = matvec(direction)
        curvature = (direction * image).sum(axis=-1)
        rate = jnp.where(curvature > 0, square / jnp.where(curvature > 0, curvature, 1), 0)
        w += rate[:, None] * direction
        residual -= rate[:, None] * image
        new = (residual * residual).sum(axis=-1)
        turn = jnp.where(square > 0, new / jnp.where(square > 0, square, 1), 0)
        return w, residual, residual + turn[:, None] * direction, new

    residual = target - matvec(start)
    first = start, residual, residual, (residual * residual).sum(axis=-1)
    return jax.lax.fori_loop(0, steps, step, first)[0]


def solve_normal_equations(
    gram: Array, moment: Array, weight: Array, mean: Array, current: Array
) -> Array:
    """A batch of ridge solves: gram [B, K, K] or one [K, K] for all, weight [B], others [B, K]."""
    # Where there is no penalty: a ridge around the current factors, see the module's docstring.
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    rounding = np.finfo(np.float32).eps * gram.shape[-1] * trace + 1e-30
    return ridge_solve(
        jnp.broadcast_to(gram, (*moment.shape, gram.shape[-1])),
        moment,
        jnp.where(weight > 0, weight, rounding),
        jnp.where((weight > 0)[:, None], mean, current),
    )


def solve_rows_xla(conjugate_steps: int, runs: Runs, problems: RowProblems) -> Array:
    """`kernels.ridge_rows.solve_rows` through XLA, for any weight; [R, K].

    Args:
      conjugate_steps: 0 for Cholesky.
      runs: the entries of one device, [G, ..] each.
      problems: of its rows.
    """
    rank = problems.design.shape[1]
    # Padding entries read this row of zeros; rows that are not there, these of the sides.
    problems = problems._replace(
        design=jnp.concatenate([problems.design, jnp.zeros((1, rank), problems.design.dtype)]),
        offset=jnp.append(problems.offset, 0),
    )
    if problems.base_gram.shape[0]:
        return _solve_all_cells(conjugate_steps, runs, problems)
    solve = functools.partial(_solve_batch, conjugate_steps, problems)
    found = jax.lax.map(solve, runs)
    # Rows without entries stay at the prior mean.
    return _put(problems.mean, runs.places, found)


def _solve_batch(conjugate_steps: int, problems: RowProblems, batch: Runs) -> Array:
    """The rows of one batch, each from the Gram matrix of its own entries; [B, K]."""
    places, owners = batch.places, batch.owners
    num_rows = len(places)
    vectors = problems.design[batch.columns]  # [C, RUN, K]
    moment = _moments_of_batch(problems, batch)
    weight, mean, current = (
        jnp.take(x, places, axis=0, mode="clip")
        for x in (problems.weight, problems.mean, problems.current)
    )
    if not conjugate_steps:
        gram = jnp.einsum("clj,clk->cjk", vectors, vectors, precision=_FULL_FLOAT32)
        gram = _add_up(gram, owners, num_rows)
        return solve_normal_equations(gram, moment, weight, mean, current)

    def matvec(p):
        of_runs = jnp.take(p, owners, axis=0, mode="clip")
        fitted = jnp.einsum("clk,ck->cl", vectors, of_runs, precision=_FULL_FLOAT32)
        back = jnp.einsum("cl,clk->ck", fitted, vectors, precision=_FULL_FLOAT32)
        return _add_up(back, owners, num_rows) + weight[:, None] * p

    return conjugate_gradients(matvec, moment + weight[:, None] * mean, current, conjugate_steps)


def _moments_of_batch(problems: RowProblems, batch: Runs) -> Array:
    """Sums of ``(x - offset) d`` over each row's entries, [B, K]."""
    residuals = batch.values - problems.offset[batch.columns]
    vectors = problems.design[batch.columns]
    moment = jnp.einsum("cl,clk->ck", residuals, vectors, precision=_FULL_FLOAT32)
    return _add_up(moment, batch.owners, len(batch.places))


def _add_up(per_run: Array, owners: Array, num_rows: int) -> Array:
    """[C, ..] -> [B, ..], sums over the runs of each row."""
    return jax.ops.segment_sum(per_run, owners, num_rows + 1)[:num_rows]


def _put(rows: Array, places: Array, found: Array) -> Array:
    """Puts what batches found, [G, B, K], in the rows' places in [R, K]."""
    found = found.reshape(-1, found.shape[-1])
    return jnp.asarray(rows).at[places.reshape(-1)].set(found, mode="drop")


def _solve_all_cells(conjugate_steps: int, runs: Runs, problems: RowProblems) -> Array:
    """All rows from one Gram matrix, that of all columns; [R, K]."""
    base_gram = problems.base_gram
    moments = jax.lax.map(functools.partial(_moments_of_batch, problems), runs)
    moments = _put(jnp.zeros_like(problems.mean), runs.places, moments)
    moments += problems.base_moment[None]

    def solve_row(row):
        moment, weight, mean, current = (x[None] for x in row)
        if not conjugate_steps:
            return solve_normal_equations(base_gram, moment, weight, mean, current)[0]

        def matvec(p):
            return jnp.matmul(p, base_gram, precision=_FULL_FLOAT32) + weight[:, None] * p

        target = moment + weight[:, None] * mean
        return conjugate_gradients(matvec, target, current, conjugate_steps)[0]

    num_rows, rank = problems.mean.shape
    size = max(1, min(num_rows, BATCH_FLOATS // (rank * rank)))
    rows = moments, problems.weight, problems.mean, problems.current
    return jax.lax.map(solve_row, rows, batch_size=size)


def solve_rows_compiled(conjugate_steps: int, dealt: DealtRows, problems: RowProblems) -> Array:
    """`solve_rows_xla` by compiled kernels, of one device's rows; [R, K]."""
    from metamf_jax.kernels import conjugate_rows, ridge_rows

    kernels = conjugate_rows if conjugate_steps else ridge_rows
    design, base_gram = problems.design, problems.base_gram
    pad = kernels.padded(design.shape[1]) - design.shape[1]
    if len(base_gram):
        base_gram = jnp.pad(base_gram, (0, pad))
    padded = problems._replace(design=jnp.pad(design, ((0, 0), (0, pad))), base_gram=base_gram)
    arguments = dealt.starts, dealt.columns, dealt.values, *padded
    if conjugate_steps:
        return conjugate_rows.step_rows(jnp.int32(conjugate_steps), *arguments)
    return ridge_rows.solve_rows(*arguments)


def row_problems(
    objective: Objective,
    trainable: np.ndarray,
    fixed: Array,
    weight: Array,
    mean: Array,
    current: Array,
) -> RowProblems:
    """The ridge regressions of rows with the other side's factors `fixed` [M, K].

    Args:
      objective: decides whether all cells count.
      trainable: bool [K], of the side that is solved for.
      fixed: [M, K].
      weight: see `RowProblems`.
      mean: likewise.
      current: likewise.
    """
    # A frozen column of ones adds its partner to the fit: taken off, then no unknown.
    frozen = np.where(trainable, 0.0, 1.0).astype(np.float32)
    design = jnp.where(trainable[None, :], fixed, 0)
    offset = (fixed * frozen[None, :]).sum(axis=1)
    base = jnp.zeros((0, 0), jnp.float32), jnp.zeros((0,), jnp.float32)
    if objective.record.all_cells is not None:
        base = (
            jnp.matmul(design.T, design, precision=_FULL_FLOAT32),
            -jnp.matmul(design.T, offset, precision=_FULL_FLOAT32),
        )
        offset = jnp.zeros_like(offset)
    return RowProblems(design, offset, *base, weight, mean, current)


@dataclasses.dataclass(frozen=True)
class AlsConfig:
    """How the rows are solved.

    Attributes:
      conjugate_steps: steps of conjugate gradients a half-step; 0 for Cholesky.
      num_devices: D, to deal the rows out to; the factors do not depend on it.
      backend: one of `block_update.BACKENDS`.
    """

    conjugate_steps: int = 0
    num_devices: int = 1
    backend: str = "auto"

    def __post_init__(self):
        if self.conjugate_steps < 0:
            raise ValueError(
                f"expected a number of conjugate gradients of at least 0, got"
                f" {self.conjugate_steps}"
            )

    @property
    def compiled(self) -> bool:
        """Whether a compiled kernel solves the rows."""
        return block_update.choose_backend(self.backend) == "numba"


class HalfStep(NamedTuple):
    """One side of the matrix, here called its rows, ready to be solved for.

    Attributes:
      rows: [D, R] int32, the rows that each device has, see `DealtRows`.
      places: [N], where each row is in ``rows``.
      work: the rows' entries, on the devices: `DealtRows` or `Runs`.
      trainable: bool [K].
      program: (work, fixed, weight, mean, current) -> solved, [D, R, ..] each but `fixed`.
    """

    rows: np.ndarray
    places: np.ndarray
    work: DealtRows | Runs
    trainable: np.ndarray
    program: Callable


def _solve_own_rows(objective, config, trainable, work, fixed, weight, mean, current):
    """What each device runs: `work`, and the last three, have a leading axis of one."""
    work, *own = jax.tree.map(lambda x: x[0], (work, weight, mean, current))
    problems = row_problems(objective, trainable, fixed, *own)
    if config.compiled:
        found = solve_rows_compiled(config.conjugate_steps, work, problems)
    else:
        found = solve_rows_xla(config.conjugate_steps, work, problems)
    return parallel.as_varying(found)[None]


def prepare_half_step(
    objective: Objective,
    side: str,
    entries: tuple[Array, Array, Array],
    shape: tuple[int, int],
    width: int,
    config: AlsConfig = AlsConfig(),
) -> HalfStep:
    """Deals the rows of one side out to the devices.

    Args:
      objective: `squared` or `squared_all`, any penalty.
      side: "u" or "v", the side to solve for; called rows here, and the other side columns.
      entries: rows [E], columns [E] and values [E].
      shape: (N, M).
      width: K, all columns of the factors.
      config: how to solve.
    """
    mesh = parallel.make_mesh(config.num_devices)
    dealt = deal_rows(*entries, shape, config.num_devices)
    work = dealt if config.compiled else cut_into_runs(dealt, shape[1], width)
    trainable = objectives.trainable(objective, width)["uv".index(side)]
    places = np.empty(shape[0], int)
    there = dealt.rows.ravel() < shape[0]
    places[dealt.rows.ravel()[there]] = np.flatnonzero(there)
    program = parallel.sharded(
        mesh,
        functools.partial(_solve_own_rows, objective, config, trainable),
        (SPLIT, REPLICATED, SPLIT, SPLIT, SPLIT),
        SPLIT,
    )
    return HalfStep(np.asarray(dealt.rows), places, parallel.split(mesh, work), trainable, program)


def half_step(prepared: HalfStep, solved: Array, fixed: Array, terms: SideTerms) -> np.ndarray:
    """The best factors of one side given the other's.

    Args:
      prepared: the side to solve for.
      solved: [N, K], its factors now.
      fixed: [M, K], those of the other side.
      terms: of its rows.

    Returns:
      [N, K].
    """
    frozen = np.where(prepared.trainable, 0.0, 1.0).astype(np.float32)
    mean = np.broadcast_to(frozen, solved.shape) if terms.mean is None else terms.mean
    # [N, ..] -> [D, R, ..]; a row too many reads the last.
    dealt_out = (
        np.take(np.asarray(x, np.float32), prepared.rows, axis=0, mode="clip")
        for x in (terms.weight, mean, solved)
    )
    found = np.asarray(prepared.program(prepared.work, np.asarray(fixed), *dealt_out))
    return found.reshape(-1, found.shape[-1])[prepared.places]


def make_solver(
    objective: Objective,
    entries: Entries,
    prior: FactorPrior | None = None,
    config: AlsConfig = AlsConfig(),
    width: int = 32,
) -> Solver:
    """ALS as a solver; it reads no step size.

    Args:
      objective: loss `squared` or `squared_all`, any penalty.
      entries: of the matrix.
      prior: see `objective.make_terms`.
      config: how to solve.
      width: columns of the factors to come; others are prepared for when they come.

    Raises:
      ValueError: another loss, bad values, or fewer devices than asked for.
    """
    objectives.check_loss(objective, "als", LOSSES)
    objectives.check_values(objective, entries)
    terms = objectives.make_terms(objective, entries, prior)
    (num_rows, num_columns), values = entries.shape, entries.values

    @functools.cache
    def sides(width):
        return (
            prepare_half_step(
                objective,
                "u",
                (entries.rows, entries.columns, values),
                (num_rows, num_columns),
                width,
                config,
            ),
            prepare_half_step(
                objective,
                "v",
                (entries.columns, entries.rows, values),
                (num_columns, num_rows),
                width,
                config,
            ),
        )

    sides(width)
    device_entries, device_terms = jax.tree.map(jnp.asarray, (entries, terms))

    def sweep(factors, number, step_size):
        del number, step_size
        side_u, side_v = sides(factors.u.shape[1])
        u = half_step(side_u, factors.u, factors.v, terms.u)
        return Factors(u, half_step(side_v, factors.v, u, terms.v))

    return Solver(
        init=lambda factors: Factors(*map(np.asarray, factors)),
        epochs=one_by_one(sweep),
        objective=lambda factors: objectives.evaluate(
            objective, factors, device_entries, device_terms
        ),
        factors=lambda factors: Factors(*map(np.asarray, factors)),
    )
