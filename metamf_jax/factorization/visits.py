"""What SGD visits in which order, all of it drawn from the seed: the cut, the strata, the entries.

Each stream of random numbers is drawn from the seed and the numbers of epoch, shuffle or block, so
that a run that goes on finds the same as one that never stopped, on any number of devices.
"""

from typing import NamedTuple

import numpy as np

from metamf_jax.factorization import block_update, strata
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.blocks import (
    MANY_SUB_BLOCKS,
    BlockRng,
    Blocks,
    cuts_for_cache,
    cuts_for_strata,
    make_blocks,
)
from metamf_jax.factorization.sgd import SgdConfig
from metamf_jax.types import Entries

# Epochs between two shuffles inside the sub-blocks, where blocks have few of them and where they
# have many. With many the order of sub-blocks is random enough: on ML-1M at rank 32 (AdaGrad, 256
# sub-blocks a block) the test RMSE after 20 epochs was 0.8521 with a shuffle every epoch, every 8th
# and with none, and a shuffle takes as long as several epochs. With one, on matrices of a hundred
# entries, the objective ends 1% higher when it comes rarely.
_INSIDE_EVERY, _INSIDE_EVERY_OF_MANY = 8, 64

# Streams of random numbers drawn from one seed.
_CUT, _EPOCH, _INSIDE = range(3)


def _generator(config: SgdConfig, stream: int, *numbers: int) -> np.random.Generator:
    return np.random.default_rng((config.seed, stream, *numbers))


def block_rng(config: SgdConfig, shuffle: int) -> BlockRng:
    """Draws the order of each block's entries in a shuffle; the 0th is that of the cut."""
    return lambda i, j: _generator(config, _INSIDE, shuffle, i, j)


def sides_rng(config: SgdConfig) -> np.random.Generator:
    """Deals rows and columns out to blocks."""
    return _generator(config, _CUT)


def cut_matrix(
    entries: Entries,
    config: SgdConfig,
    num_blocks: int,
    width: int,
    own: range | None = None,
    num_entries: int | None = None,
) -> Blocks:
    """Cuts the matrix as `config` says.

    Args:
      entries: of the matrix.
      config: its order of entries and seed.
      num_blocks: P, blocks per side.
      width: columns of the factors to come, which size the sub-blocks.
      own: the row blocks whose entries to keep; None for all.
      num_entries: what the number of sub-blocks follows from; None for that of the entries.
    """
    cuts = 1, 1
    num_entries = len(entries.values) if num_entries is None else num_entries
    if config.backend in block_update.ABREAST:
        cuts = cuts_for_strata(entries.shape, num_blocks, num_entries)
    elif config.point_order == "blocks":
        cuts = cuts_for_cache(entries.shape, num_blocks, width, num_entries)
    even = config.backend in block_update.ABREAST  # The largest sub-block is waited for.
    rngs = sides_rng(config), block_rng(config, 0)
    return make_blocks(entries, num_blocks, cuts, *rngs, own, even)


class Visits(NamedTuple):
    """What some sub-epochs do, in which order.

    Attributes:
      schedule: [S, P], see `strata.make_schedule`.
      first: [P, S, Q] int32: first entry of each sub-block to visit, see `block_update.Work`; or
        [P, S, G, G], sub-strata of sub-blocks that share neither rows nor columns.
      last: [P, S, Q] int32, or [P, S, G, G].
      shuffle: which shuffle of the entries inside the sub-blocks to use, counted from 0.
    """

    schedule: np.ndarray
    first: np.ndarray
    last: np.ndarray
    shuffle: int


def draw_visits(
    cut: Blocks | BlockStore, config: SgdConfig, epoch: int, schedule: str = "wor"
) -> Visits:
    """Draws the strata and the order of sub-blocks of an epoch, counted from 1."""
    rng = _generator(config, _EPOCH, epoch)
    strata_drawn = strata.make_schedule(schedule, cut.num_blocks, rng)
    offsets = _offsets_in_order(cut, strata_drawn)
    if (
        config.backend in block_update.ABREAST
        and isinstance(cut, Blocks)  # A store does not tell how it was cut.
        and cut.cuts[0] == cut.cuts[1]
    ):
        order = _sub_strata(offsets.shape[:2], cut.cuts[0], rng)
    else:
        order = np.broadcast_to(np.arange(offsets.shape[2] - 1), offsets[:, :, 1:].shape)
        order = rng.permuted(order, axis=2)
    every = _INSIDE_EVERY if offsets.shape[2] <= MANY_SUB_BLOCKS else _INSIDE_EVERY_OF_MANY
    every = 1 if config.point_order == "full" else every
    first, last = (
        np.take_along_axis(ends, order.reshape(*order.shape[:2], -1), axis=2).reshape(order.shape)
        for ends in (offsets[:, :, :-1], offsets[:, :, 1:])
    )
    return Visits(strata_drawn, first, last, (epoch - 1) // every)


def _sub_strata(shape: tuple[int, int], parts: int, rng: np.random.Generator) -> np.ndarray:
    """`strata.make_schedule`'s `wor` of each block's G x G sub-blocks, [*shape, G, G]: numbers."""
    steps = np.broadcast_to(np.arange(parts), (*shape, parts))
    rows, columns = rng.permuted(steps, axis=2), rng.permuted(steps, axis=2)
    met = (rows[:, :, None, :] + columns[:, :, :, None]) % parts
    return np.arange(parts) * parts + met


def draw_epochs(
    cut: Blocks | BlockStore, config: SgdConfig, epoch: int, at_most: int, schedule: str
) -> list[Visits]:
    """`draw_visits` of the epochs from `epoch` on that share one shuffle: one or more."""
    drawn = [draw_visits(cut, config, epoch, schedule)]
    for later in range(epoch + 1, epoch + at_most):
        visits = draw_visits(cut, config, later, schedule)
        if visits.shuffle != drawn[0].shuffle:
            break
        drawn.append(visits)
    return drawn


def in_a_row(drawn: list[Visits]) -> Visits:
    """Epochs of one shuffle, one after the other."""
    return Visits(
        np.concatenate([visits.schedule for visits in drawn]),
        np.concatenate([visits.first for visits in drawn], axis=1),
        np.concatenate([visits.last for visits in drawn], axis=1),
        drawn[0].shuffle,
    )


def every_block_once(cut: Blocks | BlockStore, shuffle: int) -> Visits:
    """A pass over all entries that changes nothing."""
    schedule = strata.make_schedule("seq", cut.num_blocks, np.random.default_rng(0))
    return whole_blocks(cut, schedule, shuffle)


def whole_blocks(cut: Blocks | BlockStore, schedule: np.ndarray, shuffle: int) -> Visits:
    """The strata of a schedule; a block's sub-blocks are one visit."""
    ends = _offsets_in_order(cut, schedule)[:, :, [0, -1]]
    return Visits(schedule, ends[:, :, :1], ends[:, :, 1:], shuffle)


def _offsets_in_order(cut: Blocks | BlockStore, schedule: np.ndarray) -> np.ndarray:
    """[P, S, Q + 1]: of each row block the offsets of the blocks that it meets."""
    return cut.offsets[np.arange(cut.num_blocks)[:, None], schedule.T]
