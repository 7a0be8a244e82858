"""Iterative parameter mixing: every worker runs SGD on its shard, then the factors are averaged.

The entries are dealt out to W workers at random. In each epoch every worker starts from the same
factors, runs one epoch of SGD over its own entries on its own copy, and the copies are averaged.
Factors that meet few entries of a row in one shard move little, and averaging W of them divides the
move by W: the more workers, the slower an epoch converges. It is here to be compared with.

A worker's entries carry the same share of the penalty as in SGD, so that the workers' objectives
add up to the whole one.

McDonald, Hall, Mann: Distributed training strategies for the structured perceptron, NAACL 2010.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metamf_jax import parallel
from metamf_jax.factorization import block_objective, block_update, visits
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.block_objective import SQUARED_ERROR
from metamf_jax.factorization.block_update import SideBlocks, Work
from metamf_jax.factorization.blocks import BlockEntries, Blocks
from metamf_jax.factorization.entries_source import LastShuffle, shuffled_entries
from metamf_jax.factorization.objective import Objective, Terms
from metamf_jax.factorization.sgd import SgdConfig
from metamf_jax.factorization.solver import Solver, one_by_one
from metamf_jax.parallel import REPLICATED, SPLIT
from metamf_jax.types import Array, Entries, FactorPrior, Factors


class MixingState(NamedTuple):
    """Every worker's copy: equal factors, but AdaGrad's memory of its own. Leading axis W.

    Attributes:
      u: copies of all rows.
      v: copies of all columns.
      shuffle: of the entries in the last epoch, which the objective then sums in the same order.
    """

    u: SideBlocks
    v: SideBlocks
    shuffle: int


class Shard(NamedTuple):
    """One worker's entries.

    Attributes:
      cut: as one block; all shards have their rows and columns in the same places.
      config: what the order of its entries is drawn from; its seed is the worker's own.
    """

    cut: Blocks
    config: SgdConfig


def deal_shards(entries: Entries, config: SgdConfig, num_workers: int, width: int) -> list[Shard]:
    """Deals the entries out to the workers at random.

    Args:
      entries: of the matrix.
      config: their order and the seed of all.
      num_workers: W.
      width: columns of the factors to come, which size the sub-blocks.

    Raises:
      ValueError: more workers than entries.
    """
    rows, columns, values = (np.asarray(x) for x in (entries.rows, entries.columns, entries.values))
    if num_workers > len(values):
        raise ValueError(
            f"expected at most as many workers as entries, {len(values)}, got {num_workers}"
        )
    owner = np.random.default_rng(config.seed).permutation(len(values)) % num_workers
    # As many sub-blocks in all shards, of which some have an entry less.
    size = -(-len(values) // num_workers)
    shards = []
    for w in range(num_workers):
        mine = owner == w
        own = Entries(rows[mine], columns[mine], values[mine], entries.shape)
        # One seed for all, so that all shards permute rows and columns alike.
        cut = visits.cut_matrix(own, config, 1, width, num_entries=size)
        seed = config.seed * num_workers + w
        shards.append(Shard(cut, dataclasses.replace(config, seed=seed)))
    return shards


def stacked_entries(shards: list[Shard], shuffle: int) -> BlockEntries:
    """The shards' entries in the order of a shuffle, [W, L] each, padded with zeros."""
    longest = max(shard.cut.entries.values.shape[1] for shard in shards)
    each = [
        [
            np.pad(x[0], (0, longest - x.shape[1]))
            for x in shuffled_entries(shard.cut, shard.config, shuffle)
        ]
        for shard in shards
    ]
    return BlockEntries(*(np.stack(x) for x in zip(*each, strict=True)))


# What each device runs, for B of the workers.


def run_epoch(
    objective: Objective,
    config: SgdConfig,
    num_workers: int,
    u: SideBlocks,
    v: SideBlocks,
    entries: BlockEntries,
    first: Array,
    last: Array,
    step_size: Array,
) -> tuple[SideBlocks, ...]:
    """Every worker runs SGD over its entries, on its copies; then the factors are averaged.

    Args:
      objective: the objective.
      config: its backend chosen.
      num_workers: W.
      u: B copies of all rows.
      v: B copies of all columns.
      entries: of the B shards.
      first: [B, Q], see `block_update.Work`.
      last: [B, Q].
      step_size: scalar.
    """
    free = objectives.trainable(objective, u.factors.shape[2])
    sums = tuple(objectives.cell_sums(objective, side.factors[0]) for side in (u, v))
    if sums[0] is not None:
        u, v = (
            block_update.step_without_entries(objective, u, sums[1], free[0], step_size),
            block_update.step_without_entries(objective, v, sums[0], free[1], step_size),
        )
    moved = parallel.as_varying(
        block_update.block_update(
            config.backend,
            objective,
            config.per_row,
            step_size,
            u,
            v,
            entries,
            _own_work(first, last),
            sums,
        )
    )
    return tuple(side._replace(factors=_mean_of(side.factors, num_workers)) for side in moved)


def _own_work(first: Array, last: Array) -> Work:
    """Copy b meets copy b."""
    return Work(first, last, parallel.as_varying(jnp.arange(len(first), dtype=jnp.int32)))


def _mean_of(copies: Array, num_workers: int) -> Array:
    """[B, R, K] -> [B, R, K], all of them the mean over the copies of all devices."""
    # Every device averages a part of the rows. A mean over the copies in XLA's own way, of all
    # rows on each of 8 devices, took 180 ms on two cores at 6040 rows of rank 32, and this 5.
    parts = parallel.deal_out(copies)
    mean = objectives.sum_in_order(jnp.moveaxis(parts, 0, -1)) / num_workers
    return jnp.broadcast_to(parallel.gather(mean)[: copies.shape[1]], copies.shape)


def losses_of_shards(
    config: SgdConfig,
    objective: Objective,
    u: SideBlocks,
    v: SideBlocks,
    entries: BlockEntries,
    first: Array,
    last: Array,
) -> Array:
    """[B], sums over shards of the entries' losses."""
    work = _own_work(first, last)
    factors = u.factors, v.factors
    losses = block_update.block_losses(config.backend, objective, *factors, entries, work)
    return parallel.as_varying(losses)


class Programs(NamedTuple):
    """The functions above, compiled once for all devices; `losses` by the loss's name."""

    run_epoch: Callable
    losses: dict[str, Callable]
    penalties: Callable


def make_programs(
    objective: Objective, config: SgdConfig, num_workers: int, mesh: Mesh
) -> Programs:
    """Binds the functions above to a mesh; nothing is compiled before the first call."""
    sides_and_entries = (SPLIT,) * 5
    return Programs(
        parallel.sharded(
            mesh,
            functools.partial(run_epoch, objective, config, num_workers),
            (*sides_and_entries, REPLICATED),
            (SPLIT, SPLIT),
            check_varying=config.backend not in block_update.UNCHECKED,
        ),
        {
            each.loss: parallel.sharded(
                mesh, functools.partial(losses_of_shards, config, each), sides_and_entries, SPLIT
            )
            for each in (objective, SQUARED_ERROR)
        },
        parallel.sharded(
            mesh,
            functools.partial(block_objective.penalties_and_sums, objective),
            (SPLIT, SPLIT),
            SPLIT,
        ),
    )


class Setup(NamedTuple):
    """What stays the same from epoch to epoch.

    Attributes:
      mesh: the devices.
      shards: a worker's entries each.
      terms: of the objective.
      entries: of all shards, by the number of the shuffle.
      programs: what the devices run.
    """

    mesh: Mesh
    shards: list[Shard]
    terms: Terms
    entries: LastShuffle
    programs: Programs


def init(setup: Setup, factors: Factors) -> MixingState:
    """Gives every worker a copy."""
    cut, workers = setup.shards[0].cut, len(setup.shards)
    sides = (
        block_objective.side_blocks(cut.u, factors.u, setup.terms.u),
        block_objective.side_blocks(cut.v, factors.v, setup.terms.v),
    )
    u, v = jax.tree.map(lambda x: np.repeat(x, workers, axis=0), sides)
    return MixingState(parallel.split(setup.mesh, u), parallel.split(setup.mesh, v), 0)


def epoch(setup: Setup, state: MixingState, number: int, step_size: float) -> MixingState:
    """One epoch of all workers, numbered from 1."""
    drawn = [visits.draw_visits(shard.cut, shard.config, number) for shard in setup.shards]
    shuffle = drawn[0].shuffle
    u, v = setup.programs.run_epoch(
        state.u,
        state.v,
        setup.entries(shuffle),
        np.concatenate([visit.first[:, 0] for visit in drawn]),
        np.concatenate([visit.last[:, 0] for visit in drawn]),
        np.float32(step_size),
    )
    return MixingState(u, v, shuffle)


def losses_by_shard(setup: Setup, state: MixingState, objective: Objective) -> np.ndarray:
    """Sums over shards of the entries' losses, [W]; `objective` names the loss."""
    # A shard's sub-blocks are neighbours: one visit for all.
    ends = np.stack([shard.cut.offsets[0, 0, [0, -1]] for shard in setup.shards])
    program = setup.programs.losses[objective.loss]
    entries = setup.entries(int(state.shuffle))
    return parallel.to_host(program(state.u, state.v, entries, ends[:, :1], ends[:, 1:]))


def objective_of(setup: Setup, state: MixingState, losses: np.ndarray) -> float:
    """The objective of the first copy, from the entries' losses under it."""
    penalties, cell_sums = parallel.to_host(setup.programs.penalties(state.u, state.v))
    return objectives.total(
        losses,
        np.concatenate([side[0] for side in penalties]),
        *(None if sums is None else sums[:1] for sums in cell_sums),
    )


def factors_of(setup: Setup, state: MixingState) -> Factors:
    """The first copy, in the order of the matrix's rows and columns."""
    u, v = parallel.to_host((state.u.factors, state.v.factors))
    cut = setup.shards[0].cut
    return Factors(cut.u.join(u[:1]), cut.v.join(v[:1]))


def make_solver(
    objective: Objective,
    entries: Entries,
    config: SgdConfig,
    num_workers: int = 1,
    num_devices: int = 1,
    prior: FactorPrior | None = None,
    width: int = 32,
) -> Solver:
    """Parameter mixing as a solver.

    Args:
      objective: any loss and penalty.
      entries: of the matrix.
      config: how a worker visits its entries.
      num_workers: W, a multiple of `num_devices`.
      num_devices: D.
      prior: see `objective.make_terms`.
      width: columns of the factors to come, which size the sub-blocks; any other width works too.

    Raises:
      ValueError: bad values, more workers than entries, or fewer devices than asked for.
    """
    objectives.check_values(objective, entries)
    config = dataclasses.replace(config, backend=block_update.choose_backend(config.backend))
    shards = deal_shards(entries, config, num_workers, width)
    mesh = parallel.make_mesh(num_devices)
    setup = Setup(
        mesh,
        shards,
        objectives.make_terms(objective, entries, prior),
        LastShuffle(lambda shuffle: parallel.split(mesh, stacked_entries(shards, shuffle))),
        make_programs(objective, config, num_workers, mesh),
    )
    losses = block_objective.remember_last(functools.partial(losses_by_shard, setup))
    return Solver(
        init=functools.partial(init, setup),
        epochs=one_by_one(functools.partial(epoch, setup)),
        objective=lambda state: objective_of(setup, state, losses(state, objective)),
        factors=functools.partial(factors_of, setup),
        squared_error=lambda state: float(losses(state, SQUARED_ERROR).sum(dtype=np.float64)),
    )
