"""The prior of one side's factors, drawn: a regression on features, and what this leaves.

    w_n = B^T phi_n + noise,   noise ~ N(0, Lambda^-1),   phi_n = [1, features of row n]
    B | Lambda ~ MN(B_0, S^-1, Lambda^-1),   S = diag(2, s_1, ..),   s_g ~ Gamma(a_g, b_g)
    Lambda ~ W(d, diag(t)^-1)

with ``L = K + 1`` numbers a row. Features come in groups, such as counts, singular vectors, a table
of the user's; each group g has a strength ``s_g`` of its own. ``B_0`` is zero, and ``a_g`` and
``b_g`` are 1/10, where nothing was learned of them. All conditionals are conjugate: with
``W - Phi B_0`` and ``B - B_0`` in place of W and B, ``G = Phi^T Phi + S`` and
``M = G^-1 Phi^T W``,

    Lambda | W, s ~ W(d + N, (diag(t) + W^T W - M^T G M)^-1)
    B | Lambda, W, s ~ MN(M, G^-1, Lambda^-1)
    s_g | B, Lambda ~ Gamma(a_g + F_g L / 2, b_g + tr(B_g Lambda B_g^T) / 2)

with ``B_g`` the rows of B that belong to the group's F_g features.

Normal and Wishart priors: Salakhutdinov and Mnih, Bayesian probabilistic matrix factorization using
Markov chain Monte Carlo, ICML 2008; the regression: Park, Kim, Choi, Hierarchical Bayesian matrix
factorization with side information, IJCAI 2013; Simm et al., Macau, MLSP 2017.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack

# Prior precision of the intercept.
_INTERCEPT = 2.0
# Shape and rate of the strengths' prior. With 1 the error on FilmTrust was 0.5% higher.
_STRENGTH = 0.1
_START_STRENGTH = 100.0


class Hyperprior(NamedTuple):
    """The prior of the factors of one side, float64.

    Attributes:
      coefficients: ``B`` [F + 1, L], the intercept first.
      precision: ``Lambda`` [L, L].
      strengths: ``s`` [G], prior precisions of the coefficients of each group of features.
    """

    coefficients: np.ndarray
    precision: np.ndarray
    strengths: np.ndarray


class Wishart(NamedTuple):
    """The prior of ``Lambda``.

    Attributes:
      degrees: ``d``, of freedom, more than L - 1.
      inverse_scale: ``t`` [L], positive; the mean of ``Lambda`` is ``d diag(1 / t)``.
    """

    degrees: float
    inverse_scale: np.ndarray


class SidePrior(NamedTuple):
    """What is expected of the `Hyperprior` of a side.

    Attributes:
      wishart: the prior of ``Lambda``.
      effect_means: the last column of ``B_0``, all else of which is zero: of the intercept and of
        the first features; zero for the others.
      strengths: ``(a_g, b_g)`` of the first groups.
    """

    wishart: Wishart
    effect_means: np.ndarray = np.zeros(0)
    strengths: tuple[tuple[float, float], ...] = ()

    def of_strengths(self, num_groups: int) -> np.ndarray:
        """Shapes and rates, [2, G]."""
        known = self.strengths[:num_groups]
        flat = [(_STRENGTH, _STRENGTH)] * (num_groups - len(known))
        return np.array([*known, *flat], float).reshape(-1, 2).T

    def coefficients(self, shape: tuple[int, ...]) -> np.ndarray:
        """``B_0`` [F + 1, L]."""
        means, count = np.zeros(shape), min(len(self.effect_means), shape[0])
        means[:count, -1] = self.effect_means[:count]
        return means


class Moments(NamedTuple):
    """What the conditionals read of a side's factors, float64.

    Attributes:
      count: N.
      features: ``Phi^T Phi`` [F + 1, F + 1].
      crossed: ``Phi^T W`` [F + 1, L].
      factors: ``W^T W`` [L, L].
    """

    count: int
    features: np.ndarray
    crossed: np.ndarray
    factors: np.ndarray

    def about(self, coefficients: np.ndarray) -> "Moments":
        """Those of ``W - Phi B``."""
        fitted = self.features @ coefficients
        crossed = coefficients.T @ self.crossed
        factors = self.factors - crossed - crossed.T + coefficients.T @ fitted
        return self._replace(crossed=self.crossed - fitted, factors=factors)


def init(expected: SidePrior, groups: np.ndarray) -> Hyperprior:
    """No regression, and the mean precision.

    Args:
      expected: of the side.
      groups: [F] int, the group of each feature, counted from 0.
    """
    wishart = expected.wishart
    return Hyperprior(
        np.zeros((len(groups) + 1, len(wishart.inverse_scale))),
        np.diag(wishart.degrees / wishart.inverse_scale),
        np.full(int(groups.max(initial=-1)) + 1, _START_STRENGTH),
    )


def draw(
    rng: np.random.Generator,
    prior: Hyperprior,
    moments: Moments,
    groups: np.ndarray,
    expected: SidePrior,
) -> Hyperprior:
    """Draws ``Lambda, B`` given the factors and the strengths, then these.

    Args:
      rng: of this draw alone.
      prior: the last draw, of which the strengths are read.
      moments: of the factors.
      groups: [F] int.
      expected: of the side.
    """
    wishart = expected.wishart
    width = len(wishart.inverse_scale)
    means = expected.coefficients(moments.crossed.shape)
    moments = moments.about(means)
    ridge = np.append(_INTERCEPT, prior.strengths[groups])
    gram_root = _cholesky(moments.features + np.diag(ridge))
    # With G = C C^T: M^T G M = H^T H, H = C^-1 Phi^T W, and M = C^-T H.
    half = _solve_lower(gram_root, moments.crossed)
    inverse_scale = np.diag(wishart.inverse_scale) + moments.factors - half.T @ half
    bartlett, scale_root = _bartlett(rng, wishart.degrees + moments.count, inverse_scale)
    root = _solve_lower(scale_root, bartlett, transposed=True)
    # B = M + C^-T Z T^-1, of which the rows have the covariance (T T^T)^-1; T^-1 is A^-1 D^T.
    noise = rng.standard_normal(half.shape)
    noise = _solve_lower(bartlett, noise.T, transposed=True).T @ scale_root.T
    coefficients = _solve_lower(gram_root, half + noise, transposed=True)
    squares = ((coefficients[1:] @ root) ** 2).sum(axis=1)
    num_groups = len(prior.strengths)
    sizes = width * np.bincount(groups, minlength=num_groups)
    squares = np.bincount(groups, squares, num_groups)
    shapes, rates = expected.of_strengths(num_groups)
    strengths = rng.standard_gamma(shapes + sizes / 2) / (rates + squares / 2)
    return Hyperprior(means + coefficients, root @ root.T, strengths)


def wishart_root(rng: np.random.Generator, degrees: float, inverse_scale: np.ndarray) -> np.ndarray:
    """``T`` with ``T T^T ~ W(degrees, inverse_scale^-1)``, by Bartlett's decomposition.

    Args:
      rng: of this draw.
      degrees: of freedom, more than L - 1.
      inverse_scale: [L, L], positive definite.

    Returns:
      [L, L], not triangular.
    """
    # With D D^T the inverse scale, the scale is D^-T D^-1, so that T = D^-T A.
    bartlett, scale_root = _bartlett(rng, degrees, inverse_scale)
    return _solve_lower(scale_root, bartlett, transposed=True)


def _bartlett(
    rng: np.random.Generator, degrees: float, inverse_scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``A`` and ``D``, lower, with ``D D^T`` the inverse scale: `wishart_root` is ``D^-T A``."""
    width = len(inverse_scale)
    bartlett = rng.standard_normal((width, width))
    bartlett[np.arange(width)[:, None] < np.arange(width)] = 0
    bartlett.flat[:: width + 1] = np.sqrt(rng.chisquare(degrees - np.arange(width)))
    return bartlett, _cholesky(inverse_scale)


# LAPACK's own: around matrices of a dozen rows SciPy's functions take ten times as long.
_factorize, _solve_triangular = lapack.get_lapack_funcs(("potrf", "trtrs"), dtype=np.float64)


def _cholesky(matrix: np.ndarray) -> np.ndarray:
    """``C``, lower, with ``C C^T`` the matrix."""
    root, failed = _factorize(matrix, lower=1)
    if failed:
        raise np.linalg.LinAlgError(
            f"expected a positive definite matrix, got one of {len(matrix)} rows of which the first"
            f" {failed} are not"
        )
    return root


def _solve_lower(root: np.ndarray, sides: np.ndarray, transposed: bool = False) -> np.ndarray:
    """``C^-1`` times the sides, or ``C^-T``, for `_cholesky`'s ``C``."""
    solved, _ = _solve_triangular(root, sides, lower=1, trans=int(transposed))
    return solved
