"""Iterative parameter mixing: every worker runs SGD on its shard, then the factors are averaged.

The points are dealt out to W workers at random. In each epoch every worker starts from the same
factors, runs one epoch of SGD over its own points on its own copy, and the copies are averaged.
Factors that meet few points of a row in one shard move little, and averaging W of them divides the
move by W: the more workers, the slower an epoch converges. It is here to be compared with.

A worker's points carry the same share of the penalty as in SGD, so that the workers' objectives
add up to the whole one.

McDonald, Hall, Mann: Distributed training strategies for the structured perceptron, NAACL 2010.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax import parallel
from metamf_jax.factorization import block_update, dsgd, sgd
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.block_update import Points, SideBlocks, Work
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.factorization.objective import Objective
from metamf_jax.factorization.solver import Solver
from metamf_jax.parallel import REPLICATED, SPLIT
from metamf_jax.types import Entries, FactorPrior, Factors


class MixingState(NamedTuple):
    """Every worker's copy: equal factors, but AdaGrad's memory of its own. Leading axis W.

    Attributes:
      u: copies of all rows.
      v: copies of all columns.
      shuffle: of the points in the last epoch, which the objective then sums in the same order.
    """

    u: SideBlocks
    v: SideBlocks
    shuffle: int


def make_solver(
    objective: Objective,
    entries: Entries,
    config: DsgdConfig,
    prior: FactorPrior | None = None,
    width: int = 32,
) -> Solver:
    """Parameter mixing as a solver, with the arguments of `dsgd.make_solver`.

    ``config.num_blocks`` is the number of workers W, a multiple of ``num_devices``; the schedule is
    not read.

    Raises:
      ValueError: bad values, more workers than points, or fewer devices than asked for.
    """
    objectives.check_values(objective, entries)
    backend = block_update.choose_backend(config.backend)
    workers = config.num_blocks
    if workers > len(entries.values):
        raise ValueError(
            f"expected at most as many workers as points, {len(entries.values)}, got {workers}"
        )
    mesh = parallel.make_mesh(config.num_devices)
    owner = np.random.default_rng(config.seed).permutation(len(entries.values)) % workers
    # One seed for all, so that all shards permute rows and columns alike.
    one = dataclasses.replace(config, num_blocks=1, num_devices=1)

    def shard(w):
        mine = owner == w
        arrays = (np.asarray(x) for x in (entries.rows, entries.columns, entries.values))
        rows, columns, values = (x[mine] for x in arrays)
        return Entries(rows, columns, values, entries.shape)

    # As many sub-blocks in all shards, of which some have a point less.
    size = -(-len(entries.values) // workers)
    cuts = [dsgd.cut_matrix(shard(w), one, width, num_points=size) for w in range(workers)]
    configs = [dataclasses.replace(one, seed=config.seed * workers + w) for w in range(workers)]
    terms = objectives.make_terms(objective, entries, prior)
    row_side, column_side = cuts[0].u, cuts[0].v
    longest = max(cut.points.values.shape[1] for cut in cuts)
    points_of_shuffle: dict[int, Points] = {}

    def points_of(shuffle):
        if shuffle not in points_of_shuffle:
            points_of_shuffle.clear()
            shards = [
                [np.pad(x[0], (0, longest - x.shape[1])) for x in points]
                for points in map(dsgd.shuffled_points, cuts, configs, [shuffle] * workers)
            ]
            stacked = Points(*(np.stack(x) for x in zip(*shards, strict=True)))
            points_of_shuffle[shuffle] = parallel.split(mesh, stacked)
        return points_of_shuffle[shuffle]

    def init(factors):
        def copies(side, factor, side_terms):
            x = SideBlocks(
                side.split(factor),
                np.ones(side.shape, np.float32),
                jax.tree.map(side.split, side_terms),
            )
            return jax.tree.map(lambda x: np.repeat(x, workers, axis=0), x)

        u = copies(row_side, factors.u, terms.u)
        v = copies(column_side, factors.v, terms.v)
        return MixingState(parallel.split(mesh, u), parallel.split(mesh, v), 0)

    def mean_of(copies):
        # Every device averages a part of the rows. A mean over the copies in XLA's own way, of all
        # rows on each of 8 devices, took 180 ms on two cores at 6040 rows of rank 32, and this 5.
        parts = parallel.deal_out(copies)
        mean = objectives.sum_in_order(jnp.moveaxis(parts, 0, -1)) / workers
        return jnp.broadcast_to(parallel.gather(mean)[: copies.shape[1]], copies.shape)

    def work_of(first, last):
        return Work(first, last, parallel.as_varying(jnp.arange(len(first), dtype=jnp.int32)))

    def run_epoch(u, v, points, first, last, step_size):
        masks = objectives.trainable(objective, u.factors.shape[2])
        sums = tuple(objectives.cell_sums(objective, side.factors[0]) for side in (u, v))

        def without_points(side, opposite, mask):
            def one_copy(copy):
                return sgd.step_without_points(
                    objective, step_size, copy.factors, copy.terms, opposite, mask
                )

            return side._replace(factors=jax.lax.map(one_copy, side))

        if sums[0] is not None:
            u, v = without_points(u, sums[1], masks[0]), without_points(v, sums[0], masks[1])
        work = work_of(first, last)
        moved = parallel.as_varying(
            block_update.block_update(
                backend, objective, config.per_row, step_size, u, v, points, work, sums
            )
        )
        return tuple(side._replace(factors=mean_of(side.factors)) for side in moved)

    def run_losses(loss, u, v, points, first, last):
        work = work_of(first, last)
        losses = block_update.block_losses(backend, loss, u.factors, v.factors, points, work)
        return parallel.as_varying(losses)

    epoch_program = parallel.sharded(
        mesh,
        run_epoch,
        (SPLIT, SPLIT, SPLIT, SPLIT, SPLIT, REPLICATED),
        (SPLIT, SPLIT),
    )

    squared = Objective("squared", "none")
    losses_programs = {
        loss.loss: parallel.sharded(
            mesh,
            functools.partial(run_losses, loss),
            (SPLIT, SPLIT, SPLIT, SPLIT, SPLIT),
            SPLIT,
        )
        for loss in (objective, squared)
    }
    penalties_program = parallel.sharded(
        mesh, functools.partial(dsgd.penalties_and_sums, objective), (SPLIT, SPLIT), SPLIT
    )

    def epoch(state, epoch, step_size):
        visits = [dsgd.draw_visits(cut, one, epoch) for cut, one in zip(cuts, configs, strict=True)]
        shuffle = visits[0].shuffle
        u, v = epoch_program(
            state.u,
            state.v,
            points_of(shuffle),
            np.concatenate([visit.first[:, 0] for visit in visits]),
            np.concatenate([visit.last[:, 0] for visit in visits]),
            np.float32(step_size),
        )
        return MixingState(u, v, shuffle)

    @dsgd.remember_last
    def losses_of(state, loss):
        """[W], sums over shards of the points' losses."""
        # A shard's sub-blocks are neighbours: one visit for all.
        ends = np.stack([cut.offsets[0, 0, [0, -1]] for cut in cuts])
        program = losses_programs[loss]
        points = points_of(int(state.shuffle))
        return parallel.to_host(program(state.u, state.v, points, ends[:, :1], ends[:, 1:]))

    def objective_of(state):
        penalties, cell_sums = parallel.to_host(penalties_program(state.u, state.v))
        # Of the first copy.
        return objectives.total(
            losses_of(state, objective.loss),
            np.concatenate([side[0] for side in penalties]),
            *(None if sums is None else sums[:1] for sums in cell_sums),
        )

    def squared_error(state):
        return float(losses_of(state, squared.loss).sum(dtype=np.float64))

    def factors_of(state):
        u, v = parallel.to_host((state.u.factors, state.v.factors))
        return Factors(row_side.join(u[:1]), column_side.join(v[:1]))

    return Solver(init, epoch, objective_of, factors_of, squared_error)
