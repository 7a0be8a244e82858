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
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax import parallel
from metamf_jax.factorization import block_update, sgd, strata
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.block_update import Points, SideBlocks, Work
from metamf_jax.factorization.blocks import (
    BlockRng,
    Blocks,
    cuts_for_cache,
    make_blocks,
    shuffle_inside,
)
from metamf_jax.factorization.objective import CellSums, Objective, Terms
from metamf_jax.factorization.solver import Solver
from metamf_jax.parallel import REPLICATED, SPLIT
from metamf_jax.types import Array, Entries, FactorPrior, Factors

POINT_ORDERS: Final = ("blocks", "full")

# Epochs between two shuffles inside the sub-blocks, where blocks have few of them and where they
# have many. With many the order of sub-blocks is random enough: on ML-1M at rank 32 (AdaGrad, 256
# sub-blocks a block) the test RMSE after 20 epochs was 0.8521 with a shuffle every epoch, every 8th
# and with none, and a shuffle takes as long as several epochs. With one, on matrices of a hundred
# cells, the objective ends 1% higher when it comes rarely.
_INSIDE_EVERY, _INSIDE_EVERY_OF_MANY, _MANY = 8, 64, 8

# Epochs that one program runs where nothing is evaluated between them: no more than so many strata
# and updates, so that a program ends within a second. To start a program takes a few milliseconds.
_STRATA_AT_ONCE, _POINTS_AT_ONCE = 64, 20_000_000

# Streams of random numbers drawn from one seed.
_CUT, _EPOCH, _INSIDE = range(3)


@dataclasses.dataclass(frozen=True)
class DsgdConfig:
    """How the work is cut up.

    Attributes:
      num_blocks: P, blocks per side; a multiple of `num_devices`.
      num_devices: D.
      schedule: one of `strata.SCHEDULES`.
      point_order: `blocks` visits cache-sized sub-blocks in a fresh random order every epoch, and
        shuffles inside them every 8th, or every 64th where a block has many; `full` puts all points
        of a block into a fresh random order every epoch, which takes longer than the updates.
      backend: one of `block_update.BACKENDS`.
      per_row: whether AdaGrad scales the steps, see `step_size.StepSize.per_row`.
      seed: of the permutation, the strata and the order of points.
    """

    num_blocks: int = 1
    num_devices: int = 1
    schedule: str = "wor"
    point_order: str = "blocks"
    backend: str = "auto"
    per_row: bool = False
    seed: int = 0

    def __post_init__(self):
        if self.num_blocks < 1 or self.num_blocks % self.num_devices:
            raise ValueError(
                f"expected a number of blocks that is a multiple of the {self.num_devices} devices,"
                f" got {self.num_blocks}"
            )
        if self.schedule not in strata.SCHEDULES:
            raise ValueError(
                f"expected a schedule among {', '.join(strata.SCHEDULES)}, got {self.schedule!r}"
            )
        if self.point_order not in POINT_ORDERS:
            raise ValueError(
                f"expected a point order among {', '.join(POINT_ORDERS)}, got {self.point_order!r}"
            )


class DsgdState(NamedTuple):
    """Factors in blocks, on their devices.

    Attributes:
      u: P row blocks.
      v: P column blocks, in the slots where they now lie.
      held: [P] NumPy, ``held[q]`` is the column block in slot q.
      shuffle: of the points in the last epoch, which the objective then sums in the same order.
    """

    u: SideBlocks
    v: SideBlocks
    held: np.ndarray
    shuffle: int


class Travel(NamedTuple):
    """A plan in integers: which blocks move before each sub-epoch, and where they are then.

    Attributes:
      rounds: [S, D - 1], see `parallel.exchange`.
      send: [D, S, D - 1, B].
      receive: [D, S, D - 1, B].
      held: [P, S], the column block in each slot after the move.
      slots: [P, S], for each row block the slot on its device of the column block it meets.
    """

    rounds: Any
    send: Any
    receive: Any
    held: Any
    slots: Any

    def strata(self, which: slice) -> "Travel":
        """The moves before some of the sub-epochs, the last of which continue those before."""
        return Travel(
            self.rounds[which],
            self.send[:, which],
            self.receive[:, which],
            self.held[:, which],
            self.slots[:, which],
        )


def plan_travel(schedule: np.ndarray, held: np.ndarray, num_devices: int) -> Travel:
    """Plans the moves: a block moves when it is wanted on another device, straight to it.

    Args:
      schedule: [S, P] from `strata.make_schedule`.
      held: [P], where the column blocks lie at first.
      num_devices: D.
    """
    steps, num_blocks = schedule.shape
    per_device = num_blocks // num_devices
    hops = num_devices - 1
    rounds = np.zeros((steps, hops), np.int32)
    send = np.zeros((num_devices, steps, hops, per_device), np.int32)
    receive = np.full((num_devices, steps, hops, per_device), per_device, np.int32)
    held_after = np.empty((num_blocks, steps), np.int32)
    slots = np.empty((num_blocks, steps), np.int32)
    home = np.arange(num_blocks) // per_device
    for s, wanted in enumerate(schedule):
        target = np.empty(num_blocks, int)
        target[wanted] = home
        leaving = np.flatnonzero(target[held] != home)
        vacant = [list(leaving[home[leaving] == d]) for d in range(num_devices)]
        sent = np.zeros((num_devices, hops), int)
        new = held.copy()
        for slot in leaving:
            block = held[slot]
            here, there = home[slot], target[block]
            to = vacant[there].pop(0)
            hop = (there - here) % num_devices - 1
            j = sent[here, hop]
            sent[here, hop] += 1
            send[here, s, hop, j] = slot % per_device
            receive[there, s, hop, j] = to % per_device
            new[to] = block
        rounds[s] = sent.max(axis=0)
        held = new
        held_after[:, s] = held
        at = np.empty(num_blocks, int)
        at[held] = np.arange(num_blocks) % per_device
        slots[:, s] = at[wanted]
    return Travel(rounds, send, receive, held_after, slots)


def _sums_in_block_order(
    objective: Objective, factors: Array, numbers: Array, num_blocks: int
) -> CellSums:
    """`objective.cell_sums` of all blocks, added in the order of the blocks' numbers."""
    if objectives.cell_sums(objective, factors[0]) is None:
        return None
    own = jax.lax.map(lambda f: objectives.cell_sums(objective, f), factors)
    table = jnp.zeros((num_blocks, *own.shape[1:]), own.dtype).at[numbers].set(own)
    return parallel.merge_over_devices(table).sum(axis=0)


def _generator(config: DsgdConfig, stream: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng((config.seed, stream, *numbers))


def block_rng(config: DsgdConfig, shuffle: int) -> BlockRng:
    """Draws the order of each block's points in a shuffle; the 0th is that of the cut."""
    return lambda i, j: _generator(config, _INSIDE, shuffle, i, j)


def sides_rng(config: DsgdConfig) -> np.random.Generator:
    """Deals rows and columns out to blocks."""
    return _generator(config, _CUT)


def cut_matrix(
    entries: Entries,
    config: DsgdConfig,
    width: int,
    own: range | None = None,
    num_points: int | None = None,
) -> Blocks:
    """Cuts the matrix as `config` says, for factors of `width` columns; keeps row blocks `own`.

    The number of sub-blocks follows from `num_points`, by default that of the entries.
    """
    cuts = 1, 1
    if config.point_order == "blocks":
        num_points = len(entries.values) if num_points is None else num_points
        cuts = cuts_for_cache(entries.shape, config.num_blocks, width, num_points)
    return make_blocks(
        entries, config.num_blocks, cuts, sides_rng(config), block_rng(config, 0), own
    )


class Visits(NamedTuple):
    """What an epoch does, in which order.

    Attributes:
      schedule: [S, P], see `strata.make_schedule`.
      first: [P, S, Q] int32: first point of each sub-block to visit, see `block_update.Work`.
      last: [P, S, Q] int32.
      shuffle: which shuffle of the points inside the sub-blocks to use, see `shuffled_points`.
    """

    schedule: np.ndarray
    first: np.ndarray
    last: np.ndarray
    shuffle: int


def draw_visits(cut: Blocks | BlockStore, config: DsgdConfig, epoch: int) -> Visits:
    """Draws the strata and the order of sub-blocks of an epoch, counted from 1."""
    rng = _generator(config, _EPOCH, epoch)
    schedule = strata.make_schedule(config.schedule, config.num_blocks, rng)
    offsets = cut.offsets[np.arange(config.num_blocks)[:, None], schedule.T]
    order = np.broadcast_to(np.arange(offsets.shape[2] - 1), offsets[:, :, 1:].shape)
    order = rng.permuted(order, axis=2)
    every = _INSIDE_EVERY if order.shape[2] < _MANY else _INSIDE_EVERY_OF_MANY
    every = 1 if config.point_order == "full" else every
    return Visits(
        schedule,
        np.take_along_axis(offsets[:, :, :-1], order, axis=2),
        np.take_along_axis(offsets[:, :, 1:], order, axis=2),
        (epoch - 1) // every,
    )


def shuffled_points(cut: Blocks, config: DsgdConfig, shuffle: int) -> Points:
    """The points with the insides of their sub-blocks in the order of a shuffle, from 0.

    Each starts from the order of the cut, so that a run that goes on finds the same as one that
    never stopped.
    """
    shuffled = cut.shuffled(block_rng(config, shuffle)) if shuffle else cut
    return Points(*shuffled.points)


def _stratum_points(
    store: BlockStore, config: DsgdConfig, stratum: np.ndarray, shuffle: int
) -> Points:
    """The points of one stratum in `shuffled_points`' order, [P', L] each, from disk.

    ``L`` is the number of points in the largest of all blocks, the same for every stratum.
    """
    longest = max(1, int((store.offsets[:, :, -1] - store.offsets[:, :, 0]).max()))
    tables = Points(*(np.zeros((len(store.own), longest), t) for t in ("i4", "i4", "f4")))
    for k, i in enumerate(store.own):
        j = stratum[i]
        points = store.read(i, j)
        if shuffle:
            points = shuffle_inside(points, store.offsets[i, j], block_rng(config, shuffle)(i, j))
        for table, x in zip(tables, points, strict=True):
            table[k, : len(x)] = x
    return tables


def penalties_and_sums(objective: Objective, u: SideBlocks, v: SideBlocks) -> Any:
    """What the objective holds beside the points: penalties of rows, `cell_sums` of blocks.

    Returns:
      ([B, R], [B, C]), to be added in float64: a sum over rows is compiled otherwise, and rounds
      otherwise, for another number of blocks on the device; and ([B, ...], [B, ...]) or Nones.
    """

    def cell_sums_of(factors):
        if objectives.cell_sums(objective, factors[0]) is None:
            return None
        return jax.lax.map(lambda f: objectives.cell_sums(objective, f), factors)

    def penalties_of(side, name):
        by_row = jax.vmap(lambda f, t: objectives.penalty_parts(objective, f, t, name))
        return objectives.sum_in_order(jax.vmap(by_row)(side.factors, side.terms))

    penalties = penalties_of(u, "u"), penalties_of(v, "v")
    return penalties, (cell_sums_of(u.factors), cell_sums_of(v.factors))


def remember_last(losses_of: Callable[[Any, str], np.ndarray]) -> Callable[[Any, str], np.ndarray]:
    """Of (state, loss): asked again for the same, gives the last result again.

    So the objective's pass over the points gives the squared error too, where that is the loss.
    """
    last: dict[str, Any] = {}

    def remembered(state, loss):
        if last.get("state") is not state or last["loss"] != loss:
            last.update(state=state, loss=loss, sums=losses_of(state, loss))
        return last["sums"]

    return remembered


def _lengthened(length: int, x: np.ndarray, axis: int) -> np.ndarray:
    """With zeros up to a length of one axis: one shape, so one program, however many epochs."""
    return np.pad(x, [(0, (length - x.shape[a]) * (a == axis)) for a in range(x.ndim)])


def make_solver(
    objective: Objective,
    entries: Entries,
    config: DsgdConfig,
    prior: FactorPrior | None = None,
    width: int = 32,
) -> Solver:
    """DSGD as a solver; plain SGD where ``config.num_blocks`` is 1.

    Of several processes, each keeps the points of its own devices' row blocks.

    Args:
      objective: any loss and penalty.
      entries: the points.
      config: how the work is cut up.
      prior: see `objective.make_terms`.
      width: columns of the factors to come, which size the sub-blocks; any other width works too.

    Raises:
      ValueError: bad values, more blocks than rows or columns, or fewer devices than asked for.
    """
    objectives.check_values(objective, entries)
    own = parallel.own_share(parallel.make_mesh(config.num_devices), config.num_blocks)
    cut = cut_matrix(entries, config, width, own)
    return solve_blocks(objective, cut, config, objectives.make_terms(objective, entries, prior))


def solve_blocks(
    objective: Objective, cut: Blocks | BlockStore, config: DsgdConfig, terms: Terms
) -> Solver:
    """DSGD over blocks that were cut already, in memory or in a store.

    From a store, the points of one stratum are read while those of the one before are worked on, so
    that at most two strata's points are in memory. The factors are the same to the last bit; so is
    the objective with the backend `numba`, while `xla` adds a block's losses up in an order that
    depends on the padding, and its last digits differ.

    Args:
      objective: any loss and penalty; the values are not checked against it here.
      cut: the blocks of this process's devices at least, cut with ``config.seed``.
      config: how the work is cut up.
      terms: from `objective.make_terms`.
    """
    backend = block_update.choose_backend(config.backend)
    num_blocks, num_devices = config.num_blocks, config.num_devices
    mesh = parallel.make_mesh(num_devices)
    start = np.arange(num_blocks)
    # Only the last shuffle is kept, by its number.
    points_of_shuffle: dict[int, Points] = {}

    def points_of(blocks, shuffle):
        if shuffle not in points_of_shuffle:
            points_of_shuffle.clear()
            points = shuffled_points(blocks, config, shuffle)
            points_of_shuffle[shuffle] = parallel.split_own(mesh, points)
        return points_of_shuffle[shuffle]

    def portions(schedule, first, last, shuffle):
        """Yields strata that are worked on in one program, their points, first and last."""
        if isinstance(cut, Blocks):
            yield slice(None), points_of(cut, shuffle), first, last
            return
        store = cut
        # A store's points come block by block, numbered from 0.
        begin = store.offsets[np.arange(num_blocks)[:, None], schedule.T, :1]
        first, last = first - begin, last - begin

        def read(s):
            return _stratum_points(store, config, schedule[s], shuffle)

        for s, points in enumerate(parallel.prefetch(read, 0, len(schedule))):
            which = slice(s, s + 1)
            yield which, parallel.split_own(mesh, points), first[:, which], last[:, which]

    def init(factors):
        def blocks_of(side, factor, side_terms):
            return SideBlocks(
                side.split(factor),
                np.ones(side.shape, np.float32),
                jax.tree.map(side.split, side_terms),
            )

        u = blocks_of(cut.u, factors.u, terms.u)
        v = blocks_of(cut.v, factors.v, terms.v)
        return DsgdState(parallel.split(mesh, u), parallel.split(mesh, v), start, 0)

    def sums_of(u, v, held):
        numbers = parallel.device_index() * u.shape[0] + jnp.arange(u.shape[0])
        return (
            _sums_in_block_order(objective, u, numbers, num_blocks),
            _sums_in_block_order(objective, v, held, num_blocks),
        )

    def sub_epochs(body, travel, visits):
        """What a loop over strata takes: all its steps, and a function of carry and one step.

        A step moves the column blocks and runs ``body(u, v, work, held)``, which returns u, v and a
        result.
        """
        first, last = visits
        local = travel._replace(send=travel.send[0], receive=travel.receive[0])
        by_step = (
            local._replace(held=local.held.T, slots=local.slots.T),
            jnp.swapaxes(first, 0, 1),
            jnp.swapaxes(last, 0, 1),
        )

        def sub_epoch(carry, step):
            u, v = carry
            move, first, last = step
            v = parallel.exchange(v, move.rounds, move.send, move.receive, num_devices)
            u, v, result = body(u, v, Work(first, last, move.slots), move.held)
            return (u, v), result

        return by_step, sub_epoch

    def run_without_points(u, v, held, step_size):
        sums = sums_of(u.factors, v.factors, held)
        masks = objectives.trainable(objective, u.factors.shape[2])

        def move(side, opposite, mask):
            def one_block(block):
                return sgd.step_without_points(
                    objective, step_size, block.factors, block.terms, opposite, mask
                )

            return side._replace(factors=jax.lax.map(one_block, side))

        return move(u, sums[1], masks[0]), move(v, sums[0], masks[1])

    def run_strata(u, v, points, travel, visits, count, step_sizes):
        def one_stratum(s, carry):
            def body(u, v, work, held):
                sums = sums_of(u.factors, v.factors, held)
                u, v = block_update.block_update(
                    backend, objective, config.per_row, step_sizes[s], u, v, points, work, sums
                )
                return *parallel.as_varying((u, v)), None

            by_step, sub_epoch = sub_epochs(body, travel, visits)
            return sub_epoch(carry, jax.tree.map(lambda x: x[s], by_step))[0]

        return jax.lax.fori_loop(0, count, one_stratum, (u, v))

    def run_losses(loss, u, v, points, travel, visits):
        def body(u, v, work, held):
            losses = block_update.block_losses(backend, loss, u, v, points, work)
            return u, v, parallel.as_varying(losses)

        by_step, sub_epoch = sub_epochs(body, travel, visits)
        (_, v), losses = jax.lax.scan(sub_epoch, (u, v), by_step)
        return v, losses.T

    travel_specs = Travel(REPLICATED, SPLIT, SPLIT, SPLIT, SPLIT)
    without_points_program = parallel.sharded(
        mesh, run_without_points, (SPLIT, SPLIT, SPLIT, REPLICATED), (SPLIT, SPLIT)
    )
    strata_program = parallel.sharded(
        mesh,
        run_strata,
        (SPLIT, SPLIT, SPLIT, travel_specs, SPLIT, REPLICATED, REPLICATED),
        (SPLIT, SPLIT),
    )
    squared = Objective("squared", "none")
    losses_programs = {
        loss.loss: parallel.sharded(
            mesh,
            functools.partial(run_losses, loss),
            (SPLIT, SPLIT, SPLIT, travel_specs, SPLIT),
            (SPLIT, SPLIT),
        )
        for loss in (objective, squared)
    }
    penalties_program = parallel.sharded(
        mesh, functools.partial(penalties_and_sums, objective), (SPLIT, SPLIT), SPLIT
    )
    has_all_cell_term = objective.record.all_cells is not None

    def most_at_once():
        """Epochs in one program."""
        if has_all_cell_term or isinstance(cut, BlockStore):
            return 1
        by_time = _POINTS_AT_ONCE // max(1, cut.num_points)
        return max(1, min(by_time, _STRATA_AT_ONCE // num_blocks))

    at_once = most_at_once()

    def epochs(state, epoch, step_sizes):
        visits = [draw_visits(cut, config, epoch)]
        for later in range(epoch + 1, epoch + min(at_once, len(step_sizes))):
            drawn = draw_visits(cut, config, later)
            if drawn.shuffle != visits[0].shuffle:
                break
            visits.append(drawn)
        shuffle = visits[0].shuffle
        schedule = np.concatenate([each.schedule for each in visits])
        travel = plan_travel(schedule, state.held, num_devices)
        ends = [
            np.concatenate(each, axis=1)
            for each in zip(*((each.first, each.last) for each in visits), strict=True)
        ]
        sizes = np.repeat(np.float32(step_sizes[: len(visits)]), num_blocks)
        u, v = state.u, state.v
        if has_all_cell_term:
            u, v = without_points_program(u, v, state.held.astype(np.int32), sizes[0])
        for which, points, first, last in portions(schedule, ends[0], ends[1], shuffle):
            count = first.shape[1]
            longest = 1 if isinstance(cut, BlockStore) else at_once * num_blocks
            moves, first_last, rates = jax.tree.map(
                functools.partial(_lengthened, longest),
                (travel.strata(which), (first, last), sizes[which]),
                (Travel(0, 1, 1, 1, 1), (1, 1), 0),
            )
            u, v = strata_program(u, v, points, moves, first_last, np.int32(count), rates)
        return DsgdState(u, v, travel.held[:, -1], shuffle), len(visits)

    def epoch(state, epoch, step_size):
        return epochs(state, epoch, [step_size])[0]

    @remember_last
    def losses_of(state, loss):
        """[P, P], sums over blocks of the points' losses."""
        schedule = strata.make_schedule("seq", num_blocks, _generator(config, _EPOCH))
        travel = plan_travel(schedule, state.held, num_devices)
        # A block's sub-blocks are neighbours: one visit for all.
        ends = cut.offsets[np.arange(num_blocks)[:, None], schedule.T][:, :, [0, -1]]
        v, sums = state.v.factors, np.empty((num_blocks, num_blocks), np.float32)
        for which, points, first, last in portions(
            schedule, ends[:, :, :1], ends[:, :, 1:], int(state.shuffle)
        ):
            v, losses = losses_programs[loss](
                state.u.factors, v, points, travel.strata(which), (first, last)
            )
            # From [row block, sub-epoch] to [row block, column block].
            sums[np.arange(num_blocks)[:, None], schedule.T[:, which]] = parallel.to_host(losses)
        return sums

    def objective_of(state):
        penalties, cell_sums = parallel.to_host(penalties_program(state.u, state.v))
        u_sums, v_sums = cell_sums
        by_number = np.argsort(state.held)
        return objectives.total(
            losses_of(state, objective.loss),
            np.concatenate([penalties[0].ravel(), penalties[1][by_number].ravel()]),
            u_sums,
            None if v_sums is None else v_sums[by_number],
        )

    def squared_error(state):
        return float(losses_of(state, squared.loss).sum(dtype=np.float64))

    def factors(state):
        u, v = parallel.to_host((state.u.factors, state.v.factors))
        return Factors(cut.u.join(u), cut.v.join(v[np.argsort(state.held)]))

    return Solver(init, epoch, objective_of, factors, squared_error, epochs)
