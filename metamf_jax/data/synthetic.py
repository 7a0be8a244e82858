"""Matrices drawn from a seed: one large world of ratings, and low-rank matrices of known truth.

All draws come from ``numpy.random.default_rng(seed)``: the same arguments give the same arrays.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from metamf_jax.types import Entries, Factors, Table

MISSINGNESS = ("uniform", "popularity", "value")
# Shares of the ratings 1..5 in MovieLens-100K.
_LEVEL_SHARES = (0.0611, 0.1137, 0.2714, 0.3417, 0.2120)
_NUM_TASTES = 5
_NUM_GENRES = 6
_SAMPLED_CELLS = 100_000
_CELLS_AT_ONCE = 1 << 22


def synthetic_ratings(
    seed: int,
    num_rows: int = 1000,
    num_columns: int = 600,
    density: float = 0.3,
    *,
    rank: int = 4,
    shares: tuple[float, float, float, float] = (0.15, 0.2, 0.5, 0.15),
    ordinal: bool = True,
    missingness: str = "popularity",
    popularity: float = 0.7,
) -> Table:
    """Draws one large world of ratings, to be cut by rows and columns into many matrices.

    A rating is a row effect, a column effect, an interaction ``u_n . v_m`` and noise. Every column
    blends a few of 6 genres (a sparse Dirichlet blend; each genre lies at one pole or the other of
    every direction of taste, and each further direction carries half the variance of the one
    before), and every row belongs to one of 5 tastes, from which it strays: factors are clustered,
    not Gaussian. Popular columns are rated higher. The latent ratings are cut at quantiles to 1..5,
    in the shares of MovieLens-100K.

    Args:
      seed: any integer that NumPy takes as seed.
      num_rows: N.
      num_columns: M.
      density: expected fraction of observed cells, in (0, 1].
      rank: of the interaction, from 1.
      shares: parts of the latent variance due to row effects, column effects, interaction, noise.
      ordinal: whether to cut to 1..5; otherwise values are the latent ones, of about unit variance.
      missingness: "uniform"; "popularity": a cell is seen in proportion to its row's activity
        times its column's popularity, both power laws; or "value": likewise, and e times likelier
        for each deviation that its value lies higher (missing not at random).
      popularity: exponent of the power laws.

    Returns:
      A `Table` with ids 0..N-1 and 0..M-1, entries in row order, no times. Rows and columns may
      stay without any entry.

    Raises:
      ValueError: if an argument is out of range.
    """
    _check_sizes(num_rows, num_columns, rank, density)
    if missingness not in MISSINGNESS:
        raise ValueError(
            f"unknown missingness {missingness!r}; expected one of {', '.join(MISSINGNESS)}"
        )
    if len(shares) != 4 or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(f"expected four shares of the variance, none negative, got {shares}")
    rng = np.random.default_rng(seed)
    world = _draw_world(rng, (num_rows, num_columns), rank, shares, popularity)
    rows = rng.integers(num_rows, size=_SAMPLED_CELLS)
    columns = rng.integers(num_columns, size=_SAMPLED_CELLS)
    products = (world.u[rows] * world.v[columns]).sum(axis=1)
    world = world._replace(shift=products.mean(), spread=products.std() or 1.0)
    sample = _latent(world, rows, columns, products, rng.standard_normal(_SAMPLED_CELLS))
    weights = _weights(world, missingness, rows, columns, sample)
    scale = _scale_to_density(weights, density)
    seen = rng.random(_SAMPLED_CELLS) < np.minimum(scale * weights, 1)
    cuts = np.quantile(sample[seen] if seen.any() else sample, np.cumsum(_LEVEL_SHARES)[:-1])
    rows, columns, values = _draw_observed(rng, world, missingness, scale)
    if ordinal:
        values = 1 + np.searchsorted(cuts, values)
    return _table(rows, columns, values, (num_rows, num_columns))


def low_rank(
    seed: int,
    num_rows: int,
    num_columns: int,
    rank: int,
    *,
    density: float = 1.0,
    noise: float = 0.0,
    bias: float = 0.0,
) -> tuple[Table, Factors]:
    """A low-rank matrix of known truth: ``x_nm = u_n . v_m + noise``, Gaussian factors.

    Args:
      seed: as `synthetic_ratings`.
      num_rows: N.
      num_columns: M.
      rank: of the product without biases; its cells have unit variance.
      density: each cell is observed with this chance, in (0, 1].
      noise: standard deviation of the noise at observed entries.
      bias: standard deviation of the row and of the column effects.

    Returns:
      The observed entries in row order, and the true factors, float32: K is ``rank``, or
      ``rank + 2`` with biases, whose two further factors hold the effects beside ones.

    Raises:
      ValueError: if an argument is out of range.
    """
    _check_sizes(num_rows, num_columns, rank, density)
    if noise < 0 or bias < 0:
        raise ValueError(f"expected deviations from 0, got noise {noise} and bias {bias}")
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((num_rows, rank)) / rank**0.25
    v = rng.standard_normal((num_columns, rank)) / rank**0.25
    if bias:
        effects = bias * rng.standard_normal(num_rows), bias * rng.standard_normal(num_columns)
        u = np.column_stack([u, effects[0], np.ones(num_rows)])
        v = np.column_stack([v, np.ones(num_columns), effects[1]])
    rows, columns = np.nonzero(rng.random((num_rows, num_columns)) < density)
    values = (u[rows] * v[columns]).sum(axis=1) + noise * rng.standard_normal(len(rows))
    table = _table(rows, columns, values, (num_rows, num_columns))
    return table, Factors(u.astype(np.float32), v.astype(np.float32))


def low_rank_stream(
    seed: int,
    num_rows: int,
    num_columns: int,
    entries_per_row: int,
    *,
    rank: int = 8,
    noise: float = 0.5,
    chunk: int = 1 << 20,
) -> Iterator[Entries]:
    """A low-rank matrix of any size, row by row: ``x_nm = u_n . v_m + noise``, Gaussian factors.

    A row's entries lie at random in ``entries_per_row`` stretches of the columns of equal length,
    one in each, so that none comes twice.

    Args:
      seed: as `synthetic_ratings`.
      num_rows: N.
      num_columns: M.
      entries_per_row: of every row.
      rank: of the product, whose cells have unit variance.
      noise: standard deviation of the noise.
      chunk: about so many entries at once; the draw depends on it.

    Raises:
      ValueError: if an argument is out of range.
    """
    _check_sizes(num_rows, num_columns, rank, 1.0)
    if not 1 <= entries_per_row <= num_columns:
        raise ValueError(f"expected 1 to {num_columns} cells in a row, got {entries_per_row}")
    rng = np.random.default_rng(seed)
    v = (rng.standard_normal((num_columns, rank)) / rank**0.25).astype(np.float32)
    step = max(1, chunk // entries_per_row)
    begins = np.arange(entries_per_row) * num_columns // entries_per_row
    lengths = np.append(begins[1:], num_columns) - begins
    for start in range(0, num_rows, step):
        rows = np.arange(start, min(start + step, num_rows), dtype=np.int32)
        u = (rng.standard_normal((len(rows), rank)) / rank**0.25).astype(np.float32)
        size = len(rows), entries_per_row
        columns = (begins + (rng.random(size) * lengths).astype(np.int64)).astype(np.int32)
        values = np.einsum("nk,nek->ne", u, v[columns])
        values += np.float32(noise) * rng.standard_normal(size, np.float32)
        yield Entries(
            np.repeat(rows, entries_per_row),
            columns.ravel(),
            values.ravel(),
            (num_rows, num_columns),
        )


def sizes_named(name: str) -> tuple[int, int, int]:
    """Rows, columns and entries a row in ``synthetic:ROWSxCOLUMNSxCELLS``.

    Raises:
      ValueError: it is none of these.
    """
    sizes = re.fullmatch(r"synthetic:(\d+)x(\d+)x(\d+)", name)
    if sizes is None:
        raise ValueError(f"expected synthetic:ROWSxCOLUMNSxCELLS_PER_ROW, got {name!r}")
    rows, columns, entries = map(int, sizes.groups())
    return rows, columns, entries


def low_rank_table(seed: int, num_rows: int, num_columns: int, entries_per_row: int) -> Table:
    """`low_rank_stream`'s entries, all in memory."""
    chunks = list(low_rank_stream(seed, num_rows, num_columns, entries_per_row))
    rows, columns, values = (
        np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("rows", "columns", "values")
    )
    return _table(rows, columns, values, (num_rows, num_columns))


class _World(NamedTuple):
    """What makes ratings, but for the draw of the noise.

    Attributes:
      u: [N, K] factors of the rows' tastes.
      v: [M, K] factors of the columns.
      activity: [N] how often rows are seen, beside each other.
      fame: [M] likewise of columns.
      row_effects: [N] what a row adds to its ratings.
      column_effects: [M] likewise.
      interaction: deviation of the interaction ``(u_n . v_m - shift) / spread``.
      noise: deviation of the noise.
      shift: mean of ``u_n . v_m``.
      spread: its deviation.
    """

    u: np.ndarray
    v: np.ndarray
    activity: np.ndarray
    fame: np.ndarray
    row_effects: np.ndarray
    column_effects: np.ndarray
    interaction: float
    noise: float
    shift: float = 0.0
    spread: float = 1.0


def _draw_world(rng, shape: tuple[int, int], rank: int, shares, popularity: float) -> _World:
    num_rows, num_columns = shape
    row_scale, column_scale, interaction, noise = np.sqrt(np.asarray(shares) / sum(shares))
    u, v = _clustered_factors(rng, num_rows, num_columns, rank)
    activity, fame = _power_law(rng, num_rows, popularity), _power_law(rng, num_columns, popularity)
    row_effects = row_scale * rng.standard_normal(num_rows)
    # Half of a column's effect comes with its popularity.
    column_effects = (
        column_scale
        * np.sqrt(0.5)
        * (rng.standard_normal(num_columns) + _standardised(np.log(fame)))
    )
    return _World(u, v, activity, fame, row_effects, column_effects, interaction, noise)


def _latent(world: _World, rows, columns, products, noise) -> np.ndarray:
    """Ratings before they are cut, from the products of factors and noise of unit variance."""
    return (
        world.row_effects[rows]
        + world.column_effects[columns]
        + world.interaction * (products - world.shift) / world.spread
        + world.noise * noise
    )


def _weights(world: _World, missingness: str, rows, columns, values) -> np.ndarray:
    """To what a cell's chance of being observed is proportional."""
    if missingness == "uniform":
        return np.ones_like(values)
    wanted = world.activity[rows] * world.fame[columns]
    return wanted * np.exp(values) if missingness == "value" else wanted


def _draw_observed(rng, world: _World, missingness: str, scale: float):
    """Rows, columns and latent ratings of the observed entries, some rows at once."""
    num_rows, num_columns = len(world.u), len(world.v)
    listed = []
    step = max(1, _CELLS_AT_ONCE // num_columns)
    for start in range(0, num_rows, step):
        some = np.arange(start, min(start + step, num_rows))[:, None]
        every = np.arange(num_columns)[None, :]
        noise = rng.standard_normal((len(some), num_columns))
        values = _latent(world, some, every, world.u[some[:, 0]] @ world.v.T, noise)
        chance = np.minimum(scale * _weights(world, missingness, some, every, values), 1)
        n, m = np.nonzero(rng.random(values.shape) < chance)
        listed.append((n + start, m, values[n, m]))
    return [np.concatenate(parts) for parts in zip(*listed, strict=True)]


def _clustered_factors(rng, num_rows, num_columns, rank):
    # Each further direction of taste carries half the variance of the one before.
    fading = 2.0 ** (-np.arange(rank) / 2)
    poles = np.resize([-1.0, 1.0], (rank, _NUM_GENRES))
    genres = fading * rng.permuted(poles, axis=1).T
    blends = rng.dirichlet(np.full(_NUM_GENRES, 0.3), num_columns)
    v = blends @ genres + 0.1 * rng.standard_normal((num_columns, rank))
    tastes = rng.standard_normal((_NUM_TASTES, rank))
    sizes = rng.dirichlet(np.full(_NUM_TASTES, 5.0))
    tastes -= sizes @ tastes
    u = tastes[rng.choice(_NUM_TASTES, num_rows, p=sizes)]
    return u + 0.4 * rng.standard_normal((num_rows, rank)), v


def _power_law(rng, size: int, exponent: float) -> np.ndarray:
    """Weights ``rank^-exponent`` of Zipf's law, in random order; flattened at the head."""
    return rng.permutation((np.arange(size) + 1 + 0.05 * size) ** -exponent)


def _standardised(x: np.ndarray) -> np.ndarray:
    deviation = x.std()
    return (x - x.mean()) / deviation if deviation > 0 else np.zeros_like(x)


def _scale_to_density(weights: np.ndarray, density: float) -> float:
    """The scale at which ``mean(min(scale * weights, 1))`` is ``density``, by bisection."""
    low, high = 0.0, 1.0 / weights.min()
    for _ in range(60):
        middle = (low + high) / 2
        if np.minimum(middle * weights, 1).mean() < density:
            low = middle
        else:
            high = middle
    return high


def _check_sizes(num_rows: int, num_columns: int, rank: int, density: float) -> None:
    if min(num_rows, num_columns, rank) < 1:
        raise ValueError(
            f"expected rows, columns and rank from 1, got {num_rows}, {num_columns} and {rank}"
        )
    if not 0 < density <= 1:
        raise ValueError(f"expected a density above 0 and up to 1, got {density}")


def _table(rows, columns, values, shape: tuple[int, int]) -> Table:
    entries = Entries(
        rows=rows.astype(np.int32),
        columns=columns.astype(np.int32),
        values=values.astype(np.float32),
        shape=shape,
    )
    return Table(entries, np.arange(shape[0]), np.arange(shape[1]))
