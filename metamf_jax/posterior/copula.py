"""Gibbs sampling of a table of mixed columns: latent normal numbers, cut into what is observed.

A row's P latent numbers are ``z_n ~ N(m, C)``. Of a cell is observed its latent number itself (a
value on a scale that is fixed beforehand, such as normal scores), or an interval that holds it (a
level between two cuts), or, of an unordered category of L, that one of ``0, z_1, .., z_(L-1)`` is
the largest. With D = diag(s),

    m | C ~ N(0, C / k),   C ~ IW(v + P - 1, v D),   s_p ~ Gamma(1/2, 1/2), s_p > t
    v = 1/4, 1/2, 1, ..,   p(v) ~ 1 / v

``v`` says how strongly columns are drawn to independence, learned from all of them together, and
``s_p`` how large a column is. With the means ``b`` of the latent numbers, their scatter S around
them and ``G = S + N k / (N + k) b b^T``, all conditionals are conjugate:

    p(v | z, s) ~ p(v) v^(P (v + P - 1) / 2) |v D + G|^-((v + P - 1 + N) / 2)
                  Gamma_P((v + P - 1 + N) / 2) / Gamma_P((v + P - 1) / 2)
    C | z, v, s ~ IW(v + P - 1 + N, v D + G)
    m | C, z ~ N(N b / (N + k), C / (N + k))
    s_p | C, v ~ Gamma(1/2 + (v + P - 1) / 2, 1/2 + v (C^-1)_pp / 2), s_p > t

Latent numbers of observed intervals are drawn a column at a time from the normal that the row's
others leave, truncated; those of all missing cells of a row together. Nothing fixes the scale of a
latent number of which only the sign tells (two levels, categories): its ``s_p`` stays 1, and the
scale is drawn along, which mixes better than to hold it (Imai and van Dyk).

P. Hoff, Extending the rank likelihood for semiparametric copula estimation, AOAS 2007; J. Albert
and S. Chib, Bayesian analysis of binary and polychotomous response data, JASA 1993; K. Imai and
D. van Dyk, A Bayesian analysis of the multinomial probit model using marginal data augmentation,
Journal of Econometrics 2005; A. Huang and M. Wand, Simple marginally noninformative prior
distributions for covariance matrices, Bayesian Analysis 2013.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.special

from metamf_jax.posterior.hyperprior import wishart_root

# Shape and rate of the prior of the sizes of columns.
_SIZE = 0.5
# Numbers of the matrices of rows' missing cells that are held at once: 32 MB.
_BATCH = 2**22


@dataclasses.dataclass(frozen=True)
class CopulaConfig:
    """The prior.

    Attributes:
      degrees: values of ``v``, ascending, each as likely as its inverse. From 2 upward, all equally
        likely, slopes in tables of 100 x 3 with a third missing came out 9% too small; so, 4%.
      rows_at_zero: ``k``, how many rows the prior of the mean is worth.
      least_size: ``t``. It keeps columns that say the same but for rounding from saying, by what
        rounding leaves, anything of others.
    """

    degrees: tuple[float, ...] = tuple(2.0**i for i in range(-2, 12))
    rows_at_zero: float = 0.1
    least_size: float = 0.01

    def __post_init__(self):
        if not self.degrees or min(*self.degrees, self.rows_at_zero, self.least_size) <= 0:
            raise ValueError(
                "expected positive degrees of freedom, rows at zero and sizes, got "
                f"{self.degrees}, {self.rows_at_zero} and {self.least_size}"
            )


class Choice(NamedTuple):
    """An unordered category of L levels.

    Attributes:
      first: its first latent column; there are L - 1.
      chosen: [N] int, 0 where all latent numbers are below zero, l where that of column
        ``first + l - 1`` is the largest, and above zero; -1 where missing.
      count: L.
    """

    first: int
    chosen: np.ndarray
    count: int


class Interval(NamedTuple):
    """Cells of one column of which an interval is known.

    Attributes:
      column: p.
      rows: [R] int.
      low, high: [R].
    """

    column: int
    rows: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Missing(NamedTuple):
    """Rows that lack the same number K of latent numbers.

    Attributes:
      patterns: [G, K] int, the columns that are lacking.
      rows: [R] int.
      pattern: [R] int, of each row.
    """

    patterns: np.ndarray
    rows: np.ndarray
    pattern: np.ndarray


class Data(NamedTuple):
    """A table of N rows and P latent columns.

    Attributes:
      start: [N, P] latent numbers that agree with what is observed; 0 where nothing is.
      intervals: the columns with intervals.
      choices: the unordered categories.
      missing: rows with missing cells.
      unscaled: [P] bool, the columns of which only the sign tells.
    """

    start: np.ndarray
    intervals: tuple[Interval, ...]
    choices: tuple[Choice, ...]
    missing: tuple[Missing, ...]
    unscaled: np.ndarray


class Parameters(NamedTuple):
    """What is drawn besides the latent numbers; NumPy arrays, float64.

    Attributes:
      mean: ``m`` [P].
      precision: ``C^-1`` [P, P].
      sizes: ``s`` [P].
      degrees: ``v``.
    """

    mean: np.ndarray
    precision: np.ndarray
    sizes: np.ndarray
    degrees: float


class State(NamedTuple):
    """A draw: latent numbers [N, P] float64, and parameters."""

    latent: np.ndarray
    parameters: Parameters


class Predicted(NamedTuple):
    """The normal distribution of each missing cell given what its row has otherwise.

    Attributes:
      mean, deviation: [N, P]; 0 where not missing.
    """

    mean: np.ndarray
    deviation: np.ndarray


def prepare(
    low: np.ndarray,
    high: np.ndarray,
    choices: tuple[Choice, ...] = (),
    unscaled: np.ndarray | None = None,
) -> Data:
    """A table, ready to be swept.

    Args:
      low, high: [N, P], the interval that holds each latent number: of no width where it is known,
        infinite where nothing is. What is said of the columns of choices is not read.
      choices: the unordered categories.
      unscaled: [P] bool, columns of which only the sign tells, besides those of choices.

    Raises:
      ValueError: shapes that differ, or an interval that is empty.
    """
    low, high = np.array(low, np.float64), np.array(high, np.float64)
    if low.shape != high.shape or low.ndim != 2:
        raise ValueError(f"expected low and high [N, P], got {low.shape} and {high.shape}")
    unscaled = np.zeros(low.shape[1], bool) if unscaled is None else unscaled.copy()
    start, categorical = np.zeros(low.shape), np.zeros(low.shape, bool)
    for choice in choices:
        part = slice(choice.first, choice.first + choice.count - 1)
        low[:, part], high[:, part] = -np.inf, np.inf
        unscaled[part] = True
        categorical[:, part] = (choice.chosen >= 0)[:, None]
        levels = np.arange(1, choice.count)
        start[:, part] = np.where(choice.chosen[:, None] == levels, 0.5, -0.5)
        start[choice.chosen < 0, part] = 0
    if not (low <= high).all():
        raise ValueError("expected intervals with a low end that is not above the high one")
    missing = np.isneginf(low) & np.isposinf(high) & ~categorical
    start = np.where(missing | categorical, start, _inside(low, high))
    intervals = []
    for p in np.flatnonzero(((low < high) & ~missing & ~categorical).any(axis=0)):
        rows = np.flatnonzero((low[:, p] < high[:, p]) & ~missing[:, p] & ~categorical[:, p])
        intervals.append(Interval(int(p), rows, low[rows, p], high[rows, p]))
    return Data(start, tuple(intervals), tuple(choices), _by_number_missing(missing), unscaled)


def _inside(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """A point of each interval: not far from its end, where the other one is infinite."""
    ends = np.where(np.isfinite(low), low, high - 1), np.where(np.isfinite(high), high, low + 1)
    with np.errstate(invalid="ignore"):
        return (ends[0] + ends[1]) / 2


def _by_number_missing(missing: np.ndarray) -> tuple[Missing, ...]:
    patterns, of_row = np.unique(missing, axis=0, return_inverse=True)
    numbers, found = patterns.sum(axis=1), []
    for number in np.unique(numbers[numbers > 0]):
        alike = np.flatnonzero(numbers == number)
        columns = np.nonzero(patterns[alike])[1].reshape(len(alike), number)
        rows = np.flatnonzero(np.isin(of_row, alike))
        most = max(1, int(_BATCH // number**2))
        for at in range(0, len(rows), most):
            part = rows[at : at + most]
            used, pattern = np.unique(of_row[part], return_inverse=True)
            found.append(Missing(columns[np.searchsorted(alike, used)], part, pattern))
    return tuple(found)


def init(rng: np.random.Generator, data: Data, config: CopulaConfig) -> State:
    """Independent columns, and latent numbers that agree with what is observed."""
    size = data.start.shape[1]
    parameters = Parameters(np.zeros(size), np.eye(size), np.ones(size), config.degrees[0])
    return State(draw_latent(rng, data.start, parameters, data)[0], parameters)


def sweep(
    rng: np.random.Generator, state: State, data: Data, config: CopulaConfig
) -> tuple[State, Predicted]:
    """Draws everything once.

    Args:
      rng: gives the numbers of this sweep.
      state: the last draw.
      data: from `prepare`.
      config: the prior.

    Returns:
      The draw, and what it says of missing cells.
    """
    parameters = draw_parameters(rng, state, data, config)
    latent, predicted = draw_latent(rng, state.latent, parameters, data)
    return State(latent, parameters), predicted


def draw_parameters(
    rng: np.random.Generator, state: State, data: Data, config: CopulaConfig
) -> Parameters:
    """Draws ``v``, C, m and s, given the latent numbers."""
    latent, sizes = state.latent, state.parameters.sizes
    count, width = latent.shape
    mean, weight = latent.mean(axis=0), count + config.rows_at_zero
    away = latent - mean
    scatter = away.T @ away + count * config.rows_at_zero / weight * np.outer(mean, mean)

    degrees = _draw_degrees(rng, scatter, sizes, count, config)
    root = wishart_root(rng, degrees + width - 1 + count, degrees * np.diag(sizes) + scatter)
    precision = root @ root.T
    # With C^-1 = T T^T, T^-T x has the covariance C.
    noise = np.linalg.solve(root.T, rng.standard_normal(width))
    mean = count * mean / weight + noise / np.sqrt(weight)
    rate = _SIZE + degrees * np.diag(precision) / 2
    sizes = _gamma_from(rng, _SIZE + (degrees + width - 1) / 2, rate, config.least_size)
    return Parameters(mean, precision, np.where(data.unscaled, 1, sizes), degrees)


def _draw_degrees(rng, scatter, sizes, count, config) -> float:
    """``v`` given the latent numbers and the sizes, without C."""
    width, degrees = len(sizes), np.array(config.degrees)
    root = np.sqrt(sizes)
    # |v D + G| = |D| prod (v + e) with the eigenvalues e of D^-1/2 G D^-1/2.
    values = np.maximum(np.linalg.eigvalsh(scatter / np.outer(root, root)), 0)
    prior = degrees + width - 1
    logs = (width * prior / 2 - 1) * np.log(degrees)
    logs -= (prior + count) / 2 * np.log(degrees[:, None] + values).sum(axis=1)
    logs += _log_gamma((prior + count) / 2, width)
    logs -= _log_gamma(prior / 2, width)
    chances = np.exp(logs - logs.max())
    return float(rng.choice(degrees, p=chances / chances.sum()))


def _gamma_from(rng, shape: float, rate: np.ndarray, least: float) -> np.ndarray:
    """Gamma numbers above ``least``."""
    beyond = scipy.special.gammaincc(shape, least * rate) * (1 - rng.random(len(rate)))
    # Where next to nothing of the distribution is above, its least number.
    drawn = scipy.special.gammainccinv(shape, np.maximum(beyond, 1e-300)) / rate
    return np.maximum(drawn, least)


def _log_gamma(values: np.ndarray, width: int) -> np.ndarray:
    """The logarithm of the multivariate gamma function, but for a constant."""
    return scipy.special.gammaln(values[:, None] - np.arange(width) / 2).sum(axis=1)


def draw_latent(
    rng: np.random.Generator, latent: np.ndarray, parameters: Parameters, data: Data
) -> tuple[np.ndarray, Predicted]:
    """Draws the latent numbers of intervals, choices and missing cells, given the parameters.

    Args:
      rng: gives the numbers of this draw.
      latent: [N, P], the last ones.
      parameters: of the model.
      data: from `prepare`.
    """
    mean, precision = parameters.mean, parameters.precision
    away = latent - mean
    for column, rows, low, high in data.intervals:
        middle, deviation = _given_others(away, precision, column)
        bounds = ((bound - mean[column]) for bound in (low, high))
        away[rows, column] = _truncated_normal(rng, middle[rows], deviation, *bounds)
    for choice in data.choices:
        _draw_choice(rng, away, mean, precision, choice)
    predicted = _draw_missing(rng, away, precision, data.missing)
    latent = away + mean
    # What is known stays as it is, to the last bit.
    drawn = np.zeros(latent.shape, bool)
    for column, rows, *_ in data.intervals:
        drawn[rows, column] = True
    for choice in data.choices:
        drawn[:, choice.first : choice.first + choice.count - 1] = True
    for rows, columns in _missing_cells(data):
        drawn[rows, columns] = True
        predicted.mean[rows, columns] += mean[columns]
    return np.where(drawn, latent, data.start), predicted


def _missing_cells(data: Data):
    for patterns, rows, pattern in data.missing:
        yield rows[:, None], patterns[pattern]


def _given_others(away, precision, column) -> tuple[np.ndarray, float]:
    """Mean [N], less m, and deviation of a column given all others."""
    middle = away[:, column] - away @ precision[:, column] / precision[column, column]
    return middle, precision[column, column] ** -0.5


def _draw_choice(rng, away, mean, precision, choice: Choice) -> None:
    """The latent numbers of one category, one after the other, in place."""
    rows = np.flatnonzero(choice.chosen >= 0)
    columns = np.arange(choice.first, choice.first + choice.count - 1)
    latent = away[np.ix_(rows, columns)] + mean[columns]
    for i, column in enumerate(columns):
        # The largest of the others, that of the first level being zero.
        others = np.max(np.delete(latent, i, axis=1), axis=1, initial=0.0)
        largest = choice.chosen[rows] == i + 1
        low, high = np.where(largest, others, -np.inf), np.where(largest, np.inf, others)
        middle, deviation = _given_others(away, precision, column)
        away[rows, column] = _truncated_normal(
            rng, middle[rows], deviation, low - mean[column], high - mean[column]
        )
        latent[:, i] = away[rows, column] + mean[column]


def _truncated_normal(rng, mean, deviation, low, high) -> np.ndarray:
    """Normal numbers between low and high, by the inverse distribution function."""
    low, high = (low - mean) / deviation, (high - mean) / deviation
    # In the lower tail, where probabilities have all their digits.
    turned = low + high > 0
    low, high = np.where(turned, -high, low), np.where(turned, -low, high)
    ends = scipy.special.ndtr(low), scipy.special.ndtr(high)
    chance = ends[0] + (ends[1] - ends[0]) * rng.random(len(mean))
    # Where the whole interval is beyond 37 deviations no chance is left: its nearer end then.
    drawn = np.clip(scipy.special.ndtri(np.maximum(chance, 1e-300)), low, high)
    return mean + deviation * np.where(turned, -drawn, drawn)


def _draw_missing(rng, away, precision, missing: tuple[Missing, ...]) -> Predicted:
    """All missing latent numbers of each row, in place, given those that are there."""
    predicted = Predicted(np.zeros(away.shape), np.zeros(away.shape))
    for patterns, rows, pattern in missing:
        away[rows[:, None], patterns[pattern]] = 0
    pull = -away @ precision
    for patterns, rows, pattern in missing:
        at = rows[:, None], patterns[pattern]
        # [G, K, K]; with C_mm^-1 = L L^T, the mean is L^-T L^-1 pull.
        roots = np.linalg.cholesky(precision[patterns[:, :, None], patterns[:, None, :]])
        inverse = np.linalg.inv(roots)
        deviation = np.sqrt((inverse**2).sum(axis=1))
        of_rows = inverse[pattern]
        # [R, K, K] x [R, K, 2] -> [R, K, 2]
        half = of_rows @ pull[at][..., None]
        both = np.concatenate([half, half + rng.standard_normal(half.shape)], axis=2)
        both = of_rows.transpose(0, 2, 1) @ both
        predicted.mean[at], away[at] = both[..., 0], both[..., 1]
        predicted.deviation[at] = deviation[pattern]
    return predicted
