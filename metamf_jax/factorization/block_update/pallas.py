"""Blocks through a Pallas kernel, one program for each block: made for GPUs, lowers for TPUs too.

A program visits its block's points in order, with one row of U and one of V in registers at a time;
the programs of the B blocks share nothing and run side by side. A GPU runs some thousand such
programs at once, so that it wants hundreds of blocks per device, where a CPU wants one a core.

On a GPU (through Triton) a program is one warp, which works on its K columns at once. More warps
would race: one could read a row that another has already overwritten. The factors stay in global
memory and are updated in place. On a TPU a block's factors lie in VMEM and its points in SMEM,
which holds some 10^5 words: there the matrix has to be cut so that a row block has no more than
30,000 points.

Where it has been run: in Pallas's interpreter on CPUs, where the tests hold it to the other
backends and DSGD over 8 devices. For CUDA and TPU it has been lowered (as a test does), but not
compiled or run for want of such devices; no speed is known.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization import sgd


class _Terms(NamedTuple):
    """`objective.SideTerms` of B blocks: [B, R, 1], [B, R, 1], [B, R, K] or None."""

    count: Any
    weight: Any
    mean: Any


class _State(NamedTuple):
    """What is updated: [B, R, K], [B, C, K], [B, R, 1], [B, C, 1]."""

    u: Any
    v: Any
    squares_u: Any
    squares_v: Any


def _platform() -> str:
    return jax.default_backend()


def _product(x, square):
    """``x S`` for x [1, K] and a symmetric S [K, K]."""
    # Sums of products: full float32 everywhere, and Triton's own products want 16 rows.
    return (square * x).sum(axis=1)[None, :]


def _update_kernel(objective, per_row, width, points, ends, step, terms, sums, old, new):
    if _platform() == "tpu":  # Elsewhere the old state lies in the same memory.
        for source, target in zip(old, new, strict=True):
            target[...] = source[...]
    rows, columns, values = points
    rate = step[...]
    place = jax.lax.broadcasted_iota(jnp.int32, (1, new.u.shape[1]), 1)
    # See `objective.trainable`; columns from `width` on fill up to a power of two.
    frozen = (width - 1, width - 2) if objective.biases else (width, width)

    def gradient(slope, own, partner, side, at, opposite, frozen):
        rest = own if side.mean is None else own - side.mean[at, :]
        rest = side.weight[at, :] * rest
        if objective.loss == "squared_all":
            rest += _product(own, opposite[...])
        elif objective.loss == "gkl":
            rest += 0.5 * opposite[...]
        return jnp.where(place == frozen, 0, slope * partner + rest / side.count[at, :])

    def visit(t, carry):
        n, m = pl.ds(rows[0, t], 1), pl.ds(columns[0, t], 1)
        value = jnp.full((1, 1), values[0, t])
        x, y = new.u[n, :], new.v[m, :]
        slope = objectives.half_slope(objective, value, (x * y).sum(axis=1, keepdims=True))
        gradients = (
            gradient(slope, x, y, terms[0], n, sums[1], frozen[0]),
            gradient(slope, y, x, terms[1], m, sums[0], frozen[1]),
        )
        for factors, squares, at, own, g in zip(
            (new.u, new.v), (new.squares_u, new.squares_v), (n, m), (x, y), gradients, strict=True
        ):
            moved = rate * g
            if per_row:
                square = squares[at, :]
                moved = moved / jnp.sqrt(square)
                squares[at, :] = square + (g * g).sum(axis=1, keepdims=True) / width
            factors[at, :] = sgd.project(objective, own - moved)
        return carry

    _for_each_point(ends, visit, 0)


def _losses_kernel(objective, points, ends, u, v, sums):
    rows, columns, values = points

    def visit(t, total):
        x, y = u[pl.ds(rows[0, t], 1), :], v[pl.ds(columns[0, t], 1), :]
        value = jnp.full((1, 1), values[0, t])
        fitted = (x * y).sum(axis=1, keepdims=True)
        return total + objectives.point_loss(objective, value, fitted)

    sums[...] = _for_each_point(ends, visit, jnp.zeros((1, 1), jnp.float32))


def _for_each_point(ends, visit, carry):
    """Runs ``carry = visit(t, carry)`` for the points of each sub-block, [1, Q] ends, in order."""
    first, last = ends

    def sub_block(q, carry):
        return jax.lax.fori_loop(first[0, q], last[0, q], visit, carry)

    return jax.lax.fori_loop(0, first.shape[1], sub_block, carry)


def _options() -> tuple[dict[str, Any], Any]:
    """What differs between platforms: (arguments of `pallas_call`, where integers lie)."""
    platform = _platform()
    if platform == "gpu":
        from jax.experimental.pallas import triton

        return {"compiler_params": triton.CompilerParams(num_warps=1, num_stages=1)}, None
    if platform == "tpu":
        from jax.experimental.pallas import tpu

        parallel = tpu.CompilerParams(dimension_semantics=("parallel",))
        return {"compiler_params": parallel}, tpu.SMEM
    return {"interpret": True}, None


def _spec(x, memory_space=None):
    """The b-th entry of an array with B blocks."""
    index = (lambda b: (b, 0, 0)) if x.ndim == 3 else (lambda b: (0, 0))
    shape = (None, *x.shape[1:]) if x.ndim == 3 else x.shape
    if memory_space is None:
        return pl.BlockSpec(shape, index)
    return pl.BlockSpec(shape, index, memory_space=memory_space)


def _padded(x, width):
    """With zero columns up to `width`."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def _call(kernel, results, aliases, *arguments):
    """Runs the kernel over the grid of blocks; the first two arguments are points and ends."""
    options, scalars = _options()
    specs = [
        jax.tree.map(lambda x, s=scalars if i < 2 else None: _spec(x, s), argument)
        for i, argument in enumerate(arguments)
    ]
    # Under `shard_map` a result has to say over which axes it differs.
    varying = jax.typeof(arguments[0][0]).manual_axis_type
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=varying), results
    )
    return pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=(len(arguments[0][0]),),
        in_specs=specs,
        out_specs=jax.tree.map(_spec, results),
        input_output_aliases=aliases,
        **options,
    )(*arguments)


def _visits(points, work):
    """Points [B, 1, L] and ends of the sub-blocks [B, 1, Q]."""
    return jax.tree.map(
        lambda x: jnp.asarray(x)[:, None, :], (tuple(points), (work.first, work.last))
    )


def block_update(objective, per_row, step_size, u, v, points, work, sums):
    """See `metamf_jax.factorization.block_update.block_update`."""
    width = u.factors.shape[2]
    # Triton's arrays have powers of two as sizes.
    wide = pl.next_power_of_2(width)
    # A copy, so that row block b meets column block b whatever its slot.
    v_met = sgd.take(jax.tree.map(jnp.asarray, v), work.slots)
    terms = [
        _Terms(
            # Rows without points are never visited.
            jnp.asarray(side.terms.count)[..., None],
            jnp.asarray(side.terms.weight)[..., None],
            None if side.terms.mean is None else _padded(jnp.asarray(side.terms.mean), wide),
        )
        for side in (u, v_met)
    ]
    state = _State(
        _padded(jnp.asarray(u.factors), wide),
        _padded(v_met.factors, wide),
        jnp.asarray(u.squares)[..., None],
        v_met.squares[..., None],
    )
    if objective.loss == "squared_all":
        sums = [jnp.pad(jnp.asarray(s), (0, wide - width)) for s in sums]
    elif objective.loss == "gkl":
        sums = [_padded(jnp.asarray(s)[None, :], wide) for s in sums]

    def kernel(points, ends, step, terms, sums, old, *new):
        new = _State(*new)
        _update_kernel(objective, per_row, width, points, ends, step, terms, sums, old, new)

    points, ends = _visits(points, work)
    arguments = points, ends, jnp.full((1, 1), step_size), terms, list(sums), state
    first = len(jax.tree.leaves(arguments)) - len(state)
    new = _call(kernel, state, {first + i: i for i in range(len(state))}, *arguments)

    def back(side, factors, squares):
        return side._replace(factors=factors[..., :width], squares=squares[..., 0])

    met = back(v_met, new.v, new.squares_v)
    v_new = v._replace(
        factors=jnp.asarray(v.factors).at[work.slots].set(met.factors),
        squares=jnp.asarray(v.squares).at[work.slots].set(met.squares),
    )
    return back(u, new.u, new.squares_u), v_new


def block_losses(objective, u, v, points, work):
    """See `metamf_jax.factorization.block_update.block_losses`."""
    wide = pl.next_power_of_2(u.shape[2])
    points, ends = _visits(points, work)
    arguments = points, ends, _padded(u, wide), _padded(v[work.slots], wide)
    sums = jax.ShapeDtypeStruct((len(u), 1, 1), jnp.float32)
    return _call(functools.partial(_losses_kernel, objective), sums, {}, *arguments)[:, 0, 0]
