"""Rubin's rules: one answer from the analyses of several completed tables.

With estimates ``Q_i`` and their variances ``U_i`` from m tables,

    Q = mean of Q_i,   U = mean of U_i,   B = variance of Q_i,   T = U + (1 + 1 / m) B

T is the variance of Q, and (Q - truth) / T^1/2 is compared with Student's t of ``v`` degrees of
freedom. With ``l = (1 + 1 / m) B / T``, the share of T that is due to the missing values,

    1 / v = 1 / v_m + 1 / v_o,   v_m = (m - 1) / l^2,   v_o = (v_c + 1) / (v_c + 3) v_c (1 - l)

and ``v_c`` the degrees of freedom that the complete table would give.

D. Rubin, Multiple imputation for nonresponse in surveys, 1987; J. Barnard and D. Rubin,
Small-sample degrees of freedom with multiple imputation, Biometrika 1999. Of several estimates at
once: K.-H. Li, T. Raghunathan, D. Rubin, Large-sample significance levels from multiply imputed
data using moment-based statistics and an F reference distribution, JASA 1991.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.stats


class Pooled(NamedTuple):
    """Estimates over several completed tables; each [P], or a scalar.

    Attributes:
      estimate: ``Q``.
      standard_error: ``T^1/2``.
      low, high: the confidence interval.
      degrees: ``v``, infinite where no imputation disagrees and none are told of the table.
      missing_information: the fraction of the information that is missing, a little above ``l``.
      within, between: ``U`` and ``B``.
    """

    estimate: Any
    standard_error: Any
    low: Any
    high: Any
    degrees: Any
    missing_information: Any
    within: Any
    between: Any


class Wald(NamedTuple):
    """A test of several estimates at once: Li, Raghunathan and Rubin's ``D_1``.

    Attributes:
      statistic: to be compared with F.
      degrees: of freedom of F, numerator and denominator.
      p_value: how likely so large a statistic is if the estimates are what was assumed.
    """

    statistic: float
    degrees: tuple[float, float]
    p_value: float


def pool(
    estimates: Any,
    variances: Any,
    complete_degrees: float = np.inf,
    level: float = 0.95,
) -> Pooled:
    """Pools what was found on each of m completed tables.

    >>> found = pool([1.0, 1.2, 1.1], [0.04, 0.05, 0.03])
    >>> print(f"{found.estimate:.2f} in [{found.low:.2f}, {found.high:.2f}]")
    1.10 in [0.63, 1.57]

    Args:
      estimates: [m] or [m, P], on each table.
      variances: of the estimates, squared standard errors, of the same shape.
      complete_degrees: of freedom of the analysis, were the table complete: rows less coefficients
        for a regression.
      level: of the confidence interval.

    Raises:
      ValueError: fewer than two tables, shapes that differ, a negative variance, a number that is
        not finite, or a level outside of (0, 1).
    """
    found, of_each = _checked(estimates, variances)
    if found.shape != of_each.shape:
        raise ValueError(
            f"expected variances of the shape of the estimates, {found.shape}, got {of_each.shape}"
        )
    if (of_each < 0).any():
        raise ValueError(f"variances are squared standard errors, got {of_each.min()}")
    if not 0 < level < 1 or not complete_degrees > 0:
        raise ValueError(
            "expected a level between 0 and 1 and degrees of freedom above 0, got "
            f"{level} and {complete_degrees}"
        )
    count = len(found)
    estimate, within = found.mean(axis=0), of_each.mean(axis=0)
    between = found.var(axis=0, ddof=1)
    of_missing = (1 + 1 / count) * between
    total = within + of_missing
    share = of_missing / np.where(total > 0, total, 1)
    degrees = _degrees(share, count, complete_degrees)
    # A share of a little more, since B itself is of few tables.
    missing = share + (1 - share) * 2 / (degrees + 3)
    half = scipy.stats.t.ppf((1 + level) / 2, degrees) * np.sqrt(total)
    return Pooled(
        estimate,
        np.sqrt(total),
        estimate - half,
        estimate + half,
        degrees,
        np.where(share > 0, missing, 0)[()],
        within,
        between,
    )


def wald(estimates: Any, covariances: Any, null: Any = 0.0) -> Wald:
    """Tests P estimates at once, as of the levels of one factor, on m completed tables.

    Args:
      estimates: [m, P].
      covariances: [m, P, P], of the estimates on each table.
      null: [P], what they are if there is no effect.

    Raises:
      ValueError: fewer than two tables, shapes that do not fit, or a number that is not finite.
    """
    found, of_each = _checked(estimates, covariances)
    if found.ndim != 2 or of_each.shape != (*found.shape, found.shape[1]):
        raise ValueError(
            "expected estimates [m, P] and covariances [m, P, P], got shapes "
            f"{found.shape} and {of_each.shape}"
        )
    count, size = found.shape
    within = of_each.mean(axis=0)
    between = np.atleast_2d(np.cov(found.T))
    # The relative increase of the variance by the missing values, the same for all P.
    increase = (1 + 1 / count) * np.trace(np.linalg.solve(within, between)) / size
    away = found.mean(axis=0) - null
    statistic = float(away @ np.linalg.solve(within, away) / (size * (1 + increase)))
    freedom = size * (count - 1)
    if increase <= 0:
        rest = np.inf
    elif freedom > 4:
        rest = 4 + (freedom - 4) * (1 + (1 - 2 / freedom) / increase) ** 2
    else:
        rest = freedom * (1 + 1 / size) * (1 + 1 / increase) ** 2 / 2
    p_value = (
        scipy.stats.chi2.sf(size * statistic, size)
        if np.isinf(rest)
        else scipy.stats.f.sf(statistic, size, rest)
    )
    return Wald(statistic, (float(size), float(rest)), float(p_value))


def _degrees(share: np.ndarray, count: int, complete: float) -> Any:
    """``v``; ``share`` is ``l``."""
    with np.errstate(divide="ignore"):
        inverse = share**2 / (count - 1)
        if np.isfinite(complete):
            observed = (complete + 1) / (complete + 3) * complete * (1 - share)
            inverse = inverse + 1 / observed
        return 1 / np.asarray(inverse)[()]


def _checked(estimates: Any, variances: Any) -> tuple[np.ndarray, np.ndarray]:
    found, of_each = (np.asarray(x, np.float64) for x in (estimates, variances))
    if found.ndim < 1 or len(found) < 2:
        raise ValueError(
            "expected estimates on two completed tables at least: one does not tell how far "
            "imputations differ"
        )
    if not (np.isfinite(found).all() and np.isfinite(of_each).all()):
        raise ValueError("expected finite estimates and variances")
    return found, of_each
