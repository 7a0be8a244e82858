"""The factors of all rows of one side, drawn given the other side's: exact row solves, and noise.

Given the columns' factors ``v_m`` and effects ``c_m``, row n's numbers ``w_n = [u_n, b_n]`` are
independent of the other rows',

    w_n | .. ~ N(A_n^-1 h_n, A_n^-1),   A_n = Lambda + alpha p_n sum_m q_m t_m t_m^T,
    h_n = Lambda B^T phi_n + alpha p_n sum_m q_m (x_nm - c_m) t_m,   t_m = [v_m, 1],

the sums over the row's entries. With ``A_n = C C^T`` the draw is ``C^-T (C^-1 h_n + z_n)``. The
noise ``z_n`` of all rows is drawn before they are dealt out to devices, on the number of which a
draw does not depend. A compiled kernel draws one row after the other (`kernels.row_draws`); XLA
draws batches of rows, of short runs of their entries.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metamf_jax import parallel
from metamf_jax.factorization import block_update
from metamf_jax.factorization.dealt_rows import Runs, cut_into_runs, deal_rows
from metamf_jax.parallel import REPLICATED, SPLIT
from metamf_jax.types import Array, Entries

_EXACT = jax.lax.Precision.HIGHEST

# Times its trace is added to the diagonal of each ``A_n``: the size of float32's rounding. Where a
# matrix has next to no noise, its ``A_n`` would not be positive definite after a few sweeps.
_ROUNDING = np.float32(4 * np.finfo(np.float32).eps)

# Of the rows' noise, beside the key.
_STREAM = 1


class RowsData(NamedTuple):
    """One side of a matrix, its rows dealt out to D devices.

    Attributes:
      mesh: the devices.
      compiled: whether the compiled kernel draws.
      entries: the dealt entries, as `DealtRows` without its rows, or as `Runs`.
      order: of each dealt value its place among the given ones, counted from 1; 0 is padding.
      dealt_shape: (D, R), with places for R rows on each device.
      places: [N], where each row stands among the dealt ones.
      counts: [N], entries of each row.
    """

    mesh: Any
    compiled: bool
    entries: tuple[Array, ...]
    order: np.ndarray
    dealt_shape: tuple[int, int]
    places: np.ndarray
    counts: np.ndarray


def prepare(
    entries: Entries,
    rank: int,
    num_devices: int = 1,
    backend: str = "auto",
) -> RowsData:
    """Deals the rows out to devices.

    Args:
      entries: [E], NumPy; the transpose for the other side.
      rank: K.
      num_devices: D.
      backend: one of `block_update.BACKENDS`.
    """
    compiled = block_update.choose_backend(backend) == "numba"
    numbers = np.arange(1, len(entries.values) + 1, dtype=np.int32)
    dealt = deal_rows(entries.rows, entries.columns, numbers, entries.shape, num_devices)
    if compiled:
        *listed, order = dealt[1:]
    else:
        *listed, order = cut_into_runs(dealt, entries.shape[1], rank + 1)
    mesh = parallel.make_mesh(num_devices)
    dealt_numbers = dealt.rows.ravel()
    places = np.empty(entries.shape[0], int)
    inside = dealt_numbers < entries.shape[0]
    places[dealt_numbers[inside]] = np.flatnonzero(inside)
    return RowsData(
        mesh=mesh,
        compiled=compiled,
        entries=parallel.split(mesh, (*listed, _in_order(order, entries.values))),
        order=np.asarray(order),
        dealt_shape=(num_devices, dealt.rows.shape[1]),
        places=places,
        counts=np.bincount(entries.rows, minlength=entries.shape[0]),
    )


def draw(
    key: jax.Array,
    data: RowsData,
    weight: np.ndarray,
    pull: np.ndarray,
    precision: np.ndarray,
    columns: np.ndarray,
    column_weight: np.ndarray,
    values: Array | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the factors of all rows.

    Args:
      key: of this draw.
      data: from `prepare`.
      weight: [N], ``alpha p_n``.
      pull: [N, K + 1], ``Lambda B^T phi_n``.
      precision: [K + 1, K + 1], ``Lambda``.
      columns: [M, K + 1], ``[v_m, c_m]``.
      column_weight: [M], ``q_m``.
      values: [E], in place of those that `prepare` was given, in their order.

    Returns:
      ``w`` [N, K + 1] float32, and ``sum_m q_m e_nm^2`` [N] float64 that the new ``w`` leave.
    """
    noise = _noise(key, len(weight), precision.shape[0])
    of_all = tuple(np.ascontiguousarray(x, np.float32) for x in (precision, columns, column_weight))
    if data.compiled and data.mesh.size == 1:
        drawn, square = _draw_here(data, (weight, pull, noise), of_all, values)
    else:
        dealt = (_dealt(data, x) for x in (weight, pull, noise))
        entries = data.entries
        if values is not None:
            entries = (*entries[:-1], parallel.split(data.mesh, _in_order(data.order, values)))
        found = _program(data.mesh, data.compiled)(entries, *dealt, *of_all)
        drawn, square = (x.reshape(-1, *x.shape[2:])[data.places] for x in parallel.to_host(found))
    return drawn, square.astype(np.float64)


def fitted(rows: Array, columns: Array, i: Array, j: Array) -> jax.Array:
    """``u_n . v_m + b_n + c_m`` of cells.

    Args:
      rows: [N, K + 1], factors with the effect last.
      columns: [M, K + 1].
      i: [P], rows of the cells.
      j: [P], their columns.
    """
    return _fitted(rows, columns, i, j)


@jax.jit
def _fitted(rows, columns, i, j):
    u, v = rows[i], columns[j]
    return (u[:, :-1] * v[:, :-1]).sum(axis=1) + u[:, -1] + v[:, -1]


def _noise(key: Array, num_rows: int, width: int) -> np.ndarray:
    """[N, L]; of all rows, on every host."""
    if not isinstance(key, np.ndarray):
        key = np.asarray(jax.random.key_data(key))
    # Not the numbers that the hyperprior is drawn with.
    rng = np.random.default_rng([*key.tolist(), _STREAM])
    return rng.standard_normal((num_rows, width), np.float32)


def _in_order(order: Array, values: Array) -> np.ndarray:
    """The values where `RowsData.order` has them, float32."""
    return np.append(np.float32(0), np.asarray(values, np.float32))[order]


def _dealt(data: RowsData, of_rows: Array) -> np.ndarray:
    """From [N, ..] to [D, R, ..], one where there is no row."""
    dealt = np.ones((*data.dealt_shape, *of_rows.shape[1:]), np.float32)
    dealt.reshape(-1, *of_rows.shape[1:])[data.places] = of_rows
    return dealt


def _draw_here(data, of_rows, of_all, values):
    """By the compiled kernel alone, on one device: XLA's dispatch is what small matrices cost."""
    from metamf_jax.kernels import row_draws

    precision, columns, column_weight = of_all
    starts, numbers, listed = (np.asarray(x)[0] for x in data.entries)
    if values is not None:
        listed = _in_order(data.order[0], values)
    root = np.sqrt(column_weight)
    design = np.zeros((len(root), row_draws.padded(columns.shape[1] - 1)), np.float32)
    np.multiply(root[:, None], columns[:, :-1], out=design[:, : columns.shape[1] - 1])
    of_columns = design, root, np.ascontiguousarray(columns[:, -1])
    weight, pull, noise = (_dealt(data, x)[0] for x in of_rows)
    drawn, square = row_draws.draw_rows_here(
        *(starts, numbers, listed, *of_columns, weight, precision, pull, noise), _ROUNDING
    )
    return drawn[data.places], square[data.places]


@functools.lru_cache(maxsize=8)
def _program(mesh, compiled: bool):
    """`draw` on the devices of a mesh, compiled once for all matrices of a shape."""

    def body(entries, weight, pull, noise, precision, columns, column_weight):
        of_device = entries, weight, pull, noise
        entries, weight, pull, noise = jax.tree.map(lambda x: x[0], of_device)
        root = jnp.sqrt(column_weight)
        design, offset = root[:, None] * columns[:, :-1], columns[:, -1]
        draw = _draw_compiled if compiled else _draw_xla
        found = draw(entries, design, root, offset, weight, precision, pull, noise)
        return parallel.as_varying(jax.tree.map(lambda x: x[None], found))

    return parallel.sharded(mesh, body, (*[SPLIT] * 4, *[REPLICATED] * 3), (SPLIT, SPLIT))


def _draw_compiled(entries, design, root, offset, weight, precision, pull, noise):
    from metamf_jax.kernels import row_draws

    pad = row_draws.padded(design.shape[1]) - design.shape[1]
    design = jnp.pad(design, ((0, 0), (0, pad)))
    starts, columns, values = entries
    of_all = design, root, offset
    of_rows = weight, precision, pull, noise
    return row_draws.draw_rows(starts, columns, values, *of_all, *of_rows, _ROUNDING)


def _draw_xla(entries, design, root, offset, weight, precision, pull, noise):
    """`kernels.row_draws.draw_rows`, with the entries of one device as `Runs`."""
    runs, width = Runs(*entries), precision.shape[0]
    # Padding entries read this column of zeros.
    padding = len(root)
    t = jnp.pad(jnp.concatenate([design, root[:, None]], axis=1), ((0, 1), (0, 0)))
    root, offset = jnp.append(root, 0), jnp.append(offset, 0)

    def draw_batch(batch):
        places, owners, columns, values = batch
        num_rows = places.shape[0]
        values = jnp.where(columns < padding, values, 0)
        of_entries, targets = t[columns], root[columns] * (values - offset[columns])

        def add_up(per_run):
            return jax.ops.segment_sum(per_run, owners, num_rows + 1)[:num_rows]

        gram = jnp.einsum("clj,clk->cjk", of_entries, of_entries, precision=_EXACT)
        moment = jnp.einsum("cl,clk->ck", targets, of_entries, precision=_EXACT)
        scale, drawn_to, z = (
            jnp.take(x, places, axis=0, mode="clip") for x in (weight, pull, noise)
        )
        drawn = _draw_gaussians(add_up(gram), add_up(moment), precision, scale, drawn_to, z)
        of_runs = jnp.take(drawn, owners, axis=0, mode="clip")
        left = targets - jnp.einsum("clk,ck->cl", of_entries, of_runs, precision=_EXACT)
        return drawn, add_up((left * left).sum(axis=1))

    drawn, square = jax.lax.map(draw_batch, runs)
    # Rows without entries are drawn from their prior.
    gram, moment = jnp.zeros((len(noise), width, width)), jnp.zeros_like(noise)
    of_prior = _draw_gaussians(gram, moment, precision, weight, pull, noise)
    places = runs.places.reshape(-1)
    return (
        of_prior.at[places].set(drawn.reshape(-1, width), mode="drop"),
        jnp.zeros_like(weight).at[places].set(square.reshape(-1), mode="drop"),
    )


def _draw_gaussians(gram, moment, precision, weight, pull, noise):
    """``C^-T (C^-1 (pull + weight moment) + noise)``, ``C C^T = precision + weight gram``.

    Shapes: [B, L, L], [B, L], [L, L], [B], [B, L] and [B, L].
    """
    matrix = precision[None] + weight[:, None, None] * gram
    ridge = _ROUNDING * jnp.trace(matrix, axis1=1, axis2=2)
    root = jnp.linalg.cholesky(matrix + ridge[:, None, None] * jnp.eye(len(precision))[None])
    solve = functools.partial(jax.lax.linalg.triangular_solve, root, left_side=True, lower=True)
    half = solve((pull + weight[:, None] * moment)[..., None])
    return solve(half + noise[..., None], transpose_a=True)[..., 0]
