"""Blocks through a Pallas kernel in Mosaic GPU, Pallas' dialect for NVIDIA chips since Hopper.

*Strata inside the chip.* A block of the P x P grid is cut once more, into G x G sub-blocks, and
visited in G sub-strata (`visits.draw_visits`): the G sub-blocks of one share no row and no column,
as the P blocks of a stratum share none. Each of the B G sub-blocks that B blocks have in a
sub-stratum is the work of one warpgroup, 128 lanes, which visits its entries in their order.
A sub-stratum is a launch: all that one wrote, the next one reads. No row belongs to two warpgroups,
nothing is added atomically, and G does not follow from the chip, so that any number of
multiprocessors gives the same bits: those of a serial order.

*An entry.* Its two rows of factors go to registers, the columns dealt out to a warp's 32 lanes;
five shuffles add the product up; the rows go back to where they were in global memory. The four
warps of a warpgroup, the least that the dialect launches, all do this, and write the same numbers:
four times the instructions, but no more traffic with memory, since three of four reads hit the
multiprocessor's cache. Barriers part all warps' reads from all warps' writes. Zero columns fill K
up to a multiple of 32, in a copy: rank 32 with biases costs what rank 64 costs.

*What bounds it.* An update reads two rows of K factors and an entry, and writes two rows. The
memory alone allows `updates_of_memory`; waiting allows as many as there are warpgroups in the time
that an entry's chain of loads, product and barriers takes. Were it 1 us (a guess: two loads that
depend on each other, of some 0.4 us each), eight warpgroups on each multiprocessor would make 1.1e9
updates a second at any rank: 46% of what the memory allows at rank 128, 11% at rank 32. Registers
leave room for eight: compiled for `sm_90a`, the kernel takes 37 at rank 32, 59 at rank 128 with
AdaGrad, and spills none.

    >>> for rank in (32, 128):
    ...     print(rank, f"{updates_of_memory(rank, 4.8e12):.1e}")  # H200: 4.8 TB/s.
    32 9.2e+09
    128 2.3e+09

Where it has been: in Pallas' interpreter, where tests hold it to serial NumPy and look for races;
lowered for CUDA by a test, and compiled once, by hand, by jax 0.12's plugin and ptxas 13.0 with a
stand-in for the driver. It has never run on a GPU, and no speed is known. So no `auto` means this
backend until `launch/gpu_check.sh` has seen it give the answers of `xla` and beat it.

The strata are those of Gemulla et al. (KDD 2011); warps over the columns of one entry those of
Xie, Tan, Fong, Liang: CuMF_SGD, 2016, whose updates are not free of conflicts.
"""

import functools
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp

from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization import sgd
from metamf_jax.factorization.block_update import xla
from metamf_jax.factorization.objective import SideTerms, Terms
from metamf_jax.types import Array, Factors


def _import_dialect() -> Any:
    try:
        return importlib.import_module("jax.experimental.pallas.mosaic_gpu")
    except ImportError:  # Not every jaxlib has it: see `reason_against`.
        return None


plgpu = _import_dialect()

# `squared_all` wants a product of K x K at every entry.
LOSSES = ("squared", "absolute", "logistic", "gkl")

_LANES = 32


def reason_against() -> str:
    """Why this jax cannot express the kernel; empty if it can."""
    if plgpu is None or jax.__version_info__ < (0, 12):
        return f"needs Mosaic GPU as jax has it since 0.12, but this is jax {jax.__version__}"
    return ""


def updates_of_memory(rank: int, bytes_per_second: float) -> float:
    """Updates a second that the memory allows if every row comes from it and goes back."""
    factors, entry = 4 * rank, 12
    return bytes_per_second / (4 * factors + entry)


def _row_layout():
    """A row of 32, 64, .. factors over the lanes of each warp."""
    return plgpu.Layout.TILED(
        plgpu.Tiling(((_LANES,), (1,))),
        warp_dims=(plgpu.Replicated(4),),
        lane_dims=(-2,),
        vector_dim=-1,
    )


def _sum_of_products(x: Array, y: Array) -> Array:
    """``x . y`` of two rows, to the same bits in all lanes.

    Without the barrier a lane multiplies and adds its neighbour's product in one rounded step, the
    neighbour the other way round, and which lane's sum is written in the end would be chance.
    """
    return jax.lax.optimization_barrier(x * y).sum()


def _entry_step(objective, per_row, rank, step, value, factors, squares, terms, sums, free):
    """`sgd.entry_step` for rows that zeros fill up, with the free columns as arrays."""
    product = _sum_of_products(factors.u, factors.v)
    slope = objectives.half_slope(objective, value, product)
    gradients = [
        jnp.where(
            mask > 0, objectives.scaled_gradient(objective, gradient, factor, side, opposite), 0
        )
        for mask, gradient, factor, side, opposite in zip(
            free,
            objectives.unmasked_gradient(objective, slope, factors.u, factors.v, terms, sums),
            factors,
            terms,
            sums[::-1],
            strict=True,
        )
    ]
    rates = [step, step]
    if per_row:
        rates = [step / jnp.sqrt(s) for s in squares]
        means = [_sum_of_products(g, g) / rank for g in gradients]
        squares = [s + mean for s, mean in zip(squares, means, strict=True)]
    moved = [f - r * g for f, r, g in zip(factors, rates, gradients, strict=True)]
    return [sgd.project(objective, f) for f in moved], squares


def _visit_sub_block(
    objective, per_row, rank, stratum, entries, work, step, terms, sums, free, factors, squares
):
    """What a warpgroup does: SGD over one sub-block, in place.

    Args:
      objective: the objective.
      per_row: whether AdaGrad scales the steps.
      rank: K.
      stratum: [1], the number of the sub-stratum.
      entries: [B, L] each.
      work: its spans [B, S, G].
      step: [1].
      terms: of both sides, [B, R] and [B, R, W], W the columns with those that fill them up.
      sums: [W] each, or None.
      free: [W] each, above zero in the columns that are trained.
      factors: [B, R, W] of U and of V.
      squares: [B, R] of U and of V.
    """
    b, g = jax.lax.axis_index("block"), jax.lax.axis_index("sub_block")
    layout = _row_layout()

    def row(array, *at):
        return plgpu.load(array.at[at] if at else array, layout=layout, optimized=False)

    def terms_at(side, at):
        mean = None if side.mean is None else row(side.mean, *at)
        return SideTerms(side.count[at], side.weight[at], mean)

    all_sums = [None if s is None else row(s) for s in sums]
    masks, rate = [row(f) for f in free], step[0]

    def visit(t, carry):
        places = (b, entries.rows[b, t]), (work.slots[b], entries.columns[b, t])
        here = Factors(*(row(f, *at) for f, at in zip(factors, places, strict=True)))
        memory = [s[at] for s, at in zip(squares, places, strict=True)]
        moved, memory = _entry_step(
            objective,
            per_row,
            rank,
            rate,
            entries.values[b, t],
            here,
            memory,
            Terms(*(terms_at(*side) for side in zip(terms, places, strict=True))),
            all_sums,
            masks,
        )
        if per_row:
            # Between the barriers of the rows: no warp still reads, none reads on.
            plgpu.store(factors[0].at[places[0]], moved[0], optimized=False)
            for s, at, new in zip(squares, places, memory, strict=True):
                s[at] = new
            plgpu.store(factors[1].at[places[1]], moved[1], optimized=False)
        else:
            for f, at, new in zip(factors, places, moved, strict=True):
                plgpu.store(f.at[at], new, optimized=False)
        return carry

    s = stratum[0]
    jax.lax.fori_loop(work.first[b, s, g], work.last[b, s, g], visit, 0)


def _filled(x: Array, width: int) -> Array:
    """With zero columns up to `width`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def block_update(objective, per_row, step_size, u, v, entries, work, sums):
    """See `metamf_jax.factorization.block_update.block_update`."""
    if objective.loss not in LOSSES:
        raise ValueError(
            f"the backend 'mosaic_gpu' serves the losses {', '.join(LOSSES)}, but the loss is"
            f" {objective.loss!r}; 'xla' serves all"
        )
    entries, work, u, v = jax.tree.map(jnp.asarray, (entries, work, u, v))
    if work.first.ndim == 2:  # One sub-block after the other.
        work = work._replace(first=work.first[..., None], last=work.last[..., None])
    num_blocks, num_strata, abreast = work.first.shape
    rank = u.factors.shape[2]
    width = _LANES * math.ceil(rank / _LANES)
    terms = [
        side.terms._replace(
            mean=None if side.terms.mean is None else _filled(side.terms.mean, width)
        )
        for side in (u, v)
    ]
    sums = [None if s is None else _filled(s, width) for s in sums]
    free = [
        _filled(jnp.asarray(f, jnp.float32), width) for f in objectives.trainable(objective, rank)
    ]
    kernel = plgpu.kernel(
        functools.partial(_visit_sub_block, objective, per_row, rank),
        out_type=(),
        grid=(num_blocks, abreast),
        grid_names=("block", "sub_block"),
    )
    state = jax.tree.map(
        jax.new_ref,
        ([_filled(side.factors, width) for side in (u, v)], [side.squares for side in (u, v)]),
    )

    def sub_stratum(s, carry):
        kernel(s[None], entries, work, step_size[None], terms, sums, free, *state)
        return carry

    jax.lax.fori_loop(0, num_strata, sub_stratum, 0)
    factors, squares = jax.tree.map(jax.freeze, state)
    return tuple(
        side._replace(factors=f[..., :rank], squares=s)
        for side, f, s in zip((u, v), factors, squares, strict=True)
    )


block_losses = xla.block_losses
