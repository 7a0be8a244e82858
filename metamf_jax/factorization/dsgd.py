"""Distributed SGD: strata in series, the blocks of a stratum in parallel.

Rows and columns are permuted and cut into P x P blocks. In each of an epoch's P sub-epochs every
row block meets one column block (`strata.py`); these P blocks share no row and no column, so that
SGD on them in parallel equals SGD on them one after the other. Row blocks stay on their device,
column blocks travel. P is any multiple of the number of devices, and the factors do not depend on
that number: the same seed and P give the same factors, to the last bit on one platform and version.

With one block this is plain SGD.

Gemulla, Nijkamp, Haas, Sismanis: Large-scale matrix factorization with distributed stochastic
gradient descent, KDD 2011.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from metamf_jax import parallel
from metamf_jax.factorization import block_objective, block_update, strata, travel, visits
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.block_objective import SQUARED_ERROR
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.block_update import SideBlocks
from metamf_jax.factorization.blocks import BlockEntries, Blocks
from metamf_jax.factorization.entries_source import EntriesInMemory, EntriesInStore, open_source
from metamf_jax.factorization.objective import CellSums, Objective, Terms
from metamf_jax.factorization.sgd import SgdConfig
from metamf_jax.factorization.solver import Solver
from metamf_jax.factorization.travel import TRAVEL_SPECS, TRAVEL_STRATA, Step, Travel, plan_travel
from metamf_jax.parallel import REPLICATED, SPLIT
from metamf_jax.types import Array, Entries, FactorPrior, Factors

# Epochs that one program runs where nothing is evaluated between them: no more than so many strata
# and updates, so that a program ends within a second. To start a program takes a few milliseconds.
_STRATA_AT_ONCE, _ENTRIES_AT_ONCE = 64, 20_000_000


@dataclasses.dataclass(frozen=True)
class DsgdConfig(SgdConfig):
    """How the work is cut up.

    Attributes:
      num_blocks: P, blocks per side; a multiple of `num_devices`.
      num_devices: D.
      schedule: one of `strata.SCHEDULES`.
    """

    num_blocks: int = 1
    num_devices: int = 1
    schedule: str = "wor"

    def __post_init__(self):
        super().__post_init__()
        if self.num_blocks < 1 or self.num_blocks % self.num_devices:
            raise ValueError(
                f"expected a number of blocks that is a multiple of the {self.num_devices} devices,"
                f" got {self.num_blocks}"
            )
        if self.schedule not in strata.SCHEDULES:
            raise ValueError(
                f"expected a schedule among {', '.join(strata.SCHEDULES)}, got {self.schedule!r}"
            )


def one_block(config: SgdConfig) -> DsgdConfig:
    """Plain SGD."""
    return DsgdConfig(
        point_order=config.point_order,
        backend=config.backend,
        per_row=config.per_row,
        seed=config.seed,
    )


class DsgdState(NamedTuple):
    """Factors in blocks, on their devices.

    Attributes:
      u: P row blocks.
      v: P column blocks, in the slots where they now lie.
      held: [P] NumPy, ``held[q]`` is the column block in slot q.
      shuffle: of the entries in the last epoch, which the objective then sums in the same order.
    """

    u: SideBlocks
    v: SideBlocks
    held: np.ndarray
    shuffle: int


# What each device runs.


def sums_in_block_order(
    objective: Objective, factors: Array, numbers: Array, num_blocks: int
) -> CellSums:
    """`objective.cell_sums` of all blocks of one side, added in the order of the blocks' numbers.

    Args:
      objective: the objective.
      factors: [B, R, K], this device's blocks.
      numbers: [B], their numbers.
      num_blocks: P.
    """
    own = block_objective.cell_sums(objective, factors)
    if own is None:
        return None
    table = jnp.zeros((num_blocks, *own.shape[1:]), own.dtype).at[numbers].set(own)
    return parallel.merge_over_devices(table).sum(axis=0)


def sums_of_sides(
    objective: Objective, num_blocks: int, u: SideBlocks, v: SideBlocks, held: Array
) -> tuple[CellSums, CellSums]:
    """`objective.cell_sums` of the whole of U and of V, whose blocks here are `held` [B]."""
    own = u.factors.shape[0]
    numbers = parallel.device_index() * own + jnp.arange(own)
    return (
        sums_in_block_order(objective, u.factors, numbers, num_blocks),
        sums_in_block_order(objective, v.factors, held, num_blocks),
    )


def move_rows_without_entries(
    objective: Objective,
    config: DsgdConfig,
    u: SideBlocks,
    v: SideBlocks,
    held: Array,
    step_size: Array,
) -> tuple[SideBlocks, SideBlocks]:
    """Before an epoch: `sgd.step_without_entries` of both sides, under an all-cell term."""
    sums = sums_of_sides(objective, config.num_blocks, u, v, held)
    free = objectives.trainable(objective, u.factors.shape[2])
    return (
        block_update.step_without_entries(objective, u, sums[1], free[0], step_size),
        block_update.step_without_entries(objective, v, sums[0], free[1], step_size),
    )


def run_stratum(
    objective: Objective,
    config: DsgdConfig,
    u: SideBlocks,
    v: SideBlocks,
    entries: BlockEntries,
    step: Step,
    step_size: Array,
) -> tuple[SideBlocks, SideBlocks]:
    """One sub-epoch: the column blocks travel, then SGD runs over the blocks that now meet."""
    v = travel.move(v, step, config.num_devices)
    sums = sums_of_sides(objective, config.num_blocks, u, v, step.held)
    return parallel.as_varying(
        block_update.block_update(
            config.backend, objective, config.per_row, step_size, u, v, entries, step.work, sums
        )
    )


def run_strata(
    objective: Objective,
    config: DsgdConfig,
    u: SideBlocks,
    v: SideBlocks,
    entries: BlockEntries,
    moves: Travel,
    ends: tuple[Array, Array],
    count: Array,
    step_sizes: Array,
) -> tuple[SideBlocks, SideBlocks]:
    """Strata in series.

    Args:
      objective: the objective.
      config: its backend chosen.
      u: this device's row blocks.
      v: the column blocks that lie here.
      entries: of the row blocks.
      moves: this device's share of a plan of at least `count` sub-epochs.
      ends: first and last entry of each visit, [B, S, Q] each.
      count: number of strata.
      step_sizes: [S].
    """
    steps = travel.own_steps(moves, *ends)

    def one_stratum(s, sides):
        u, v = sides
        step = jax.tree.map(lambda x: x[s], steps)
        return run_stratum(objective, config, u, v, entries, step, step_sizes[s])

    return jax.lax.fori_loop(0, count, one_stratum, (u, v))


def losses_of_strata(
    config: DsgdConfig,
    objective: Objective,
    u: Array,
    v: Array,
    entries: BlockEntries,
    moves: Travel,
    ends: tuple[Array, Array],
) -> tuple[Array, Array]:
    """The entries' losses, summed over each block of the strata.

    Args:
      config: its backend chosen.
      objective: whose loss.
      u: [B, R, K], this device's row blocks of factors.
      v: [B, C, K], the column blocks that lie here.
      entries: see `run_strata`.
      moves: likewise.
      ends: likewise.

    Returns:
      The column blocks that lie here in the end, and sums [B, S].
    """

    def one_stratum(v, step):
        v = travel.move(v, step, config.num_devices)
        losses = block_update.block_losses(config.backend, objective, u, v, entries, step.work)
        return v, parallel.as_varying(losses)

    v, losses = jax.lax.scan(one_stratum, v, travel.own_steps(moves, *ends))
    return v, losses.T


class Programs(NamedTuple):
    """The functions above, compiled once for all devices; `losses` by the loss's name."""

    move_rows_without_entries: Callable
    run_strata: Callable
    losses: dict[str, Callable]
    penalties: Callable


@functools.lru_cache(maxsize=8)
def make_programs(objective: Objective, config: DsgdConfig, mesh: Mesh) -> Programs:
    """Binds the functions above to a mesh; nothing is compiled before the first call.

    Programs do not read the regularization, which is in the terms: give it as zero, and runs of
    several strengths share theirs.
    """
    sides = SPLIT, SPLIT
    moves_and_ends = TRAVEL_SPECS, SPLIT
    return Programs(
        parallel.sharded(
            mesh,
            functools.partial(move_rows_without_entries, objective, config),
            (*sides, SPLIT, REPLICATED),
            sides,
        ),
        parallel.sharded(
            mesh,
            functools.partial(run_strata, objective, config),
            (*sides, SPLIT, *moves_and_ends, REPLICATED, REPLICATED),
            sides,
            check_varying=config.backend not in block_update.UNCHECKED,
        ),
        {
            each.loss: parallel.sharded(
                mesh,
                functools.partial(losses_of_strata, config, each),
                (*sides, SPLIT, *moves_and_ends),
                sides,
            )
            for each in (objective, SQUARED_ERROR)
        },
        parallel.sharded(
            mesh,
            functools.partial(block_objective.penalties_and_sums, objective),
            sides,
            SPLIT,
        ),
    )


class Setup(NamedTuple):
    """What stays the same from epoch to epoch.

    Attributes:
      objective: the objective.
      config: how the work is cut up, its backend chosen.
      mesh: the devices.
      cut: where rows, columns and entries are.
      terms: of the objective.
      source: gives the entries of strata.
      programs: what the devices run.
    """

    objective: Objective
    config: DsgdConfig
    mesh: Mesh
    cut: Blocks | BlockStore
    terms: Terms
    source: EntriesInMemory | EntriesInStore
    programs: Programs

    @property
    def epochs_at_once(self) -> int:
        """Epochs in one program, at most."""
        if self.objective.record.all_cells is not None or self.source.one_stratum_at_once:
            return 1
        by_time = _ENTRIES_AT_ONCE // max(1, self.cut.num_entries)
        return max(1, min(by_time, _STRATA_AT_ONCE // self.config.num_blocks))

    @property
    def strata_at_once(self) -> int:
        """Strata in one program, at most."""
        if self.source.one_stratum_at_once:
            return 1
        return self.epochs_at_once * self.config.num_blocks


def init(setup: Setup, factors: Factors) -> DsgdState:
    """Deals the factors out: column block j begins in slot j."""
    u = block_objective.side_blocks(setup.cut.u, factors.u, setup.terms.u)
    v = block_objective.side_blocks(setup.cut.v, factors.v, setup.terms.v)
    u, v = parallel.split(setup.mesh, u), parallel.split(setup.mesh, v)
    return DsgdState(u, v, np.arange(setup.config.num_blocks), 0)


def epochs(
    setup: Setup, state: DsgdState, epoch: int, step_sizes: Sequence[float]
) -> tuple[DsgdState, int]:
    """Runs as many epochs as one program may, of those that have a step size here.

    Args:
      setup: see there.
      state: before them.
      epoch: number of the first, from 1.
      step_sizes: of each.

    Returns:
      The state after them, and how many there were.
    """
    config, programs = setup.config, setup.programs
    at_most = min(setup.epochs_at_once, len(step_sizes))
    drawn = visits.draw_epochs(setup.cut, config, epoch, at_most, config.schedule)
    visit = visits.in_a_row(drawn)
    moves = plan_travel(visit.schedule, state.held, config.num_devices)
    rates = np.repeat(np.asarray(step_sizes[: len(drawn)], np.float32), config.num_blocks)
    u, v = state.u, state.v
    if setup.objective.record.all_cells is not None:
        u, v = programs.move_rows_without_entries(u, v, state.held.astype(np.int32), rates[0])
    for portion in setup.source.portions(visit):
        count = np.int32(portion.first.shape[1])
        # One shape, so one program, however many epochs there are.
        plan = jax.tree.map(
            functools.partial(_lengthened, setup.strata_at_once),
            (moves.strata(portion.which), (portion.first, portion.last), rates[portion.which]),
            (TRAVEL_STRATA, (1, 1), 0),
        )
        u, v = programs.run_strata(u, v, portion.entries, *plan[:2], count, plan[2])
    return DsgdState(u, v, moves.held[:, -1], visit.shuffle), len(drawn)


def _lengthened(length: int, x: np.ndarray, axis: int) -> np.ndarray:
    """With zeros up to a length of one axis."""
    return np.pad(x, [(0, (length - x.shape[a]) * (a == axis)) for a in range(x.ndim)])


def losses_by_block(setup: Setup, state: DsgdState, objective: Objective) -> np.ndarray:
    """Sums over blocks of the entries' losses, [P, P]; `objective` names the loss."""
    num_blocks = setup.config.num_blocks
    program = setup.programs.losses[objective.loss]
    visit = visits.every_block_once(setup.cut, int(state.shuffle))
    moves = plan_travel(visit.schedule, state.held, setup.config.num_devices)
    v, sums = state.v.factors, np.empty((num_blocks, num_blocks), np.float32)
    rows = np.arange(num_blocks)[:, None]
    for portion in setup.source.portions(visit):
        v, losses = program(
            state.u.factors,
            v,
            portion.entries,
            moves.strata(portion.which),
            (portion.first, portion.last),
        )
        # [row block, sub-epoch] -> [row block, column block]
        sums[rows, visit.schedule.T[:, portion.which]] = parallel.to_host(losses)
    return sums


def objective_of(setup: Setup, state: DsgdState, losses: np.ndarray) -> float:
    """The objective, from the entries' losses under it."""
    penalties, cell_sums = parallel.to_host(setup.programs.penalties(state.u, state.v))
    u_sums, v_sums = cell_sums
    by_number = np.argsort(state.held)
    return objectives.total(
        losses,
        np.concatenate([penalties[0].ravel(), penalties[1][by_number].ravel()]),
        u_sums,
        None if v_sums is None else v_sums[by_number],
    )


def factors_of(setup: Setup, state: DsgdState) -> Factors:
    """The factors in the order of the matrix's rows and columns."""
    u, v = parallel.to_host((state.u.factors, state.v.factors))
    return Factors(setup.cut.u.join(u), setup.cut.v.join(v[np.argsort(state.held)]))


def make_solver(
    objective: Objective,
    entries: Entries,
    config: DsgdConfig,
    prior: FactorPrior | None = None,
    width: int = 32,
) -> Solver:
    """DSGD as a solver; plain SGD where ``config.num_blocks`` is 1.

    Of several processes, each keeps the entries of its own devices' row blocks.

    Args:
      objective: any loss and penalty.
      entries: of the matrix.
      config: how the work is cut up.
      prior: see `objective.make_terms`.
      width: columns of the factors to come, which size the sub-blocks; any other width works too.

    Raises:
      ValueError: bad values, more blocks than rows or columns, or fewer devices than asked for.
    """
    objectives.check_values(objective, entries)
    own = parallel.own_share(parallel.make_mesh(config.num_devices), config.num_blocks)
    cut = visits.cut_matrix(entries, config, config.num_blocks, width, own)
    return solve_blocks(objective, cut, config, objectives.make_terms(objective, entries, prior))


def solve_blocks(
    objective: Objective, cut: Blocks | BlockStore, config: DsgdConfig, terms: Terms
) -> Solver:
    """DSGD over blocks that were cut already, in memory or in a store.

    From a store, the entries of one stratum are read while those of the one before are worked on,
    so that at most two strata's entries are in memory. The factors are the same to the last bit; so
    is the objective with the backend `numba`, while `xla` adds a block's losses up in an order that
    depends on the padding, and its last digits differ.

    Args:
      objective: any loss and penalty; the values are not checked against it here.
      cut: the blocks of this process's devices at least, cut with ``config.seed``.
      config: how the work is cut up.
      terms: from `objective.make_terms`.
    """
    config = dataclasses.replace(config, backend=block_update.choose_backend(config.backend))
    mesh = parallel.make_mesh(config.num_devices)
    source = open_source(cut, config, mesh)
    programs = make_programs(dataclasses.replace(objective, regularization=0.0), config, mesh)
    setup = Setup(objective, config, mesh, cut, terms, source, programs)
    losses = block_objective.remember_last(functools.partial(losses_by_block, setup))
    return Solver(
        init=functools.partial(init, setup),
        epochs=functools.partial(epochs, setup),
        objective=lambda state: objective_of(setup, state, losses(state, objective)),
        factors=functools.partial(factors_of, setup),
        squared_error=lambda state: float(losses(state, SQUARED_ERROR).sum(dtype=np.float64)),
    )
