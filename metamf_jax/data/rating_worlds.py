"""Synthetic worlds of ratings: whole rating sets, each with habits of its own.

A world is one sparse matrix of users and items, from which small ones can be cut as from a real
set. What it is like is drawn anew for each, in ranges that cover what real sets show
(``experiments.rating_statistics`` prints both side by side):

* a value is a row's effect plus, stretched by the row's habit, a column's effect, a product of
  factors (in some worlds of clusters) and noise with shares of rows and columns, put on a scale of
  3 to 21 levels, or a continuous one, at thresholds that are partly the row's own;
* a cell is the likelier observed the more popular its column and the more active its row is, by
  heavy tails, and the more it is to the row's taste or the higher its value;
* the popular is mostly liked the more; the active like a little less, or more.
"""

import numpy as np
import scipy.special

from metamf_jax.types import Entries

# Of the variance before it is put on a scale: columns, rows, products of factors, noise; and how
# near to them worlds are, Dirichlet.
_SHARES, _NEARNESS = np.array([0.15, 0.17, 0.13, 0.55]), 12.0
_MOST_RANK = 10
_LEAST_OBSERVED, _MOST_OBSERVED = 0.02, 0.8


def draw_world(rng: np.random.Generator, shape: tuple[int, int]) -> Entries:
    """Draws a world.

    Args:
      rng: draws everything.
      shape: (N, M), of all its rows and columns.

    Returns:
      Its observed entries, 2% to 80% of all cells, in random order.
    """
    (u, v), interaction = _factors(rng, shape), _unit_products
    popularity, activity = _popularity(rng, shape[1], 3.5), _popularity(rng, shape[0], 2.0)
    tastes = u if rng.random() < 0.5 else u @ rng.standard_normal((u.shape[1], u.shape[1]))
    logits = activity[:, None] + popularity + rng.uniform(0, 0.5) * interaction(tastes, v)
    column_effects = _correlated(rng, popularity, _liking(rng))
    row_effects = _correlated(rng, activity, rng.uniform(-0.6, 0.1))
    by_value = rng.uniform(0, 0.5) * (rng.random() < 0.5)
    shares = np.sqrt(rng.dirichlet(_NEARNESS * _SHARES))
    signal = shares[0] * column_effects + shares[2] * interaction(u, v)
    logits = logits + by_value * signal
    rows, columns = _observed(rng, logits)
    noise = rng.standard_normal(len(rows)) * np.sqrt(
        _noise_shares(rng, shape[0], 2.0)[rows] * _noise_shares(rng, shape[1], 5.0)[columns]
    )
    stretch = np.exp(rng.uniform(0.1, 0.55) * rng.standard_normal(shape[0]))
    latent = shares[1] * row_effects[rows] + stretch[rows] * (
        signal[rows, columns] + shares[3] * noise
    )
    values = _on_scale(rng, latent, rows, shape[0]).astype(np.float32)
    return Entries(rows, columns, values, shape)


def _factors(rng, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """[N, K] and [M, K], Gaussian or scattered around centres."""
    rank = rng.integers(1, _MOST_RANK, endpoint=True)
    fading = (np.arange(rank) + 1.0) ** -rng.uniform(0, 1.2)

    def draw(size):
        drawn = rng.standard_normal((size, rank))
        if rng.random() < 0.3:
            centres = rng.standard_normal((rng.integers(3, 12), rank))
            drawn = centres[rng.integers(len(centres), size=size)] + rng.uniform(0.1, 0.7) * drawn
        return drawn - drawn.mean(axis=0)

    return draw(shape[0]) * fading, draw(shape[1])


def _unit_products(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # The variance of all products, from second moments alone.
    variance = ((u.T @ u) * (v.T @ v)).sum() / (len(u) * len(v))
    # [N, K], [M, K] -> [N, M]. Not by BLAS: on a busy machine its threads wait for each other.
    return np.einsum("nk,mk->nm", u / np.sqrt(variance), v)


def _popularity(rng, size: int, most: float) -> np.ndarray:
    """Log odds [size], of one of three tails."""
    kind = rng.integers(3)
    if kind == 0:
        drawn = rng.standard_normal(size)
    elif kind == 1:
        drawn = rng.exponential(size=size)
    else:
        drawn = np.sqrt(3) * rng.uniform(-1, 1, size)
    return rng.uniform(0.1 * most, most) * drawn


def _liking(rng) -> float:
    """How popularity goes with quality: mostly the popular is better."""
    return rng.uniform(0, 0.8) if rng.random() < 0.85 else rng.uniform(-0.6, 0)


def _correlated(rng, x: np.ndarray, correlation: float) -> np.ndarray:
    """Of unit variance, some skewed to the low side."""
    drawn = rng.standard_normal(len(x))
    if rng.random() < 0.5:
        drawn = -np.expm1(0.5 * drawn)
        drawn = (drawn - drawn.mean()) / drawn.std()
    return correlation * (x - x.mean()) / x.std() + np.sqrt(1 - correlation**2) * drawn


def _noise_shares(rng, size: int, least: float) -> np.ndarray:
    """Variances [size] about 1, nearer to it the larger ``least`` is."""
    evenness = least * np.exp(rng.uniform(0, np.log(10)))
    shares = 1 / rng.gamma(evenness, size=size).clip(0.1 * evenness)
    return shares / shares.mean()


def _observed(rng, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the observed cells, in random order."""
    share = np.exp(rng.uniform(np.log(_LEAST_OBSERVED), np.log(_MOST_OBSERVED)))
    count = max(1, round(share * logits.size))
    # The largest keys are a weighted draw without replacement (Gumbel).
    keys = logits.ravel() + rng.gumbel(size=logits.size)
    flat = rng.permutation(np.argpartition(-keys, count - 1)[:count])
    return (flat // logits.shape[1]).astype(np.int32), (flat % logits.shape[1]).astype(np.int32)


def _on_scale(rng, latent: np.ndarray, rows: np.ndarray, num_rows: int) -> np.ndarray:
    """Levels 1, 2, ..; or real numbers within bounds."""
    latent = (latent - latent.mean()) / latent.std()
    if rng.random() < 0.2:
        pressed = rng.uniform(0.2, 1.5) * np.exp(0.4 * rng.standard_normal(num_rows))
        return np.tanh(pressed[rows] * (latent + rng.normal(0, 0.3))) / np.tanh(pressed[rows])
    num_levels = int(rng.choice([3, 4, 5, 5, 5, 5, 5, 6, 7, 8, 9, 10, 10, 10, 11, 21]))
    # How often each level is used: a beta distribution, and something of its own.
    a, b = np.exp(rng.uniform(np.log(0.8), np.log(6), 2))
    edges = np.arange(1, num_levels) / num_levels
    usual = np.diff(scipy.special.betainc(max(a, b), min(a, b), edges), prepend=0, append=1)
    used = 0.7 * usual + 0.3 * rng.dirichlet(np.full(num_levels, 2.0))
    cuts = scipy.special.ndtri(np.cumsum(used)[:-1] / used.sum())
    own = rng.uniform(0, 0.4) * rng.standard_normal((num_rows, num_levels - 1))
    levels = np.ones(len(rows))
    for cut, of_rows in zip(cuts, own.T, strict=True):
        levels += latent > cut + of_rows[rows]
    if num_levels >= 8 and rng.random() < 0.5:
        # Some never give the halves.
        coarse = rng.random(num_rows) < rng.uniform(0.2, 0.8)
        levels = np.where(coarse[rows], 2 * np.ceil(levels / 2), levels)
    return levels
