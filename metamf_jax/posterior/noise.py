"""The noise, drawn: one precision for all entries, and a share of it for each row and column.

    e_nm ~ N(0, 1 / (alpha p_n q_m)),   alpha ~ Gamma(a_0, b_0),   p_n, q_m ~ Gamma(a, a)

    alpha | .. ~ Gamma(a_0 + E / 2, b_0 + sum p_n q_m e_nm^2 / 2)
    p_n | ..   ~ Gamma(a + N_n / 2, a + alpha sum_m q_m e_nm^2 / 2)

and q_m alike. What alpha gains all p_n may lose at once, which these draws undo but slowly; a third
one moves along that line, ``alpha / c`` and ``c p_n``, on which the entries' noise stays as it is:

    c | .. ~ c^(N a - a_0 - 1) exp(-a c sum p_n - b_0 alpha / c)

(Liu, Sabatti, Generalised Gibbs sampler and multigrid Monte Carlo for Bayesian computation,
Biometrika 2000). With p and q of one this is Salakhutdinov and Mnih's model (ICML 2008); rows with
noise of their own: Lakshminarayanan, Bouchard, Archambeau, Robust Bayesian matrix factorisation,
AISTATS 2011.
"""

import numpy as np

# Shape and rate of the precision's prior where nothing was learned of it.
FLAT = 1.0, 1.0


def draw_precision(
    rng: np.random.Generator, count: int, square: float, expected: tuple[float, float] = FLAT
) -> float:
    """``alpha``, given E, ``sum p_n q_m e_nm^2`` and ``(a_0, b_0)``."""
    shape, rate = expected
    return float(rng.gamma(shape + count / 2) / (rate + square / 2))


def draw_shares(
    rng: np.random.Generator, shape: float, counts: np.ndarray, squares: np.ndarray
) -> np.ndarray:
    """The shares of rows in the noise's precision.

    Args:
      rng: of this draw.
      shape: ``a``; 0 for rows all alike, whose share is one.
      counts: [N], of entries.
      squares: [N], ``alpha sum_m q_m e_nm^2``.

    Returns:
      [N] float64.
    """
    if not shape:
        return np.ones(len(counts))
    return rng.standard_gamma(shape + counts / 2) / (shape + squares / 2)


def rescale(
    rng: np.random.Generator,
    shape: float,
    alpha: float,
    shares: np.ndarray,
    expected: tuple[float, float] = FLAT,
) -> tuple[float, np.ndarray]:
    """``alpha / c`` and ``c p_n``, by a step of Metropolis and Hastings: a Gamma, without ``b_0``.

    Args:
      rng: of this draw.
      shape: ``a``; 0 for rows all alike, of which nothing is moved.
      alpha: the precision.
      shares: [N], of rows.
      expected: ``(a_0, b_0)``.
    """
    a_0, b_0 = expected
    of_proposal = shape * len(shares) - a_0
    if not shape or of_proposal <= 0:
        return alpha, shares
    scale = float(rng.gamma(of_proposal) / (shape * shares.sum()))
    if -rng.exponential() < b_0 * alpha * (1 - 1 / scale):
        return alpha / scale, scale * shares
    return alpha, shares
