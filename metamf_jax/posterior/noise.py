"""The noise, drawn: one precision for all entries, and a share of it for each row and column.

    e_nm ~ N(0, 1 / (alpha p_n q_m)),   alpha ~ Gamma(a_0, b_0),   p_n, q_m ~ Gamma(a, a)

    alpha | .. ~ Gamma(a_0 + E / 2, b_0 + sum p_n q_m e_nm^2 / 2)
    p_n | ..   ~ Gamma(a + N_n / 2, a + alpha sum_m q_m e_nm^2 / 2)

and q_m alike. With p and q of one this is Salakhutdinov and Mnih's model (ICML 2008); rows with
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
