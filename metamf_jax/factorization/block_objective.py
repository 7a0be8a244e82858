"""The objective of factors that lie in blocks on devices, in float64 and in block order.

However many devices there are, it is the same to the last bit: it decides (bold driver, early
stopping).
"""

from collections.abc import Callable
from typing import Any, Final

import jax
import numpy as np

from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.block_update import SideBlocks
from metamf_jax.factorization.blocks import Side
from metamf_jax.factorization.objective import CellSums, Objective, SideTerms
from metamf_jax.types import Array

# What the squared error of the entries is the objective of.
SQUARED_ERROR: Final = Objective("squared", "none")


def side_blocks(side: Side, factors: Array, terms: SideTerms) -> SideBlocks:
    """One side's factors [N, K] and terms in blocks, before the first step.

    Args:
      side: where its rows (or columns) went.
      factors: [N, K].
      terms: of its rows.
    """
    squares = np.ones(side.shape, np.float32)
    return SideBlocks(side.split(np.asarray(factors)), squares, jax.tree.map(side.split, terms))


def cell_sums(objective: Objective, factors: Array) -> CellSums:
    """`objective.cell_sums` of each of B blocks [B, R, K], or None."""
    if objective.record.all_cells is None:
        return None
    return jax.lax.map(lambda f: objectives.cell_sums(objective, f), factors)


def penalties_and_sums(objective: Objective, u: SideBlocks, v: SideBlocks) -> Any:
    """What the objective holds beside the entries: penalties of rows, `cell_sums` of blocks.

    Returns:
      ([B, R], [B, C]), to be added in float64: a sum over rows is compiled otherwise, and rounds
      otherwise, for another number of blocks on the device; and ([B, ...], [B, ...]) or Nones.
    """

    def penalties_of(side, name):
        by_row = jax.vmap(lambda f, t: objectives.penalty_parts(objective, f, t, name))
        return objectives.sum_in_order(jax.vmap(by_row)(side.factors, side.terms))

    penalties = penalties_of(u, "u"), penalties_of(v, "v")
    return penalties, (cell_sums(objective, u.factors), cell_sums(objective, v.factors))


def remember_last(
    losses_of: Callable[[Any, Objective], np.ndarray],
) -> Callable[[Any, Objective], np.ndarray]:
    """Of (state, whose loss): asked again for the same, gives the last result again.

    So the objective's pass over the entries gives the squared error too, where that is the loss.
    """
    last: dict[str, Any] = {}

    def remembered(state, objective):
        if last.get("state") is not state or last["loss"] != objective.loss:
            last.update(state=state, loss=objective.loss, sums=losses_of(state, objective))
        return last["sums"]

    return remembered
