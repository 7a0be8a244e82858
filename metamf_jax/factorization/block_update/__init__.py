"""Runs SGD over blocks that share neither rows nor columns: one function, several backends.

`block_update` and `block_losses` mean the same in every backend, and are held to the same tests.
The blocks of one device run one after the other: batching them changed the last bits.
"""

import importlib
from types import ModuleType
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp

from metamf_jax.factorization import sgd
from metamf_jax.factorization.blocks import BlockEntries
from metamf_jax.factorization.objective import CellSums, Objective, SideTerms
from metamf_jax.kernels import ffi
from metamf_jax.types import Array

BACKENDS: Final = ("auto", "xla", "numba", "mosaic_gpu")

# Those that visit sub-blocks of a block side by side, where they share neither rows nor columns.
ABREAST: Final = ("mosaic_gpu",)
# Those that write in place to arrays which JAX does not let differ between devices.
UNCHECKED: Final = ("mosaic_gpu",)


class SideBlocks(NamedTuple):
    """One side's blocks of factors, with what belongs to their rows (or columns).

    Attributes:
      factors: [B, R, K].
      squares: [B, R] AdaGrad's memory, see `sgd.Squares`.
      terms: `objective.SideTerms` with arrays of [B, R] and [B, R, K]; a row that is only there to
        fill the block up has no entries, no weight and zero factors.
    """

    factors: Array
    squares: Array
    terms: SideTerms


class Work(NamedTuple):
    """Which entries to visit.

    Attributes:
      first: [B, Q] int32: row block b visits its entries ``first[b, 0] .. last[b, 0] - 1``, then
        ``first[b, 1] ..``, and so on. Or [B, S, G]: S sub-strata in series, of G sub-blocks that
        share neither rows nor columns.
      last: [B, Q] int32, or [B, S, G].
      slots: [B] int32: all of them lie in the column block ``v.factors[slots[b]]``.
    """

    first: Array
    last: Array
    slots: Array


def in_series(work: Work) -> Work:
    """Sub-strata as one series of sub-blocks, [B, Q]."""
    first, last = (x.reshape(x.shape[0], -1) for x in (work.first, work.last))
    return Work(first, last, work.slots)


def choose_backend(name: str) -> str:
    """Resolves `auto` by platform.

    `numba` on a CPU where Numba is installed, else `xla`, which runs anywhere.

    Raises:
      ValueError: an unknown backend, or `numba` or `mosaic_gpu` where they cannot run.
    """
    if name not in BACKENDS:
        raise ValueError(f"expected a backend among {', '.join(BACKENDS)}, got {name!r}")
    platform, installed = jax.default_backend(), ffi.is_available()
    if name == "auto":
        return "numba" if platform == "cpu" and installed else "xla"
    if name == "numba" and not (platform == "cpu" and installed):
        raise ValueError(
            f"the backend 'numba' needs a CPU and Numba (pip install 'metamf_jax[cpu]'), but the"
            f" platform is {platform!r} and Numba is {'' if installed else 'not '}installed;"
            " 'xla' runs anywhere"
        )
    if name == "mosaic_gpu":
        reason = _module(name).reason_against()
        if platform != "gpu":
            reason = f"needs an NVIDIA GPU, but the platform is {platform!r}"
        if reason:
            raise ValueError(f"the backend 'mosaic_gpu' {reason}; 'xla' runs anywhere")
    return name


def hidden_count(work: Work) -> Array:
    """The number of blocks, hidden from the compiler.

    A loop of one step would be unrolled, fused with what is around it, and rounded otherwise than
    the same step in a longer loop: results would depend on the number of devices.
    """
    num_blocks = work.slots.shape[0]
    return jnp.minimum(num_blocks, num_blocks + work.slots[0])


def _module(backend: str) -> ModuleType:
    # Not before it is wanted: Numba is optional, and takes half a second to import.
    return importlib.import_module(f"{__name__}.{backend}")


def block_update(
    backend: str,
    objective: Objective,
    per_row: bool,
    step_size: Array,
    u: SideBlocks,
    v: SideBlocks,
    entries: BlockEntries,
    work: Work,
    sums: tuple[CellSums, CellSums],
) -> tuple[SideBlocks, SideBlocks]:
    """Runs `sgd.entry_step` over the entries of B blocks, no two in one row or column block.

    Args:
      backend: from `choose_backend`.
      objective: the objective.
      per_row: whether AdaGrad scales the steps.
      step_size: float32 scalar.
      u: B row blocks.
      v: column blocks.
      entries: of the row blocks, [B, L] each.
      work: what to visit, in which order.
      sums: `objective.cell_sums` of the whole U and V, held fixed.

    Returns:
      u and v with new factors and squares.
    """
    return _module(backend).block_update(objective, per_row, step_size, u, v, entries, work, sums)


def step_without_entries(
    objective: Objective,
    side: SideBlocks,
    opposite: CellSums,
    trainable: Array,
    step_size: Array,
) -> SideBlocks:
    """`sgd.step_without_entries` of B blocks of one side, one after the other; XLA's alone.

    Args:
      objective: with an all-cell term.
      side: the blocks.
      opposite: `objective.cell_sums` of the whole other side.
      trainable: bool [K], the columns that may move.
      step_size: float32 scalar.
    """

    def one_block(block):
        return sgd.step_without_entries(
            objective, step_size, block.factors, block.terms, opposite, trainable
        )

    return side._replace(factors=jax.lax.map(one_block, side))


def block_losses(
    backend: str, objective: Objective, u: Array, v: Array, entries: BlockEntries, work: Work
) -> Array:
    """Sum of `objective.entry_losses` over the entries of each of B blocks.

    Args:
      backend: from `choose_backend`.
      objective: the objective.
      u: [B, R, K] row blocks of factors.
      v: [B', C, K] column blocks of factors.
      entries: of the row blocks, [B, L] each.
      work: as for `block_update`.

    Returns:
      [B] float32.
    """
    return _module(backend).block_losses(objective, u, v, entries, work)
