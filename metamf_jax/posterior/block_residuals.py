"""Sums of residuals over the entries of blocks that share neither rows nor columns.

With ``e_nm = x_nm - b_n - c_m - u_n . v_m`` and shares ``p_n, q_m`` of the noise's precision, a row
has the gradient ``sum_m q_m e_nm [v_m, 1]`` and the square ``sum_m q_m e_nm^2``, a column
``sum_n p_n e_nm [u_n, 1]`` and ``sum_n p_n e_nm^2``, the sums over its entries in a block.
A compiled kernel (`kernels.block_residuals`) takes one entry after the other, XLA takes a few
thousand at a time; on a GPU the order in which it adds them up is not fixed.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from metamf_jax.factorization.block_update import Work, hidden_count
from metamf_jax.factorization.blocks import BlockEntries
from metamf_jax.types import Array

# Entries that XLA takes at a time.
_CHUNK = 4096
_EXACT = jax.lax.Precision.HIGHEST


class Side(NamedTuple):
    """What residuals read of one side.

    Attributes:
      factors: [B, R, K + 1], the effect last.
      shares: [B, R], of the noise's precision.
    """

    factors: Array
    shares: Array


def gradients(
    backend: str, u: Side, v: Side, entries: BlockEntries, work: Work
) -> tuple[Array, Array]:
    """The gradients of B blocks' rows and columns.

    Args:
      backend: from `block_update.choose_backend`.
      u: B row blocks.
      v: column blocks.
      entries: of the row blocks, [B, L] each; standardised.
      work: which of them; the visits of a block are neighbours, in their order.

    Returns:
      [B, R, K + 1], and [B, C, K + 1] in the slots of v.
    """
    if backend == "numba":
        return _compiled_gradients(u, v, entries, work)

    def add(sums, b, s, n, m, left):
        rows, columns = (
            jnp.concatenate([x.factors[i, :, :-1], jnp.ones_like(x.shares[i])[:, None]], axis=1)
            for x, i in ((u, b), (v, s))
        )
        of_rows = (v.shares[s, m] * left)[:, None] * columns[m]
        of_columns = (u.shares[b, n] * left)[:, None] * rows[n]
        return sums[0].at[b, n].add(of_rows), sums[1].at[s, m].add(of_columns)

    start = jnp.zeros_like(u.factors), jnp.zeros_like(v.factors)
    return _over_chunks(add, start, u, v, entries, work)


def squares(
    backend: str, u: Side, v: Side, entries: BlockEntries, work: Work
) -> tuple[Array, Array]:
    """The squares of B blocks' rows and columns, [B, R] and [B, C]; see `gradients`."""
    if backend == "numba":
        return _compiled_squares(u, v, entries, work)

    def add(sums, b, s, n, m, left):
        of_rows, of_columns = v.shares[s, m] * left * left, u.shares[b, n] * left * left
        return sums[0].at[b, n].add(of_rows), sums[1].at[s, m].add(of_columns)

    start = jnp.zeros_like(u.shares), jnp.zeros_like(v.shares)
    return _over_chunks(add, start, u, v, entries, work)


def _over_chunks(add, sums, u, v, entries, work):
    """Folds ``add(sums, b, s, n, m, left)`` over all chunks, ``left`` zero where no entry is."""

    def one_block(b, sums):
        s, first, last = work.slots[b], work.first[b, 0], work.last[b, -1]

        def one_chunk(i, sums):
            at = first + _CHUNK * i + jnp.arange(_CHUNK)
            inside = at < last
            n, m, values = (jnp.where(inside, jnp.take(x[b], at, mode="clip"), 0) for x in entries)
            of_rows, of_columns = u.factors[b, n], v.factors[s, m]
            product = jnp.einsum("ek,ek->e", of_rows[:, :-1], of_columns[:, :-1], precision=_EXACT)
            left = values - of_rows[:, -1] - of_columns[:, -1] - product
            return add(sums, b, s, n, m, jnp.where(inside, left, 0))

        return jax.lax.fori_loop(0, (last - first + _CHUNK - 1) // _CHUNK, one_chunk, sums)

    return jax.lax.fori_loop(0, hidden_count(work), one_block, sums)


def _compiled_arguments(u, v, entries, work):
    """Those of the kernels, and how many vectors a row's factors take."""
    from metamf_jax.kernels import vectors

    width = max(1, u.factors.shape[2] - 1)
    missing = vectors.padded(width) - (u.factors.shape[2] - 1)
    flat = (
        jnp.pad(x.factors[:, :, :-1], ((0, 0), (0, 0), (0, missing))).reshape(-1) for x in (u, v)
    )
    effects = (x.factors[:, :, -1] for x in (u, v))
    which = work.first[:, 0], work.last[:, -1], work.slots
    return (*entries, *which, *flat, *effects, u.shares, v.shares), vectors.in_vectors(width)


def _compiled_gradients(u, v, entries, work):
    from metamf_jax.kernels import block_residuals

    arguments, count = _compiled_arguments(u, v, entries, work)
    flat = [arguments[6].shape, arguments[7].shape]
    found = block_residuals.make_gradients(count)(
        *arguments, shapes=[*flat, u.shares.shape, v.shares.shape]
    )

    def joined(factors, effects, side):
        num_factors = side.factors.shape[2] - 1
        factors = factors.reshape(*effects.shape, -1)[:, :, :num_factors]
        return jnp.concatenate([factors, effects[:, :, None]], axis=2)

    return joined(found[0], found[2], u), joined(found[1], found[3], v)


def _compiled_squares(u, v, entries, work):
    from metamf_jax.kernels import block_residuals

    arguments, count = _compiled_arguments(u, v, entries, work)
    shapes = [u.shares.shape, v.shares.shape]
    of_rows, of_columns = block_residuals.make_squares(count)(*arguments, shapes=shapes)
    return of_rows, of_columns
