"""Normal scores: each column's values by their ranks, and back.

A value has the score ``Phi^-1(rank / (N + 1))``, N its column's observed cells, equal values the
mean of their ranks. A Gaussian over scores is a Gaussian copula: skewed columns, heavy tails and
few distinct values do not matter to it. Back, the mean of a normal score is that of the values at
its quantiles, which lie between the column's least and greatest.

Hoff, Extending the rank likelihood for semiparametric copula estimation, Annals of Applied
Statistics 2007, describes such models.
"""

from typing import NamedTuple

import numpy as np
import scipy.special

# Of each column's distribution so many quantiles are kept.
_MOST_KNOTS = 1024
# Points of the quadrature of a normal.
_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)


class Marginals(NamedTuple):
    """The distributions of M columns, each as Q quantiles; float64.

    Attributes:
      values: [M, Q], increasing, of which the last are repeated in columns with fewer cells.
      scores: [M, Q], theirs in the order of the sorted values: no two alike.
      ranked: [M, Q], their scores by rank, equal values alike.
    """

    values: np.ndarray
    scores: np.ndarray
    ranked: np.ndarray


def fit(values: np.ndarray, observed: np.ndarray) -> Marginals:
    """The distributions of a table's columns.

    Args:
      values: [N, M], whatever the missing cells hold.
      observed: [N, M] bool. A column without any, such as one of which the only cell is held out,
        is taken to hold a zero: its mean, of standardised values.
    """
    most = max(1, min(_MOST_KNOTS, int(observed.sum(axis=0).max())))
    found = np.empty((3, values.shape[1], most))
    for m, (column, seen) in enumerate(zip(values.T, observed.T, strict=True)):
        ordered = np.sort(column[seen]) if seen.any() else np.zeros(1)
        count = len(ordered)
        kept = np.round(np.linspace(0, count - 1, min(most, count))).astype(int)
        kept = np.append(kept, np.full(most - len(kept), count - 1))
        ranks = np.stack([np.arange(1, count + 1), _shared_ranks(ordered)])
        found[0, m] = ordered[kept]
        found[1:, m] = scipy.special.ndtri(ranks / (count + 1))[:, kept]
    return Marginals(*found)


def _shared_ranks(ordered: np.ndarray) -> np.ndarray:
    """Ranks, from 1, of sorted values, equal ones the mean of theirs.

    Those of `scipy.stats.rankdata`, which takes 0.3 s to import.
    """
    _, group, sizes = np.unique(ordered, return_inverse=True, return_counts=True)
    last = sizes.cumsum()
    return (last - (sizes - 1) / 2)[group]


def to_scores(marginals: Marginals, values: np.ndarray) -> np.ndarray:
    """The scores [N, M] of values [N, M], linear between those that are known."""
    scores = np.empty(values.shape)
    for m, column in enumerate(values.T):
        known, first = np.unique(marginals.values[m], return_index=True)
        scores[:, m] = np.interp(column, known, marginals.ranked[m, first])
    return scores


def from_scores(
    marginals: Marginals, column: int, means: np.ndarray, variances: np.ndarray
) -> np.ndarray:
    """The mean values [P] of normal scores of one column with these means and variances, [P]."""
    points = means[:, None] + np.sqrt(variances)[:, None] * _POINTS
    known = np.interp(points, marginals.scores[column], marginals.values[column])
    return known @ (_WEIGHTS / _WEIGHTS.sum())
