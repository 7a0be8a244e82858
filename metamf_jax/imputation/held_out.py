"""What held-out cells say of the candidates: their weights, and how wide error bars are to be.

Error bars grow until nine of ten held-out cells lie inside (split conformal prediction; Vovk et al.
2005). Where cells are missing for their own value, a held-out cell counts as much as its odds of
being missing, and so stands for the missing ones (conformal prediction under a known shift;
Tibshirani et al. 2019).
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import scipy.optimize

# Fewer observed cells than this cannot be checked on a part of them.
FEWEST_CHECKED = 10
# What candidates weigh before anything is known of the matrix, the others nothing; and how many
# cells' worth of error it takes to leave that.
START_WEIGHTS = {"learned": 0.6, "posterior": 0.4}
_WEIGHT_STRENGTH = 6.0
# And of a column to leave the weights of all. On 12 tables 10 to 100 did within 0.1%.
_COLUMN_STRENGTH = 30.0
# What draws have of the answer before anything is known of the matrix, with the weight of so many
# cells' error. On 79 sparse cuts of 60 x 60 to 200 x 200 of MovieLens-100K, FilmTrust and Jester
# errors were 1.1%, 0.7% and 0.7% below those of the better of the two by held-out cells; without
# this start 1.0%, 0.6% and 0.5%. On 30 further ones they were 0.6% to 0.8% below those of draws
# alone, 0.8% to 1.3% below those of candidates alone.
START_SHARE, _SHARE_STRENGTH = 0.6, 60.0
# Error bars are this much too narrow before anything is known, with the weight of so many cells.
START_INFLATION, _INFLATION_WEIGHT = 1.15, 10
# And a column's is drawn to the table's.
_CELLS_OF_TABLE = 30
_COVERAGE = 0.9
NORMAL_QUANTILE = 1.6448536  # Of that coverage, two-sided.
# Up to so many observed cells: how many times a part is held out, and what share. Interval widths
# from 360 held-out cells of Jester covered 0.856 to 0.923 of others, so small parts are too few.
_FOLDS = ((2500, 5, 0.2), (20_000, 2, 0.2), (200_000, 1, 0.1), (None, 1, 0.05))
# The most that the log odds of a held-out cell count for, over the median cell: without a bound (8
# was tried) a few cells decide.
_MOST_LOG_ODDS = 5.0
# Errors in units of a column's deviation, larger ones alike: their squares do not overflow.
MOST_ERROR = 1e100


class Check(NamedTuple):
    """What the held-out check found.

    Attributes:
      cells: held-out cells, 0 where there were too few to check.
      rmse: of the weighted candidates on them, in the units of the values.
      bias_rmse: of the bias model.
      coverage: share of them inside 90% intervals scaled on the other half of them.
      relative: root mean square error in units of each column's deviation.
      mean_relative: of the columns' means, in the same units.
      by_column: [M], ``relative`` of each column; NaN where no cell of it was held out.
      mean_by_column: [M], ``mean_relative`` of each column.

    Where the transpose was fitted, as it is where rows are standardised, the last four are of its
    columns: by row, in units of each row's deviation.
    """

    cells: int
    rmse: float
    bias_rmse: float
    coverage: float
    relative: float
    mean_relative: float
    by_column: np.ndarray
    mean_by_column: np.ndarray


class HeldOut(NamedTuple):
    """The held-out cells, each [H], in the units of the values.

    Attributes:
      columns: theirs.
      values: what they hold.
      predicted: what the weighted candidates made of them.
      bars: standard errors, as yet too narrow.
    """

    columns: np.ndarray
    values: np.ndarray
    predicted: np.ndarray
    bars: np.ndarray


def check(held: HeldOut, bias, means, coverage: float, units: np.ndarray) -> Check:
    """Sums up the held-out cells.

    Args:
      held: the cells.
      bias: [H], what the bias model made of them.
      means: [H], the means of their columns.
      coverage: of their intervals.
      units: [M], deviations of all columns.
    """
    each = units[held.columns]
    counts = np.bincount(held.columns, minlength=len(units))
    relative, by_column = [], []
    for predicted in (held.predicted, means):
        squares = np.clip((held.values - predicted) / each, -MOST_ERROR, MOST_ERROR) ** 2
        relative.append(float(np.sqrt(squares.mean())))
        total = np.bincount(held.columns, squares, len(units))
        by_column.append(np.sqrt(np.where(counts > 0, total / np.maximum(counts, 1), np.nan)))
    return Check(
        len(held.values),
        _root_mean_square(held.values - held.predicted),
        _root_mean_square(held.values - bias),
        coverage,
        relative[0],
        relative[1],
        by_column[0],
        by_column[1],
    )


def no_check(num_columns: int) -> Check:
    """Of a matrix with too few cells."""
    unknown, nothing = math.nan, np.full(num_columns, np.nan)
    return Check(0, unknown, unknown, unknown, unknown, unknown, nothing, nothing)


def _root_mean_square(left: np.ndarray) -> float:
    """Without squares that overflow."""
    size = np.abs(left).max()
    return float(size * np.sqrt(((left / size) ** 2).mean())) if size > 0 else 0.0


def folds(count: int, seed: int) -> list[np.ndarray]:
    """The numbers of the cells to hold out, each time; disjoint parts of ``range(count)``."""
    times, share = next(
        (times, share) for most, times, share in _FOLDS if most is None or count <= most
    )
    order = np.random.default_rng([seed, 0xC4EC]).permutation(count)
    size = math.ceil(share * count)
    return [order[time * size : (time + 1) * size] for time in range(times)]


def start_weights(allowed: Collection[str]) -> dict[str, float]:
    """What these candidates weigh before anything is known of the matrix."""
    start = np.array([START_WEIGHTS.get(name, 0.0) for name in allowed])
    start = start / start.sum() if start.any() else np.full(len(start), 1 / len(start))
    return dict(zip(allowed, start, strict=True))


def weigh(
    predictions: Mapping[str, np.ndarray],
    target: np.ndarray,
    allowed: Collection[str] | None = None,
) -> dict[str, float]:
    """Weights from the simplex with the least squared error, shrunken to the start.

    Args:
      predictions: of each candidate, [H], at held-out cells.
      target: [H], what these hold.
      allowed: those that may have a weight; None for all.
    """
    names = [name for name in predictions if allowed is None or name in allowed]
    start = np.array(list(start_weights(names).values()))
    found = _on_simplex(_errors(predictions, target, names), start, _WEIGHT_STRENGTH)
    return {name: 0.0 for name in predictions} | dict(zip(names, found.tolist(), strict=True))


def weigh_columns(
    predictions: Mapping[str, np.ndarray],
    target: np.ndarray,
    columns: np.ndarray,
    num_columns: int,
    weights: Mapping[str, float],
) -> dict[str, np.ndarray]:
    """Weights for each column, shrunken to those of all.

    Args:
      predictions: of each candidate, [H], at held-out cells.
      target: [H], what these hold.
      columns: [H], theirs.
      num_columns: M.
      weights: from `weigh`; what is zero there stays so.

    Returns:
      [M] of each candidate.
    """
    names = [name for name, weight in weights.items() if weight > 0]
    start = np.array([weights[name] for name in names])
    errors = _errors(predictions, target, names)
    found = np.tile(start, (num_columns, 1))
    for m in np.unique(columns) if len(names) > 1 else ():
        found[m] = _on_simplex(errors[columns == m], start, _COLUMN_STRENGTH)
    every = {name: np.zeros(num_columns) for name in weights}
    return every | dict(zip(names, found.T, strict=True))


def _errors(predictions, target: np.ndarray, names: list[str]) -> np.ndarray:
    """[H, A], a column for each candidate."""
    errors = target[:, None] - np.column_stack([predictions[name] for name in names])
    return np.clip(errors, -MOST_ERROR, MOST_ERROR)


def _on_simplex(errors: np.ndarray, start: np.ndarray, strength: float) -> np.ndarray:
    """The weights of the least squared error; leaving the start counts as so many cells do.

    With weights that add up to one, the error is the weighted sum ``E w`` of errors and the
    distance ``(I - start 1^T) w``; so both are linear in w, and the least squares with a row of
    ones more, ``1^T w = 1``, have non-negative solutions that are a multiple of the wanted one.
    """
    size = np.abs(errors).max() or 1.0
    errors = errors / size
    noise = (errors**2).mean(axis=0).min()
    ridge = strength * noise + 1e-12 * (errors**2).mean() + 1e-300
    away = np.eye(len(start)) - start[:, None]
    root = np.linalg.qr(np.vstack([errors, np.sqrt(ridge) * away]), mode="r")
    scale = np.sqrt((root**2).sum())
    system = np.vstack([root, np.full(len(start), scale)])
    found, _ = scipy.optimize.nnls(system, np.append(np.zeros(len(root)), scale))
    return found / found.sum()


def draws_share(drawn: np.ndarray, had: np.ndarray, start: float = START_SHARE) -> float:
    """The share of draws in their average with the candidates that has the least squared error.

    Shrunken to a start, since the candidates were weighted on the same cells, and the draws of the
    whole matrix are of longer chains.

    Args:
      drawn: [H], errors of draws at held-out cells.
      had: [H], of the weighted candidates.
      start: the share before anything is known of the matrix.
    """
    apart = drawn - had
    ridge = _SHARE_STRENGTH * float((drawn**2).mean())
    least = apart @ apart + ridge
    return float(np.clip(1 - (apart @ drawn + ridge * (1 - start)) / least, 0, 1))


def inflation(scores: np.ndarray) -> tuple[float, float]:
    """By what error bars must grow to hold 90% of the held-out cells, and what share that holds.

    Args:
      scores: [H] errors divided by their bars.
    """
    every = np.ones(len(scores))
    grown = _grown(scores, every)
    if len(scores) < 2:
        return grown, math.nan
    # Measured on the other half, so that it can fail.
    halves = scores[::2], scores[1::2]
    inside = [other <= _quantile(one, every[: len(one)]) for one, other in (halves, halves[::-1])]
    return grown, float(np.concatenate(inside).mean())


def inflation_by_column(
    scores: np.ndarray, columns: np.ndarray, size: int, of_table: float
) -> np.ndarray:
    """`inflation` of each column, [size], shrunken to the table's as if by so many more cells.

    Args:
      scores: [H] errors divided by their bars.
      columns: [H], whose cells these are.
      size: how many columns there are.
      of_table: `inflation` of all together.
    """
    found = np.full(size, of_table)
    for m in np.unique(columns):
        own = scores[columns == m]
        measured = max(_quantile(own, np.ones(len(own))) / NORMAL_QUANTILE, 1e-3)
        share = len(own) / (len(own) + _CELLS_OF_TABLE)
        found[m] = math.exp(share * math.log(measured) + (1 - share) * math.log(of_table))
    return found


def moved(
    held: HeldOut, tilt: np.ndarray, centers: np.ndarray, bars: np.ndarray
) -> tuple[float, float]:
    """By what a move and the error bars must grow for cells that are missing for their own value.

    A missing cell is moved by the tilt times its variance. The odds of the held-out cells are
    bounded, so they show less of a move than there is: one below the first is not taken.

    Args:
      held: the held-out cells.
      tilt: [H], what the log odds of being missing gain with a unit of the cell's value.
      centers: [H], of the cells' columns.
      bars: [H], error bars that hold 90% of the cells when all count alike.

    Returns:
      What the moves are multiplied by, and then the bars; both at least 1.
    """
    odds = tilt * (held.values - centers)
    importance = np.exp(np.minimum(odds - np.median(odds), _MOST_LOG_ODDS))
    left, move = held.values - held.predicted, tilt * bars**2
    # Least squares, cells weighted by their precision too.
    weight = importance / bars**2
    further = max(1.0, float((weight * left * move).sum() / (weight * move**2).sum()))
    widening = _grown(np.abs(left - further * move) / bars, importance / importance.mean(), 1.0)
    return further, max(1.0, widening)


def _grown(scores: np.ndarray, importance: np.ndarray, start: float = START_INFLATION) -> float:
    """The scores' quantile in units of the normal's, shrunken to a start; weights of mean one."""
    measured = max(_quantile(scores, importance) / NORMAL_QUANTILE, 1e-3)
    count = importance.sum() ** 2 / (importance**2).sum()
    share = count / (count + _INFLATION_WEIGHT)
    return math.exp(share * math.log(measured) + (1 - share) * math.log(start))


def _quantile(scores: np.ndarray, importance: np.ndarray) -> float:
    """The least score with `_COVERAGE` of the cells and of one more below; else the largest."""
    order = np.argsort(scores)
    mass = np.cumsum(importance[order])
    wanted = _COVERAGE * (mass[-1] + importance.mean())
    # Equal weights add up to whole numbers, but for rounding.
    place = int(np.searchsorted(mass, wanted * (1 - 1e-9)))
    return float(scores[order[min(place, len(scores) - 1)]])
