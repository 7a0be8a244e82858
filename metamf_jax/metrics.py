"""Errors of predictions, and statistics of errors."""

import math
from collections.abc import Callable

import numpy as np


def mean_and_standard_error(values: np.ndarray) -> tuple[float, float]:
    """Mean of a sample and the standard error of that mean; the latter is NaN for one value."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def paired_difference(
    errors: np.ndarray, others: np.ndarray, test_train_ratio: float
) -> tuple[float, float]:
    """Mean difference ``errors - others`` over random splits of one data set, and its error.

    Splits overlap, so the standard error takes the correction of Nadeau and Bengio (Machine
    Learning 52, 2003): ``sqrt((1 / J + n_test / n_train) variance)`` for J splits.

    Args:
      errors: [J], one method's error on each split.
      others: [J], another's on the same splits.
      test_train_ratio: ``n_test / n_train``.
    """
    differences = np.asarray(errors, np.float64) - np.asarray(others, np.float64)
    variance = differences.var(ddof=1)
    scale = 1 / len(differences) + test_train_ratio
    return float(differences.mean()), float(math.sqrt(scale * variance))


def root_mean_square_error(values: np.ndarray, fitted: np.ndarray) -> float:
    """``sqrt(mean (x - f)^2)``, added in float64, of values and what was fitted to them, [E]."""
    return float(np.sqrt(np.mean((values - fitted) ** 2, dtype=np.float64)))


def mean_absolute_error(values: np.ndarray, fitted: np.ndarray) -> float:
    """``mean |x - f|``, of values and what was fitted to them, [E]."""
    return float(np.mean(np.abs(values - fitted), dtype=np.float64))


# The least numbers of entries of the parts of `by_count`.
_COUNTS = 0, 1, 2, 3, 6, 11, 31


def by_count(counts: np.ndarray, squares: np.ndarray) -> dict[str, dict[str, float]]:
    """Errors of cells, parted by how many entries their row (or column) had in the training.

    Args:
      counts: [Q] int, of the row of each cell.
      squares: [Q], squared errors.

    Returns:
      ``{"3-5": {"cells": .., "rmse": ..}, ..}`` of 0, 1, 2, 3-5, 6-10, 11-30 and 31+; parts without
      cells are left out.
    """
    parts = np.searchsorted(_COUNTS, counts, side="right") - 1
    found = {}
    for part, least in enumerate(_COUNTS):
        inside = squares[parts == part]
        most = _COUNTS[part + 1] - 1 if part + 1 < len(_COUNTS) else None
        name = f"{least}+" if most is None else str(least) if most == least else f"{least}-{most}"
        if len(inside):
            found[name] = {"cells": len(inside), "rmse": float(np.sqrt(inside.mean()))}
    return found


def log_loss(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean of ``log(1 + exp(-x s))`` in nats, of labels -1 and 1 and their log-odds, [E]."""
    return float(np.mean(np.logaddexp(0, -np.asarray(labels, np.float64) * scores)))


def accuracy(labels: np.ndarray, scores: np.ndarray) -> float:
    """The part of the labels (-1 and 1) that have their score's sign; a score of 0 says 1."""
    return float(np.mean((np.asarray(scores) >= 0) == (np.asarray(labels) > 0)))


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, of labels -1 and 1; NaN where all are alike.

    From the sum of the positives' ranks (Mann and Whitney); equal scores share a rank.
    """
    positive = np.asarray(labels) > 0
    count = int(positive.sum())
    if count in (0, len(positive)):
        return math.nan
    _, place, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (sizes.cumsum() - (sizes - 1) / 2)[place]
    won = rank[positive].sum() - count * (count + 1) / 2
    return float(won / (count * (len(positive) - count)))


def kullback_leibler(values: np.ndarray, fitted: np.ndarray, floor: float = 1e-6) -> float:
    """Mean generalised divergence ``x log(x / f) - x + f`` of values from 0 on, [E].

    Args:
      values: the values.
      fitted: to them; read as at least `floor`.
      floor: a positive number.
    """
    x = np.asarray(values, np.float64)
    f = np.maximum(np.asarray(fitted, np.float64), floor)
    return float(np.mean(x * np.log(np.where(x > 0, x, 1) / f) - x + f))


def ranking(
    scores_of: Callable[[np.ndarray], np.ndarray],
    wanted: tuple[np.ndarray, np.ndarray],
    known: tuple[np.ndarray, np.ndarray],
    count: int = 10,
    most_rows: int = 2000,
) -> tuple[float, float]:
    """Recall and NDCG of each row's `count` best columns, the mean over rows with a wanted cell.

    Recall is the part of the row's wanted columns among the best, of at most `count`. NDCG adds
    ``1 / log2(1 + place)`` over those found, divided by what the best order would have. So in
    Liang, Krishnan, Hoffman, Jebara: Variational autoencoders for collaborative filtering, WWW
    2018.

    Args:
      scores_of: rows [R] -> their scores of all columns [R, M].
      wanted: rows and columns of the cells to find.
      known: rows and columns of cells that are not asked for, such as those of the training.
      count: k.
      most_rows: of more rows, so many are looked at, spread evenly over their order.

    Returns:
      recall@k and NDCG@k; NaN where no cell is wanted.
    """
    rows = np.unique(wanted[0])
    if len(rows) > most_rows:
        rows = rows[np.arange(most_rows) * len(rows) // most_rows]
    if len(rows) == 0:
        return math.nan, math.nan
    found = np.concatenate(
        [_hits(scores_of, part, wanted, known, count) for part in _parts(rows, 256)]
    )
    sizes = np.minimum(np.bincount(wanted[0], minlength=rows[-1] + 1)[rows], count)
    gains = 1 / np.log2(2 + np.arange(found.shape[1]))
    best = np.concatenate([[0], gains.cumsum()])[np.minimum(sizes, len(gains))]
    return float(np.mean(found.sum(axis=1) / sizes)), float(np.mean(found @ gains / best))


def _parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return np.split(rows, range(size, len(rows), size))


def _hits(scores_of, rows, wanted, known, count):
    """Whether the column in each of the first places is a wanted one, float64 [R, k]."""
    scores = np.array(scores_of(rows), np.float64)
    scores[_cells(rows, known)] = -np.inf
    is_wanted = np.zeros(scores.shape)
    is_wanted[_cells(rows, wanted)] = 1
    count = min(count, scores.shape[1])
    first = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(scores, first, axis=1), axis=1, kind="stable")
    return np.take_along_axis(is_wanted, np.take_along_axis(first, order, axis=1), axis=1)


def _cells(rows, cells):
    """Those of some rows (rising), as places in a matrix of these rows alone."""
    place = np.searchsorted(rows, cells[0])
    inside = rows[np.minimum(place, len(rows) - 1)] == cells[0]
    return place[inside], np.asarray(cells[1])[inside]
