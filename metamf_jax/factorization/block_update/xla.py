"""Blocks through XLA's own loops: any platform, one entry at a time."""

import jax
import jax.numpy as jnp

from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization import sgd
from metamf_jax.factorization.block_update import hidden_count, in_series
from metamf_jax.factorization.objective import Terms
from metamf_jax.types import Factors


def block_update(objective, per_row, step_size, u, v, entries, work, sums):
    """See `metamf_jax.factorization.block_update.block_update`."""
    work = in_series(work)

    def one_block(b, carry):
        u, v = carry
        s = work.slots[b]
        terms = Terms(sgd.take(u.terms, b), sgd.take(v.terms, s))
        block = sgd.take(entries, b)

        def sub_block(q, here):
            factors, squares = here
            span = work.first[b, q], work.last[b, q]
            return sgd.run_in_order(
                objective, per_row, step_size, factors, squares, block, terms, sums, *span
            )

        here = Factors(u.factors[b], v.factors[s]), sgd.Squares(u.squares[b], v.squares[s])
        factors, squares = jax.lax.fori_loop(0, work.first.shape[1], sub_block, here)
        return (
            u._replace(
                factors=u.factors.at[b].set(factors.u), squares=u.squares.at[b].set(squares.u)
            ),
            v._replace(
                factors=v.factors.at[s].set(factors.v), squares=v.squares.at[s].set(squares.v)
            ),
        )

    return jax.lax.fori_loop(0, hidden_count(work), one_block, (u, v))


def block_losses(objective, u, v, entries, work):
    """See `metamf_jax.factorization.block_update.block_losses`."""
    entries, work = jax.tree.map(jnp.asarray, (entries, work))
    place = jnp.arange(entries.rows.shape[1])

    def one_block(b, sums):
        rows, columns, values = sgd.take(entries, b)
        factors = Factors(u[b], v[work.slots[b]])
        losses = objectives.entry_losses(objective, factors, rows, columns, values)
        # The sub-blocks of a block are neighbours.
        inside = (place >= work.first[b].min()) & (place < work.last[b].max())
        return sums.at[b].set(jnp.where(inside, losses, 0).sum())

    # Zero, and not a constant, so that under `shard_map` it differs between devices like the sums.
    zero = 0 * entries.values[:, 0]
    return jax.lax.fori_loop(0, hidden_count(work), one_block, zero)
