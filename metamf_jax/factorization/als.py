"""Alternating least squares: the exact best U given V, then the exact best V given U.

With V fixed every row is a ridge regression of its own,

    (sum_m v_m v_m^T + w_n I) u_n = sum_m x_nm v_m + w_n u0_n,      m over the row's points,

where ``w_n`` is the row's penalty: ``lam``, ``lam N_n`` under `weighted_l2`, the prior's own
precision under `prior`. Under `squared_all` the first sum runs over all columns. The rows are dealt
out to the devices, and a row's solution does not depend on how many there are. On a CPU a compiled
kernel solves one row after the other (`als_numba`). XLA takes the points in short runs, each of one
row, and solves batches of rows; there, optionally, by a few steps of conjugate gradients from the
current factors, which need no K x K matrix.

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

from metamf_jax import parallel
from metamf_jax.factorization import block_update
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.objective import Objective, SideTerms
from metamf_jax.factorization.solver import Solver, one_by_one
from metamf_jax.parallel import REPLICATED, SPLIT
from metamf_jax.ridge import ridge_solve
from metamf_jax.types import Array, Entries, FactorPrior, Factors

_FULL_FLOAT32 = jax.lax.Precision.HIGHEST

# Floats of gathered factors and normal equations that one batch of rows may take.
_BATCH_FLOATS = 1 << 22

# Points in a run: a row with one more point than this takes two.
_RUN = 32


class DealtRows(NamedTuple):
    """The rows of a matrix with their points, dealt out to D devices.

    Attributes:
      rows: [D, R] int32, numbers of rows; N where a device has one fewer.
      starts: [D, R + 1] int32: row r of a device has its points ``starts[r] .. starts[r + 1] - 1``.
      columns: [D, L] int32, padded with M.
      values: [D, L] float32, padded with zero.
    """

    rows: Array
    starts: Array
    columns: Array
    values: Array


def deal_rows(
    rows: Array, columns: Array, values: Array, shape: tuple[int, int], num_devices: int = 1
) -> DealtRows:
    """Deals the rows out, those with many points first, so that each device has as many points.

    Args:
      rows: [E] int; pass the columns here, and the rows below, for the other side.
      columns: [E] int.
      values: [E] float32.
      shape: (N, M).
      num_devices: D.
    """
    rows, columns, values = (np.asarray(x) for x in (rows, columns, values))
    counts = np.bincount(rows, minlength=shape[0])
    height = -(-shape[0] // num_devices)
    dealt = np.full(height * num_devices, shape[0])
    dealt[: shape[0]] = np.argsort(-counts, kind="stable")
    dealt = dealt.reshape(height, num_devices)
    dealt[1::2] = dealt[1::2, ::-1]  # There and back.
    dealt = dealt.T
    lengths = np.append(counts, 0)[dealt]
    starts = np.concatenate([np.zeros((num_devices, 1), int), lengths.cumsum(axis=1)], axis=1)
    longest = max(1, int(starts[:, -1].max()))
    order = np.argsort(rows, kind="stable")
    first = np.concatenate([[0], np.cumsum(counts)])[dealt]
    # Of every place in the dealt order, where its point is in the order of rows.
    at = np.zeros((num_devices, longest), int)
    inside = np.zeros((num_devices, longest), bool)
    for d in range(num_devices):
        end = starts[d, -1]
        inside[d, :end] = True
        at[d, :end] = np.repeat(first[d] - starts[d, :-1], lengths[d]) + np.arange(end)
    at = order[at] if len(order) else at
    empty = len(order) == 0
    return DealtRows(
        dealt.astype(np.int32),
        starts.astype(np.int32),
        np.where(inside, 0 if empty else columns[at], shape[1]).astype(np.int32),
        np.where(inside, 0 if empty else values[at], 0).astype(np.float32),
    )


class Runs(NamedTuple):
    """The points of dealt rows in G batches of C runs, each of one row, from up to B rows.

    Attributes:
      places: [D, G, B] int32, the place of each row in ``DealtRows.rows``; R for none.
      owners: [D, G, C] int32, the row in the batch to which a run belongs; B for none.
      columns: [D, G, C, _RUN] int32, padded with M.
      values: [D, G, C, _RUN] float32, padded with zero.
    """

    places: Array
    owners: Array
    columns: Array
    values: Array


def cut_into_runs(dealt: DealtRows, num_columns: int, width: int) -> Runs:
    """Cuts the points of each device into batches of runs, all of one shape.

    Args:
      dealt: from `deal_rows`; NumPy.
      num_columns: M.
      width: K, which sizes the batches.
    """
    lengths = np.diff(dealt.starts, axis=1)
    wanted = -(-lengths // _RUN)
    most = max(1, int(wanted.max()), _BATCH_FLOATS // ((width + _RUN) * width))
    batches = []
    for d, needs in enumerate(wanted):
        # Long rows come first: mixed, all batches have about as many rows.
        members = np.random.default_rng(0).permutation(np.flatnonzero(needs))
        batch, room = [], 0
        for r in members:
            if needs[r] > room:
                batch = []
                batches.append((d, batch))
                room = most
            batch.append(r)
            room -= needs[r]
    num_devices, height = dealt.rows.shape
    depth = max(1, max(np.bincount([d for d, _ in batches], minlength=1), default=1))
    rows = max(1, max((len(batch) for _, batch in batches), default=1))
    runs = Runs(
        np.full((num_devices, depth, rows), height, np.int32),
        np.full((num_devices, depth, most), rows, np.int32),
        np.full((num_devices, depth, most, _RUN), num_columns, np.int32),
        np.zeros((num_devices, depth, most, _RUN), np.float32),
    )
    filled = [0] * num_devices
    for d, batch in batches:
        g = filled[d]
        filled[d] += 1
        runs.places[d, g, : len(batch)] = batch
        at = 0
        for i, r in enumerate(batch):
            span = slice(dealt.starts[d, r], dealt.starts[d, r + 1])
            runs.owners[d, g, at : at + wanted[d, r]] = i
            for table, points in ((runs.columns, dealt.columns), (runs.values, dealt.values)):
                flat = table[d, g, at : at + wanted[d, r]].reshape(-1)
                flat[: lengths[d, r]] = points[d, span]
            at += wanted[d, r]
    return runs


def _conjugate_gradients(matvec, target, start, steps):
    """Solves ``A w = target`` for every row of [B, K], from `start`."""

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


def _solve_normal_equations(gram, moment, weight, mean, current):
    """A batch of ridge solves, [B, K, K] or one [K, K] for all."""
    # Where there is no penalty: a ridge around the current factors, see the module's docstring.
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    rounding = np.finfo(np.float32).eps * gram.shape[-1] * trace + 1e-30
    return ridge_solve(
        jnp.broadcast_to(gram, (*moment.shape, gram.shape[-1])),
        moment,
        jnp.where(weight > 0, weight, rounding),
        jnp.where((weight > 0)[:, None], mean, current),
    )


def _half_step_xla(
    conjugate_steps, runs, design, offset, base_gram, base_moment, weight, mean, current
):
    """`als_numba.solve_rows`, with the points of one device as `Runs`."""
    rank = design.shape[1]
    # Padding points read this row of zeros; rows that are not there, these of the sides.
    design = jnp.concatenate([design, jnp.zeros((1, rank), design.dtype)])
    offset = jnp.append(offset, 0)
    all_cells = base_gram.shape[0] > 0

    def add_up(owners, per_run, rows):
        return jax.ops.segment_sum(per_run, owners, rows + 1)[:rows]

    def solve(batch):
        places, owners, columns, values = batch
        rows = places.shape[0]
        points = design[columns]
        moment = jnp.einsum("cl,clk->ck", values - offset[columns], points, precision=_FULL_FLOAT32)
        moment = add_up(owners, moment, rows)
        if all_cells:
            return moment
        own = [jnp.take(x, places, axis=0, mode="clip") for x in (weight, mean, current)]
        if conjugate_steps:

            def matvec(p):
                of_runs = jnp.take(p, owners, axis=0, mode="clip")
                fitted = jnp.einsum("clk,ck->cl", points, of_runs, precision=_FULL_FLOAT32)
                back = jnp.einsum("cl,clk->ck", fitted, points, precision=_FULL_FLOAT32)
                return add_up(owners, back, rows) + own[0][:, None] * p

            target = moment + own[0][:, None] * own[1]
            return _conjugate_gradients(matvec, target, own[2], conjugate_steps)
        gram = jnp.einsum("clj,clk->cjk", points, points, precision=_FULL_FLOAT32)
        return _solve_normal_equations(add_up(owners, gram, rows), moment, *own)

    found = jax.lax.map(solve, runs)
    places = runs.places.reshape(-1)
    if not all_cells:
        # Rows without points stay at the prior mean.
        return mean.at[places].set(found.reshape(-1, rank), mode="drop")
    moments = jnp.zeros_like(mean).at[places].set(found.reshape(-1, rank), mode="drop")
    moments += base_moment[None]

    def solve_all(batch):
        moment, weight, mean, current = (x[None] for x in batch)
        if conjugate_steps:

            def matvec(p):
                return jnp.matmul(p, base_gram, precision=_FULL_FLOAT32) + weight[:, None] * p

            target = moment + weight[:, None] * mean
            return _conjugate_gradients(matvec, target, current, conjugate_steps)[0]
        return _solve_normal_equations(base_gram, moment, weight, mean, current)[0]

    size = max(1, min(len(mean), _BATCH_FLOATS // (rank * rank)))
    return jax.lax.map(solve_all, (moments, weight, mean, current), batch_size=size)


def make_half_step(
    objective: Objective,
    side: str,
    points: tuple[Array, Array, Array],
    shape: tuple[int, int],
    width: int,
    conjugate_steps: int = 0,
    num_devices: int = 1,
    backend: str = "auto",
):
    """A function that finds the best factors of one side given the other's.

    Args:
      objective: `squared` or `squared_all`, any penalty.
      side: "u" or "v", the side to solve for; called rows here, and the other side columns.
      points: rows [E], columns [E] and values [E].
      shape: (N, M).
      width: K, all columns of the factors.
      conjugate_steps: steps of conjugate gradients; 0 for Cholesky.
      num_devices: D.
      backend: one of `block_update.BACKENDS`; conjugate gradients are XLA's.

    Returns:
      ``(solved [N, K], fixed [M, K], terms of the side) -> [N, K]``, NumPy.
    """
    mesh = parallel.make_mesh(num_devices)
    compiled = block_update.choose_backend(backend) == "numba" and not conjugate_steps
    dealt = deal_rows(*points, shape, num_devices)
    work = dealt[1:] if compiled else cut_into_runs(dealt, shape[1], width)
    work = parallel.split(mesh, tuple(work))
    free = objectives.trainable(objective, width)["uv".index(side)]
    frozen = np.where(free, 0.0, 1.0).astype(np.float32)

    def body(work, fixed, *own):
        # A frozen column of ones adds its partner to the fit: taken off, then no unknown.
        design = jnp.where(free[None, :], fixed, 0)
        offset = (fixed * frozen[None, :]).sum(axis=1)
        base = jnp.zeros((0, 0), jnp.float32), jnp.zeros((0,), jnp.float32)
        if objective.record.all_cells is not None:
            base = (
                jnp.matmul(design.T, design, precision=_FULL_FLOAT32),
                -jnp.matmul(design.T, offset, precision=_FULL_FLOAT32),
            )
            offset = jnp.zeros_like(offset)
        work, (weight, mean, current) = jax.tree.map(lambda x: x[0], (work, own))
        if not compiled:
            runs = Runs(*work)
            found = _half_step_xla(
                conjugate_steps, runs, design, offset, *base, weight, mean, current
            )
            return parallel.as_varying(found)[None]
        from metamf_jax.factorization import als_numba

        pad = als_numba.padded(width) - width
        gram = jnp.pad(base[0], (0, pad)) if len(base[0]) else base[0]
        design = jnp.pad(design, ((0, 0), (0, pad)))
        starts, columns, values = work
        found = als_numba.solve_rows(
            starts, columns, values, design, offset, gram, base[1], weight, mean, current
        )
        return parallel.as_varying(found)[None]

    program = parallel.sharded(mesh, body, (SPLIT, REPLICATED, SPLIT, SPLIT, SPLIT), SPLIT)
    # Where each row went; a row too many reads the last.
    places = np.empty(shape[0], int)
    there = dealt.rows.ravel() < shape[0]
    places[dealt.rows.ravel()[there]] = np.flatnonzero(there)

    def half_step(solved: Array, fixed: Array, terms: SideTerms) -> np.ndarray:
        solved, weight = np.asarray(solved), np.asarray(terms.weight)
        mean = np.broadcast_to(frozen, solved.shape) if terms.mean is None else terms.mean
        dealt_out = (
            np.take(np.asarray(x, np.float32), dealt.rows, axis=0, mode="clip")
            for x in (weight, mean, solved)
        )
        found = np.asarray(program(work, np.asarray(fixed), *dealt_out))
        return found.reshape(-1, width)[places]

    return half_step


def make_solver(
    objective: Objective,
    entries: Entries,
    prior: FactorPrior | None = None,
    conjugate_steps: int = 0,
    width: int = 32,
    num_devices: int = 1,
    backend: str = "auto",
) -> Solver:
    """ALS as a solver; it reads no step size.

    Args:
      objective: loss `squared` or `squared_all`, any penalty.
      entries: the points.
      prior: see `objective.make_terms`.
      conjugate_steps: steps of conjugate gradients a half-step; 0 for Cholesky.
      width: columns of the factors to come.
      num_devices: devices to deal the rows out to; the factors do not depend on it.
      backend: one of `block_update.BACKENDS`.

    Raises:
      ValueError: another loss, bad values, or fewer devices than asked for.
    """
    objectives.check_solver(objective, "als")
    objectives.check_values(objective, entries)
    terms = objectives.make_terms(objective, entries, prior)
    points = entries.rows, entries.columns, entries.values
    flipped = entries.columns, entries.rows, entries.values

    @functools.cache
    def half_steps(width):
        common = width, conjugate_steps, num_devices, backend
        num_rows, num_columns = entries.shape
        return (
            make_half_step(objective, "u", points, (num_rows, num_columns), *common),
            make_half_step(objective, "v", flipped, (num_columns, num_rows), *common),
        )

    half_steps(width)
    device_entries, device_terms = jax.tree.map(jnp.asarray, (entries, terms))

    def epoch(factors, epoch, step_size):
        del epoch, step_size
        solve_u, solve_v = half_steps(factors.u.shape[1])
        u = solve_u(factors.u, factors.v, terms.u)
        return Factors(u, solve_v(factors.v, u, terms.v))

    return Solver(
        init=lambda factors: Factors(*map(np.asarray, factors)),
        epochs=one_by_one(epoch),
        objective=lambda factors: objectives.evaluate(
            objective, factors, device_entries, device_terms
        ),
        factors=lambda factors: Factors(*map(np.asarray, factors)),
    )
