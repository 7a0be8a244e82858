"""Synthetic rating matrices: what is popular is liked the more, and what is liked is seen.

Values are levels of a sum of effects, products of factors and noise. Columns' effects go with their
popularity, rows' hardly with their activity; noise has shares of rows and columns; a cell is the
likelier observed the more popular, active and to the row's taste it is. How strong all this is, is
drawn anew for each matrix, in ranges about what is known of film ratings: half of the variance is
noise, a fifth lies between rows, a seventh between columns.
"""

import numpy as np

from metamf_jax.types import Entries

_RANK = 8
# Of the variance: columns, rows, interaction, noise; and how near to it matrices are.
_VARIANCES, _NEARNESS = (0.15, 0.2, 0.15, 0.5), 20.0
# Rows and columns of the matrix of which the popular and active ones are a cut.
_CUT = 3


def draw_rating_matrix(rng: np.random.Generator, side: int) -> Entries:
    """Draws a matrix of so many rows and columns, an eighth to two fifths of it observed."""
    levels, logits = _world(rng, _CUT * side)
    observed = np.exp(rng.uniform(np.log(0.12), np.log(0.4)))
    rows, columns = (_most(rng, logits.mean(axis=axis), side) for axis in (1, 0))
    levels, logits = levels[np.ix_(rows, columns)], logits[np.ix_(rows, columns)]
    keys = logits + rng.gumbel(size=logits.shape)
    n, m = np.nonzero(keys >= np.quantile(keys, 1 - observed))
    values = levels[n, m].astype(np.float32)
    return Entries(n.astype(np.int32), m.astype(np.int32), values, (side, side))


def draw_sparse_rating_matrix(rng: np.random.Generator, size: int) -> Entries:
    """Draws a matrix of so many rows and columns, 1% to 8% observed: few cells of most columns."""
    levels, logits = _world(rng, size)
    observed = np.exp(rng.uniform(np.log(0.01), np.log(0.08)))
    keys = logits + rng.gumbel(size=logits.shape)
    n, m = np.nonzero(keys >= np.quantile(keys, 1 - observed))
    values = levels[n, m].astype(np.float32)
    return Entries(n.astype(np.int32), m.astype(np.int32), values, (size, size))


def _world(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All values [N, M], and the log odds of their being observed."""
    num_levels = int(rng.integers(5, 11))
    popularity, activity = rng.standard_normal((2, size))
    column_slope, row_slope = rng.uniform(0.5, 1.3, 2)
    variances = rng.dirichlet(_NEARNESS * np.array(_VARIANCES))
    fading = (np.arange(_RANK) + 1.0) ** -rng.uniform(0.3, 1.2)
    u, v = rng.standard_normal((2, size, _RANK)) * fading
    parts = (
        _correlated(rng, popularity, rng.uniform(0.2, 0.8)) + np.zeros((size, 1)),
        _correlated(rng, activity, rng.uniform(-0.4, 0.2))[:, None] + np.zeros(size),
        u @ v.T,
        rng.standard_normal((size, size))
        / np.sqrt(rng.gamma(3, 1 / 3, (size, 1)) * rng.gamma(6, 1 / 6, size)),
    )
    weighted = [
        np.sqrt(share) * part / part.std() for share, part in zip(variances, parts, strict=True)
    ]
    values = np.add.reduce(weighted)
    taste = u @ v.T
    if rng.random() < 0.5:
        taste = u @ rng.standard_normal((_RANK, _RANK)) @ v.T
    logits = column_slope * popularity + row_slope * activity[:, None]
    logits = logits + rng.uniform(0, 0.8) * taste / taste.std()
    cuts = np.quantile(values, np.cumsum(rng.dirichlet(np.full(num_levels, 3.0)))[:-1])
    return np.searchsorted(cuts, values) + 1.0, logits


def _correlated(rng: np.random.Generator, x: np.ndarray, correlation: float) -> np.ndarray:
    return correlation * x + np.sqrt(1 - correlation**2) * rng.standard_normal(len(x))


def _most(rng: np.random.Generator, logits: np.ndarray, count: int) -> np.ndarray:
    """So many, the likelier the larger their logits."""
    return np.argsort(-(logits + rng.gumbel(size=len(logits))))[:count]
