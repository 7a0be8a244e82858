"""Episodes cut from synthetic worlds of ratings: what the prior of rating matrices learns from.

A batch takes its matrices from several worlds; the same worlds serve some steps in a row, since
drawing one costs as much as a step of training. All is a function of seed and step alone.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from experiments.rating_cuts import rating_cut
from metamf_jax.data.rating_worlds import draw_world
from metamf_jax.meta_learning import padding
from metamf_jax.meta_learning.episodes import fit_standardization, standardize
from metamf_jax.meta_learning.meta_loss import Episode
from metamf_jax.types import Entries


class SizeClass(NamedTuple):
    """Sizes of the matrices of one batch, which is padded to the largest.

    Attributes:
      rows, columns: least and most.
      cells: most observed cells.
      batch: matrices.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    cells: int
    batch: int


# Worlds that are at hand at a time, and for how many steps.
_WORLDS, _STEPS = 8, 16
_SIDE = 250
_FEWEST, _SUPPORT = 15, (0.3, 0.9)
_MOST = 10.0


def draw_batch(
    rng: np.random.Generator,
    size: SizeClass,
    seed: int,
    step: int,
    worlds: int | None = None,
    at_hand: int = _WORLDS,
) -> Episode:
    """Draws rating matrices, split at random in what is observed and what is scored.

    Half are cut uniformly, half the likelier the more ratings a row or column has. Half are
    standardised by their own observed cells, half by all of their world, as who has a whole rating
    set does.

    Args:
      rng: draws all but the worlds.
      size: square matrices, of the sides of the rows.
      seed, step: of the worlds.
      worlds: how many there are in all; None for new ones every few steps.
      at_hand: from how many the batch is cut.
    """
    support, query = [], []
    for i in range(size.batch):
        number = step // _STEPS * _WORLDS + i % at_hand
        world = _world(seed, number if worlds is None else number % worlds)
        entries = _cut(rng, world, int(rng.integers(*size.rows, endpoint=True)))
        count = max(1, round(rng.uniform(*_SUPPORT) * len(entries.rows)))
        observed = _some(entries, slice(min(count, size.cells)))
        scored = _some(entries, slice(count, count + size.cells // 2))
        own = rng.random() < 0.5 and np.ptp(observed.values) > 0
        measured = fit_standardization(np.asarray((observed if own else world).values))
        support.append(standardize(observed, measured))
        scored = standardize(scored, measured)
        clipped = np.clip(scored.values, -_MOST, _MOST)
        query.append(dataclasses.replace(scored, values=clipped))
    shape = size.rows[1], size.columns[1]
    return Episode(
        padding.stack_entries(support, shape, size.cells),
        padding.stack_entries(query, shape, size.cells // 2),
    )


@functools.lru_cache(maxsize=2 * _WORLDS)
def _world(seed: int, number: int) -> Entries:
    return draw_world(np.random.default_rng([seed, number, _SIDE]), (_SIDE, _SIDE))


def _cut(rng: np.random.Generator, world: Entries, side: int) -> Entries:
    """In random order; of a sparse world the popular part, where any other would be empty."""
    cut = rating_cut(rng, world, side, popular=rng.random() < 0.5)
    while len(cut.rows) < _FEWEST:
        cut = rating_cut(rng, world, side)
    return _some(cut, rng.permutation(len(cut.rows)))


def _some(entries: Entries, which) -> Entries:
    return Entries(
        entries.rows[which], entries.columns[which], entries.values[which], entries.shape
    )
